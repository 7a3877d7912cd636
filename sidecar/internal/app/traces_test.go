package app_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/app"
	"postamt/sidecar/internal/trace/tracetest"
)

// lines is a log that a test reads.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// with gives the lines that have all of some words.
func (l *lines) with(words ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for line := range strings.Lines(l.text.String()) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			out = append(out, line)
		}
	}
	return out
}

// traced runs a role that sends its traces to url. Only traces that clients ask for are sampled.
func traced(t *testing.T, role app.Role, cluster *kfake.Cluster, url string, more map[string]string) (*process, *lines) {
	t.Helper()
	all := map[string]string{
		"KAFKA_BOOTSTRAP_SERVERS": strings.Join(cluster.ListenAddrs(), ","), "LOG_LEVEL": "DEBUG",
		"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_TRACES_SAMPLER_ARG": "0",
		"POSTAMT_SECRET_KEY": base64.StdEncoding.EncodeToString(make([]byte, 32)), "WEBHOOK_ALLOW": "127.0.0.0/8",
	}
	maps.Copy(all, more)
	cfg, log := configOf(t, all), &lines{}
	return start(t, func(ctx context.Context, ready func(api, metrics net.Addr)) error {
		return app.Run(ctx, role, cfg, slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})), ready)
	}), log
}

// with sends a request with headers and wants a status.
func (p *process) with(method, path, body string, status int, headers ...string) string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, p.api+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status {
		p.t.Fatalf("%s %s: %d %s, %v; want %d", method, path, resp.StatusCode, text, err, status)
	}
	return string(text)
}

// openMetrics gives the metrics with their exemplars.
func (p *process) openMetrics() string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.metrics+"/metrics", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text)
}

// wantExemplar holds that a histogram has an exemplar of a trace.
func (p *process) wantExemplar(name, trace string) {
	p.t.Helper()
	for line := range strings.Lines(p.openMetrics()) {
		if strings.HasPrefix(line, name+"_bucket{") && strings.Contains(line, `# {trace_id="`+trace+`"}`) {
			return
		}
	}
	p.t.Errorf("%s has no exemplar of the trace %s", name, trace)
}

// headersOf gives the headers of the record at an offset.
func headersOf(t *testing.T, consumer *process, topic string, offset int, headers ...string) map[string]string {
	t.Helper()
	text := consumer.with("GET", fmt.Sprintf("/topics/%s/partitions/0/records?offset=%d&timeout=10000&max_bytes=1", topic, offset), "", 200, headers...)
	var records []struct {
		Headers []struct{ Key, Value string }
	}
	if err := json.Unmarshal([]byte(text), &records); err != nil || len(records) != 1 {
		t.Fatalf("the record at %d: %s, %v", offset, text, err)
	}
	out := make(map[string]string)
	for _, h := range records[0].Headers {
		value, err := base64.StdEncoding.DecodeString(h.Value)
		if err != nil {
			t.Fatal(err)
		}
		out[h.Key] += string(value)
	}
	return out
}

