package trace_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/trace"
	"postamt/sidecar/internal/trace/tracetest"
)

// recordOf is a record with headers.
func recordOf(headers ...string) event.Record {
	r := event.Record{Topic: "a"}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, event.Header{Key: headers[i], Value: []byte(headers[i+1])})
	}
	return r
}

func headersOf(r event.Record) string {
	var out []string
	for _, h := range r.Headers {
		out = append(out, h.Key+"="+string(h.Value))
	}
	return strings.Join(out, " ")
}

// What a span takes from outside is short, and is UTF-8: one text that is not has the whole batch fail.
func TestTextsFromOutsideAreShortAndUTF8(t *testing.T) {
	c := tracetest.Open(t)
	o := options(c)
	o.Delay = time.Second // all are one batch
	o.Service, o.Attributes = "one\xff", map[string]string{"a\xff": "b\xff"}
	tr := tracer(t, o)
	bad := "\xff" + strings.Repeat("ä", 5000)
	r := request(t, "GET", "/topics", sampled)
	r.Method, r.URL.Path, r.Host = "M\xff", "/"+bad, bad
	r.Header.Set("User-Agent", bad)
	r, span := tr.Request(r)
	send := tr.Send(r.Context(), bad, []event.Record{{}})
	send.Done([]event.Result{{Err: event.Errorf(event.Invalid, 0, "kafka.Produce", "%s", bad)}})
	_, attempt := tr.Attempt(r.Context(), &event.Subscription{Name: bad, URL: "http://" + bad + ":80/"}, event.Attempt{
		Number: 1, Record: &event.Record{}, Origin: event.Origin{TopicPartition: event.TopicPartition{Topic: bad}},
	})
	attempt.End(event.Outcome{Verdict: event.Failed, Err: bad})
	span.End("other", "", 404)
	long := 0
	for _, s := range c.Wait(t, clientTrace, 3) {
		texts := []string{s.Message}
		for _, text := range s.Attributes {
			texts = append(texts, text)
		}
		for _, text := range append(texts, strings.TrimPrefix(strings.TrimPrefix(s.Name, "deliver "), "send ")) {
			if len(text) > 1024 || !utf8.ValidString(text) {
				t.Errorf("%.10q has a text of %d bytes: %.20q…", s.Name, len(text), text)
			}
			if len(text) > 1000 {
				long++
			}
		}
	}
	if long < 8 {
		t.Errorf("only %d texts are as long as they may be", long)
	}
}

// A tracestate may have as much as a header: those that wait for the collector would be hundreds of megabytes.
func TestSpansKeepNoLongTracestate(t *testing.T) {
	c := tracetest.Open(t)
	tr := tracer(t, options(c))
	for state, kept := range map[string]bool{
		"a=1": true, "a=" + strings.Repeat("x", 250) + ",b=" + strings.Repeat("x", 256): true,
		"a=" + strings.Repeat("x", 254) + ",b=" + strings.Repeat("x", 256): false,
	} {
		id := fmt.Sprintf("%032x", len(state))
		parent := "00-" + id + "-b7ad6b7169203331-01"
		in := request(t, "GET", "/topics", parent)
		in.Header.Set("Tracestate", state)
		_, span := tr.Request(in)
		record := recordOf("traceparent", parent, "tracestate", state)
		_, attempt := tr.Attempt(t.Context(), &event.Subscription{Name: "s"}, event.Attempt{Number: 1, Record: &record})
		attempt.End(event.Outcome{Verdict: event.Delivered})
		span.End("GET", "/topics", 200)
		for _, s := range c.Wait(t, id, 2) {
			if (s.State == state) != kept || !kept && s.State != "" {
				t.Errorf("the span %s has of a tracestate of %d bytes %d", s.Name, len(state), len(s.State))
			}
		}
	}
}

// What a record has already stays; where it is no trace, ours comes after it, and the last one holds.
func TestRecordsWithoutATraceGetOne(t *testing.T) {
	c := tracetest.Open(t)
	tr := tracer(t, options(c))
	for _, headers := range [][]string{
		{},
		{"traceparent", "garbage"},
		{"traceparent", ""},
		{"traceparent", sampled, "traceparent", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01"},
		{"tracestate", "old=1"},
		{"traceparent", "garbage", "tracestate", "old=1"},
	} {
		for _, state := range []string{"", "new=1"} {
			in := request(t, "POST", "/topics/a/records", sampled)
			in.Header.Set("Tracestate", state)
			r, span := tr.Request(in)
			records := []event.Record{recordOf(headers...)}
			before := headersOf(records[0])
			tr.Send(r.Context(), "a", records).End()
			after := headersOf(records[0])
			if !strings.HasPrefix(after, before) || len(records[0].Headers) <= len(headers)/2 {
				t.Errorf("the headers %q became %q", before, after)
			}
			ctx, attempt := tr.Attempt(t.Context(), &event.Subscription{Name: "s"}, event.Attempt{Number: 1, Record: &records[0]})
			if parent, got := trace.Headers(ctx); !strings.Contains(parent, clientTrace) || got != state {
				t.Errorf("a record with %q is delivered with the traceparent %s and the tracestate %q, want the client's trace and %q", before, parent, got, state)
			}
			attempt.End(event.Outcome{Verdict: event.Delivered})
			span.End("POST", "/topics/{topic}/records", 200)
		}
	}
	for _, s := range c.Wait(t, clientTrace, 36) {
		if len(s.Links) > 0 {
			t.Errorf("%s has the links %v to what is no trace", s.Name, s.Links)
		}
	}
}
