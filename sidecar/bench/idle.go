package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// idleSample is a consumer with so many idle sessions and as many idle streams.
type idleSample struct {
	n                                         int
	peak, rss, threads, handles, sockets, cpu float64
	goroutines, heap, opening                 float64
}

// idleFor is how long idle ones are watched.
const idleFor = 20 * time.Second

// measureIdle opens sessions, each the only member of its group with three partitions, and
// streams, first a few and then all, and looks at the consumer that holds them.
func (b *bench) measureIdle(ctx context.Context) error {
	p, err := b.startSide(ctx, "consumer")
	if err != nil {
		return err
	}
	defer p.stop()
	few := min(10, b.idle)
	have := 0
	for _, n := range []int{0, few, b.idle} {
		began := time.Now()
		if err := b.openIdle(ctx, p, have, n); err != nil {
			return fmt.Errorf("%d idle: %w", n, err)
		}
		have = n
		s, err := watch(ctx, p, n, time.Since(began))
		if err != nil {
			return err
		}
		sessions, err := p.counter(ctx, "postamt_sessions ")
		if err != nil {
			return err
		}
		streams, err := p.counter(ctx, "postamt_streams ")
		if err != nil {
			return err
		}
		if int(sessions) != n || int(streams) != n {
			return fmt.Errorf("%.0f sessions and %.0f streams are open, not %d", sessions, streams, n)
		}
		progress("idle  %d sessions and %d streams: %.0f MiB, at most %.0f, %.0f threads, %.0f handles", n, n, s.rss, s.peak, s.threads, s.handles)
		b.idleAt = append(b.idleAt, s)
	}
	return nil
}

// watch looks at a process that has opened n of something.
func watch(ctx context.Context, p *process, n int, opening time.Duration) (s idleSample, err error) {
	if err := wait(ctx, 2*time.Second); err != nil {
		return s, err
	}
	cpu := p.cpu()
	if err := wait(ctx, idleFor); err != nil {
		return s, err
	}
	s = idleSample{
		n: n, peak: p.status("VmHWM"), rss: p.status("VmRSS"), threads: p.status("Threads"),
		cpu: (p.cpu() - cpu) / idleFor.Seconds(), opening: opening.Seconds(),
	}
	s.handles, s.sockets = p.handles()
	if s.goroutines, err = p.counter(ctx, "go_goroutines"); err != nil {
		return s, err
	}
	s.heap, err = p.counter(ctx, "go_memstats_heap_inuse_bytes")
	s.heap /= 1 << 20
	return s, err
}

// openIdle opens the sessions and streams from number from on, until there are to of each.
// The streams stay open until ctx ends, or the consumer does.
func (b *bench) openIdle(ctx context.Context, p *process, from, to int) error {
	return openMany(ctx, from, to, func(opening context.Context, i int) error {
		_, err := newSession(opening, p, fmt.Sprintf("bench-idle-%d", i), "json", "bench.idle")
		if err != nil {
			return err
		}
		return again(func() error { return openStream(ctx, p) })
	})
}

// openMany opens what has the numbers from one up to another, some at a time.
func openMany(ctx context.Context, from, to int, open func(ctx context.Context, i int) error) error {
	all, opening := errgroup.WithContext(ctx)
	all.SetLimit(16)
	for i := from; i < to && opening.Err() == nil; i++ {
		all.Go(func() error { return open(opening, i) })
	}
	return all.Wait()
}

// openStream returns once a stream has sent its first line.
func openStream(ctx context.Context, p *process) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.http+"/streams/bench.idle", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req) //nolint:bodyclose // it stays open, and is closed by who reads on
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return fmt.Errorf("GET /streams: %s", resp.Status)
	}
	lines := bufio.NewReaderSize(resp.Body, 64)
	if _, err := lines.ReadSlice('\n'); err != nil {
		_ = resp.Body.Close()
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, lines); _ = resp.Body.Close() }()
	return nil
}
