package kafka_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// deliverer is a Deliveries and what it has said.
type deliverer struct {
	*kafka.Deliveries
	t *testing.T

	mu       sync.Mutex
	calling  bool
	assigned map[event.TopicPartition]event.Commit
	expired  []string
	lost     int
	polled   map[event.TopicPartition][]event.Record
	stop     context.CancelFunc
	polling  sync.WaitGroup
}

// delivererFor opens a member of the group "g" that reads topic "a".
func delivererFor(t *testing.T, cluster *kfake.Cluster, name string, revoked func(*deliverer, []event.TopicPartition)) *deliverer {
	t.Helper()
	return delivererAt(t, cluster.ListenAddrs(), name, revoked)
}

func delivererAt(t *testing.T, servers []string, name string, revoked func(*deliverer, []event.TopicPartition)) *deliverer {
	t.Helper()
	d := &deliverer{t: t, assigned: make(map[event.TopicPartition]event.Commit), polled: make(map[event.TopicPartition][]event.Record)}
	ready := make(chan struct{}) // d is whole
	// call is what every callback does: no two may run at once.
	call := func(f func()) {
		<-ready
		d.mu.Lock()
		if d.calling {
			t.Error("two callbacks run at once")
		}
		d.calling = true
		f()
		d.mu.Unlock()
	}
	end := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.calling = false
	}
	var err error
	d.Deliveries, err = kafka.OpenDeliveries(servers, kafka.DeliveriesOptions{
		Group: "g", Topics: []string{"a"}, ClientID: name,
		Assigned: func(commits map[event.TopicPartition]event.Commit) {
			defer end()
			call(func() {
				for tp, c := range commits {
					if _, twice := d.assigned[tp]; twice {
						t.Errorf("%v is assigned twice", tp)
					}
					d.assigned[tp] = c
				}
			})
		},
		Revoked: func(tps []event.TopicPartition) {
			defer end()
			call(func() { d.gone(tps) })
			if revoked != nil {
				revoked(d, tps)
			}
		},
		Lost: func(tps []event.TopicPartition) {
			defer end()
			call(func() {
				d.gone(tps)
				d.lost += len(tps)
			})
		},
		Expired: func(tp event.TopicPartition, from, to int64) {
			defer end()
			call(func() { d.expired = append(d.expired, fmt.Sprintf("%s/%d %d-%d", tp.Topic, tp.Partition, from, to)) })
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	t.Cleanup(d.close)
	return d
}

func (d *deliverer) gone(tps []event.TopicPartition) {
	for _, tp := range tps {
		if _, ours := d.assigned[tp]; !ours {
			d.t.Errorf("%v goes and was not here", tp)
		}
		delete(d.assigned, tp)
	}
}

func (d *deliverer) close() {
	if d.stop != nil {
		d.stop()
		d.polling.Wait()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	d.Close(ctx)
}

// run polls until the test ends.
func (d *deliverer) run() *deliverer {
	var ctx context.Context
	ctx, d.stop = context.WithCancel(context.Background())
	d.polling.Go(func() {
		for ctx.Err() == nil {
			d.pollFor(ctx, 100*time.Millisecond)
		}
	})
	return d
}

// pollFor polls once, and checks what came.
func (d *deliverer) pollFor(ctx context.Context, wait time.Duration) []event.Record {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	records, err := d.Poll(ctx, 7)
	if err != nil || len(records) > 7 {
		d.t.Errorf("a poll gives %d records, %v", len(records), err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range records {
		at := tp(r.Topic, r.Partition)
		if _, ours := d.assigned[at]; !ours {
			d.t.Errorf("a record of %v, which is not assigned", at)
		}
		d.polled[at] = append(d.polled[at], r)
	}
	return records
}

func (d *deliverer) has() []event.TopicPartition {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.assigned), event.TopicPartition.Compare)
}

// values are what was polled of a partition.
func (d *deliverer) values(at event.TopicPartition) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return valuesOf(d.polled[at])
}

func (d *deliverer) count() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, records := range d.polled {
		n += len(records)
	}
	return n
}

// fill writes the values from..to-1 to each of n partitions of topic a.
func fill(t testing.TB, cluster *kfake.Cluster, n int32, from, to int) {
	t.Helper()
	client, err := kafka.NewClient(cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var records []*kgo.Record
	for p := range n {
		for v := from; v < to; v++ {
			records = append(records, &kgo.Record{Topic: "a", Partition: p, Value: fmt.Append(nil, v)})
		}
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func numbers(from, to int) string {
	var out []string
	for v := from; v < to; v++ {
		out = append(out, fmt.Sprint(v))
	}
	return fmt.Sprint(out)
}

// What a member knows of its partitions goes over to the next one, which begins exactly there.
func TestDeliveriesHandOverWhatTheyKnow(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.NumBrokers(3), kfake.SeedTopics(4, "a"))
	fill(t, cluster, 4, 0, 20)
	metadata := func(p int32) string { return strings.Repeat(string('a'+p), 4000) }
	commitSome := func(d *deliverer, tps []event.TopicPartition) {
		commits := make(map[event.TopicPartition]event.Commit)
		for _, at := range tps {
			commits[at] = event.Commit{Offset: 5 + int64(at.Partition), Metadata: metadata(at.Partition)}
		}
		if err := d.Commit(t.Context(), commits); err != nil {
			t.Errorf("a commit in Revoked: %v", err)
		}
	}
	first := delivererFor(t, cluster, "one", commitSome).run()
	eventually(t, "all is read by the first", func() bool { return first.count() == 80 })
	for p := range int32(4) {
		if got := first.values(tp("a", p)); got != numbers(0, 20) {
			t.Errorf("the first read %s of %d", got, p)
		}
	}
	for at, c := range first.assigned {
		if c != (event.Commit{Offset: event.NoCommit}) {
			t.Errorf("%v was given the commit %v; there was none", at, c)
		}
	}

	second := delivererFor(t, cluster, "two", nil).run()
	eventually(t, "the second has its share", func() bool { return len(second.has()) == 2 && len(first.has()) == 2 })
	fill(t, cluster, 4, 20, 30)
	moved := second.has()
	eventually(t, "each reads its own", func() bool {
		for _, at := range moved {
			if second.values(at) != numbers(5+int(at.Partition), 30) {
				return false
			}
		}
		return first.count() == 80+20
	})
	for _, at := range moved {
		if want := (event.Commit{Offset: 5 + int64(at.Partition), Metadata: metadata(at.Partition)}); second.assigned[at] != want {
			t.Errorf("%v was given %.60v; want %.60v", at, second.assigned[at], want)
		}
		err := first.Commit(t.Context(), map[event.TopicPartition]event.Commit{at: {Offset: 20}})
		if kindOf(err) != event.Conflict {
			t.Errorf("a commit of what has gone: %v; want a conflict", err)
		}
	}

	first.close()
	eventually(t, "the second has all", func() bool { return len(second.has()) == 4 })
	for at, c := range second.assigned {
		if !slices.Contains(moved, at) && c != (event.Commit{Offset: 5 + int64(at.Partition), Metadata: metadata(at.Partition)}) {
			t.Errorf("after the end of the first, %v is given %.60v", at, c)
		}
	}
	if members, err := kafka.NewCluster(clientFor(t, cluster)).Members(t.Context(), "g"); err != nil || len(members) != 1 || members[0].Client != "two" {
		t.Errorf("the members are %v, %v", members, err)
	}
}

// While Revoked waits for attempts, the member stays in the group, goes on with its other
// partitions, and no Poll hangs.
func TestRevokedMayTakeItsTime(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	fill(t, cluster, 2, 0, 1)
	c := kafka.NewCluster(clientFor(t, cluster))
	var again atomic.Bool
	begun, release := make(chan event.TopicPartition, 1), make(chan struct{})
	var mu sync.Mutex
	var self string
	beats := 0
	cluster.ControlKey(kmsg.Heartbeat.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		mu.Lock()
		defer mu.Unlock()
		if self != "" && req.(*kmsg.HeartbeatRequest).MemberID == self {
			beats++
		}
		return nil, nil, false
	})
	first := delivererFor(t, cluster, "one", func(d *deliverer, tps []event.TopicPartition) {
		if !again.CompareAndSwap(false, true) {
			return // the end of the test
		}
		begun <- tps[0]
		<-release
		if err := d.Commit(t.Context(), map[event.TopicPartition]event.Commit{tps[0]: {Offset: 1, Metadata: "late"}}); err != nil {
			t.Errorf("a commit after a while: %v", err)
		}
	}).run()
	free := sync.OnceFunc(func() { close(release) })
	defer free()
	eventually(t, "all is read by the first", func() bool { return first.count() == 2 })
	members, err := c.Members(t.Context(), "g")
	if err != nil || len(members) != 1 {
		t.Fatal(members, err)
	}
	second := delivererFor(t, cluster, "two", nil).run()
	var moved event.TopicPartition
	select {
	case moved = <-begun:
	case <-time.After(15 * time.Second):
		t.Fatal("nothing was revoked within 15s")
	}
	mu.Lock()
	self = members[0].ID
	mu.Unlock()
	stays := tp("a", 1-moved.Partition)
	fill(t, cluster, 2, 1, 2)
	eventually(t, "what stays is read meanwhile", func() bool { return first.values(stays) == numbers(0, 2) })
	eventually(t, "two heartbeats meanwhile", func() bool { mu.Lock(); defer mu.Unlock(); return beats >= 2 })
	if got := first.values(moved); got != numbers(0, 1) || len(second.has()) != 0 {
		t.Errorf("before it has been let go, the first has read %s of it, and the second has %v", got, second.has())
	}
	// What is to be told of it waits.
	first.Pause([]event.TopicPartition{stays})
	fill(t, cluster, 2, 2, 4)
	deleteUpTo(t, cluster, stays.Partition, 3)
	first.Resume([]event.TopicPartition{stays})
	eventually(t, "more heartbeats", func() bool { mu.Lock(); defer mu.Unlock(); return beats >= 3 })
	free()
	eventually(t, "it is told, or was fetched before", func() bool {
		read := first.values(stays)
		first.mu.Lock()
		defer first.mu.Unlock()
		return len(first.expired) == 1 || read == numbers(0, 4)
	})
	eventually(t, "the second reads on", func() bool { return second.values(moved) == numbers(1, 4) })
	if got, want := second.assigned[moved], (event.Commit{Offset: 1, Metadata: "late"}); got != want || first.lost != 0 {
		t.Errorf("the second was given %v; want %v; lost %d", got, want, first.lost)
	}
}

// A partition does not go while its records are in the reader's hands, or else before long.
func TestWhatIsInHandKeepsAPartition(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	fill(t, cluster, 2, 0, 1)
	var revoked time.Time
	first := delivererFor(t, cluster, "one", func(*deliverer, []event.TopicPartition) {
		if revoked.IsZero() {
			revoked = time.Now()
		}
	})
	eventually(t, "all is read by the first", func() bool { first.pollFor(t.Context(), time.Second); return first.count() == 2 })
	delivererFor(t, cluster, "two", nil).run()
	// Its poller does not come back.
	start := time.Now()
	eventually(t, "one has gone all the same", func() bool { return len(first.has()) == 1 })
	if took := time.Since(start); took < kafka.MaxInHand-time.Second {
		t.Errorf("it went after %v", took)
	}
	first.pollFor(t.Context(), time.Millisecond)
}

func TestAPauseHoldsRecordsBackAndEndsWithThePartition(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	fill(t, cluster, 2, 0, 20)
	first := delivererFor(t, cluster, "one", nil)
	both := []event.TopicPartition{tp("a", 0), tp("a", 1)}
	eventually(t, "some is read", func() bool { first.pollFor(t.Context(), time.Second); return first.count() >= 7 })
	first.Pause(both) // most of it has been fetched, and not polled
	before := first.count()
	for range 3 {
		start := time.Now()
		if got := first.pollFor(t.Context(), 300*time.Millisecond); len(got) != 0 || time.Since(start) < 300*time.Millisecond {
			t.Fatalf("while all is paused, a poll gives %v after %v", got, time.Since(start))
		}
	}
	first.Resume(both)
	eventually(t, "all is read after the pause", func() bool { first.pollFor(t.Context(), time.Second); return first.count() == 40 })
	for _, at := range both {
		if got := first.values(at); got != numbers(0, 20) {
			t.Errorf("of %v it read %s, from %d on after the pause", at, got, before)
		}
	}

	first.Pause(both)
	first.run()
	second := delivererFor(t, cluster, "two", nil).run()
	eventually(t, "one has gone", func() bool { return len(first.has()) == 1 && len(second.has()) == 1 })
	back := second.has()[0]
	second.close()
	eventually(t, "it is back", func() bool { return len(first.has()) == 2 })
	eventually(t, "and read, from its beginning", func() bool {
		return first.values(back) == "["+strings.Trim(numbers(0, 20), "[]")+" "+strings.Trim(numbers(0, 20), "[]")+"]"
	})
	fill(t, cluster, 2, 20, 21)
	eventually(t, "and on", func() bool { return strings.HasSuffix(first.values(back), " 20]") })
	if got := first.values(tp("a", 1-back.Partition)); got != numbers(0, 20) {
		t.Errorf("what was paused all the time was read: %s", got)
	}
}

func TestCloseLetsGoAndLeaves(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	fill(t, cluster, 2, 0, 5)
	var told []event.TopicPartition
	commits := map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 3, Metadata: "x"}, tp("a", 1): {Offset: 5, Metadata: "y"}}
	d := delivererFor(t, cluster, "one", func(d *deliverer, tps []event.TopicPartition) {
		told = append(told, tps...)
		if err := d.Commit(t.Context(), commits); err != nil {
			t.Errorf("the last commit: %v", err)
		}
	})
	eventually(t, "all is read", func() bool { d.pollFor(t.Context(), time.Second); return d.count() == 10 })
	parked := make(chan error)
	go func() {
		records, err := d.Poll(context.Background(), 1)
		if len(records) > 0 {
			t.Error("a poll after the end of both partitions gives records")
		}
		parked <- err
	}()
	d.close()
	d.close()
	if err := <-parked; kindOf(err) != event.Unavailable {
		t.Errorf("the poll that was under way ends with %v", err)
	}
	if !slices.Equal(told, []event.TopicPartition{tp("a", 0), tp("a", 1)}) {
		t.Errorf("Revoked was told of %v", told)
	}
	c := kafka.NewCluster(clientFor(t, cluster))
	if got, err := c.Committed(t.Context(), "g"); err != nil || !maps.Equal(got, commits) {
		t.Errorf("committed is %v, %v; want %v", got, err, commits)
	}
	if members, err := c.Members(t.Context(), "g"); err != nil || len(members) != 0 {
		t.Errorf("the members are %v, %v", members, err)
	}
	if _, err := d.Poll(t.Context(), 1); kindOf(err) != event.Unavailable {
		t.Errorf("a poll of what is closed: %v", err)
	}
	if err := d.Commit(t.Context(), commits); kindOf(err) != event.Conflict && kindOf(err) != event.Unavailable {
		t.Errorf("a commit of what is closed: %v", err)
	}
}

