package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// owned remembers what a Group says of its partitions.
type owned struct {
	mu   sync.Mutex
	tps  map[event.TopicPartition]bool
	lost int
}

func (o *owned) assign(tps []event.TopicPartition) { o.set(tps, true) }
func (o *owned) lose(tps []event.TopicPartition)   { o.set(tps, false) }

func (o *owned) set(tps []event.TopicPartition, mine bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, tp := range tps {
		if mine {
			o.tps[tp] = true
		} else {
			delete(o.tps, tp)
			o.lost++
		}
	}
}

func (o *owned) list() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for tp := range o.tps {
		out = append(out, fmt.Sprint(tp.Topic, tp.Partition))
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

func groupFor(t *testing.T, cluster *kfake.Cluster, opts kafka.GroupOptions) (*kafka.Group, *owned) {
	t.Helper()
	o := &owned{tps: make(map[event.TopicPartition]bool)}
	opts.Group, opts.Assigned, opts.Lost = "g", o.assign, o.lose
	g, err := kafka.OpenGroup(t.Context(), cluster.ListenAddrs(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close(true) })
	return g, o
}

// poll takes what a Group gives until there are n records.
func poll(t *testing.T, g *kafka.Group, n int) []event.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var out []event.Record
	for len(out) < n {
		if err := g.Poll(ctx, n-len(out), func(records []event.Record) { out = append(out, records...) }); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatalf("%d records of %d within 20s", len(out), n)
		}
	}
	return out
}

func produceValues(t *testing.T, cluster *kfake.Cluster, topic string, partition int32, values ...string) {
	t.Helper()
	client := clientFor(t, cluster)
	for _, v := range values {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: partition, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func valuesOf(records []event.Record) string {
	var out []string
	for _, r := range records {
		out = append(out, string(r.Value))
	}
	return fmt.Sprint(out)
}

func tp(topic string, partition int32) event.TopicPartition {
	return event.TopicPartition{Topic: topic, Partition: partition}
}

func TestGroupCommitsOnlyWhatItIsTold(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2", "3", "4")
	c := kafka.NewCluster(clientFor(t, cluster))
	committed := func() map[event.TopicPartition]event.Commit {
		got, err := c.Committed(t.Context(), "g")
		if err != nil {
			t.Fatal(err)
		}
		return got
	}

	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	for _, want := range []string{"[0]", "[1]", "[2]"} {
		if got := valuesOf(poll(t, g, 1)); got != want {
			t.Errorf("a poll gives %s; want %s", got, want)
		}
	}
	g.Close(true)
	if got := committed(); len(got) != 0 {
		t.Fatalf("read and closed, nothing was committed by hand: %v", got)
	}

	g, _ = groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	if got := valuesOf(poll(t, g, 5)); got != "[0 1 2 3 4]" {
		t.Errorf("what was not committed comes again, but %s", got)
	}
	want := map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 2, Metadata: "m"}}
	if err := g.Commit(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if got := committed(); !maps.Equal(got, want) {
		t.Errorf("committed is %v; want %v", got, want)
	}
	g.Close(true)
	if got := committed(); !maps.Equal(got, want) {
		t.Errorf("closing changed what was committed to %v", got)
	}

	g, _ = groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	if got := valuesOf(poll(t, g, 3)); got != "[2 3 4]" {
		t.Errorf("after the commit: %s", got)
	}
}

// Clients that commit by themselves do so every five seconds, from the second poll on.
func TestGroupDoesNotCommitAsTimePasses(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2")
	commits := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Observe: true, Count: -1})
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	poll(t, g, 1)
	poll(t, g, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	if err := commits.Wait(ctx, 1); err == nil {
		t.Error("it committed what nobody asked it to")
	}
}

