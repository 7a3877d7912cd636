package stream_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/filter"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/stream"
)

// broker is a cluster with a client to write, and an Opener as package app makes it.
type broker struct {
	*stream.Opener
	t       *testing.T
	fake    *kfake.Cluster
	client  *kgo.Client
	cluster *kafka.Cluster
}

func brokerFor(t *testing.T, partitions int32) *broker {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, "a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	return clientsFor(t, fake)
}

func clientsFor(t *testing.T, fake *kfake.Cluster) *broker {
	t.Helper()
	client, err := kafka.NewClient(fake.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	cluster := kafka.NewCluster(client)
	return &broker{t: t, fake: fake, client: client, cluster: cluster, Opener: &stream.Opener{
		Kafka: cluster,
		Source: func(topic string, from map[int32]int64) (stream.Source, error) {
			return kafka.OpenPartitions(fake.ListenAddrs(), topic, from)
		},
	}}
}

func (b *broker) write(partition int32, values ...string) {
	b.t.Helper()
	for i, v := range values {
		at := time.UnixMilli(1767323045000).Add(time.Duration(i) * time.Second)
		r := &kgo.Record{Topic: "a", Partition: partition, Value: []byte(v), Timestamp: at}
		if err := b.client.ProduceSync(b.t.Context(), r).FirstErr(); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *broker) deleteBefore(partition int32, offset int64) {
	b.t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset("a", partition, offset, -1)
	if _, err := kadm.NewClient(b.client).DeleteRecords(b.t.Context(), offsets); err != nil {
		b.t.Fatal(err)
	}
}

// reader is a stream and what it found when it was opened.
type reader struct {
	*stream.Stream
	opening []stream.Event
}

func (b *broker) open(from string) *reader {
	b.t.Helper()
	return b.openPartition(from, event.AnyPartition)
}

func (b *broker) openPartition(from string, partition int32) *reader {
	b.t.Helper()
	s, err := b.Open(b.t.Context(), stream.Request{Topic: "a", Partition: partition, From: from})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(s.Close)
	return &reader{s, s.Opening()}
}

// next gives the first n events of a stream.
func next(t *testing.T, s *reader, n int) []stream.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out := s.opening
	s.opening = nil
	for len(out) < n {
		events, err := s.Next(ctx)
		if err != nil || ctx.Err() != nil {
			t.Fatalf("%d events of %d: %v", len(out), n, err)
		}
		out = append(out, events...)
	}
	return out
}

// show writes events as their values, by partition: between partitions there is no order.
func show(events []stream.Event) string {
	byPartition := make(map[int32][]string)
	for _, e := range events {
		if e.Record != nil {
			byPartition[e.Record.Partition] = append(byPartition[e.Record.Partition], string(e.Record.Value))
		} else {
			byPartition[e.Gap.Partition] = append(byPartition[e.Gap.Partition], fmt.Sprintf("gap %d-%d", e.Gap.From, e.Gap.To))
		}
	}
	return fmt.Sprint(byPartition)
}

func TestStreamBeginsWhereItIsTold(t *testing.T) {
	t.Parallel()
	b := brokerFor(t, 2)
	b.write(0, "0", "1", "2")
	b.write(1, "x", "y")
	late := b.open("latest")
	silent := b.open("")
	// Before anything has been polled: latest is the moment of the opening.
	b.write(0, "3")
	for from, want := range map[string]string{
		"earliest":                 "map[0:[0 1 2 3] 1:[x y]]",
		"1970-01-02T00:00:00Z":     "map[0:[0 1 2 3] 1:[x y]]",
		"2026-01-02T03:04:06.001Z": "map[0:[2]]", // written at :07; "3" was written at :05 again
		"1767323045500":            "map[0:[1 2 3] 1:[y]]",
	} {
		s := b.open(from)
		n := strings.Count(want, " ") + 1
		if strings.Contains(from, ".001Z") {
			want, n = "map[0:[2 3]]", 2
		}
		if got := show(next(t, s, n)); got != want {
			t.Errorf("from %s: %s; want %s", from, got, want)
		}
	}
	for what, s := range map[string]*reader{"latest": late, "no from": silent} {
		if got := show(next(t, s, 1)); got != "map[0:[3]]" {
			t.Errorf("%s: %s; want what came since", what, got)
		}
	}
	if got := show(next(t, b.openPartition("earliest", 1), 2)); got != "map[1:[x y]]" {
		t.Errorf("partition 1: %s", got)
	}
}

func TestStreamRefuses(t *testing.T) {
	b := brokerFor(t, 2)
	cursor := b.open("latest").Cursor()
	for _, tc := range []struct {
		what string
		r    stream.Request
		kind event.Kind
	}{
		{"unknown topic", stream.Request{Topic: "b", Partition: event.AnyPartition}, event.NotFound},
		{"topic of our own", stream.Request{Topic: "_postamt.x", Partition: event.AnyPartition}, event.NotFound},
		{"unknown partition", stream.Request{Topic: "a", Partition: 2}, event.NotFound},
		{"unreadable from", stream.Request{Topic: "a", Partition: 0, From: "yesterday"}, event.Invalid},
		{"damaged cursor", stream.Request{Topic: "a", Partition: 0, From: cursor[:len(cursor)-2] + "gA"}, event.Unprocessable},
	} {
		_, err := b.Open(t.Context(), tc.r)
		if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != tc.kind {
			t.Errorf("%s: %v; want %s", tc.what, err, tc.kind)
		}
	}
}

// Whatever event a client saw last: what comes after its cursor is all the rest, once.
func TestResumeFromAnyCursorLosesAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	const partitions, total = 3, 60
	b := brokerFor(t, partitions)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test's choices
	for i := range total / 2 {
		b.write(random.Int32N(partitions), fmt.Sprint(i))
	}
	all := next(t, b.open("earliest"), total/2)
	for i := total / 2; i < total; i++ { // written after the cursors were made
		b.write(random.Int32N(partitions), fmt.Sprint(i))
	}
	for range 12 {
		cut := random.IntN(total / 2)
		rest := next(t, b.open(all[cut].Cursor), total-cut-1)
		var got []string
		for _, e := range append(slices.Clone(all[:cut+1]), rest...) {
			got = append(got, fmt.Sprintf("%d@%d", e.Record.Partition, e.Record.Offset))
		}
		slices.Sort(got)
		if n := len(slices.Compact(slices.Clone(got))); n != total || len(got) != total {
			t.Fatalf("cut after event %d: %d records, %d different; want %d", cut, len(got), n, total)
		}
		last := make(map[int32]int64)
		for _, e := range rest {
			if o, ok := last[e.Record.Partition]; ok && e.Record.Offset != o+1 {
				t.Fatalf("partition %d jumps from %d to %d", e.Record.Partition, o, e.Record.Offset)
			}
			last[e.Record.Partition] = e.Record.Offset
		}
	}
}

