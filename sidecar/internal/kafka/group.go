package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
)

const (
	// A session's client buffers at most this much ahead of its reader, in bytes: for a
	// replica with a thousand sessions that is what memory there may be of it.
	fetchMaxBytes          = 2 << 20
	fetchMaxPartitionBytes = 1 << 20
	// A fetch of idle partitions returns after this time. Until then a partition that has just
	// come from another member waits; a shorter time means more requests of idle sessions.
	fetchMaxWait = 2 * time.Second
	// New topics and partitions are noticed within this time.
	metadataMaxAge = 30 * time.Second
	// A commit waits at most this long for Kafka.
	commitTimeout = 10 * time.Second
	// A member that is not heard of for so long has its partitions given to others. Until then
	// another replica gets them at once.
	memberTimeout = 15 * time.Second
	// A member that leaves tells Kafka so within this time.
	leaveTimeout = 5 * time.Second
)

// GroupOptions say what a session reads. One of Topics, Pattern and Partitions is set.
type GroupOptions struct {
	Group string
	// Member is what Kafka knows the member by, whichever process it lives in (its
	// group.instance.id): the one that joins last is the member, and fences the one before.
	Member string
	Topics []string // by name
	// Pattern is a regular expression of whole names.
	Pattern string
	// Partitions are read without joining the group: only commits are the group's.
	Partitions    []event.TopicPartition
	ReadCommitted bool // leave out records of transactions that were aborted or are open
	// Where a partition begins: at its seek as long as the group's commit is what it was then,
	// else at the commit, else at its start, else at its first record.
	Seeks  map[event.TopicPartition]event.Seek
	Starts map[event.TopicPartition]int64
	// Assigned and Lost are told of partitions as they come and go; Assigned, too, of a join
	// that brings none. Partitions of a topic that was made anew go, and come. Neither is called
	// while Poll's take runs.
	Assigned, Lost func([]event.TopicPartition)
	// Fenced is told that another process is the member now; this one does not come back.
	Fenced func()
}

// Group reads for a consumer group, as one of its members or, of given partitions, without
// being one. It commits only what it is told to.
type Group struct {
	opts   GroupOptions
	client *kgo.Client
	admin  *kadm.Client
	end    context.CancelFunc // ends all that the client does
	fence  func()             // what is to be done when another process is the member
	fenced atomic.Bool
	opened chan struct{} // closed once admin is set: the client calls back before

	failure error // that the client has told, perhaps for the only time; of the reader alone

	mu       sync.Mutex
	assigned map[event.TopicPartition]bool
	seeks    map[event.TopicPartition]event.Seek
	starts   map[event.TopicPartition]int64
}