// "Latest" is the end when the session subscribed, whenever it reads first; a partition that
// was made since then is read whole.
func TestGroupWithoutACommitBeginsAtItsStart(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"), kfake.SeedTopics(1, "test.b"))
	produceValues(t, cluster, "a", 0, "old")
	client := clientFor(t, cluster)
	c := kafka.NewCluster(client)
	starts, err := c.Ends(t.Context(), []string{"a", "none"}, "", false)
	if want := map[event.TopicPartition]int64{tp("a", 0): 1}; err != nil || !maps.Equal(starts, want) {
		t.Fatalf("the ends are %v, %v; want %v", starts, err, want)
	}
	produceValues(t, cluster, "a", 0, "new")
	if err := kafka.NewAdmin(client).SetPartitions(t.Context(), "a", 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new partition is written to", func() bool {
		p, err := kafka.NewClient(cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		return p.ProduceSync(t.Context(), &kgo.Record{Topic: "a", Partition: 1, Value: []byte("newer")}).FirstErr() == nil
	})
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}, Starts: starts})
	if got := poll(t, g, 2); valuesOf(got) != "[new newer]" && valuesOf(got) != "[newer new]" {
		t.Errorf("it reads %s", valuesOf(got))
	}
	for pattern, want := range map[string]int{"": 0, "test": 0, `test\..*`: 1, ".*": 3} {
		if got, err := c.Ends(t.Context(), nil, pattern, true); err != nil || len(got) != want {
			t.Errorf("the ends of %q are %v, %v; want %d", pattern, got, err, want)
		}
	}
	if _, err := c.Ends(t.Context(), nil, "(", false); kindOf(err) != event.Unprocessable {
		t.Errorf("a pattern that is none: %v", err)
	}
}

// readers opens a Group as a member and one of assigned partitions: both seek and commit.
func readers(t *testing.T, cluster *kfake.Cluster, each func(t *testing.T, open func(kafka.GroupOptions) *kafka.Group)) {
	for name, manual := range map[string]bool{"member": false, "assigned by hand": true} {
		t.Run(name, func(t *testing.T) {
			group := "g." + name
			each(t, func(o kafka.GroupOptions) *kafka.Group {
				t.Helper()
				o.Group, o.Assigned, o.Lost = group, func([]event.TopicPartition) {}, func([]event.TopicPartition) {}
				if o.Topics = []string{"a"}; manual {
					o.Topics, o.Partitions = nil, []event.TopicPartition{tp("a", 0)}
				}
				g, err := kafka.OpenGroup(t.Context(), cluster.ListenAddrs(), o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { g.Close(true) })
				return g
			})
		})
	}
}

func TestGroupSeeks(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2", "3", "4", "5")
	readers(t, cluster, func(t *testing.T, open func(kafka.GroupOptions) *kafka.Group) {
		g := open(kafka.GroupOptions{})
		// While the client holds more than was polled, back and forth, and twice to one place.
		for _, to := range []int64{0, 3, 0, 0, 5, 1, 2} {
			if len(g.Assigned()) > 0 {
				if err := g.Seek(t.Context(), map[event.TopicPartition]event.Seek{tp("a", 0): {Offset: to, Since: event.NoCommit}}); err != nil {
					t.Fatal(err)
				}
			}
			if got := poll(t, g, 1); got[0].Offset != to {
				t.Fatalf("after a seek to %d comes %d", to, got[0].Offset)
			}
		}
		// It begins there again, until the group commits; what is committed is the newer word.
		g.Close(true)
		seeks := map[event.TopicPartition]event.Seek{tp("a", 0): {Offset: 4, Since: event.NoCommit}}
		g = open(kafka.GroupOptions{Seeks: seeks})
		if got := valuesOf(poll(t, g, 1)); got != "[4]" {
			t.Errorf("with a seek it begins with %s", got)
		}
		if err := g.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 2, Metadata: "m"}}); err != nil {
			t.Fatal(err)
		}
		g.Close(true)
		if got := valuesOf(poll(t, open(kafka.GroupOptions{Seeks: seeks}), 1)); got != "[2]" {
			t.Errorf("after a commit it begins with %s; the seek is older", got)
		}
		err := g.Seek(t.Context(), map[event.TopicPartition]event.Seek{tp("a", 7): {}})
		if kindOf(err) != event.Conflict {
			t.Errorf("a seek of a partition that is not assigned: %v", err)
		}
	})
}

