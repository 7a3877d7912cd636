package webhook

import (
	"bytes"
	"flag"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"postamt/sidecar/internal/event"
)

var update = flag.Bool("update", false, "write testdata/ anew")

// The requests as they go over the wire, but for the order of headers that HTTP leaves open.
func TestRequestsAreThoseOfTheDocs(t *testing.T) {
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	letter := record("4711", `{"amount":50}`, "traceparent", traceparent, "shop", "linden", "postamt-reason", "refused", "postamt-source-topic", "test.voucher", "postamt-source-offset", "17")
	letter.Topic, letter.Partition, letter.Offset, letter.Timestamp = "test.voucher.dead-letters", 0, 3, letter.Timestamp.Add(time.Hour)
	redriven := event.Attempt{Record: letter, Origin: event.OriginOf(record("", "")), Number: 9, Started: attemptTime}
	dead := attempt(letter) // of a subscription to the dead letters themselves
	tombstone := record("4711", "", "traceparent", traceparent)
	tombstone.Value = nil
	keyless := record("", "\x00\xff", "traceparent", traceparent)
	keyless.Key = nil
	cloudEvent := record("4711", `<voucher/>`, "content-type", "application/xml", "ce_specversion", "1.0", "ce_id", "A 1", "ce_source", "/till/7", "ce_type", "voucher.sold",
		"ce_time", "2026-11-22T19:05:49.5Z", "ce_zone", "Ü", "traceparent", traceparent, "tracestate", "a=1, b=2")
	whole := record("4711", `{"specversion":"1.0","id":"1","source":"/till/7","type":"voucher.sold"}`, "content-type", "application/cloudevents+json", "traceparent", traceparent)
	odd := record("100 % \xff", "text", "content-type", "text/plain", "Shop", "Käse", "shop", "2", "no token", "3", "empty", "", "traceparent", traceparent)
	large := record(strings.Repeat("k", maxKeyHeaderBytes+1), "1", "traceparent", traceparent, "large", strings.Repeat("v", maxRecordHeaderBytes), "small", "v")

	rotated := subscription("http://webshop:8080/vouchers?shop=1")
	rotated.Secrets = []event.Secret{{Key: newKey}, {Key: oldKey, Until: attemptTime.Add(time.Second)}}
	rotated.Headers = map[string]string{"authorization": "Bearer token", "X-Api-Key": "key"}
	structured := subscription("https://webshop/vouchers")
	structured.Structured = true
	plain := subscription("http://webshop/vouchers")

	s := newSender(t, nil)
	for name, c := range map[string]struct {
		sub     *event.Subscription
		attempt event.Attempt
	}{
		"binary":               {rotated, attempt(record("4711", `{"amount":50}`, "traceparent", traceparent, "shop", "linden"))},
		"structured":           {structured, attempt(record("4711", `{"amount":50}`, "traceparent", traceparent, "shop", "linden"))},
		"redriven":             {plain, redriven},
		"dead-letter":          {plain, dead},
		"tombstone":            {plain, attempt(tombstone)},
		"tombstone-structured": {structured, attempt(tombstone)},
		"keyless":              {plain, attempt(keyless)},
		"cloudevent":           {plain, attempt(cloudEvent)},
		"structured-event":     {structured, attempt(cloudEvent)},
		"whole":                {plain, attempt(whole)},
		"whole-structured":     {structured, attempt(whole)},
		"odd":                  {plain, attempt(odd)},
		"large":                {plain, attempt(large)},
	} {
		t.Run(name, func(t *testing.T) {
			c.attempt.Started = attemptTime
			req, err := s.request(t.Context(), c.sub, c.attempt)
			if err != nil {
				t.Fatal(err)
			}
			var wire bytes.Buffer
			if err := req.Write(&wire); err != nil {
				t.Fatal(err)
			}
			got := bytes.ReplaceAll(wire.Bytes(), []byte("\r\n"), []byte("\n"))
			file := filepath.Join("testdata", name+".http")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the request is\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// The request that docs/delivery.md shows is one of them.
func TestTheDocsShowARequest(t *testing.T) {
	docs, err := os.ReadFile("../../../docs/delivery.md")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/binary.http")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(docs), "    POST /vouchers HTTP/1.1\n")
	shown, _, _ = strings.Cut(shown, "\n\n")
	lines := 0
	for line := range strings.Lines(shown) {
		line = strings.ToLower(strings.TrimSpace(line))
		lines++
		if !strings.HasPrefix(line, "user-agent: ") && !strings.Contains(strings.ToLower(string(golden)), "\n"+line) {
			t.Errorf("%q is not in testdata/binary.http", line)
		}
	}
	if lines < 15 {
		t.Errorf("only %d headers are shown", lines)
	}
}

// sent is a request as an endpoint has it.
type sent struct {
	header http.Header
	body   []byte
}

func send(t *testing.T, sub *event.Subscription, a event.Attempt) sent {
	t.Helper()
	var got sent
	server := endpoint(t, func(_ http.ResponseWriter, r *http.Request) {
		got.header = r.Header
		got.body, _ = io.ReadAll(r.Body)
	})
	sub.URL = server.URL
	if out := newSender(t, nil).Send(t.Context(), sub, a); out.Verdict != event.Delivered || out.Err != "" {
		t.Fatalf("the outcome is %+v", out)
	}
	return got
}

func TestSignaturesAreTheLibrarys(t *testing.T) {
	verify := func(key []byte, got sent) error {
		v, err := standardwebhooks.NewWebhook(FormatSecret(key))
		if err != nil {
			t.Fatal(err)
		}
		return v.Verify(got.body, got.header)
	}
	sub := subscription("")
	for name, c := range map[string]struct {
		secrets        []event.Secret
		byOld, byNew   bool
		withSignatures int
	}{
		"one secret":        {[]event.Secret{{Key: newKey}}, false, true, 1},
		"while rotated":     {[]event.Secret{{Key: newKey}, {Key: oldKey, Until: time.Now().Add(time.Hour)}}, true, true, 2},
		"after the rotated": {[]event.Secret{{Key: newKey}, {Key: oldKey, Until: time.Now().Add(-time.Second)}}, false, true, 1},
	} {
		for _, structured := range []bool{false, true} {
			sub.Secrets, sub.Structured = c.secrets, structured
			for _, value := range []string{`{"amount":50}`, "\x00\xff.", ""} {
				got := send(t, sub, attempt(record("k", value)))
				if err := verify(oldKey, got); (err == nil) != c.byOld {
					t.Errorf("%s: with the old secret: %v", name, err)
				}
				if err := verify(newKey, got); (err == nil) != c.byNew {
					t.Errorf("%s: with the new secret: %v", name, err)
				}
				if n := len(strings.Fields(got.header.Get("webhook-signature"))); n != c.withSignatures {
					t.Errorf("%s: there are %d signatures; want %d", name, n, c.withSignatures)
				}
				got.body = append(got.body, ' ')
				if err := verify(newKey, got); err == nil {
					t.Errorf("%s: a changed body is accepted", name)
				}
			}
		}
	}
}

func TestNothingIsSentUnsigned(t *testing.T) {
	server := endpoint(t, func(http.ResponseWriter, *http.Request) { t.Error("something was sent") })
	sub := subscription(server.URL)
	for _, secrets := range [][]event.Secret{nil, {{Key: oldKey, Until: time.Now().Add(-time.Hour)}}, {{}}} {
		sub.Secrets = secrets
		out := newSender(t, nil).Send(t.Context(), sub, attempt(record("k", "v")))
		if out.Verdict != event.Unreachable || !strings.Contains(out.Err, "POST /subscriptions/webshop/secret") {
			t.Errorf("with %v the outcome is %+v", secrets, out)
		}
	}
}

// The id is what receivers know a record by: a second sender's event of the same id is another one.
func TestTheIDIsTheRecordsPlace(t *testing.T) {
	one := record("k", "v", "ce_id", "1", "ce_source", "a")
	got := send(t, subscription(""), attempt(one))
	if id := got.header.Get("webhook-id"); id != "test.voucher/2/17/1795374340000" {
		t.Errorf("the id is %q", id)
	}
	if id := got.header.Get("ce-id"); id != "1" {
		t.Errorf("the event's id is %q", id)
	}
}

func TestTraceIsTakenOrBegun(t *testing.T) {
	form := regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`)
	seen := make(map[string]bool)
	for range 100 {
		got := send(t, subscription(""), attempt(record("k", "v", "tracestate", "a=1"))).header
		if s := got.Get("traceparent"); !form.MatchString(s) || strings.Contains(s, "-0000000000") || seen[s] {
			t.Fatalf("the trace that is begun is %q", s)
		}
		if s, ok := got["Tracestate"]; ok {
			t.Fatalf("it has the state %q of none", s)
		}
		seen[got.Get("traceparent")] = true
	}
	for _, valid := range []string{
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what comes later",
	} {
		got := send(t, subscription(""), attempt(record("k", "v", "traceparent", valid, "tracestate", "a=1, b=2"))).header
		if got.Get("traceparent") != valid || got.Get("tracestate") != "a=1, b=2" {
			t.Errorf("the trace %q became %q, %q", valid, got.Get("traceparent"), got.Get("tracestate"))
		}
	}
	for _, invalid := range []string{
		"", "00", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01",
		"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.x", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-\n",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g",
	} {
		if isTraceparent(invalid) {
			t.Errorf("%q is taken for a trace", invalid)
		}
	}
}

// Whatever is in a record, it can be sent, and nothing of it becomes a header of the delivery's own.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("key"), []byte(`{}`), "shop", []byte("linden"), false)
	f.Add([]byte("\r\nHost: evil"), []byte(nil), "webhook-id", []byte("\r\nx: y"), true)
	f.Add([]byte{0xff}, []byte("x"), "ce_id", []byte("\x00"), false)
	f.Add([]byte{}, []byte("x"), "content-type", []byte("application/cloudevents+json"), true)
	s := newSender(f, nil)
	verifier, _ := standardwebhooks.NewWebhookRaw(newKey)
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte, structured bool) {
		r := record("", "", name, string(header), name, "again")
		r.Key, r.Value = key, value
		sub := subscription("http://webshop/")
		sub.Structured = structured
		a := attempt(r)
		a.Started = attemptTime
		req, err := s.request(t.Context(), sub, a)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, name := range slices.Sorted(maps.Keys(req.Header)) {
			values := req.Header[name]
			if name != http.CanonicalHeaderKey(name) || !isToken(name) {
				t.Errorf("a header is called %q", name)
			}
			if len(values) != 1 && !strings.HasPrefix(name, "Kafka-Header-") {
				t.Errorf("%s has the values %q", name, values)
			}
			for _, v := range values {
				if !isPrintable(v) {
					t.Errorf("%s is %q", name, v)
				}
				if strings.HasPrefix(name, "Kafka-") {
					size += len(name) + len(v)
				}
			}
		}
		if most := maxRecordHeaderBytes + maxKeyHeaderBytes + 200; size > most {
			t.Errorf("the record's headers have %d bytes; want at most %d", size, most)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatal(err)
		}
		if !structured && !bytes.Equal(body, value) {
			t.Errorf("the body is %q; want the value %q", body, value)
		}
		if got := req.Header["Webhook-Id"]; len(got) != 1 || got[0] != "test.voucher/2/17/1795374340000" {
			t.Errorf("the id is %q", got)
		}
		if err := verifier.VerifyIgnoringTimestamp(body, req.Header); err != nil {
			t.Error(err)
		}
	})
}