func TestCloseWithoutKafkaEndsInTime(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	servers := cluster.ListenAddrs()
	fill(t, cluster, 2, 0, 5)
	told := 0
	away := delivererAt(t, servers, "one", func(d *deliverer, tps []event.TopicPartition) {
		told += len(tps)
		if err := d.Commit(context.Background(), map[event.TopicPartition]event.Commit{tps[0]: {Offset: 5}}); kindOf(err) != event.Unavailable {
			t.Errorf("a commit without Kafka: %v", err)
		}
	})
	eventually(t, "all is read", func() bool { away.pollFor(t.Context(), time.Second); return away.count() == 10 })
	cluster.Close()
	for name, d := range map[string]*deliverer{"away": away, "never there": delivererAt(t, servers, "two", nil)} {
		parked := make(chan error)
		go func() {
			_, err := d.Poll(context.Background(), 1)
			parked <- err
		}()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		start := time.Now()
		d.Close(ctx)
		cancel()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("Kafka is %s: to close within a second takes %v", name, took)
		}
		if err := <-parked; kindOf(err) != event.Unavailable {
			t.Errorf("Kafka is %s: the poll that was under way ends with %v", name, err)
		}
	}
	if told+away.lost != 2 {
		t.Errorf("%d partitions were revoked and %d lost of 2", told, away.lost)
	}
}

