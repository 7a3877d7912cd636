package httpapi_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postamt/sidecar/internal/httpapi"
)

// 10,000 requests that are wrong in every way that a client, or an attacker, may think of: no
// 5xx, each error in our form, and nothing left of them afterwards. RANDOM_SEED repeats a run.
func TestRandomBadRequests(t *testing.T) { // not beside others: it counts what the process holds
	seed := rand.Uint64()
	if text := os.Getenv("RANDOM_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("RANDOM_SEED=%d", seed)
	const workers, requests = 24, 10_000
	s := serve(t, map[string]string{
		"HEALTH_INTERVAL": "5s", // a check that is given less may fail, and /health/ready says so
		"READ_TIMEOUT":    "2s", "SESSION_MAX_WAIT": "50ms", "SESSION_IDLE_TIMEOUT": "1s", "STREAM_HEARTBEAT": "50ms",
		"MAX_BODY_BYTES": "100000", "MAX_BATCH_BYTES": "200000", "MAX_IN_FLIGHT_BYTES": "200000", "MAX_SESSIONS": "30", "MAX_STREAMS": "5",
	})
	run := func(from, to int) map[int]int {
		var all sync.WaitGroup
		statuses := make([]map[int]int, workers)
		for w := range workers {
			statuses[w] = make(map[int]int)
			all.Go(func() {
				for i := from + w; i < to && !t.Failed(); i += workers {
					g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(i)))} //nolint:gosec // a test's choices
					if i%100 == 0 {                                               // sessions that the requests can find
						group := "/consumers/" + g.of("g1", "g2")
						if name := g.of("c1", "c2", "c3"); s.do("POST", group, `{"name":"`+name+`","format":"json"}`, plainV2).status == 200 {
							s.do("POST", group+"/instances/"+name+"/subscription", `{"topics":["b"]}`, plainV2)
						}
					}
					s.badRequest(i, g, statuses[w])
				}
			})
		}
		all.Wait()
		sum := make(map[int]int)
		for _, m := range statuses {
			for status, n := range m {
				sum[status] += n
			}
		}
		return sum
	}
	for _, path := range []string{"/health/ready", "/lag"} {
		eventually(t, path+" answers with 200", func() bool { return s.do("GET", path, "").status == 200 })
	}
	// What a first use takes and keeps is there before the counting begins.
	run(requests, requests+500)
	before := s.atRest("before the requests", holding{}, holding{})
	t.Logf("before: %+v", before)
	t.Logf("answers by status: %v", run(0, requests))
	after := s.atRest("after the requests", before, holding{goroutines: 10, heap: 24 << 20})
	t.Logf("after: %+v", after)

	// All of MAX_IN_FLIGHT_BYTES is free again, and what is right still works.
	s.do("POST", "/topics/a", `{"records":[{"value":"`+repeat('x', 200_000-len(`{"records":[{"value":""}]}`))+`"}]}`, jsonV2).want(t, "the largest batch", 200, "")
	s.do("POST", "/topics/b/records", "at the end").want(t, "a record", 200, "")
	st := s.stream("/streams/b?from=earliest&format=text")
	defer st.close()
	for !strings.Contains(st.event()["data"], `"value":"at the end"`) {
		continue // the stream's own time limit ends this
	}
	s.do("GET", "/topics/b/partitions/0/records?offset=earliest", "").want(t, "a read", 200, "")
	s.do("POST", "/consumers/g", `{"name":"at-the-end"}`, plainV2).want(t, "a session", 200, "")
}

// holding is what a service must give back.
type holding struct {
	goroutines, descriptors int
	heap                    uint64
}

// atRest waits until no request, session or stream is left, and no more is held than allowed.
func (s *service) atRest(what string, before, slack holding) holding {
	s.t.Helper()
	counted := regexp.MustCompile(`(?m)^postamt_(http_requests_in_flight|sessions|streams) [1-9].*$`)
	var now holding
	var busy []string
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		busy = counted.FindAllString(s.metricsText(), -1)
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		time.Sleep(50 * time.Millisecond)
		open, _ := os.ReadDir("/proc/self/fd")
		now = holding{runtime.NumGoroutine(), len(open), heapInUse()}
		if len(busy) == 0 && (before == holding{} || now.goroutines <= before.goroutines+slack.goroutines &&
			now.descriptors <= before.descriptors+slack.goroutines && now.heap <= before.heap+slack.heap) {
			return now
		}
		if time.Now().After(deadline) {
			break
		}
	}
	var stacks strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	s.t.Fatalf("%s: %v; it holds %+v, before %+v\n%.20000s", what, busy, now, before, stacks.String())
	return now
}