func TestGroupAssignedByHand(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	produceValues(t, cluster, "a", 0, "0")
	produceValues(t, cluster, "a", 1, "1", "2")
	g, o := groupFor(t, cluster, kafka.GroupOptions{Partitions: []event.TopicPartition{tp("a", 1)}, Starts: map[event.TopicPartition]int64{tp("a", 1): 1}})
	if got := valuesOf(poll(t, g, 1)); got != "[2]" || len(g.Assigned()) != 1 {
		t.Errorf("it reads %s of %v", got, g.Assigned())
	}
	offsets := map[event.TopicPartition]event.Commit{tp("a", 1): {Offset: 2, Metadata: "m"}}
	if err := g.Commit(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	if got, err := kafka.NewCluster(clientFor(t, cluster)).Committed(t.Context(), "g"); err != nil || !maps.Equal(got, offsets) {
		t.Errorf("committed is %v, %v; want %v", got, err, offsets)
	}
	// Kafka lets nobody commit beside members.
	member, has := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for has.list() == "[]" && ctx.Err() == nil {
		turn, done := context.WithTimeout(ctx, 50*time.Millisecond)
		_ = member.Poll(turn, 1, func([]event.Record) {})
		done()
	}
	if err := g.Commit(t.Context(), offsets); kindOf(err) != event.Conflict {
		t.Errorf("a commit beside members: %v; want conflict", err)
	}
	if o.list() != "[]" {
		t.Errorf("nobody assigned %s", o.list())
	}
}

// A commit that retention has overtaken must not skip to the end.
func TestGroupGoesOnWithWhatRetentionHasLeft(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2", "3")
	client := clientFor(t, cluster)
	commit(t, client, "g", position("a", 0, 1))
	deleteBefore(t, client, "a", 0, 3)
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	if got := valuesOf(poll(t, g, 1)); got != "[3]" {
		t.Errorf("it reads %s; want what is left", got)
	}
}

func deleteBefore(t *testing.T, client *kgo.Client, topic string, partition int32, offset int64) {
	t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(topic, partition, offset, -1)
	if _, err := kadm.NewClient(client).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
}

func TestGroupSharesItsPartitionsAndForgetsWhatItLoses(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	keepPolling := func(g *kafka.Group) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			for ctx.Err() == nil {
				_ = g.Poll(ctx, 10, func([]event.Record) {})
			}
		})
		return func() { cancel(); done.Wait() }
	}
	first, firstHas := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}, Member: "1"})
	defer keepPolling(first)()
	eventually(t, "the first has both", func() bool { return firstHas.list() == "[a0 a1]" && len(first.Assigned()) == 2 })
	second, secondHas := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}, Member: "2"})
	stopSecond := keepPolling(second)
	eventually(t, "each has one", func() bool {
		a, b := firstHas.list(), secondHas.list()
		return a == "[a0]" && b == "[a1]" || a == "[a1]" && b == "[a0]"
	})
	if firstHas.lost != 1 {
		t.Errorf("the first lost %d partitions; cooperative is one", firstHas.lost)
	}
	// One that leaves gives its partitions over at once, long before the session timeout.
	stopSecond()
	start := time.Now()
	second.Close(true)
	eventually(t, "the first has both again", func() bool { return firstHas.list() == "[a0 a1]" })
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("to take over from a member that left took %v", took)
	}
	if secondHas.list() != "[]" {
		t.Errorf("after Close the second says that it has %s", secondHas.list())
	}
}

func TestGroupOfAPatternLeavesOurOwnTopicsOut(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "test.a", "test.b", "prod.a", "_postamt.test.x", "__test.y"))
	for _, topic := range []string{"test.a", "test.b", "prod.a", "_postamt.test.x", "__test.y"} {
		produceValues(t, cluster, topic, 0, topic)
	}
	g, o := groupFor(t, cluster, kafka.GroupOptions{Pattern: `.*test\..*`})
	got := valuesOf(poll(t, g, 2))
	if got != "[test.a test.b]" && got != "[test.b test.a]" || o.list() != "[test.a0 test.b0]" {
		t.Errorf("the pattern gives %s of %s", got, o.list())
	}
	g.Close(true)
	// As in Kafka's own clients it is the whole name that must match.
	g, o = groupFor(t, cluster, kafka.GroupOptions{Pattern: `prod\.a|est\..|test`})
	if got := valuesOf(poll(t, g, 1)); got != "[prod.a]" || o.list() != "[prod.a0]" {
		t.Errorf("a pattern of a part of names gives %s of %s", got, o.list())
	}
	if _, err := kafka.OpenGroup(t.Context(), cluster.ListenAddrs(), kafka.GroupOptions{Group: "g", Pattern: "("}); kindOf(err) != event.Unprocessable {
		t.Errorf("a pattern that is none: %v", err)
	}
}

