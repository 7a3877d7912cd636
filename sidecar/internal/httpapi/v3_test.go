package httpapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/kafka"
)

const plainJSON = "Content-Type: application/json"

// v3 is the URL path of the cluster.
func (s *service) v3() string {
	s.t.Helper()
	var list struct {
		Data []struct {
			ID string `json:"cluster_id"`
		}
	}
	got := s.do("GET", "/v3/clusters", "")
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || len(list.Data) != 1 || list.Data[0].ID == "" {
		s.t.Fatalf("GET /v3/clusters: %d %s", got.status, got.body)
	}
	return "/v3/clusters/" + list.Data[0].ID
}

// report is one of v3's.
type report struct {
	Code      int    `json:"error_code"`
	Message   string `json:"message"`
	Topic     string `json:"topic_name"`
	Partition int32  `json:"partition_id"`
	Offset    int64  `json:"offset"`
	Timestamp string `json:"timestamp"`
	Key       *part  `json:"key"`
	Value     *part  `json:"value"`
}

type part struct {
	Type string
	Size int
}

func (a answer) reports(t *testing.T) (all []report) {
	t.Helper()
	for text := range strings.SplitSeq(strings.TrimSuffix(a.body, "\r\n"), "\r\n") {
		var r report
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatalf("%q is not a report: %v", text, err)
		}
		all = append(all, r)
	}
	return all
}

func TestV3RecordsWithAnyOrNoSpaceBetween(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	url := s.v3() + "/topics/b/records"
	const body = `{"partition_id":0,"headers":[{"name":"h","value":"AQI="},{"name":"n","value":null}],"key":{"type":"STRING","data":"ü{"},"value":{"type":"JSON","data":{"a": [1e400, "}\""]}},"timestamp":"2026-01-02T03:04:05.678Z"}` +
		`{"value":{"type":"BINARY","data":"AP8="}}` + "\r\n\t " + `{"key":{"type":"JSON","data":null},"value":{"type":"STRING"}}{}` + "\n"
	got := s.do("POST", url, body, plainJSON)
	reports := got.reports(t)
	if got.status != 200 || len(reports) != 4 || strings.Count(got.body, "\r\n") != 4 {
		t.Fatalf("%d %q", got.status, got.body)
	}
	for i, r := range reports {
		if r.Code != 200 || r.Topic != "b" || r.Offset != int64(i) {
			t.Errorf("report %d is %+v", i, r)
		}
	}
	if r := reports[0]; r.Timestamp != "2026-01-02T03:04:05.678Z" || *r.Key != (part{"STRING", 3}) || *r.Value != (part{"JSON", 19}) {
		t.Errorf("the first report is %+v, %+v, %+v", r, r.Key, r.Value)
	}
	if r := reports[2]; *r.Key != (part{"JSON", 0}) || *r.Value != (part{"STRING", 0}) || reports[1].Key != nil || reports[3].Value != nil {
		t.Errorf("the reports of nulls are %+v", reports)
	}
	records := s.records("b", 4)
	if r := records[0]; string(r.Key) != "ü{" || string(r.Value) != `{"a":[1e400,"}\""]}` || r.Timestamp.UnixMilli() != 1767323045678 ||
		len(r.Headers) != 2 || string(r.Headers[0].Value) != "\x01\x02" || r.Headers[1].Value != nil {
		t.Errorf("the first record is %+v", r)
	}
	if string(records[1].Value) != "\x00\xff" || records[2].Key != nil || records[2].Value != nil || records[3].Value != nil {
		t.Errorf("the records are %+v", records)
	}
	for i, r := range records {
		if r.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z") != reports[i].Timestamp {
			t.Errorf("record %d has %v, its report %s", i, r.Timestamp, reports[i].Timestamp)
		}
	}
	s.do("POST", url, packed("gzip", body), plainJSON, "Content-Encoding: gzip").want(t, "gzip", 200, "")
	s.do("POST", url, packed("zstd", body), "Content-Type: application/json; charset=utf-8", "Content-Encoding: zstd").want(t, "zstd", 200, "")
}

