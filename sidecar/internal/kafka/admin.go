package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
)

// Groups whose offsets are asked for in one request: an answer stays below what a client
// reads at once (100 MiB) up to some 40,000 partitions a group.
const groupsPerRequest = 50

// Admin asks and changes what the cluster knows about itself: topics for package bootstrap,
// groups and offsets for package lag. Nothing is cached: each answer is as new as Kafka's.
// It is safe for concurrent use.
type Admin struct {
	client *kgo.Client
	admin  *kadm.Client
}

// NewAdmin uses client, which stays its caller's to close.
func NewAdmin(client *kgo.Client) *Admin {
	return &Admin{client: client, admin: kadm.NewClient(client)}
}

// Cluster tells which brokers are up and what topics there are. A topic that is being
// deleted is left out.
func (a *Admin) Cluster(ctx context.Context) (event.ClusterState, error) {
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return event.ClusterState{}, wrap("kafka.Cluster", err)
	}
	state := event.ClusterState{Addresses: make(map[int32]string), Topics: make([]event.TopicState, 0, len(resp.Topics))}
	for _, b := range resp.Brokers {
		state.Brokers = append(state.Brokers, b.NodeID)
		state.Addresses[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	slices.Sort(state.Brokers)
	for _, t := range resp.Topics {
		if t.ErrorCode != 0 || t.Topic == nil {
			continue
		}
		ts := event.TopicState{Topic: event.Topic{Name: *t.Topic}, ID: t.TopicID}
		for _, p := range t.Partitions {
			ts.Partitions = append(ts.Partitions, event.Partition{Number: p.Partition, Leader: p.Leader, Replicas: p.Replicas, InSync: p.ISR})
		}
		slices.SortFunc(ts.Partitions, func(a, b event.Partition) int { return cmp.Compare(a.Number, b.Number) })
		state.Topics = append(state.Topics, ts)
	}
	slices.SortFunc(state.Topics, func(a, b event.TopicState) int { return cmp.Compare(a.Name, b.Name) })
	return state, nil
}

// TopicConfigs tells, by topic, what is set on the topic itself; a topic that takes all from
// its broker has an empty map.
func (a *Admin) TopicConfigs(ctx context.Context, topics ...string) (map[string]map[string]string, error) {
	const op = "kafka.TopicConfigs"
	resources, err := a.admin.DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, wrap(op, err)
	}
	set := make(map[string]map[string]string, len(resources))
	for _, r := range resources {
		if r.Err != nil {
			return nil, refused(op, "topic "+r.Name, r.Err, r.ErrMessage)
		}
		set[r.Name] = make(map[string]string)
		for _, c := range r.Configs {
			if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
				set[r.Name][c.Key] = c.MaybeValue()
			}
		}
	}
	return set, nil
}

// BrokerConfig tells the value that a broker uses for one of its settings, set or default.
func (a *Admin) BrokerConfig(ctx context.Context, broker int32, name string) (string, error) {
	const op = "kafka.BrokerConfig"
	resources, err := a.admin.DescribeBrokerConfigs(ctx, broker)
	if err != nil {
		return "", wrap(op, err)
	}
	r, err := resources.On(strconv.Itoa(int(broker)), nil)
	if err := cmp.Or(r.Err, err); err != nil {
		return "", refused(op, fmt.Sprintf("broker %d", broker), err, r.ErrMessage)
	}
	for _, c := range r.Configs {
		if c.Key == name {
			return c.MaybeValue(), nil
		}
	}
	return "", event.Errorf(event.NotFound, 0, op, "broker %d has no setting %s", broker, name)
}

// CreateTopic makes a topic. Conflict means that it exists, whoever made it.
func (a *Admin) CreateTopic(ctx context.Context, spec event.TopicSpec) error {
	return a.createTopic(ctx, "kafka.CreateTopic", spec, false)
}

// CheckNewTopic asks Kafka whether it would make a topic.
func (a *Admin) CheckNewTopic(ctx context.Context, spec event.TopicSpec) error {
	return a.createTopic(ctx, "kafka.CheckNewTopic", spec, true)
}