// OpenGroup joins a group in the background: Kafka need not be there yet. To read given
// partitions it asks Kafka at once where they begin.
func OpenGroup(ctx context.Context, servers []string, opts GroupOptions) (*Group, error) {
	const op = "kafka.OpenGroup"
	g := &Group{opts: opts, assigned: make(map[event.TopicPartition]bool), seeks: maps.Clone(opts.Seeks), starts: maps.Clone(opts.Starts), opened: make(chan struct{})}
	if g.seeks == nil {
		g.seeks = make(map[event.TopicPartition]event.Seek)
	}
	var life context.Context
	life, g.end = context.WithCancel(context.Background())
	g.fence = sync.OnceFunc(func() {
		g.fenced.Store(true)
		g.end() // or it would join again, and fence the other
		if opts.Fenced != nil {
			opts.Fenced()
		}
	})
	isolation := kgo.ReadUncommitted()
	if opts.ReadCommitted {
		isolation = kgo.ReadCommitted()
	}
	options := []kgo.Opt{
		kgo.ClientID("postamt-" + opts.Member),
		kgo.WithContext(life),
		kgo.WithHooks(g),
		// What retention took is gone: go on with what there is, whatever a reader without a
		// commit would begin with.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(isolation),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.MetadataMaxAge(metadataMaxAge),
	}
	switch {
	case len(opts.Partitions) > 0:
		at, err := g.assign(ctx, servers)
		if err != nil {
			return nil, wrap(op, err)
		}
		options = append(options, kgo.ConsumePartitions(at))
	case opts.Pattern != "":
		options = append(options, kgo.ConsumeRegex(), kgo.ConsumeTopics("^(?:"+opts.Pattern+")$"), kgo.ConsumeExcludeTopics(`^_postamt\.`, `^__`))
	default:
		options = append(options, kgo.ConsumeTopics(opts.Topics...))
	}
	if len(opts.Partitions) == 0 {
		if opts.Member != "" {
			options = append(options, kgo.InstanceID(opts.Member))
		}
		options = append(options,
			kgo.ConsumerGroup(opts.Group),
			kgo.SessionTimeout(memberTimeout),
			kgo.Balancers(kgo.CooperativeStickyBalancer()),
			kgo.DisableAutoCommit(),
			kgo.BlockRebalanceOnPoll(),
			kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, true, opts.Assigned) }),
			kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, false, opts.Lost) }),
			kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, false, opts.Lost) }),
			kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
			kgo.AdjustFetchOffsetsFn(func(ctx context.Context, fetched map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
				<-g.opened
				return g.place(ctx, fetched)
			}),
		)
	}
	client, err := NewClient(servers, options...)
	if err != nil {
		g.end()
		return nil, &event.Error{Kind: event.Unprocessable, Op: op, Msg: "the subscription is not possible: " + err.Error(), Err: err}
	}
	g.client, g.admin = client, kadm.NewClient(client)
	close(g.opened)
	return g, nil
}

// OnGroupManageError is what the client calls before it begins to join again.
func (g *Group) OnGroupManageError(err error) {
	if errors.Is(err, kerr.FencedInstanceID) {
		g.fence()
	}
}