func TestAV3RecordThatIsNoneFailsAlone(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	url := s.v3() + "/topics/b/records"
	for _, tc := range []struct {
		record string
		code   int
		says   string
	}{
		{`{"value":{"data":1}}`, 422, "schema registry, and there is none"},
		{`{"value":{"type":"AVRO","data":1}}`, 422, "value.type AVRO needs a schema registry"},
		{`{"key":{"type":"JSONSCHEMA","data":1}}`, 422, "key.type JSONSCHEMA needs a schema registry"},
		{`{"value":{"type":"PROTOBUF"}}`, 422, "schema registry"},
		{`{"value":{"type":"text"}}`, 422, "it must be BINARY, JSON or STRING"},
		{`{"value":{"type":"JSON","schema_id":1,"data":1}}`, 422, "value.schema_id is of types that need a schema registry"},
		{`{"value":{"type":"BINARY","data":"?"}}`, 400, "value.data is not a base64 string"},
		{`{"value":{"type":"STRING","data":1}}`, 400, "value.data is a number; with type STRING it must be a string"},
		{`{"partition_id":-1}`, 40402, "partition_id is -1"},
		{`{"partition_id":7}`, 40402, "has no partition 7"},
		{`{"partition_id":"0"}`, 422, "partition_id is a JSON string"},
		{`{"value":"v"}`, 422, "value is a JSON string; it must be an object"},
		{`{"timestamp":"soon"}`, 400, "timestamp is"},
		{`{"headers":[{"name":"","value":null}]}`, 422, "headers[0].name"},
		{`{"headers":[{"name":"h","value":"?"}]}`, 400, "headers[0].value is not base64"},
		{"{\"value\":{\"type\":\"STRING\",\"data\":\"\xff\"}}", 400, "not UTF-8"},
	} {
		got := s.do("POST", url, `{"value":{"type":"JSON","data":"before"}}`+tc.record+`{"value":{"type":"JSON","data":"after"}}`, plainJSON)
		reports := got.reports(t)
		if got.status != 200 || len(reports) != 3 || reports[0].Code != 200 || reports[1].Code != tc.code || reports[2].Code != 200 || !strings.Contains(reports[1].Message, tc.says) {
			t.Errorf("%s: %d %s; want %d, %q in the middle", tc.record, got.status, got.body, tc.code, tc.says)
		}
	}
}

func TestAV3BodyThatCannotBeReadOnEndsWithAReport(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "20000", "MAX_STREAM_RECORDS": "100", "READ_TIMEOUT": "400ms"})
	url := s.v3() + "/topics/b/records"
	const record = `{"value":{"type":"JSON","data":1}}`
	for _, tc := range []struct {
		what    string
		body    io.Reader
		reports int
		code    int
		says    string
	}{
		{"no JSON", strings.NewReader(record + `{"value":}` + record), 2, 400, "record 2 is not JSON"},
		{"no JSON from the first on", strings.NewReader(`{"value":}` + record), 1, 400, "record 1 is not JSON"},
		{"no object from the first on", strings.NewReader("nonsense"), 1, 400, "must be a JSON object"},
		{"half of the first", strings.NewReader(`{"value":{"type":"JSON"`), 1, 400, "record 1 is not JSON"},
		{"no object", strings.NewReader(record + record + "]"), 3, 400, "must be a JSON object"},
		{"half of one", strings.NewReader(record + `{"value":{`), 2, 400, "record 2 is not JSON"},
		{"one too large", strings.NewReader(record + `{"value":{"type":"STRING","data":"` + repeat('x', 20000) + `"}}`), 2, 413, "MAX_BODY_BYTES"},
		{"one too many", strings.NewReader(strings.Repeat(record, 101)), 101, 422, "MAX_STREAM_RECORDS"},
		{"a pause too long", io.MultiReader(strings.NewReader(record), stalled{t.Context().Done()}), 2, 408, "READ_TIMEOUT"},
	} {
		got := s.send("POST", url, tc.body, plainJSON)
		reports := got.reports(t)
		last := reports[len(reports)-1]
		if got.status != 200 || len(reports) != tc.reports || last.Code != tc.code || !strings.Contains(last.Message, tc.says) {
			t.Errorf("%s: %d, %d reports, the last %+v; want %d, the last with %d, %q", tc.what, got.status, len(reports), last, tc.reports, tc.code, tc.says)
		}
		for _, r := range reports[:len(reports)-1] {
			if r.Code != 200 {
				t.Errorf("%s: before it came %+v", tc.what, r)
			}
		}
	}
}

