package contract_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"postamt/sidecar/internal/contract"
)

const (
	v2     = "application/vnd.kafka.v2+json"
	record = `{"topic":"a","key":null,"value":1,"partition":0,"offset":1,"timestamp":2}`
)

// Answers that are wrong in one thing each, beside the right one.
func TestWrongAnswersAreFound(t *testing.T) {
	c, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	header := func(lines ...string) http.Header {
		h := http.Header{"X-Request-Id": {"r1"}}
		for _, line := range lines {
			name, value, _ := strings.Cut(line, ": ")
			h.Set(name, value)
		}
		return h
	}
	jsonHeader := header("Content-Type: application/json")
	for _, tc := range []struct {
		what, method, path string
		status             int
		header             http.Header
		body, says         string
	}{
		{"right", "GET", "/topics", 200, header("Content-Type: " + v2), `["a"]`, ""},
		{"a trailing slash", "GET", "/topics/", 200, header("Content-Type: " + v2), `["a"]`, ""},
		{"HEAD", "HEAD", "/topics", 200, header("Content-Type: " + v2), ``, ""},
		{"another schema", "GET", "/topics", 200, header("Content-Type: " + v2), `[1]`, "string"},
		{"not JSON", "GET", "/topics", 200, header("Content-Type: " + v2), `["a"`, "decode"},
		{"another type", "GET", "/topics", 200, jsonHeader, `["a"]`, "Content-Type"},
		{"HEAD of another type", "HEAD", "/topics", 200, jsonHeader, ``, "Content-Type"},
		{"no type", "GET", "/topics", 200, header(), `["a"]`, "Content-Type"},
		{"another status", "GET", "/topics", 418, jsonHeader, `{"error_code":418,"message":"m"}`, "no such status"},
		{"a 500", "GET", "/topics", 500, jsonHeader, `{"error_code":500,"message":"m"}`, "no such status"},
		{"no request id", "GET", "/topics", 200, http.Header{"Content-Type": {v2}}, `["a"]`, "X-Request-Id"},
		{"a request id that is none", "GET", "/topics", 200, header("Content-Type: "+v2, "X-Request-Id: a b"), `["a"]`, "X-Request-Id"},
		{"another member", "GET", "/topics/a/partitions/0/offsets", 200, header("Content-Type: " + v2), `{"beginning_offset":0,"end_offset":1,"x":1}`, "x"},
		{"a member too few", "GET", "/topics/a/partitions/0/offsets", 200, header("Content-Type: " + v2), `{"beginning_offset":0}`, "end_offset"},
		{"a negative offset", "GET", "/topics/a/partitions/0/offsets", 200, header("Content-Type: " + v2), `{"beginning_offset":0,"end_offset":-1}`, "minimum"},
		{"a null that may be", "POST", "/topics/a", 200, header("Content-Type: " + v2), `{"offsets":[{"partition":0,"offset":1,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`, ""},
		{"stored and failed", "POST", "/topics/a", 200, header("Content-Type: " + v2), `{"offsets":[{"partition":0,"offset":1,"error_code":1000,"error":"e"}],"key_schema_id":null,"value_schema_id":null}`, "must be a null"},
		{"a date that is none", "POST", "/topics/a/records", 200, jsonHeader, `{"topic":"a","partition":0,"offset":0,"timestamp":"yesterday"}`, "date-time"},

		{"right error", "GET", "/topics/a", 404, jsonHeader, `{"error_code":40401,"message":"m"}`, ""},
		{"an error without its message", "GET", "/topics/a", 404, jsonHeader, `{"error_code":40401}`, "message"},
		{"an error of another type", "GET", "/topics/a", 404, header("Content-Type: " + v2), `{"error_code":40401,"message":"m"}`, "Content-Type"},
		{"right 503", "GET", "/topics/a", 503, header("Content-Type: application/json", "Retry-After: 2"), `{"error_code":50302,"message":"m"}`, ""},
		{"no Retry-After", "GET", "/topics/a", 503, jsonHeader, `{"error_code":50302,"message":"m"}`, "Retry-After"},
		{"a Retry-After that is no number", "GET", "/topics/a", 503, header("Content-Type: application/json", "Retry-After: soon"), `{"error_code":50302,"message":"m"}`, "Retry-After"},
		{"right 405", "PATCH", "/topics/a", 405, header("Content-Type: application/json", "Allow: GET, HEAD, POST"), `{"error_code":405,"message":"m"}`, ""},
		{"Allow without HEAD", "PATCH", "/topics/a", 405, header("Content-Type: application/json", "Allow: GET, POST"), `{"error_code":405,"message":"m"}`, "Allow"},
		{"no Allow", "PATCH", "/topics/a", 405, jsonHeader, `{"error_code":405,"message":"m"}`, "Allow"},
		{"an operation that is none", "PATCH", "/topics/a", 200, header("Content-Type: application/json", "Allow: GET, HEAD, POST"), `{"error_code":405,"message":"m"}`, "no such operation"},
		{"right 404", "GET", "/nothing", 404, jsonHeader, `{"error_code":404,"message":"m"}`, ""},
		{"a path that is none", "GET", "/nothing", 200, jsonHeader, `{"error_code":404,"message":"m"}`, "no such operation"},
		{"a 404 in another form", "GET", "/nothing", 404, header("Content-Type: text/plain"), "404 page not found", "Content-Type"},

		{"right 204", "DELETE", "/consumers/g/instances/c", 204, header(), "", ""},
		{"a 204 with a body", "DELETE", "/consumers/g/instances/c", 204, header(), "{}", "there is a body"},
		{"right YAML", "GET", "/openapi.yaml", 200, header("Content-Type: application/yaml"), "openapi: 3.1.0\ninfo: {}\npaths: {}", ""},
		{"other YAML", "GET", "/openapi.yaml", 200, header("Content-Type: application/yaml"), "a: 1", "openapi"},

		{"right events", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"),
			": \nid: c1.AA\n\nid: c1.AB\ndata: " + record + "\n\nevent: gap\ndata: {\"partition\":0,\"from\":1,\"to\":2}\n\n", ""},
		{"a record without a value", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"),
			"id: c1.AB\ndata: " + strings.Replace(record, `"value":1,`, "", 1) + "\n\n", "value"},
		{"another id", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"), "id: 1\n\n", "id 1"},
		{"another event", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"), "event: x\ndata: {}\n\n", `no event "x"`},
		{"another field", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"), "dada: {}\n\n", "dada"},
		{"half an event", "GET", "/streams/a", 200, header("Content-Type: text/event-stream", "Cache-Control: no-store"), "data: " + record, "no end"},
		{"no Cache-Control", "GET", "/streams/a", 200, header("Content-Type: text/event-stream"), "", "Cache-Control"},
		{"right lines", "GET", "/streams/a", 200, header("Content-Type: application/x-ndjson", "Cache-Control: no-store"), "{\"cursor\":\"c1.AA\"}\n" + record + "\n", ""},
		{"another line", "GET", "/streams/a", 200, header("Content-Type: application/x-ndjson", "Cache-Control: no-store"), record + "\n{\"curse\":1}\n", "curse"},
		{"two in a line", "GET", "/streams/a", 200, header("Content-Type: application/x-ndjson", "Cache-Control: no-store"), record + record + "\n", "more than one"},
		{"half a line", "GET", "/streams/a", 200, header("Content-Type: application/x-ndjson", "Cache-Control: no-store"), record, "no end"},
	} {
		u, err := url.Parse("http://localhost" + tc.path)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Check(tc.method, u, contract.Answer{Status: tc.status, Header: tc.header, Body: []byte(tc.body)})
		switch {
		case tc.says == "" && err != nil:
			t.Errorf("%s: %v", tc.what, err)
		case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), tc.method+" "+tc.path)):
			t.Errorf("%s: %v; want an error of %q", tc.what, err, tc.says)
		}
	}
	// Of an answer that was not read to its end, what came is checked all the same.
	u := &url.URL{Path: "/streams/a"}
	h := header("Content-Type: application/x-ndjson", "Cache-Control: no-store")
	if err := c.Check("GET", u, contract.Answer{Status: 200, Header: h, Body: []byte(record + "\n{\"top"), Cut: true}); err != nil {
		t.Errorf("a stream that was left: %v", err)
	}
	if err := c.Check("GET", u, contract.Answer{Status: 200, Header: h, Body: []byte("{}\n{\"top"), Cut: true}); err == nil {
		t.Error("a wrong line of a stream that was left is not found")
	}
}

// The document itself is checked, with its examples.
func TestWrongDocumentsAreRefused(t *testing.T) {
	right, err := contract.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"end_offset: 42", "end_offset: x"}, // an example
		{"operationId: getTopic\n", "operationId: listTopics\n"},
		{"#/components/responses/Conflict'", "#/components/responses/None'"},
		{"in: path", "in: paths"},
	} {
		text := strings.ReplaceAll(string(right), change[0], change[1])
		if text == string(right) {
			t.Fatalf("the document has no %q", change[0])
		}
		if _, err := contract.Parse([]byte(text)); err == nil {
			t.Errorf("with %q for %q it is taken", change[1], change[0])
		}
	}
}
