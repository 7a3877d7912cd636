package httpapi_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

const (
	jsonV2   = "Content-Type: application/vnd.kafka.json.v2+json"
	binaryV2 = "Content-Type: application/vnd.kafka.binary.v2+json"
	plainV2  = "Content-Type: application/vnd.kafka.v2+json"
)

func TestEveryErrorHasItsStatusAndCode(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "1000", "MAX_BATCH_BYTES": "2000", "MAX_RECORDS": "3"})
	s.do("POST", "/consumers/g", `{"name":"c"}`, plainV2).want(t, "create", 200, "")
	s.do("POST", "/consumers/g", `{"name":"sub","format":"json"}`, plainV2).want(t, "create", 200, "")
	s.do("POST", "/consumers/g/instances/sub/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	const (
		c   = "/consumers/g/instances/c"
		sub = "/consumers/g/instances/sub"
	)
	for _, tc := range []struct {
		method, path, body string
		headers            []string
		status, code       int
		says               string
	}{
		// Routes
		{"GET", "/", "", []string{"Accept: text/html"}, 406, 406, "Accept is text/html"},
		{"GET", "/brokers", "", []string{"Accept: text/html"}, 406, 406, "Accept is text/html"},
		{"GET", "/nothing/here", "", nil, 404, 404, "there is nothing at /nothing/here"},
		{"GET", "/topics/a/nothing", "", nil, 404, 404, ""},
		{"GET", "/favicon.ico", "", nil, 404, 404, ""},
		// A redirect would make a GET of a POST in many clients.
		{"POST", "/topics//records", "v", nil, 404, 404, "no empty, '.' or '..' segments"},
		{"POST", "/topics/../records", "v", nil, 404, 404, "segments"},
		{"GET", "//topics", "", nil, 404, 404, "segments"},

		// The body is the record
		{"POST", "/topics/nowhere/records", "v", nil, 404, 40401, `there is no topic "nowhere"`},
		{"POST", "/topics/_postamt.own/records", "v", nil, 404, 40401, "there is no topic"},
		{"POST", "/topics/__consumer_offsets/records", "v", nil, 404, 40401, "there is no topic"},
		{"POST", "/topics/a%2Fb/records", "v", nil, 404, 40401, ""},
		{"POST", "/topics/a/records?partition=3", "v", nil, 404, 40402, "has no partition 3; it has 3, from 0 to 2"},
		{"POST", "/topics/a/records?partition=-1", "v", nil, 400, 400, `partition is "-1"`},
		{"POST", "/topics/a/records?partition=first", "v", nil, 400, 400, "must be a number from 0 up"},
		{"POST", "/topics/a/records?timestamp=yesterday", "v", nil, 400, 400, "timestamp is"},
		{"POST", "/topics/a/records?timestamp=0", "v", nil, 422, 422, "after 1970"},
		{"POST", "/topics/a/records?timestamp=253402300800000", "v", nil, 422, 422, "before the year 10000"},
		{"POST", "/topics/a/records?timestamp=9223372036854775807", "v", nil, 422, 422, "before the year 10000"},
		{"POST", "/topics/a/records?tombstone=maybe", "", nil, 400, 400, "true or false"},
		{"POST", "/topics/a/records?tombstone=true", "v", nil, 422, 422, "the body has 1 bytes"},
		{"POST", "/topics/a/records?kye=k", "v", nil, 422, 422, `there is no query parameter "kye" here; known are key`},
		{"POST", "/topics/a/records?key=k&key=l", "v", nil, 422, 422, "key is there 2 times"},
		{"POST", "/topics/a/records?partition=", "v", nil, 400, 400, "partition has no value"},
		{"POST", "/topics/a/records?partition=%2B1", "v", nil, 400, 400, "partition is"},
		{"POST", "/topics/a/partitions/+1", `{"records":[{"value":1}]}`, []string{jsonV2}, 404, 40402, "no partition"},
		{"POST", "/topics/a%2F", `{"records":[{"value":1}]}`, []string{jsonV2}, 404, 40401, "there is no topic"},
		{"GET", "/topics/a%2F/", "", nil, 404, 40401, "there is no topic"},
		{"GET", "/lag?group=", "", nil, 400, 400, "group has no value"},
		{"POST", "/topics/a/records?key=%zz", "v", nil, 400, 400, "percent-encoded"},
		{"POST", "/topics/a/records", repeat('x', 1001), nil, 413, 413, "larger than 1000 bytes (MAX_BODY_BYTES)"},
		{"POST", "/topics/a/records", "v", []string{"Content-Encoding: br"}, 415, 415, "known are gzip and zstd"},
		{"POST", "/topics/a/records", "not packed", []string{"Content-Encoding: gzip"}, 400, 400, "Content-Encoding"},
		{"POST", "/topics/a/records", "not packed", []string{"Content-Encoding: zstd"}, 400, 400, "Content-Encoding"},
		{"POST", "/topics/a/records", packed("gzip", repeat('x', 1001)), []string{"Content-Encoding: gzip"}, 413, 413, "MAX_BODY_BYTES"},
		{"POST", "/topics/a/records", packed("gzip", repeat(0, 10<<20))[:900], []string{"Content-Encoding: gzip"}, 413, 413, "MAX_BODY_BYTES"}, // a bomb
		{"POST", "/topics/a/records", packed("zstd", repeat(0, 10<<20)), []string{"Content-Encoding: zstd"}, 413, 413, "MAX_BODY_BYTES"},
		{"POST", "/topics/a/records", packed("gzip", repeat('x', 500))[:20], []string{"Content-Encoding: gzip"}, 400, 400, "ended before its end"},

		// REST Proxy produce
		{"POST", "/topics/a", `{"records":[{"value":1}]}`, []string{"Content-Type: text/plain"}, 415, 415, "the Content-Type is text/plain; it must be"},
		{"POST", "/topics/a", `{"records":[{"value":1}]}`, []string{"Content-Type: application/vnd.kafka.avro.v2+json"}, 415, 415, "schema registry"},
		{"POST", "/topics/a", `{"records":[{"value":1}]}`, []string{jsonV2, "Accept: text/html"}, 406, 406, "Accept is text/html"},
		{"POST", "/topics/a", `{"records":`, []string{jsonV2}, 400, 400, "not JSON at byte"},
		{"POST", "/topics/a", ``, []string{jsonV2}, 400, 400, "not JSON"},
		{"POST", "/topics/a", `{"records":[]}`, []string{jsonV2}, 422, 422, "records is empty"},
		{"POST", "/topics/a", `{"records":[{"value":1},null]}`, []string{jsonV2}, 422, 422, "records[1] is null"},
		{"POST", "/topics/a", `{"records":[{},{},{},{}]}`, []string{jsonV2}, 422, 422, "MAX_RECORDS"},
		{"POST", "/topics/a", `{"records":[{"value":"Hello, Kafka!"}]}`, []string{binaryV2}, 400, 400, "records[0].value is not base64"},
		{"POST", "/topics/a", `{"records":[{"value":{"a":1}}]}`, nil, 400, 400, "application/vnd.kafka.json.v2+json"},
		{"POST", "/topics/a", `{"records":[{"value":"` + repeat('x', 2000) + `"}]}`, []string{jsonV2}, 413, 413, "MAX_BATCH_BYTES"},
		{"POST", "/topics/a", packed("gzip", `{"records":[{"value":"`+repeat('x', 100_000)+`"}]}`), []string{jsonV2, "Content-Encoding: gzip"}, 413, 413, "MAX_BATCH_BYTES"},
		{"POST", "/topics/nowhere", `{"records":[{"value":1}]}`, []string{jsonV2}, 404, 40401, ""},
		{"POST", "/topics/a/partitions/3", `{"records":[{"value":1}]}`, []string{jsonV2}, 404, 40402, "has no partition 3"},
		{"POST", "/topics/a/partitions/x", `{"records":[{"value":1}]}`, []string{jsonV2}, 404, 40402, "partitions are numbers"},

		// Metadata
		{"GET", "/topics/nowhere", "", nil, 404, 40401, ""},
		{"GET", "/topics/_postamt.own", "", nil, 404, 40401, ""},
		{"GET", "/topics/nowhere/partitions", "", nil, 404, 40401, ""},
		{"GET", "/topics/nowhere/partitions/0", "", nil, 404, 40401, ""},
		{"GET", "/topics/nowhere/partitions/0/offsets", "", nil, 404, 40401, ""},
		{"GET", "/topics/a/partitions/3", "", nil, 404, 40402, ""},
		{"GET", "/topics/a/partitions/-1", "", nil, 404, 40402, ""},
		{"GET", "/topics/a/partitions/3/offsets", "", nil, 404, 40402, ""},
		{"GET", "/topics", "", []string{"Accept: application/xml"}, 406, 406, ""},
		{"GET", "/topics/a", "", []string{"Accept: image/png"}, 406, 406, ""},
		{"GET", "/topics/a/partitions/0/offsets", "", []string{"Accept: image/png"}, 406, 406, ""},

		// Consumer instances
		{"POST", "/consumers/g", `{`, []string{plainV2}, 400, 400, ""},
		{"POST", "/consumers/g", `{}`, []string{"Content-Type: text/plain"}, 415, 415, ""},
		{"POST", "/consumers/g", `{"name":"c"}`, []string{plainV2}, 409, 40902, "already"},
		{"POST", "/consumers/g", `{"format":"avro"}`, []string{plainV2}, 422, 422, "json, binary or text"},
		{"POST", "/consumers/g", `{"name":"a/b"}`, []string{plainV2}, 422, 422, "slashes"},
		{"POST", "/consumers/g", `{"name":"` + repeat('x', 250) + `"}`, []string{plainV2}, 422, 422, "250 bytes"},
		{"POST", "/consumers/g%20h", `{}`, []string{plainV2}, 422, 422, "consumer group"},
		{"POST", "/consumers/postamt.g", `{}`, []string{plainV2}, 422, 422, "Postamt's own"},
		{"POST", "/consumers/g", `{"auto.offset.reset":"first"}`, []string{plainV2}, 422, 42204, "earliest or latest"},
		{"POST", "/consumers/g", `{"fetch.min.bytes":-2}`, []string{plainV2}, 422, 40001, ""},
		{"POST", "/consumers/g", `{"name":"` + repeat('x', 1000) + `"}`, []string{plainV2}, 413, 413, "MAX_BODY_BYTES"},
		{"DELETE", "/consumers/g/instances/none", "", nil, 404, 40403, "never created"},
		{"POST", "/consumers/g/instances/none/subscription", `{"topics":["a"]}`, []string{plainV2}, 404, 40403, ""},
		{"GET", "/consumers/g/instances/none/subscription", "", nil, 404, 40403, ""},
		{"DELETE", "/consumers/g/instances/none/subscription", "", nil, 404, 40403, ""},
		{"GET", "/consumers/g/instances/none/assignments", "", nil, 404, 40403, ""},
		{"GET", "/consumers/g/instances/none/records", "", nil, 404, 40403, ""},
		{"POST", "/consumers/g/instances/none/offsets", "", nil, 404, 40403, ""},
		{"GET", "/consumers/g/instances/none/offsets", "", nil, 404, 40403, ""},
		{"GET", "/consumers/h/instances/c/records", "", nil, 404, 40403, ""}, // of another group
		{"POST", c + "/subscription", `{}`, []string{plainV2}, 422, 422, "topic_pattern"},
		{"POST", c + "/subscription", `{"topics":["a","b.*"]}`, []string{plainV2}, 422, 422, "goes into topic_pattern"},
		{"POST", c + "/subscription", `{"topics":["_postamt.own"]}`, []string{plainV2}, 404, 40401, ""},
		{"POST", c + "/subscription", `{"topic_pattern":"("}`, []string{plainV2}, 422, 422, "regular expression"},
		{"GET", c + "/records", "", nil, 409, 40903, "not subscribed"},
		{"GET", c + "/records?timeout=soon", "", nil, 400, 400, "timeout"},
		{"GET", c + "/records?max_bytes=1k", "", nil, 400, 400, "max_bytes"},
		{"GET", c + "/records?maxbytes=1", "", nil, 422, 422, "known are timeout, max_bytes"},
		{"GET", sub + "/records", "", []string{"Accept: application/vnd.kafka.binary.v2+json"}, 406, 40601, "created with format json"},
		{"GET", sub + "/records", "", []string{"Accept: text/html"}, 406, 406, ""},
		{"POST", sub + "/offsets", `{"offsets":[{"topic":"a","partition":0,"offset":1}]}`, []string{plainV2}, 409, 40903, "not assigned"},
		{"POST", sub + "/offsets", `{"offsets":[{"topic":"a","partition":0}]}`, []string{plainV2}, 422, 422, "offsets[0].offset"},
		{"GET", sub + "/offsets", "", nil, 404, 40402, "?topic="},
		{"GET", sub + "/offsets?topic=b&partition=7", "", nil, 404, 40402, ""},
		{"GET", sub + "/offsets?topic=nowhere&partition=0", "", nil, 404, 40401, ""},
		{"GET", sub + "/offsets?topic=b&partition=x", "", nil, 400, 400, ""},

		// Streams
		{"GET", "/streams/nowhere", "", nil, 404, 40401, ""},
		{"GET", "/streams/_postamt.own", "", nil, 404, 40401, ""},
		{"GET", "/streams/a?partition=3", "", nil, 404, 40402, ""},
		{"GET", "/streams/a?partition=x", "", nil, 400, 400, ""},
		{"GET", "/streams/a?from=yesterday", "", nil, 400, 400, "latest, earliest"},
		{"GET", "/streams/a?from=c1.AAAA", "", nil, 422, 422, "cursor"},
		{"GET", "/streams/a", "", []string{"Last-Event-ID: c1." + repeat('A', 9000)}, 422, 422, "at most 8192"},
		{"GET", "/streams/a?format=avro", "", nil, 422, 422, "json, binary or text"},
		{"GET", "/streams/a?filter=" + url.QueryEscape("type == 'x' &&\n tpye == 'y'"), "", nil, 422, 422, "line 2, column 2: undeclared reference to 'tpye'"},
		{"GET", "/streams/a?filter=topic", "", nil, 422, 422, "must give true or false"},
		{"GET", "/streams/a?filter=", "", nil, 400, 400, "filter has no value"},
		{"GET", "/streams/a?filter=" + repeat('x', 5000), "", nil, 422, 422, "the filter has 5000 bytes; it has at most 4096"},
		{"GET", "/streams/a?filter=%ff", "", nil, 422, 422, "not UTF-8"},
		{"GET", "/streams/a?form=latest", "", nil, 422, 422, "known are from"},
		{"GET", "/streams/a", "", []string{"Accept: application/xml"}, 406, 406, "text/event-stream or application/x-ndjson"},

		// Reads without a group
		{"GET", "/topics/nowhere/partitions/0/records?offset=0", "", nil, 404, 40401, "there is no topic"},
		{"GET", "/topics/_postamt.own/partitions/0/records?offset=0", "", nil, 404, 40401, "there is no topic"},
		{"GET", "/topics/a/partitions/3/records?offset=0", "", nil, 404, 40402, "it has 3, from 0 to 2"},
		{"GET", "/topics/a/partitions/x/records?offset=0", "", nil, 404, 40402, "partitions are numbers"},
		{"GET", "/topics/a/partitions/0/records", "", nil, 422, 422, "offset is missing; it must be a number from 0 up, earliest or latest"},
		{"GET", "/topics/a/partitions/0/records?offset=-1", "", nil, 422, 422, "offset is -1"},
		{"GET", "/topics/a/partitions/0/records?offset=first", "", nil, 400, 400, `offset is "first"`},
		{"GET", "/topics/a/partitions/0/records?offset=99999999999999999999", "", nil, 400, 400, "must be a number"},
		{"GET", "/topics/a/partitions/0/records?offset=1", "", nil, 422, 422, "has no offset 1; it has 0 to 0, where the next record will be"},
		{"GET", "/topics/a/partitions/0/records?offset=0&timeout=soon", "", nil, 400, 400, "timeout"},
		{"GET", "/topics/a/partitions/0/records?offset=0&max_bytes=1k", "", nil, 400, 400, "max_bytes"},
		{"GET", "/topics/a/partitions/0/records?from=0", "", nil, 422, 422, "known are offset, timeout, max_bytes"},
		{"GET", "/topics/a/partitions/0/records?offset=0", "", []string{"Accept: text/html"}, 406, 406, "Accept is text/html"},

		// Subscriptions; the rest of theirs is in subscriptions_test.go
		{"PUT", "/subscriptions/s", `{"topics":["a"],"url":"http://webshop/"}`, nil, 403, 403, "POSTAMT_SECRET_KEY"},
		{"GET", "/subscriptions/s", "", nil, 404, 404, "GET /subscriptions lists"},

		// Lag
		{"GET", "/lag?group=nobody", "", nil, 404, 404, "nobody"},
		{"GET", "/lag?grp=g", "", nil, 422, 422, "known are group"},
	} {
		what := tc.method + " " + tc.path
		if len(tc.body) < 60 {
			what += fmt.Sprintf(" %q", tc.body)
		}
		if strings.HasPrefix(tc.path, "/lag?group") {
			eventually(t, "the monitor has looked", func() bool { return s.do("GET", "/lag", "").status == 200 })
		}
		got := s.do(tc.method, tc.path, tc.body, tc.headers...)
		if got.status != tc.status || got.code(t) != tc.code || !strings.Contains(got.body, strings.ReplaceAll(tc.says, `"`, `\"`)) {
			t.Errorf("%s: %d %s; want %d, %d, %q", what, got.status, got.body, tc.status, tc.code, tc.says)
		}
	}
	// Not a path at all.
	for _, method := range []string{"OPTIONS", "GET", "CONNECT"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s * HTTP/1.1\r\nHost: x\r\n\r\n", method)
		resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: "GET"})
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		got := answer{resp.StatusCode, resp.Header, string(text)}
		if got.want(t, method+" *", 404, ""); got.code(t) != 404 {
			t.Errorf("%s *: %s", method, text)
		}
		_ = conn.Close()
	}
	// A body of unknown length has the same limit.
	s.send("POST", "/topics/a/records", io.MultiReader(strings.NewReader(repeat('x', 900)), strings.NewReader(repeat('x', 900)))).
		want(t, "chunked and too large", 413, "")
	s.send("POST", "/topics/a/records", io.MultiReader(strings.NewReader(repeat('x', 500)), strings.NewReader(repeat('x', 500)))).
		want(t, "chunked and as large as may be", 200, "")
}

