package lag

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"postamt/sidecar/internal/event"
)

// metricLines is what a scrape gets, read as Prometheus reads it.
func metricLines(t *testing.T, c *Collector) []string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := c.WriteMetrics(&text); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	written, err := parser.TextToMetricFamilies(&text)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range written {
		if f.GetType() != dto.MetricType_GAUGE || f.GetHelp() == "" {
			t.Errorf("%s is a %v: %q", f.GetName(), f.GetType(), f.GetHelp())
		}
		families = append(families, f)
	}
	var lines []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			slices.Sort(labels)
			lines = append(lines, fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(labels, ","), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestMetrics(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{
		{Name: "shop", State: "Stable", Protocol: "consumer", Members: 2, Subscribed: []string{"a"}, Committed: map[string][]event.CommittedOffset{"a": {{Partition: 0, Offset: 4}}}},
		{Name: "unread", State: "Stable", Protocol: "streams", Members: -1, Subscribed: []string{"a"}, Committed: map[string][]event.CommittedOffset{}},
	}, times: map[event.Position]time.Time{{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 4}: at(-90)}}
	f.topic("a", 2, 10, 0, 0)
	f.topic("__consumer_offsets", 0, 10)
	f.offsets["a"][1] = event.OffsetRange{Start: -1, End: -1}
	c, clock := collectorAt(f, 0)
	before := []string{
		"postamt_monitor_collect_duration_seconds{} 0",
		"postamt_monitor_collect_errors_total{} 0",
		"postamt_monitor_last_collect_timestamp_seconds{} 0",
	}
	if got := metricLines(t, c); !slices.Equal(got, before) {
		t.Errorf("before the first look there is\n%s", strings.Join(got, "\n"))
	}
	look(t, c, clock, 0)
	want := []string{
		"kafka_broker_info{address=a:9092,id=1} 1",
		"kafka_broker_info{address=b:9092,id=2} 1",
		"kafka_brokers{} 2",
		"kafka_consumergroup_current_offset{consumergroup=shop,partition=0,topic=a} 4",
		"kafka_consumergroup_current_offset_sum{consumergroup=shop,topic=a} 4",
		"kafka_consumergroup_lag{consumergroup=shop,partition=0,topic=a} 6",
		"kafka_consumergroup_lag_seconds{consumergroup=shop,partition=0,topic=a} 90",
		"kafka_consumergroup_lag_sum{consumergroup=shop,topic=a} 6",
		"kafka_consumergroup_members{consumergroup=shop} 2",
		"kafka_consumergroup_state{consumergroup=shop,protocol=consumer,state=Stable} 1",
		"kafka_consumergroup_state{consumergroup=unread,protocol=streams,state=Stable} 1",
		"kafka_consumergroup_uncommitted_partitions{consumergroup=shop,topic=a} 1",
		"kafka_consumergroup_uncommitted_partitions{consumergroup=unread,topic=a} 2",
		"kafka_topic_partition_current_offset{partition=0,topic=a} 10",
		"kafka_topic_partition_in_sync_replica{partition=0,topic=a} 1",
		"kafka_topic_partition_in_sync_replica{partition=1,topic=a} 1",
		"kafka_topic_partition_leader{partition=0,topic=a} 1",
		"kafka_topic_partition_leader{partition=1,topic=a} 1",
		"kafka_topic_partition_leader_is_preferred{partition=0,topic=a} 1",
		"kafka_topic_partition_leader_is_preferred{partition=1,topic=a} 1",
		"kafka_topic_partition_oldest_offset{partition=0,topic=a} 2",
		"kafka_topic_partition_replicas{partition=0,topic=a} 2",
		"kafka_topic_partition_replicas{partition=1,topic=a} 2",
		"kafka_topic_partition_under_replicated_partition{partition=0,topic=a} 1",
		"kafka_topic_partition_under_replicated_partition{partition=1,topic=a} 1",
		"kafka_topic_partitions{topic=a} 2",
		"postamt_monitor_collect_duration_seconds{} 0",
		"postamt_monitor_collect_errors_total{} 0",
		"postamt_monitor_last_collect_timestamp_seconds{} 1.7e+09",
	}
	slices.Sort(want)
	if got := metricLines(t, c); !slices.Equal(got, want) {
		t.Errorf("metrics are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Nothing that a client can name its group breaks a scrape.
func TestAnyNameOfAGroup(t *testing.T) {
	f := &fakeKafka{groups: []event.GroupState{committed("a\"b\\c\nd\xff}ü", "a", 4)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 0)
	look(t, c, clock, 0)
	if got, want := metricLines(t, c), "kafka_consumergroup_lag_sum{consumergroup=a\"b\\c\nd\uFFFD}ü,topic=a} 6"; !slices.Contains(got, want) {
		t.Errorf("there is no %q in\n%q", want, got)
	}
}

func TestAnEstimateSaysSo(t *testing.T) {
	p := event.Position{TopicPartition: event.TopicPartition{Topic: "a"}, Offset: 4}
	f := &fakeKafka{groups: []event.GroupState{committed("g", "a", 4)}}
	f.topic("a", 0, 10)
	c, clock := collectorAt(f, 0)
	series := func() []string {
		return slices.DeleteFunc(metricLines(t, c), func(l string) bool { return !strings.HasPrefix(l, "kafka_consumergroup_lag_seconds{") })
	}
	look(t, c, clock, 0)
	look(t, c, clock, 60)
	if got, want := series(), []string{"kafka_consumergroup_lag_seconds{consumergroup=g,estimated=true,partition=0,topic=a} 60"}; !slices.Equal(got, want) {
		t.Errorf("before the record has been read there is %q, want %q", got, want)
	}
	f.times = map[event.Position]time.Time{p: at(-600)}
	for s := 75.0; s <= 400; s += 15 { // it is tried again after 5 minutes
		look(t, c, clock, s)
	}
	if got, want := series(), []string{"kafka_consumergroup_lag_seconds{consumergroup=g,partition=0,topic=a} 990"}; !slices.Equal(got, want) {
		t.Errorf("after that there is %q, want %q", got, want)
	}
	// What lies between comes to be known to within 40 s: more than two rounds, and less than a
	// tenth of its age, so that it is not asked for.
	c.logs["a"].histories[0].learn(9, at(-560))
	f.groups = []event.GroupState{committed("g", "a", 6)}
	if got := look(t, c, clock, 405); !got.Estimated || got.LagSeconds < 965 || got.LagSeconds > 1005 || len(f.lookups) != 2 {
		t.Errorf("between two records that were read: %+v after %d lookups", got, len(f.lookups))
	}
}

// What a scrape may allocate, however many series it has, and what GET /lag may have at once: the
// monitor's container has 256 MiB.
const scrapeBytes, partBytes = 1 << 20, 1 << 20

func TestAScrapeTakesNoMemoryForItsSeries(t *testing.T) {
	c, _ := collectorAt(big(), 0)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := c.WriteMetrics(io.Discard); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > scrapeBytes {
		t.Errorf("a scrape of 600,000 series allocates %d bytes, want at most %d", got, scrapeBytes)
	}
}

func TestJSONIsNeverInMemoryWhole(t *testing.T) {
	c, _ := collectorAt(big(), 0)
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	var parts largest
	if n, err := c.Snapshot().WriteTo(&parts); err != nil || n < 10<<20 || parts > partBytes {
		t.Errorf("%d bytes, %v, the largest part of %d; want over 10 MiB in parts of at most %d", n, err, parts, partBytes)
	}
}

// largest is the largest part that was written.
type largest int

func (n *largest) Write(b []byte) (int, error) {
	*n = max(*n, largest(len(b)))
	return len(b), nil
}

// BenchmarkScrape is what Prometheus gets of 200 groups × 1,000 partitions: some 600,000 series.
func BenchmarkScrape(b *testing.B) {
	c, _ := collectorAt(big(), 0)
	if err := c.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var n counter
	for b.Loop() {
		n = 0
		if err := c.WriteMetrics(&n); err != nil {
			b.Fatal(err)
		}
	}
	if n < 40<<20 {
		b.Fatalf("%d bytes", n)
	}
	b.SetBytes(int64(n))
}

// counter counts bytes.
type counter int

func (n *counter) Write(b []byte) (int, error) {
	*n += counter(len(b))
	return len(b), nil
}