func TestErrorsOfV3(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "1000", "MAX_BATCH_BYTES": "2000"})
	c := s.v3()
	b := c + "/topics/b"
	const one = `{"value":{"type":"JSON","data":1}}`
	for _, tc := range []struct {
		method, path, body string
		headers            []string
		status, code       int
		says               string
	}{
		{"GET", "/v3/clusters/other", "", nil, 404, 40403, `there is no cluster "other"`},
		{"POST", "/v3/clusters/other/topics/b/records", one, []string{plainJSON}, 404, 40403, "there is no cluster"},
		{"GET", "/v3", "", nil, 404, 404, "there is nothing at /v3"},
		{"GET", c + "/brokers/7", "", nil, 404, 40403, "no broker"},
		{"POST", b + "/records", "", []string{plainJSON}, 422, 422, "Error: 42206 : "},
		{"POST", b + "/records", " \n", []string{plainJSON}, 422, 422, "Error: 42206 : "},
		{"POST", b + "/records", one, []string{"Content-Type: application/x-www-form-urlencoded"}, 415, 415, "v3 takes application/json"},
		{"POST", b + "/records?key=k", one, []string{plainJSON}, 422, 422, "no query parameter"},
		{"POST", c + "/topics/nowhere/records", one, []string{plainJSON}, 404, 40403, "there is no topic"},
		{"POST", c + "/topics/_postamt.own/records", one, []string{plainJSON}, 404, 40403, "there is no topic"},
		{"POST", b + "/records", `{"value":{"type":"STRING","data":"` + repeat('x', 1000) + `"}}`, []string{plainJSON}, 413, 413, "MAX_BODY_BYTES"},
		{"POST", b + "/records:batch", "", []string{plainJSON}, 422, 422, "Error: 42206 : "},
		{"POST", b + "/records:batch", "{", []string{plainJSON}, 400, 400, "not JSON"},
		{"POST", b + "/records:batch", `{"entries":[]}`, []string{plainJSON}, 422, 422, "Error: 42208 : entries is empty"},
		{"POST", b + "/records:batch", `{"entries":[{"value":null}]}`, []string{plainJSON}, 422, 422, "Error: 42208 : entries[0].id"},
		{"POST", b + "/records:batch", `{"entries":[{"id":"` + repeat('i', 81) + `"}]}`, []string{plainJSON}, 422, 422, "1 to 80"},
		{"POST", b + "/records:batch", `{"entries":[{"id":"1"},{"id":"1"}]}`, []string{plainJSON}, 422, 422, "must be distinct"},
		{"POST", b + "/records:batch", `{"entries":[` + strings.Repeat(`{"id":"1"},`, 10) + `{"id":"1"}]}`, []string{plainJSON}, 422, 422, "MAX_BATCH_ENTRIES"},
		{"POST", b + "/records:batch", repeat(' ', 2001), []string{plainJSON}, 413, 413, "MAX_BATCH_BYTES"},
		{"POST", b + "/records:batch", `{"entries":[{"id":"1"}]}`, []string{"Content-Type: text/plain"}, 415, 415, "application/json"},
		{"POST", c + "/topics/nowhere/records:batch", `{"entries":[{"id":"1"}]}`, []string{plainJSON}, 404, 40403, ""},
		{"GET", c + "/topics/nowhere", "", nil, 404, 40403, ""},
		{"GET", c + "/topics/_postamt.own", "", nil, 404, 40403, ""},
		{"GET", c + "/topics/nowhere/configs", "", nil, 404, 40403, ""},
		{"GET", c + "/topics/_postamt.own/configs", "", nil, 404, 40403, ""},
		{"GET", b + "/configs/nothing", "", nil, 404, 40403, "no setting"},
		{"GET", c + "/topics/nowhere/partitions", "", nil, 404, 40403, ""},
		{"GET", b + "/partitions/1", "", nil, 404, 40402, "has no partition 1"},
		{"GET", b + "/partitions/x", "", nil, 404, 40402, ""},
		{"GET", b + "/partitions/1/offset", "", nil, 404, 40402, ""},
		{"GET", b + "/partitions/0/replicas/9", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody", "", nil, 404, 40403, "there is no consumer group"},
		{"GET", c + "/consumer-groups/postamt.own", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/consumers", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/lags", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/lag-summary", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/lags/b/partitions/0", "", nil, 404, 40403, ""},
		{"POST", c + "/topics", `{"topic_name":"new"}`, []string{plainJSON}, 403, 40301, "ALLOW_TOPIC_CHANGES=true"},
		{"PATCH", b, `{"partitions_count":3}`, []string{plainJSON}, 403, 40301, "ALLOW_TOPIC_CHANGES=true"},
		{"DELETE", b, "", nil, 403, 40301, "ALLOW_TOPIC_CHANGES=true"},
		{"POST", b + "/configs:alter", `{"data":[{"name":"retention.ms","value":"1"}]}`, []string{plainJSON}, 403, 40301, "ALLOW_TOPIC_CHANGES=true"},
		{"GET", c + "/consumer-groups/nobody/consumers/c/assignments", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/consumers/c/assignments/a/partitions/0", "", nil, 404, 40403, ""},
		{"GET", c + "/consumer-groups/nobody/consumers/c/assignments/a/partitions/x", "", nil, 404, 40402, ""},
	} {
		got := s.do(tc.method, tc.path, tc.body, tc.headers...)
		if got.status != tc.status || got.code(t) != tc.code || !strings.Contains(got.body, strings.ReplaceAll(tc.says, `"`, `\"`)) {
			t.Errorf("%s %s %.50q: %d %s; want %d, %d, %q", tc.method, tc.path, tc.body, got.status, got.body, tc.status, tc.code, tc.says)
		}
	}
}

func TestASlowV3StreamMayTakeItsTime(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"READ_TIMEOUT": "700ms", "REQUEST_TIMEOUT": "1s"})
	url := s.v3() + "/topics/a/records"
	body, sender := io.Pipe()
	go func() {
		for i := range 20 {
			time.Sleep(100 * time.Millisecond)
			// Cut anywhere: the reader puts them together.
			_, _ = fmt.Fprintf(sender, `{"key":{"type":"STRING","data":"k"},"val`)
			_, _ = fmt.Fprintf(sender, `ue":{"type":"JSON","data":%d}}`, i)
		}
		_ = sender.Close()
	}()
	got := s.send("POST", url, body, plainJSON)
	reports := got.reports(t)
	records := s.records("a", 20)
	if got.status != 200 || len(reports) != 20 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for i, r := range reports {
		if r.Code != 200 || string(records[r.Offset].Value) != fmt.Sprint(i) {
			t.Errorf("report %d is %+v, where %s is", i, r, records[r.Offset].Value)
		}
	}
}

