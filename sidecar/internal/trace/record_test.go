package trace

import (
	"testing"

	oteltrace "go.opentelemetry.io/otel/trace"

	"postamt/sidecar/internal/event"
)

// A span may have many links, and each would keep the tracestate of its record until the collector has the span.
func TestLinksKeepNoTracestate(t *testing.T) {
	records := []event.Record{{Headers: []event.Header{
		{Key: parentKey, Value: []byte("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")}, {Key: stateKey, Value: []byte("a=1")},
	}}}
	if made := contextOf(&records[0]); made.TraceState().String() != "a=1" {
		t.Fatalf("the record was made in %v, want its tracestate", made)
	}
	links := link(oteltrace.SpanFromContext(t.Context()), nil, records, 1)
	if len(links) != 1 || links[0].SpanContext.TraceState().Len() != 0 || links[0].SpanContext.SpanID().String() != "b7ad6b7169203331" {
		t.Errorf("the links are %+v, want one without tracestate", links)
	}
}
