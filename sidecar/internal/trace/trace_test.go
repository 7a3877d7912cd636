package trace_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/trace"
	"postamt/sidecar/internal/trace/tracetest"
)

const (
	clientTrace = "0af7651916cd43dd8448eb211c80319c"
	sampled     = "00-" + clientTrace + "-b7ad6b7169203331-01"
	unsampled   = "00-" + clientTrace + "-b7ad6b7169203331-00"
)

func options(c *tracetest.Collector) trace.Options {
	return trace.Options{
		Endpoint: c.URL + "/v1/traces", Timeout: 10 * time.Second, Delay: 10 * time.Millisecond, MaxQueue: 100, MaxLinks: 3,
		Sampler: trace.Sampler{Name: "always_on"}, Service: "postamt-test", Version: "1.2.3",
	}
}

func tracer(t *testing.T, o trace.Options) *trace.Tracer {
	t.Helper()
	tr, err := trace.New(o, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		tr.Close(ctx)
	})
	return tr
}

// request is one with a traceparent, unless that is "".
func request(t *testing.T, method, path, parent string) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	if parent != "" {
		r.Header.Set("Traceparent", parent)
	}
	return r
}

func TestSamplers(t *testing.T) {
	c := tracetest.Open(t)
	for name, want := range map[string][4]bool{ // of a trace that begins here at ratio 0 and 1, of a client's that is sampled, and that is not
		"parentbased_traceidratio": {false, true, true, false}, "parentbased_always_on": {true, true, true, false}, "parentbased_always_off": {false, false, true, false},
		"traceidratio": {false, true, true, true}, "always_on": {true, true, true, true}, "always_off": {false, false, false, false},
	} {
		for i, parent := range []string{"", "", sampled, unsampled} {
			o := options(c)
			o.Sampler = trace.Sampler{Name: name, Ratio: min(1, float64(i))}
			r, span := tracer(t, o).Request(request(t, "GET", "/topics", parent))
			if got := trace.ID(r.Context()) != ""; got != want[i] {
				t.Errorf("%s, traceparent %q: sampled is %v", name, parent, got)
			}
			if got := span.End("GET", "/topics", 200) != ""; got != want[i] {
				t.Errorf("%s, traceparent %q: the id of the trace is given: %v", name, parent, got)
			}
			id, _ := trace.Headers(r.Context())
			if got := strings.HasSuffix(id, "-01"); got != want[i] || len(id) != 55 || parent != "" && !strings.HasPrefix(id, "00-"+clientTrace+"-") {
				t.Errorf("%s, traceparent %q: what is passed on is %q", name, parent, id)
			}
		}
	}
	if len(trace.Samplers) != 6 {
		t.Errorf("there are samplers that are not tried: %v", trace.Samplers)
	}
	o := options(c)
	o.Sampler.Name = "some"
	if _, err := trace.New(o, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
		t.Error("a sampler that there is not was taken")
	}
}

func TestWhatTheCollectorIsTold(t *testing.T) {
	c := tracetest.Open(t)
	o := options(c)
	o.Headers = map[string]string{"Authorization": "Bearer a b"}
	o.Attributes = map[string]string{"deployment.environment.name": "test", "service.name": "no"}
	_, span := tracer(t, o).Request(request(t, "BREW", "/topics/a", sampled))
	span.End("other", "", 405)
	got := c.Wait(t, clientTrace, 1)[0]
	for name, want := range map[string]string{"service.name": "postamt-test", "service.version": "1.2.3", "deployment.environment.name": "test", "telemetry.sdk.language": "go"} {
		if got.Resource[name] != want {
			t.Errorf("the resource has %s=%q, want %q", name, got.Resource[name], want)
		}
	}
	if got.Resource["service.instance.id"] == "" {
		t.Error("the resource does not say which replica it is")
	}
	// Names are of closed sets, whatever a client sends.
	if got.Name != "HTTP" || got.Attributes["http.request.method"] != "_OTHER" || got.Attributes["http.request.method_original"] != "BREW" {
		t.Errorf("the span of an unknown method is %+v", got)
	}
	if _, h := c.Asked(); h.Get("Authorization") != "Bearer a b" {
		t.Errorf("the collector got the header %v", h)
	}
}

func TestWhatIsPolledHasNoSpan(t *testing.T) {
	tr := tracer(t, options(tracetest.Open(t)))
	for path, traced := range map[string]bool{"/health": false, "/health/live": false, "/replica/batches/1": false, "/healthy": true, "/": true, "/topics": true} {
		r, span := tr.Request(request(t, "GET", path, sampled))
		if (span != nil) != traced || (r.Header.Get("Traceparent") == "") != traced {
			t.Errorf("%s: traced is %v", path, span != nil)
		}
		span.End("GET", path, 200)
	}
}

func TestServerErrorsFail(t *testing.T) {
	c := tracetest.Open(t)
	tr := tracer(t, options(c))
	for _, status := range []int{200, 404, 499, 500, 503} {
		_, span := tr.Request(request(t, "GET", "/topics", sampled))
		span.End("GET", "/topics", status)
	}
	for _, s := range c.Wait(t, clientTrace, 5) {
		if status := s.Attributes["http.response.status_code"]; s.Failed != (status >= "500") {
			t.Errorf("the span of an answer with %s: failed is %v", status, s.Failed)
		}
	}
}