func TestKafkaAwayFromV3(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"REQUEST_TIMEOUT": "1s"})
	c := s.v3()
	s.do("POST", c+"/topics/b/records", `{}`, plainJSON).want(t, "while it is there", 200, "")
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	for path, body := range map[string]string{"/records": `{}{}`, "/records:batch": `{"entries":[{"id":"1"},{"id":"2"}]}`} {
		got := s.do("POST", c+"/topics/b"+path, body, plainJSON)
		if got.status != 503 || got.code(t) != 50302 || got.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	// One that could not be tried is a result to tell.
	got := s.do("POST", c+"/topics/b/records", `{"partition_id":-1}{}`, plainJSON)
	if reports := got.reports(t); got.status != 200 || len(reports) < 2 || reports[0].Code != 40402 || reports[1].Code != 50302 {
		t.Errorf("%d %s", got.status, got.body)
	}
	fault.Remove()
	s.cluster.Close()
	for _, path := range []string{"/brokers", c + "/topics", c + "/topics/b", c + "/topics/b/configs", c + "/topics/b/partitions/0/offset", c + "/consumer-groups", c + "/consumer-groups/g", c + "/consumer-groups/g/lags"} {
		got := s.do("GET", path, "")
		if got.status != 503 || got.code(t) != 50302 {
			t.Errorf("GET %s while Kafka is away: %d %s", path, got.status, got.body)
		}
	}
}

func TestV3Batch(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.v3()
	got := s.do("POST", c+"/topics/b/records:batch", `{"entries":[{"id":"a","value":{"type":"STRING","data":"1"},"timestamp":1767323045678},{"id":"b","partition_id":9},`+
		`{"id":"ü","key":{"type":"AVRO","data":1}},{"id":"d","value":{"type":"BINARY","data":"AA=="}}]}`, plainJSON)
	id := strings.TrimPrefix(c, "/v3/clusters/")
	place := func(name string, offset int, rest string) string {
		return fmt.Sprintf(`{"id":%q,"cluster_id":%q,"topic_name":"b","partition_id":0,"offset":%d,"timestamp":%s}`, name, id, offset, rest)
	}
	body := regexp.MustCompile(`"timestamp":"20[^"]*","value":\{"type":"BINARY"`).ReplaceAllString(got.body, `"timestamp":"now","value":{"type":"BINARY"`)
	got.body = body
	got.want(t, "a batch", 207, `{"successes":[`+place("a", 0, `"2026-01-02T03:04:05.678Z","value":{"type":"STRING","size":1}`)+`,`+place("d", 1, `"now","value":{"type":"BINARY","size":1}`)+
		`],"failures":[{"id":"b","error_code":40402,"message":"topic \"b\" has no partition 9; it has 1, from 0 to 0"},`+
		`{"id":"ü","error_code":422,"message":"key.type AVRO needs a schema registry, which there is none of; it must be BINARY, JSON or STRING"}]}`)
}