// heapInUse is what the heap holds once the garbage is gone.
func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// badRequest sends one connection's requests and holds the answers against the rules.
func (s *service) badRequest(number int, g *generator, statuses map[int]int) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		s.t.Errorf("request %d: %v", number, err)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	request := g.request()
	alone := len(request)
	methodOf := func(request []byte) string {
		method, _, _ := strings.Cut(string(request[:min(len(request), 20)]), " ")
		return method
	}
	method, second := methodOf(request), http.MethodGet
	if g.rarely(10) { // requests on the heels of another one
		next := g.request()
		second = methodOf(next)
		request = append(request, next...)
	}
	if g.rarely(30) {
		request = append(request, g.junk(200)...)
	}
	if _, err := conn.Write(request); err != nil {
		return // it was refused before it was sent whole
	}
	if g.rarely(20) {
		return // the client goes away
	}
	fail := func(format string, args ...any) {
		s.t.Errorf("request %d: %s\n%.1500q", number, fmt.Sprintf(format, args...), request)
	}
	if g.rarely(10) {
		_ = conn.(*net.TCPConn).CloseWrite()
	}
	answers := bufio.NewReader(conn)
	for n := range 3 {
		resp, err := http.ReadResponse(answers, &http.Request{Method: method})
		if err != nil {
			if ne := net.Error(nil); n == 0 && errors.As(err, &ne) && ne.Timeout() {
				fail("neither an answer nor the end in 30s")
			}
			return
		}
		statuses[resp.StatusCode]++
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		kind := resp.Header.Get("Content-Type")
		if resp.StatusCode == http.StatusOK && (kind == "text/event-stream" || kind == "application/x-ndjson") {
			_, _ = io.CopyN(io.Discard, resp.Body, 10) // and goes away
			return
		}
		body, err := io.ReadAll(resp.Body)
		switch {
		case resp.StatusCode >= 500:
			fail("%s: %s", resp.Status, body)
		case err != nil:
			return // cut off, as by a pipelined request that is none
		case resp.StatusCode >= 300 && resp.StatusCode < 400:
			fail("a redirect to %s", resp.Header.Get("Location"))
		case resp.StatusCode >= 400 && kind == "application/x-ndjson": // the results before what ended a stream
		case resp.StatusCode >= 400 && method != http.MethodHead:
			var e struct {
				Code    int    `json:"error_code"`
				Message string `json:"message"`
			}
			d := json.NewDecoder(bytes.NewReader(body))
			d.DisallowUnknownFields()
			if err := d.Decode(&e); err != nil || e.Message == "" || kind != "application/json" || resp.Header.Get("X-Request-Id") == "" {
				fail("%s of %s is not in our form: %q, %v", resp.Status, kind, body, err)
			}
		}
		method, second = second, http.MethodGet // of the next one, if there is one; it matters for HEAD alone
		if resp.Close || len(request) == alone {
			return
		}
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // for pipelined answers
	}
}

// generator makes requests: of parts that are right, so that they come far, and others.
type generator struct{ *rand.Rand }

func (g *generator) rarely(oneOf int) bool      { return g.IntN(oneOf) == 0 }
func (g *generator) of(values ...string) string { return values[g.IntN(len(values))] }