func (a *Admin) createTopic(ctx context.Context, op string, spec event.TopicSpec, validateOnly bool) error {
	topic := kmsg.NewCreateTopicsRequestTopic()
	//nolint:gosec // the caller has checked that both fit.
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = spec.Name, int32(spec.Partitions), int16(spec.Replication)
	for p, brokers := range spec.Assignments {
		assignment := kmsg.NewCreateTopicsRequestTopicReplicaAssignment()
		assignment.Partition, assignment.Replicas = int32(p), brokers //nolint:gosec // as above
		topic.ReplicaAssignment = append(topic.ReplicaAssignment, assignment)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Configs)) {
		config := kmsg.NewCreateTopicsRequestTopicConfig()
		config.Name, config.Value = name, new(spec.Configs[name])
		topic.Configs = append(topic.Configs, config)
	}
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis, req.ValidateOnly = createTimeoutMillis, validateOnly
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, a.client)
	switch {
	case err != nil:
		return wrap(op, err)
	case len(resp.Topics) != 1:
		return event.Errorf(event.Unavailable, codeUnavailable, op, "Kafka's answer was not of topic %q; repeat the request", spec.Name)
	}
	var said string
	if resp.Topics[0].ErrorMessage != nil {
		said = *resp.Topics[0].ErrorMessage
	}
	return refused(op, "topic "+spec.Name, kerr.ErrorForCode(resp.Topics[0].ErrorCode), said)
}

// createTimeoutMillis is how long a broker waits until the others know a new topic.
const createTimeoutMillis = 15_000

// SetPartitions raises the number of a topic's partitions to n. Conflict means that the
// topic has as many already, or more.
func (a *Admin) SetPartitions(ctx context.Context, topic string, n int) error {
	const op = "kafka.SetPartitions"
	responses, err := a.admin.UpdatePartitions(ctx, n, topic)
	if err != nil {
		return wrap(op, err)
	}
	resp, err := responses.On(topic, nil)
	return refused(op, "topic "+topic, cmp.Or(err, resp.Err), resp.ErrMessage)
}

// SetTopicConfigs sets what configs names on a topic, and leaves its other settings.
func (a *Admin) SetTopicConfigs(ctx context.Context, topic string, configs map[string]string) error {
	const op = "kafka.SetTopicConfigs"
	var alter []kadm.AlterConfig
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		alter = append(alter, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: new(configs[name])})
	}
	return altered(op, topic)(a.admin.AlterTopicConfigs(ctx, alter, topic))
}

// ChangeConfigs changes some of a topic's settings, all of them or none, or asks whether Kafka would.
func (a *Admin) ChangeConfigs(ctx context.Context, topic string, changes []event.ConfigChange, validateOnly bool) error {
	alter := make([]kadm.AlterConfig, len(changes))
	for i, c := range changes {
		alter[i] = kadm.AlterConfig{Op: kadm.SetConfig, Name: c.Name, Value: c.Value}
		if c.Value == nil {
			alter[i].Op = kadm.DeleteConfig
		}
	}
	change := a.admin.AlterTopicConfigs
	if validateOnly {
		change = a.admin.ValidateAlterTopicConfigs
	}
	return altered("kafka.ChangeConfigs", topic)(change(ctx, alter, topic))
}

func altered(op, topic string) func(kadm.AlterConfigsResponses, error) error {
	return func(responses kadm.AlterConfigsResponses, err error) error {
		if err != nil {
			return wrap(op, err)
		}
		resp, err := responses.On(topic, nil)
		return refused(op, "topic "+topic, cmp.Or(err, resp.Err), resp.ErrMessage)
	}
}

// refused gives what Kafka answers to a change its kind. said is Kafka's own explanation,
// which names the setting and the value that it does not like.
func refused(op, what string, err error, said string) error {
	ke, ok := errors.AsType[*kerr.Error](err)
	if !ok {
		return wrap(op, err)
	}
	if said == "" {
		said = ke.Description
	}
	kind := event.Internal
	switch {
	case errors.Is(ke, kerr.TopicAlreadyExists), errors.Is(ke, kerr.InvalidPartitions), errors.Is(ke, kerr.ReassignmentInProgress):
		kind = event.Conflict
	case errors.Is(ke, kerr.InvalidTopicException), errors.Is(ke, kerr.InvalidReplicationFactor), errors.Is(ke, kerr.InvalidConfig),
		errors.Is(ke, kerr.InvalidRequest), errors.Is(ke, kerr.PolicyViolation), errors.Is(ke, kerr.InvalidReplicaAssignment):
		kind = event.Unprocessable
	case errors.Is(ke, kerr.TopicAuthorizationFailed), errors.Is(ke, kerr.ClusterAuthorizationFailed):
		kind, said = event.Internal, said+" (check this service's ACLs)"
	case errors.Is(ke, kerr.UnknownTopicOrPartition):
		kind = event.NotFound
	case ke.Retriable:
		kind = event.Unavailable
	}
	return &event.Error{Kind: kind, Op: op, Msg: what + ": " + said, Err: ke}
}