// Every link leads somewhere, by the address that the client used.
func TestV3ShowsTheCluster(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.v3()
	s.do("POST", "/topics/a/records?key=k&partition=1", "v").want(t, "a record", 200, "")
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "a")
	eventually(t, "the session reads", func() bool { return s.do("GET", base+"/records?timeout=100", "").body != "[]" })
	s.do("POST", base+"/offsets", "").want(t, "commit", 200, "")

	seen := make(map[string]bool)
	queue := []string{"/v3/clusters"}
	links := regexp.MustCompile(`"(?:self|related)":"([^"]*)"`)
	for len(queue) > 0 {
		path := queue[0]
		queue = queue[1:]
		got := s.do("GET", path, "", "X-Forwarded-Proto: https", "X-Forwarded-Host: api.example", "X-Forwarded-Prefix: /p")
		if got.status != 200 {
			t.Errorf("GET %s: %d %s", path, got.status, got.body)
		}
		if strings.Contains(got.body, "_postamt") || strings.Contains(got.body, "__consumer_offsets") {
			t.Errorf("GET %s shows what is our own: %s", path, got.body)
		}
		for _, m := range links.FindAllStringSubmatch(got.body, -1) {
			next, ok := strings.CutPrefix(m[1], "https://api.example/p")
			if !ok {
				t.Fatalf("GET %s has the link %s", path, m[1])
			}
			if !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	for _, want := range []string{"", "/brokers/0", "/topics/a/partitions/1/offset", "/topics/a/configs/cleanup.policy", "/topics/b/partitions/0/replicas/0", "/consumer-groups/g/lag-summary", "/consumer-groups/g/lags/a/partitions/1"} {
		if !seen[c+want] {
			t.Errorf("nothing leads to %s", c+want)
		}
	}
	s.do("GET", "/brokers", "").want(t, "brokers", 200, `{"brokers":[0]}`)
	s.do("GET", "/", "").want(t, "GET /", 200, `{}`)
	s.do("POST", "/", "").want(t, "POST /", 200, `{}`)
	s.do("GET", c+"/topics/a/partitions/1/offset", "").want(t, "offsets", 200, fmt.Sprintf(
		`{"cluster_id":%q,"earliest_offset":0,"kind":"KafkaPartitionOffset","latest_offset":1,"metadata":{"self":"%s/topics/a/partitions/1/offset","resource_name":"crn:///kafka=%s/topic=a/partition=1/offset"},"partition_id":1,"topic_name":"a"}`,
		c[13:], s.api+c, c[13:]))
}

func TestV3Lags(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.v3()
	for i := range 5 {
		s.do("POST", fmt.Sprintf("/topics/a/records?partition=%d&timestamp=%d", i%2, time.Now().Add(-time.Hour).UnixMilli()), "v").want(t, "a record", 200, "")
	}
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "a")
	eventually(t, "the session reads", func() bool { return s.do("GET", base+"/records?timeout=100", "").body != "[]" })
	s.do("POST", base+"/offsets", `{"offsets":[{"topic":"a","partition":0,"offset":0},{"topic":"a","partition":1,"offset":1}]}`, plainV2).want(t, "commit", 200, "")
	type lag struct {
		Topic     string   `json:"topic_name"`
		Partition int32    `json:"partition_id"`
		Consumer  string   `json:"consumer_id"`
		Committed int64    `json:"current_offset"`
		End       int64    `json:"log_end_offset"`
		Lag       int64    `json:"lag"`
		Seconds   *float64 `json:"lag_seconds"`
	}
	var list struct{ Data []lag }
	got := s.do("GET", c+"/consumer-groups/g/lags", "")
	if err := json.Unmarshal([]byte(got.body), &list); err != nil || len(list.Data) != 3 {
		t.Fatalf("%v: %s", err, got.body)
	}
	for i, want := range []lag{{"a", 0, "", 1, 3, 2, nil}, {"a", 1, "", 2, 2, 0, nil}, {"a", 2, "", -1, 0, -1, nil}} {
		is := list.Data[i]
		if is.Consumer == "" {
			t.Errorf("lag %d has no consumer", i)
		}
		if (is.Seconds == nil) != (want.Lag < 0) || want.Lag == 0 && *is.Seconds != 0 || want.Lag > 0 && (*is.Seconds < 3599 || *is.Seconds > 3700) {
			t.Errorf("lag %d is %v seconds", i, is.Seconds)
		}
		is.Consumer, is.Seconds = "", nil
		if is != want {
			t.Errorf("lag %d is %+v; want %+v", i, is, want)
		}
	}
	var sum struct {
		Max     int64   `json:"max_lag"`
		Total   int64   `json:"total_lag"`
		Seconds float64 `json:"max_lag_seconds"`
		Topic   string  `json:"max_lag_topic_name"`
	}
	got = s.do("GET", c+"/consumer-groups/g/lag-summary", "")
	if err := json.Unmarshal([]byte(got.body), &sum); err != nil || sum.Max != 2 || sum.Total != 2 || sum.Topic != "a" || sum.Seconds < 3599 {
		t.Errorf("%v: %s", err, got.body)
	}
	got = s.do("GET", c+"/consumer-groups/g/lags/a/partitions/0", "")
	if !strings.Contains(got.body, `"lag":2,`) {
		t.Errorf("%s", got.body)
	}
	s.do("GET", c+"/consumer-groups/g/lags/b/partitions/0", "").want(t, "a topic that it does not read", 404, "")
	var groups struct {
		Data []struct {
			ID    string `json:"consumer_group_id"`
			State string
			Type  string
		}
	}
	got = s.do("GET", c+"/consumer-groups", "")
	if err := json.Unmarshal([]byte(got.body), &groups); err != nil || len(groups.Data) != 1 || groups.Data[0].ID != "g" || groups.Data[0].State != "STABLE" || groups.Data[0].Type != "CLASSIC" {
		t.Errorf("%v: %s", err, got.body)
	}
	// A group that has left is told by what it has committed.
	s.do("DELETE", base, "").want(t, "leave", 204, "")
	eventually(t, "nobody has the partitions", func() bool {
		got := s.do("GET", c+"/consumer-groups/g/lags", "")
		return got.status == 200 && strings.Count(got.body, `"consumer_id":""`) == 2
	})
	s.do("GET", c+"/consumer-groups/g/consumers", "").want(t, "members", 200, "")
}

