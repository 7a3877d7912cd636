package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/kafka"
)

func TestMetadata(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/a/records?partition=1", "v").want(t, "a record", 200, "")
	const partition1 = `{"partition":1,"leader":0,"replicas":[{"broker":0,"leader":true,"in_sync":true}]}`
	for path, want := range map[string]string{
		"/topics":                         `["a","b"]`, // none of our own
		"/topics/":                        `["a","b"]`,
		"/topics/a/partitions":            `[` + strings.Replace(partition1, `:1`, `:0`, 1) + `,` + partition1 + `,` + strings.Replace(partition1, `:1`, `:2`, 1) + `]`,
		"/topics/a/partitions/1":          partition1,
		"/topics/a/partitions/1/offsets":  `{"beginning_offset":0,"end_offset":1}`,
		"/topics/a/partitions/2/offsets/": `{"beginning_offset":0,"end_offset":0}`,
	} {
		got := s.do("GET", path, "")
		got.want(t, path, 200, want)
		if ct := got.header.Get("Content-Type"); ct != "application/vnd.kafka.v2+json" {
			t.Errorf("%s is %s", path, ct)
		}
	}
	var topic struct {
		Name       string
		Configs    map[string]string
		Partitions []any
	}
	if got := s.do("GET", "/topics/a", ""); json.Unmarshal([]byte(got.body), &topic) != nil || topic.Name != "a" || len(topic.Partitions) != 3 || topic.Configs["max.message.bytes"] == "" {
		t.Errorf("/topics/a is %s", got.body)
	}
}

// joined makes a session with the given settings and reads until it has partitions; what it
// reads is given back by making the session anew.
func (s *service) joined(group, name, settings, topic string) string {
	s.t.Helper()
	if settings != "" {
		settings = "," + settings
	}
	s.do("POST", group, fmt.Sprintf(`{"name":%q,"format":"json"%s}`, name, settings), plainV2).want(s.t, "create", 200, "")
	base := group + "/instances/" + name
	s.do("POST", base+"/subscription", fmt.Sprintf(`{"topics":[%q]}`, topic), plainV2).want(s.t, "subscribe", 204, "")
	eventually(s.t, "the session has partitions", func() bool {
		return s.do("GET", base+"/assignments", "").body != "{\"partitions\":[]}\n"
	})
	return base
}

