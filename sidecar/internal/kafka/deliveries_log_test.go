package kafka_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// deleteUpTo is what retention does.
func deleteUpTo(t *testing.T, cluster *kfake.Cluster, partition int32, offset int64) {
	t.Helper()
	var o kadm.Offsets
	o.Add(kadm.Offset{Topic: "a", Partition: partition, At: offset})
	resp, err := kadm.NewClient(clientFor(t, cluster)).DeleteRecords(t.Context(), o)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatRetentionTookUnreadIsTold(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	fill(t, cluster, 1, 0, 20)
	deleteUpTo(t, cluster, 0, 2)
	c := kafka.NewCluster(clientFor(t, cluster))
	d := delivererFor(t, cluster, "none", nil)
	eventually(t, "it reads without a commit", func() bool { d.pollFor(t.Context(), time.Second); return d.count() == 18 })
	if len(d.expired) != 0 {
		t.Errorf("without a commit, %v expired", d.expired)
	}
	d.close()

	if err := c.CommitStart(t.Context(), "g", map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 4, Metadata: "m"}}); err != nil {
		t.Fatal(err)
	}
	deleteUpTo(t, cluster, 0, 9)
	d = delivererFor(t, cluster, "one", nil)
	eventually(t, "it is told with the assignment", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.expired) == 1 })
	if got := d.assigned[tp("a", 0)]; got != (event.Commit{Offset: 4, Metadata: "m"}) || d.expired[0] != "a/0 4-9" {
		t.Errorf("assigned with %v, expired %v", got, d.expired)
	}
	eventually(t, "it reads what there is", func() bool { d.pollFor(t.Context(), time.Second); return d.values(tp("a", 0)) == numbers(9, 20) })

	// While it runs: a fetch that was under way may have brought the records before they went.
	from := 20
	for ; len(d.expired) == 1 && from < 220; from += 10 {
		d.Pause([]event.TopicPartition{tp("a", 0)})
		fill(t, cluster, 1, from, from+10)
		deleteUpTo(t, cluster, 0, int64(from+5))
		d.Resume([]event.TopicPartition{tp("a", 0)})
		last := fmt.Sprintf(" %d]", from+9)
		eventually(t, "it reads on", func() bool { d.pollFor(t.Context(), time.Second); return strings.HasSuffix(d.values(tp("a", 0)), last) })
	}
	if want := fmt.Sprintf("a/0 %d-%d", from-10, from-5); len(d.expired) != 2 || d.expired[1] != want {
		t.Errorf("expired is %v; want also %s", d.expired, want)
	}
	if got, want := d.values(tp("a", 0)), numbers(9, from-10); !strings.HasPrefix(got, want[:len(want)-1]+" "+fmt.Sprint(from-5)) {
		t.Errorf("it has read %s", got)
	}
}

// The mark at the end of a transaction is no record that could expire, nor one left to read.
func TestMarksOfTransactionsAreNoRecords(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	client := clientFor(t, cluster, kgo.TransactionalID("t"))
	transact := func(value string, end kgo.TransactionEndTry) {
		t.Helper()
		if err := client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "a", Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := client.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	transact("0", kgo.TryCommit) // 0, mark 1
	transact("1", kgo.TryAbort)  // 2, mark 3
	d := delivererFor(t, cluster, "one", nil)
	eventually(t, "it reads the record", func() bool { d.pollFor(t.Context(), time.Second); return d.count() == 1 })
	commits := map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 1}}
	c := kafka.NewCluster(clientFor(t, cluster))
	eventually(t, "a commit of all covers the marks", func() bool {
		d.pollFor(t.Context(), 10*time.Millisecond)
		if err := d.Commit(t.Context(), commits); err != nil {
			t.Fatal(err)
		}
		got, err := c.Committed(t.Context(), "g")
		return err == nil && got[tp("a", 0)].Offset == 4
	})
	if commits[tp("a", 0)].Offset != 1 {
		t.Error("the caller's map was changed")
	}
	deleteUpTo(t, cluster, 0, 4)
	transact("2", kgo.TryCommit)
	eventually(t, "it reads the next record", func() bool { d.pollFor(t.Context(), time.Second); return d.values(tp("a", 0)) == "[0 2]" })
	if len(d.expired) != 0 {
		t.Errorf("marks expired: %v", d.expired)
	}
	// What says more of its records, or less than all, is stored as it is.
	for _, want := range []event.Commit{{Offset: 5, Metadata: "m"}, {Offset: 4}} {
		if err := d.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): want}); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Committed(t.Context(), "g"); err != nil || got[tp("a", 0)] != want {
			t.Errorf("committed is %v, %v; want %v", got, err, want)
		}
	}
}

// A group that is further than the log, as after a topic was made anew, reads it from the start.
func TestALogThatIsShorterThanItWasBeginsAgain(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	fill(t, cluster, 1, 0, 3)
	if err := kafka.NewCluster(clientFor(t, cluster)).CommitStart(t.Context(), "g", map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 50, Metadata: "m"}}); err != nil {
		t.Fatal(err)
	}
	d := delivererFor(t, cluster, "one", nil)
	eventually(t, "it reads all", func() bool { d.pollFor(t.Context(), time.Second); return d.values(tp("a", 0)) == numbers(0, 3) })
	if got := d.assigned[tp("a", 0)]; got != (event.Commit{}) || d.lost != 1 || len(d.expired) != 0 {
		t.Errorf("it was assigned with %v, lost %d times, expired %v", got, d.lost, d.expired)
	}
	if err := d.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 2}}); err != nil {
		t.Error(err)
	}
}

func TestATopicThatIsMadeAnewIsRead(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	fill(t, cluster, 1, 0, 5)
	// As a worker does, which could not commit while the old one was gone.
	late := func(d *deliverer, tps []event.TopicPartition) {
		_ = d.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 5}})
	}
	d := delivererFor(t, cluster, "one", late).run()
	eventually(t, "the first topic is read", func() bool { return d.count() == 5 })
	admin := kadm.NewClient(clientFor(t, cluster))
	if _, err := admin.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "a"); err != nil {
		t.Fatal(err)
	}
	fill(t, cluster, 1, 5, 15) // more than the old one had
	start := time.Now()
	for d.count() < 15 && time.Since(start) < time.Minute { // the client is refused several times before it says so
		time.Sleep(10 * time.Millisecond)
	}
	if got := d.values(tp("a", 0)); got != numbers(0, 15) {
		t.Errorf("after %v it has read %s", time.Since(start), got)
	}
}
