package kafka_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// adminFor starts a cluster with an Admin, and a client for what a test does beside it.
func adminFor(t *testing.T, opts ...kfake.Opt) (*kafka.Admin, *kgo.Client, *kfake.Cluster) {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client := clientFor(t, cluster)
	return kafka.NewAdmin(clientFor(t, cluster)), client, cluster
}

func clientFor(t *testing.T, cluster *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kafka.NewClient(cluster.ListenAddrs(), append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// produceAt writes one record a timestamp, in order.
func produceAt(t *testing.T, client *kgo.Client, topic string, partition int32, times ...time.Time) {
	t.Helper()
	for _, at := range times {
		r := &kgo.Record{Topic: topic, Partition: partition, Timestamp: at, Value: []byte("v")}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// member joins a group and returns when it has partitions.
func member(t *testing.T, cluster *kfake.Cluster, group string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	assigned := make(chan struct{}, 10)
	client := clientFor(t, cluster, append(opts, kgo.ConsumerGroup(group), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(context.Context, *kgo.Client, map[string][]int32) { assigned <- struct{}{} }))...)
	go func() { // a group makes progress while its members poll
		for !client.PollFetches(t.Context()).IsClientClosed() && t.Context().Err() == nil {
		}
	}()
	select {
	case <-assigned:
	case <-time.After(30 * time.Second):
		t.Fatalf("group %s: no partitions within 30s", group)
	}
	return client
}

func commit(t *testing.T, client *kgo.Client, group string, offsets ...event.Position) {
	t.Helper()
	all := make(kadm.Offsets)
	for _, o := range offsets {
		all.AddOffset(o.Topic, o.Partition, o.Offset, -1)
	}
	if err := kadm.NewClient(client).CommitAllOffsets(t.Context(), group, all); err != nil {
		t.Fatal(err)
	}
}

func position(topic string, partition int32, offset int64) event.Position {
	return event.Position{TopicPartition: event.TopicPartition{Topic: topic, Partition: partition}, Offset: offset}
}

func TestAdminReadsGroupsOfEveryProtocol(t *testing.T) {
	admin, client, cluster := adminFor(t, kfake.NumBrokers(3), kfake.SeedTopics(3, "a"), kfake.SeedTopics(2, "b"))
	member(t, cluster, "classic", kgo.ConsumeTopics("a"))
	member(t, cluster, "next", kgo.ConsumeTopics("b"), kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer()))
	commit(t, client, "empty", position("a", 2, 7), position("a", 0, 5), position("b", 1, 0))
	commit(t, client, "gone", position("a", 0, 1))
	if _, err := kadm.NewClient(client).DeleteGroup(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}

	groups, err := admin.Groups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]event.GroupState)
	for _, g := range groups {
		for _, partitions := range g.Assigned {
			slices.Sort(partitions)
		}
		got[g.Name] = g
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"classic", "empty", "next"}) {
		t.Fatalf("groups are %v", names)
	}
	if g := got["classic"]; g.Protocol != "classic" || g.State != "Stable" || g.Members != 1 || len(g.Committed) != 0 ||
		!slices.Equal(g.Subscribed, []string{"a"}) || !slices.Equal(g.Assigned["a"], []int32{0, 1, 2}) {
		t.Errorf("classic is %+v", g)
	}
	if g := got["next"]; g.Protocol != "consumer" || g.Members != 1 || len(g.Committed) != 0 ||
		!slices.Equal(g.Subscribed, []string{"b"}) {
		t.Errorf("next is %+v", g)
	}
	if g := got["empty"]; g.State != "Empty" || g.Members != 0 || len(g.Committed) != 2 ||
		!slices.Equal(g.Committed["a"], []event.CommittedOffset{{Partition: 0, Offset: 5}, {Partition: 2, Offset: 7}}) ||
		!slices.Equal(g.Committed["b"], []event.CommittedOffset{{Partition: 1, Offset: 0}}) {
		t.Errorf("empty is %+v", g)
	}
}

func TestAdminReadsOffsets(t *testing.T) {
	admin, client, cluster := adminFor(t, kfake.NumBrokers(3), kfake.SeedTopics(3, "a"))
	now := time.Now()
	produceAt(t, client, "a", 0, now, now, now, now)
	produceAt(t, client, "a", 1, now)
	cut := make(kadm.Offsets)
	cut.AddOffset("a", 0, 3, -1)
	if _, err := kadm.NewClient(client).DeleteRecords(t.Context(), cut); err != nil {
		t.Fatal(err)
	}
	state, err := admin.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(state.Brokers) != 3 || len(state.Addresses) != 3 || !slices.Contains(cluster.ListenAddrs(), state.Addresses[state.Brokers[0]]) || len(state.Topics) != 1 || len(state.Topics[0].Partitions) != 3 || state.Topics[0].ID == [16]byte{} {
		t.Errorf("the cluster is %+v", state)
	}
	leaderless := event.TopicState{Topic: event.Topic{Name: "b", Partitions: []event.Partition{{Leader: -1}}}}
	offsets, err := admin.Offsets(t.Context(), append(state.Topics, leaderless))
	if err != nil {
		t.Fatal(err)
	}
	if want := []event.OffsetRange{{Start: 3, End: 4}, {Start: 0, End: 1}, {Start: 0, End: 0}}; !slices.Equal(offsets["a"], want) {
		t.Errorf("offsets are %v, want %v", offsets["a"], want)
	}
	if want := []event.OffsetRange{{Start: -1, End: -1}}; !slices.Equal(offsets["b"], want) {
		t.Errorf("offsets without a leader are %v, want %v", offsets["b"], want)
	}
}