// assign places the partitions that were given.
func (g *Group) assign(ctx context.Context, servers []string) (map[string]map[int32]kgo.Offset, error) {
	client, err := NewClient(servers)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	g.admin = kadm.NewClient(client) // of this alone: one that reads must know where from when it is made
	committed, err := commitsOf(ctx, g.admin, g.opts.Group)
	if err != nil {
		return nil, err
	}
	at := make(map[string]map[int32]kgo.Offset)
	for _, tp := range g.opts.Partitions {
		if at[tp.Topic] == nil {
			at[tp.Topic] = make(map[int32]kgo.Offset)
		}
		at[tp.Topic][tp.Partition] = kgo.NewOffset().AtStart()
		if c, ok := committed[tp]; ok {
			at[tp.Topic][tp.Partition] = kgo.NewOffset().At(c.Offset)
		}
		g.assigned[tp] = true
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	return g.place(ctx, at)
}

// place says where partitions begin that have just been assigned. fetched are the group's
// commits, and below zero where there is none. All that it returns are offsets, none "the
// beginning": the client can seek in nothing else.
func (g *Group) place(ctx context.Context, fetched map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var unknown []string
	g.mu.Lock()
	for topic, partitions := range fetched {
		for p, o := range partitions {
			tp := event.TopicPartition{Topic: topic, Partition: p}
			at := max(o.EpochOffset().Offset, event.NoCommit)
			if seek, ok := g.seeks[tp]; ok && seek.Since == at {
				at = seek.Offset
			}
			if start, ok := g.starts[tp]; ok && at < 0 {
				at = start
			}
			if partitions[p] = kgo.NewOffset().At(at); at < 0 && !slices.Contains(unknown, topic) {
				unknown = append(unknown, topic)
			}
		}
	}
	g.mu.Unlock()
	if len(unknown) == 0 {
		return fetched, nil
	}
	first, err := g.admin.ListStartOffsets(ctx, unknown...)
	if err != nil {
		return nil, err
	}
	for _, topic := range unknown {
		for p, o := range fetched[topic] {
			if o.EpochOffset().Offset >= 0 {
				continue
			}
			listed, ok := first.Lookup(topic, p)
			if !ok {
				return nil, kerr.UnknownTopicOrPartition
			}
			if listed.Err != nil {
				return nil, listed.Err
			}
			fetched[topic][p] = kgo.NewOffset().At(listed.Offset)
		}
	}
	return fetched, nil
}

// Seek makes assigned partitions go on elsewhere, and drops what was fetched of them. No Poll
// may run meanwhile. It waits, until ctx ends, for partitions that have just been assigned
// and are not read yet.
func (g *Group) Seek(ctx context.Context, to map[event.TopicPartition]event.Seek) error {
	const op = "kafka.Seek"
	offsets := make(map[string]map[int32]kgo.Offset)
	g.mu.Lock()
	for tp, seek := range to {
		if !g.assigned[tp] {
			g.mu.Unlock()
			return event.Errorf(event.Conflict, 40903, op, "partition %d of topic %q is not assigned to this session at present", tp.Partition, tp.Topic)
		}
		if offsets[tp.Topic] == nil {
			offsets[tp.Topic] = make(map[int32]kgo.Offset)
		}
		offsets[tp.Topic][tp.Partition] = kgo.NewOffset().At(seek.Offset)
	}
	maps.Copy(g.seeks, to)
	g.mu.Unlock()
	if len(g.opts.Partitions) > 0 {
		g.client.RemoveConsumePartitions(partitionsOf(offsets))
		g.client.AddConsumePartitions(offsets)
		return nil
	}
	for !g.placed(to) {
		// The client is asking Kafka for commits: it knows the seek, or will have to be told.
		if !sleep(ctx, placePause) {
			return wrap(op, context.DeadlineExceeded)
		}
	}
	// The client takes a seek to the place that it remembers as committed for none, even when
	// it has read on from there: so first somewhere else.
	for _, aside := range []int64{1, 0} {
		set := make(map[string]map[int32]kgo.EpochOffset)
		for topic, partitions := range offsets {
			set[topic] = make(map[int32]kgo.EpochOffset)
			for p, o := range partitions {
				set[topic][p] = kgo.EpochOffset{Epoch: -1, Offset: o.EpochOffset().Offset + aside}
			}
		}
		g.client.SetOffsets(set)
	}
	return nil
}

// placePause is between two looks at whether partitions have got their place.
const placePause = 10 * time.Millisecond

// placed tells whether the client has got the place of all of these that are still assigned.
func (g *Group) placed(tps map[event.TopicPartition]event.Seek) bool {
	at := g.client.CommittedOffsets()
	for tp := range tps {
		if _, ok := at[tp.Topic][tp.Partition]; !ok && g.has(tp) {
			return false
		}
	}
	return true
}

func partitionsOf(offsets map[string]map[int32]kgo.Offset) map[string][]int32 {
	out := make(map[string][]int32, len(offsets))
	for topic, partitions := range offsets {
		out[topic] = slices.Collect(maps.Keys(partitions))
	}
	return out
}

// sleep waits, and tells whether ctx lets it go on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (g *Group) change(topics map[string][]int32, assigned bool, tell func([]event.TopicPartition)) {
	var tps []event.TopicPartition
	g.mu.Lock()
	for topic, partitions := range topics {
		for _, p := range partitions {
			tp := event.TopicPartition{Topic: topic, Partition: p}
			tps = append(tps, tp)
			if assigned {
				g.assigned[tp] = true
			} else {
				delete(g.assigned, tp)
			}
		}
	}
	g.mu.Unlock()
	if len(tps) > 0 || assigned {
		tell(tps)
	}
}

func (g *Group) has(tp event.TopicPartition) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.assigned[tp]
}

