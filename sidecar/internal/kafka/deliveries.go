package kafka

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
)

const (
	// What a client of deliveries buffers ahead of its reader at most, in bytes, for each broker
	// that leads partitions of it: there are hundreds of clients in a replica.
	deliveryMaxBytes          = 1 << 20
	deliveryMaxPartitionBytes = 512 << 10
	// A replica that was killed is not heard of for so long before others get its partitions,
	// after the heartbeat with which they learn of it.
	deliveryMemberTimeout = 10 * time.Second
	// In a rebalance a member has so long to join again: it takes what was handed out back, lets
	// attempts finish, and commits.
	deliveryRebalanceTimeout = 20 * time.Second
	// Records that Poll has returned are in their reader's hands until it polls again. A partition
	// that is to be taken away waits for that, but not longer than this.
	maxInHand = 5 * time.Second
)

// DeliveriesOptions say what is read and who is told of it.
type DeliveriesOptions struct {
	Group    string
	Topics   []string
	ClientID string // the member's name in the group's list
	// Assigned is told of partitions that come, with what the group has committed for them: there
	// they begin, and where the offset is event.NoCommit at their first record. They are not
	// paused. Log that a broker has lost makes a partition begin again: it is Lost and Assigned.
	Assigned func(map[event.TopicPartition]event.Commit)
	// Revoked is told of partitions that are about to go. They do when it returns; until then they
	// can be committed.
	Revoked func([]event.TopicPartition)
	// Lost is told of partitions that somebody else may have already.
	Lost func([]event.TopicPartition)
	// Expired is told that retention took what a partition had from an offset on, up to another
	// one, before it was read.
	Expired func(tp event.TopicPartition, from, to int64)
}

// Deliveries reads for a subscription, as a dynamic member of its consumer group. It commits
// only what it is told to. Commit, Pause and Resume are safe for concurrent use, Poll is for one
// goroutine.
//
// Callbacks come one at a time, from Poll or from a goroutine of the client. No record of a
// partition is handed out before Assigned has returned for it, nor after Revoked or Lost has
// begun, and neither begins while records are in their reader's hands: from Poll to the next Poll,
// or for maxInHand.
type Deliveries struct {
	opts    DeliveriesOptions
	client  *kgo.Client
	admin   *kadm.Client
	life    context.Context // of all that the client does
	end     context.CancelFunc
	opened  chan struct{} // closed once client is set: it calls back before
	closing sync.Once

	failure error // that came beside records: the next Poll's; of Poll alone

	telling sync.Mutex // held while a callback runs

	mu         sync.Mutex
	turns      *sync.Cond         // of mu: polling, inHand or waiting has changed
	polling    bool               // from the client's poll until its records are accounted for
	interrupt  context.CancelFunc // of the client's poll
	inHand     bool
	waiting    int // callbacks that want to be told when nobody polls and nothing is in hand
	partitions map[event.TopicPartition]*delivered
	fetched    map[event.TopicPartition]event.Commit // what Kafka has just said is committed
}

// delivered is a partition that Assigned has been told of.
type delivered struct {
	// next is after what was last read, marks of transactions included, and told after the last
	// record that was handed out; both are event.NoCommit before anything is known.
	next, told int64
}

