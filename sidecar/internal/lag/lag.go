// Package lag tells how far each consumer group of a cluster is behind: in records and in
// seconds, as metrics and as JSON. It asks Kafka in the background; a scrape is served from
// the last answer.
//
// # Lag in records
//
// Lag is the log-end offset minus the committed offset, and the end is the high watermark
// (read_uncommitted), as kafka-consumer-groups.sh and kafka_exporter have it. The last stable
// offset would hide the records of a transaction that hangs, which is when lag matters.
// Committed offsets are read before ends, so that a busy group does not seem to be ahead; a
// committed offset that really is beyond the end (a topic made anew) is a lag of 0. One that
// retention has overtaken counts from where it is, as with kafka-consumer-groups.sh: the
// records that were never read are among the lag until the group commits again. A partition
// without a committed offset has no lag; it is counted as uncommitted where the group is
// subscribed or assigned to it.
//
// # Lag in seconds
//
// Lag in seconds is the age of the oldest record that is there and not read: 0 when there is
// none. Kafka cannot be asked for the time of an offset, and to read a record for each of
// 200 × 1,000 lags each round would be a load of its own. So the monitor remembers when each
// log had grown how far: a record that came while it was looking came between two looks, and
// is taken to have come evenly between them, which is off by a round at most. An older
// one is read once for its timestamp: at most one of a partition and 500 in all each round,
// the least advanced group's first. Until its turn it counts as old as the first look, which
// is never more than the truth, or as lying evenly between that and a record that was read.
// Where the time is not known to within two rounds, the lag says that it is estimated.
// Timestamps that a producer made up are believed as far as what was seen allows. A clock that
// is set back by more than an interval ends what was seen.
//
// # When Kafka cannot be asked
//
// The last snapshot stays, with its age beside it in GET /lag; as metrics it is gone after
// three missed rounds (45 s at least), since an old lag that looks new is worse than none.
package lag

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
)

// Source is what is asked of Kafka. Groups may return an error beside groups: it says what is
// missing among them. Offsets are by topic and partition number.
type Source interface {
	Groups(ctx context.Context) ([]event.GroupState, error)
	Cluster(ctx context.Context) (event.ClusterState, error)
	Offsets(ctx context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error)
	RecordTimes(ctx context.Context, positions []event.Position) (map[event.Position]time.Time, error)
}

const (
	defaultInterval = 5 * time.Second
	// leastTimeout is what a round may take at least. It would be missed for want of time, else,
	// on a cluster that needs longer than the interval.
	leastTimeout = 15 * time.Second
	missedRounds = 3 // until metrics are stale

	maxLookups    = 500 // records read for their time in one round
	lookupTimeout = 5 * time.Second
	lookupRetry   = 5 * time.Minute // after a record that could not be read
)

// Options say how often to look.
type Options struct {
	Interval time.Duration // 5s when zero; a round that takes more than half of it delays the next
	Log      *slog.Logger  // discards when nil
	Now      func() time.Time
}

// Collector looks at all groups every interval. It is a prometheus.Collector, and safe for
// concurrent use.
type Collector struct {
	source   Source
	interval time.Duration
	log      *slog.Logger
	now      func() time.Time

	// What a round leaves for the next one; rounds do not overlap.
	round   sync.Mutex
	looked  time.Time     // when the logs' ends were read last; zero before
	apart   time.Duration // from the look before to that one
	logs    map[string]*topicState
	retryAt map[event.Position]time.Time // of records that could not be read

	mu       sync.Mutex
	snapshot *Snapshot
	duration time.Duration
	errors   int
}

// New makes a Collector; Run starts it.
func New(source Source, o Options) *Collector {
	c := &Collector{
		source: source, interval: cmp.Or(o.Interval, defaultInterval), log: o.Log, now: o.Now,
		logs: make(map[string]*topicState), retryAt: make(map[event.Position]time.Time),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c
}

// Run looks at once and then every interval, until ctx is canceled; then it returns nil. A
// round that fails is logged and counted, and never stops the loop. One that takes long delays
// the next, so that Kafka is left alone for half of the time.
func (c *Collector) Run(ctx context.Context) error {
	for {
		began := c.now()
		if err := c.Refresh(ctx); err != nil && ctx.Err() == nil {
			c.log.Warn("collect lag", "err", err)
		}
		took := c.now().Sub(began)
		next := time.NewTimer(max(took, c.interval-took))
		select {
		case <-ctx.Done():
			next.Stop()
			return nil
		case <-next.C:
		}
	}
}

// timeout is what a round may take.
func (c *Collector) timeout() time.Duration { return max(c.interval, leastTimeout) }

// staleAfter is when metrics are too old. Half a round more: one that is due now is not missed yet.
func (c *Collector) staleAfter() time.Duration {
	return missedRounds*c.timeout() + c.timeout()/2
}

// Snapshot returns the last look with its age, or nil before the first.
func (c *Collector) Snapshot() *Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot == nil {
		return nil
	}
	s := *c.snapshot
	s.AgeMS = max(0, c.now().Sub(s.CollectedAt).Milliseconds())
	return &s
}

