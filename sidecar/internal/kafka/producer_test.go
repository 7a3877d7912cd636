package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

func clusterFor(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// producerFor makes a Producer that is closed at the test's end.
func producerFor(t testing.TB, servers []string, timeout time.Duration) (*kafka.Producer, *prometheus.Registry) {
	t.Helper()
	p, reg := openProducer(t, servers, timeout)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		p.Close(ctx)
	})
	return p, reg
}

func openProducer(t testing.TB, servers []string, timeout time.Duration) (*kafka.Producer, *prometheus.Registry) {
	t.Helper()
	return openProducerWith(t, kafka.ProducerOptions{Servers: servers, Timeout: timeout})
}

// openProducerWith gives the options that are left out what they have in the other tests.
func openProducerWith(t testing.TB, o kafka.ProducerOptions) (*kafka.Producer, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	o.Linger, o.MaxRecordBytes, o.MaxQueuedBytes = time.Millisecond, 16<<20, 64<<20
	p, err := kafka.NewProducer(o, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	return p, reg
}

// readAll reads every record of a topic, in order within a partition.
func readAll(t *testing.T, cluster *kfake.Cluster, topic string) []*kgo.Record {
	t.Helper()
	admin := kafka.NewCluster(clientFor(t, cluster))
	bounds, err := admin.Bounds(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, b := range bounds {
		want += int(b.End - b.Beginning)
	}
	client := clientFor(t, cluster, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < want {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d records of %s within 10s", len(out), want, topic)
		}
		out = append(out, fetches.Records()...)
	}
	slices.SortStableFunc(out, func(a, b *kgo.Record) int { return int(a.Partition - b.Partition) })
	return out
}

func one(topic, value string) []event.Record {
	return []event.Record{{Topic: topic, Partition: event.AnyPartition, Value: []byte(value)}}
}

// eventually polls until ok, which it must be within 15 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15s: %s", what)
		}
	}
}

func kindOf(err error) event.Kind {
	if ee := (*event.Error)(nil); errors.As(err, &ee) {
		return ee.Kind
	}
	return ""
}

