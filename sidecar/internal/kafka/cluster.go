package kafka

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/singleflight"

	"postamt/sidecar/internal/event"
)

// metadataTimeout bounds one question to Kafka about itself. A healthy broker answers in
// milliseconds; a longer wait would only make a client wait for the same 503.
const metadataTimeout = 3 * time.Second

// NewClient makes a franz-go client that knows where the cluster is. It connects when it is
// first used.
func NewClient(servers []string, opts ...kgo.Opt) (*kgo.Client, error) {
	base := []kgo.Opt{
		kgo.SeedBrokers(servers...),
		kgo.ClientID("postamt"),
		kgo.DialTimeout(2 * time.Second),
		kgo.MetadataMinAge(time.Second),
		kgo.DisableClientMetrics(), // without Kafka, each client's end would wait a second to send the last of them
	}
	return kgo.NewClient(append(base, opts...)...)
}

// Cluster answers what topics there are, from a cache that Refresh fills. It is safe for
// concurrent use.
type Cluster struct {
	client *kgo.Client
	admin  *kadm.Client
	asking singleflight.Group

	mu     sync.RWMutex
	topics map[string]int // partitions by topic, as last seen
	id     string         // of the cluster; "" until it was asked
}

// NewCluster uses client, which stays its caller's to close.
func NewCluster(client *kgo.Client) *Cluster {
	return &Cluster{client: client, admin: kadm.NewClient(client), topics: make(map[string]int)}
}

// Refresh learns all topics anew. It is the health check "kafka", too: an error means that
// Kafka cannot be asked, and the cache stays as it was.
func (c *Cluster) Refresh(ctx context.Context) error {
	resp, err := c.ask(ctx, nil)
	if err != nil {
		return err
	}
	topics := make(map[string]int, len(resp.Topics))
	for _, t := range resp.Topics {
		if t.ErrorCode == 0 && t.Topic != nil {
			topics[*t.Topic] = len(t.Partitions)
		}
	}
	c.mu.Lock()
	c.topics = topics
	c.mu.Unlock()
	return nil
}

// Partitions tells how many partitions a topic has. A topic that is not in the cache is
// asked for at once: NotFound (40401) means that Kafka has just said so, Unavailable that
// Kafka could not be asked. Topics of our own are not found.
func (c *Cluster) Partitions(ctx context.Context, topic string) (int, error) {
	if event.Own(topic) {
		return 0, topicNotFound("kafka.Partitions", topic)
	}
	c.mu.RLock()
	n, known := c.topics[topic]
	c.mu.RUnlock()
	if known {
		return n, nil
	}
	t, err := c.fresh(ctx, topic)
	if err != nil {
		return 0, err
	}
	return len(t.Partitions), nil
}

// CheckTopic returns NotFound (40401) when Kafka has just said that there is no such topic.
func (c *Cluster) CheckTopic(ctx context.Context, topic string) error {
	_, err := c.Partitions(ctx, topic)
	return err
}

// CheckPartition returns NotFound (40402) when Kafka has just said that there is no such
// partition, or no such topic (40401).
func (c *Cluster) CheckPartition(ctx context.Context, tp event.TopicPartition) error {
	n, err := c.Partitions(ctx, tp.Topic)
	if err != nil || tp.Partition >= 0 && int(tp.Partition) < n {
		return err
	}
	t, err := c.fresh(ctx, tp.Topic) // it may have been added since
	if err != nil || tp.Partition >= 0 && int(tp.Partition) < len(t.Partitions) {
		return err
	}
	return partitionNotFound("kafka.CheckPartition", tp, len(t.Partitions))
}

// fresh asks Kafka for a topic, once for all who ask at the same time, and remembers it.
func (c *Cluster) fresh(ctx context.Context, topic string) (kmsg.MetadataResponseTopic, error) {
	const op = "kafka.Metadata"
	answer := c.asking.DoChan(topic, func() (any, error) {
		// The first asker may go away: the others still want the answer.
		resp, err := c.ask(context.WithoutCancel(ctx), []string{topic})
		if err != nil {
			return nil, err
		}
		for _, t := range resp.Topics {
			if t.Topic == nil || *t.Topic != topic {
				continue
			}
			if err := kerr.ErrorForCode(t.ErrorCode); errors.Is(err, kerr.UnknownTopicOrPartition) {
				return nil, topicNotFound(op, topic)
			} else if err != nil {
				return nil, wrap(op, err)
			}
			c.mu.Lock()
			c.topics[topic] = len(t.Partitions)
			c.mu.Unlock()
			return t, nil
		}
		return nil, event.Errorf(event.Unavailable, codeUnavailable, op, "Kafka's answer was not of topic %q; repeat the request", topic)
	})
	select {
	case <-ctx.Done():
		return kmsg.MetadataResponseTopic{}, wrap(op, ctx.Err())
	case r := <-answer:
		if r.Err != nil {
			return kmsg.MetadataResponseTopic{}, r.Err
		}
		return r.Val.(kmsg.MetadataResponseTopic), nil
	}
}

