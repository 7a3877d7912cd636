package httpapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestTheBodyIsTheRecord(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const zeros = "\x00\xff{}\r\n"
	for _, tc := range []struct {
		path, body  string
		headers     []string
		key         string // null where Kafka's null is meant
		value       string
		wantHeaders string
	}{
		{"/topics/b/records?key=key1", "Hello, Kafka!", []string{"Content-Type: application/x-www-form-urlencoded"}, "key1", "Hello, Kafka!", "[]"},
		{"/topics/b/records", zeros, nil, "null", zeros, "[]"},
		{"/topics/b/records?key=", "", nil, "", "", "[]"},
		{"/topics/b/records?key=k&tombstone=true", "", nil, "k", "null", "[]"},
		{"/topics/b/records?tombstone=false", "", nil, "null", "", "[]"},
		{"/topics/b/records?key=gr%C3%BC%C3%9Fe%2B+x", "v", nil, "grüße+ x", "v", "[]"},
		{"/topics/b/records/", "trailing slash", nil, "null", "trailing slash", "[]"},
		{"/topics/b/records", "v", []string{
			"Content-Type: application/json", "Kafka-Header-B: 2", "Kafka-Header-a: 1", "Kafka-Header-A: again", "Kafka-Header-Empty: ",
			"X-Other: no", "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Kafka-Header-: nameless",
		}, "null", "v", "[content-type=application/json traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 a=1 a=again b=2 empty=]"},
		{"/topics/b/records", packed("gzip", "zipped"), []string{"Content-Encoding: gzip"}, "null", "zipped", "[]"},
		{"/topics/b/records", packed("zstd", "squeezed"), []string{"Content-Encoding: ZSTD"}, "null", "squeezed", "[]"},
		{"/topics/b/records", packed("gzip", ""), []string{"Content-Encoding: gzip"}, "null", "", "[]"},
		{"/topics/b/records?timestamp=2026-01-02T03:04:05.678Z&partition=0", "then", nil, "null", "then", "[]"},
	} {
		before := time.Now().Truncate(time.Millisecond)
		got := s.do("POST", tc.path, tc.body, tc.headers...)
		var place struct {
			Topic     string
			Partition int32
			Offset    int64
			Timestamp time.Time
		}
		if err := json.Unmarshal([]byte(got.body), &place); err != nil || got.status != 200 || place.Topic != "b" || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s", tc.path, got.status, got.body)
			continue
		}
		all := s.records("b", int(place.Offset)+1)
		r := all[place.Offset]
		null := func(b []byte) string {
			if b == nil {
				return "null"
			}
			return string(b)
		}
		headers := []string{}
		for _, h := range r.Headers {
			headers = append(headers, h.Key+"="+null(h.Value))
		}
		if null(r.Key) != tc.key || null(r.Value) != tc.value || fmt.Sprint(headers) != tc.wantHeaders {
			t.Errorf("%s: stored %q = %q, %v; want %q = %q, %s", tc.path, null(r.Key), null(r.Value), headers, tc.key, tc.value, tc.wantHeaders)
		}
		if strings.Contains(tc.path, "timestamp") {
			before = time.UnixMilli(1767323045678)
			if !strings.Contains(got.body, `"timestamp":"2026-01-02T03:04:05.678Z"`) {
				t.Errorf("the timestamp is written as %s", got.body)
			}
			if !r.Timestamp.Equal(before) {
				t.Errorf("the timestamp is %v", r.Timestamp)
			}
		}
		if !r.Timestamp.Equal(place.Timestamp) || r.Timestamp.Before(before) {
			t.Errorf("%s: the answer says %v, the record %v", tc.path, place.Timestamp, r.Timestamp)
		}
	}
	s.do("POST", "/topics/a/records?partition=2", "v").want(t, "a partition that is named", 200, "")
	if r := s.records("a", 1)[0]; r.Partition != 2 {
		t.Errorf("partition 2 was named, and it is in %d", r.Partition)
	}
}