func TestPullSession(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for _, v := range []string{`{"n":0}`, `"ü"`, "not json"} {
		s.do("POST", "/topics/b/records?timestamp=1767323045678", v, "Kafka-Header-H: x").want(t, "a record", 200, "")
	}
	got := s.do("POST", "/consumers/g", `{"name":"c","format":"json","auto.offset.reset":"earliest"}`, plainV2)
	got.want(t, "create", 200, `{"instance_id":"c","base_uri":"`+s.api+`/consumers/g/instances/c"}`)
	base := "/consumers/g/instances/c"
	s.do("GET", base+"/subscription", "").want(t, "no subscription", 200, `{"topics":[]}`)
	s.do("GET", base+"/assignments", "").want(t, "no assignments", 200, `{"partitions":[]}`)
	s.do("POST", base+"/subscription/", `{"topics":["b","b"]}`, jsonV2).want(t, "subscribe", 204, "")
	s.do("GET", base+"/subscription", "").want(t, "subscription", 200, `{"topics":["b"]}`)

	record := func(offset int, value string) string {
		return fmt.Sprintf(`{"topic":"b","key":null,"value":%s,"partition":0,"offset":%d,"timestamp":1767323045678,"headers":[{"key":"h","value":"eA=="}]}`, value, offset)
	}
	// One record at a time, however small max_bytes is.
	var first answer
	eventually(t, "a record comes", func() bool {
		first = s.do("GET", base+"/records?timeout=500&max_bytes=1", "", "Accept: application/vnd.kafka.json.v2+json")
		return first.body != "[]"
	})
	first.want(t, "the first read", 200, "["+record(0, `{"n":0}`)+"]")
	if ct := first.header.Get("Content-Type"); ct != "application/vnd.kafka.json.v2+json" {
		t.Errorf("records come as %s", ct)
	}
	s.do("GET", base+"/assignments", "").want(t, "assignments", 200, `{"partitions":[{"topic":"b","partition":0}]}`)
	const asked = `{"partitions":[{"topic":"b","partition":0}]}`
	s.do("GET", base+"/offsets", asked, plainV2).want(t, "nothing is committed", 200, `{"offsets":[]}`)
	s.do("POST", base+"/offsets", "").want(t, "commit", 200, `[]`)
	committed := func(offset int, metadata string) string {
		return fmt.Sprintf(`{"offsets":[{"topic":"b","partition":0,"offset":%d,"metadata":%q}]}`, offset, metadata)
	}
	s.do("GET", base+"/offsets", asked, plainV2).want(t, "what was given is committed", 200, committed(1, ""))

	start := time.Now()
	misfit := strings.Replace(record(2, "null"), `"partition"`, `"value_base64":"bm90IGpzb24=","error":"the value is not JSON","partition"`, 1)
	s.do("GET", base+"/records?timeout=20000", "").want(t, "the rest", 200, "["+record(1, `"ü"`)+","+misfit+"]")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("records that are there took %v", took)
	}
	s.do("GET", base+"/records?timeout=10", "").want(t, "no more", 200, "[]")
	// The offset of the last record that the client has done with: the next one is stored.
	s.do("POST", base+"/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":1,"metadata":"m"}]}`, plainV2).want(t, "commit of an offset", 200, "[]")
	s.do("GET", base+"/offsets?topic=b&partition=0", "").want(t, "committed", 200, committed(2, "m"))
	s.do("DELETE", base+"/subscription", "").want(t, "unsubscribe", 204, "")
	s.do("DELETE", base+"/", "").want(t, "delete", 204, "")
	s.do("DELETE", base, "").want(t, "delete again", 404, "")

	// The next member of the group goes on there.
	base = s.joined("/consumers/g", "d", "", "b")
	s.do("GET", base+"/records?timeout=20000", "").want(t, "the next member reads", 200, "["+misfit+"]")

	generated := s.do("POST", "/consumers/g/", "")
	s.do("POST", "/consumers/g", "{}", "Content-Type: application/vnd.kafka.avro.v2+json").want(t, "a client that always sends its own type", 200, "")
	if !regexp.MustCompile(`^\{"instance_id":"rest-consumer-[0-9a-f-]{36}","base_uri":"`).MatchString(generated.body) {
		t.Errorf("a session without a name is %s", generated.body)
	}
}

// A long answer is encoded while it is sent: it is one array all the same.
func TestALongReadIsOneArray(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const records, each = 2000, 1000 // 2 MB
	batch := `{"records":[` + strings.TrimSuffix(strings.Repeat(`{"value":"`+repeat('x', each)+`"},`, 500), ",") + `]}`
	for range records / 500 {
		s.do("POST", "/topics/b", batch, jsonV2).want(t, "500 records", 200, "")
	}
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "b")
	next, longest := int64(0), 0
	eventually(t, "all records come", func() bool {
		got := s.do("GET", base+"/records?timeout=1000", "")
		var read []struct {
			Value  string
			Offset int64
		}
		if err := json.Unmarshal([]byte(got.body), &read); err != nil || got.header.Get("Content-Type") != "application/vnd.kafka.json.v2+json" {
			t.Fatalf("%v in %d bytes of %s", err, len(got.body), got.header.Get("Content-Type"))
		}
		longest = max(longest, len(read))
		for _, r := range read {
			if r.Offset != next || len(r.Value) != each {
				t.Fatalf("offset %d with %d bytes; want offset %d", r.Offset, len(r.Value), next)
			}
			next++
		}
		return next == records
	})
	if longest < 600 {
		t.Errorf("the longest answer had %d records: all were short", longest)
	}
}

