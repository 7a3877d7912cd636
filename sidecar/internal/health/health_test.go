package health

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestReportFollowsTheChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kafkaAway, remaking atomic.Bool
		failIf := func(b *atomic.Bool) func(context.Context) error {
			return func(context.Context) error {
				if b.Load() {
					return errors.New("away")
				}
				return nil
			}
		}
		m := New("producer", "1", 5*time.Second, []Check{
			{Name: "kafka", Run: failIf(&kafkaAway)},
			{Name: "producer", Run: failIf(&remaking), Blocks: true},
		}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())

		expect := func(when string, status Status, serving, ready bool) {
			t.Helper()
			synctest.Wait()
			if r := m.Report(); r.Status != status || r.Serving != serving || r.Ready != ready {
				t.Errorf("%s: %s, serving %v, ready %v; want %s, %v, %v", when, r.Status, r.Serving, r.Ready, status, serving, ready)
			}
		}
		expect("before the first checks", Starting, false, false)

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		expect("at rest", OK, true, true)

		kafkaAway.Store(true)
		time.Sleep(5 * time.Second)
		expect("without Kafka", Degraded, true, false)
		remaking.Store(true)
		time.Sleep(5 * time.Second)
		expect("while the producer is remade", Degraded, false, false)
		kafkaAway.Store(false)
		remaking.Store(false)
		time.Sleep(5 * time.Second)
		expect("mended", OK, true, true)

		m.Drain()
		expect("asked to stop", Draining, false, false)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after it was asked to stop", err)
		}
	})
}

func TestACheckThatHangsFailsWithinTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := Check{Name: "kafka", Run: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		m := New("consumer", "1", 5*time.Second, []Check{hang}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(6 * time.Second)
		if r := m.Report(); r.Status != Degraded || r.Checks["kafka"].Error == "" {
			t.Errorf("the report is %+v; want degraded, with the error", r)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after it was asked to stop", err)
		}
	})
}