func TestExpiredCursorShowsAGap(t *testing.T) {
	b := brokerFor(t, 2)
	b.write(0, "0", "1", "2", "3")
	b.write(1, "x", "y")
	var cursor string
	for _, e := range next(t, b.open("earliest"), 6) {
		if string(e.Record.Value) == "0" {
			cursor = b.openPartition("latest", 1).Cursor() // knows partition 1 alone
		}
	}
	first := next(t, b.openPartition("earliest", 0), 1)[0].Cursor // stands at offset 1, knows partition 0 alone
	b.deleteBefore(0, 3)
	if got := show(next(t, b.openPartition(first, 0), 2)); got != "map[0:[gap 1-3 3]]" {
		t.Errorf("the expired cursor gives %s", got)
	}
	// A partition that the cursor does not know starts at its beginning, without a gap.
	if got := show(next(t, b.open(cursor), 1)); got != "map[0:[3]]" {
		t.Errorf("partition 0 is new to the cursor: %s", got)
	}
	gap := next(t, b.openPartition(first, 0), 1)[0]
	if got := show(next(t, b.openPartition(gap.Cursor, 0), 1)); got != "map[0:[3]]" {
		t.Errorf("after the gap's own cursor: %s; want no second gap", got)
	}
}

// meanwhile is a cluster to which something comes after its bounds have been asked for.
type meanwhile struct {
	*kafka.Cluster
	then func()
}