func TestWhatIsProducedComesOutUnchanged(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, reg := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	at := time.UnixMilli(1767323045678)
	records := []event.Record{
		{Value: every, Key: every},
		{Key: nil, Value: nil},
		{Key: []byte{}, Value: []byte{}},
		{Value: []byte("v"), Timestamp: at.Add(999 * time.Microsecond), Headers: []event.Header{
			{Key: "h", Value: every}, {Key: "h", Value: nil}, {Key: "h", Value: []byte{}}, {Key: "ü"}, {Key: "H", Value: []byte("x")},
		}},
	}
	before := time.Now().Truncate(time.Millisecond)
	for i := range records {
		records[i].Topic, records[i].Partition = "a", event.AnyPartition
	}
	results := p.Produce(t.Context(), time.Time{}, records)
	got := readAll(t, cluster, "a")
	if len(got) != len(records) {
		t.Fatalf("%d records of %d", len(got), len(records))
	}
	same := func(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
	for i, r := range records {
		if results[i].Err != nil || results[i].Place.Offset != int64(i) || results[i].Place.Topic != "a" || !results[i].Place.Timestamp.Equal(got[i].Timestamp) {
			t.Errorf("result %d is %+v; the record has %v", i, results[i], got[i].Timestamp)
		}
		if !same(got[i].Key, r.Key) || !same(got[i].Value, r.Value) || len(got[i].Headers) != len(r.Headers) {
			t.Fatalf("record %d is %+v; want %+v", i, got[i], r)
		}
		for j, h := range r.Headers {
			if got[i].Headers[j].Key != h.Key || !same(got[i].Headers[j].Value, h.Value) {
				t.Errorf("header %d is %+v; want %+v", j, got[i].Headers[j], h)
			}
		}
	}
	if !got[3].Timestamp.Equal(at) {
		t.Errorf("the timestamp is %v; want %v", got[3].Timestamp, at)
	}
	if now := time.Now(); got[0].Timestamp.Before(before) || got[0].Timestamp.After(now) {
		t.Errorf("without a timestamp it is %v; want between %v and %v", got[0].Timestamp, before, now)
	}
	if n := testutil.CollectAndCount(reg, "postamt_produce_duration_seconds"); n != 1 {
		t.Errorf("%d histograms of the duration", n)
	}
	wantStored := `# HELP postamt_produce_records_total Records handed to Kafka, by topic and result. result: stored, or the kind of the error.
# TYPE postamt_produce_records_total counter
postamt_produce_records_total{result="stored",topic="a"} 4
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(wantStored), "postamt_produce_records_total"); err != nil {
		t.Error(err)
	}
}

// The hashes are those of Kafka's own tests of org.apache.kafka.common.utils.Utils.murmur2,
// and of librdkafka's for the empty key.
func TestKeysLandWhereJavaClientsPutThem(t *testing.T) {
	t.Parallel()
	const partitions = 7
	cluster := clusterFor(t, kfake.SeedTopics(partitions, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107, "": 0x106e08d9,
	} {
		result := p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Partition: event.AnyPartition, Key: []byte(key)}})[0]
		if want := (hash & 0x7fffffff) % partitions; result.Err != nil || result.Place.Partition != want {
			t.Errorf("key %q is at %+v; want partition %d", key, result, want)
		}
	}
	// Records without a key spread, and a named partition is not the partitioner's to choose.
	seen := make(map[int32]bool)
	eventually(t, "records without a key reach a third partition", func() bool {
		seen[p.Produce(t.Context(), time.Time{}, one("a", "v"))[0].Place.Partition] = true
		return len(seen) > 2
	})
	named := p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Partition: 5, Key: []byte("21")}})[0]
	if named.Err != nil || named.Place.Partition != 5 {
		t.Errorf("the named partition is %+v; want 5", named)
	}
}

func TestResultsAreInOrderWhenSomeFail(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(2, "a"))
	p, reg := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	const n = 300
	records := make([]event.Record, n)
	for i := range records {
		records[i] = event.Record{Topic: "a", Partition: int32(i % 3), Value: []byte(strconv.Itoa(i))} // there is no 2
	}
	results := p.Produce(t.Context(), time.Time{}, records)
	for i, r := range results {
		switch {
		// Package httpapi has asked for metadata: there is such a partition, for all it knows.
		case i%3 == 2 && kindOf(r.Err) != event.Unavailable:
			t.Fatalf("result %d is %+v; want unavailable", i, r)
		case i%3 < 2 && (r.Err != nil || r.Place.Partition != int32(i%3) || r.Place.Offset != int64(i/3)):
			t.Fatalf("result %d is %+v; want partition %d, offset %d", i, r, i%3, i/3)
		}
	}
	for i, r := range readAll(t, cluster, "a") { // 0, 3, 6, … and then 1, 4, 7, …
		if want := strconv.Itoa(i%(n/3)*3 + i/(n/3)); string(r.Value) != want {
			t.Fatalf("record %d is %s; want %s", i, r.Value, want)
		}
	}
	if got := p.Produce(t.Context(), time.Time{}, one("a", "after"))[0]; got.Err != nil {
		t.Errorf("after failures: %v", got.Err)
	}
	const want = `# HELP postamt_produce_records_total Records handed to Kafka, by topic and result. result: stored, or the kind of the error.
# TYPE postamt_produce_records_total counter
postamt_produce_records_total{result="stored",topic="a"} 201
postamt_produce_records_total{result="unavailable",topic="a"} 100
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "postamt_produce_records_total"); err != nil {
		t.Error(err)
	}
	if got := p.Produce(t.Context(), time.Time{}, nil); len(got) != 0 {
		t.Errorf("no records give %v", got)
	}
}

// Package httpapi asks for metadata first: this is what is left when a topic is deleted
// between that and the hand-over.
func TestUnknownTopicIsNotFound(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 8*time.Second)
	result := p.Produce(t.Context(), time.Time{}, one("nowhere", "v"))[0]
	if kindOf(result.Err) != event.NotFound {
		t.Errorf("an unknown topic is %v", result.Err)
	}
}

func TestRecordTooLargeFailsAlone(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 10*time.Second)
	large := bytes.Repeat([]byte("x"), 2<<20) // over max.message.bytes, below the producer's own bound
	var wg sync.WaitGroup
	errs := make([]error, 40)
	for i := range errs {
		wg.Go(func() {
			value := []byte("small")
			if i%10 == 5 {
				value = large
			}
			errs[i] = p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Partition: 0, Value: value}})[0].Err
		})
	}
	wg.Wait()
	for i, err := range errs {
		if i%10 == 5 {
			if kindOf(err) != event.TooLarge {
				t.Errorf("a record of 2 MiB: %v; want too_large", err)
			}
		} else if err != nil {
			t.Errorf("its small neighbour: %v", err)
		}
	}
	mixed := p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Value: []byte("1")}, {Topic: "a", Value: large}, {Topic: "a", Value: []byte("2")}})
	if mixed[0].Err != nil || kindOf(mixed[1].Err) != event.TooLarge || mixed[2].Err != nil {
		t.Errorf("small, large, small in one request: %v, %v, %v", mixed[0].Err, mixed[1].Err, mixed[2].Err)
	}
	huge := p.Produce(t.Context(), time.Time{}, []event.Record{{Topic: "a", Value: make([]byte, 17<<20)}})
	if kindOf(huge[0].Err) != event.TooLarge {
		t.Errorf("over the producer's own bound: %v; want too_large", huge[0].Err)
	}
}

