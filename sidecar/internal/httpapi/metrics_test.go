package httpapi_test

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

func (s *service) metricsText() string {
	s.t.Helper()
	resp, err := http.Get(s.metrics + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func TestMetricsCountByRoutePattern(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for range 3 {
		s.do("POST", "/topics/b/records?key=secret-key", "1").want(t, "a record", 200, "")
	}
	s.do("POST", "/topics/b", `{"records":[{"value":1},{"value":2}]}`, jsonV2).want(t, "two records", 200, "")
	s.do("POST", "/topics/secret-topic/records", "v").want(t, "an unknown topic", 404, "")
	s.do("GET", "/secret-path/x", "").want(t, "an unknown path", 404, "")
	s.do("SECRETMETHOD", "/topics", "").want(t, "an unknown method", 405, "")
	s.do("POST", "/consumers/secret-group", `{"name":"secret-name","format":"avro"}`, plainV2).want(t, "a format that is none", 422, "")
	base := s.joined("/consumers/secret-group", "secret-name", `"auto.offset.reset":"earliest"`, "b")
	eventually(t, "the session reads", func() bool { return s.do("GET", base+"/records?timeout=100", "").body != "[]" })
	st := s.stream("/streams/b?from=earliest")
	defer st.close()
	for range 5 {
		st.event()
	}
	eventually(t, "the metrics of what was asked", func() bool {
		return strings.Contains(s.metricsText(), `postamt_stream_records_total{topic="b"} 5`)
	})
	text := s.metricsText()
	for _, want := range []string{
		`postamt_build_info{role="dev",version=`,
		`postamt_http_requests_total{code="200",method="POST",route="/topics/{topic}/records"} 3`,
		`postamt_http_requests_total{code="404",method="POST",route="/topics/{topic}/records"} 1`,
		`postamt_http_requests_total{code="200",method="POST",route="/topics/{topic}"} 1`,
		`postamt_http_requests_total{code="404",method="GET",route="/"} 1`,
		`postamt_http_requests_total{code="405",method="other",route="/topics"} 1`,
		`postamt_http_requests_total{code="422",method="POST",route="/consumers/{group}"} 1`,
		`postamt_http_request_duration_seconds_count{method="POST",route="/topics/{topic}/records"} 4`,
		`postamt_http_errors_total{kind="not_found"} 2`,
		`postamt_http_errors_total{kind="not_allowed"} 1`,
		`postamt_http_errors_total{kind="unprocessable"} 1`,
		`postamt_produce_records_total{result="stored",topic="b"} 5`,
		`postamt_produce_duration_seconds_count 4`,
		`postamt_session_records_total{topic="b"} 5`,
		`postamt_record_age_seconds_count{via="session"} 5`, `postamt_record_age_seconds_count{via="stream"} 5`,
		"postamt_sessions 1", "postamt_streams 1", "postamt_producer_remakes_total 0",
		`postamt_health_status{check="kafka"} 1`, `postamt_health_status{check="producer"} 1`,
		"postamt_http_requests_in_flight 1", // the stream
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no metric %s", want)
		}
	}
	// What a user makes up must not make series: only groups and topics that exist may be labels.
	for _, line := range regexp.MustCompile(`(?im)^postamt_.*secret.*$`).FindAllString(text, -1) {
		t.Errorf("a label has what a user sent: %s", line)
	}
	st.close()
	eventually(t, "the stream is gone from the metrics", func() bool { return strings.Contains(s.metricsText(), "postamt_streams 0\n") })
}