func TestGroupCommitThatKafkaRefuses(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0")
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	poll(t, g, 1)
	offsets := map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 1}}
	for _, tc := range []struct {
		err  *kerr.Error
		want event.Kind
	}{
		{kerr.RebalanceInProgress, event.Conflict},
		{kerr.IllegalGeneration, event.Conflict},
		{kerr.GroupAuthorizationFailed, event.Forbidden},
		{kerr.UnknownServerError, event.Unavailable},
	} {
		fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Group: "g", Err: tc.err, Count: -1})
		if err := g.Commit(t.Context(), offsets); kindOf(err) != tc.want {
			t.Errorf("%s: the commit says %v; want %s", tc.err.Message, err, tc.want)
		}
		fault.Remove()
	}
	eventually(t, "the commit succeeds in the end", func() bool { return g.Commit(t.Context(), offsets) == nil })
}

func TestGroupPollWithoutRecords(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	none := func(r []event.Record) { t.Errorf("it reads %s", valuesOf(r)) }
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := g.Poll(ctx, 1, none); err != nil {
		t.Errorf("nothing came: %v; want nil", err)
	}
	if err := g.Buffered(1, none); err != nil {
		t.Errorf("nothing is buffered: %v; want nil", err)
	}
	g.Close(true)
	if err := g.Poll(t.Context(), 1, none); kindOf(err) != event.Unavailable {
		t.Errorf("after Close: %v; want unavailable", err)
	}
}

func TestPartitionsReadFromGivenOffsets(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2", "3")
	produceValues(t, cluster, "a", 1, "x", "y")
	p := partitionsFor(t, cluster, map[int32]int64{0: 2, 1: 1})
	got, _ := pollPartitions(t, p, 3, 0)
	slices.SortStableFunc(got, func(a, b event.Record) int { return int(a.Partition - b.Partition) })
	if valuesOf(got) != "[2 3 y]" || got[0].Offset != 2 || got[2].Partition != 1 || got[2].Topic != "a" {
		t.Errorf("it reads %+v", got)
	}
	p.Seek(map[int32]int64{0: 1})
	if got, _ := pollPartitions(t, p, 3, 0); valuesOf(got) != "[1 2 3]" {
		t.Errorf("after Seek it reads %s", valuesOf(got))
	}
}

func TestPartitionsReportAnExpiredOffsetAndGoOnAfterSeek(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2", "3")
	produceValues(t, cluster, "a", 1, "x")
	deleteBefore(t, clientFor(t, cluster), "a", 0, 2)
	p := partitionsFor(t, cluster, map[int32]int64{0: 1, 1: 0})
	got, expired := pollPartitions(t, p, 1, 1)
	if valuesOf(got) != "[x]" || !slices.Equal(expired, []int32{0}) {
		t.Fatalf("it reads %s, expired are %v; want partition 0", valuesOf(got), expired)
	}
	p.Seek(map[int32]int64{0: 2})
	if got, expired := pollPartitions(t, p, 2, 0); valuesOf(got) != "[2 3]" || len(expired) > 0 {
		t.Errorf("after Seek it reads %s, expired are %v", valuesOf(got), expired)
	}
}

