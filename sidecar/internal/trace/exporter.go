package trace

import (
	"context"
	"log/slog"
	"reflect"
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
	warned     time.Time
}

func newExporter(to sdktrace.SpanExporter, maxQueue int, log *slog.Logger, reg prometheus.Registerer) *exporter {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postamt_trace_spans_total",
		Help: "Sampled spans, by result: exported, failed (the collector did not take them) or dropped (OTEL_BSP_MAX_QUEUE_SIZE were waiting already).",
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
	failed := len(spans)
	if rejected, says, ok := partly(err); ok {
		if failed = int(max(0, min(rejected, int64(failed)))); failed == 0 {
			e.warn(says)
		}
	}
	e.exported.Add(float64(len(spans) - failed))
	if failed > 0 {
		e.failed.Add(float64(failed))
		e.complain("the collector does not take them (OTEL_EXPORTER_OTLP_ENDPOINT)", failed, err)
	}
	return nil
}

// partly tells whether err says, with OTLP's partial success, that a collector has taken the spans but for some;
// with none that is a warning. The type is internal to the SDK's exporter: only reflection reads its fields.
func partly(err error) (rejected int64, says string, ok bool) {
	switch of := err.(type) { //nolint:errorlint // this is what looks into errors that are wrapped
	case interface{ Unwrap() error }:
		if inner := of.Unwrap(); inner != nil {
			return partly(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range of.Unwrap() {
			if rejected, says, ok = partly(inner); ok {
				return rejected, says, true
			}
		}
	}
	v := reflect.ValueOf(err)
	if v.Kind() != reflect.Struct || v.Type().Name() != "PartialSuccess" {
		return 0, "", false
	}
	n, message := v.FieldByName("RejectedItems"), v.FieldByName("ErrorMessage")
	if !n.IsValid() || !n.CanInt() || message.Kind() != reflect.String {
		return 0, "", false
	}
	return n.Int(), message.String(), true
}

// warn logs, now and then, what a collector says that has taken all.
func (e *exporter) warn(says string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := time.Now(); e.warned.IsZero() || now.Sub(e.warned) >= complainInterval {
		e.log.Warn("the collector has taken all spans, with a warning", "warning", says)
		e.warned = now
	}
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