// ask requests metadata: of all topics when names is nil. It never creates one.
func (c *Cluster) ask(ctx context.Context, names []string) (*kmsg.MetadataResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	if names != nil {
		req.Topics = []kmsg.MetadataRequestTopic{}
	}
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = new(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, c.client)
	if err != nil {
		return nil, wrap("kafka.Metadata", err)
	}
	if resp.ClusterID != nil {
		c.mu.Lock()
		c.id = *resp.ClusterID
		c.mu.Unlock()
	}
	return resp, nil
}

// ID tells the cluster's id, which does not change.
func (c *Cluster) ID(ctx context.Context) (string, error) {
	known := func() string {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return c.id
	}
	if id := known(); id != "" {
		return id, nil
	}
	if _, err := c.ask(ctx, []string{}); err != nil {
		return "", err
	}
	return known(), nil
}

// Brokers lists the ids of the brokers that are up, sorted.
func (c *Cluster) Brokers(ctx context.Context) ([]int32, error) {
	resp, err := c.ask(ctx, []string{})
	if err != nil {
		return nil, err
	}
	ids := make([]int32, len(resp.Brokers))
	for i, b := range resp.Brokers {
		ids[i] = b.NodeID
	}
	slices.Sort(ids)
	return ids, nil
}

// Topics lists the names of all topics but our own and Kafka's, sorted.
func (c *Cluster) Topics(ctx context.Context) ([]string, error) {
	if err := c.Refresh(ctx); err != nil {
		return nil, err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	names := []string{}
	for name := range c.topics {
		if !event.Own(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Topic describes one topic with its partitions and configuration.
func (c *Cluster) Topic(ctx context.Context, name string) (event.Topic, error) {
	const op = "kafka.Topic"
	if event.Own(name) {
		return event.Topic{}, topicNotFound(op, name)
	}
	meta, err := c.fresh(ctx, name)
	if err != nil {
		return event.Topic{}, err
	}
	t := event.Topic{Name: name, Configs: make(map[string]string)}
	for _, p := range meta.Partitions {
		t.Partitions = append(t.Partitions, event.Partition{Number: p.Partition, Leader: p.Leader, Replicas: p.Replicas, InSync: p.ISR})
	}
	slices.SortFunc(t.Partitions, func(a, b event.Partition) int { return int(a.Number - b.Number) })
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	configs, err := c.admin.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return event.Topic{}, wrap(op, err)
	}
	for _, resource := range configs {
		if resource.Err != nil {
			return event.Topic{}, wrap(op, resource.Err)
		}
		for _, config := range resource.Configs {
			if !config.Sensitive {
				t.Configs[config.Key] = config.MaybeValue()
			}
		}
	}
	return t, nil
}

// Offsets tells a partition's first offset and the offset that its next record will have.
func (c *Cluster) Offsets(ctx context.Context, tp event.TopicPartition) (event.Bounds, error) {
	all, err := c.Bounds(ctx, tp.Topic)
	if err != nil {
		return event.Bounds{}, err
	}
	bounds, ok := all[tp.Partition]
	if !ok {
		return event.Bounds{}, partitionNotFound("kafka.Offsets", tp, len(all))
	}
	return bounds, nil
}

func topicNotFound(op, topic string) error {
	return event.Errorf(event.NotFound, codeTopicNotFound, op, "there is no topic %q; GET /topics lists those that there are", topic)
}

func partitionNotFound(op string, tp event.TopicPartition, n int) error {
	return event.Errorf(event.NotFound, codePartitionNotFound, op, "topic %q has no partition %d; it has %d, from 0 to %d", tp.Topic, tp.Partition, n, n-1)
}
