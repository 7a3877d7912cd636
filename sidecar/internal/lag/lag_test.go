package lag

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
)

// fakeKafka answers from its fields.
type fakeKafka struct {
	groups  []event.GroupState
	topics  []event.TopicState
	offsets map[string][]event.OffsetRange
	times   map[event.Position]time.Time // of records

	groupsErr, clusterErr, offsetsErr error
	lookups                           [][]event.Position
}

func (f *fakeKafka) Groups(context.Context) ([]event.GroupState, error) { return f.groups, f.groupsErr }

func (f *fakeKafka) Cluster(context.Context) (event.ClusterState, error) {
	return event.ClusterState{Brokers: []int32{1, 2}, Addresses: map[int32]string{1: "a:9092", 2: "b:9092"}, Topics: slices.Clone(f.topics)}, f.clusterErr
}

func (f *fakeKafka) Offsets(_ context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error) {
	offsets := make(map[string][]event.OffsetRange)
	for _, t := range topics {
		offsets[t.Name] = slices.Clone(f.offsets[t.Name])
	}
	return offsets, f.offsetsErr
}

func (f *fakeKafka) RecordTimes(_ context.Context, positions []event.Position) (map[event.Position]time.Time, error) {
	f.lookups = append(f.lookups, slices.Clone(positions))
	times := make(map[event.Position]time.Time)
	for _, p := range positions {
		if at, ok := f.times[p]; ok {
			times[p] = at
		}
	}
	return times, nil
}

// topic adds a topic whose partitions have the given start and end offsets.
func (f *fakeKafka) topic(name string, startEnd ...int64) {
	t := event.TopicState{Topic: event.Topic{Name: name}, ID: [16]byte{1}}
	f.topics = slices.DeleteFunc(f.topics, func(t event.TopicState) bool { return t.Name == name })
	if f.offsets == nil {
		f.offsets = make(map[string][]event.OffsetRange)
	}
	f.offsets[name] = nil
	for i := 0; i < len(startEnd); i += 2 {
		t.Partitions = append(t.Partitions, event.Partition{Number: int32(i / 2), Leader: 1, Replicas: []int32{1, 2}, InSync: []int32{1}})
		f.offsets[name] = append(f.offsets[name], event.OffsetRange{Start: startEnd[i], End: startEnd[i+1]})
	}
	f.topics = append(f.topics, t)
}

// committed is a group without members that has committed offset in partition 0 of a topic.
func committed(group, topic string, offsets ...int64) event.GroupState {
	g := event.GroupState{Name: group, State: "Empty", Protocol: "classic", Committed: map[string][]event.CommittedOffset{}}
	for n, o := range offsets {
		if o >= 0 {
			g.Committed[topic] = append(g.Committed[topic], event.CommittedOffset{Partition: int32(n), Offset: o})
		}
	}
	return g
}

// clock is set by the test.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func collectorAt(source Source, seconds float64) (*Collector, *clock) {
	c := &clock{at(seconds)}
	return New(source, Options{Interval: 15 * time.Second, Now: c.now}), c
}

// look collects at a time and returns the group's first topic.
func look(t *testing.T, c *Collector, clock *clock, seconds float64) Topic {
	t.Helper()
	clock.Time = at(seconds)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	groups := c.Snapshot().Groups
	if len(groups) == 0 || len(groups[0].Topics) == 0 {
		t.Fatalf("there is no group with a topic: %+v", groups)
	}
	return groups[0].Topics[0]
}

func TestLag(t *testing.T) {
	for name, test := range map[string]struct {
		log       event.OffsetRange
		committed int64
		want      Count
	}{
		"read to the end":                {event.OffsetRange{Start: 0, End: 10}, 10, 0},
		"behind":                         {event.OffsetRange{Start: 0, End: 10}, 4, 6},
		"read nothing":                   {event.OffsetRange{Start: 0, End: 10}, 0, 10},
		"overtaken by retention":         {event.OffsetRange{Start: 8, End: 10}, 4, 6},
		"overtaken, and nothing is left": {event.OffsetRange{Start: 10, End: 10}, 4, 6},
		"ahead of a topic made anew":     {event.OffsetRange{Start: 0, End: 3}, 40, 0},
		"an end that nobody knows":       {event.OffsetRange{Start: -1, End: -1}, 4, unknown},
	} {
		f := &fakeKafka{groups: []event.GroupState{committed("g", "a", test.committed)}}
		f.topic("a", test.log.Start, test.log.End)
		c, clock := collectorAt(f, 0)
		got := look(t, c, clock, 0)
		if got.Lag != test.want || len(got.Partitions) != 1 || got.Partitions[0].Lag != test.want || got.Partitions[0].End != Count(test.log.End) {
			t.Errorf("%s: %+v, want lag %d", name, got, test.want)
		}
	}
}