// A dozen who ask together cost Kafka one question.
func TestLagIsAskedOnceForAll(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MONITOR_INTERVAL": "1h"})
	c := s.v3()
	client, err := kafka.NewClient(s.cluster.ListenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var offsets kadm.Offsets
	offsets.AddOffset("b", 0, 0, -1)
	if _, err := kadm.NewClient(client).CommitOffsets(t.Context(), "g", offsets); err != nil {
		t.Fatal(err)
	}
	if r := client.ProduceSync(t.Context(), &kgo.Record{Topic: "b", Value: []byte("v")}); r.FirstErr() != nil {
		t.Fatal(r.FirstErr())
	}
	asked := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Group: "g", Observe: true, Count: -1})
	answers := make(chan answer)
	start := time.Now()
	for range 12 {
		go func() { answers <- s.do("GET", c+"/consumer-groups/g/lag-summary", "") }()
	}
	for range 12 {
		if got := <-answers; !strings.Contains(got.body, `"total_lag":1`) {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if n, most := asked.Hits(), int(time.Since(start)/time.Second)+1; n > most {
		t.Errorf("12 who asked within %v cost %d questions; want at most %d", time.Since(start), n, most)
	}
}

func TestTopicsAreChangedWhereThatIsAllowed(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"ALLOW_TOPIC_CHANGES": "true"})
	topics := s.v3() + "/topics"
	trial := s.do("POST", topics, `{"topic_name":"new","partitions_count":2,"validate_only":true}`, plainJSON)
	if trial.status != 200 {
		t.Errorf("validate_only: %d %s", trial.status, trial.body)
	}
	s.do("GET", topics+"/new", "").want(t, "after validate_only", 404, "")
	made := s.do("POST", topics, `{"topic_name":"new","partitions_count":2,"replication_factor":1,"configs":[{"name":"retention.ms","value":"1000"}]}`, plainJSON)
	if made.status != 201 || made.header.Get("Location") != s.api+topics+"/new" || !strings.Contains(made.body, `"partitions_count":2`) {
		t.Errorf("create: %d %s, Location %s", made.status, made.body, made.header.Get("Location"))
	}
	if got := s.do("GET", topics+"/new/configs/retention.ms", ""); !strings.Contains(got.body, `"value":"1000"`) || !strings.Contains(got.body, `"is_default":false`) {
		t.Errorf("its setting: %s", got.body)
	}
	for body, want := range map[string]int{
		`{"topic_name":"new"}`: 40002, `{"topic_name":"_postamt.x"}`: 40002, `{"topic_name":"a b"}`: 40002, `{}`: 422,
		`{"topic_name":"x","partitions_count":0}`: 422, `{"topic_name":"x","replicas_assignments":[{}]}`: 422, `{"topic_name":1}`: 422, `{`: 400,
		`{"topic_name":"x","configs":[{"name":"n"}]}`: 422, `{"topic_name":"x","replication_factor":0}`: 422,
	} {
		if got := s.do("POST", topics, body, plainJSON); got.code(t) != want {
			t.Errorf("create %s: %d %s; want %d", body, got.status, got.body, want)
		}
	}
	if got := s.do("PATCH", topics+"/new", `{"partitions_count":4}`, plainJSON); got.status != 200 || !strings.Contains(got.body, `"partitions_count":4`) {
		t.Errorf("grow: %d %s", got.status, got.body)
	}
	for body, want := range map[string]int{`{"partitions_count":2}`: 40002, `{"partitions_count":0}`: 422, `{}`: 422} {
		if got := s.do("PATCH", topics+"/new", body, plainJSON); got.code(t) != want {
			t.Errorf("grow %s: %d %s; want %d", body, got.status, got.body, want)
		}
	}
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Err: kerr.InvalidReplicaAssignment, Count: -1}) // kfake takes any
	if got := s.do("POST", topics, `{"topic_name":"x","replicas_assignments":{"0":[7]}}`, plainJSON); got.code(t) != 40002 {
		t.Errorf("replicas on a broker that there is not: %d %s", got.status, got.body)
	}
	fault.Remove()
	for _, validate := range []string{"true", "false"} {
		got := s.do("POST", topics, `{"topic_name":"placed","replicas_assignments":{"0":[0],"1":[0]},"validate_only":`+validate+`}`, plainJSON)
		if got.status/100 != 2 || !strings.Contains(got.body, `"partitions_count":2`) || !strings.Contains(got.body, `"replication_factor":1`) {
			t.Errorf("replicas that are placed by hand, validate_only %s: %d %s", validate, got.status, got.body)
		}
	}
	if got := s.do("GET", topics+"/placed/partitions/1/replicas/0", ""); got.status != 200 {
		t.Errorf("where they are: %d %s", got.status, got.body)
	}
	if got := s.do("PATCH", topics+"/nowhere", `{"partitions_count":2}`, plainJSON); got.code(t) != 40403 {
		t.Errorf("grow what is not there: %d %s", got.status, got.body)
	}
	s.do("POST", "/topics/new/records", "v").want(t, "a record", 200, "")
	s.do("DELETE", topics+"/new", "").want(t, "delete", 204, "")
	s.do("GET", topics+"/new", "").want(t, "after it", 404, "")
	s.do("POST", "/topics/new/records", "v").want(t, "a record after it", 404, "")
	for _, topic := range []string{"new", "_postamt.own", "__consumer_offsets"} {
		if got := s.do("DELETE", topics+"/"+topic, ""); got.code(t) != 40403 {
			t.Errorf("delete %s: %d %s", topic, got.status, got.body)
		}
	}
}

