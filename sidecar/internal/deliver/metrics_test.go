package deliver

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// Records count with their age once they are delivered; one from the future is 0 s old, and
// one without a timestamp does not count.
func TestLatencyIsTheAgeOfWhatWasDelivered(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg).of("shop")
	attempt := func(age time.Duration, verdict event.Verdict) {
		m.attempt(event.Attempt{Origin: event.Origin{Timestamp: time.Now().Add(-age)}}, event.Outcome{Verdict: verdict})
	}
	attempt(90*time.Second, event.Delivered)
	attempt(-time.Hour, event.Delivered)
	attempt(time.Hour, event.Failed)
	m.attempt(event.Attempt{Origin: event.Origin{Timestamp: time.UnixMilli(-1)}}, event.Outcome{Verdict: event.Delivered})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "postamt_delivery_latency_seconds" {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		if h.GetSampleCount() != 2 || h.GetSampleSum() < 90 || h.GetSampleSum() > 150 || h.GetBucket()[0].GetCumulativeCount() != 1 {
			t.Errorf("of 90 s and from the future are %v; want 2, the one in the first bucket", h)
		}
		if last := h.GetBucket()[len(h.GetBucket())-1].GetUpperBound(); last < (7 * 24 * time.Hour).Seconds() {
			t.Errorf("the last bucket ends at %v s; want a week", last)
		}
		return
	}
	t.Error("there is no latency")
}

// Nobody knows how old a record without a timestamp is: it is not taken for one of 1970.
func TestARecordWithoutATimestampHasNoAge(t *testing.T) {
	e, now := engineFor(t, 0, nil)
	records := recordsOf(voucher0, 0, 1)
	records[0].Timestamp = time.UnixMilli(-1)
	e.Offer(records)
	if got := e.Status(now).Partitions; len(got) != 1 || got[0].WindowRecords != 1 || got[0].LagSeconds != -1 {
		t.Errorf("the partitions are %+v; want one with a record, whose age is -1", got)
	}
	if _, oldest := e.load(now); oldest != 0 {
		t.Errorf("the oldest record is %v s old; want 0", oldest)
	}
}