func TestPartitionsWithoutCommitHaveNoLag(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{
		{Name: "assigned", State: "Stable", Members: 1, Assigned: map[string][]int32{"a": {2}}, Committed: map[string][]event.CommittedOffset{}},
		{Name: "both", State: "Stable", Members: 1, Subscribed: []string{"a", "no-such-topic"}, Assigned: map[string][]int32{"a": {0, 1}},
			Committed: map[string][]event.CommittedOffset{"a": {{Partition: 1, Offset: 3}}}},
		{Name: "deleted-topic", State: "Empty", Committed: map[string][]event.CommittedOffset{"z": {{Partition: 0, Offset: 9}}}},
		{Name: "fewer-partitions", State: "Empty", Committed: map[string][]event.CommittedOffset{"a": {{Partition: 7, Offset: 9}}}},
		{Name: "nothing", State: "Empty", Committed: map[string][]event.CommittedOffset{}},
		{Name: "of-kafka", State: "Empty", Subscribed: []string{"__consumer_offsets"}, Committed: map[string][]event.CommittedOffset{"__consumer_offsets": {{Partition: 7, Offset: 9}}}},
	}}
	f.topic("a", 0, 10, 0, 10, 0, 10)
	f.topic("__consumer_offsets", 0, 10)
	c, _ := collectorAt(f, 0)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range c.Snapshot().Groups {
		line := fmt.Sprintf("%s lag=%d", g.Group, g.Lag)
		for _, topic := range g.Topics {
			line += fmt.Sprintf(" %s[uncommitted=%d", topic.Topic, topic.Uncommitted)
			for _, p := range topic.Partitions {
				line += fmt.Sprintf(" %d:%d/%d", p.Partition, p.Committed, p.End)
			}
			line += "]"
		}
		got = append(got, line)
	}
	want := []string{
		"assigned lag=-1 a[uncommitted=1 2:-1/10]",
		"both lag=7 a[uncommitted=2 0:-1/10 1:3/10 2:-1/10]",
		"deleted-topic lag=-1 z[uncommitted=0 0:9/-1]",
		"fewer-partitions lag=-1 a[uncommitted=0 7:9/-1]",
		"nothing lag=-1",
		"of-kafka lag=-1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("groups are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLagSecondsFromWhatWasSeen(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 10)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 0)
	if got := look(t, c, clock, 0); got.LagSeconds != 0 {
		t.Errorf("all is read, and the lag is %v s", got.LagSeconds)
	}
	f.topic("a", 0, 11) // came between 0 and 15
	if got := look(t, c, clock, 15); got.LagSeconds != 7.5 {
		t.Errorf("a record that has just come is %v s old, want 7.5", got.LagSeconds)
	}
	f.topic("a", 0, 31)
	if got := look(t, c, clock, 30); got.LagSeconds != 22.5 {
		t.Errorf("15 s later it is %v s old, want 22.5", got.LagSeconds)
	}
	f.groups = []event.GroupState{committed("g", "a", 21)} // half of what came from 15 to 30 is read
	if got := look(t, c, clock, 45); got.LagSeconds != 45-22.875 {
		t.Errorf("the next one is %v s old, want %v", got.LagSeconds, 45-22.875)
	}
	f.groups = []event.GroupState{committed("g", "a", 31)}
	if got := look(t, c, clock, 60); got.LagSeconds != 0 {
		t.Errorf("all is read again, and the lag is %v s", got.LagSeconds)
	}
	if len(f.lookups) > 0 {
		t.Errorf("records were read, though all was seen: %v", f.lookups)
	}
}