func TestProduceOfTheDialect(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const ok = `"key_schema_id":null,"value_schema_id":null}`
	for _, tc := range []struct{ path, body, contentType, want string }{
		{"/topics/b", `{"records":[{"key":"k","value":{"a":1e400}},{"value":null}]}`, jsonV2, `{"offsets":[{"partition":0,"offset":0,"error_code":null,"error":null},{"partition":0,"offset":1,"error_code":null,"error":null}],` + ok},
		{"/topics/b/", `{"records":[{"value":"AP8="}]}`, binaryV2, `{"offsets":[{"partition":0,"offset":2,"error_code":null,"error":null}],` + ok},
		{"/topics/b/partitions/0", `{"value_schema_id":1,"records":[{"value":"t","headers":[{"key":"h","value":null}]}]}`, "Content-Type: application/vnd.kafka.text.v2+json; charset=utf-8", `{"offsets":[{"partition":0,"offset":3,"error_code":null,"error":null}],` + ok},
		// One that cannot be stored does not hold back the others, and its place is null.
		{"/topics/b", `{"records":[{"value":1},{"value":2,"partition":7},{"value":3}]}`, jsonV2, `{"offsets":[{"partition":0,"offset":4,"error_code":null,"error":null},` +
			`{"partition":null,"offset":null,"error_code":40402,"error":"topic \"b\" has no partition 7; it has 1, from 0 to 0"},{"partition":0,"offset":5,"error_code":null,"error":null}],` + ok},
		{"/topics/a/partitions/1", `{"records":[{"value":1},{"value":2,"partition":2}]}`, jsonV2, `{"offsets":[{"partition":1,"offset":0,"error_code":null,"error":null},{"partition":2,"offset":0,"error_code":null,"error":null}],` + ok},
	} {
		got := s.do("POST", tc.path, tc.body, tc.contentType)
		got.want(t, tc.path+" "+tc.body, 200, tc.want)
		if ct := got.header.Get("Content-Type"); ct != "application/vnd.kafka.v2+json" {
			t.Errorf("the answer is %s", ct)
		}
	}
	large := s.do("POST", "/topics/b", `{"records":[{"value":1},{"value":"`+repeat('x', 2<<20)+`"}]}`, jsonV2)
	if large.status != 200 || !strings.Contains(large.body, `"offset":6`) || !strings.Contains(large.body, `"error_code":413`) {
		t.Errorf("one of two is too large for the topic: %d %s", large.status, large.body)
	}
	var values []string
	for _, r := range s.records("b", 7) {
		values = append(values, string(r.Value))
	}
	if want := []string{`{"a":1e400}`, "", "\x00\xff", "t", "1", "3", "1"}; !slices.Equal(values, want) {
		t.Errorf("stored are %q; want %q", values, want)
	}
}

func TestLimitsAnswer429WithRetryAfter(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{
		"MAX_BODY_BYTES": "30000", "MAX_BATCH_BYTES": "30000", "MAX_IN_FLIGHT_BYTES": "30000", "MAX_SESSIONS": "1", "MAX_STREAMS": "1",
	})
	refused := func(what string, got answer, variable string) {
		t.Helper()
		if got.status != 429 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, variable) {
			t.Errorf("%s: %d %s, Retry-After %q; want 429 of %s", what, got.status, got.body, got.header.Get("Retry-After"), variable)
		}
	}
	// A request that is still being sent holds what it has announced.
	body, sender := io.Pipe()
	slow := make(chan answer)
	go func() { defer close(slow); slow <- s.send("POST", "/topics/a/records", body, "Content-Length: 20000") }()
	if _, err := io.WriteString(sender, repeat('x', 19999)); err != nil {
		t.Fatal(err)
	}
	// Not sooner: the other would be in the way of this one.
	eventually(t, "the slow request is being read", func() bool { return strings.Contains(s.metricsText(), "postamt_http_requests_in_flight 1\n") })
	var got answer
	eventually(t, "the slow request holds its bytes", func() bool {
		got = s.do("POST", "/topics/a/records", repeat('y', 15000))
		return got.status != 200
	})
	refused("the second request", got, "MAX_IN_FLIGHT_BYTES")
	if _, err := io.WriteString(sender, "x"); err != nil {
		t.Fatal(err)
	}
	_ = sender.Close()
	(<-slow).want(t, "the slow request", 200, "")
	s.do("POST", "/topics/a/records", repeat('y', 15000)).want(t, "after it", 200, "")

	s.do("POST", "/consumers/g", `{"name":"c"}`, plainV2).want(t, "the first session", 200, "")
	refused("the second session", s.do("POST", "/consumers/g", `{}`, plainV2), "MAX_SESSIONS")
	s.do("DELETE", "/consumers/g/instances/c", "").want(t, "delete", 204, "")
	s.do("POST", "/consumers/g", `{}`, plainV2).want(t, "a session after the first is gone", 200, "")

	first := s.stream("/streams/a")
	refused("the second stream", s.do("GET", "/streams/a", ""), "MAX_STREAMS")
	first.close()
	eventually(t, "there is room for a stream again", func() bool {
		got := s.tryStream("/streams/a")
		if got != nil {
			got.close()
		}
		return got != nil
	})
}

