package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// tableFor opens a table that runs until the test ends.
func tableFor(t testing.TB, cluster *kfake.Cluster, changed func(string, []byte)) (table *kafka.Table, stop func()) {
	t.Helper()
	table, err := kafka.OpenTable(cluster.ListenAddrs(), "t", changed, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the table ended with %v", err)
		}
		table.Close()
	})
	t.Cleanup(stop)
	return table, stop
}

func set(t testing.TB, table *kafka.Table, key, value string) {
	t.Helper()
	if err := table.Update(t.Context(), key, func([]byte) ([]byte, error) { return []byte(value), nil }); err != nil {
		t.Fatal(err)
	}
}

// wantNow catches up and compares.
func wantNow(t testing.TB, table *kafka.Table, key, want string) {
	t.Helper()
	if err := table.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, ok := table.Get(key); string(got) != want || ok != (want != "") {
		t.Errorf("%s is %q, %v; want %q", key, got, ok, want)
	}
}

func TestTableShowsEveryWriteToEveryReaderAtOnce(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	one, _ := tableFor(t, cluster, nil)
	var mu sync.Mutex
	var told []string
	two, _ := tableFor(t, cluster, func(key string, value []byte) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, key+"="+string(value))
	})
	wantNow(t, two, "k", "")
	for i := range 20 {
		a, b := one, two
		if i%3 == 0 {
			a, b = two, one
		}
		set(t, a, "k", strconv.Itoa(i))
		if got, _ := a.Get("k"); string(got) != strconv.Itoa(i) {
			t.Errorf("after its write %d one reads %s", i, got)
		}
		wantNow(t, b, "k", strconv.Itoa(i))
	}
	if err := one.Update(t.Context(), "k", func([]byte) ([]byte, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	if _, ok := one.Get("k"); ok {
		t.Error("what was removed is still there")
	}
	wantNow(t, two, "k", "")
	wantNow(t, one, "k", "")
	var want []string
	for i := range 20 {
		want = append(want, "k="+strconv.Itoa(i))
	}
	mu.Lock()
	defer mu.Unlock()
	if want = append(want, "k="); !slices.Equal(told, want) {
		t.Errorf("it was told %v; want each change once, in order", told)
	}
	late, _ := tableFor(t, cluster, nil)
	set(t, one, "other", "x")
	wantNow(t, late, "other", "x")
	wantNow(t, late, "k", "")
}

func TestTableComparesAndSets(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	tables := make([]*kafka.Table, 3)
	for i := range tables {
		tables[i], _ = tableFor(t, cluster, nil)
	}
	const each = 20
	var writers sync.WaitGroup
	var won sync.Map
	taken := errors.New("taken")
	for i, table := range tables {
		for range 4 {
			writers.Go(func() { // a counter loses nothing
				for n := 0; n < each; {
					err := table.Update(t.Context(), "n", func(old []byte) ([]byte, error) {
						was, _ := strconv.Atoi(strings.TrimLeft(string(old), "abc"))
						return fmt.Appendf(nil, "%c%d", 'a'+i, was+1), nil // of two writers, never the same
					})
					if err == nil {
						n++
					} else if kindOf(err) != event.Conflict { // others were faster, again and again
						t.Error(err)
						return
					}
				}
			})
		}
		writers.Go(func() { // of those that want to be the first, one is
			for key := range 10 {
				err := table.Update(t.Context(), fmt.Sprint("key", key), func(old []byte) ([]byte, error) {
					if old != nil {
						return nil, taken
					}
					return []byte(fmt.Sprint("of ", i)), nil
				})
				if err == nil {
					if who, twice := won.LoadOrStore(key, i); twice {
						t.Errorf("key %d is of %d and of %d", key, who, i)
					}
				} else if !errors.Is(err, taken) && kindOf(err) != event.Conflict {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if err := tables[0].CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, _ := tables[0].Get("n"); strings.TrimLeft(string(got), "abc") != strconv.Itoa(3*4*each) {
		t.Errorf("the counter is at %s; want %d", got, 3*4*each)
	}
}

// A thousand sessions of a replica that died are taken over in one go.
func TestTableWritesWhatWaitsInOneTransaction(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "first", "x")
	commits := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Observe: true, Count: -1})
	start := time.Now()
	var writers sync.WaitGroup
	for i := range 1000 {
		writers.Go(func() { set(t, table, strconv.Itoa(i), "v") })
	}
	writers.Wait()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := commits.Wait(ctx, 500); err == nil {
		t.Error("it took 500 transactions")
	}
	for i := range 1000 {
		if _, ok := table.Get(strconv.Itoa(i)); !ok {
			t.Errorf("%d has not been written", i)
		}
	}
}

// A writer that dies in its transaction holds nobody up for long, and leaves nothing.
func TestTableEndsTheTransactionOfAWriterThatDied(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "k", "1")
	dead := dieInATransaction(t, cluster)
	start := time.Now()
	wantNow(t, table, "k", "1")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a reader waited for %v", took)
	}
	set(t, table, "k", "3")
	if err := dead.EndTransaction(t.Context(), kgo.TryCommit); err == nil {
		t.Error("the dead writer commits after all")
	}
	wantNow(t, table, "k", "3")
	// At the end of the log there is nothing to see but marks.
	late, _ := tableFor(t, cluster, nil)
	wantNow(t, late, "k", "3")
}

// A commit whose answer was lost is not taken for another's write.
func TestTableFindsOutWhatBecameOfALostCommit(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "k", "1")
	for _, lost := range []kfake.Fault{
		{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ProducerFenced, Count: 1},
		{Keys: []kmsg.Key{kmsg.Produce}, Topic: "t", Err: kerr.InvalidProducerEpoch, Count: 1},
		{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.ConcurrentTransactions, Count: 2},
		{Keys: []kmsg.Key{kmsg.Fetch}, Topic: "t", Err: kerr.NotLeaderForPartition, Count: 2},
	} {
		fault := cluster.Fault(lost)
		calls := 0
		err := table.Update(t.Context(), "k", func(old []byte) ([]byte, error) {
			calls++
			return append(slices.Clone(old), 'x'), nil
		})
		if err != nil {
			t.Errorf("%v: %v after %d calls", lost.Err, err, calls)
		}
		fault.Remove()
	}
	wantNow(t, table, "k", "1xxxx")
}

