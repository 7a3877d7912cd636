package kafka_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/event"
)

// A handle must not be closed under a request that still hands records to it.
func TestFatalErrorUnderLoadReportsEveryRecord(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := make(map[string]int64)
	for w := range 6 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				records := make([]event.Record, 200)
				for i := range records {
					records[i] = event.Record{Topic: "a", Value: fmt.Appendf(nil, "%d/%d/%d", w, n, i)}
				}
				start := time.Now()
				results := p.Produce(t.Context(), time.Time{}, records)
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("a request took %v: its reports did not come", took)
				}
				mu.Lock()
				for i, r := range results {
					if r.Err == nil {
						stored[string(records[i].Value)] = r.Place.Offset
					} else if kindOf(r.Err) != event.Unavailable {
						t.Errorf("a record of the broken producer: %v; want unavailable", r.Err)
					}
				}
				mu.Unlock()
			}
		})
	}
	for range 5 {
		old := p.Handles()
		for _, h := range old {
			h.TestFatalError(ckafka.ErrOutOfOrderSequenceNumber, "made by the test")
		}
		eventually(t, "new handles", func() bool { now := p.Handles(); return now[0] != old[0] && now[1] != old[1] })
	}
	stop()
	wg.Wait()
	at := make(map[int64]string)
	for _, r := range readAll(t, cluster, "a") {
		at[r.Offset] = string(r.Value)
	}
	for value, offset := range stored {
		if at[offset] != value {
			t.Fatalf("%s was reported at offset %d, where %q is", value, offset, at[offset])
		}
	}
}