func (m meanwhile) Bounds(ctx context.Context, topic string) (map[int32]event.Bounds, error) {
	b, err := m.Cluster.Bounds(ctx, topic)
	m.then()
	return b, err
}

// It is no gap, and nothing is sent again, when a record comes while a stream is opened at a time.
func TestOpeningAtATimeWhileARecordComes(t *testing.T) {
	b := brokerFor(t, 1)
	b.write(0, "old", "old")
	b.Kafka = meanwhile{b.cluster, func() { b.write(0, "meanwhile") }} // older than what is asked for, as of a clock that is behind
	s := b.open(time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	b.write(0, "next")
	if got := show(next(t, s, 2)); strings.Contains(got, "old") || strings.Contains(got, "gap") || !strings.Contains(got, "next") {
		t.Errorf("it sends %s; want no gap, and nothing that was there before", got)
	}
}

// A topic that was deleted and made again ends before the cursor: it is read from its start.
func TestCursorBeyondTheEndShowsAGap(t *testing.T) {
	old, again := brokerFor(t, 1), brokerFor(t, 1)
	old.write(0, "0", "1", "2")
	cursor := next(t, old.open("earliest"), 3)[2].Cursor
	again.write(0, "new")
	if got := show(next(t, again.open(cursor), 2)); got != "map[0:[gap 3-0 new]]" {
		t.Errorf("the topic was made anew: %s", got)
	}
}

// A stream that is open while its topic is made anew shows the gap, and goes on with the new one; a
// partition that the new one lacks is not read any more.
func TestATopicThatIsMadeAnewShowsAGap(t *testing.T) {
	t.Parallel()
	b := brokerFor(t, 3)
	b.write(0, "0", "1", "2")
	b.write(2, "x")
	s := b.open("earliest")
	only := b.openPartition("earliest", 2)
	next(t, s, 4)
	next(t, only, 1)
	admin := kadm.NewClient(b.client)
	if _, err := admin.DeleteTopic(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateTopic(t.Context(), 2, 1, nil, "a"); err != nil {
		t.Fatal(err)
	}
	b = clientsFor(t, b.fake)          // one that knows nothing of the old one
	b.write(0, "n0", "n1", "n2", "n3") // more than the old one had
	b.write(1, "y")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the client is refused several times before it says so
	defer cancel()
	var events []stream.Event
	for len(events) < 6 && ctx.Err() == nil {
		more, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, more...)
	}
	if got := show(events); got != "map[0:[gap 3-0 n0 n1 n2 n3] 1:[y]]" {
		t.Errorf("it sends %s", got)
	}
	if got := show(next(t, b.open(events[len(events)-1].Cursor), 0)); got != "map[]" {
		t.Errorf("with the last cursor it begins with %s", got)
	}
	var err error
	for err == nil && ctx.Err() == nil {
		events, err = only.Next(ctx)
	}
	if ee, ok := errors.AsType[*event.Error](err); !ok || ee.Code != 40402 || len(events) != 0 {
		t.Errorf("of a partition that is not there any more: %s, %v", show(events), err)
	}
}

// fakeSource gives what a test has prepared, one poll after the other.
type fakeSource struct {
	polls []poll
	seeks []map[int32]int64
}

type poll struct {
	records []event.Record
	expired []int32
	err     error
}

func (f *fakeSource) Poll(context.Context, int) ([]event.Record, []int32, error) {
	if len(f.polls) == 0 {
		return nil, nil, nil
	}
	p := f.polls[0]
	f.polls = f.polls[1:]
	return p.records, p.expired, p.err
}

func (f *fakeSource) Seek(to map[int32]int64) { f.seeks = append(f.seeks, to) }
func (f *fakeSource) Close()                  {}

// fakeKafka is a topic whose bounds a test sets.
type fakeKafka struct {
	bounds map[int32]event.Bounds
	err    error
}

func (f *fakeKafka) Partitions(context.Context, string) (int, error) { return len(f.bounds), f.err }
func (f *fakeKafka) Bounds(context.Context, string) (map[int32]event.Bounds, error) {
	return f.bounds, f.err
}

func (f *fakeKafka) OffsetsAt(context.Context, string, time.Time) (map[int32]int64, error) {
	return nil, f.err
}

func record(partition int32, offset int64) event.Record {
	return event.Record{Topic: "a", Partition: partition, Offset: offset, Value: fmt.Append(nil, offset)}
}

func openFake(t *testing.T, polls ...poll) (*stream.Stream, *fakeKafka, *fakeSource) {
	t.Helper()
	k, src := &fakeKafka{bounds: map[int32]event.Bounds{0: {End: 100}, 1: {End: 100}}}, &fakeSource{polls: polls}
	o := &stream.Opener{Kafka: k, Source: func(string, map[int32]int64) (stream.Source, error) { return src, nil }}
	s, err := o.Open(t.Context(), stream.Request{Topic: "a", Partition: event.AnyPartition, From: "earliest"})
	if err != nil {
		t.Fatal(err)
	}
	return s, k, src
}

func TestNothingReadBesideAnErrorIsLost(t *testing.T) {
	away := event.Errorf(event.Unavailable, 50302, "poll", "Kafka is away")
	s, _, _ := openFake(t,
		poll{records: []event.Record{record(0, 0), record(0, 1)}, err: away},
		poll{records: []event.Record{record(0, 2)}})
	var events []stream.Event
	var failures int
	for range 5 {
		got, err := s.Next(t.Context())
		if err != nil {
			failures++
		}
		events = append(events, got...)
	}
	if show(events) != "map[0:[0 1 2]]" || failures != 1 {
		t.Errorf("events are %s with %d failures; want all three records, one failure", show(events), failures)
	}
}

// A heartbeat may fall due in the middle of what one poll gave: nothing is lost or decided
// twice then, and the cursor stands behind what was decided.
func TestFilteringGoesOnWhereATurnEnded(t *testing.T) {
	even, err := filter.Compile("offset % 2 == 0")
	if err != nil {
		t.Fatal(err)
	}
	var records []event.Record
	for i := range int64(10) {
		records = append(records, record(0, i))
	}
	k, src := &fakeKafka{bounds: map[int32]event.Bounds{0: {End: 100}}}, &fakeSource{polls: []poll{{records: records, expired: []int32{1}}}}
	k.bounds[1] = event.Bounds{Beginning: 7, End: 100}
	o := &stream.Opener{Kafka: k, Source: func(string, map[int32]int64) (stream.Source, error) { return src, nil }}
	s, err := o.Open(t.Context(), stream.Request{Topic: "a", Partition: event.AnyPartition, From: "earliest", Filter: even})
	if err != nil {
		t.Fatal(err)
	}
	k.bounds[1] = event.Bounds{Beginning: 9, End: 100} // retention takes some
	before := s.Cursor()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if events, err := s.Next(over); len(events) > 0 || err != nil || s.Cursor() != before || s.Filtered() != (stream.Filtered{}) {
		t.Errorf("a turn that is over gives %s, %v", show(events), err)
	}
	var events []stream.Event
	for range 4 {
		got, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, got...)
	}
	if got := show(events); got != "map[0:[0 2 4 6 8] 1:[gap 7-9]]" || s.Filtered().No != 5 {
		t.Errorf("the events are %s", got)
	}
}