func TestKafkaAwayIs503WithRetryAfter(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"REQUEST_TIMEOUT": "1s"})
	eventually(t, "a record is stored while Kafka is there", func() bool { return s.do("POST", "/topics/a/records", "v").status == 200 })
	s.do("GET", "/health", "").want(t, "healthy", 200, "")
	s.cluster.Close()
	eventually(t, "the health check notices", func() bool { return strings.Contains(s.do("GET", "/health", "").body, `"status":"degraded"`) })
	for _, tc := range []struct{ method, path, body, contentType string }{
		{"POST", "/topics/a/records", "v", "Content-Type: text/plain"},
		{"POST", "/topics/a", `{"records":[{"value":1},{"value":2}]}`, jsonV2},
		{"POST", "/topics/unseen/records", "v", "Content-Type: text/plain"},
		{"GET", "/topics", "", "Accept: */*"},
		{"GET", "/topics/a", "", "Accept: */*"},
		{"GET", "/streams/a", "", "Accept: */*"},
	} {
		start := time.Now()
		got := s.do(tc.method, tc.path, tc.body, tc.contentType)
		if got.status != 503 || got.code(t) != 50302 || got.header.Get("Retry-After") == "" || time.Since(start) > 5*time.Second {
			t.Errorf("%s %s: %d %s, Retry-After %q, after %v", tc.method, tc.path, got.status, got.body, got.header.Get("Retry-After"), time.Since(start))
		}
	}
	if text := s.do("GET", "/health", "").body; strings.Contains(text, "127.0.0.1") || !strings.Contains(text, `"error":"Kafka cannot be reached`) {
		t.Errorf("health says %s; the addresses of the cluster are not for everyone", text)
	}
	// It stays in the proxy's rotation: 503 in our form is better than the proxy's own.
	s.do("GET", "/health", "").want(t, "health", 200, "")
	s.do("GET", "/health/live", "").want(t, "live", 200, "")
	s.do("GET", "/health/ready", "").want(t, "ready", 503, "")
}

// READ_TIMEOUT is about the request, not about the time that its answer takes.
func TestASlowKafkaIsNotASlowClient(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"READ_TIMEOUT": "300ms"})
	s.do("POST", "/topics/b/records", "0").want(t, "a record", 200, "")
	s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "b")
	for key, request := range map[kmsg.Key]func() answer{
		kmsg.Produce: func() answer { return s.do("POST", "/topics/b/records", "1") },
		kmsg.OffsetCommit: func() answer {
			return s.do("POST", "/consumers/g/instances/c/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":0}]}`, plainV2)
		},
	} {
		s.cluster.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
			s.cluster.SleepControl(func() { time.Sleep(800 * time.Millisecond) }) // a slow broker
			return nil, nil, false
		})
		start := time.Now()
		got := request()
		if took := time.Since(start); got.status != 200 || strings.TrimSpace(got.body) == "" || took < 700*time.Millisecond {
			t.Errorf("%v: %d %q after %v; want 200 after 800ms", key, got.status, got.body, took)
		}
	}
}

func TestASlowBodyIsCutOff(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"READ_TIMEOUT": "300ms"})
	for what, request := range map[string]string{
		"a body that does not come": "POST /topics/a/records HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
		"chunks that do not come":   "POST /topics/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		reply, err := io.ReadAll(conn) // ends when the server closes the connection
		if err != nil || !strings.HasPrefix(string(reply), "HTTP/1.1 408") || !strings.Contains(string(reply), `{"error_code":408,"message":`) {
			t.Errorf("%s: %q, %v; want a 408 in our form and the end", what, reply, err)
		}
	}
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for id, kept := range map[string]bool{
		"abc-123": true, repeat('x', 128): true, "a/b=c;{}": true,
		"": false, repeat('x', 129): false, "two words": false, "ü": false,
	} {
		got := s.do("GET", "/health/live", "", "X-Request-Id: "+id).header.Get("X-Request-Id")
		if kept != (got == id) || got == "" {
			t.Errorf("X-Request-Id %q came back as %q", id, got)
		}
	}
	if a, b := s.do("GET", "/topics", "").header.Get("X-Request-Id"), s.do("GET", "/topics", "").header.Get("X-Request-Id"); a == b {
		t.Errorf("two requests have the id %q", a)
	}
}