func TestKafkaAwayIsUnavailableInTimeAndComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "a"), kfake.DataDir(dir), kfake.SyncWrites())
	if err != nil {
		t.Fatal(err)
	}
	servers := first.ListenAddrs()
	p, _ := producerFor(t, servers, time.Second)
	eventually(t, "a first record is stored", func() bool { return p.Produce(t.Context(), time.Time{}, one("a", "0"))[0].Err == nil })
	first.Close()

	start := time.Now()
	for _, r := range p.Produce(t.Context(), time.Time{}, append(one("a", "lost"), one("a", "lost")...)) {
		if kindOf(r.Err) != event.Unavailable {
			t.Errorf("Kafka is away: %v; want unavailable", r.Err)
		}
	}
	if took := time.Since(start); took < 500*time.Millisecond || took > 5*time.Second {
		t.Errorf("it took %v to give up after 1s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start = time.Now()
	if r := p.Produce(ctx, time.Time{}, one("a", "lost"))[0]; kindOf(r.Err) != event.Unavailable || time.Since(start) > 500*time.Millisecond {
		t.Errorf("the request's deadline of 50ms: %v after %v", r.Err, time.Since(start))
	}

	start = time.Now()
	r := p.Produce(t.Context(), start.Add(50*time.Millisecond), one("a", "lost"))[0]
	if took := time.Since(start); kindOf(r.Err) != event.Unavailable || !errors.Is(r.Err, context.DeadlineExceeded) || took < 50*time.Millisecond {
		t.Errorf("50ms to wait: %v after %v", r.Err, took)
	}

	_, port, _ := strings.Cut(servers[0], ":")
	n, _ := strconv.Atoi(port)
	clusterAgain := clusterFor(t, kfake.DataDir(dir), kfake.Ports(n))
	eventually(t, "the same producer stores records again", func() bool {
		return p.Produce(t.Context(), time.Time{}, one("a", "again"))[0].Err == nil
	})
	if got := readAll(t, clusterAgain, "a"); string(got[0].Value) != "0" || string(got[len(got)-1].Value) != "again" {
		t.Errorf("%d records, from %s to %s", len(got), got[0].Value, got[len(got)-1].Value)
	}
}

func TestErrorsOfKafkaHaveTheirKind(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	patient, _ := producerFor(t, cluster.ListenAddrs(), 30*time.Second) // what is final comes at once, on a slow machine a little later
	hasty, _ := producerFor(t, cluster.ListenAddrs(), time.Second)
	for _, tc := range []struct {
		err  *kerr.Error
		want event.Kind
	}{
		{kerr.InvalidTimestamp, event.Unavailable}, // the records are of now: the clocks differ
		{kerr.InvalidRecord, event.Unprocessable},
		{kerr.PolicyViolation, event.Unprocessable},
		{kerr.MessageTooLarge, event.TooLarge},
		{kerr.TopicAuthorizationFailed, event.Forbidden},
		{kerr.NotEnoughReplicas, event.Unavailable}, // repeated until the timeout
		{kerr.KafkaStorageError, event.Unavailable},
	} {
		p := patient
		if tc.want == event.Unavailable && tc.err != kerr.InvalidTimestamp {
			p = hasty
		}
		fault := cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "a", Err: tc.err, Count: -1})
		if got := p.Produce(t.Context(), time.Time{}, one("a", "v"))[0].Err; kindOf(got) != tc.want {
			t.Errorf("%s gives %v; want %s", tc.err.Message, got, tc.want)
		}
		fault.Remove()
		eventually(t, "records flow after "+tc.err.Message, func() bool { return p.Produce(t.Context(), time.Time{}, one("a", "v"))[0].Err == nil })
	}
}

