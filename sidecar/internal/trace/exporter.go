package trace

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// complainInterval is how often the log says that spans are lost.
const complainInterval = time.Minute

// exporter counts what is sent and what is lost: the SDK does neither in a way that can be asked, and
// logs failures to the standard error by itself, as often as there are.
type exporter struct {
	sdktrace.SpanExporter
	log                       *slog.Logger
	exported, failed, dropped prometheus.Counter

	life   context.Context // of all that is being sent
	cancel context.CancelFunc

	max  int64
	open atomic.Int64 // spans that have ended and are neither sent nor lost

	mu         sync.Mutex
	complained time.Time
	lost       int // since
}

func newExporter(to sdktrace.SpanExporter, maxQueue int, log *slog.Logger, reg prometheus.Registerer) *exporter {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postamt_trace_spans_total",
		Help: "Sampled spans, by result: exported, failed (the collector did not take them, or not all of their batch) or dropped (OTEL_BSP_MAX_QUEUE_SIZE were waiting already).",
	}, []string{"result"})
	reg.MustRegister(spans)
	e := &exporter{
		SpanExporter: to, log: log, max: int64(maxQueue),
		exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed"), dropped: spans.WithLabelValues("dropped"),
	}
	e.life, e.cancel = context.WithCancel(context.Background())
	return e
}

// ExportSpans is sdktrace.SpanExporter's.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.life, cancel)()
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.open.Add(-int64(len(spans)))
	if err == nil {
		e.exported.Add(float64(len(spans)))
		return nil
	}
	e.failed.Add(float64(len(spans)))
	e.complain("the collector does not take them (OTEL_EXPORTER_OTLP_ENDPOINT)", len(spans), err)
	return nil
}

// complain logs that spans are lost, now and then.
func (e *exporter) complain(why string, n int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += n
	now := time.Now()
	if !e.complained.IsZero() && now.Sub(e.complained) < complainInterval {
		return
	}
	e.log.Warn("spans of traces are lost", "spans", e.lost, "reason", why, "error", err)
	e.complained, e.lost = now, 0
}

// queue lets only so many spans in as there is room for, and counts the others. Nobody ever waits.
type queue struct {
	*exporter
	sdktrace.SpanProcessor
}

// OnEnd is sdktrace.SpanProcessor's.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.open.Add(1) <= q.max {
		q.SpanProcessor.OnEnd(s)
		return
	}
	q.open.Add(-1)
	q.dropped.Inc()
	q.complain("as many wait for the collector as may (OTEL_BSP_MAX_QUEUE_SIZE)", 1, nil)
}

// Shutdown is sdktrace.SpanProcessor's: of both that are embedded the processor is meant, which shuts the exporter down.
func (q *queue) Shutdown(ctx context.Context) error { return q.SpanProcessor.Shutdown(ctx) }
