package trace

import (
	"context"
	"net/http"
	"slices"

	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"

	"postamt/sidecar/internal/event"
)

// The headers of W3C's Trace Context, of records and, in the canonical form, of requests.
const (
	parentKey, stateKey       = "traceparent", "tracestate"
	parentHeader, stateHeader = "Traceparent", "Tracestate"
)

// maxStateBytes is what W3C asks to pass on at least of a tracestate, and what is passed on here. One that
// is longer is left out where it comes in: spans that wait for the collector would keep it.
const maxStateBytes = 512

// recordCarrier reads a record's headers. Of a name that comes twice the last one holds.
type recordCarrier struct{ *event.Record }

// Get is propagation.TextMapCarrier's.
func (c recordCarrier) Get(key string) string {
	for _, h := range slices.Backward(c.Headers) {
		if h.Key == key {
			if key == stateKey && len(h.Value) > maxStateBytes {
				return ""
			}
			return string(h.Value)
		}
	}
	return ""
}

// Set is propagation.TextMapCarrier's; nobody sets.
func (recordCarrier) Set(string, string) {}

// Keys is propagation.TextMapCarrier's.
func (recordCarrier) Keys() []string { return []string{parentKey, stateKey} }

// requestCarrier reads a request's headers.
type requestCarrier struct{ propagation.HeaderCarrier }

// Get is propagation.TextMapCarrier's.
func (c requestCarrier) Get(key string) string {
	value := c.HeaderCarrier.Get(key)
	if key == stateKey && len(value) > maxStateBytes {
		return ""
	}
	return value
}

func has(r *event.Record, key string) bool {
	return slices.ContainsFunc(r.Headers, func(h event.Header) bool { return h.Key == key })
}

// contextOf is the span that a record says it was made in; it may not be valid.
func contextOf(r *event.Record) oteltrace.SpanContext {
	if !has(r, parentKey) {
		return oteltrace.SpanContext{}
	}
	return oteltrace.SpanContextFromContext(w3c.Extract(context.Background(), recordCarrier{r}))
}

// Headers are traceparent and tracestate of the span that ctx is of; a tracestate may be "".
func Headers(ctx context.Context) (parent, state string) {
	carrier := make(propagation.MapCarrier, 2)
	w3c.Inject(ctx, carrier)
	return carrier[parentKey], carrier[stateKey]
}

// Pass has a request go on with the trace of ctx.
func Pass(ctx context.Context, h http.Header) {
	parent, state := Headers(ctx)
	if parent == "" {
		return
	}
	h.Set(parentHeader, parent)
	if h.Del(stateHeader); state != "" {
		h.Set(stateHeader, state)
	}
}

// goOn has a record go on with a trace. What it has already stays, and what is after it holds: a
// traceparent that is none, and a tracestate, which is of another trace or of none.
func goOn(r *event.Record, parent, state []byte) {
	headers := []event.Header{{Key: parentKey, Value: parent}}
	if len(state) > 0 || has(r, stateKey) {
		headers = append(headers, event.Header{Key: stateKey, Value: state})
	}
	r.Headers = slices.Concat(r.Headers, headers) // and not append: others may share them
}

// link links a span, which has links, to what records say they were made in, as far as that is exported:
// to each once, and until it has most links. It returns all that the span has. A link is an address
// without tracestate: there are many, and each would keep its own until the collector has the span.
func link(span oteltrace.Span, links []oteltrace.Link, records []event.Record, most int) []oteltrace.Link {
	for i := range records {
		if len(links) >= most {
			break
		}
		made := contextOf(&records[i]).WithTraceState(oteltrace.TraceState{})
		if !made.IsSampled() || slices.ContainsFunc(links, func(l oteltrace.Link) bool { return l.SpanContext.Equal(made) }) {
			continue
		}
		l := oteltrace.Link{SpanContext: made}
		span.AddLink(l)
		links = append(links, l)
	}
	return links
}