// Groups reads every consumer group of the cluster with its members and committed offsets,
// of the classic, the consumer and the streams protocol; share groups commit no offsets and
// are left out. An error beside groups says what is missing among them: a broker that did
// not answer hides the groups that it coordinates. Without groups, nothing could be read.
func (a *Admin) Groups(ctx context.Context) ([]event.GroupState, error) {
	groups, err := a.listGroups(ctx)
	if groups == nil {
		return nil, err
	}
	byProtocol := make(map[string][]string)
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		byProtocol[groups[name].Protocol] = append(byProtocol[groups[name].Protocol], name)
	}
	err = errors.Join(err,
		a.describeClassic(ctx, groups, byProtocol[protocolClassic]),
		a.describeConsumer(ctx, groups, byProtocol[protocolConsumer]),
		a.committed(ctx, groups))
	read := make([]event.GroupState, 0, len(groups))
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		if g := groups[name]; g.Committed != nil && g.State != "Dead" {
			read = append(read, *g)
		}
	}
	return read, err
}

const (
	protocolClassic  = "classic"
	protocolConsumer = "consumer"
	protocolStreams  = "streams"
)

// listGroups asks every broker for the groups that it coordinates.
func (a *Admin) listGroups(ctx context.Context) (map[string]*event.GroupState, error) {
	const op = "kafka.ListGroups"
	var (
		groups map[string]*event.GroupState
		failed error
	)
	for _, shard := range a.client.RequestSharded(ctx, kmsg.NewPtrListGroupsRequest()) {
		resp, err := shardAnswer[*kmsg.ListGroupsResponse](shard)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		if err != nil {
			failed = errors.Join(failed, wrap(op, err))
			continue
		}
		if groups == nil {
			groups = make(map[string]*event.GroupState)
		}
		for _, g := range resp.Groups {
			// Brokers before 3.8 know one protocol and do not name it.
			protocol := cmp.Or(g.GroupType, protocolClassic)
			switch protocol {
			case protocolClassic, protocolConsumer, protocolStreams:
				groups[g.Group] = &event.GroupState{Name: g.Group, State: g.GroupState, Protocol: protocol, Members: -1}
			}
		}
	}
	return groups, failed
}

func (a *Admin) describeClassic(ctx context.Context, groups map[string]*event.GroupState, names []string) error {
	if len(names) == 0 {
		return nil
	}
	req := kmsg.NewPtrDescribeGroupsRequest()
	req.Groups = names
	var failed error
	for _, shard := range a.client.RequestSharded(ctx, req) {
		resp, err := shardAnswer[*kmsg.DescribeGroupsResponse](shard)
		if err != nil {
			failed = errors.Join(failed, wrap("kafka.DescribeGroups", err))
			continue
		}
		for _, d := range resp.Groups {
			g := groups[d.Group]
			if g == nil || d.ErrorCode != 0 {
				continue // gone since it was listed, or another protocol now: offsets only
			}
			g.State, g.Members = d.State, len(d.Members)
			if d.ProtocolType != "consumer" {
				continue // Connect and others use the same request for assignments of their own
			}
			for _, m := range d.Members {
				var joined kmsg.ConsumerMemberMetadata
				if joined.ReadFrom(m.ProtocolMetadata) == nil {
					subscribe(g, joined.Topics)
				}
				var assigned kmsg.ConsumerMemberAssignment
				if assigned.ReadFrom(m.MemberAssignment) == nil {
					for _, t := range assigned.Topics {
						assign(g, t.Topic, t.Partitions)
					}
				}
			}
		}
	}
	return failed
}