// Assigned lists the partitions that this member has now, in order.
func (g *Group) Assigned() []event.TopicPartition {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(maps.Keys(g.assigned), event.TopicPartition.Compare)
}

// Poll waits for records until ctx ends and hands up to maxRecords of them to take, while no
// partition can be taken away. It returns nil when there were none. An error is one that
// does not pass by itself: the client keeps trying what does. One that comes beside records is
// the next Poll's.
func (g *Group) Poll(ctx context.Context, maxRecords int, take func([]event.Record)) error {
	if g.failure == nil && g.taken(ctx, g.client.PollRecords(ctx, maxRecords), take) {
		return nil
	}
	err := g.failure
	g.failure = nil
	return err
}

// Buffered is Poll of what the client has fetched already: it does not wait. Its error is the
// next Poll's, too.
func (g *Group) Buffered(maxRecords int, take func([]event.Record)) error {
	var nothing context.Context // franz-go's way to say: do not wait
	if g.failure == nil && g.taken(context.Background(), g.client.PollRecords(nothing, maxRecords), take) {
		return nil
	}
	return g.failure
}

// taken hands the records of a poll out and tells whether there were any. It keeps the first
// failure that does not pass.
func (g *Group) taken(ctx context.Context, fetches kgo.Fetches, take func([]event.Record)) bool {
	const op = "kafka.Poll"
	var old []event.TopicPartition
	defer func() { g.renew(old) }() // once partitions may be taken away: the client may wait for that
	defer g.client.AllowRebalance()
	if fetches.IsClientClosed() {
		g.failure = wrap(op, kgo.ErrClientClosed)
		return false
	}
	n := fetches.NumRecords()
	if n > 0 {
		records := make([]event.Record, 0, n)
		fetches.EachRecord(func(r *kgo.Record) { records = append(records, recordOf(r)) })
		take(records)
	}
	failures := fetches.Errors()
	old = g.leaveOld(topicsMadeAnew(failures))
	for _, fe := range failures {
		ended := ctx.Err() != nil && (errors.Is(fe.Err, context.Canceled) || errors.Is(fe.Err, context.DeadlineExceeded))
		if !ended && !passes(fe.Err) {
			g.failure = wrap(op, fmt.Errorf("%s/%d: %w", fe.Topic, fe.Partition, fe.Err))
			break
		}
	}
	return n > 0
}

// topicsMadeAnew lists those that were deleted, and perhaps made anew: a client stays with the
// topic that it knew under a name, and reads nothing any more, until it is told to forget it.
func topicsMadeAnew(failures []kgo.FetchError) []string {
	var topics []string
	for _, fe := range failures {
		if errors.Is(fe.Err, kerr.UnknownTopicID) && !slices.Contains(topics, fe.Topic) {
			topics = append(topics, fe.Topic)
		}
	}
	return topics
}

// leaveOld gives up the partitions of topics that are not those of their names any more, and all
// that is known of them: nothing of it may be committed for the new ones.
func (g *Group) leaveOld(topics []string) (old []event.TopicPartition) {
	if len(topics) == 0 {
		return nil
	}
	gone := make(map[string][]int32)
	ofThem := func(tp event.TopicPartition) bool { return slices.Contains(topics, tp.Topic) }
	g.mu.Lock()
	for tp := range g.assigned {
		if ofThem(tp) {
			old = append(old, tp)
			gone[tp.Topic] = append(gone[tp.Topic], tp.Partition)
		}
	}
	maps.DeleteFunc(g.seeks, func(tp event.TopicPartition, _ event.Seek) bool { return ofThem(tp) })
	maps.DeleteFunc(g.starts, func(tp event.TopicPartition, _ int64) bool { return ofThem(tp) })
	g.mu.Unlock()
	g.change(gone, false, g.opts.Lost)
	return old
}