func TestSettingsAreChangedWhereThatIsAllowed(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"ALLOW_TOPIC_CHANGES": "true"})
	b := s.v3() + "/topics/b"
	value := func(name string) string {
		var setting struct {
			Value   string
			Default bool `json:"is_default"`
		}
		got := s.do("GET", b+"/configs/"+name, "")
		if err := json.Unmarshal([]byte(got.body), &setting); err != nil {
			t.Fatal(err)
		}
		if setting.Default {
			return "default"
		}
		return setting.Value
	}
	alter := func(body string) answer { return s.do("POST", b+"/configs:alter", body, plainJSON) }
	const two = `{"data":[{"name":"retention.ms","value":"1000"},{"name":"cleanup.policy","value":"compact","operation":"SET"}]`
	alter(two+`,"validate_only":true}`).want(t, "validate_only", 204, "")
	if got := value("retention.ms"); got != "default" {
		t.Errorf("retention.ms is %s after validate_only", got)
	}
	alter(two+`}`).want(t, "two settings", 204, "")
	if ms, policy := value("retention.ms"), value("cleanup.policy"); ms != "1000" || policy != "compact" {
		t.Errorf("retention.ms is %s, cleanup.policy %s", ms, policy)
	}
	alter(`{"data":[{"name":"retention.ms","operation":"DELETE"}]}`).want(t, "back to the default", 204, "")
	if ms, policy := value("retention.ms"), value("cleanup.policy"); ms != "default" || policy != "compact" {
		t.Errorf("retention.ms is %s, cleanup.policy %s; want the default, compact", ms, policy)
	}
	for body, want := range map[string]int{
		`{"data":[{"name":"retention.ms","value":"2"},{"name":"nothing","value":"1"}]}`: 40403,
		`{"data":[]}`: 422, `{`: 400,
	} {
		if got := alter(body); got.code(t) != want {
			t.Errorf("%s: %d %s; want %d", body, got.status, got.body, want)
		}
	}
	if got := value("retention.ms"); got != "default" {
		t.Errorf("retention.ms is %s after changes that were refused", got)
	}
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.IncrementalAlterConfigs}, Err: kerr.InvalidConfig, Count: -1}) // kfake takes any
	if got := alter(`{"data":[{"name":"retention.ms","value":"x"}]}`); got.code(t) != 40002 {
		t.Errorf("what Kafka does not take: %d %s", got.status, got.body)
	}
	fault.Remove()
	for _, topic := range []string{"nowhere", "_postamt.own", "__consumer_offsets"} {
		if got := s.do("POST", s.v3()+"/topics/"+topic+"/configs:alter", two+"}", plainJSON); got.code(t) != 40403 {
			t.Errorf("settings of %s: %d %s", topic, got.status, got.body)
		}
	}
}