func named(t *testing.T, spans []tracetest.Span, name string) tracetest.Span {
	t.Helper()
	for _, s := range spans {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no span %q in %+v", name, spans)
	return tracetest.Span{}
}

const (
	clientTrace, clientSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	sampled                 = "00-" + clientTrace + "-" + clientSpan + "-01"
)

// One voucher, from the request of the register to the web shop, which fails once.
func TestOneTraceFromTheRequestToTheWebhook(t *testing.T) {
	cluster := deliveryCluster(t)
	collector := tracetest.Open(t)
	producer, producerLog := traced(t, app.Producer, cluster, collector.URL, nil)
	consumer, consumerLog := traced(t, app.Consumer, cluster, collector.URL, nil)
	var mu sync.Mutex
	var parents, states []string // of the webhooks
	shop := openShop(t)
	shop.set(func() {
		verify := shop.Config.Handler
		shop.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			parents, states = append(parents, r.Header.Get("traceparent")), append(states, r.Header.Get("tracestate"))
			first := len(parents) == 1
			mu.Unlock()
			if first {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			verify.ServeHTTP(w, r)
		})
	})
	made := consumer.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+shop.URL+`/?key=secret","retry":{"initial":"10ms","max":"10ms"}}`, 201)
	shop.set(func() { shop.secret = made["secret"].(string) })
	producer.with("POST", "/topics/test.voucher/records?key=4711&partition=0", `{"amount":50}`, 200, "Traceparent", sampled, "Tracestate", "shop=linden")
	eventually(t, "the voucher is accepted", func() bool { return len(shop.got()) == 1 })

	spans := collector.Wait(t, clientTrace, 4)
	if len(spans) != 4 || len(collector.Spans("")) != 4 {
		t.Fatalf("the spans are %+v, want those of the request, the record and two attempts alone", collector.Spans(""))
	}
	request, send := named(t, spans, "POST /topics/{topic}/records"), named(t, spans, "send test.voucher")
	if request.Parent != clientSpan || request.Kind != "SPAN_KIND_SERVER" || request.Service != "postamt-producer" || request.State != "shop=linden" || request.Failed {
		t.Errorf("the request's span is %+v", request)
	}
	if send.Parent != request.ID || send.Kind != "SPAN_KIND_PRODUCER" || send.Failed {
		t.Errorf("the record's span is %+v, and not below %s", send, request.ID)
	}
	for name, want := range map[string]string{"http.request.method": "POST", "http.route": "/topics/{topic}/records", "url.path": "/topics/test.voucher/records", "http.response.status_code": "200", "server.address": "127.0.0.1"} {
		if got := request.Attributes[name]; got != want {
			t.Errorf("%s of the request is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{"messaging.system": "kafka", "messaging.destination.name": "test.voucher", "messaging.operation.type": "send", "messaging.destination.partition.id": "0", "messaging.kafka.offset": "0"} {
		if got := send.Attributes[name]; got != want {
			t.Errorf("%s of the record is %q, want %q", name, got, want)
		}
	}
	var attempts [3]tracetest.Span // by number
	for _, s := range spans {
		switch s.Attributes["postamt.attempt"] {
		case "1":
			attempts[1] = s
		case "2":
			attempts[2] = s
		}
	}
	for n, want := range map[int]map[string]string{
		1: {"postamt.verdict": "failed", "http.response.status_code": "500", "error.type": "500", "http.request.resend_count": ""},
		2: {"postamt.verdict": "delivered", "http.response.status_code": "200", "error.type": "", "http.request.resend_count": "1"},
	} {
		s := attempts[n]
		maps.Copy(want, map[string]string{"postamt.subscription": "webshop", "messaging.destination.name": "test.voucher", "messaging.kafka.offset": "0", "http.request.method": "POST", "server.address": "127.0.0.1"})
		for name, value := range want {
			if s.Attributes[name] != value {
				t.Errorf("%s of attempt %d is %q, want %q", name, n, s.Attributes[name], value)
			}
		}
		if s.Name != "deliver webshop" || s.Parent != send.ID || s.Kind != "SPAN_KIND_CLIENT" || s.Service != "postamt-consumer" || s.Failed != (n == 1) {
			t.Errorf("attempt %d is %+v, and not below %s", n, s, send.ID)
		}
		mu.Lock()
		if got, want := parents[n-1], "00-"+clientTrace+"-"+s.ID+"-01"; got != want || states[n-1] != "shop=linden" {
			t.Errorf("the webhook of attempt %d has the traceparent %s and the tracestate %s, want %s", n, got, states[n-1], want)
		}
		mu.Unlock()
		if strings.Contains(fmt.Sprint(s), "secret") {
			t.Errorf("the span has what is secret: %v", s)
		}
	}

	if got := headersOf(t, consumer, "test.voucher", 0); got["traceparent"] != "00-"+clientTrace+"-"+send.ID+"-01" || got["tracestate"] != "shop=linden" {
		t.Errorf("the record's headers are %v", got)
	}
	producer.wantExemplar("postamt_http_request_duration_seconds", clientTrace)
	consumer.wantExemplar("postamt_delivery_attempt_duration_seconds", clientTrace)
	consumer.wantExemplar("postamt_delivery_latency_seconds", clientTrace)
	if got := producerLog.with(`"msg":"request"`, `"path":"/topics/test.voucher/records"`, `"trace_id":"`+clientTrace+`"`); len(got) != 1 {
		t.Errorf("the log has %q of the request", got)
	}
	if got := consumerLog.with(`"msg":"attempt failed"`, `"trace_id":"`+clientTrace+`"`); len(got) != 1 {
		t.Errorf("the log has %q of the attempt that failed", got)
	}
	if got := append(producerLog.with("secret"), consumerLog.with("key=secret")...); len(got) > 0 {
		t.Errorf("the log has %q", got)
	}
}

func TestWhatIsNotSampledIsPassedOnAndNotSent(t *testing.T) {
	cluster := deliveryCluster(t)
	collector := tracetest.Open(t)
	producer, _ := traced(t, app.Producer, cluster, collector.URL, nil)
	consumer, log := traced(t, app.Consumer, cluster, collector.URL, nil)
	var mu sync.Mutex
	parents := make(map[string]string) // by body
	shop := openShop(t)
	shop.set(func() {
		verify := shop.Config.Handler
		shop.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			parents[string(body)] = r.Header.Get("traceparent")
			mu.Unlock()
			r.Body = io.NopCloser(bytes.NewReader(body))
			verify.ServeHTTP(w, r)
		})
	})
	made := consumer.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+shop.URL+`"}`, 201)
	shop.set(func() { shop.secret = made["secret"].(string) })
	const unwanted = "11111111111111111111111111111111"
	producer.with("POST", "/topics/test.voucher/records?partition=0", `1`, 200)
	producer.with("POST", "/topics/test.voucher/records?partition=0", `2`, 200, "Traceparent", "00-"+unwanted+"-"+clientSpan+"-00")
	producer.with("POST", "/topics/test.voucher/records?partition=0", `3`, 200, "Traceparent", sampled)
	eventually(t, "all are accepted", func() bool { return len(shop.got()) == 3 })
	collector.Wait(t, clientTrace, 3)
	if spans := collector.Spans(""); len(spans) != 3 {
		t.Errorf("the spans are %+v, want those of the one that was asked for", spans)
	}
	mu.Lock()
	defer mu.Unlock()
	if own := parents["1"]; len(own) != 55 || !strings.HasSuffix(own, "-00") || !strings.Contains(headersOf(t, consumer, "test.voucher", 0)["traceparent"], own[3:35]) {
		t.Errorf("the webhook of the record that nobody asked for has the traceparent %q", own)
	}
	if p := parents["2"]; !strings.HasPrefix(p, "00-"+unwanted+"-") || !strings.HasSuffix(p, "-00") {
		t.Errorf("the webhook of the record that must not be traced has the traceparent %q", p)
	}
	if got := log.with(unwanted); len(got) > 0 {
		t.Errorf("the log names a trace that nobody can find: %q", got)
	}
	if strings.Contains(consumer.openMetrics(), unwanted) {
		t.Error("the metrics name a trace that nobody can find")
	}
}

