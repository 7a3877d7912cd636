package main

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// measureSubscriptions makes subscriptions, each the only member of its group with three partitions,
// of a topic that nobody writes to, and looks at the consumer that delivers them.
func (b *bench) measureSubscriptions(ctx context.Context) error {
	p, err := b.startDeliverer(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	have := 0
	for _, n := range []int{0, min(10, b.subscriptions), b.subscriptions} {
		began := time.Now()
		if err := b.openSubscriptions(ctx, p, have, n); err != nil {
			return fmt.Errorf("%d subscriptions: %w", n, err)
		}
		have = n
		s, err := watch(ctx, p, n, time.Since(began))
		if err != nil {
			return err
		}
		progress("%d subscriptions: %.0f MiB, at most %.0f, %.0f threads, %.0f connections, %.3f cores, made in %.1f s", n, s.rss, s.peak, s.threads, s.sockets, s.cpu, s.opening)
		b.subscribedAt = append(b.subscribedAt, s)
	}
	return nil
}

// openSubscriptions makes the subscriptions from number from on, until there are to, and waits
// until each reads its partitions.
func (b *bench) openSubscriptions(ctx context.Context, p *process, from, to int) error {
	return openMany(ctx, from, to, func(opening context.Context, i int) error {
		name := fmt.Sprintf("bench-idle-%d", i)
		if err := b.subscribe(opening, p, name, "bench.idle", pathAtOnce, "latest"); err != nil {
			return err
		}
		return reads(opening, p, name)
	})
}

// reads waits until a subscription reads all three partitions.
func reads(ctx context.Context, p *process, name string) error {
	for began := time.Now(); time.Since(began) < patience; {
		var text []byte
		if err := again(func() (err error) {
			text, err = get(ctx, p.http+"/subscriptions/"+name)
			return err
		}); err != nil {
			return err
		}
		if bytes.Count(text, []byte(`"replica":"`)) == 3 {
			return nil
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not read its partitions", name)
}