// renew makes the client read the topics of partitions that leaveOld has given up by their names
// again, from the beginning.
func (g *Group) renew(old []event.TopicPartition) {
	if len(old) == 0 {
		return
	}
	partitions := make(map[string][]int32)
	begin := make(map[string]map[int32]kgo.Offset)
	for _, tp := range old {
		partitions[tp.Topic] = append(partitions[tp.Topic], tp.Partition)
		if begin[tp.Topic] == nil {
			begin[tp.Topic] = make(map[int32]kgo.Offset)
		}
		begin[tp.Topic][tp.Partition] = kgo.NewOffset().AtStart()
	}
	topics := slices.Collect(maps.Keys(partitions))
	g.client.PurgeTopicsFromConsuming(topics...)
	if len(g.opts.Partitions) == 0 {
		g.client.AddConsumeTopics(topics...) // those of a pattern it finds itself
		return
	}
	g.change(partitions, true, g.opts.Assigned)
	g.client.AddConsumePartitions(begin)
}

// passes tells the errors after which the client goes on by itself: it has been told of a
// rebalance, or has found the place where its partition goes on.
func passes(err error) bool {
	var lost *kgo.ErrDataLoss
	if errors.As(err, &lost) || kerr.IsRetriable(err) {
		return true
	}
	for _, rejoins := range []error{kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.StaleMemberEpoch} {
		if errors.Is(err, rejoins) {
			return true
		}
	}
	return false
}

// Commit stores, for the group, the offset of the next record to read of each partition.
func (g *Group) Commit(ctx context.Context, offsets map[event.TopicPartition]event.Commit) error {
	const op = "kafka.Commit"
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	commit := func(ctx context.Context, offsets map[event.TopicPartition]event.Commit) error {
		return commitAsMember(ctx, g.client, offsets, g.has)
	}
	if len(g.opts.Partitions) > 0 {
		commit = g.commitAlone
	}
	if err := commit(ctx, offsets); err != nil {
		g.OnGroupManageError(err)
		return wrap(op, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for tp := range offsets {
		delete(g.seeks, tp)
	}
	return nil
}

// commitAsMember commits for the group that client is in, as long as it has the partitions.
func commitAsMember(ctx context.Context, client *kgo.Client, offsets map[event.TopicPartition]event.Commit, has func(event.TopicPartition) bool) error {
	epochs := make(map[string]map[int32]kgo.EpochOffset)
	for tp, c := range offsets {
		if epochs[tp.Topic] == nil {
			epochs[tp.Topic] = make(map[int32]kgo.EpochOffset)
		}
		epochs[tp.Topic][tp.Partition] = kgo.EpochOffset{Epoch: -1, Offset: c.Offset}
	}
	var failure error
	ctx = kgo.PreCommitFnContext(ctx, func(req *kmsg.OffsetCommitRequest) error {
		for i := range req.Topics {
			for j := range req.Topics[i].Partitions {
				p := &req.Topics[i].Partitions[j]
				tp := event.TopicPartition{Topic: req.Topics[i].Topic, Partition: p.Partition}
				// Kafka checks the member, not whose the partition is: one that has been lost while
				// this waited may be further already.
				if !has(tp) {
					return kerr.RebalanceInProgress
				}
				// The client would write its member id: this is the user's to fill.
				m := offsets[tp].Metadata
				p.Metadata = &m
			}
		}
		return nil
	})
	client.CommitOffsetsSync(ctx, epochs, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		failure = err
		if err != nil || resp == nil {
			return
		}
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil && failure == nil {
					failure = fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
				}
			}
		}
	})
	return failure
}

// commitAlone commits for a group that has no members. Kafka refuses it when there are some.
func (g *Group) commitAlone(ctx context.Context, offsets map[event.TopicPartition]event.Commit) error {
	err := commitOutside(ctx, g.admin, g.opts.Group, offsets)
	if membersOnly(err) {
		return &event.Error{Kind: event.Conflict, Code: 40903, Op: "kafka.Commit", Err: err, Msg: fmt.Sprintf(
			"the consumer group %q has members that subscribe, and only they may commit: give partitions that are assigned by hand a group of their own", g.opts.Group)}
	}
	return err
}