func TestRecordsThatAreNotStoredFail(t *testing.T) {
	c := tracetest.Open(t)
	records := []event.Record{{Topic: "a"}, {Topic: "a"}}
	send := tracer(t, options(c)).Send(t.Context(), "a", records)
	send.Done([]event.Result{{}, {Err: event.Errorf(event.Unavailable, 0, "kafka.Produce", "Kafka is out of reach")}})
	got := c.Wait(t, string(records[0].Headers[0].Value[3:35]), 1)[0]
	if !got.Failed || got.Message != "Kafka is out of reach" || got.Attributes["error.type"] != "unavailable" || got.Attributes["postamt.records.failed"] != "1" || got.Attributes["messaging.batch.message_count"] != "2" {
		t.Errorf("the span is %+v", got)
	}
}

// Records that share what their headers are kept in do not overwrite each other's.
func TestHeadersOfARecordAreItsOwn(t *testing.T) {
	shared := append(make([]event.Header, 0, 8), event.Header{Key: "a", Value: []byte("1")})
	records := []event.Record{{Topic: "a", Headers: shared[:1]}, {Topic: "a", Headers: shared[:1]}, {Topic: "a", Headers: []event.Header{{Key: "traceparent", Value: []byte(sampled)}}}}
	tr := tracer(t, options(tracetest.Open(t)))
	tr.Send(t.Context(), "a", records[:1]).End()
	tr.Send(t.Context(), "a", records[1:]).End()
	if one, other := string(records[0].Headers[1].Value), string(records[1].Headers[1].Value); one == other || len(one) != 55 || len(other) != 55 {
		t.Errorf("the headers are %q and %q", one, other)
	}
	if got := records[2].Headers; len(got) != 1 || string(got[0].Value) != sampled {
		t.Errorf("the record's own traceparent became %q", got)
	}
	if len(shared) != 1 || len(shared[:2][1].Key) != 0 {
		t.Error("what the records share was written to")
	}
}

func TestLinksAreToEachOnceAndBounded(t *testing.T) {
	c := tracetest.Open(t)
	of := func(trace, flags string) event.Record {
		return event.Record{Headers: []event.Header{{Key: "traceparent", Value: []byte("00-" + strings.Repeat(trace, 32) + "-b7ad6b7169203331-" + flags)}}}
	}
	r, span := tracer(t, options(c)).Request(request(t, "GET", "/topics", sampled))
	trace.Link(r.Context(), []event.Record{{}, of("1", "01"), of("1", "01"), of("2", "00"), of("x", "01")})
	trace.Link(r.Context(), []event.Record{of("1", "01"), of("3", "01"), of("4", "01"), of("5", "01")})
	span.End("GET", "/topics", 200)
	got := strings.Join(c.Wait(t, clientTrace, 1)[0].Links, " ")
	if want := strings.Repeat("1", 32) + " " + strings.Repeat("3", 32) + " " + strings.Repeat("4", 32); got != want {
		t.Errorf("the links are %s, want %s", got, want)
	}
	trace.Link(t.Context(), []event.Record{of("1", "01")}) // of no request: nothing to link
}

func TestALongTracestateIsNotPassedOn(t *testing.T) {
	tr := tracer(t, options(tracetest.Open(t)))
	for state, kept := range map[string]bool{"a=1": true, "a=" + strings.Repeat("x", 250) + ",b=" + strings.Repeat("x", 256): true, "a=" + strings.Repeat("x", 254) + ",b=" + strings.Repeat("x", 256): false} {
		in := request(t, "GET", "/topics", sampled)
		in.Header.Set("Tracestate", state)
		r, span := tr.Request(in)
		out := http.Header{"Tracestate": {"old"}}
		trace.Pass(r.Context(), out)
		span.End("GET", "/topics", 200)
		if got := out.Get("Tracestate"); (got == state) != kept || !kept && got != "" {
			t.Errorf("a tracestate of %d bytes became %q", len(state), got)
		}
	}
}

func TestLogLinesNameTheTrace(t *testing.T) {
	var text bytes.Buffer
	log := trace.Logger(slog.New(slog.NewTextHandler(&text, nil))).With("role", "producer")
	tr := tracer(t, options(tracetest.Open(t)))
	r, span := tr.Request(request(t, "GET", "/topics", sampled))
	defer span.End("GET", "/topics", 200)
	log.InfoContext(r.Context(), "one")
	log.Info("two")
	lines := strings.Split(text.String(), "\n")
	if !strings.HasSuffix(lines[0], "role=producer trace_id="+clientTrace) || strings.Contains(lines[1], "trace_id") {
		t.Errorf("the log is\n%s", text.String())
	}
}

// What is lost is counted, and Close waits for the collector no longer than it may.
func TestEverySpanIsCounted(t *testing.T) {
	c := tracetest.Open(t)
	c.Answer(http.StatusBadRequest) // which is not tried again
	reg := prometheus.NewRegistry()
	o := options(c)
	o.MaxQueue = 5
	tr, err := trace.New(o, slog.New(slog.DiscardHandler), reg)
	if err != nil {
		t.Fatal(err)
	}
	sum := func() float64 {
		var all float64
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range families[0].GetMetric() {
			all += m.GetCounter().GetValue()
		}
		return all
	}
	const n = 200
	one := func(i int) {
		_, span := tr.Request(request(t, "GET", "/topics", ""))
		if i%2 == 0 {
			time.Sleep(time.Millisecond) // some are sent meanwhile
		}
		span.End("GET", "/topics", 200)
	}
	for i := range n {
		one(i)
	}
	for deadline := time.Now().Add(time.Minute); sum() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v of %d spans are counted", sum(), n)
		}
	}
	c.Answer(http.StatusServiceUnavailable) // which is tried again for longer than Close may take
	one(0)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	tr.Close(ctx)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v to close", took)
	}
	if got := sum(); got != n+1 {
		t.Errorf("%v of %d spans are counted", got, n+1)
	}
	one(1) // and one after the end harms nobody
}