func (g *generator) junk(n int) []byte {
	b := make([]byte, g.IntN(n))
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// value is of a path segment, a query parameter or a header.
func (g *generator) value() string {
	switch g.IntN(6) {
	case 0:
		return strconv.FormatInt(int64(g.Uint64()), 10) //nolint:gosec // any number
	case 1:
		return g.of("0", "-1", "1", "2147483648", "99999999999999999999", "1e400", "NaN", "0x10", "1.5", "+5", "٣")
	case 2:
		return g.of("a", "b", "nowhere", "_postamt.own", "__consumer_offsets", "postamt.x", "g1", "c1", "c2", "latest", "earliest", "true", "false", "json", "binary", "text")
	case 3:
		return g.of("", " ", "%00", "%", "%zz", "%ff%fe", "%2e%2e", "..", ".", "%2F", "a%2Fb", "\x00", "ü", "\xff", "🙂", "'", `"`, "{}", "a b", "a+b", "%0d%0aX: y", repeat('x', 300))
	case 4:
		return g.of("2026-01-02T03:04:05Z", "yesterday", "c1.", "c1.AAAAAAAA", "data.amount > 50", "data.list.all(x, x in data.list)", "((((", "offset %25 2 == 0", "application/json")
	}
	return string(bytes.Map(func(r rune) rune {
		if r == '\r' || r == '\n' {
			return 'x'
		}
		return r
	}, g.junk(12)))
}

var placeholder = regexp.MustCompile(`\{[a-z]+\}`)

func (g *generator) target() (method, target string) {
	routes := httpapi.Routes()
	route := routes[g.IntN(len(routes))]
	method = route[0]
	target = placeholder.ReplaceAllStringFunc(route[1], func(name string) string {
		switch {
		case g.rarely(40):
			return g.value()
		case g.rarely(8):
			return url.PathEscape(g.value())
		}
		switch name {
		case "{topic}":
			return g.of("a", "b")
		case "{partition}":
			return g.of("0", "1", "2", "3")
		case "{group}":
			return g.of("g1", "g2")
		case "{cluster}":
			return "kfake" // what kfake calls itself
		}
		return g.of("c1", "c2", "c3")
	})
	if g.rarely(10) {
		method = g.of("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "PRI", "get", "BREW", "", "G\x00T", "ü")
	}
	if g.rarely(15) {
		target = g.of("*", "", "/", "//", "http://x"+target, "http://[::1", target+"/", target+"//", "/."+target, target[1:], "/"+g.value(), target+"/"+g.value(), "?", "#", "/%")
	}
	names := []string{"key", "partition", "timestamp", "tombstone", "timeout", "max_bytes", "from", "filter", "format", "offset", "topic", "group", "async", "isolation.level", g.value()}
	for i := range g.IntN(4) {
		target += map[bool]string{true: "?", false: "&"}[i == 0] + names[g.IntN(len(names))] + "="
		if g.rarely(20) {
			target += g.value()
		} else {
			target += url.QueryEscape(g.value())
		}
	}
	return method, target
}

// document is JSON that a route may take, and is broken now and then.
func (g *generator) document() []byte {
	number := func() string {
		return g.of("0", "1", "-1", "2", "1.5", "1e400", "9223372036854775807", "99999999999999999999", `"7"`, "null", "[]", "{}")
	}
	text := func() string {
		quoted, _ := json.Marshal(g.of("a", "b", "", "c1", "json", "eA==", "!", "^.*", "(", "earliest", "true", "\x00", "ü", repeat('y', 300)))
		return g.of(string(quoted), string(quoted), string(quoted), `"\ud800"`, "\"\xff\"", number())
	}
	place := func() string {
		return fmt.Sprintf(`{"topic":%s,"partition":%s,"offset":%s,"timestamp":%s,"metadata":%s}`, text(), number(), number(), text(), text())
	}
	list := func(of func() string) string {
		items := make([]string, g.IntN(4))
		for i := range items {
			items[i] = of()
		}
		return "[" + strings.Join(items, ",") + "]"
	}
	header := func() string { return fmt.Sprintf(`{"key":%s,"name":%s,"value":%s}`, text(), text(), text()) }
	part := func() string {
		return fmt.Sprintf(`{"type":%s,"data":%s}`, g.of(`"JSON"`, `"BINARY"`, `"STRING"`, `"AVRO"`, text()), text())
	}
	doc := g.of(
		`{"records":`+list(func() string {
			return fmt.Sprintf(`{"key":%s,"value":%s,"partition":%s,"timestamp":%s,"headers":%s}`, text(), text(), number(), number(), list(header))
		})+`}`,
		fmt.Sprintf(`{"name":%s,"format":%s,"auto.offset.reset":%s,"auto.commit.enable":%s,"fetch.min.bytes":%s,"consumer.request.timeout.ms":%s}`, text(), text(), text(), text(), number(), number()),
		`{"name":"`+g.of("c1", "c2", "c3")+`","format":"json"}`,
		`{"topics":`+list(text)+`,"topic_pattern":`+text()+`}`,
		`{"topics":["a"]}`,
		`{"offsets":`+list(place)+`,"partitions":`+list(place)+`,"timestamps":`+list(place)+`}`,
		fmt.Sprintf(`{"partition_id":%s,"headers":%s,"key":%s,"value":%s,"timestamp":%s}`, number(), list(header), part(), part(), text()),
		`{"entries":`+list(func() string { return fmt.Sprintf(`{"id":%s,"value":%s}`, text(), part()) })+`}`,
		fmt.Sprintf(`{"specversion":%s,"id":%s,"source":%s,"type":%s,"data":%s}`, g.of(`"1.0"`, text()), text(), text(), text(), text()),
		fmt.Sprintf("{\"key\":%s,\"value\":%s}\n{\"value\":1}\n{", text(), text()),
		strings.Repeat(g.of("[", `{"a":`, `{"records":[`), 1+g.IntN(20_000)),
		text(),
	)
	b := []byte(doc)
	if g.rarely(5) && len(b) > 0 {
		b = b[:g.IntN(len(b))]
	}
	for len(b) > 0 && g.rarely(5) {
		b[g.IntN(len(b))] = byte(g.Uint32())
	}
	return b
}

func (g *generator) body() []byte {
	switch g.IntN(8) {
	case 0:
		return nil
	case 1:
		return g.junk(2000)
	case 2:
		return bytes.Repeat(g.junk(8), 1+g.IntN(40_000)) // over the limits, sometimes
	}
	return g.document()
}

func (g *generator) request() []byte {
	method, target := g.target()
	body := g.body()
	var header []string
	add := func(name, value string) { header = append(header, name+": "+value) }
	if !g.rarely(80) {
		add("Host", g.of("x", "localhost", "localhost:1", "[::1]", "localhost:x"))
	}
	if !g.rarely(4) {
		format := g.of("json.", "binary.", "text.", "", "avro.")
		add("Content-Type", g.of("application/vnd.kafka."+format+"v2+json", "application/vnd.kafka."+format+"v2+json", "application/vnd.kafka.v2+json", "application/json", "application/x-ndjson",
			"application/cloudevents+json", "application/cloudevents-batch+json", "text/plain", "application/octet-stream", "application/json; charset", ";", "a/b/c", strconv.Quote(g.value())))
	}
	if g.rarely(3) {
		add("Accept", g.of("*/*", "application/vnd.kafka.json.v2+json", "application/vnd.kafka.v2+json, */*;q=0.1", "application/x-ndjson", "text/event-stream", "text/html", "application/json;q=x", ",", strconv.Quote(g.value())))
	}
	for range g.IntN(3) {
		name := g.of("Last-Event-ID", "X-Request-Id", "Kafka-Header-x", "Kafka-Header-", "ce-id", "ce-specversion", "ce-type", "ce-source", "ce-time", "Traceparent", "Authorization", "Cookie",
			"X-Forwarded-Host", "X-Forwarded-Port", "Range", "If-Match", "Upgrade", "Connection", "TE", "Trailer")
		value := strconv.Quote(g.value())
		if g.rarely(20) {
			name, value = g.of("Expect", "Content-Length", "Transfer-Encoding", "na me", "", "Ü", name), g.value()
		}
		add(name, g.of(value, value, strings.Trim(value, `"`), "1.0", "close", "upgrade", "websocket", "100-continue", "chunked", "gzip"))
	}
	if g.rarely(60) {
		add("X-Large", repeat('h', 10_000+g.IntN(20_000)))
	}
	if g.rarely(60) {
		header = append(header, " folded", "no colon", "\x00: \x00")
	}
	if g.rarely(6) {
		encoding := g.of("gzip", "gzip", "zstd", "br", "gzip, gzip", "identity", "")
		add("Content-Encoding", encoding)
		if encoding == "gzip" && !g.rarely(3) {
			var packed bytes.Buffer
			w := gzip.NewWriter(&packed)
			_, _ = w.Write(body)
			_ = w.Close()
			body = packed.Bytes()
			if g.rarely(3) {
				body = body[:g.IntN(len(body))]
			}
		}
	}
	sent := body
	switch {
	case g.rarely(5): // chunked, and broken now and then
		add("Transfer-Encoding", "chunked")
		var chunks bytes.Buffer
		for rest := body; len(rest) > 0; {
			n := min(len(rest), 1+g.IntN(5000))
			size := g.of(strconv.FormatInt(int64(n), 16), strconv.FormatInt(int64(n), 16), strconv.FormatInt(int64(n), 16)+";x=y", "0"+strconv.FormatInt(int64(n), 16))
			if g.rarely(50) {
				size = g.of("-1", "zz", "ffffffffffffffffff", "", "1 1", g.value())
			}
			fmt.Fprintf(&chunks, "%s\r\n%s\r\n", size, rest[:n])
			rest = rest[n:]
		}
		chunks.WriteString(g.of("0\r\n\r\n", "0\r\n\r\n", "0\r\n\r\n", "0\r\nA: b\r\n\r\n", "0\r\n", "", "0\r\n\xff\r\n\r\n"))
		sent = chunks.Bytes()
	case len(body) > 0 || g.rarely(3):
		length := strconv.Itoa(len(body))
		if g.rarely(10) {
			length = g.of("-1", "0", "+5", "5, 6", "1e3", "99999999999999999999", "300000", strconv.Itoa(len(body)+1), strconv.Itoa(max(0, len(body)-1)), g.value())
		}
		add("Content-Length", length)
	}
	g.Shuffle(len(header), func(i, j int) { header[i], header[j] = header[j], header[i] })
	version := "HTTP/1.1"
	if g.rarely(30) {
		version = g.of("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9.9", "HTTP", "", "SPDY/3")
	}
	newline := "\r\n"
	if g.rarely(50) {
		newline = g.of("\n", "\r", "\r\n\r\n")
	}
	return slices.Concat([]byte(method+" "+target+" "+version+newline+strings.Join(header, newline)+newline+newline), sent)
}
