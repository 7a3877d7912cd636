package kafka

import (
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// statisticsInterval is how often librdkafka reports its statistics.
const statisticsInterval = 15 * time.Second

// producerMetrics counts what was produced, and exports what librdkafka last reported.
type producerMetrics struct {
	records  *prometheus.CounterVec
	duration prometheus.Histogram
	remakes  prometheus.Counter

	mu    sync.Mutex
	stats map[string]statistics // by the handle's name
}

// statistics is the part of librdkafka's statistics that is exported. Times are in
// microseconds. Source: librdkafka's STATISTICS.md.
type statistics struct {
	QueuedRecords int64 `json:"msg_cnt"`
	QueuedBytes   int64 `json:"msg_size"`
	Brokers       map[string]struct {
		NodeID     int        `json:"nodeid"`
		NodeName   string     `json:"nodename"`
		TxBytes    float64    `json:"txbytes"`
		RxBytes    float64    `json:"rxbytes"`
		TxErrors   float64    `json:"txerrs"`
		RxErrors   float64    `json:"rxerrs"`
		TxRetries  float64    `json:"txretries"`
		Timeouts   float64    `json:"req_timeouts"`
		RTT        percentile `json:"rtt"`
		OutbufWait percentile `json:"outbuf_latency"`
		Throttle   percentile `json:"throttle"` // milliseconds
	} `json:"brokers"`
}

type percentile struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
	P99 float64 `json:"p99"`
}

func newProducerMetrics(reg prometheus.Registerer) *producerMetrics {
	m := &producerMetrics{
		records: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_produce_records_total",
			Help: "Records handed to Kafka, by topic and result. result: stored, or the kind of the error.",
		}, []string{"topic", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postamt_produce_duration_seconds",
			Help:    "From the hand-over of a request's records to the last acknowledgement.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		remakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postamt_producer_remakes_total",
			Help: "How often a producer was made anew, after a fatal error or as it stood still.",
		}),
		stats: make(map[string]statistics),
	}
	reg.MustRegister(m.records, m.duration, m.remakes, librdkafka{m})
	return m
}

// done counts a request's records. All are of one topic.
func (m *producerMetrics) done(records []event.Record, results []event.Result, took time.Duration) {
	if len(records) == 0 {
		return
	}
	m.duration.Observe(took.Seconds())
	stored := 0
	for i := range results {
		if results[i].Err == nil {
			stored++
			continue
		}
		result := event.Internal
		if ee := (*event.Error)(nil); errors.As(results[i].Err, &ee) {
			result = ee.Kind
		}
		m.records.WithLabelValues(records[0].Topic, string(result)).Inc()
	}
	if stored > 0 {
		m.records.WithLabelValues(records[0].Topic, "stored").Add(float64(stored))
	}
}

func (m *producerMetrics) observe(name, text string) {
	var s statistics
	if json.Unmarshal([]byte(text), &s) != nil {
		return // the library's own text: nothing that a user could mend
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stats[name] = s
}

// librdkafka collects the last statistics of both handles.
type librdkafka struct{ m *producerMetrics }

var (
	descQueuedRecords = prometheus.NewDesc("postamt_librdkafka_queued_records", "Records that wait in librdkafka for their acknowledgement. client: quick, batching.", []string{"client"}, nil)
	descQueuedBytes   = prometheus.NewDesc("postamt_librdkafka_queued_bytes", "Bytes of the records that wait in librdkafka for their acknowledgement.", []string{"client"}, nil)
	descTxBytes       = brokerDesc("tx_bytes_total", "Bytes sent to the broker.")
	descRxBytes       = brokerDesc("rx_bytes_total", "Bytes received from the broker.")
	descTxErrors      = brokerDesc("tx_errors_total", "Requests that could not be sent.")
	descRxErrors      = brokerDesc("rx_errors_total", "Answers that could not be received.")
	descTxRetries     = brokerDesc("tx_retries_total", "Requests that were sent again.")
	descTimeouts      = brokerDesc("request_timeouts_total", "Requests that timed out.")
	descRTT           = brokerDesc("rtt_seconds", "Round trip to the broker.", "quantile")
	descOutbuf        = brokerDesc("outbuf_latency_seconds", "Wait of a request before it was sent.", "quantile")
	descThrottle      = brokerDesc("throttle_seconds", "Throttling by the broker's quotas.", "quantile")
)

func brokerDesc(name, help string, more ...string) *prometheus.Desc {
	return prometheus.NewDesc("postamt_librdkafka_broker_"+name, help, append([]string{"client", "broker"}, more...), nil)
}

func (librdkafka) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descQueuedRecords, descQueuedBytes, descTxBytes, descRxBytes, descTxErrors, descRxErrors,
		descTxRetries, descTimeouts, descRTT, descOutbuf, descThrottle,
	} {
		ch <- d
	}
}

func (l librdkafka) Collect(ch chan<- prometheus.Metric) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	for client, s := range l.m.stats {
		ch <- prometheus.MustNewConstMetric(descQueuedRecords, prometheus.GaugeValue, float64(s.QueuedRecords), client)
		ch <- prometheus.MustNewConstMetric(descQueuedBytes, prometheus.GaugeValue, float64(s.QueuedBytes), client)
		for _, b := range s.Brokers {
			if b.NodeID < 0 {
				continue // the address of bootstrap.servers and librdkafka's internal broker
			}
			counter := func(d *prometheus.Desc, v float64) {
				ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, client, b.NodeName)
			}
			counter(descTxBytes, b.TxBytes)
			counter(descRxBytes, b.RxBytes)
			counter(descTxErrors, b.TxErrors)
			counter(descRxErrors, b.RxErrors)
			counter(descTxRetries, b.TxRetries)
			counter(descTimeouts, b.Timeouts)
			quantiles := func(d *prometheus.Desc, p percentile, unit time.Duration) {
				for q, v := range map[string]float64{"0.5": p.P50, "0.95": p.P95, "0.99": p.P99} {
					ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v*unit.Seconds(), client, b.NodeName, q)
				}
			}
			quantiles(descRTT, b.RTT, time.Microsecond)
			quantiles(descOutbuf, b.OutbufWait, time.Microsecond)
			quantiles(descThrottle, b.Throttle, time.Millisecond)
		}
	}
}