func partitionsFor(t *testing.T, cluster *kfake.Cluster, from map[int32]int64) *kafka.Partitions {
	t.Helper()
	p, err := kafka.OpenPartitions(cluster.ListenAddrs(), "a", from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// pollPartitions polls until there are so many records and expired partitions.
func pollPartitions(t *testing.T, p *kafka.Partitions, records, expired int) ([]event.Record, []int32) {
	t.Helper()
	var got []event.Record
	var gone []int32
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(got) < records || len(gone) < expired {
		r, e, err := p.Poll(ctx, 100)
		if err != nil || ctx.Err() != nil {
			t.Fatalf("%v: %d records, %d expired partitions; want %d and %d", err, len(got), len(gone), records, expired)
		}
		got, gone = append(got, r...), append(gone, e...)
	}
	return got, gone
}

func TestOffsetsAtATime(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(3, "a"))
	client := clientFor(t, cluster)
	start := time.UnixMilli(1767323045000)
	produceAt(t, client, "a", 0, start, start.Add(time.Second), start.Add(2*time.Second))
	produceAt(t, client, "a", 1, start)
	got, err := kafka.NewCluster(client).OffsetsAt(t.Context(), "a", start.Add(500*time.Millisecond))
	if want := map[int32]int64{0: 1, 1: 1, 2: 0}; err != nil || !maps.Equal(got, want) {
		t.Errorf("offsets are %v, %v; want %v", got, err, want)
	}
}

// A record that comes while Kafka is asked is after the time, too.
func TestOffsetsAtATimePassOverNoRecordThatComesMeanwhile(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	client := clientFor(t, cluster)
	now := time.Now()
	produceAt(t, client, "a", 0, now.Add(-time.Hour))
	byTime := 0
	cluster.ControlKey(int16(kmsg.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if byTime > 0 { // Kafka has said that there is none
			cluster.SleepControl(func() { produceAt(t, client, "a", 0, now) })
		}
		if req.(*kmsg.ListOffsetsRequest).Topics[0].Partitions[0].Timestamp >= 0 {
			byTime++
		}
		return nil, nil, false
	})
	got, err := kafka.NewCluster(clientFor(t, cluster)).OffsetsAt(t.Context(), "a", now)
	if want := map[int32]int64{0: 1}; err != nil || byTime == 0 || !maps.Equal(got, want) {
		t.Errorf("the offsets are %v, %v; want %v", got, err, want)
	}
}

// What does not fit into one fetch is read all the same.
func TestPartitionsReadARecordLargerThanAFetch(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	admin := kafka.NewAdmin(clientFor(t, cluster))
	if err := admin.SetTopicConfigs(t.Context(), "a", map[string]string{"max.message.bytes": "20000000"}); err != nil {
		t.Fatal(err)
	}
	p, _ := producerFor(t, cluster.ListenAddrs(), 10*time.Second)
	large := bytes.Repeat([]byte("0123456789"), 1_200_000)
	if r := p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Value: large}, {Topic: "a", Value: []byte("next")}}); r[0].Err != nil || r[1].Err != nil {
		t.Fatal(r[0].Err, r[1].Err)
	}
	got, _ := pollPartitions(t, partitionsFor(t, cluster, map[int32]int64{0: 0}), 2, 0)
	if !bytes.Equal(got[0].Value, large) || string(got[1].Value) != "next" {
		t.Errorf("it reads %d and %d bytes", len(got[0].Value), len(got[1].Value))
	}
}

// A reader that only ends, and does not leave, has nothing to tell Kafka, and does not wait for it.
func TestToEndDoesNotWaitForKafka(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	g, o := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}, Member: "m"})
	eventually(t, "it has the partitions", func() bool { return o.list() == "[a0 a1]" })
	byHand, _ := groupFor(t, cluster, kafka.GroupOptions{Partitions: []event.TopicPartition{{Topic: "a", Partition: 0}}})
	gate := make(chan struct{})
	defer close(gate)
	cluster.Control(func(kmsg.Request) (kmsg.Response, error, bool) { // Kafka hangs
		cluster.KeepControl()
		cluster.SleepControl(func() { <-gate })
		return nil, nil, false
	})
	time.Sleep(4 * time.Second) // a heartbeat is under way
	start := time.Now()
	g.Close(false)
	byHand.Close(false)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A topic that was deleted and made anew is read from its beginning, and nothing that was read of
