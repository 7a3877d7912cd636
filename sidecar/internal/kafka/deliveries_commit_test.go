package kafka_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// What is known of a thousand partitions with full windows is more than Kafka takes at once.
func TestACommitOfManyPartitionsIsDivided(t *testing.T) {
	t.Parallel()
	const n = 400
	cluster := clusterFor(t, kfake.NumBrokers(1), kfake.SeedTopics(n, "a"))
	var largest, requests atomic.Int64
	cluster.ControlKey(int16(kmsg.OffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		size := int64(len(req.AppendTo(nil)))
		for before := largest.Load(); size > before && !largest.CompareAndSwap(before, size); before = largest.Load() {
		}
		requests.Add(1)
		return nil, nil, false
	})
	d := delivererFor(t, cluster, "one", nil).run()
	eventually(t, "all are assigned", func() bool { return len(d.has()) == n })
	commits := make(map[event.TopicPartition]event.Commit)
	for p := range int32(n) {
		commits[tp("a", p)] = event.Commit{Offset: int64(p), Metadata: strings.Repeat("m", 3500)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := d.Commit(ctx, commits); err != nil {
		t.Fatal(err)
	}
	if largest.Load() > 1<<20 || requests.Load() != 3 {
		t.Errorf("the largest of %d requests has %d bytes", requests.Load(), largest.Load())
	}
	got, err := kafka.NewCluster(clientFor(t, cluster)).Committed(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	for at, c := range commits {
		if got[at] != c {
			t.Fatalf("of %v %d is committed, with %d bytes; want %d with %d", at, got[at].Offset, len(got[at].Metadata), c.Offset, len(c.Metadata))
		}
	}
}

// The client says once that it does not read a partition, and may say so beside records of others.
func TestAnErrorBesideRecordsIsTheNextPolls(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	fill(t, cluster, 2, 0, 5)
	refuseTheCommitOf(cluster, 1)
	d := delivererFor(t, cluster, "one", nil)
	time.Sleep(2 * time.Second) // until records of partition 0 and the refusal are there, both
	var values []event.Record
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		records, err := d.Poll(ctx, 7)
		cancel()
		if values = append(values, records...); err != nil {
			if got := valuesOf(values); got != numbers(0, 5) || !strings.Contains(err.Error(), "a/1") {
				t.Errorf("it reads %s, and then %v; want %s and an error of a/1", got, err, numbers(0, 5))
			}
			return
		}
	}
	t.Errorf("it reads %s, and no error in 20 s", valuesOf(values))
}

// refuseTheCommitOf has Kafka, once, not tell what is committed of a partition.
func refuseTheCommitOf(cluster *kfake.Cluster, partition int32) {
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(r kmsg.Request) (kmsg.Response, error, bool) {
		req := r.(*kmsg.OffsetFetchRequest)
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		for _, g := range req.Groups {
			group := kmsg.NewOffsetFetchResponseGroup()
			group.Group = g.Group
			for _, t := range g.Topics {
				topic := kmsg.NewOffsetFetchResponseGroupTopic()
				topic.Topic, topic.TopicID = t.Topic, t.TopicID
				for _, p := range t.Partitions {
					in := kmsg.NewOffsetFetchResponseGroupTopicPartition()
					if in.Partition, in.Offset = p, -1; p == partition {
						in.ErrorCode = kerr.TopicAuthorizationFailed.Code
					}
					topic.Partitions = append(topic.Partitions, in)
				}
				group.Topics = append(group.Topics, topic)
			}
			resp.Groups = append(resp.Groups, group)
		}
		return resp, nil, true
	})
}
