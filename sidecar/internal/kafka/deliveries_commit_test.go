package kafka_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