// A client must not take a record for bad that Kafka refuses for the clock of the machine.
func TestARefusedTimestampIsTheRecordsUnlessItIsOfNow(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 30*time.Second)
	cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "a", Err: kerr.InvalidTimestamp, Count: -1})
	for name, tc := range map[string]struct {
		timestamp time.Time
		want      event.Kind
	}{
		"none":           {time.Time{}, event.Unavailable},
		"now":            {time.Now(), event.Unavailable},
		"a year ago":     {time.Now().AddDate(-1, 0, 0), event.Unprocessable},
		"in two hours":   {time.Now().Add(2 * time.Hour), event.Unprocessable},
		"before Kafka's": {time.UnixMilli(1), event.Unprocessable},
	} {
		r := event.Record{Topic: "a", Partition: event.AnyPartition, Value: []byte("v"), Timestamp: tc.timestamp}
		if got := p.Produce(t.Context(), time.Time{}, []event.Record{r})[0].Err; kindOf(got) != tc.want {
			t.Errorf("Produce, timestamp %s: %v; want %s", name, got, tc.want)
		}
		stream := p.Stream(0, func(int, error) {})
		if err := stream.Send(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		stream.Finish(t.Context())
		for _, got := range stream.Results() {
			if kindOf(got.Err) != tc.want {
				t.Errorf("Stream, timestamp %s: %v; want %s", name, got.Err, tc.want)
			}
		}
	}
}

// Kafka refuses a batch as a whole: the records beside the one that it does not take may be repeated.
func TestABadRecordDoesNotMakeTheOthersOfItsBatchBad(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	cluster.ControlKey(int16(kmsg.Produce), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		req := kreq.(*kmsg.ProduceRequest)
		resp := req.ResponseKind().(*kmsg.ProduceResponse)
		for _, t := range req.Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = t.Topic, t.TopicID
			for _, p := range t.Partitions {
				partition := kmsg.NewProduceResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p.Partition, kerr.InvalidRecord.Code
				// Of one bad record alone librdkafka does not tell the others apart.
				partition.ErrorRecords = []kmsg.ProduceResponseTopicPartitionErrorRecord{{RelativeOffset: 0}, {RelativeOffset: 3}}
				topic.Partitions = append(topic.Partitions, partition)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp, nil, true
	})
	records := make([]event.Record, 50)
	for i := range records {
		records[i] = one("a", "v")[0]
	}
	bad, beside := 0, 0
	for _, r := range p.Produce(t.Context(), time.Time{}, records) {
		switch kindOf(r.Err) {
		case event.Unprocessable:
			bad++
		case event.Unavailable:
			if beside++; !strings.Contains(r.Err.Error(), "it is not stored; repeat the request") {
				t.Error(r.Err)
			}
		default:
			t.Errorf("a record has %v", r.Err)
		}
	}
	if bad == 0 || beside == 0 {
		t.Errorf("%d are refused, and %d with them; want both", bad, beside)
	}
}