// Rounds of 6 s, every 12 s at an interval of 5 s, tell as much as those that take no time.
func TestSlowRoundsAreNoEstimates(t *testing.T) {
	f := &fakeKafka{}
	clock := &clock{at(0)}
	c := New(f, Options{Interval: 5 * time.Second, Now: clock.now})
	for s := int64(0); s <= 120; s += 12 {
		f.topic("a", 0, 100+s) // a record each second; the group is 18 s behind
		f.groups = []event.GroupState{committed("g", "a", 100+s-18)}
		if got := look(t, c, clock, float64(s)); s >= 24 && (got.Estimated || got.LagSeconds < 12 || got.LagSeconds > 24) {
			t.Errorf("at %d s a record of 18 s is %v s old, and that is said to be an estimate: %t", s, got.LagSeconds, got.Estimated)
		}
	}
	if f.lookups = f.lookups[2:]; len(f.lookups) > 0 { // the first two were of records that are older than the first look
		t.Errorf("records were read, though all was seen: %v", f.lookups)
	}
	// What came while Kafka did not answer is not known well by the next look.
	f.topic("a", 0, 1000)
	f.groups = []event.GroupState{committed("g", "a", 300)}
	if got := look(t, c, clock, 900); !got.Estimated || len(f.lookups) != 1 {
		t.Errorf("after 13 minutes without a look it is %v s old, is said to be an estimate: %t, and was read %d times; want that, and once", got.LagSeconds, got.Estimated, len(f.lookups))
	}
}

func TestAClockThatIsSetBackEndsWhatWasSeen(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 10)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 7200)
	look(t, c, clock, 7200) // two hours ahead
	f.topic("a", 0, 20)
	look(t, c, clock, 7215)
	f.topic("a", 0, 40)
	f.groups = []event.GroupState{committed("g", "a", 30)}
	f.times = map[event.Position]time.Time{{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 30}: at(25)}
	for _, s := range []float64{30, 45, 3600} {
		if got := look(t, c, clock, s); got.LagSeconds != Seconds(s-25) || got.Estimated {
			t.Errorf("at %v s it is %v s old, and that is said to be an estimate: %t; want %v s, exactly", s, got.LagSeconds, got.Estimated, s-25)
		}
	}
	// A record that was written by the clock of then is as old as the first look since.
	f.groups = []event.GroupState{committed("g", "a", 15)}
	f.times[event.Position{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 15}] = at(7210)
	if got := look(t, c, clock, 3615); got.LagSeconds != 3615-25 {
		t.Errorf("one from the future is %v s old, want %v", got.LagSeconds, 3615-25)
	}
}

func TestLagSecondsOfOlderRecordsAreReadOnce(t *testing.T) {
	p := event.Position{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 4}
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}, times: map[event.Position]time.Time{p: at(-600)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 0)
	for _, s := range []float64{0, 15, 30, 3000} {
		if got := look(t, c, clock, s); got.LagSeconds != Seconds(s+600) {
			t.Errorf("at %v s it is %v s old, want %v", s, got.LagSeconds, s+600)
		}
	}
	if len(f.lookups) != 1 {
		t.Errorf("records were read %d times: %v", len(f.lookups), f.lookups)
	}
	// What is behind it came between its time and the first look: too wide to guess, so it is read.
	p.Offset = 8
	f.times[p] = at(-60)
	f.groups = []event.GroupState{committed("g", "a", 8)}
	if got := look(t, c, clock, 3015); got.LagSeconds != 3075 || len(f.lookups) != 2 {
		t.Errorf("the next one is %v s old after %d lookups, want 3075 after 2", got.LagSeconds, len(f.lookups))
	}
	// Retention takes it: the oldest that is left counts.
	p.Offset = 9
	f.times[p] = at(-30)
	f.topic("a", 9, 10)
	if got := look(t, c, clock, 3030); got.LagSeconds != 3060 || got.Lag != 2 {
		t.Errorf("after retention the oldest is %v s old and the lag %d, want 3060 and 2", got.LagSeconds, got.Lag)
	}
	f.topic("a", 10, 10)
	if got := look(t, c, clock, 3045); got.LagSeconds != 0 || got.Lag != 2 {
		t.Errorf("with nothing left, the oldest is %v s old and the lag %d, want 0 and 2", got.LagSeconds, got.Lag)
	}
}

func TestRecordsThatCannotBeReadCountFromTheFirstLook(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 0)
	for s := 0.0; s <= 330; s += 15 {
		if got := look(t, c, clock, s); got.LagSeconds != Seconds(s) || !got.Estimated || !got.Partitions[0].Estimated {
			t.Errorf("at %v s it is %v s old, and that is said to be an estimate: %t", s, got.LagSeconds, got.Estimated)
		}
	}
	if len(f.lookups) != 2 {
		t.Errorf("it was tried %d times in 330 s, want at once and after 5 minutes", len(f.lookups))
	}
}