// Refresh looks once, within an interval or 15 s. After an error the last snapshot stays, but for
// groups that are missing because their broker did not answer: the new snapshot is without
// them, and the error says so.
func (c *Collector) Refresh(ctx context.Context) error {
	c.round.Lock()
	defer c.round.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	began := c.now()
	s, err := c.collect(ctx)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.duration = c.now().Sub(began)
	if err != nil {
		c.errors++
	}
	if s != nil {
		c.snapshot = s
	}
	return err
}

func (c *Collector) collect(ctx context.Context) (*Snapshot, error) {
	groups, partial := c.source.Groups(ctx)
	if partial != nil && len(groups) == 0 {
		return nil, partial
	}
	cluster, err := c.source.Cluster(ctx)
	if err != nil {
		return nil, errors.Join(partial, err)
	}
	// Kafka's own topics are no one's to read, and the lag of nobody.
	cluster.Topics = slices.DeleteFunc(cluster.Topics, func(t event.TopicState) bool { return strings.HasPrefix(t.Name, "__") })
	offsets, err := c.source.Offsets(ctx, cluster.Topics)
	if err != nil {
		return nil, errors.Join(partial, err)
	}
	now := c.now().UTC()
	c.observe(cluster, offsets, now)
	s, doubtful := c.compute(cluster, groups, now)
	if c.lookUp(ctx, doubtful, now) {
		s, _ = c.compute(cluster, groups, now)
	}
	c.prune(groups)
	return s, partial
}

// topicState is a topic with what is known of its logs.
type topicState struct {
	event.TopicState
	offsets   []event.OffsetRange // by partition number
	histories []*history
}

// observe takes in where the logs end.
func (c *Collector) observe(cluster event.ClusterState, offsets map[string][]event.OffsetRange, now time.Time) {
	if now.UnixMilli() < c.looked.UnixMilli()-c.interval.Milliseconds() {
		// The clock was set back. By what is remembered nothing would be old until it is as late again.
		clear(c.logs)
		clear(c.retryAt)
	}
	c.apart, c.looked = now.Sub(c.looked), now
	logs := make(map[string]*topicState, len(cluster.Topics))
	for _, t := range cluster.Topics {
		state := &topicState{TopicState: t, offsets: offsets[t.Name]}
		if before := c.logs[t.Name]; before != nil && before.ID == t.ID {
			state.histories = before.histories
		}
		for len(state.histories) < len(state.offsets) {
			state.histories = append(state.histories, new(history))
		}
		for n, o := range state.offsets {
			if o.End >= 0 {
				state.histories[n].observe(o.End, now)
			}
		}
		logs[t.Name] = state
	}
	c.logs = logs
}

// compute makes a snapshot of what is known. doubtful are the oldest unread records whose
// time is not known well: at most one of each partition, the first.
func (c *Collector) compute(cluster event.ClusterState, groups []event.GroupState, now time.Time) (s *Snapshot, doubtful map[event.TopicPartition]int64) {
	s = &Snapshot{CollectedAt: now, Groups: make([]Group, 0, len(groups)), brokers: cluster.Brokers, addresses: cluster.Addresses}
	for _, t := range cluster.Topics {
		// The histories go on changing; a snapshot does not.
		s.topics = append(s.topics, topicState{TopicState: t, offsets: c.logs[t.Name].offsets})
	}
	doubtful = make(map[event.TopicPartition]int64)
	for _, g := range groups {
		group := Group{Group: g.Name, State: g.State, Protocol: g.Protocol, Members: Count(g.Members), behind: nothing, Topics: []Topic{}}
		for _, name := range topicsOf(g) {
			t, ok := c.topic(g, name, now, doubtful)
			if !ok {
				continue
			}
			group.Topics = append(group.Topics, t)
			group.add(t.behind)
		}
		s.Groups = append(s.Groups, group)
	}
	slices.SortFunc(s.Groups, func(a, b Group) int { return cmp.Compare(a.Group, b.Group) })
	return s, doubtful
}

// topicsOf names, in order, the topics that a group reads or has read.
func topicsOf(g event.GroupState) []string {
	names := slices.Clone(g.Subscribed)
	names = slices.AppendSeq(names, maps.Keys(g.Assigned))
	names = slices.AppendSeq(names, maps.Keys(g.Committed))
	slices.Sort(names)
	return slices.Compact(names)
}