// A Kafka that takes the request to leave, and does not answer.
func TestCloseWaitsNoLongerThanItMay(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	fill(t, cluster, 1, 0, 1)
	d := delivererFor(t, cluster, "one", nil)
	eventually(t, "all is read", func() bool { d.pollFor(t.Context(), time.Second); return d.count() == 1 })
	cluster.ControlKey(kmsg.LeaveGroup.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { <-t.Context().Done() })
		return nil, nil, false
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	start := time.Now()
	d.Close(ctx)
	if took := time.Since(start); took < time.Second || took > 4*time.Second {
		t.Errorf("to close within a second took %v", took)
	}
}

func BenchmarkDrain(b *testing.B) {
	cluster := clusterFor(b, kfake.SeedTopics(3, "a"))
	client, err := kafka.NewClient(cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	value := make([]byte, 200)
	for range b.N {
		client.Produce(b.Context(), &kgo.Record{Topic: "a", Value: value}, nil)
	}
	if err := client.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	d, err := kafka.OpenDeliveries(cluster.ListenAddrs(), kafka.DeliveriesOptions{
		Group: "g", Topics: []string{"a"}, ClientID: "bench",
		Assigned: func(map[event.TopicPartition]event.Commit) {}, Revoked: func([]event.TopicPartition) {},
		Lost: func([]event.TopicPartition) {}, Expired: func(event.TopicPartition, int64, int64) {},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close(b.Context())
	first, err := d.Poll(b.Context(), 1) // joining is not what is measured
	if err != nil || len(first) != 1 {
		b.Fatal(first, err)
	}
	b.SetBytes(200)
	b.ReportAllocs()
	b.ResetTimer()
	for n := len(first); n < b.N; {
		records, err := d.Poll(b.Context(), 1000)
		if err != nil {
			b.Fatal(err)
		}
		n += len(records)
	}
}
