package httpapi

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/stream"
)

// agesBeside is ages with client_golang's histogram of the same buckets.
func agesBeside() (*handed, prometheus.Histogram) {
	var bounds []float64
	for _, b := range ageBounds {
		bounds = append(bounds, b.Seconds())
	}
	return newHanded("session", "records_total", "Records."), prometheus.NewHistogram(prometheus.HistogramOpts{Name: "reference_seconds", Help: "The same ages.", Buckets: bounds})
}

// Batches are counted as each record by itself would be; what is from the future is 0 s old, and what has no
// timestamp does not count.
func TestAgesAreAHistogram(t *testing.T) {
	got, want := agesBeside()
	now, rng := time.Now(), rand.New(rand.NewPCG(7, 11))
	observe := func(batch ...time.Duration) {
		var records []event.Record
		for _, age := range batch {
			records = append(records, event.Record{Timestamp: now.Add(-age)})
			want.Observe(max(0, age).Seconds())
		}
		got.out(records, now)
	}
	got.out([]event.Record{{Timestamp: time.UnixMilli(-1)}, {Timestamp: time.UnixMilli(0)}, {}}, now)
	got.events("a", []stream.Event{{Record: &event.Record{Timestamp: time.UnixMilli(-1)}}}, now)
	observe()
	observe(-time.Hour, 0, 30*24*time.Hour, -1)
	for _, b := range ageBounds {
		observe(b, b+1, b-1)
	}
	for range 100 {
		var batch []time.Duration
		at := time.Duration(rng.Int64N(int64(10 * 24 * time.Hour)))
		for range rng.IntN(50) {
			at = time.Duration(float64(at) * (0.5 + rng.Float64()))
			batch = append(batch, at)
		}
		observe(batch...)
	}
	collected := make(chan prometheus.Metric, 1)
	got.ages.Collect(collected)
	var a, b dto.Metric
	if err := (<-collected).Write(&a); err != nil {
		t.Fatal(err)
	}
	if err := want.Write(&b); err != nil {
		t.Fatal(err)
	}
	ours, theirs := a.GetHistogram(), b.GetHistogram()
	if ours.GetSampleCount() != theirs.GetSampleCount() || ours.GetSampleSum() < 0.999*theirs.GetSampleSum() || ours.GetSampleSum() > 1.001*theirs.GetSampleSum() {
		t.Errorf("%d records of %v s; want %d of %v", ours.GetSampleCount(), ours.GetSampleSum(), theirs.GetSampleCount(), theirs.GetSampleSum())
	}
	for i, bucket := range theirs.GetBucket() {
		if mine := ours.GetBucket()[i]; mine.GetUpperBound() != bucket.GetUpperBound() || mine.GetCumulativeCount() != bucket.GetCumulativeCount() {
			t.Errorf("up to %v s there are %d; want %d up to %v", mine.GetUpperBound(), mine.GetCumulativeCount(), bucket.GetCumulativeCount(), bucket.GetUpperBound())
		}
	}
}

// BenchmarkAges is what it takes to count a batch of 1,000 records, and what it would take one by one.
func BenchmarkAges(b *testing.B) {
	batches, one := agesBeside()
	now := time.Now()
	records := make([]event.Record, 1000)
	for i := range records {
		records[i].Timestamp = now.Add(time.Duration(i-3000) * time.Millisecond)
	}
	for name, count := range map[string]func(){
		"batch": func() { batches.out(records, now) },
		"one by one": func() {
			for i := range records {
				one.Observe(max(0, now.Sub(records[i].Timestamp).Seconds()))
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) { // as sessions do
				for pb.Next() {
					count()
				}
			})
		})
	}
}