// topic tells how far a group is in a topic; not ok when there is nothing to tell: it is
// subscribed to a topic that does not exist, or to one of Kafka's own.
func (c *Collector) topic(g event.GroupState, name string, now time.Time, doubtful map[event.TopicPartition]int64) (Topic, bool) {
	committed := g.Committed[name]
	state := c.logs[name]
	if strings.HasPrefix(name, "__") || state == nil && len(committed) == 0 {
		return Topic{}, false
	}
	if state == nil {
		state = new(topicState) // deleted, and its offsets are about to be
	}
	subscribed, assigned := slices.Contains(g.Subscribed, name), g.Assigned[name]
	t := Topic{Topic: name, behind: nothing, reads: subscribed || len(assigned) > 0}
	t.Partitions = make([]Partition, 0, max(len(committed), len(state.offsets)))
	has := make([]bool, len(state.offsets))
	for _, o := range committed {
		p := Partition{Partition: o.Partition, Committed: Count(o.Offset), End: unknown, behind: nothing}
		if int(o.Partition) < len(has) {
			has[o.Partition] = true
			c.measure(&p, name, state, now, doubtful)
		}
		t.add(p.behind)
		t.Partitions = append(t.Partitions, p)
	}
	for n := range has {
		number := int32(n) //nolint:gosec // Kafka's numbers are 32 bits
		if !has[n] && (subscribed || slices.Contains(assigned, number)) {
			t.Uncommitted++
			t.Partitions = append(t.Partitions, Partition{Partition: number, Committed: unknown, End: Count(state.offsets[n].End), behind: nothing})
		}
	}
	if t.Uncommitted > 0 {
		slices.SortFunc(t.Partitions, func(a, b Partition) int { return cmp.Compare(a.Partition, b.Partition) })
	}
	return t, true
}

// maxDoubt is how badly the time of a record can be known without being an estimate: to within two
// rounds. They are further apart than the interval where Kafka is slow, but not by more than the time that
// a round may take; what came while rounds failed is not known as well.
func (c *Collector) maxDoubt() time.Duration {
	return 2 * min(max(c.apart, c.interval), 2*c.timeout())
}

// measure fills in the lag of a partition that the group has committed in.
func (c *Collector) measure(p *Partition, topic string, state *topicState, now time.Time, doubtful map[event.TopicPartition]int64) {
	offsets := state.offsets[p.Partition]
	p.End = Count(offsets.End)
	if p.End == unknown {
		return
	}
	p.Lag, p.LagSeconds = max(0, p.End-p.Committed), 0
	oldest := oldestUnread(int64(p.Committed), offsets)
	if oldest >= offsets.End {
		return // nothing is unread, or retention has taken all that was
	}
	from, best, to := state.histories[p.Partition].arrival(oldest)
	age := now.UnixMilli() - best
	p.LagSeconds = Seconds(max(0, float64(age)/1000))
	doubt := to - from
	p.Estimated = from < 0 || doubt > c.maxDoubt().Milliseconds()
	if from < 0 || p.Estimated && doubt > age/10 {
		tp := event.TopicPartition{Topic: topic, Partition: p.Partition}
		if first, ok := doubtful[tp]; !ok || oldest < first {
			doubtful[tp] = oldest
		}
	}
}

// oldestUnread is the offset of the first record that a group has not read and that is still
// there, if there is one.
func oldestUnread(committed int64, offsets event.OffsetRange) int64 {
	return max(committed, offsets.Start)
}

// lookUp reads the times of doubtful records, and tells whether it has learned any.
func (c *Collector) lookUp(ctx context.Context, doubtful map[event.TopicPartition]int64, now time.Time) bool {
	maps.DeleteFunc(c.retryAt, func(_ event.Position, at time.Time) bool { return !now.Before(at) })
	var positions []event.Position
	for tp, offset := range doubtful {
		p := event.Position{TopicPartition: tp, Offset: offset}
		if _, later := c.retryAt[p]; !later {
			positions = append(positions, p)
		}
	}
	if len(positions) == 0 {
		return false
	}
	slices.SortFunc(positions, func(a, b event.Position) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	positions = positions[:min(len(positions), maxLookups)]
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	times, err := c.source.RecordTimes(ctx, positions)
	if err != nil {
		c.log.Warn("read the times of records; their age counts from when they were first seen", "err", err)
	}
	for _, p := range positions {
		at, ok := times[p]
		if !ok || at.UnixMilli() <= 0 { // not read, or older than timestamps
			c.retryAt[p] = now.Add(lookupRetry)
			continue
		}
		c.logs[p.Topic].histories[p.Partition].learn(p.Offset, at)
	}
	return len(times) > 0
}

// prune forgets what no group needs any more.
func (c *Collector) prune(groups []event.GroupState) {
	needed := make(map[string][]int64, len(c.logs)) // by topic and partition number: the first unread record
	for name, t := range c.logs {
		for _, o := range t.offsets {
			needed[name] = append(needed[name], o.End)
		}
	}
	for _, g := range groups {
		for name, committed := range g.Committed {
			for _, o := range committed {
				if first := needed[name]; int(o.Partition) < len(first) {
					first[o.Partition] = min(first[o.Partition], o.Offset)
				}
			}
		}
	}
	for name, t := range c.logs {
		for n, first := range needed[name] {
			t.histories[n].prune(oldestUnread(first, t.offsets[n]))
		}
	}
}
