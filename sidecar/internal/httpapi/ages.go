package httpapi

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/stream"
)

// ageBounds are the buckets of record ages: from what Kafka alone takes to what retention keeps.
var ageBounds = [...]time.Duration{
	5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond,
	500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute,
	30 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour,
}

// ages is a histogram of how old records were when clients were given them. Every record counts,
// but they are added batch by batch: readers take a million a second, and client_golang's histogram
// takes several times as long, more where two of them meet (BenchmarkAges). Records without a timestamp do not count.
type ages struct {
	desc *prometheus.Desc

	mu  sync.Mutex
	all ageCounts
}

func newAges(via string) *ages {
	return &ages{desc: prometheus.NewDesc("postamt_record_age_seconds",
		"Age of records when a client was given them, by the way: session, or stream, which is reads without a group, too. It is the time since their timestamp; one from the future counts as 0, and one without a timestamp not at all.",
		nil, prometheus.Labels{"via": via})}
}

// ageCounts is what has been observed in some time.
type ageCounts struct {
	buckets [len(ageBounds) + 1]uint64
	sum     float64 // nanoseconds
	last    int     // the bucket of the last record: the next one's as a rule
}

func (c *ageCounts) observe(timestamp, now time.Time) {
	age, ok := event.Age(timestamp, now)
	if !ok {
		return
	}
	if i := c.last; i < len(ageBounds) && age > ageBounds[i] || i > 0 && age <= ageBounds[i-1] {
		for i = 0; i < len(ageBounds) && age > ageBounds[i]; {
			i++
		}
		c.last = i
	}
	c.buckets[c.last]++
	c.sum += float64(age)
}

func (a *ages) add(c *ageCounts) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, n := range c.buckets {
		a.all.buckets[i] += n
	}
	a.all.sum += c.sum
}

// Describe is prometheus.Collector's.
func (a *ages) Describe(ch chan<- *prometheus.Desc) { ch <- a.desc }

// Collect is prometheus.Collector's.
func (a *ages) Collect(ch chan<- prometheus.Metric) {
	a.mu.Lock()
	all := a.all
	a.mu.Unlock()
	count, below := uint64(0), make(map[float64]uint64, len(ageBounds))
	for i, n := range all.buckets {
		if count += n; i < len(ageBounds) {
			below[ageBounds[i].Seconds()] = count
		}
	}
	ch <- prometheus.MustNewConstHistogram(a.desc, count, all.sum/float64(time.Second), below)
}

// handed is what clients were given on one way.
type handed struct {
	records *prometheus.CounterVec
	ages    *ages
}

func newHanded(via, name, help string) *handed {
	return &handed{prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"topic"}), newAges(via)}
}

// out counts records that a client was given. They come in long runs of one topic.
func (h *handed) out(records []event.Record, now time.Time) {
	var c ageCounts
	for len(records) > 0 {
		n := 0
		for ; n < len(records) && records[n].Topic == records[0].Topic; n++ {
			c.observe(records[n].Timestamp, now)
		}
		h.records.WithLabelValues(records[0].Topic).Add(float64(n))
		records = records[n:]
	}
	h.ages.add(&c)
}

// events counts what was sent over a stream of a topic.
func (h *handed) events(topic string, events []stream.Event, now time.Time) {
	var c ageCounts
	n := 0
	for i := range events {
		if r := events[i].Record; r != nil {
			c.observe(r.Timestamp, now)
			n++
		}
	}
	if n > 0 {
		h.records.WithLabelValues(topic).Add(float64(n))
		h.ages.add(&c)
	}
}
