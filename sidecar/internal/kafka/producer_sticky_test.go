package kafka_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/event"
)

// A batch's partition is not given the records of the next one: they would wait for its
// acknowledgement, which librdkafka does with all of a core.
func TestEachBatchGoesToAPartitionOfItsOwn(t *testing.T) {
	const (
		linger     = time.Millisecond // openProducer's
		partitions = 50
		batches    = 40
	)
	cluster := clusterFor(t, kfake.SeedTopics(partitions, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 10*time.Second)
	if r := p.Produce(t.Context(), time.Time{}, one("a", "connected"))[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
	s := p.Stream(0, func(int, error) {}) // of the handle that lingers
	began := time.Now()
	for range batches {
		if err := s.Send(t.Context(), event.Record{Topic: "a", Partition: event.AnyPartition, Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
		// Not a sleep, which may take twice as long: the next record comes after this one's linger.
		for handed := time.Now(); time.Since(handed) < linger+linger/5; {
			continue
		}
	}
	took := time.Since(began)
	s.Finish(t.Context())
	same, before := 0, int32(-1)
	for i, r := range s.Results() {
		if r.Err != nil {
			t.Fatalf("record %d: %v", i, r.Err)
		}
		if r.Place.Partition == before {
			same++
		}
		before = r.Place.Partition
	}
	if same > batches/4 { // chance makes one of fifty the same
		t.Errorf("%d of %d batches, one each %v, go to the partition of the one before", same, batches, took/batches)
	}
}
