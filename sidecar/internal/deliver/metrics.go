package deliver

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/trace"
)

// metrics are by subscription: names of configuration, of which there are MAX_SUBSCRIPTIONS at most.
type metrics struct {
	attempts *prometheus.CounterVec
	duration *prometheus.HistogramVec
	latency  *prometheus.HistogramVec
	letters  *prometheus.CounterVec
	filtered *prometheus.CounterVec
	expired  *prometheus.CounterVec
	inFlight *prometheus.GaugeVec
}

const labelSubscription = "subscription"

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_delivery_attempts_total", Help: "Attempts to deliver a record, by verdict: delivered, refused, failed, unreachable, gone.",
		}, []string{labelSubscription, "verdict"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postamt_delivery_attempt_duration_seconds", Help: "Time that attempts took.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 30},
		}, []string{labelSubscription}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postamt_delivery_latency_seconds", Help: "Age of records, by their timestamps, when their endpoints had accepted them; those without a timestamp do not count.",
			Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 15, 60, 300, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600},
		}, []string{labelSubscription}),
		letters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_delivery_dead_letters_total", Help: "Dead letters written, by reason: refused, attempts_exhausted, gave_up, skipped, filter_failed.",
		}, []string{labelSubscription, "reason"}),
		filtered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_delivery_filtered_records_total", Help: "Records that the filter did not want, by reason: no, missing (it lacks something that the filter asks for).",
		}, []string{labelSubscription, "reason"}),
		expired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_delivery_expired_records_total", Help: "Offsets that retention took before their records were delivered.",
		}, []string{labelSubscription}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postamt_delivery_in_flight", Help: "Attempts that are being made.",
		}, []string{labelSubscription}),
	}
	reg.MustRegister(m.attempts, m.duration, m.latency, m.letters, m.filtered, m.expired, m.inFlight)
	return m
}

// subscriptionMetrics are those of one subscription: found once, not for each record.
type subscriptionMetrics struct {
	attempts          map[event.Verdict]prometheus.Counter
	letters           map[event.Reason]prometheus.Counter
	duration, latency prometheus.ExemplarObserver
	unwanted, missing prometheus.Counter
	expired           prometheus.Counter
	inFlight          prometheus.Gauge
}

func (m *metrics) of(name string) *subscriptionMetrics {
	s := &subscriptionMetrics{
		attempts: make(map[event.Verdict]prometheus.Counter), letters: make(map[event.Reason]prometheus.Counter),
		duration: exemplars(m.duration, name), latency: exemplars(m.latency, name),
		unwanted: m.filtered.WithLabelValues(name, "no"), missing: m.filtered.WithLabelValues(name, "missing"),
		expired: m.expired.WithLabelValues(name), inFlight: m.inFlight.WithLabelValues(name),
	}
	for _, v := range []event.Verdict{event.Delivered, event.Refused, event.Failed, event.Unreachable, event.Withdrawn} {
		s.attempts[v] = m.attempts.WithLabelValues(name, string(v))
	}
	for _, r := range []event.Reason{event.ReasonRefused, event.ReasonExhausted, event.ReasonGaveUp, event.ReasonSkipped, event.ReasonFilter} {
		s.letters[r] = m.letters.WithLabelValues(name, string(r))
	}
	return s
}

// exemplars gives the histogram of a subscription.
func exemplars(vec *prometheus.HistogramVec, name string) prometheus.ExemplarObserver {
	return vec.WithLabelValues(name).(prometheus.ExemplarObserver) //nolint:forcetypeassert // every histogram is one
}

// forget takes the series of a subscription out that is not delivered here any more.
func (m *metrics) forget(name string) {
	of := prometheus.Labels{labelSubscription: name}
	for _, vec := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.attempts, m.duration, m.latency, m.letters, m.filtered, m.expired, m.inFlight} {
		vec.DeletePartialMatch(of)
	}
}

func (s *subscriptionMetrics) attempt(a event.Attempt, out event.Outcome) {
	s.attempts[out.Verdict].Inc()
	exemplar := trace.Exemplar(out.Trace)
	s.duration.ObserveWithExemplar(out.Duration.Seconds(), exemplar)
	if out.Verdict == event.Delivered {
		if age, ok := event.Age(a.Origin.Timestamp, time.Now()); ok {
			s.latency.ObserveWithExemplar(age.Seconds(), exemplar)
		}
	}
}

func (s *subscriptionMetrics) letter(r event.Reason) { s.letters[r].Inc() }

// filterOut counts a record that the filter did not want.
func (s *subscriptionMetrics) filterOut(missing bool) {
	if missing {
		s.missing.Inc()
	} else {
		s.unwanted.Inc()
	}
}

// gauges are what is asked of the engines when somebody looks.
type gauges struct{ m *Manager }

var (
	stateDesc = prometheus.NewDesc("postamt_delivery_state", "1 for the state that the subscription has on this replica: active, down, paused.",
		[]string{labelSubscription, "state"}, nil)
	windowDesc = prometheus.NewDesc("postamt_delivery_window_ratio", "How full the fullest window of a partition is; at 1 the partition is not read.",
		[]string{labelSubscription}, nil)
	oldestDesc = prometheus.NewDesc("postamt_delivery_oldest_undecided_seconds", "Age of the oldest record that was read and is neither delivered nor a dead letter; 0 where there is none.",
		[]string{labelSubscription}, nil)
)

// Describe is prometheus.Collector's.
func (g *gauges) Describe(ch chan<- *prometheus.Desc) {
	ch <- stateDesc
	ch <- windowDesc
	ch <- oldestDesc
}

// Collect is prometheus.Collector's.
func (g *gauges) Collect(ch chan<- prometheus.Metric) {
	g.m.mu.Lock()
	names := slices.Sorted(maps.Keys(g.m.runners))
	g.m.mu.Unlock()
	for _, name := range names {
		var state event.DeliveryState
		var full, oldest float64
		if !g.m.ask(name, func(w *worker) {
			state = w.engine.State()
			full, oldest = w.engine.load(time.Now())
		}) {
			continue
		}
		for _, s := range []event.DeliveryState{event.DeliveryActive, event.DeliveryDown, event.DeliveryPaused} {
			is := 0.0
			if s == state {
				is = 1
			}
			ch <- prometheus.MustNewConstMetric(stateDesc, prometheus.GaugeValue, is, name, string(s))
		}
		ch <- prometheus.MustNewConstMetric(windowDesc, prometheus.GaugeValue, full, name)
		ch <- prometheus.MustNewConstMetric(oldestDesc, prometheus.GaugeValue, oldest, name)
	}
}