// OpenDeliveries joins a group in the background: Kafka need not be there yet.
func OpenDeliveries(servers []string, opts DeliveriesOptions) (*Deliveries, error) {
	d := &Deliveries{opts: opts, opened: make(chan struct{}), partitions: make(map[event.TopicPartition]*delivered)}
	d.turns = sync.NewCond(&d.mu)
	d.life, d.end = context.WithCancel(context.Background())
	client, err := NewClient(servers,
		kgo.ClientID(opts.ClientID),
		kgo.WithContext(d.life),
		kgo.ConsumerGroup(opts.Group),
		kgo.ConsumeTopics(opts.Topics...),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(deliveryMemberTimeout),
		kgo.RebalanceTimeout(deliveryRebalanceTimeout),
		kgo.DisableAutoCommit(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		// Rather twice than never, where a broker has lost log.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// A log may end with marks: without them nobody could tell what retention took unread.
		kgo.KeepControlRecords(),
		kgo.FetchMaxBytes(deliveryMaxBytes),
		kgo.FetchMaxPartitionBytes(deliveryMaxPartitionBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.MetadataMaxAge(metadataMaxAge),
		// Not kgo.BlockRebalanceOnPoll: a poll would wait for Revoked, whatever its context.
		kgo.OnOffsetsFetched(func(_ context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
			d.remember(resp)
			return nil
		}),
		kgo.AdjustFetchOffsetsFn(func(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
			<-d.opened
			d.assign(ctx, offsets)
			return offsets, nil
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { d.revoke(tps) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { d.lose(tps) }),
	)
	if err != nil {
		d.end()
		return nil, &event.Error{Kind: event.Unprocessable, Op: "kafka.OpenDeliveries", Msg: "the subscription is not possible: " + err.Error(), Err: err}
	}
	d.client, d.admin = client, kadm.NewClient(client)
	close(d.opened)
	return d, nil
}

// Poll waits for up to maxRecords records until ctx ends; none is no error. Those of a partition
// come in the order of their offsets. An error is one that does not pass by itself.
func (d *Deliveries) Poll(ctx context.Context, maxRecords int) ([]event.Record, error) {
	const op = "kafka.Poll"
	if err := d.failure; err != nil {
		d.failure = nil
		return nil, err
	}
	for {
		turn, done := d.poll(ctx)
		fetches := d.client.PollRecords(turn, max(maxRecords, 1))
		ended := turn.Err() != nil
		failures := fetches.Errors()
		anew := d.leaveOld(failures)
		records := d.accept(fetches)
		done(len(records) > 0)
		if fetches.IsClientClosed() {
			return nil, wrap(op, kgo.ErrClientClosed)
		}
		// A client stays with the topic that it knew, and reads nothing any more, until it is told to
		// forget it.
		if len(anew) > 0 {
			d.client.PurgeTopicsFromConsuming(anew...)
			d.client.AddConsumeTopics(anew...)
		}
		var failure error
		for _, fe := range failures {
			if passes(fe.Err) || ended && (errors.Is(fe.Err, context.Canceled) || errors.Is(fe.Err, context.DeadlineExceeded)) {
				continue
			}
			failure = wrap(op, fmt.Errorf("%s/%d: %w", fe.Topic, fe.Partition, fe.Err))
			break
		}
		if len(records) > 0 {
			d.failure = failure // the client may not say so twice
			return records, nil
		}
		if failure != nil {
			return nil, failure
		}
		select {
		case <-ctx.Done():
			return nil, nil
		default: // a callback interrupted it, or all that came was of no use
		}
	}
}

// leaveOld forgets the partitions of topics that were made anew under their names, and returns these
// topics. What was decided of them is not told any more: the client has partitions revoked as it lets
// a topic go, and what is committed then counts for the new one.
func (d *Deliveries) leaveOld(failures []kgo.FetchError) (anew []string) {
	for _, fe := range failures {
		if errors.Is(fe.Err, kerr.UnknownTopicID) && !slices.Contains(anew, fe.Topic) {
			anew = append(anew, fe.Topic)
		}
	}
	if len(anew) == 0 {
		return nil
	}
	d.telling.Lock()
	defer d.telling.Unlock()
	var old []event.TopicPartition
	d.mu.Lock()
	for tp := range d.partitions {
		if slices.Contains(anew, tp.Topic) {
			old = append(old, tp)
		}
	}
	d.mu.Unlock()
	if len(old) > 0 {
		d.forget(old)
		d.opts.Lost(old)
	}
	return anew
}

// poll lets callbacks pass that wait, and begins a poll that the next one can interrupt. done
// says that what came of it is accounted for, and whether it goes to the reader.
func (d *Deliveries) poll(ctx context.Context) (turn context.Context, done func(handed bool)) {
	turn, cancel := context.WithCancel(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inHand = false
	d.turns.Broadcast()
	for d.waiting > 0 {
		d.turns.Wait()
	}
	d.polling, d.interrupt = true, cancel
	return turn, func(handed bool) {
		cancel()
		d.mu.Lock()
		defer d.mu.Unlock()
		d.polling, d.inHand = false, handed
		d.turns.Broadcast()
	}
}

// pass waits until nobody polls and nothing is in hand, then calls f with mu held.
func (d *Deliveries) pass(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting++
	if d.polling {
		d.interrupt()
	}
	enough := time.AfterFunc(maxInHand, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.inHand = false
		d.turns.Broadcast()
	})
	defer enough.Stop()
	for d.polling || d.inHand {
		d.turns.Wait()
	}
	d.waiting--
	d.turns.Broadcast()
	f()
}

// accept takes the records of partitions that are ours. What the client had taken from its
// buffer when a partition went is somebody else's to read.
func (d *Deliveries) accept(fetches kgo.Fetches) []event.Record {
	n := fetches.NumRecords()
	if n == 0 {
		return nil
	}
	records := make([]event.Record, 0, n)
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		tp := event.TopicPartition{Topic: p.Topic, Partition: p.Partition}
		d.mu.Lock()
		part := d.partitions[tp] // stays what it is: whoever changes it waits for this poll
		d.mu.Unlock()
		if len(p.Records) == 0 || part == nil {
			return
		}
		switch first := p.Records[0].Offset; {
		case part.next == event.NoCommit || first == part.next:
		case first < part.next:
			// A broker has lost log, or the topic was made anew: other records are there now.
			part = d.restart(tp, first)
		case p.LogStartOffset > part.next: // else compaction took them
			d.expired(tp, part.next, min(first, p.LogStartOffset))
		}
		told := event.NoCommit
		for _, r := range p.Records {
			if !r.Attrs.IsControl() {
				records = append(records, owned(r))
				told = r.Offset + 1
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		part.next, part.told = p.Records[len(p.Records)-1].Offset+1, max(part.told, told)
	})
	return records
}

// owned is a record with memory of its own. The client's shares its batch's: one record that waits
// for days would keep a megabyte of others that have long been delivered.
func owned(r *kgo.Record) event.Record {
	out := recordOf(r)
	room := make([]byte, 0, out.Size())
	take := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		n := len(room)
		room = append(room, b...)
		return room[n:len(room):len(room)]
	}
	out.Key, out.Value = take(out.Key), take(out.Value)
	for i, h := range out.Headers {
		out.Headers[i] = event.Header{Key: strings.Clone(h.Key), Value: take(h.Value)}
	}
	return out
}

func (d *Deliveries) expired(tp event.TopicPartition, from, to int64) {
	d.telling.Lock()
	defer d.telling.Unlock()
	d.opts.Expired(tp, from, to)
}

// restart makes a partition begin again at an offset that it has been beyond.
func (d *Deliveries) restart(tp event.TopicPartition, at int64) *delivered {
	d.telling.Lock()
	defer d.telling.Unlock()
	d.forget([]event.TopicPartition{tp})
	d.opts.Lost([]event.TopicPartition{tp})
	d.opts.Assigned(map[event.TopicPartition]event.Commit{tp: {Offset: at}})
	part := &delivered{next: at, told: at}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.partitions[tp] = part
	return part
}

// remember keeps what the group has committed, for assign, which is told only the offsets.
func (d *Deliveries) remember(resp *kmsg.OffsetFetchResponse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fetched = make(map[event.TopicPartition]event.Commit)
	for _, g := range resp.Groups {
		for _, t := range g.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 || p.Offset < 0 {
					continue
				}
				c := event.Commit{Offset: p.Offset}
				if p.Metadata != nil {
					c.Metadata = *p.Metadata
				}
				d.fetched[event.TopicPartition{Topic: t.Topic, Partition: p.Partition}] = c
			}
		}
	}
}

// assign tells of partitions whose commits have come, and sets the offsets at which the client
// begins to fetch them when this returns.
func (d *Deliveries) assign(ctx context.Context, offsets map[string]map[int32]kgo.Offset) {
	commits := make(map[event.TopicPartition]event.Commit)
	paused := make(map[string][]int32)
	var anew []event.TopicPartition
	// The client takes partitions that are lost out of its buffers only after it has said so.
	d.pass(func() {
		for topic, partitions := range offsets {
			for p, o := range partitions {
				tp := event.TopicPartition{Topic: topic, Partition: p}
				commits[tp] = event.Commit{Offset: event.NoCommit}
				if at := o.EpochOffset().Offset; at >= 0 {
					commits[tp] = event.Commit{Offset: at, Metadata: d.fetched[tp].Metadata}
				}
				paused[topic] = append(paused[topic], p)
				if d.partitions[tp] != nil {
					anew = append(anew, tp) // its topic was made anew
				}
			}
		}
	})
	starts := d.starts(ctx, commits)
	d.client.ResumeFetchPartitions(paused) // a pause outlives the partition

	d.telling.Lock()
	defer d.telling.Unlock()
	if len(anew) > 0 {
		d.forget(anew)
		d.opts.Lost(anew)
	}
	d.opts.Assigned(commits)
	for tp := range commits {
		part := &delivered{next: commits[tp].Offset, told: commits[tp].Offset}
		if start, ok := starts[tp]; ok && part.next != event.NoCommit && start > part.next {
			d.opts.Expired(tp, part.next, start)
			part.next = start
			offsets[tp.Topic][tp.Partition] = kgo.NewOffset().At(start)
		}
		d.mu.Lock()
		d.partitions[tp] = part
		d.mu.Unlock()
	}
}

// starts asks where the logs begin of those partitions that have a commit. Without an answer
// there is none: what has expired is noticed with the first record, too.
func (d *Deliveries) starts(ctx context.Context, commits map[event.TopicPartition]event.Commit) map[event.TopicPartition]int64 {
	var topics []string
	for tp, c := range commits {
		if c.Offset != event.NoCommit && !slices.Contains(topics, tp.Topic) {
			topics = append(topics, tp.Topic)
		}
	}
	if len(topics) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	listed, err := d.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil
	}
	starts := make(map[event.TopicPartition]int64)
	listed.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			starts[event.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = o.Offset
		}
	})
	return starts
}

