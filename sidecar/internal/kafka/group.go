package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
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
	// A member that leaves tells Kafka so within this time.
	leaveTimeout = 5 * time.Second
)

// GroupOptions say what a member of a consumer group reads. Either Topics or Pattern is set.
type GroupOptions struct {
	Group         string
	Member        string   // the client id that tools show
	Topics        []string // by name
	Pattern       string   // a regular expression of whole names
	FromEarliest  bool     // where there is no commit: from the first record, else from the next one
	ReadCommitted bool     // leave out records of transactions that were aborted or are open
	// Assigned and Lost are told of partitions as they come and go. Neither is called while
	// Poll's take runs.
	Assigned, Lost func([]event.TopicPartition)
}

// Group is a member of a consumer group. It commits only what it is told to.
type Group struct {
	opts   GroupOptions
	client *kgo.Client

	mu       sync.Mutex
	assigned map[event.TopicPartition]bool
}

// OpenGroup joins a group in the background: Kafka need not be there yet.
func OpenGroup(servers []string, opts GroupOptions) (*Group, error) {
	g := &Group{opts: opts, assigned: make(map[event.TopicPartition]bool)}
	start := kgo.NewOffset().AtEnd()
	if opts.FromEarliest {
		start = kgo.NewOffset().AtStart()
	}
	isolation := kgo.ReadUncommitted()
	if opts.ReadCommitted {
		isolation = kgo.ReadCommitted()
	}
	options := []kgo.Opt{
		kgo.ClientID("postamt-" + opts.Member),
		kgo.ConsumerGroup(opts.Group),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, true, opts.Assigned) }),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, false, opts.Lost) }),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, tps map[string][]int32) { g.change(tps, false, opts.Lost) }),
		kgo.ConsumeStartOffset(start),
		// What retention took is gone: go on with what there is, whatever a reader without a
		// commit would begin with.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(isolation),
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.MetadataMaxAge(metadataMaxAge),
	}
	if opts.Pattern != "" {
		options = append(options, kgo.ConsumeRegex(), kgo.ConsumeTopics("^(?:"+opts.Pattern+")$"), kgo.ConsumeExcludeTopics(`^_postamt\.`, `^__`))
	} else {
		options = append(options, kgo.ConsumeTopics(opts.Topics...))
	}
	client, err := NewClient(servers, options...)
	if err != nil {
		return nil, &event.Error{Kind: event.Unprocessable, Op: "kafka.OpenGroup", Msg: "the subscription is not possible: " + err.Error(), Err: err}
	}
	g.client = client
	return g, nil
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
	if len(tps) > 0 {
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
	return slices.SortedFunc(maps.Keys(g.assigned), func(a, b event.TopicPartition) int {
		if a.Topic != b.Topic {
			if a.Topic < b.Topic {
				return -1
			}
			return 1
		}
		return int(a.Partition - b.Partition)
	})
}

// Poll waits for records until ctx ends and hands up to maxRecords of them to take, while no
// partition can be taken away. It returns nil when there were none. An error is one that
// does not pass by itself: the client keeps trying what does.
func (g *Group) Poll(ctx context.Context, maxRecords int, take func([]event.Record)) error {
	return g.taken(ctx, g.client.PollRecords(ctx, maxRecords), take)
}

// Buffered is Poll of what the client has fetched already: it does not wait.
func (g *Group) Buffered(maxRecords int, take func([]event.Record)) error {
	var nothing context.Context // franz-go's way to say: do not wait
	return g.taken(context.Background(), g.client.PollRecords(nothing, maxRecords), take)
}

func (g *Group) taken(ctx context.Context, fetches kgo.Fetches, take func([]event.Record)) error {
	defer g.client.AllowRebalance()
	if fetches.IsClientClosed() {
		return wrap("kafka.Poll", kgo.ErrClientClosed)
	}
	if n := fetches.NumRecords(); n > 0 {
		records := make([]event.Record, 0, n)
		fetches.EachRecord(func(r *kgo.Record) { records = append(records, recordOf(r)) })
		take(records)
		return nil
	}
	for _, fe := range fetches.Errors() {
		if ctx.Err() == nil && !passes(fe.Err) {
			return wrap("kafka.Poll", fe.Err)
		}
	}
	return nil
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
				if !g.has(tp) {
					return kerr.RebalanceInProgress
				}
				// The client would write its member id: this is the user's to fill.
				m := offsets[tp].Metadata
				p.Metadata = &m
			}
		}
		return nil
	})
	g.client.CommitOffsetsSync(ctx, epochs, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
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
	return wrap(op, failure)
}

// Committed tells what a group has committed. Partitions without a commit are left out.
func (c *Cluster) Committed(ctx context.Context, group string) (map[event.TopicPartition]event.Commit, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	resp, err := c.admin.FetchOffsets(ctx, group)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return nil, wrap("kafka.Committed", err)
	}
	out := make(map[event.TopicPartition]event.Commit)
	resp.Each(func(o kadm.OffsetResponse) {
		if o.At >= 0 {
			out[event.TopicPartition{Topic: o.Topic, Partition: o.Partition}] = event.Commit{Offset: o.At, Metadata: o.Metadata}
		}
	})
	return out, nil
}

// Close leaves the group, so that its other members take over at once; where Kafka cannot be
// told, they do after the session timeout.
func (g *Group) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	g.client.AllowRebalance()
	_ = g.client.LeaveGroupContext(ctx)
	g.client.CloseAllowingRebalance()
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
