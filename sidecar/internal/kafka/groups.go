package kafka

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
)

// ListGroups tells which consumer groups there are, in order of their name, without what they
// have committed. Postamt's own are left out.
func (a *Admin) ListGroups(ctx context.Context) ([]event.Group, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	listed, err := a.listGroups(ctx)
	if err != nil {
		return nil, err
	}
	groups := []event.Group{}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if !event.OwnGroup(name) {
			groups = append(groups, event.Group{GroupState: *listed[name], Coordinator: -1})
		}
	}
	return groups, nil
}

// Group tells who is in a group and what it has committed; it may be one of our own. NotFound means
// that there is no such group.
func (a *Admin) Group(ctx context.Context, name string) (event.Group, error) {
	const op = "kafka.Group"
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	g := event.Group{Coordinator: -1}
	g.Name = name
	if name == "" {
		return g, groupNotFound(op, name)
	}
	// Each protocol has a question of its own; a group of the other one is not found. Old
	// brokers know the first protocol alone, so that the other's error counts only without it.
	consumerErr := a.fillConsumer(ctx, &g)
	if g.State == "" {
		described, err := a.admin.DescribeGroups(ctx, name)
		if err != nil {
			return g, wrap(op, err)
		}
		switch d, _ := described.On(name, nil); {
		case d.Err != nil && !errors.Is(d.Err, kerr.GroupIDNotFound):
			return g, wrap(op, d.Err)
		case d.Err == nil && d.State != "Dead":
			fillClassic(&g, d)
		case consumerErr != nil:
			return g, consumerErr
		}
	}
	states := map[string]*event.GroupState{name: &g.GroupState}
	if err := a.committed(ctx, states); err != nil {
		return g, err
	}
	if g.State == "" {
		if len(g.Committed) == 0 {
			return g, groupNotFound(op, name)
		}
		g.State, g.Protocol = "Empty", protocolClassic
	}
	g.Members = len(g.List)
	slices.SortFunc(g.List, func(a, b event.GroupMember) int { return cmp.Compare(a.ID, b.ID) })
	return g, nil
}

func groupNotFound(op, name string) error {
	return event.Errorf(event.NotFound, 0, op, "there is no consumer group %q that is active or has committed", name)
}

func fillClassic(g *event.Group, d kadm.DescribedGroup) {
	g.State, g.Protocol, g.Assignor, g.Coordinator = d.State, protocolClassic, d.Protocol, d.Coordinator.NodeID
	for _, m := range d.Members {
		member := event.GroupMember{ID: m.MemberID, Client: m.ClientID}
		if m.InstanceID != nil {
			member.Instance = *m.InstanceID
		}
		if joined, ok := m.Join.AsConsumer(); ok {
			subscribe(&g.GroupState, joined.Topics)
		}
		if assigned, ok := m.Assigned.AsConsumer(); ok {
			for _, t := range assigned.Topics {
				member.Assigned = with(member.Assigned, t.Topic, t.Partitions)
				assign(&g.GroupState, t.Topic, t.Partitions)
			}
		}
		g.List = append(g.List, member)
	}
}

// fillConsumer describes a group of the consumer protocol; g keeps no state where it is none.
func (a *Admin) fillConsumer(ctx context.Context, g *event.Group) error {
	req := kmsg.NewPtrConsumerGroupDescribeRequest()
	req.Groups = []string{g.Name}
	for _, shard := range a.client.RequestSharded(ctx, req) {
		resp, err := shardAnswer[*kmsg.ConsumerGroupDescribeResponse](shard)
		if err != nil {
			return wrap("kafka.ConsumerGroupDescribe", err)
		}
		for _, d := range resp.Groups {
			if d.ErrorCode != 0 {
				continue // it is of another protocol, or none at all
			}
			g.State, g.Protocol, g.Assignor, g.Coordinator = d.State, protocolConsumer, d.AssignorName, shard.Meta.NodeID
			for _, m := range d.Members {
				member := event.GroupMember{ID: m.MemberID, Client: m.ClientID}
				if m.InstanceID != nil {
					member.Instance = *m.InstanceID
				}
				subscribe(&g.GroupState, m.SubscribedTopics)
				for _, t := range m.Assignment.TopicPartitions {
					if t.Topic != "" { // kfake gives ids only
						member.Assigned = with(member.Assigned, t.Topic, t.Partitions)
						assign(&g.GroupState, t.Topic, t.Partitions)
					}
				}
				g.List = append(g.List, member)
			}
		}
	}
	return nil
}

func with(assigned map[string][]int32, topic string, partitions []int32) map[string][]int32 {
	if assigned == nil {
		assigned = make(map[string][]int32)
	}
	assigned[topic] = append(assigned[topic], partitions...)
	return assigned
}

// DeleteTopic removes a topic with all that it holds.
func (a *Admin) DeleteTopic(ctx context.Context, topic string) error {
	const op = "kafka.DeleteTopic"
	responses, err := a.admin.DeleteTopics(ctx, topic)
	if err != nil {
		return wrap(op, err)
	}
	resp, err := responses.On(topic, nil)
	return refused(op, "topic "+topic, cmp.Or(err, resp.Err), resp.ErrMessage)
}

// ConfigsOf tells every setting of a topic that is in force.
func (a *Admin) ConfigsOf(ctx context.Context, topic string) ([]event.TopicConfig, error) {
	const op = "kafka.ConfigsOf"
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	if event.Own(topic) {
		return nil, topicNotFound(op, topic)
	}
	req := kmsg.NewPtrDescribeConfigsRequest()
	req.IncludeSynonyms = true
	resource := kmsg.NewDescribeConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, topic
	req.Resources = append(req.Resources, resource)
	resp, err := req.RequestWith(ctx, a.client)
	if err != nil {
		return nil, wrap(op, err)
	}
	configs := []event.TopicConfig{}
	for _, r := range resp.Resources {
		switch err := kerr.ErrorForCode(r.ErrorCode); {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			return nil, topicNotFound(op, topic)
		case err != nil:
			return nil, wrap(op, err)
		}
		for _, c := range r.Configs {
			config := event.TopicConfig{Name: c.Name, Value: c.Value, Source: c.Source.String(), ReadOnly: c.ReadOnly, Sensitive: c.IsSensitive}
			for _, s := range c.ConfigSynonyms {
				config.Synonyms = append(config.Synonyms, event.ConfigSynonym{Name: s.Name, Value: s.Value, Source: s.Source.String()})
			}
			if c.IsSensitive {
				config.Value = nil
				for i := range config.Synonyms {
					config.Synonyms[i].Value = nil
				}
			}
			configs = append(configs, config)
		}
	}
	slices.SortFunc(configs, func(a, b event.TopicConfig) int { return cmp.Compare(a.Name, b.Name) })
	return configs, nil
}