// What the client has not received comes again, and is not committed.
func TestAReaderThatGoesAwayLosesNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest","auto.commit.enable":"true"`, "b")
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, s.api+base+"/records?timeout=10000", nil)
		if resp, err := s.http.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
		cancel()
	}
	for i := range 3 {
		s.do("POST", "/topics/b/records", fmt.Sprint(i)).want(t, "a record", 200, "")
	}
	var got []string
	offsets := regexp.MustCompile(`"offset":(\d+)`)
	eventually(t, "all records come", func() bool {
		for _, m := range offsets.FindAllStringSubmatch(s.do("GET", base+"/records?timeout=1000", "").body, -1) {
			got = append(got, m[1])
		}
		return len(got) >= 3
	})
	if !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Errorf("it reads the offsets %v", got)
	}
	aborted := regexp.MustCompile(`postamt_http_requests_total\{code="499",method="GET",route="/consumers/\{group\}/instances/\{instance\}/records"\} [1-9]`)
	eventually(t, "who went away is counted as that", func() bool { return aborted.MatchString(s.metricsText()) })
}

// A client that stops reading in the middle of an answer has not received it.
func TestAReaderThatStopsLosesNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"READ_TIMEOUT": "3s"})
	const records, size = 24, 900_000 // more than the two sockets hold
	for range records {
		s.do("POST", "/topics/b/records", repeat('x', size)).want(t, "a record", 200, "")
	}
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest","fetch.min.bytes":10000000`, "b")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprintf(conn, "GET %s/records?timeout=10000 HTTP/1.1\r\nHost: x\r\n\r\n", base)
	eventually(t, "the server gives up", func() bool {
		return strings.Contains(s.metricsText(), `postamt_http_requests_total{code="499"`)
	})
	s.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	s.do("GET", base+"/offsets?topic=b&partition=0", "").want(t, "nothing was received, nothing is committed", 200, `{"offsets":[]}`)
	s.http = http.DefaultTransport // to hold 20 MB against the contract takes longer than the test has
	var offsets []string
	eventually(t, "all of them come", func() bool {
		for _, m := range regexp.MustCompile(`"offset":(\d+)`).FindAllStringSubmatch(s.do("GET", base+"/records", "").body, -1) {
			offsets = append(offsets, m[1])
		}
		return len(offsets) >= records
	})
	for i, o := range offsets {
		if o != fmt.Sprint(i) {
			t.Fatalf("it reads the offsets %v", offsets)
		}
	}
}

func TestBaseURIFollowsTrustedProxiesOnly(t *testing.T) {
	t.Parallel()
	trusting, wary := serve(t, nil), serve(t, map[string]string{"TRUSTED_PROXIES": "10.0.0.0/8"})
	for i, tc := range []struct{ headers, want string }{
		{"", "http://HOST"},
		{"X-Forwarded-Proto: https|X-Forwarded-Host: post.example.com", "https://post.example.com"},
		{"X-Forwarded-Proto: https|X-Forwarded-Host: post.example.com|X-Forwarded-Port: 443", "https://post.example.com"},
		{"X-Forwarded-Proto: http|X-Forwarded-Host: post.example.com|X-Forwarded-Port: 8080", "http://post.example.com:8080"},
		{"X-Forwarded-Host: post.example.com:8443|X-Forwarded-Port: 80", "http://post.example.com:8443"},
		{"X-Forwarded-Host: one.example.com, two.example.com|X-Forwarded-Prefix: /post/", "http://one.example.com/post"},
		{"X-Forwarded-Proto: javascript|X-Forwarded-Port: x", "http://HOST"},
		{"X-Forwarded-Proto: https,http|X-Forwarded-Host: one.example.com,two", "https://one.example.com"},
		{"X-Forwarded-Proto: https|X-Forwarded-Host: h.example|X-Forwarded-Prefix: evil", "https://h.example"},
		{"X-Forwarded-Host: h.example/evil?", "http://HOST"},
		{"Forwarded: for=192.0.2.60; Proto=https;host=f.example", "https://f.example"},
		{`Forwarded: for="[2001:db8::1]:99,;x";host="f.example:8443";proto=https, for=10.0.0.1;host=other`, "https://f.example:8443"},
		{"Forwarded: host=f.example:8080", "http://f.example:8080"},
		{"Forwarded: host=f.example;proto=https|X-Forwarded-Host: x.example", "https://x.example"},
		{`Forwarded: ;=;host="a b";proto`, "http://HOST"},
	} {
		var headers []string
		if tc.headers != "" {
			headers = strings.Split(tc.headers, "|")
		}
		body := fmt.Sprintf(`{"name":"c%d"}`, i)
		for s, want := range map[*service]string{trusting: tc.want, wary: "http://HOST"} {
			want = strings.Replace(want, "http://HOST", s.api, 1) + fmt.Sprintf("/consumers/g/instances/c%d", i)
			if got := s.do("POST", "/consumers/g", body, append(headers, plainV2)...); !strings.Contains(got.body, `"base_uri":"`+want+`"`) {
				t.Errorf("%s: %s; want %s", tc.headers, got.body, want)
			}
		}
	}
}