// revoke lets partitions go that the client gives up when this returns.
func (d *Deliveries) revoke(topics map[string][]int32) {
	if tps := d.ours(topics); len(tps) > 0 {
		d.telling.Lock()
		defer d.telling.Unlock()
		d.opts.Revoked(tps)
		d.forget(tps)
	}
}

func (d *Deliveries) lose(topics map[string][]int32) {
	if tps := d.ours(topics); len(tps) > 0 {
		d.telling.Lock()
		defer d.telling.Unlock()
		d.forget(tps)
		d.opts.Lost(tps)
	}
}

// ours waits until nothing of partitions is on its way to the reader, and returns those of them that
// Assigned was told of. The client itself hands out no more of those that it revokes.
func (d *Deliveries) ours(topics map[string][]int32) []event.TopicPartition {
	if len(topics) == 0 {
		return nil // the client says so at the end of every session
	}
	var mine []event.TopicPartition
	d.pass(func() {
		for topic, partitions := range topics {
			for _, p := range partitions {
				tp := event.TopicPartition{Topic: topic, Partition: p}
				if d.partitions[tp] != nil {
					mine = append(mine, tp)
				}
			}
		}
	})
	slices.SortFunc(mine, event.TopicPartition.Compare)
	return mine
}

func (d *Deliveries) forget(tps []event.TopicPartition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, tp := range tps {
		delete(d.partitions, tp)
	}
}

