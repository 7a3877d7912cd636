package lag_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/lag"
)

// start gives a client of a new cluster, and its Admin.
func start(tb testing.TB, opts ...kfake.Opt) (*kgo.Client, *kafka.Admin) {
	tb.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(cluster.Close)
	client, err := kafka.NewClient(cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return client, kafka.NewAdmin(client)
}

func offsets(topic string, at ...int64) kadm.Offsets {
	all := make(kadm.Offsets)
	for p, o := range at {
		all.AddOffset(topic, int32(p), o, -1)
	}
	return all
}

func TestLagOnKafka(t *testing.T) {
	client, source := start(t, kfake.NumBrokers(3), kfake.SeedTopics(3, "a", "b"))
	admin := kadm.NewClient(client)
	written := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for n := range 30 { // ten in each partition, of a minute each
		r := &kgo.Record{Topic: "a", Partition: int32(n % 3), Timestamp: written.Add(time.Duration(n/3) * time.Minute)}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.DeleteRecords(t.Context(), offsets("a", 0, 0, 8)); err != nil {
		t.Fatal(err)
	}
	for group, committed := range map[string]kadm.Offsets{
		"behind": offsets("a", 4, 10, 3), // the third is overtaken by retention
		"ahead":  offsets("b", 99),
		"gone":   offsets("a", 1),
	} {
		if err := admin.CommitAllOffsets(t.Context(), group, committed); err != nil {
			t.Fatal(err)
		}
	}

	now := time.Now()
	collector := lag.New(source, lag.Options{Now: func() time.Time { return now }})
	group := func(name string) (lag.Group, bool) {
		t.Helper()
		for range 2 { // one record of a partition is read each time, and two groups need one
			if err := collector.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s, ok := collector.Snapshot().Only(name)
		if !ok {
			return lag.Group{}, false
		}
		return s.Groups[0], true
	}
	behind, _ := group("behind")
	if len(behind.Topics) != 1 || len(behind.Topics[0].Partitions) != 3 || behind.Lag != 6+0+7 || behind.Members != 0 || behind.State != "Empty" {
		t.Fatalf("behind is %+v", behind)
	}
	for n, oldest := range []time.Duration{4 * time.Minute, -1, 8 * time.Minute} {
		want := lag.Seconds(0)
		if oldest >= 0 {
			want = lag.Seconds(now.Sub(written.Add(oldest)).Seconds())
		}
		if got := behind.Topics[0].Partitions[n].LagSeconds; got < want-0.01 || got > want+0.01 {
			t.Errorf("partition %d: the oldest unread record is %v s old, want %v", n, got, want)
		}
	}
	if ahead, _ := group("ahead"); ahead.Lag != 0 || ahead.LagSeconds != 0 {
		t.Errorf("ahead is %+v", ahead)
	}
	if _, err := admin.DeleteGroup(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	if gone, ok := group("gone"); ok {
		t.Errorf("a deleted group is there: %+v", gone)
	}
	if _, err := admin.DeleteTopics(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if behind, _ := group("behind"); behind.Lag > 0 {
		t.Errorf("behind in a topic that is deleted: %+v", behind)
	}
}

// What is in a transaction that has not ended is lag for the monitor, and not for who asks.
func TestTheEndOfAnAskedLagIsStable(t *testing.T) {
	client, source := start(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "a"))
	for range 2 {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "a"}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	writer, err := kgo.NewClient(append(client.Opts(), kgo.TransactionalID("t"))...)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := writer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := writer.ProduceSync(t.Context(), &kgo.Record{Topic: "a"}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	if err := kadm.NewClient(client).CommitAllOffsets(t.Context(), "g", offsets("a", 1)); err != nil {
		t.Fatal(err)
	}
	asked := func() int64 {
		t.Helper()
		_, lags, err := lag.NewAsker(source, slog.New(slog.DiscardHandler)).Lag(t.Context(), "g")
		if err != nil || len(lags) != 1 || lags[0].End-lags[0].Committed != lags[0].Lag {
			t.Fatalf("%+v, %v", lags, err)
		}
		return lags[0].End
	}
	if end := asked(); end != 2 {
		t.Errorf("the end is %d while the transaction lasts; want 2", end)
	}
	collector := lag.New(source, lag.Options{})
	if err := collector.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s, ok := collector.Snapshot().Only("g"); !ok || s.Groups[0].Lag != 4 {
		t.Errorf("the monitor has a lag of %v; want 4", s)
	}
	if err := writer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if end := asked(); end != 6 { // with the mark of its end
		t.Errorf("the end is %d after the transaction; want 6", end)
	}
}

// BenchmarkCollect is a whole round of 200 groups × 1,000 partitions, with Kafka's side of it
// (kfake's, in the same process).
func BenchmarkCollect(b *testing.B) {
	var topics []string
	for n := range 10 {
		topics = append(topics, fmt.Sprintf("topic-%d", n))
	}
	client, source := start(b, kfake.NumBrokers(1), kfake.SeedTopics(100, topics...))
	admin := kadm.NewClient(client)
	for n := range 200 {
		all := make(kadm.Offsets)
		for _, topic := range topics {
			for p := range int32(100) {
				all.AddOffset(topic, p, 0, -1)
			}
		}
		if err := admin.CommitAllOffsets(b.Context(), fmt.Sprintf("group-%d", n), all); err != nil {
			b.Fatal(err)
		}
	}
	collector := lag.New(source, lag.Options{Interval: time.Minute})
	for b.Loop() {
		if err := collector.Refresh(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	if n := len(collector.Snapshot().Groups); n != 200 {
		b.Fatalf("%d groups", n)
	}
}
