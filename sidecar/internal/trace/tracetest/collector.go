// Package tracetest is a collector of traces for tests: it takes OTLP over HTTP, as others do.
package tracetest

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is what a collector was told of a span; ids are in hexadecimal.
type Span struct {
	Service, Name, Kind string
	Trace, ID, Parent   string
	State               string            // tracestate
	Attributes          map[string]string // of the span
	Resource            map[string]string
	Links               []string // the traces of its links
	Failed              bool     // its status is an error
	Message             string   // of its status
}

// Collector keeps what it is sent.
type Collector struct {
	*httptest.Server

	mu      sync.Mutex
	answer  int // status; 0 is 200
	partial *collectorpb.ExportTracePartialSuccess
	headers http.Header
	asked   int
	spans   []Span
}

// Open starts a Collector that ends with the test.
func Open(t testing.TB) *Collector {
	c := &Collector{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var req collectorpb.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &req)
		}
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("the collector got %s %s, %v", r.Method, r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.headers = r.Header
		c.asked++
		if c.answer != 0 {
			w.WriteHeader(c.answer)
			return
		}
		for _, of := range req.GetResourceSpans() {
			resource := attributes(of.GetResource().GetAttributes())
			for _, scope := range of.GetScopeSpans() {
				for _, s := range scope.GetSpans() {
					c.spans = append(c.spans, spanOf(resource, s))
				}
			}
		}
		if c.partial != nil {
			reply, err := proto.Marshal(&collectorpb.ExportTraceServiceResponse{PartialSuccess: c.partial})
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("Content-Type", "application/x-protobuf")
			_, _ = w.Write(reply)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func spanOf(resource map[string]string, s *tracepb.Span) Span {
	out := Span{
		Service: resource["service.name"], Resource: resource, Name: s.GetName(), Kind: s.GetKind().String(),
		Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()), State: s.GetTraceState(),
		Attributes: attributes(s.GetAttributes()), Failed: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR, Message: s.GetStatus().GetMessage(),
	}
	for _, l := range s.GetLinks() {
		out.Links = append(out.Links, hex.EncodeToString(l.GetTraceId()))
	}
	return out
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string)
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		}
	}
	return out
}

// Answer has the collector answer with a status from now on, and keep nothing; 0 is that it takes spans.
func (c *Collector) Answer(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = status
}

// Partly has the collector answer, from now on, that it has not taken so many spans of each request, and a word
// on it; with 0 spans that is a warning.
func (c *Collector) Partly(rejected int64, says string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.partial = &collectorpb.ExportTracePartialSuccess{RejectedSpans: rejected, ErrorMessage: says}
}

// Asked is how many requests have come, and the header of the last one.
func (c *Collector) Asked() (int, http.Header) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked, c.headers
}

// Spans are those of a trace, or all for "".
func (c *Collector) Spans(trace string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.spans), func(s Span) bool { return trace != "" && s.Trace != trace })
}

// Wait waits until a trace has n spans, or more, and returns them.
func (c *Collector) Wait(t testing.TB, trace string, n int) []Span {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		spans := c.Spans(trace)
		if len(spans) >= n {
			return spans
		}
		if time.Now().After(deadline) {
			t.Fatalf("of the trace %s there are %d spans within a minute, want %d: %+v", trace, len(spans), n, spans)
		}
	}
}