func TestLookupsAreLimited(t *testing.T) {
	const partitions = 1200
	f := &fakeKafka{times: make(map[event.Position]time.Time)}
	var log, offsets, others []int64
	for n := range partitions {
		log = append(log, 0, 10)
		offsets, others = append(offsets, 2), append(others, 1)
		for _, offset := range []int64{1, 2} {
			f.times[event.Position{TopicPartition: event.TopicPartition{Topic: "a", Partition: int32(n)}, Offset: offset}] = at(-100 * float64(offset))
		}
	}
	f.topic("a", log...)
	f.groups = []event.GroupState{committed("g", "a", offsets...), committed("h", "a", others...)}
	c, clock := collectorAt(f, 0)
	for round := range 8 {
		look(t, c, clock, float64(15*round))
	}
	asked := make(map[event.Position]int)
	for _, positions := range f.lookups {
		if len(positions) > 500 {
			t.Errorf("%d records were read in one round", len(positions))
		}
		for _, p := range positions {
			asked[p]++
		}
	}
	if len(asked) != 2*partitions || slices.Max(slices.Collect(maps.Values(asked))) != 1 {
		t.Errorf("%d records were read, want %d, each once", len(asked), 2*partitions)
	}
}

func TestATopicMadeAnewStartsAnew(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 5)}}
	f.topic("a", 0, 5)
	c, clock := collectorAt(f, 0)
	look(t, c, clock, 0)
	f.topic("a", 0, 9)
	f.topics[0].ID = [16]byte{2}
	f.times = map[event.Position]time.Time{{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 5}: at(14)}
	if got := look(t, c, clock, 15); got.LagSeconds != 1 {
		t.Errorf("the record is %v s old by what was seen of another topic, want 1", got.LagSeconds)
	}
}

func TestFailedLooksKeepTheSnapshotAndEndTheMetrics(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}}
	f.topic("a", 0, 4)
	c, clock := collectorAt(f, 0)
	if c.Snapshot() != nil {
		t.Error("there is a snapshot before the first look")
	}
	look(t, c, clock, 0)
	away := errors.New("away")
	for round, fail := range []*error{&f.groupsErr, &f.clusterErr, &f.offsetsErr, &f.groupsErr} {
		f.groupsErr, f.clusterErr, f.offsetsErr = nil, nil, nil
		*fail = away
		f.groups = nil
		clock.Time = at(float64(15 * (round + 1)))
		if err := c.Refresh(t.Context()); !errors.Is(err, away) {
			t.Errorf("round %d: %v", round, err)
		}
		s := c.Snapshot()
		if s == nil || len(s.Groups) != 1 || s.AgeMS != int64(15_000*(round+1)) {
			t.Errorf("round %d: the snapshot is %+v", round, s)
		}
		lines := metricLines(t, c)
		shown := slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, "kafka_") })
		if want := round < 3; shown != want {
			t.Errorf("after %d missed rounds the metrics are shown: %v, want %v", round+1, shown, want)
		}
		if want := fmt.Sprintf("postamt_monitor_collect_errors_total{} %d", round+1); !slices.Contains(lines, want) {
			t.Errorf("missing %s among %v", want, lines)
		}
	}
}

func TestABrokerThatDoesNotAnswerHidesItsGroupsOnly(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}, groupsErr: errors.New("broker 2 is away")}
	f.topic("a", 0, 4)
	c, _ := collectorAt(f, 0)
	if err := c.Refresh(t.Context()); !errors.Is(err, f.groupsErr) {
		t.Errorf("it is not said: %v", err)
	}
	if s := c.Snapshot(); s == nil || len(s.Groups) != 1 {
		t.Errorf("the snapshot is %+v", s)
	}
}