func TestAGapIsShownOnceKafkaCanBeAsked(t *testing.T) {
	s, k, src := openFake(t, poll{records: []event.Record{record(0, 0)}, expired: []int32{1}}, poll{records: []event.Record{record(1, 7)}})
	k.bounds[1] = event.Bounds{Beginning: 7, End: 100}
	k.err = event.Errorf(event.Unavailable, 50302, "bounds", "Kafka is away")
	var events []stream.Event
	for i := range 6 {
		if i == 3 {
			k.err = nil
		}
		got, _ := s.Next(t.Context())
		events = append(events, got...)
	}
	if got := show(events); got != "map[0:[0] 1:[gap 0-7 7]]" {
		t.Errorf("events are %s; want the record, the gap and what comes after it", got)
	}
	if len(src.seeks) != 1 || src.seeks[0][1] != 7 || len(src.seeks[0]) != 1 {
		t.Errorf("the source was sent to %v; want partition 1 to 7", src.seeks)
	}
}

func TestRunningStreamShowsAGapAndGoesOn(t *testing.T) {
	t.Parallel()
	b := brokerFor(t, 1)
	b.write(0, "0")
	var source stream.Source
	inner := b.Source
	b.Source = func(topic string, from map[int32]int64) (stream.Source, error) {
		var err error
		source, err = inner(topic, from)
		return source, err
	}
	s := b.open("earliest")
	next(t, s, 1)
	b.write(0, "1", "2", "3", "4")
	b.deleteBefore(0, 3)
	// What is fetched already still comes: send the source to a place that is gone for sure.
	source.Seek(map[int32]int64{0: 1})
	events := next(t, s, 3)
	for len(events) > 3 && events[0].Record != nil {
		events = events[1:]
	}
	if got := show(events); !strings.HasSuffix(got, "-3 3 4]]") || !strings.Contains(got, "gap") {
		t.Errorf("the stream goes on with %s; want a gap up to 3, then 3 and 4", got)
	}
}