// What a record says itself is kept, whichever way it comes; who is given it links to it.
func TestTracesOfManyRecords(t *testing.T) {
	cluster := clusterFor(t)
	collector := tracetest.Open(t)
	producer, _ := traced(t, app.Producer, cluster, collector.URL, nil)
	consumer, _ := traced(t, app.Consumer, cluster, collector.URL, map[string]string{"OTEL_SPAN_LINK_COUNT_LIMIT": "2"})
	traceOf := func(n int) (trace, parent string) {
		trace = fmt.Sprintf("%032x", n)
		return trace, "00-" + trace + "-" + clientSpan + "-01"
	}
	own, ownParent := traceOf(0xaa)
	batch, parent := traceOf(1)
	producer.with("POST", "/topics/a/records", "v", 200, "Traceparent", parent, "Kafka-Header-Traceparent", ownParent)
	if got := headersOf(t, consumer, "a", 0)["traceparent"]; got != ownParent {
		t.Errorf("the record's own traceparent became %q", got)
	}
	spans := collector.Wait(t, batch, 2)
	if links := named(t, spans, "send a").Links; len(links) != 1 || links[0] != own {
		t.Errorf("the span of a record that has its own trace has the links %v, want %s", links, own)
	}

	v2, parent := traceOf(2)
	producer.with("POST", "/topics/a", `{"records":[{"value":1},{"value":2}]}`, 200, "Traceparent", parent, "Content-Type", "application/vnd.kafka.json.v2+json")
	async, parent := traceOf(3)
	producer.with("POST", "/topics/a?async=true", `{"records":[{"value":3},{"value":4},{"value":5}]}`, 204, "Traceparent", parent, "Content-Type", "application/vnd.kafka.json.v2+json")
	stream, parent := traceOf(4)
	producer.with("POST", "/topics/a/records", "{\"value\":6}\nno\n{\"value\":7}\n", 200, "Traceparent", parent, "Content-Type", "application/x-ndjson")
	offset := 1
	for trace, n := range map[string]int{v2: 2, async: 3, stream: 2} {
		send := named(t, collector.Wait(t, trace, 2), "send a")
		if send.Attributes["messaging.batch.message_count"] != fmt.Sprint(n) || send.Failed {
			t.Errorf("the span of %d records is %+v", n, send)
		}
		found := 0
		for i := 1; i < 8; i++ {
			if headersOf(t, consumer, "a", i)["traceparent"] == "00-"+trace+"-"+send.ID+"-01" {
				found++
			}
		}
		if found != n {
			t.Errorf("%d records are of the trace %s, want %d", found, trace, n)
		}
		offset += n
	}

	missing, parent := traceOf(5)
	producer.with("POST", "/topics/nowhere/records", "v", 404, "Traceparent", parent)
	if s := named(t, collector.Wait(t, missing, 1), "POST /topics/{topic}/records"); s.Failed || s.Attributes["http.response.status_code"] != "404" {
		t.Errorf("the span of a client's mistake is %+v", s)
	}

	read, parent := traceOf(6)
	consumer.with("GET", "/topics/a/partitions/0/records?offset=0", "", 200, "Traceparent", parent)
	if links := named(t, collector.Wait(t, read, 1), "GET /topics/{topic}/partitions/{partition}/records").Links; len(links) != 2 || links[0] != own {
		t.Errorf("a read of records of four traces has the links %v, want two, of which OTEL_SPAN_LINK_COUNT_LIMIT is", links)
	}
	pull, parent := traceOf(7)
	consumer.ask("POST", "/consumers/g", `{"name":"one","format":"binary","auto.offset.reset":"earliest"}`, 200)
	consumer.with("POST", "/consumers/g/instances/one/subscription", `{"topics":["a"]}`, 204, "Content-Type", "application/vnd.kafka.v2+json")
	if text := consumer.with("GET", "/consumers/g/instances/one/records?timeout=20000", "", 200, "Traceparent", parent, "Accept", "application/vnd.kafka.binary.v2+json"); text == "[]" {
		t.Fatal("the session was given nothing")
	}
	if links := named(t, collector.Wait(t, pull, 1), "GET /consumers/{group}/instances/{instance}/records").Links; len(links) == 0 || links[0] != own {
		t.Errorf("the read of a session has the links %v, want %s among them", links, own)
	}
	open, parent := traceOf(8)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, consumer.api+"/streams/a?from=earliest", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Traceparent", parent)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<10)
	for text := ""; !strings.Contains(text, "data: "); {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		text += string(buf[:n])
	}
	_ = resp.Body.Close()
	if links := named(t, collector.Wait(t, open, 1), "GET /streams/{topic}").Links; len(links) == 0 || links[0] != own {
		t.Errorf("a stream has the links %v, want %s among them", links, own)
	}
}

