package deliver

import (
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
)

func TestNewestAttemptsAreRemembered(t *testing.T) {
	for _, n := range []int64{1, keptAttempts - 1, keptAttempts, keptAttempts + 1, 3*keptAttempts + 7} {
		synctest.Test(t, func(t *testing.T) {
			o := open(t, func(o *office, _ *Parts) { o.sub.Ordering = event.OrderByPartition }) // one after the other
			defer o.stop()
			o.source.give(voucher0)
			o.source.add(recordsOf(voucher0, 0, n)...)
			time.Sleep(time.Second)
			got := o.OwnAttempts("shop")
			if len(got) != int(min(n, keptAttempts)) {
				t.Fatalf("of %d attempts %d are remembered", n, len(got))
			}
			for i, a := range got {
				if want := n - 1 - int64(i); a.Offset != want {
					t.Errorf("of %d attempts number %d from the newest on is of offset %d, want %d", n, i, a.Offset, want)
				}
			}
		})
	}
}

// makers counts the goroutines that make attempts.
func makers() int {
	stacks := make([]byte, 4<<20)
	return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "deliver.(*worker).try(")
}

func TestIdleSubscriptionHasNoGoroutinesForAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, _ *Parts) { o.sub.Ordering = event.OrderNone })
		defer o.stop()
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 90)...)
		synctest.Wait()
		if n := makers(); n == 0 {
			t.Error("none waits for the next attempt")
		}
		time.Sleep(attemptIdle + time.Millisecond)
		synctest.Wait()
		if n := makers(); n != 0 {
			t.Errorf("%d wait for an attempt though there has been none for longer than %v", n, attemptIdle)
		}
		if n := len(o.end.got()); n != 90 {
			t.Errorf("%d of 90 records are accepted", n)
		}
		o.source.add(recordsOf(voucher0, 90, 10)...)
		synctest.Wait()
		if n := len(o.end.got()); n != 100 {
			t.Errorf("%d of 100 records are accepted", n)
		}
	})
}
