package deliver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
)

// A filter asks for what the record was, not for the dead letter that it has become.
func TestAFilterSeesARedrivenRecordAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := event.TopicPartition{Topic: "test.voucher.dead-letters", Partition: 0}
		var asked []event.Origin
		o := open(t, func(o *office, p *Parts) {
			o.sub.Filter = "topic == 'test.voucher'"
			p.Compile = func(string) (Filter, error) {
				return yes(func(r *event.Record) (bool, bool, error) {
					asked = append(asked, event.OriginOf(r))
					return r.Topic == voucher0.Topic, false, nil
				}), nil
			}
		})
		defer o.stop()
		letters := recordsOf(dead, 0, 1)
		letters[0].Key = []byte("shop")
		o.redrive.add(letters...)
		o.left.Store(1)
		o.sub.Redrive = event.Redrive{ID: 1, Until: map[event.TopicPartition]int64{dead: 1}}
		o.tell()
		o.redrive.give(dead)
		time.Sleep(time.Second)
		if got := o.end.got(); !slices.Equal(got, []string{"test.voucher/0/1000"}) {
			t.Errorf("accepted are %v; the filter was asked for %+v", got, asked)
		}
	})
}

// A subscription that was deleted and made again before this replica had stopped the old one counts
// its redrives from 1 again.
func TestARedriveOfASubscriptionThatWasMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := event.TopicPartition{Topic: "test.voucher.dead-letters", Partition: 0}
		o := open(t, func(o *office, _ *Parts) {
			o.sub.Redrive = event.Redrive{ID: 1, Until: map[event.TopicPartition]int64{dead: 5}} // which is over
		})
		defer o.stop()
		o.left.Store(3)
		o.sub.Generation = 2
		o.tell()
		if got := o.groups(); !slices.Contains(got, "postamt.shop.redrive") {
			t.Errorf("the redrive of the new one has not begun; opened were %v", got)
		}
	})
}

func TestEveryWithdrawalIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 2000
		stored := make(map[string]bool)
		o := open(t, func(_ *office, p *Parts) {
			p.Withdraw = func(_ context.Context, name string, _ int64, _ string) error {
				time.Sleep(10 * time.Millisecond) // what Kafka takes
				stored[name] = true
				return nil
			}
		})
		for i := range many { // an endpoint of many is gone, and each has said so several times
			for range 3 {
				o.parts.Withdrawn(fmt.Sprint("s", i), 1, "http://shop")
			}
		}
		time.Sleep(time.Minute)
		o.stop()
		if len(stored) != many {
			t.Errorf("%d of %d withdrawals were stored; the others would be paused here, and active to everybody", len(stored), many)
		}
	})
}

func TestTheWithdrawalOfASubscriptionThatIsNoMoreIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		o := open(t, func(_ *office, p *Parts) {
			p.Withdraw = func(context.Context, string, int64, string) error {
				tries++
				return event.Errorf(event.NotFound, 0, "withdraw", "there is no subscription")
			}
		})
		o.parts.Withdrawn("shop", 1, "http://shop")
		time.Sleep(time.Hour)
		o.stop()
		if tries != 1 {
			t.Errorf("it was tried %d times in an hour", tries)
		}
	})
}

// A 410 of an endpoint that a subscription has left says nothing about the one that it has now.
func TestWhatAnEarlierEndpointSaysDoesNotPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(func(context.Context, event.Attempt) event.Outcome {
			time.Sleep(10 * time.Second)
			return event.Outcome{Verdict: event.Withdrawn, Status: 410}
		})
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 3)...)
		time.Sleep(time.Second)
		o.end.set(ok)
		o.sub.URL = "http://elsewhere"
		o.tell()
		time.Sleep(time.Minute)
		if got := o.withdrawn(); len(got) != 0 || o.source.committed(voucher0).Offset != 3 {
			t.Errorf("stored is %v, committed %+v; want nothing, 3", got, o.source.committed(voucher0))
		}
	})
}