// A request that one replica sends on to another is in one trace.
func TestTracesGoOnWithOtherReplicas(t *testing.T) {
	cluster := clusterFor(t)
	collector := tracetest.Open(t)
	one, _ := traced(t, app.Consumer, cluster, collector.URL, nil)
	other, _ := traced(t, app.Consumer, cluster, collector.URL, map[string]string{"OTEL_SERVICE_NAME": "other"})
	one.ask("POST", "/consumers/g", `{"name":"i"}`, 200)
	other.with("GET", "/consumers/g/instances/i/subscription", "", 200, "Traceparent", sampled)
	spans := collector.Wait(t, clientTrace, 2)
	first, second := spans[0], spans[1]
	if first.Service != "other" {
		first, second = second, first
	}
	if first.Parent != clientSpan || second.Parent != first.ID || second.Service != "postamt-consumer" {
		t.Errorf("the spans are %+v and %+v, want one below the other", first, second)
	}
}

// A collector that is away, or silent, costs nobody a wait.
func TestACollectorThatIsAway(t *testing.T) {
	release := make(chan struct{})
	silent := newSilent(t, release)
	for result, url := range map[string]string{"failed": "http://" + freeAddress(t), "dropped": silent} {
		t.Run(result, func(t *testing.T) {
			producer, log := traced(t, app.Producer, clusterFor(t), url, map[string]string{
				"OTEL_TRACES_SAMPLER": "always_on", "OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_EXPORTER_OTLP_TIMEOUT": "60000", "SHUTDOWN_TIMEOUT": "1m",
			})
			eventually(t, "spans are lost, and the log says so", func() bool {
				producer.with("POST", "/topics/a/records", "v", 200)
				return !strings.Contains(producer.openMetrics(), `postamt_trace_spans_total{result="`+result+`"} 0`) && len(log.with("spans of traces are lost")) > 0
			})
			begin := time.Now()
			producer.stop()
			if err := <-producer.ended; err != nil {
				t.Errorf("it ended with %v", err)
			}
			if took := time.Since(begin); took > 25*time.Second { // 2 s are allowed for the last spans
				t.Errorf("it took %v to end", took)
			}
			if got := log.with("spans of traces are lost"); len(got) != 1 {
				t.Errorf("within a minute the log says %d times that spans are lost:\n%s", len(got), strings.Join(got, ""))
			}
		})
	}
	close(release)
}

// newSilent is a server that takes requests and does not answer before release.
func newSilent(t *testing.T, release <-chan struct{}) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(s.Close)
	return s.URL
}

// freeAddress is one that nobody listens at.
func freeAddress(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}