func TestV3ShowsWhatAMemberHas(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := s.v3()
	base := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "a")
	eventually(t, "the session has partitions", func() bool {
		s.do("GET", base+"/records?timeout=100", "")
		return strings.Count(s.do("GET", base+"/assignments", "").body, `"partition":`) == 3
	})
	var members struct {
		Data []struct {
			ID          string `json:"consumer_id"`
			Assignments struct{ Related string }
		}
	}
	if err := json.Unmarshal([]byte(s.do("GET", c+"/consumer-groups/g/consumers", "").body), &members); err != nil || len(members.Data) != 1 {
		t.Fatalf("%v: %+v", err, members)
	}
	path := strings.TrimPrefix(members.Data[0].Assignments.Related, s.api)
	var list struct {
		Data []struct {
			Topic     string `json:"topic_name"`
			Partition int32  `json:"partition_id"`
			Group     string `json:"consumer_group_id"`
			Consumer  string `json:"consumer_id"`
			Metadata  struct {
				Self string
				Name string `json:"resource_name"`
			}
		}
	}
	if err := json.Unmarshal([]byte(s.do("GET", path, "").body), &list); err != nil || len(list.Data) != 3 {
		t.Fatalf("%v: %+v", err, list)
	}
	for i, is := range list.Data {
		self := fmt.Sprintf("%s%s/a/partitions/%d", s.api, path, i)
		name := fmt.Sprintf("crn:///kafka=%s/consumer-group=g/consumer=%s/assignment=a/partition=%d", c[13:], members.Data[0].ID, i)
		if is.Topic != "a" || is.Partition != int32(i) || is.Group != "g" || is.Consumer != members.Data[0].ID || is.Metadata.Self != self || is.Metadata.Name != name {
			t.Errorf("assignment %d is %+v; want %s, %s", i, is, self, name)
		}
	}
	s.do("GET", path+"/a/partitions/2", "").want(t, "one of them", 200, "")
	for _, other := range []string{"/a/partitions/3", "/b/partitions/0", "/nowhere/partitions/0", "/_postamt.own/partitions/0"} {
		if got := s.do("GET", path+other, ""); got.code(t) != 40403 {
			t.Errorf("%s: %d %s", other, got.status, got.body)
		}
	}
	if got := s.do("GET", c+"/consumer-groups/g/consumers/nobody/assignments", ""); got.code(t) != 40403 {
		t.Errorf("nobody's: %d %s", got.status, got.body)
	}
}
