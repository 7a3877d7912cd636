package kafka_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

func wantCode(t *testing.T, what string, err error, kind event.Kind, code int) {
	t.Helper()
	if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != kind || ee.Code != code {
		t.Errorf("%s: %v; want %s, %d", what, err, kind, code)
	}
}

func TestClusterKnowsATopicMadeAMomentAgo(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(3, "a"))
	client := clientFor(t, cluster)
	c := kafka.NewCluster(client)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Partitions(t.Context(), "new"); kindOf(err) != event.NotFound {
		t.Errorf("before it is made: %v", err)
	}
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 2, 1, nil, "new"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Partitions(t.Context(), "new"); n != 2 || err != nil {
		t.Errorf("made a moment ago: %d partitions, %v; want 2", n, err)
	}
	// To ask must not make it.
	_, err := c.Partitions(t.Context(), "nowhere")
	wantCode(t, "unknown topic", err, event.NotFound, 40401)
	if topics, err := c.Topics(t.Context()); err != nil || !slices.Equal(topics, []string{"a", "new"}) {
		t.Errorf("topics are %v, %v", topics, err)
	}
	_, err = c.Partitions(t.Context(), "not a/name")
	wantCode(t, "impossible name", err, event.NotFound, 40401)

	// One that is deleted is gone after the next background check.
	if _, err := kadm.NewClient(client).DeleteTopic(t.Context(), "new"); err != nil {
		t.Fatal(err)
	}
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = c.Partitions(t.Context(), "new")
	wantCode(t, "deleted topic", err, event.NotFound, 40401)
}

func TestTopicsOfOurOwnCannotBeReached(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a", "_postamt.sessions", "__consumer_offsets", "_other"))
	c := kafka.NewCluster(clientFor(t, cluster))
	if topics, err := c.Topics(t.Context()); err != nil || !slices.Equal(topics, []string{"_other", "a"}) {
		t.Errorf("topics are %v, %v", topics, err)
	}
	for _, own := range []string{"_postamt.sessions", "__consumer_offsets"} {
		_, err := c.Partitions(t.Context(), own)
		wantCode(t, "Partitions "+own, err, event.NotFound, 40401)
		_, err = c.Topic(t.Context(), own)
		wantCode(t, "Topic "+own, err, event.NotFound, 40401)
		_, err = c.Bounds(t.Context(), own)
		wantCode(t, "Bounds "+own, err, event.NotFound, 40401)
	}
}

func TestClusterDescribesATopic(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	client := clientFor(t, cluster)
	c := kafka.NewCluster(client)
	if err := kafka.NewAdmin(client).SetTopicConfigs(t.Context(), "a", map[string]string{"retention.ms": "1234567"}); err != nil {
		t.Fatal(err)
	}
	topic, err := c.Topic(t.Context(), "a")
	if err != nil || topic.Name != "a" || len(topic.Partitions) != 2 || topic.Configs["retention.ms"] != "1234567" {
		t.Fatalf("topic is %+v, %v", topic, err)
	}
	for i, p := range topic.Partitions {
		if int(p.Number) != i || p.Leader < 0 || !slices.Contains(p.Replicas, p.Leader) || !slices.Contains(p.InSync, p.Leader) {
			t.Errorf("partition %d is %+v", i, p)
		}
	}
	_, err = c.Topic(t.Context(), "nowhere")
	wantCode(t, "unknown topic", err, event.NotFound, 40401)
	_, err = c.Offsets(t.Context(), event.TopicPartition{Topic: "a", Partition: 2})
	wantCode(t, "unknown partition", err, event.NotFound, 40402)
	_, err = c.Offsets(t.Context(), event.TopicPartition{Topic: "nowhere"})
	wantCode(t, "offsets of an unknown topic", err, event.NotFound, 40401)
}

func TestClusterWithoutKafka(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(3, "a"))
	c := kafka.NewCluster(clientFor(t, cluster))
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	cluster.Close()
	if n, err := c.Partitions(t.Context(), "a"); n != 3 || err != nil {
		t.Errorf("a topic that is known: %d partitions, %v; want 3", n, err)
	}
	var asking sync.WaitGroup // each of them waits for its own timeout
	for what, ask := range map[string]func() error{
		"unknown topic": func() error { _, err := c.Partitions(t.Context(), "b"); return err },
		"check":         func() error { return c.Refresh(t.Context()) },
		"topics":        func() error { _, err := c.Topics(t.Context()); return err },
		"topic":         func() error { _, err := c.Topic(t.Context(), "a"); return err },
		"offsets":       func() error { _, err := c.Bounds(t.Context(), "a"); return err },
		"committed":     func() error { _, err := c.Committed(t.Context(), "g"); return err },
	} {
		asking.Go(func() { wantCode(t, what, ask(), event.Unavailable, 50302) })
	}
	asking.Wait()
}

func TestErrorsOfRequestsHaveTheirKind(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	c := kafka.NewCluster(clientFor(t, cluster))
	for _, tc := range []struct {
		err  *kerr.Error
		kind event.Kind
		code int
	}{
		{kerr.UnknownTopicOrPartition, event.NotFound, 40401},
		{kerr.TopicAuthorizationFailed, event.Forbidden, 40301},
		{kerr.UnknownServerError, event.Unavailable, 50302},
	} {
		fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "b", Err: tc.err, Count: -1})
		_, err := c.Partitions(t.Context(), "b")
		wantCode(t, tc.err.Message, err, tc.kind, tc.code)
		fault.Remove()
	}
}
