// Package trace makes OpenTelemetry spans of requests, of what is produced and of attempts to
// deliver, and sends those that are sampled to a collector, by OTLP over HTTP. Where there is no
// collector there is no Tracer, and nobody who has none comes here.
package trace

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"
)

// Options say which spans there are, and where they go.
type Options struct {
	Endpoint   string            // the whole URL
	Headers    map[string]string // of each request to it
	Timeout    time.Duration     // of each request to it
	Delay      time.Duration     // a span waits for others so long
	MaxQueue   int               // spans that have ended and are not sent yet
	MaxLinks   int               // of one span
	Sampler    Sampler
	Service    string // service.name
	Version    string
	Attributes map[string]string // of the resource; they go before the ones that are known here
}

// Sampler says which traces are exported.
type Sampler struct {
	Name string // one of Samplers
	// Ratio is which part of the traces that begin here is, for those that ask for one.
	Ratio float64
}

// Samplers are the names that OTEL_TRACES_SAMPLER may have.
var Samplers = []string{"parentbased_traceidratio", "parentbased_always_on", "parentbased_always_off", "traceidratio", "always_on", "always_off"}

func (s Sampler) make() (sdktrace.Sampler, error) {
	switch s.Name {
	case "parentbased_traceidratio":
		return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(s.Ratio)), nil
	case "parentbased_always_on":
		return sdktrace.ParentBased(sdktrace.AlwaysSample()), nil
	case "parentbased_always_off":
		return sdktrace.ParentBased(sdktrace.NeverSample()), nil
	case "traceidratio":
		return sdktrace.TraceIDRatioBased(s.Ratio), nil
	case "always_on":
		return sdktrace.AlwaysSample(), nil
	case "always_off":
		return sdktrace.NeverSample(), nil
	}
	return nil, fmt.Errorf("there is no sampler %q", s.Name)
}

// Tracer makes spans. It is safe for concurrent use.
type Tracer struct {
	tracer   oteltrace.Tracer
	provider *sdktrace.TracerProvider
	exporter *exporter
	maxLinks int
}

// retries of a batch; meanwhile others wait in the queue.
const (
	retryInitial = time.Second
	retryMax     = 5 * time.Second
	retryFor     = 20 * time.Second
)

// New makes a Tracer. The collector need not be there yet.
func New(o Options, log *slog.Logger, reg prometheus.Registerer) (*Tracer, error) {
	sampler, err := o.Sampler.make()
	if err != nil {
		return nil, err
	}
	otlp, err := otlptracehttp.New(context.Background(),
		otlptracehttp.WithEndpointURL(o.Endpoint), otlptracehttp.WithHeaders(o.Headers), otlptracehttp.WithTimeout(o.Timeout),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: retryInitial, MaxInterval: retryMax, MaxElapsedTime: retryFor}))
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	attributes, err := describe(o)
	if err != nil {
		return nil, fmt.Errorf("describe this process to traces: %w", err)
	}
	e := newExporter(otlp, o.MaxQueue, log, reg)
	limits := sdktrace.NewSpanLimits()
	limits.LinkCountLimit = o.MaxLinks
	provider := sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithResource(attributes), sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithSpanProcessor(&queue{e, sdktrace.NewBatchSpanProcessor(e, sdktrace.WithMaxQueueSize(o.MaxQueue), sdktrace.WithBatchTimeout(o.Delay))}))
	return &Tracer{
		tracer:   provider.Tracer("postamt", oteltrace.WithInstrumentationVersion(o.Version), oteltrace.WithSchemaURL(semconv.SchemaURL)),
		provider: provider, exporter: e, maxLinks: o.MaxLinks,
	}, nil
}

// describe says what this process is.
func describe(o Options) (*resource.Resource, error) {
	known := []attribute.KeyValue{semconv.ServiceVersion(o.Version), semconv.ServiceInstanceID(uuid.NewString())}
	for name, value := range o.Attributes {
		known = append(known, attribute.String(strings.ToValidUTF8(name, "?"), strings.ToValidUTF8(value, "?"))) // of two with one name the last one holds
	}
	known = append(known, semconv.ServiceName(strings.ToValidUTF8(o.Service, "?")))
	return resource.New(context.Background(), resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(known...))
}

// Close sends what has ended until ctx ends; what is left then is lost, and counted. Spans that end later are not even that.
func (t *Tracer) Close(ctx context.Context) {
	defer context.AfterFunc(ctx, t.exporter.cancel)()
	// Not ctx itself: with that it would return while its goroutine still sends.
	_ = t.provider.Shutdown(context.WithoutCancel(ctx))
	t.exporter.cancel()
}

// w3c is how a trace is passed on: traceparent and tracestate.
var w3c propagation.TraceContext

// start begins a span.
func (t *Tracer) start(ctx context.Context, name string, kind oteltrace.SpanKind) (context.Context, oteltrace.Span) {
	return t.tracer.Start(ctx, name, oteltrace.WithSpanKind(kind))
}

// maxTextBytes is how much of a text that comes from outside a span keeps.
const maxTextBytes = 1 << 10

// text is a text from outside as a span may keep it: in UTF-8, since one that is not has the exporter lose the
// whole batch, not long, and a copy, since it may be a piece of something large.
func text(s string) string {
	s = strings.ToValidUTF8(s, string(utf8.RuneError))
	if len(s) > maxTextBytes {
		n := maxTextBytes
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	return strings.Clone(s)
}

// ID names the trace that ctx is of if it is exported; else it is "". What it is written to can be
// found by it.
func ID(ctx context.Context) string { return idOf(oteltrace.SpanContextFromContext(ctx)) }

func idOf(span oteltrace.SpanContext) string {
	if !span.IsSampled() || !span.IsValid() {
		return ""
	}
	return span.TraceID().String()
}

// Exemplar is what a histogram keeps of an observation; nil where ID is "".
func Exemplar(id string) prometheus.Labels {
	if id == "" {
		return nil
	}
	return prometheus.Labels{logKey: id}
}