func TestSnapshotAsJSON(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{
		{Name: "shop", State: "Stable", Protocol: "consumer", Members: 2, Subscribed: []string{"a"}, Committed: map[string][]event.CommittedOffset{"a": {{Partition: 0, Offset: 4}}}},
		{Name: "other", State: "Empty", Protocol: "streams", Members: -1, Committed: map[string][]event.CommittedOffset{}},
	}, times: map[event.Position]time.Time{{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 4}: at(-90.001)}}
	f.topic("a", 2, 10, 0, 0)
	c, clock := collectorAt(f, 0)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	clock.Time = at(2.5)
	one, ok := c.Snapshot().Only("shop")
	if !ok {
		t.Fatal("there is no group shop")
	}
	var text, got bytes.Buffer
	n, err := one.WriteTo(&text)
	if err != nil || n != int64(text.Len()) {
		t.Errorf("%d bytes are written, %v; want %d", n, err, text.Len())
	}
	err = json.Indent(&got, text.Bytes(), "", "  ")
	const want = `{
  "collected_at": "2023-11-14T22:13:20Z",
  "age_ms": 2500,
  "groups": [
    {
      "group": "shop",
      "state": "Stable",
      "protocol": "consumer",
      "members": 2,
      "lag": 6,
      "lag_seconds": 90.001,
      "topics": [
        {
          "topic": "a",
          "lag": 6,
          "lag_seconds": 90.001,
          "uncommitted_partitions": 1,
          "partitions": [
            {
              "partition": 0,
              "committed": 4,
              "end": 10,
              "lag": 6,
              "lag_seconds": 90.001
            },
            {
              "partition": 1,
              "committed": null,
              "end": 0,
              "lag": null,
              "lag_seconds": null
            }
          ]
        }
      ]
    }
  ]
}`
	if err != nil || got.String() != want {
		t.Errorf("JSON is\n%s %v\nwant\n%s", got.String(), err, want)
	}
	if other, ok := c.Snapshot().Only("other"); !ok || other.Groups[0].Members != unknown {
		t.Errorf("group other is %+v, %v", other, ok)
	}
	none, ok := c.Snapshot().Only("none")
	text.Reset()
	if _, err := none.WriteTo(&text); ok || err != nil || !strings.HasSuffix(text.String(), `,"groups":[]}`) {
		t.Errorf("group none is %s, %v, %v", text.Bytes(), ok, err)
	}
	text.Reset()
	if _, err := c.Snapshot().WriteTo(&text); err != nil || !json.Valid(text.Bytes()) || strings.Count(text.String(), `"members":`) != 2 {
		t.Errorf("both groups are %s, %v", text.Bytes(), err)
	}
}

// failsOnce is a Kafka that is away in one round, counted from 1.
type failsOnce struct {
	fakeKafka
	round, rounds int
}

func (f *failsOnce) Groups(ctx context.Context) ([]event.GroupState, error) {
	if f.rounds++; f.rounds == f.round {
		return nil, errors.New("away")
	}
	return f.fakeKafka.Groups(ctx)
}

func TestRunLooksEveryIntervalUntilItIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failsOnce{fakeKafka: fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}}, round: 2}
		f.topic("a", 0, 4)
		c := New(f, Options{Interval: 10 * time.Second})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		synctest.Wait()
		if s := c.Snapshot(); s == nil || s.AgeMS != 0 {
			t.Errorf("it does not look at once: %+v", s)
		}
		time.Sleep(9 * time.Second)
		if s := c.Snapshot(); s.AgeMS != 9000 {
			t.Errorf("after 9 s the snapshot is %d ms old", s.AgeMS)
		}
		time.Sleep(10 * time.Second)
		if s := c.Snapshot(); s.AgeMS != 19_000 {
			t.Errorf("after a round that failed the snapshot is %d ms old", s.AgeMS)
		}
		time.Sleep(10 * time.Second)
		if s := c.Snapshot(); s.AgeMS != 9000 {
			t.Errorf("after the next round it is %d ms old", s.AgeMS)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// big is 200 groups, each behind in 1,000 partitions, of which it reads half.
func big() *fakeKafka {
	f := &fakeKafka{times: make(map[event.Position]time.Time)}
	for n := range 10 {
		var log []int64
		for range 100 {
			log = append(log, 0, 1_000_000)
		}
		f.topic(fmt.Sprintf("test.topic-%d", n), log...)
	}
	for n := range 200 {
		g := event.GroupState{Name: fmt.Sprintf("group-%03d", n), State: "Stable", Protocol: "classic", Members: 3, Assigned: map[string][]int32{}, Committed: map[string][]event.CommittedOffset{}}
		for _, t := range f.topics {
			g.Subscribed = append(g.Subscribed, t.Name)
			for p := range int32(100) {
				g.Assigned[t.Name] = append(g.Assigned[t.Name], p)
				g.Committed[t.Name] = append(g.Committed[t.Name], event.CommittedOffset{Partition: p, Offset: 1_000_000 - int64(n)*1000 - int64(p)})
			}
		}
		f.groups = append(f.groups, g)
	}
	return f
}

// BenchmarkCompute is a round of 200 groups × 1,000 partitions, without Kafka.
func BenchmarkCompute(b *testing.B) {
	f := big()
	c, clock := collectorAt(f, 0)
	for b.Loop() {
		clock.Time = clock.Add(15 * time.Second)
		for _, offsets := range f.offsets {
			for n := range offsets {
				offsets[n].End += 100
			}
		}
		if err := c.Refresh(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJSON is what GET /lag answers of it.
func BenchmarkJSON(b *testing.B) {
	c, _ := collectorAt(big(), 0)
	if err := c.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n, err := c.Snapshot().WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}