func TestNewPartitionsArePickedUp(t *testing.T) {
	t.Parallel()
	b := brokerFor(t, 1)
	b.write(0, "0")
	s := b.open("latest")
	before := s.Cursor()
	if _, err := kadm.NewClient(b.client).UpdatePartitions(t.Context(), 3, "a"); err != nil {
		t.Fatal(err)
	}
	b.client.ForceMetadataRefresh()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r := &kgo.Record{Topic: "a", Partition: 2, Value: []byte("x")}
		if b.client.ProduceSync(t.Context(), r).FirstErr() == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the writer does not learn of the new partitions")
		}
	}
	b.write(2, "y")
	if err := b.cluster.Refresh(t.Context()); err != nil { // the background check does that
		t.Fatal(err)
	}
	if err := s.Grow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := show(next(t, s, 2)); got != "map[2:[x y]]" {
		t.Errorf("after Grow it reads %s; want the new partition whole", got)
	}
	if err := s.Grow(t.Context()); err != nil { // nothing new: nothing is read twice
		t.Fatal(err)
	}
	b.write(2, "z")
	if got := show(next(t, s, 1)); got != "map[2:[z]]" {
		t.Errorf("after the second Grow it reads %s", got)
	}
	// A client that was away while the partitions came loses nothing of them either.
	if got := show(next(t, b.open(before), 3)); got != "map[2:[x y z]]" {
		t.Errorf("a cursor from before gives %s", got)
	}
	only := b.openPartition("latest", 0)
	if err := only.Grow(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if events, err := only.Next(ctx); err != nil || len(events) > 0 {
		t.Errorf("a stream of one partition reads %s, %v", show(events), err)
	}
}