func TestAdminReadsTheTimesOfRecords(t *testing.T) {
	const partitions = 40
	admin, client, _ := adminFor(t, kfake.NumBrokers(2), kfake.SeedTopics(partitions, "a"))
	base := time.UnixMilli(1_700_000_000_000)
	var asked []event.Position
	for n := range int32(partitions) {
		produceAt(t, client, "a", n, base, base.Add(time.Duration(n)*time.Minute), base.Add(time.Hour))
		asked = append(asked, position("a", n, 1))
	}
	times, err := admin.RecordTimes(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	for n, p := range asked {
		if want := base.Add(time.Duration(n) * time.Minute); !times[p].Equal(want) {
			t.Errorf("the record at %v is of %v, want %v", p, times[p], want)
		}
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	none := position("no-such-topic", 0, 0)
	times, err = admin.RecordTimes(ctx, []event.Position{none, asked[3]})
	if _, ok := times[none]; ok || err != nil || !times[asked[3]].Equal(base.Add(3*time.Minute)) {
		t.Errorf("beside a topic that does not exist: %v, %v", times, err)
	}
}

func TestAdminChangesTopics(t *testing.T) {
	admin, _, _ := adminFor(t, kfake.NumBrokers(1))
	ctx := t.Context()
	spec := event.TopicSpec{Name: "a", Partitions: 2, Replication: 1, Configs: map[string]string{"retention.ms": "1000"}}
	for _, step := range []struct {
		name string
		do   func() error
		want event.Kind
	}{
		{"create", func() error { return admin.CreateTopic(ctx, spec) }, ""},
		{"create what exists", func() error { return admin.CreateTopic(ctx, spec) }, event.Conflict},
		{"create a name that reads as another", func() error {
			return errors.Join(admin.CreateTopic(ctx, event.TopicSpec{Name: "x.y", Partitions: 1, Replication: 1}),
				admin.CreateTopic(ctx, event.TopicSpec{Name: "x_y", Partitions: 1, Replication: 1}))
		}, event.Unprocessable},
		{"create with too many replicas", func() error {
			return admin.CreateTopic(ctx, event.TopicSpec{Name: "b", Partitions: 1, Replication: 2})
		}, event.Unprocessable},
		{"raise partitions", func() error { return admin.SetPartitions(ctx, "a", 3) }, ""},
		{"lower partitions", func() error { return admin.SetPartitions(ctx, "a", 1) }, event.Conflict},
		{"partitions of no topic", func() error { return admin.SetPartitions(ctx, "none", 1) }, event.NotFound},
		{"set configs", func() error { return admin.SetTopicConfigs(ctx, "a", map[string]string{"segment.ms": "60000"}) }, ""},
		{"set configs of no topic", func() error { return admin.SetTopicConfigs(ctx, "none", map[string]string{"segment.ms": "1"}) }, event.NotFound},
	} {
		err := step.do()
		var kind event.Kind
		if e, ok := errors.AsType[*event.Error](err); ok {
			kind = e.Kind
		}
		if kind != step.want || (err == nil) != (step.want == "") {
			t.Errorf("%s: %v, want kind %q", step.name, err, step.want)
		}
	}
	configs, err := admin.TopicConfigs(ctx, "a")
	if want := map[string]string{"retention.ms": "1000", "segment.ms": "60000"}; err != nil || !maps.Equal(configs["a"], want) {
		t.Errorf("configs are %v, %v; want %v", configs["a"], err, want)
	}
	if state, err := admin.Cluster(ctx); err != nil || len(state.Topics) != 2 || len(state.Topics[0].Partitions) != 3 {
		t.Errorf("topics are %v, %v", state.Topics, err)
	}
	limit, err := admin.BrokerConfig(ctx, 0, "message.max.bytes")
	if n, _ := strconv.Atoi(limit); err != nil || n < 1_000_000 {
		t.Errorf("message.max.bytes is %q, %v", limit, err)
	}
	if _, err := admin.BrokerConfig(ctx, 0, "no.such"); err == nil {
		t.Error("a setting that there is not has a value")
	}
}

func TestAdminWithoutKafka(t *testing.T) {
	admin, _, cluster := adminFor(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "a"))
	cluster.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	groups, errGroups := admin.Groups(ctx)
	_, errCluster := admin.Cluster(ctx)
	_, errOffsets := admin.Offsets(ctx, []event.TopicState{{Topic: event.Topic{Name: "a", Partitions: []event.Partition{{}}}}})
	for name, err := range map[string]error{
		"groups": errGroups, "cluster": errCluster, "offsets": errOffsets, "create": admin.CreateTopic(ctx, event.TopicSpec{Name: "b"}),
	} {
		if e, ok := errors.AsType[*event.Error](err); !ok || e.Kind != event.Unavailable {
			t.Errorf("%s: %v, want unavailable", name, err)
		}
	}
	if groups != nil {
		t.Errorf("there are groups: %v", groups)
	}
}