// the old one is committed for it.
func TestASessionReadsATopicThatIsMadeAnew(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]kafka.GroupOptions{
		"by name":    {Topics: []string{"a"}},
		"by pattern": {Pattern: "a"},
		"by hand":    {Partitions: []event.TopicPartition{tp("a", 0)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
			produceValues(t, cluster, "a", 0, "0", "1", "2")
			opts.Starts = map[event.TopicPartition]int64{tp("a", 0): 1}
			opts.Seeks = map[event.TopicPartition]event.Seek{tp("a", 0): {Offset: 2, Since: event.NoCommit}}
			g, o := groupFor(t, cluster, opts)
			if got := valuesOf(poll(t, g, 1)); got != "[2]" {
				t.Fatalf("at first it reads %s", got)
			}
			remakeTopic(t, cluster)
			produceValues(t, cluster, "a", 0, "n0", "n1", "n2", "n3")
			if got := valuesOf(pollUntil(t, g, 4, time.Minute)); got != "[n0 n1 n2 n3]" {
				t.Errorf("of the new topic it reads %s", got)
			}
			if got := o.list(); got != "[a0]" || o.lost == 0 || len(g.Assigned()) != 1 {
				t.Errorf("it has %s, lost %d times; want a0, lost once or more", got, o.lost)
			}
			if err := g.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 4}}); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a member read of a topic that was made anew cannot be committed, before and after that is noticed.
func TestNothingOfAnOldTopicIsCommitted(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2")
	var g *kafka.Group
	commit := func() error {
		return g.Commit(t.Context(), map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 3}})
	}
	var refused, accepted atomic.Int64 // as partitions are lost
	opts := kafka.GroupOptions{Group: "g", Topics: []string{"a"}, Assigned: func([]event.TopicPartition) {}, Lost: func([]event.TopicPartition) {
		if commit() == nil {
			accepted.Add(1)
		} else {
			refused.Add(1)
		}
	}}
	g, err := kafka.OpenGroup(t.Context(), cluster.ListenAddrs(), opts)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(true)
	poll(t, g, 3)
	remakeTopic(t, cluster)
	produceValues(t, cluster, "a", 0, "n0", "n1", "n2", "n3")
	if err := commit(); err == nil {
		t.Error("a commit of what was read of the old topic went through")
	}
	if got := valuesOf(pollUntil(t, g, 4, time.Minute)); got != "[n0 n1 n2 n3]" {
		t.Errorf("of the new topic it reads %s", got)
	}
	if refused.Load() == 0 || accepted.Load() != 0 {
		t.Errorf("as the old topic is lost, %d commits are accepted and %d refused", accepted.Load(), refused.Load())
	}
}

func remakeTopic(t *testing.T, cluster *kfake.Cluster) {
	t.Helper()
	admin := kadm.NewClient(clientFor(t, cluster))
	if _, err := admin.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "a"); err != nil {
		t.Fatal(err)
	}
}

// pollUntil takes what a Group gives until there are n records, or the time is over.
func pollUntil(t *testing.T, g *kafka.Group, n int, d time.Duration) (out []event.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for len(out) < n && ctx.Err() == nil {
		if err := g.Poll(ctx, n, func(records []event.Record) { out = append(out, records...) }); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// The client says once that it does not read a partition, and may say so beside records of others.
func TestAnErrorBesideRecordsIsASessionsNextPolls(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	produceValues(t, cluster, "a", 0, "0", "1", "2")
	refuseTheCommitOf(cluster, 1)
	g, _ := groupFor(t, cluster, kafka.GroupOptions{Topics: []string{"a"}})
	time.Sleep(2 * time.Second) // until the records of partition 0 and the refusal are there, both
	var out []event.Record
	take := func(records []event.Record) { out = append(out, records...) }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var err error
	for err == nil && ctx.Err() == nil {
		err = g.Poll(ctx, 7, take)
	}
	if got := valuesOf(out); got != "[0 1 2]" || err == nil || !strings.Contains(err.Error(), "a/1") {
		t.Errorf("it reads %s, and then %v; want [0 1 2] and an error of a/1", got, err)
	}
	if err := g.Buffered(7, take); err != nil {
		t.Errorf("it is said again: %v", err)
	}
}