func (a *Admin) describeConsumer(ctx context.Context, groups map[string]*event.GroupState, names []string) error {
	if len(names) == 0 {
		return nil
	}
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = names
	var failed error
	for _, shard := range a.client.RequestSharded(ctx, req) {
		resp, err := shardAnswer[*kmsg.ConsumerGroupDescribeResponse](shard)
		if err != nil {
			failed = errors.Join(failed, wrap("kafka.ConsumerGroupDescribe", err))
			continue
		}
		for _, d := range resp.Groups {
			g := groups[d.Group]
			if g == nil || d.ErrorCode != 0 {
				continue
			}
			g.State, g.Members = d.State, len(d.Members)
			for _, m := range d.Members {
				subscribe(g, m.SubscribedTopics)
				for _, t := range m.Assignment.TopicPartitions {
					if t.Topic != "" { // kfake gives ids only
						assign(g, t.Topic, t.Partitions)
					}
				}
			}
		}
	}
	return failed
}

func subscribe(g *event.GroupState, topics []string) {
	for _, t := range topics {
		if !slices.Contains(g.Subscribed, t) {
			g.Subscribed = append(g.Subscribed, t)
		}
	}
}

func assign(g *event.GroupState, topic string, partitions []int32) {
	if g.Assigned == nil {
		g.Assigned = make(map[string][]int32)
	}
	g.Assigned[topic] = append(g.Assigned[topic], partitions...)
}

// committed fills in the groups' committed offsets. A group that could not be asked keeps nil.
func (a *Admin) committed(ctx context.Context, groups map[string]*event.GroupState) error {
	const op = "kafka.OffsetFetch"
	var failed error
	for names := range slices.Chunk(slices.Sorted(maps.Keys(groups)), groupsPerRequest) {
		req := kmsg.NewPtrOffsetFetchRequest()
		for _, name := range names {
			g := kmsg.NewOffsetFetchRequestGroup() // no topics: all that the group has committed
			g.Group = name
			req.Groups = append(req.Groups, g)
		}
		for _, shard := range a.client.RequestSharded(ctx, req) {
			resp, err := shardAnswer[*kmsg.OffsetFetchResponse](shard)
			if err != nil {
				failed = errors.Join(failed, wrap(op, err))
				continue
			}
			for _, answer := range resp.Groups {
				g := groups[answer.Group]
				switch err := kerr.ErrorForCode(answer.ErrorCode); {
				case g == nil, errors.Is(err, kerr.GroupIDNotFound):
				case err != nil:
					failed = errors.Join(failed, fmt.Errorf("group %s: %w", answer.Group, wrap(op, err)))
				default:
					g.Committed = committedOffsets(answer.Topics)
				}
			}
		}
	}
	return failed
}

func committedOffsets(topics []kmsg.OffsetFetchResponseGroupTopic) map[string][]event.CommittedOffset {
	committed := make(map[string][]event.CommittedOffset, len(topics))
	for _, t := range topics {
		offsets := make([]event.CommittedOffset, 0, len(t.Partitions))
		for _, p := range t.Partitions {
			if p.ErrorCode == 0 && p.Offset >= 0 { // -1: never committed
				offsets = append(offsets, event.CommittedOffset{Partition: p.Partition, Offset: p.Offset})
			}
		}
		if t.Topic != "" && len(offsets) > 0 {
			slices.SortFunc(offsets, func(a, b event.CommittedOffset) int { return cmp.Compare(a.Partition, b.Partition) })
			committed[t.Topic] = offsets
		}
	}
	return committed
}

// Offsets reads where the logs of the topics' partitions start and end, by topic and
// partition number; the end is the high watermark. A partition without a leader, or whose leader
// does not answer, has -1. It is an error when no partition could be asked.
func (a *Admin) Offsets(ctx context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error) {
	return a.offsets(ctx, topics, readUncommitted)
}

// StableOffsets is Offsets with the last stable offset as the end: what follows it belongs to, or
// waits for, a transaction that has not ended.
func (a *Admin) StableOffsets(ctx context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error) {
	return a.offsets(ctx, topics, readCommitted)
}

// Kafka's numbers for isolation levels.
const readUncommitted, readCommitted int8 = 0, 1