func packed(encoding, text string) string {
	var b bytes.Buffer
	var w io.WriteCloser = gzip.NewWriter(&b)
	if encoding == "zstd" {
		w, _ = zstd.NewWriter(&b)
	}
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

func TestOtherMethodsAreRefusedWithAllow(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const c = "/consumers/g/instances/c"
	for path, allow := range map[string]string{
		"/health": "GET, HEAD", "/health/live": "GET, HEAD", "/health/ready": "GET, HEAD", "/openapi.yaml": "GET, HEAD", "/topics": "GET, HEAD", "/topics/a": "GET, HEAD, POST",
		"/topics/a/partitions": "GET, HEAD", "/topics/a/partitions/0": "GET, HEAD, POST", "/topics/a/partitions/0/offsets": "GET, HEAD", "/topics/a/partitions/0/records": "GET, HEAD",
		"/topics/a/records": "POST", "/consumers/g": "POST", c: "DELETE", c + "/subscription": "DELETE, GET, POST",
		c + "/assignments": "GET, POST", c + "/positions": "POST", c + "/positions/beginning": "POST", c + "/positions/end": "POST", c + "/records": "GET", c + "/offsets": "GET, POST", "/streams/a": "GET", "/lag": "GET, HEAD",
		"/subscriptions": "GET, HEAD", "/subscriptions/s": "DELETE, GET, HEAD, PUT", "/subscriptions/s/pause": "POST", "/subscriptions/s/resume": "POST", "/subscriptions/s/test": "POST",
		"/subscriptions/s/skip": "POST", "/subscriptions/s/redrive": "POST", "/subscriptions/s/replay": "POST", "/subscriptions/s/secret": "POST",
		"/subscriptions/s/dead-letters": "GET, HEAD", "/subscriptions/s/attempts": "GET, HEAD",
	} {
		got := s.do("PATCH", path, "")
		if got.status != 405 || got.header.Get("Allow") != allow {
			t.Errorf("PATCH %s: %d, Allow %q; want 405, %q", path, got.status, got.header.Get("Allow"), allow)
		}
		// An answer without its body must not use up records.
		if strings.HasPrefix(path, "/consumers") || strings.HasPrefix(path, "/streams") {
			s.do("HEAD", path, "").want(t, "HEAD "+path, 405, "")
		}
	}
	s.do("HEAD", "/topics", "").want(t, "HEAD /topics", 200, "")
	s.do("BREW", "/topics", "").want(t, "an unknown method", 405, "")
}
