package kafka_test

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// inFlight counts as the user of a stream does.
type inFlight struct{ records, bytes, failed atomic.Int64 }

func (f *inFlight) reported(size int, err error) {
	f.records.Add(-1)
	f.bytes.Add(-int64(size))
	if err != nil {
		f.failed.Add(1)
	}
}

func (f *inFlight) send(ctx context.Context, s *kafka.Stream, rec event.Record) error {
	f.records.Add(1)
	f.bytes.Add(int64(rec.Size()))
	return s.Send(ctx, rec)
}

func TestAStreamKeepsItsOrderAndItsResults(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, reg := producerFor(t, cluster.ListenAddrs(), 10*time.Second)
	var f inFlight
	s := p.Stream(0, f.reported)
	const n = 5000 // more than may be open
	refused := event.Errorf(event.Invalid, 0, "test", "no record")
	for i := range n {
		switch i % 10 {
		case 3:
			s.Skip(refused)
		case 7:
			if err := f.send(t.Context(), s, event.Record{Topic: "a", Partition: 9}); err != nil {
				t.Fatal(err)
			}
		default:
			if err := f.send(t.Context(), s, event.Record{Topic: "a", Value: fmt.Append(nil, i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.Finish(t.Context())
	if f.records.Load() != 0 || f.bytes.Load() != 0 || f.failed.Load() != n/10 {
		t.Errorf("after the end %d records and %d bytes are in flight, %d have failed", f.records.Load(), f.bytes.Load(), f.failed.Load())
	}
	records := readAll(t, cluster, "a")
	next, seen := int64(0), 0
	for i, r := range s.Results() {
		seen++
		switch i % 10 {
		case 3:
			if kindOf(r.Err) != event.Invalid {
				t.Fatalf("result %d is %+v; want what Skip was told", i, r)
			}
		case 7:
			if kindOf(r.Err) != event.Unavailable {
				t.Fatalf("result %d is %+v; want unavailable: there is no such partition", i, r)
			}
		default:
			if r.Err != nil || r.Place.Offset != next || string(records[next].Value) != fmt.Sprint(i) {
				t.Fatalf("result %d is %+v; want offset %d, where %s is", i, r, next, records[next].Value)
			}
			next++
		}
	}
	if seen != n || len(records) != n*8/10 {
		t.Errorf("%d results and %d records of %d", seen, len(records), n)
	}
	const want = `# HELP postamt_produce_records_total Records handed to Kafka, by topic and result. result: stored, or the kind of the error.
# TYPE postamt_produce_records_total counter
postamt_produce_records_total{result="stored",topic="a"} 4000
postamt_produce_records_total{result="unavailable",topic="a"} 500
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "postamt_produce_records_total"); err != nil {
		t.Error(err)
	}
}

// slowly makes the broker take its time for each produce request.
func slowly(cluster *kfake.Cluster, d time.Duration) {
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { time.Sleep(d) })
		return nil, nil, false
	})
}

func TestAStreamFasterThanKafkaWaitsInBoundedMemory(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"), kfake.BlackholeProduce())
	slowly(cluster, 20*time.Millisecond)
	p, _ := producerFor(t, cluster.ListenAddrs(), 20*time.Second)
	var f inFlight
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := p.Stream(0, f.reported)
	value := make([]byte, 50_000)
	most := int64(0)
	for range 1000 { // 50 MB
		if err := f.send(t.Context(), s, event.Record{Topic: "a", Value: value}); err != nil {
			t.Fatal(err)
		}
		most = max(most, f.bytes.Load())
	}
	if most > 4<<20+int64(len(value)) {
		t.Errorf("%d bytes were open at once; want at most 4 MiB", most)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap has grown by %d bytes over 50 MB of records", grown)
	}
	s.Finish(t.Context())
	for i, r := range s.Results() {
		if r.Err != nil {
			t.Fatalf("result %d is %v", i, r.Err)
		}
	}
}

func TestAStreamEndsWhenItsHandleIsReplaced(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 10*time.Second)
	var f inFlight
	s := p.Stream(0, f.reported)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sent := 0
	var err error
	for ; err == nil && sent < 1_000_000; sent++ {
		if sent == 1000 {
			for _, h := range p.Handles() {
				h.TestFatalError(ckafka.ErrOutOfOrderSequenceNumber, "made by the test")
			}
		}
		err = f.send(ctx, s, event.Record{Topic: "a", Value: fmt.Append(nil, sent)})
	}
	if kindOf(err) != event.Unavailable || ctx.Err() != nil {
		t.Fatalf("after %d records on a broken handle: %v; want unavailable", sent, err)
	}
	s.Finish(ctx)
	if ctx.Err() != nil {
		t.Fatal("the last report did not come")
	}
	stored := make(map[int64]int)
	last := 0
	for i, r := range s.Results() {
		last = i
		if r.Err == nil {
			stored[r.Place.Offset] = i
		} else if kindOf(r.Err) != event.Unavailable {
			t.Errorf("result %d is %v; want unavailable", i, r.Err)
		}
	}
	if last != sent-2 {
		t.Errorf("the last of %d results is %d", sent-1, last)
	}
	if f.records.Load() != 1 { // the one that was not taken
		t.Errorf("%d records were never reported", f.records.Load()-1)
	}
	for _, r := range readAll(t, cluster, "a") {
		if i, ok := stored[r.Offset]; ok && string(r.Value) != fmt.Sprint(i) {
			t.Errorf("record %d was reported at offset %d, where %s is", i, r.Offset, r.Value)
		}
	}
	eventually(t, "another stream goes on", func() bool {
		again := p.Stream(0, func(int, error) {})
		err := again.Send(t.Context(), event.Record{Topic: "a"})
		again.Finish(t.Context())
		for _, r := range again.Results() {
			err = r.Err
		}
		return err == nil
	})
}

func TestAStreamThatKafkaDoesNotAcknowledgeEnds(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 3*time.Second)
	var f inFlight
	s := p.Stream(0, f.reported)
	if err := f.send(t.Context(), s, event.Record{Topic: "a"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is stored", func() bool { return f.records.Load() == 0 })
	fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	defer fault.Remove()
	var err error
	start, sent := time.Now(), 0
	for ; err == nil; sent++ {
		err = f.send(t.Context(), s, event.Record{Topic: "a"})
	}
	if took := time.Since(start); kindOf(err) != event.Unavailable || took > 20*time.Second || sent > 3000 {
		t.Errorf("%v after %d records and %v; want unavailable once the first is given up after 3s", err, sent, took)
	}
	s.Finish(t.Context())
	for i, r := range s.Results() {
		if (i == 0) != (r.Err == nil) || i > 0 && kindOf(r.Err) != event.Unavailable {
			t.Fatalf("result %d is %+v", i, r)
		}
	}
}

// Neither the end of a request nor a shutdown loses sight of what is open.
func TestWhatIsOpenAtTheEndMayBeStored(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	release := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	p, _ := openProducer(t, cluster.ListenAddrs(), 10*time.Second)
	var f inFlight
	s := p.Stream(0, f.reported)
	if err := f.send(t.Context(), s, event.Record{Topic: "a", Value: []byte("late")}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	s.Finish(ctx)
	result := func() (err error) {
		for _, r := range s.Results() {
			err = r.Err
		}
		return err
	}
	if err := result(); kindOf(err) != event.Unavailable || !strings.Contains(err.Error(), "it may be stored") {
		t.Errorf("what is open at the end of ctx is %v", err)
	}
	if f.records.Load() != 1 {
		t.Error("it no longer counts as in flight, and is")
	}
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	p.Close(t.Context())
	if f.records.Load() != 0 || f.failed.Load() != 0 {
		t.Errorf("after Close %d records are in flight, %d have failed", f.records.Load(), f.failed.Load())
	}
	if kindOf(result()) != event.Unavailable {
		t.Error("the result has changed after it was given")
	}
	if got := readAll(t, cluster, "a"); len(got) != 1 || string(got[0].Value) != "late" {
		t.Errorf("after Close there are %d records", len(got))
	}
	closed := p.Stream(0, f.reported)
	f.records.Add(1)
	if err := closed.Send(t.Context(), event.Record{Topic: "a"}); err != nil && kindOf(err) != event.Unavailable {
		t.Errorf("a stream of a closed producer: %v", err)
	}
	closed.Finish(t.Context())
	if f.records.Load() != 0 {
		t.Error("a record of a closed producer is never reported")
	}
}

func TestCloseGivesUpWhatKafkaDoesNotTake(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := openProducer(t, cluster.ListenAddrs(), 30*time.Second)
	if r := p.Produce(t.Context(), time.Time{}, one("a", "v"))[0]; r.Err != nil {
		t.Fatal(r.Err)
	}
	cluster.Close()
	var f inFlight
	s := p.Stream(0, f.reported)
	for range 10 {
		if err := f.send(t.Context(), s, event.Record{Topic: "a", Value: []byte("v")}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	p.Close(ctx)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Close took %v", took)
	}
	s.Finish(t.Context())
	for i, r := range s.Results() {
		if kindOf(r.Err) != event.Unavailable {
			t.Errorf("result %d is %v; want unavailable", i, r.Err)
		}
	}
	if f.records.Load() != 0 || f.bytes.Load() != 0 || f.failed.Load() != 10 {
		t.Errorf("%d records, %d bytes in flight, %d failed", f.records.Load(), f.bytes.Load(), f.failed.Load())
	}
}

func BenchmarkStream(b *testing.B) {
	cluster := clusterFor(b, kfake.SeedTopics(3, "a"), kfake.BlackholeProduce())
	p, _ := producerFor(b, cluster.ListenAddrs(), 10*time.Second)
	value := bytes.Repeat([]byte("v"), 200)
	s := p.Stream(0, func(int, error) {})
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Send(b.Context(), event.Record{Topic: "a", Partition: event.AnyPartition, Value: value}); err != nil {
			b.Fatal(err)
		}
	}
	s.Finish(b.Context())
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