// sse is an open stream.
type sse struct {
	t     *testing.T
	lines *bufio.Scanner
	close func()
	resp  *http.Response
}

func (s *service) stream(path string, headers ...string) *sse {
	s.t.Helper()
	st := s.tryStream(path, headers...)
	if st == nil {
		s.t.Fatalf("%s: no stream", path)
	}
	return st
}

func (s *service) tryStream(path string, headers ...string) *sse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := s.http.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return &sse{s.t, lines, func() { cancel(); _ = resp.Body.Close() }, resp}
}

// block reads up to the next empty line, by field name; "" is a comment.
func (e *sse) block() map[string]string {
	e.t.Helper()
	out := make(map[string]string)
	for e.lines.Scan() {
		if e.lines.Text() == "" {
			return out
		}
		name, value, _ := strings.Cut(e.lines.Text(), ":")
		if _, twice := out[name]; twice {
			e.t.Errorf("two lines of %q in one event", name)
		}
		out[name] = strings.TrimPrefix(value, " ")
	}
	e.t.Fatalf("the stream ended: %v", e.lines.Err())
	return nil
}

// event reads up to the next event that has data.
func (e *sse) event() map[string]string {
	e.t.Helper()
	for {
		if b := e.block(); b["data"] != "" {
			return b
		}
	}
}

