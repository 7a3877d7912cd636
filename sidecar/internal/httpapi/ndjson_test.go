package httpapi_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const ndjson = "Content-Type: application/x-ndjson"

// lines splits an NDJSON answer.
func (a answer) lines() []string { return strings.Split(strings.TrimSuffix(a.body, "\n"), "\n") }

func TestLinesAreRecords(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const body = `{"key":"k","value":{"a": 1e400},"headers":[{"key":"h","value":"AQI="},{"key":"n","value":null}],"timestamp":1767323045678}` + "\r\n" +
		"\n \t\n" +
		`{"key":null,"value":null}` + "\n" +
		`{"value":"text","partition":0,"timestamp":"2026-01-02T03:04:05.678Z"}` + "\n" +
		`{}` // the last line needs no end
	got := s.do("POST", "/topics/b/records", body, ndjson+"; charset=utf-8")
	got.want(t, "four records", 200, `{"partition":0,"offset":0}
{"partition":0,"offset":1}
{"partition":0,"offset":2}
{"partition":0,"offset":3}
{"received":4,"stored":4,"failed":0}`)
	if ct := got.header.Get("Content-Type"); ct != "application/x-ndjson" {
		t.Errorf("the answer is %s", ct)
	}
	records := s.records("b", 4)
	if r := records[0]; string(r.Key) != `"k"` || string(r.Value) != `{"a":1e400}` || r.Timestamp.UnixMilli() != 1767323045678 ||
		len(r.Headers) != 2 || r.Headers[0].Key != "h" || string(r.Headers[0].Value) != "\x01\x02" || r.Headers[1].Value != nil {
		t.Errorf("the first record is %+v", r)
	}
	if r := records[1]; r.Key != nil || r.Value != nil {
		t.Errorf("null is %+v", r)
	}
	if r := records[2]; string(r.Value) != `"text"` || r.Timestamp.UnixMilli() != 1767323045678 {
		t.Errorf("the third record is %+v", r)
	}
	for format, line := range map[string]string{"binary": `{"key":"/w==","value":"AP8="}`, "text": `{"key":"ü","value":"\u0000"}`, "TEXT": `{"value":""}`} {
		s.do("POST", "/topics/b/records/?format="+format, line, ndjson).want(t, format, 200, "")
	}
	for i, encoding := range []string{"gzip", "zstd"} {
		got := s.do("POST", "/topics/b/records", packed(encoding, `{"value":1}`+"\n"+`{"value":2}`+"\n"), ndjson, "Content-Encoding: "+encoding)
		got.want(t, encoding, 200, fmt.Sprintf("{\"partition\":0,\"offset\":%d}\n{\"partition\":0,\"offset\":%d}\n{\"received\":2,\"stored\":2,\"failed\":0}", 7+2*i, 8+2*i))
	}
	s.do("POST", "/topics/b/records", "\n\n", ndjson).want(t, "no record at all", 200, `{"received":0,"stored":0,"failed":0}`)
}

// What a stream gives can be posted as it is, whatever the bytes are.
func TestLinesOfAStreamCanBePostedAgain(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/b/records?key=k&timestamp=1767323045678", "\x00\xff", "Kafka-Header-H: v").want(t, "bytes that are no JSON", 200, "")
	s.do("POST", "/topics/b/records", `{"a":1}`, "Content-Type: application/json").want(t, "JSON", 200, "")
	s.do("POST", "/topics/b/records?key=x&tombstone=true", "").want(t, "a tombstone", 200, "")
	st := s.stream("/streams/b?from=earliest&format=json")
	var lines []string
	for len(lines) < 3 {
		if data := st.event()["data"]; data != "" {
			lines = append(lines, data)
		}
	}
	st.close()
	got := s.do("POST", "/topics/b/records", strings.Join(lines, "\n"), ndjson)
	if got.status != 200 || !strings.HasSuffix(got.body, `{"received":3,"stored":3,"failed":0}`+"\n") {
		t.Fatalf("the lines\n%s\nare answered with %d %s", strings.Join(lines, "\n"), got.status, got.body)
	}
	records := s.records("b", 6)
	for i := range 3 {
		a, b := records[i], records[i+3]
		if string(a.Key) != string(b.Key) || string(a.Value) != string(b.Value) || (a.Value == nil) != (b.Value == nil) || !a.Timestamp.Equal(b.Timestamp) || fmt.Sprint(a.Headers) != fmt.Sprint(b.Headers) {
			t.Errorf("record %d is %+v, and came back as %+v", i, a, b)
		}
	}
}

func TestALineThatIsNoRecordFailsAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for _, tc := range []struct {
		line string
		code int
		says string
	}{
		{`{"value":1`, 400, "it is not JSON: it ends too soon"},
		{`{"value":1} {"value":2}`, 400, "there is more after the record"},
		{`nonsense`, 400, "it is not JSON at byte"},
		{`{"value":"` + "\xff" + `"}`, 400, "it is not UTF-8"},
		{`null`, 422, "it is null"},
		{`[1]`, 422, "it is a JSON array; a record is an object"},
		{`"v"`, 422, "it is a JSON string"},
		{`{"vaule":1}`, 422, `there is no member \"vaule\"`},
		{`{"value":1,"partition":"0"}`, 422, "partition is a JSON string; it must be a whole number"},
		{`{"value":1,"partition":-1}`, 422, "partition is -1"},
		{`{"value":1,"partition":7}`, 40402, "has no partition 7; it has 1"},
		{`{"value":1,"timestamp":"soon"}`, 400, "timestamp is"},
		{`{"value":1,"timestamp":0}`, 422, "after 1970"},
		{`{"value":1,"headers":[{"key":"","value":null}]}`, 422, "headers[0].key"},
		{`{"value":1,"headers":[{"key":"k","value":"?"}]}`, 400, "headers[0].value is not base64"},
		{`{"value":1,"value_base64":"AA=="}`, 422, "value and value_base64"},
		{`{"key_base64":"%"}`, 400, "key_base64 is not base64"},
	} {
		got := s.do("POST", "/topics/b/records", `{"value":"before"}`+"\n"+tc.line+"\n"+`{"value":"after"}`, ndjson)
		lines := got.lines()
		if got.status != 200 || len(lines) != 4 || lines[3] != `{"received":3,"stored":2,"failed":1}` {
			t.Errorf("%.60s: %d %s; want one of three to fail", tc.line, got.status, got.body)
			continue
		}
		var failed struct {
			Code    int    `json:"error_code"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal([]byte(lines[1]), &failed); err != nil || failed.Code != tc.code || !strings.HasPrefix(failed.Message, "record 2: ") || !strings.Contains(lines[1], tc.says) {
			t.Errorf("%.60s: %s; want %d, %q", tc.line, lines[1], tc.code, tc.says)
		}
		if !strings.HasPrefix(lines[0], `{"partition":0,"offset":`) || !strings.HasPrefix(lines[2], `{"partition":0,"offset":`) {
			t.Errorf("%.60s: its neighbours are %s and %s", tc.line, lines[0], lines[2])
		}
	}
}

func TestALineThatKafkaRefusesFailsAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "4000000"})
	got := s.do("POST", "/topics/b/records", "{\"value\":1}\n{\"value\":\""+repeat('x', 2<<20)+"\"}\n{\"value\":3}\n", ndjson)
	lines := got.lines()
	if got.status != 200 || len(lines) != 4 || lines[0] != `{"partition":0,"offset":0}` || !strings.HasPrefix(lines[1], `{"error_code":413,`) ||
		lines[2] != `{"partition":0,"offset":1}` || lines[3] != `{"received":3,"stored":2,"failed":1}` {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestErrorsOfLines(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "20000"})
	for _, tc := range []struct {
		path, body string
		headers    []string
		status     int
		code       int
		says       string
	}{
		{"/topics/nowhere/records", `{"value":1}`, nil, 404, 40401, "there is no topic"},
		{"/topics/_postamt.own/records", `{"value":1}`, nil, 404, 40401, "there is no topic"},
		{"/topics/b/records?key=k", `{"value":1}`, nil, 422, 422, "known are format"},
		{"/topics/b/records?format=avro", `{"value":1}`, nil, 422, 422, "json, binary or text"},
		{"/topics/b/records", `{"value":1}`, []string{"Content-Encoding: br"}, 415, 415, "gzip and zstd"},
		{"/topics/b/records", `{"value":1}`, []string{"Content-Encoding: gzip"}, 400, 400, "Content-Encoding"},
		{"/topics/b/records", `{"value":"` + repeat('x', 20000) + `"}`, nil, 413, 413, "MAX_BODY_BYTES"},
	} {
		got := s.do("POST", tc.path, tc.body, append(tc.headers, ndjson)...)
		if got.status != tc.status || got.code(t) != tc.code || !strings.Contains(got.body, tc.says) {
			t.Errorf("%s %.40s: %d %s; want %d, %d, %q", tc.path, tc.body, got.status, got.body, tc.status, tc.code, tc.says)
		}
	}
}

// sum is the last line of an answer that says why the body was not read to its end.
type sum struct {
	Received, Stored, Failed int
	Code                     int `json:"error_code"`
	Message                  string
}

func (a answer) sum(t *testing.T) (s sum) {
	t.Helper()
	lines := a.lines()
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil || len(lines) != s.Received+1 || s.Received != s.Stored+s.Failed {
		t.Errorf("the last of %d lines is %s (%v)", len(lines), lines[len(lines)-1], err)
	}
	return s
}

func TestWhatCameBeforeAnErrorIsReported(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "20000", "MAX_STREAM_RECORDS": "5000", "READ_TIMEOUT": "400ms"})
	record := `{"value":1}` + "\n"
	contracted := s.http
	half := func(kind, text string) string { p := packed(kind, text); return p[:len(p)-9] }
	for _, tc := range []struct {
		what     string
		body     io.Reader
		encoding string
		status   int
		received int
		says     string
	}{
		{"a line too long", strings.NewReader(strings.Repeat(record, 3) + `{"value":"` + repeat('x', 20000) + `"}` + "\n" + record), "", 413, 3, "MAX_BODY_BYTES"},
		{"the record after the last that is taken", strings.NewReader(strings.Repeat(record, 5001)), "", 422, 5000, "at most 5000 records (MAX_STREAM_RECORDS)"},
		{"a body that stops coming", io.MultiReader(strings.NewReader(strings.Repeat(record, 3)), stalled{t.Context().Done()}), "", 408, 3, "READ_TIMEOUT"},
		{"half a line, then nothing", io.MultiReader(strings.NewReader(record+`{"value":2}`), stalled{t.Context().Done()}), "", 408, 1, "READ_TIMEOUT"},
		{"gzip that breaks off", strings.NewReader(half("gzip", strings.Repeat(record, 10)+`{"value":"half of a line`)), "gzip", 400, 10, "ended before its end"},
	} {
		s.http = contracted
		if tc.received > 1000 {
			s.http = http.DefaultTransport // to hold thousands of lines against the contract takes a minute
		}
		got := s.send("POST", "/topics/a/records", tc.body, ndjson, "Content-Encoding: "+tc.encoding)
		last := got.sum(t)
		if got.status != tc.status || last.Received != tc.received || last.Stored != tc.received || last.Code != tc.status || !strings.Contains(last.Message, tc.says) {
			t.Errorf("%s: %d %+v; want %d after %d, %q", tc.what, got.status, last, tc.status, tc.received, tc.says)
		}
		if got.header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("%s: the answer is %s", tc.what, got.header.Get("Content-Type"))
		}
	}
	s.http = http.DefaultTransport
	s.do("POST", "/topics/a/records", strings.Repeat(record, 5000), ndjson).want(t, "as many as may be", 200, "")
}

// stalled is a body that does not come.
type stalled struct{ done <-chan struct{} }

func (s stalled) Read([]byte) (int, error) { <-s.done; return 0, io.EOF }

// READ_TIMEOUT and REQUEST_TIMEOUT are about pauses, not about the length of a stream.
func TestASlowStreamOfLinesMayTakeItsTime(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"READ_TIMEOUT": "700ms", "REQUEST_TIMEOUT": "1s"})
	body, sender := io.Pipe()
	go func() {
		for i := range 30 {
			time.Sleep(100 * time.Millisecond)
			_, _ = fmt.Fprintf(sender, `{"key":"k","value":%d}`+"\n", i)
		}
		_ = sender.Close()
	}()
	got := s.send("POST", "/topics/a/records", body, ndjson)
	if last := got.sum(t); got.status != 200 || last != (sum{Received: 30, Stored: 30}) {
		t.Errorf("%d %s", got.status, got.body)
	}
	for i, r := range s.records("a", 30) {
		if string(r.Value) != strconv.Itoa(i) {
			t.Errorf("record %d is %s", i, r.Value)
		}
	}
}

// What has come is on its way to Kafka before the next line comes.
func TestLinesAreProducedWhileTheyArrive(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	body, sender := io.Pipe()
	answered := make(chan answer)
	go func() { defer close(answered); answered <- s.send("POST", "/topics/b/records", body, ndjson) }()
	for i := range 3 {
		if _, err := fmt.Fprintf(sender, `{"value":%d}`+"\n", i); err != nil {
			t.Fatal(err)
		}
		s.records("b", i+1)
	}
	_ = sender.Close()
	(<-answered).want(t, "the stream", 200, "")
}

func TestLinesOfAClientThatGoesAwayStayProduced(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_STREAMS": "1"})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "POST /topics/b/records HTTP/1.1\r\nHost: x\r\n"+ndjson+"\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{\"value\":1}\n\r\n9\r\n{\"value\":\r\n"); err != nil {
		t.Fatal(err)
	}
	s.records("b", 1)
	refused := s.do("POST", "/topics/b/records", "{}", ndjson)
	if refused.status != 429 || !strings.Contains(refused.body, "MAX_STREAMS") {
		t.Errorf("a second stream: %d %s; want 429 of MAX_STREAMS", refused.status, refused.body)
	}
	_ = conn.Close()
	eventually(t, "the stream's place is free", func() bool { return s.do("POST", "/topics/b/records", `{"value":2}`, ndjson).status == 200 })
	if r := s.records("b", 2); string(r[0].Value) != "1" || string(r[1].Value) != "2" {
		t.Errorf("stored are %s and %s", r[0].Value, r[1].Value)
	}
}

// Of a stream that Kafka does not acknowledge, each record has a result in time, and a reader
// that is faster than Kafka waits for it.
func TestKafkaAwayInTheMiddleOfLines(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"REQUEST_TIMEOUT": "2s", "MAX_IN_FLIGHT_BYTES": "20000000"})
	// Not net/http's client: the end of the connection, half a second after the answer, may reach it first.
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(60 * time.Second))
	send := func(line string) error {
		_, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(line), line)
		return err
	}
	if _, err := fmt.Fprintf(conn, "POST /topics/b/records HTTP/1.1\r\nHost: x\r\n%s\r\nTransfer-Encoding: chunked\r\n\r\n", ndjson); err != nil {
		t.Fatal(err)
	}
	if err := send(`{"value":"stored"}` + "\n"); err != nil {
		t.Fatal(err)
	}
	s.records("b", 1)
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	defer fault.Remove()
	go func() {
		line := `{"value":"` + repeat('x', 100_000) + `"}` + "\n"
		for range 2000 {
			if send(line) != nil {
				break
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	got := answer{resp.StatusCode, resp.Header, string(text)}
	last := got.sum(t)
	if got.status != 503 || got.header.Get("Retry-After") == "" || last.Stored != 1 || last.Failed == 0 || last.Failed > 100 || last.Code != 50302 {
		t.Errorf("%d %+v, Retry-After %q; want the first stored, what was open at once failed, and 503/50302", got.status, last, got.header.Get("Retry-After"))
	}
	for _, line := range got.lines()[1:last.Received] {
		if !strings.HasPrefix(line, `{"error_code":50302,`) {
			t.Errorf("a record that Kafka did not acknowledge: %s", line)
		}
	}
	// Not one stored: an error like any other.
	alone := s.do("POST", "/topics/b/records", `{"value":1}`, ndjson)
	if alone.status != 503 || alone.code(t) != 50302 || alone.header.Get("Retry-After") == "" {
		t.Errorf("a stream of which nothing is stored: %d %s", alone.status, alone.body)
	}
}

func TestAShutdownEndsAStreamOfLinesWithItsResults(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"SHUTDOWN_TIMEOUT": "8s"})
	body, sender := io.Pipe()
	answered := make(chan answer)
	go func() { defer close(answered); answered <- s.send("POST", "/topics/b/records", body, ndjson) }()
	if _, err := io.WriteString(sender, `{"value":1}`+"\n"); err != nil {
		t.Fatal(err)
	}
	s.records("b", 1)
	s.stop()
	if _, err := io.WriteString(sender, `{"value":2}`+"\n"); err != nil {
		t.Errorf("a line within the time of the shutdown: %v", err)
	}
	got := <-answered
	if last := got.sum(t); got.status != 503 || last.Stored != 2 || !strings.Contains(last.Message, "about to stop") {
		t.Errorf("%d %+v; want both stored, and that the replica stops", got.status, last)
	}
	if !slices.Contains(got.header["Connection"], "close") && !strings.Contains(fmt.Sprint(got.header), "Retry-After") {
		t.Errorf("headers are %v", got.header)
	}
}