func (d *Deliveries) has(tp event.TopicPartition) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.partitions[tp] != nil
}

// Pause keeps the records of partitions back until Resume. Those that were fetched and not polled
// may be fetched again.
func (d *Deliveries) Pause(tps []event.TopicPartition) {
	if len(tps) > 0 { // none means: which ones are paused?
		d.client.PauseFetchPartitions(byTopic(tps))
	}
}

// Resume ends a Pause.
func (d *Deliveries) Resume(tps []event.TopicPartition) {
	d.client.ResumeFetchPartitions(byTopic(tps))
}

// Commit stores, for the group, the offset of the next record to read of each partition and a
// word on it, at most 4,096 bytes. It works inside Revoked, too. Conflict means that a partition
// is not this member's any more: nothing, or only others, are stored.
//
// A commit without metadata of all that was handed out covers the marks of transactions that
// follow: else there would always be something left to read.
func (d *Deliveries) Commit(ctx context.Context, commits map[event.TopicPartition]event.Commit) error {
	const op = "kafka.Commit"
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	defer context.AfterFunc(d.life, cancel)()
	whole := make(map[event.TopicPartition]event.Commit, len(commits))
	d.mu.Lock()
	for tp, c := range commits {
		if part := d.partitions[tp]; part != nil && c.Metadata == "" && c.Offset == part.told {
			c.Offset = max(c.Offset, part.next)
		}
		whole[tp] = c
	}
	d.mu.Unlock()
	var errs []error
	for piece := range pieces(whole) {
		errs = append(errs, commitAsMember(ctx, d.client, piece, d.has))
	}
	return wrap(op, errors.Join(errs...))
}

// maxCommitBytes is how much metadata goes into one request. Kafka keeps what a request commits as one
// batch of records, and refuses all of it when that is over its message.max.bytes, 1 MiB.
const maxCommitBytes = 512 << 10

// pieces divides commits into such that Kafka takes as one.
func pieces(all map[event.TopicPartition]event.Commit) iter.Seq[map[event.TopicPartition]event.Commit] {
	const overhead = 256 // for the group, the partition and the record
	return func(yield func(map[event.TopicPartition]event.Commit) bool) {
		piece, size := make(map[event.TopicPartition]event.Commit), 0
		for tp, c := range all {
			more := overhead + len(tp.Topic) + len(c.Metadata)
			if size+more > maxCommitBytes && len(piece) > 0 {
				if !yield(piece) {
					return
				}
				piece, size = make(map[event.TopicPartition]event.Commit), 0
			}
			piece[tp] = c
			size += more
		}
		if len(piece) > 0 {
			yield(piece)
		}
	}
}

// Close leaves the group, after Revoked has returned for what is assigned. Where Kafka cannot be
// told before ctx ends, the others take over after the member's timeout.
func (d *Deliveries) Close(ctx context.Context) {
	d.closing.Do(func() {
		defer d.end()
		defer context.AfterFunc(ctx, d.end)()
		d.mu.Lock()
		d.inHand = false // nobody polls any more
		d.turns.Broadcast()
		d.mu.Unlock()
		d.client.Close()
	})
}

func byTopic(tps []event.TopicPartition) map[string][]int32 {
	out := make(map[string][]int32)
	for _, tp := range tps {
		out[tp.Topic] = append(out[tp.Topic], tp.Partition)
	}
	return out
}
