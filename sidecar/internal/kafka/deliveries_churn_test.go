package kafka_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// ledger is what all members together have read of each partition.
type ledger struct {
	t         *testing.T
	mu        sync.Mutex
	next      map[event.TopicPartition]int64
	committed map[event.TopicPartition]int64
	lost      int
}

// commits is what a member that has read so far commits of partitions.
func (l *ledger) commits(tps []event.TopicPartition) map[event.TopicPartition]event.Commit {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[event.TopicPartition]event.Commit)
	for _, tp := range tps {
		if l.next[tp] > 0 {
			out[tp] = event.Commit{Offset: l.next[tp], Metadata: strconv.FormatInt(l.next[tp], 10)}
		}
	}
	return out
}

func (l *ledger) commit(d *kafka.Deliveries, commits map[event.TopicPartition]event.Commit) error {
	if len(commits) == 0 {
		return nil
	}
	err := d.Commit(l.t.Context(), commits)
	l.mu.Lock()
	defer l.mu.Unlock()
	for tp, c := range commits {
		if err == nil {
			l.committed[tp] = c.Offset
		}
	}
	return err
}

func (l *ledger) member(servers []string) (stop func()) {
	var d *kafka.Deliveries
	ready := make(chan struct{})
	var mine sync.Map
	d, err := kafka.OpenDeliveries(servers, kafka.DeliveriesOptions{
		Group: "g", Topics: []string{"a"}, ClientID: "m",
		Assigned: func(commits map[event.TopicPartition]event.Commit) {
			for tp, c := range commits {
				l.mu.Lock()
				if want := l.committed[tp]; max(c.Offset, 0) != want || want > 0 && c.Metadata != strconv.FormatInt(want, 10) {
					l.t.Errorf("%v begins with %v; %d is committed", tp, c, want)
				}
				l.mu.Unlock()
				mine.Store(tp, true)
			}
		},
		Revoked: func(tps []event.TopicPartition) {
			<-ready
			if err := l.commit(d, l.commits(tps)); err != nil {
				l.t.Errorf("a commit in Revoked: %v", err)
			}
			for _, tp := range tps {
				mine.Delete(tp)
			}
		},
		Lost: func(tps []event.TopicPartition) { // on a machine that stands still for ten seconds
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, tp := range tps {
				mine.Delete(tp)
				l.next[tp] = l.committed[tp]
				l.lost++
			}
		},
		Expired: func(tp event.TopicPartition, from, to int64) { l.t.Errorf("%v expired from %d to %d", tp, from, to) },
	})
	if err != nil {
		l.t.Fatal(err)
	}
	close(ready)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	var polling sync.WaitGroup
	polling.Go(func() {
		for ctx.Err() == nil {
			wait, done := context.WithTimeout(ctx, 50*time.Millisecond)
			records, err := d.Poll(wait, 50)
			done()
			if err != nil {
				l.t.Error(err)
				return
			}
			l.mu.Lock()
			for _, r := range records {
				at := tp(r.Topic, r.Partition)
				if _, ours := mine.Load(at); !ours || r.Offset != l.next[at] {
					l.t.Errorf("record %d of %v was read by a member that has it: %v; the next one is %d", r.Offset, at, ours, l.next[at])
				}
				l.next[at] = r.Offset + 1
			}
			l.mu.Unlock()
			// While the records are in hand, their partitions stay.
			var tps []event.TopicPartition
			for _, r := range records {
				tps = append(tps, tp(r.Topic, r.Partition))
			}
			if rand.N(4) == 0 {
				if err := l.commit(d, l.commits(tps)); err != nil {
					l.t.Errorf("a commit of what is in hand: %v", err)
				}
			}
		}
	})
	return func() {
		cancel()
		polling.Wait()
		bounded, done := context.WithTimeout(context.Background(), 10*time.Second)
		defer done()
		d.Close(bounded)
	}
}

// Members come and go while records are written: each record is read once, and in its order.
func TestPartitionsMoveWithoutGapsOrRepeats(t *testing.T) {
	t.Parallel()
	const partitions = 6
	cluster := clusterFor(t, kfake.NumBrokers(3), kfake.SeedTopics(partitions, "a"))
	client := clientFor(t, cluster)
	l := &ledger{t: t, next: make(map[event.TopicPartition]int64), committed: make(map[event.TopicPartition]int64)}
	writing, stopWriting := context.WithTimeout(context.Background(), time.Minute)
	var writer sync.WaitGroup
	written := make(map[event.TopicPartition]int64)
	writer.Go(func() {
		for writing.Err() == nil {
			p := rand.N[int32](partitions)
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "a", Partition: p, Value: []byte("v")}).FirstErr(); err != nil {
				t.Error(err)
				return
			}
			written[tp("a", p)]++
		}
	})
	servers := cluster.ListenAddrs()
	var members []func()
	defer func() {
		for _, stop := range members {
			stop()
		}
	}()
	for _, join := range []bool{true, true, true, false, true, false, false, true} {
		if join {
			members = append(members, l.member(servers))
		} else {
			i := rand.N(len(members))
			members[i]()
			members = append(members[:i], members[i+1:]...)
		}
		pause, done := context.WithTimeout(context.Background(), 300*time.Millisecond+rand.N(700*time.Millisecond))
		<-pause.Done()
		done()
	}
	stopWriting()
	writer.Wait()
	eventually(t, "all that was written is read", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		for at, n := range written {
			if l.next[at] != n {
				return false
			}
		}
		return true
	})
	if l.lost > 0 {
		t.Logf("%d partitions were lost: this machine stood still", l.lost)
	}
}