func TestServerSentEvents(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"STREAM_HEARTBEAT": "100ms"})
	post := func(values ...string) {
		t.Helper()
		for _, v := range values {
			s.do("POST", "/topics/b/records?key=k&timestamp=1767323045678", v).want(t, "a record", 200, "")
		}
	}
	post(`"old"`)
	st := s.stream("/streams/b?from=latest")
	defer st.close()
	if h := st.resp.Header; h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("the header is %v", h)
	}
	begin := st.block() // at once, before there is any record
	if begin["id"] == "" || begin["data"] != "" {
		t.Fatalf("the first block is %v; want an id alone", begin)
	}
	for range 2 { // a quiet stream shows that it lives
		if b := st.block(); b["id"] != begin["id"] || b["data"] != "" {
			t.Errorf("a heartbeat is %v", b)
		}
	}
	post("{\n\"n\":1}", "two\nlines")
	const place = `"partition":0,"offset":%d,"timestamp":1767323045678}`
	one, two := st.event(), st.event()
	if want := `{"topic":"b","key":null,"value":{"n":1},"key_base64":"aw==","error":"the key is not JSON",` + fmt.Sprintf(place, 1); one["data"] != want || one["event"] != "" {
		t.Errorf("the first event is %v; want %s", one, want)
	}
	if !strings.Contains(two["data"], `"value_base64":"dHdvCmxpbmVz"`) || one["id"] == two["id"] || one["id"] == begin["id"] {
		t.Errorf("the second event is %v", two)
	}
	post("3")
	// What EventSource does when it connects again: the header wins over ?from=.
	for id, want := range map[string]int{begin["id"]: 1, one["id"]: 2, two["id"]: 3} {
		again := s.stream("/streams/b/?from=latest&format=text", "Last-Event-ID: "+id)
		if e := again.event(); !strings.HasSuffix(e["data"], fmt.Sprintf(place, want)) {
			t.Errorf("after %s comes %s; want offset %d", id, e["data"], want)
		}
		again.close()
		again = s.stream("/streams/b?from=" + id + "&format=binary&partition=0")
		if e := again.event(); !strings.HasSuffix(e["data"], fmt.Sprintf(place, want)) || !strings.Contains(e["data"], `"key":"aw=="`) {
			t.Errorf("from=%s gives %s; want offset %d in base64", id, e["data"], want)
		}
		again.close()
	}

	// A place that retention took is shown, not skipped in silence.
	client, err := kafka.NewClient(s.cluster.ListenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	offsets := make(kadm.Offsets)
	offsets.AddOffset("b", 0, 3, -1)
	if _, err := kadm.NewClient(client).DeleteRecords(t.Context(), offsets); err != nil {
		t.Fatal(err)
	}
	late := s.stream("/streams/b", "Last-Event-ID: "+begin["id"])
	defer late.close()
	if e := late.event(); e["event"] != "gap" || e["data"] != `{"partition":0,"from":1,"to":3}` || e["id"] == "" {
		t.Errorf("an expired cursor gives %v", e)
	}
	if e := late.event(); !strings.Contains(e["data"], `"offset":3`) || e["event"] != "" {
		t.Errorf("after the gap comes %v", e)
	}

	// The end of the topic is the end of the stream, and it says so.
	if _, err := kadm.NewClient(client).DeleteTopic(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if e := late.event(); e["event"] != "error" || !strings.Contains(e["data"], `"error_code":40401`) {
		t.Errorf("the topic was deleted: %v", e)
	}
	if late.lines.Scan() {
		t.Errorf("after the error comes %q", late.lines.Text())
	}
}

func TestStreamAsLines(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"STREAM_HEARTBEAT": "100ms"})
	for i := range 3 {
		s.do("POST", "/topics/b/records?timestamp=1767323045678", fmt.Sprint(i)).want(t, "a record", 200, "")
	}
	st := s.stream("/streams/b?from=earliest", "Accept: application/x-ndjson")
	defer st.close()
	if ct := st.resp.Header.Get("Content-Type"); ct != "application/x-ndjson" {
		t.Errorf("the stream is %s", ct)
	}
	var cursor string
	var offsets []int64
	for (len(offsets) < 3 || cursor == "") && st.lines.Scan() {
		var line struct {
			Cursor string
			Value  json.RawMessage
			Offset int64
		}
		if err := json.Unmarshal(st.lines.Bytes(), &line); err != nil {
			t.Fatalf("%q is not JSON", st.lines.Text())
		}
		switch {
		case line.Value != nil:
			offsets = append(offsets, line.Offset)
			cursor = ""
		default:
			cursor = line.Cursor
		}
	}
	if !slices.Equal(offsets, []int64{0, 1, 2}) || cursor == "" {
		t.Fatalf("the lines have the offsets %v and then the cursor %q", offsets, cursor)
	}
	s.do("POST", "/topics/b/records", "3").want(t, "a record", 200, "")
	again := s.stream("/streams/b?from="+cursor, "Accept: application/x-ndjson")
	defer again.close()
	for again.lines.Scan() && !strings.Contains(again.lines.Text(), `"value"`) {
		continue
	}
	if !strings.Contains(again.lines.Text(), `"offset":3`) {
		t.Errorf("from the cursor comes %q", again.lines.Text())
	}
}

// A stream that is never quiet notices new partitions, too.
func TestBusyStreamPicksUpNewPartitions(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"STREAM_HEARTBEAT": "100ms"})
	client, err := kafka.NewClient(s.cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	st := s.stream("/streams/b")
	defer st.close()
	ctx, stop := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	busy.Go(func() {
		for ctx.Err() == nil {
			s.do("POST", "/topics/b/records?partition=0", "busy")
		}
	})
	st.event()
	if _, err := kadm.NewClient(client).UpdatePartitions(t.Context(), 2, "b"); err != nil {
		t.Fatal(err)
	}
	// The producer may not know it yet: then it is a matter of time, not a 404.
	if got := s.do("POST", "/topics/b/records?partition=1", "0"); got.status != 200 && (got.status != 503 || got.header.Get("Retry-After") == "") {
		t.Errorf("a record for a partition that was just added: %d %s", got.status, got.body)
	}
	s.do("GET", "/topics/b/partitions/1", "").want(t, "the new partition", 200, "")
	client.ForceMetadataRefresh()
	eventually(t, "a record is in the new partition", func() bool {
		return client.ProduceSync(t.Context(), &kgo.Record{Topic: "b", Partition: 1, Value: []byte("1")}).FirstErr() == nil
	})
	for !strings.Contains(st.event()["data"], `"partition":1,"offset":0`) {
		continue // the stream's own time limit ends this
	}
}