func (a *Admin) offsets(ctx context.Context, topics []event.TopicState, isolation int8) (map[string][]event.OffsetRange, error) {
	offsets := make(map[string][]event.OffsetRange, len(topics))
	for _, t := range topics {
		offsets[t.Name] = slices.Repeat([]event.OffsetRange{{Start: -1, End: -1}}, len(t.Partitions))
	}
	const earliest, latest = -2, -1 // ListOffsets' names for the start and the end of the log
	if err := a.listOffsets(ctx, topics, earliest, isolation, func(t string, p int32, offset int64) { offsets[t][p].Start = offset }); err != nil {
		return nil, err
	}
	return offsets, a.listOffsets(ctx, topics, latest, isolation, func(t string, p int32, offset int64) { offsets[t][p].End = offset })
}

func (a *Admin) listOffsets(ctx context.Context, topics []event.TopicState, at int64, isolation int8, found func(topic string, partition int32, offset int64)) error {
	req := kmsg.NewPtrListOffsetsRequest()
	req.IsolationLevel = isolation
	known := make(map[string]int, len(topics))
	for _, t := range topics {
		rt := kmsg.NewListOffsetsRequestTopic()
		rt.Topic = t.Name
		for _, p := range t.Partitions {
			if p.Leader < 0 {
				continue // the client would ask again and again until ctx ends
			}
			rp := kmsg.NewListOffsetsRequestTopicPartition()
			rp.Partition, rp.Timestamp = p.Number, at
			rt.Partitions = append(rt.Partitions, rp)
		}
		known[t.Name] = len(t.Partitions)
		if len(rt.Partitions) > 0 {
			req.Topics = append(req.Topics, rt)
		}
	}
	if len(req.Topics) == 0 {
		return nil
	}
	var failed error
	answered := false
	for _, shard := range a.client.RequestSharded(ctx, req) {
		resp, err := shardAnswer[*kmsg.ListOffsetsResponse](shard)
		if err != nil {
			failed = errors.Join(failed, wrap("kafka.ListOffsets", err))
			continue
		}
		answered = true
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode == 0 && int(p.Partition) < known[t.Topic] {
					found(t.Topic, p.Partition, p.Offset)
				}
			}
		}
	}
	if answered {
		return nil
	}
	return failed
}

func shardAnswer[R kmsg.Response](shard kgo.ResponseShard) (R, error) {
	resp, ok := shard.Resp.(R)
	if shard.Err == nil && !ok {
		return resp, fmt.Errorf("kafka answered with %T", shard.Resp)
	}
	return resp, shard.Err
}

// RecordTimes reads the timestamp of the first record at or after each position, with one
// short-lived consumer that reads no more than the first batches. Positions of one partition
// must not repeat. What has not come when ctx ends is missing from the answer.
func (a *Admin) RecordTimes(ctx context.Context, positions []event.Position) (map[event.Position]time.Time, error) {
	if len(positions) == 0 {
		return nil, nil
	}
	asked := make(map[event.TopicPartition]event.Position, len(positions))
	consume := make(map[string]map[int32]kgo.Offset)
	for _, p := range positions {
		asked[p.TopicPartition] = p
		if consume[p.Topic] == nil {
			consume[p.Topic] = make(map[int32]kgo.Offset)
		}
		consume[p.Topic][p.Partition] = kgo.NewOffset().At(p.Offset)
	}
	client, err := kgo.NewClient(append(slices.Clone(a.client.Opts()),
		kgo.ConsumePartitions(consume),
		kgo.KeepControlRecords(), // a log may end with the mark of a transaction: it has a time too
		kgo.FetchMaxPartitionBytes(64<<10),
		kgo.FetchMaxBytes(8<<20),
		kgo.FetchMaxWait(500*time.Millisecond),
	)...)
	if err != nil {
		return nil, wrap("kafka.RecordTimes", err)
	}
	defer client.Close()
	times := make(map[event.Position]time.Time, len(positions))
	for len(times) < len(asked) {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			break
		}
		done := make(map[string][]int32)
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			pos := asked[event.TopicPartition{Topic: p.Topic, Partition: p.Partition}]
			if _, seen := times[pos]; seen || len(p.Records) == 0 {
				return // read ahead, before it was told to stop; or an error, which it repeats
			}
			times[pos] = p.Records[0].Timestamp
			done[p.Topic] = append(done[p.Topic], p.Partition)
		})
		client.PauseFetchPartitions(done)
	}
	return times, nil
}
