package httpapi_test

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What Kafka may have stored must not be called not stored.
func TestWhatMayBeStoredIsSaidSo(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"REQUEST_TIMEOUT": "2s"})
	s.do("POST", "/topics/b/records", "warm").want(t, "a record", 200, "")
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend, Count: -1})
	defer fault.Remove()
	record := `{"value":"` + repeat('x', 900_000) + `"}`
	for path, body := range map[string]string{
		"/topics/b":            `{"records":[{"value":1}]}`,
		"/topics/b?async=true": `{"records":[` + strings.Repeat(record+",", 7) + record + `]}`, // more than may be open at once
	} {
		got := s.do("POST", path, body, jsonV2)
		got.refused(t, 503, "may be stored, or not")
	}
}

func TestKafkaDoesNotLetUsWrite(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/b/records", "warm").want(t, "a record", 200, "")
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	defer fault.Remove()
	if got := s.do("POST", "/topics/b/records", "1"); got.status != 403 || got.code(t) != 40301 {
		t.Errorf("a record: %d %s", got.status, got.body)
	}
	got := s.send("POST", "/topics/b", strings.NewReader(`{"records":[{"value":1}]}`), jsonV2)
	if got.status != 403 || !strings.Contains(got.body, `"offsets":[`) || !strings.Contains(got.body, `"error_code":40301`) {
		t.Errorf("REST Proxy v2: %d %s", got.status, got.body)
	}
	if got := s.do("POST", "/topics/b/records", "{}\n", ndjson); got.status != 200 || !strings.Contains(got.body, `"error_code":40301`) {
		t.Errorf("NDJSON: %d %s", got.status, got.body)
	}
}

func TestParametersOfTheDialectAreChecked(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	body := `{"records":[{"value":1}]}`
	s.do("POST", "/topics/b?asnyc=true", body, jsonV2).refused(t, 422, "known are async")
	s.do("POST", "/topics/b?async=", body, jsonV2).refused(t, 400, "async has no value")
	s.do("POST", "/topics/b/partitions/0?async=true&async=false", body, jsonV2).refused(t, 422, "it must be there once")
}