func TestTableWithoutKafka(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, stop := tableFor(t, cluster, nil)
	set(t, table, "k", "1")
	down := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch, kmsg.Produce, kmsg.EndTxn}, Err: kerr.NotLeaderForPartition, Count: -1})
	start := time.Now()
	if err := table.CatchUp(t.Context()); kindOf(err) != event.Unavailable {
		t.Errorf("to catch up: %v; want unavailable", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := table.Update(ctx, "k", func([]byte) ([]byte, error) { return []byte("2"), nil }); kindOf(err) != event.Unavailable {
		t.Errorf("to write: %v; want unavailable", err)
	}
	if got, ok := table.Get("k"); !ok || string(got) != "1" {
		t.Errorf("what was known is %q, %v", got, ok)
	}
	down.Remove()
	eventually(t, "it writes again", func() bool {
		return table.Update(t.Context(), "k", func([]byte) ([]byte, error) { return []byte("3"), nil }) == nil
	})
	stop()
	if err := table.CatchUp(t.Context()); kindOf(err) != event.Unavailable {
		t.Errorf("after its end: %v; want unavailable", err)
	}
}

// A topic that was deleted and made again is read anew.
func TestTableWhoseTopicWasMadeAnew(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	for i := range 5 {
		set(t, table, fmt.Sprint(i), "old")
	}
	client := clientFor(t, cluster)
	admin := kafka.NewAdmin(client)
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{"t"}
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = new("t")
	req.Topics = append(req.Topics, topic)
	if _, err := req.RequestWith(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if err := admin.CreateTopic(t.Context(), event.TopicSpec{Name: "t", Partitions: 1, Replication: 1}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old is gone", func() bool {
		_ = table.CatchUp(t.Context())
		_, ok := table.Get("1")
		return !ok
	})
	eventually(t, "it can be written", func() bool {
		return table.Update(t.Context(), "k", func([]byte) ([]byte, error) { return []byte("new"), nil }) == nil
	})
	wantNow(t, table, "k", "new")
}

// A writer that has written before asks nobody for its id, and so does not notice by that that
// another has taken it, and died.
func TestTableWritesBehindAWriterThatDied(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "k", "1")
	dieInATransaction(t, cluster)
	start := time.Now()
	set(t, table, "k", "3")
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a writer waited for %v", took)
	}
	wantNow(t, table, "k", "3")
}

// dieInATransaction writes k=2, and never ends that.
func dieInATransaction(t *testing.T, cluster *kfake.Cluster) *kgo.Client {
	t.Helper()
	dead, err := kafka.NewClient(cluster.ListenAddrs(), kgo.TransactionalID("t"), kgo.TransactionTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(dead.Close)
	if err := dead.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := dead.ProduceSync(t.Context(), &kgo.Record{Topic: "t", Key: []byte("k"), Value: []byte("2")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return dead
}

// Where Kafka takes longer for a commit than a transaction of a dead writer is waited for, the
// readers let a living writer come to its end all the same.
func TestTableReadersDoNotStopASlowWriter(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	writer, _ := tableFor(t, cluster, nil)
	set(t, writer, "k", "1")
	cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { time.Sleep(time.Second) })
		return nil, nil, false
	})
	ctx, stop := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	for range 2 {
		reader, _ := tableFor(t, cluster, nil)
		reading.Go(func() {
			for ctx.Err() == nil {
				_ = reader.CatchUp(ctx) // may give up: Kafka is slow
			}
		})
	}
	set(t, writer, "k", "2")
	stop()
	reading.Wait()
	cluster.DropControl()
	wantNow(t, writer, "k", "2")
}

// The new topic may be longer than the old one was: its offsets do not tell then.
func TestTableWhoseTopicWasMadeAnewAndIsLonger(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "old", "1")
	set(t, table, "k", "1")
	if err := cluster.DeleteTopic("t"); err != nil {
		t.Fatal(err)
	}
	if err := cluster.CreateTopic("t", 1, nil); err != nil {
		t.Fatal(err)
	}
	other, stop := tableFor(t, cluster, nil)
	for i := range 20 {
		set(t, other, fmt.Sprint(i), "new")
	}
	stop()
	wantNow(t, table, "0", "new")
	wantNow(t, table, "19", "new")
	wantNow(t, table, "old", "")
	if err := table.Update(t.Context(), "1", func(old []byte) ([]byte, error) { return append(slices.Clone(old), '!'), nil }); err != nil {
		t.Fatal(err)
	}
	wantNow(t, table, "1", "new!")
}

// The client may make an abort of a commit, and answer as if it were one.
func TestTableDoesNotTakeAnAbortForACommit(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "t"))
	table, _ := tableFor(t, cluster, nil)
	set(t, table, "k", "1")
	var once sync.Once
	cluster.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		once.Do(func() { r.(*kmsg.EndTxnRequest).Commit = false })
		return nil, nil, false
	})
	set(t, table, "k", "2")
	other, _ := tableFor(t, cluster, nil)
	wantNow(t, other, "k", "2")
	wantNow(t, table, "k", "2")
}