// A dead letter that cannot be written holds its record up: that is to be seen, whatever the record
// is given up for.
func TestALetterThatCannotBeWrittenIsShown(t *testing.T) {
	for value, verdict := range map[string]event.Verdict{"strange": "", "refused": event.Refused} {
		synctest.Test(t, func(t *testing.T) {
			o := open(t, func(o *office, _ *Parts) { o.sub.Filter = "data.amount > 50" })
			defer o.stop()
			o.letters.failNext(1000)
			o.end.set(poisoned(0, event.Refused))
			records := recordsOf(voucher0, 0, 6)
			records[0].Value = []byte(value)
			o.source.give(voucher0)
			o.source.add(records...)
			time.Sleep(time.Second)
			o.source.add(recordsOf(voucher0, 6, 6)...) // the evidence
			time.Sleep(10 * time.Minute)
			s, _ := o.OwnStatus("shop")
			if len(s.Partitions) != 1 || s.Partitions[0].Stuck == nil {
				t.Fatalf("%s: nothing seems to hold it up: %+v", value, s)
			}
			stuck := s.Partitions[0].Stuck
			if stuck.Verdict != verdict || !strings.Contains(stuck.Err, "its dead letter cannot be written to test.voucher.dead-letters: Kafka is away") || !stuck.NextAttempt.After(time.Now()) {
				t.Errorf("%s: what holds it up is %+v", value, stuck)
			}
			o.letters.failNext(0)
			time.Sleep(10 * time.Minute)
			if got := o.letters.got(); len(got) != 1 || strings.Contains(got[0].Last.Err, "Kafka") || o.source.committed(voucher0).Offset != 12 {
				t.Errorf("%s: dead letters are %+v", value, got)
			}
		})
	}
}

// While Kafka is slow to commit, commits do not queue up, of which an older one could be the last.
func TestOneCommitAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			time.Sleep(100 * time.Millisecond)
			return ok(ctx, a)
		})
		o.source.slowDown(4 * time.Second)
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 300)...)
		most := 0
		for range 15 {
			time.Sleep(time.Second)
			o.ask("shop", func(w *worker) { most = max(most, w.flying-w.engine.inFlight) })
		}
		if most != 1 {
			t.Errorf("%d commits were under way at once", most)
		}
		o.source.slowDown(0)
		time.Sleep(10 * time.Second)
		if c := o.source.committed(voucher0); c.Offset != 300 {
			t.Errorf("committed is %+v, want 300", c)
		}
	})
}

// A topic that was made anew is assigned once more, while its partition may rest.
func TestWhatIsAssignedIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(poisoned(0, event.Unreachable))
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 1000)...)
		time.Sleep(time.Second)
		if !o.source.isPaused(voucher0) {
			t.Fatal("a full window does not rest")
		}
		o.source.opts.Assigned(map[event.TopicPartition]event.Commit{voucher0: {Offset: 0}})
		if o.source.isPaused(voucher0) {
			t.Error("an empty window rests, and nothing will ever wake it")
		}
	})
}

// Some of an endpoint's replicas may have the wrong path, for as long as a rollout takes.
func TestAPartialRolloutMakesHardlyAnyDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		rnd := rand.New(rand.NewPCG(1, 1))
		var mu sync.Mutex
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			mu.Lock()
			defer mu.Unlock()
			if rnd.IntN(10) < 3 {
				return event.Outcome{Verdict: event.Refused, Status: 404}
			}
			return ok(ctx, a)
		})
		o.source.give(voucher0)
		const n = 3000
		for from := int64(0); from < n; from += 10 {
			o.source.add(recordsOf(voucher0, from, 10)...)
			time.Sleep(time.Second)
		}
		time.Sleep(time.Hour)
		if got, dead := len(o.end.got()), len(o.letters.got()); got+dead != n || dead > n/100 {
			t.Errorf("%d were accepted and %d became dead letters, of %d", got, dead, n)
		}
	})
}

func TestRecordsFromBeforeAPartitionCameBackAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.source.give(voucher0)
		w := o.worker("shop")
		w.do(func() {
			f := w.owned[voucher0].feed
			f.offer(batch{f, recordsOf(voucher0, 5, 3), f.turn.Load() - 1})
		})
		synctest.Wait()
		if n := o.end.tries(); n > 0 {
			t.Errorf("%d were tried", n)
		}
		o.source.add(recordsOf(voucher0, 0, 8)...)
		time.Sleep(time.Second)
		if c := o.source.committed(voucher0); c.Offset != 8 || len(o.end.got()) != 8 {
			t.Errorf("committed is %+v after %d", c, len(o.end.got()))
		}
	})
}