// Committed tells what a group has committed. Partitions without a commit are left out.
func (c *Cluster) Committed(ctx context.Context, group string) (map[event.TopicPartition]event.Commit, error) {
	committed, err := commitsOf(ctx, c.admin, group)
	return committed, wrap("kafka.Committed", err)
}

func commitsOf(ctx context.Context, admin *kadm.Client, group string) (map[event.TopicPartition]event.Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	resp, err := admin.FetchOffsets(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) { // it has never committed
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := make(map[event.TopicPartition]event.Commit)
	resp.Each(func(o kadm.OffsetResponse) {
		if o.At >= 0 {
			out[event.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = event.Commit{Offset: o.At, Metadata: o.Metadata}
		}
	})
	return out, nil
}

// Ends tells the offset that the next record of each partition will have: of the topics that
// there are among those named, or, when none is named, of all whose whole name the pattern
// matches. With readCommitted it is the end for a reader of committed transactions.
func (c *Cluster) Ends(ctx context.Context, topics []string, pattern string, readCommitted bool) (map[event.TopicPartition]int64, error) {
	const op = "kafka.Ends"
	all, err := c.Topics(ctx)
	if err != nil {
		return nil, err
	}
	re, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return nil, &event.Error{Kind: event.Unprocessable, Op: op, Msg: "topic_pattern is not a regular expression: " + err.Error(), Err: err}
	}
	chosen := slices.DeleteFunc(all, func(name string) bool {
		if len(topics) > 0 {
			return !slices.Contains(topics, name)
		}
		return !re.MatchString(name)
	})
	if len(chosen) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	list := c.admin.ListEndOffsets
	if readCommitted {
		list = c.admin.ListCommittedOffsets
	}
	listed, err := list(ctx, chosen...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	out := make(map[event.TopicPartition]int64)
	listed.Each(func(o kadm.ListedOffset) {
		out[event.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = o.Offset
	})
	return out, nil
}

// Close ends the reading. With leave it leaves the group, too, so that the other members take
// over at once: where Kafka cannot be told, they do after the member's timeout. Without, the
// partitions wait that long for another process to be the member.
func (g *Group) Close(leave bool) {
	defer g.end()
	if !leave {
		g.end() // there is nothing to tell Kafka, which may be away
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	g.client.AllowRebalance()
	id, _ := g.client.GroupMetadata()
	_ = g.client.LeaveGroupContext(ctx) // a member with a name does not leave by this, but ends
	if leave && !g.fenced.Load() && g.opts.Member != "" && len(g.opts.Partitions) == 0 {
		_ = leaveGroup(ctx, g.client, g.opts.Group, g.opts.Member, id)
	}
	g.client.CloseAllowingRebalance()
}

// Leave ends the membership of a session that no process has at present.
func (c *Cluster) Leave(ctx context.Context, group, member string) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	return wrap("kafka.Leave", leaveGroup(ctx, c.client, group, member, ""))
}

// leaveGroup takes a member out of its group. With the id that Kafka has given it, it spares a
// process that is the member since.
func leaveGroup(ctx context.Context, client *kgo.Client, group, member, id string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID, m.InstanceID = id, &member
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err == nil && len(resp.Members) > 0 {
		err = kerr.ErrorForCode(resp.Members[0].ErrorCode)
	}
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.GroupIDNotFound) {
		return nil
	}
	return err
}

func recordOf(r *kgo.Record) event.Record {
	out := event.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
	if len(r.Headers) > 0 {
		out.Headers = make([]event.Header, len(r.Headers))
		for i, h := range r.Headers {
			out.Headers[i] = event.Header(h)
		}
	}
	return out
}