func TestFatalErrorMakesTheProducerAnew(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, reg := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	if r := p.Produce(t.Context(), time.Time{}, one("a", "before"))[0]; r.Err != nil || p.Check(t.Context()) != nil {
		t.Fatal(r.Err, p.Check(t.Context()))
	}
	old := p.Handles()
	for _, h := range old {
		h.TestFatalError(ckafka.ErrOutOfOrderSequenceNumber, "made by the test")
	}
	eventually(t, "records flow again through new handles", func() bool {
		now := p.Handles()
		return now[0] != old[0] && now[1] != old[1] && p.Produce(t.Context(), time.Time{}, one("a", "after"))[0].Err == nil
	})
	if err := p.Check(t.Context()); err != nil {
		t.Errorf("the check fails afterwards: %v", err)
	}
	const want = `# HELP postamt_producer_remakes_total How often a producer was made anew, after a fatal error or as it stood still.
# TYPE postamt_producer_remakes_total counter
postamt_producer_remakes_total 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "postamt_producer_remakes_total"); err != nil {
		t.Error(err)
	}
}

// A librdkafka that reports nothing for Silence counts as one that stands still. (Here it does so as it
// reports every 15 s; one that really does is in the tests of the stack.)
func TestASilentProducerIsMadeAnew(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	p, _ := openProducerWith(t, kafka.ProducerOptions{Servers: cluster.ListenAddrs(), Timeout: 5 * time.Second, Silence: 600 * time.Millisecond})
	old := p.Handles()
	acknowledged := 0
	eventually(t, "both handles are new", func() bool {
		for range 100 {
			switch r := p.Produce(t.Context(), time.Time{}, one("a", "v"))[0]; {
			case r.Err == nil:
				acknowledged++
			case kindOf(r.Err) != event.Unavailable:
				t.Error(r.Err)
			}
		}
		now := p.Handles()
		return now[0] != old[0] && now[1] != old[1]
	})
	p.Close(t.Context())
	if stored := len(readAll(t, cluster, "a")); acknowledged == 0 || stored < acknowledged {
		t.Errorf("%d are acknowledged and %d stored", acknowledged, stored)
	}
}

// Nobody waits longer for a producer that is replaced, however patient.
func TestWhatASilentProducerHoldsIsAnswered(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"), kfake.BlackholeProduce())
	release := make(chan struct{})
	defer close(release)
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	p, _ := openProducerWith(t, kafka.ProducerOptions{Servers: cluster.ListenAddrs(), Timeout: time.Minute, Silence: 600 * time.Millisecond})
	answered := make(chan []event.Result)
	go func() { answered <- p.Produce(t.Context(), time.Time{}, one("a", "v")) }()
	select {
	case results := <-answered:
		if kindOf(results[0].Err) != event.Unavailable {
			t.Errorf("it is answered with %v; want unavailable", results[0].Err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it is not answered within 30 s")
	}
	p.Close(t.Context())
}

func TestCloseGivesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"))
	release := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	p, _ := openProducer(t, cluster.ListenAddrs(), 10*time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if r := p.Produce(ctx, time.Time{}, one("a", "late"))[0]; kindOf(r.Err) != event.Unavailable {
		t.Fatalf("a produce that was given up: %v; want unavailable", r.Err)
	}
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	p.Close(t.Context())
	if got := readAll(t, cluster, "a"); len(got) != 1 || string(got[0].Value) != "late" {
		t.Errorf("after Close there are %d records", len(got))
	}
}

// Records of callers that have gone wait on; what waits is bounded all the same.
func TestWhatWaitsForKafkaIsBounded(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.SeedTopics(1, "a"), kfake.BlackholeProduce())
	var hold sync.WaitGroup
	hold.Add(1)
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		cluster.SleepControl(hold.Wait)
		return nil, nil, false
	})
	p, _ := producerFor(t, cluster.ListenAddrs(), 30*time.Second)
	value := make([]byte, 900_000)
	waiting := 0
	eventually(t, "a record is refused", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := p.Produce(ctx, time.Time{}, []event.Record{{Topic: "a", Value: value}})[0].Err
		if kindOf(err) == event.Unavailable {
			waiting++
		}
		return kindOf(err) == event.TooMany
	})
	if held := waiting * len(value); held > 64<<20 {
		t.Errorf("%d bytes wait before the first is refused; MaxQueuedBytes is 64 MiB", held)
	}
	hold.Done()
	eventually(t, "there is room again", func() bool {
		return p.Produce(t.Context(), time.Time{}, one("a", "v"))[0].Err == nil
	})
}

func TestLingeringFollowsTheLoad(t *testing.T) {
	p, _ := producerFor(t, []string{"127.0.0.1:1"}, time.Second)
	now := time.Unix(1_700_000_000, 0)
	var done []func()
	expect := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		name, end := p.Pick(now)
		done = append(done, end)
		if name != want {
			t.Errorf("request %d goes to %s; want %s", len(done), name, want)
		}
	}
	finish := func() {
		for _, end := range done {
			end()
		}
		done = nil
	}
	expect(0, "quick") // alone, and with one other
	expect(0, "quick")
	expect(0, "batching")
	finish() // all answered at once, as a batch is: the load is not gone with that
	expect(time.Millisecond, "batching")
	finish()
	expect(kafka.Calm-2*time.Millisecond, "batching")
	finish()
	expect(time.Millisecond, "quick")
}

func BenchmarkProduce(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(strconv.Itoa(n)+" records a request", func(b *testing.B) {
			cluster := clusterFor(b, kfake.SeedTopics(3, "a"), kfake.BlackholeProduce())
			p, _ := producerFor(b, cluster.ListenAddrs(), 10*time.Second)
			value := bytes.Repeat([]byte("v"), 200)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				records := make([]event.Record, n)
				for pb.Next() {
					for i := range records {
						records[i] = event.Record{Topic: "a", Partition: event.AnyPartition, Value: value}
					}
					for _, r := range p.Produce(b.Context(), time.Time{}, records) {
						if r.Err != nil {
							b.Error(r.Err)
							return
						}
					}
				}
			})
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
