package httpapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	cloudEvent  = "Content-Type: application/cloudevents+json"
	cloudEvents = "Content-Type: application/cloudevents-batch+json; charset=utf-8"
)

func TestCloudEventsInEachMode(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	const one = `{"specversion":"1.0","id":"4711","source":"/till/7","type":"sold","partitionkey":"shop-1","data":{"a": 1}}`
	want := `ce_id=4711 ce_partitionkey=shop-1 ce_source=/till/7 ce_specversion=1.0 ce_type=sold content-type=application/json`
	offset := 0
	for what, request := range map[string]func() answer{
		"binary": func() answer {
			return s.do("POST", "/topics/b/records", `{"a": 1}`, plainJSON, "ce-specversion: 1.0", "ce-id: 4711", "ce-source: /till/7", "ce-type: s%6Fld", "ce-partitionkey: shop-1")
		},
		"structured": func() answer { return s.do("POST", "/topics/b/records?partition=0", one, cloudEvent) },
		"packed": func() answer {
			return s.do("POST", "/topics/b/records", packed("gzip", one), cloudEvent, "Content-Encoding: gzip")
		},
	} {
		got := request()
		if got.status != 200 || !strings.Contains(got.body, fmt.Sprintf(`{"topic":"b","partition":0,"offset":%d,"timestamp":"`, offset)) {
			t.Errorf("%s: %d %s", what, got.status, got.body)
		}
		offset++
	}
	got := s.do("POST", "/topics/b/records", "["+one+`,{"specversion":"1.0","id":"no source","type":"t"},`+one+"]", cloudEvents, "Kafka-Header-Extra: x")
	var results []struct {
		ID     string
		Offset *int64
		Code   int `json:"error_code"`
	}
	if err := json.Unmarshal([]byte(got.body), &results); err != nil || got.status != 200 || len(results) != 3 ||
		results[0].ID != "4711" || *results[0].Offset != 3 || results[1].ID != "no source" || results[1].Code != 422 || *results[2].Offset != 4 {
		t.Errorf("batch: %v, %d %s", err, got.status, got.body)
	}
	s.do("POST", "/topics/b/records", "[]", cloudEvents).want(t, "an empty batch", 200, "[]")
	for i, r := range s.records("b", 5) {
		has := make(map[string]string)
		for _, h := range r.Headers {
			has[h.Key] = string(h.Value)
		}
		if _, extra := has["extra"]; extra != (i > 2) {
			t.Errorf("record %d has the headers %v", i, has)
		}
		delete(has, "extra")
		if is := strings.Trim(fmt.Sprint(has), "map[]"); is != strings.ReplaceAll(want, "=", ":") || string(r.Key) != "shop-1" || string(r.Value) != `{"a": 1}` {
			t.Errorf("record %d is %s = %s with %s; want %s", i, r.Key, r.Value, is, want)
		}
	}
}

func TestErrorsOfCloudEvents(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "1000", "MAX_BATCH_BYTES": "2000", "MAX_RECORDS": "3", "REQUEST_TIMEOUT": "1s"})
	const one = `{"specversion":"1.0","id":"1","source":"s","type":"t"}`
	for _, tc := range []struct {
		path, body   string
		headers      []string
		status, code int
		says         string
	}{
		{"/topics/b/records", `{"specversion":"1.0"}`, []string{cloudEvent}, 422, 422, "id: "},
		{"/topics/b/records", `{`, []string{cloudEvent}, 400, 400, "not JSON"},
		{"/topics/b/records", `{"specversion":"0.3"}`, []string{cloudEvent}, 422, 422, "it must be 1.0"},
		{"/topics/b/records", "", []string{"ce-id: 1"}, 422, 422, "no ce-specversion"},
		{"/topics/b/records", "", []string{"ce-specversion: 1.0", "ce-id: 1"}, 422, 422, "source: "},
		{"/topics/b/records", "", []string{"ce-specversion: 1.0", "ce-id: %1"}, 400, 400, "percent-encoded"},
		{"/topics/b/records", "", []string{"ce-specversion: 1.0", "ce-id: 1", "ce-source: s", "ce-type: t", "ce-: x"}, 422, 422, `an attribute ""`},
		{"/topics/b/records", `{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"AAE=","data":1}`, []string{cloudEvent}, 422, 422, "are both there"},
		{"/topics/b/records", one, []string{cloudEvent, "Kafka-Header-ce_id: evil"}, 422, 422, "ce_id is the CloudEvent's own"},
		{"/topics/b/records", one, []string{cloudEvent, "Kafka-Header-Content-Type: a/b"}, 422, 422, "content-type is the CloudEvent's own"},
		{"/topics/b/records", one, []string{"Content-Type: application/cloudevents+avro"}, 415, 415, "application/cloudevents-batch+json"},
		{"/topics/b/records?key=k", one, []string{cloudEvent}, 422, 422, "known are partition"},
		{"/topics/b/records?partition=x", one, []string{cloudEvent}, 400, 400, "partition is"},
		{"/topics/b/records?partition=1", one, []string{cloudEvent}, 404, 40402, "has no partition 1"},
		{"/topics/nowhere/records", one, []string{cloudEvent}, 404, 40401, "there is no topic"},
		{"/topics/b/records", repeat(' ', 1001), []string{cloudEvent}, 413, 413, "MAX_BODY_BYTES"},
		{"/topics/b/records", repeat(' ', 2001), []string{cloudEvents}, 413, 413, "MAX_BATCH_BYTES"},
		{"/topics/b/records", "[" + one + "," + one + "," + one + "," + one + "]", []string{cloudEvents}, 422, 422, "MAX_RECORDS"},
		{"/topics/b/records", one, []string{cloudEvents}, 422, 422, "a JSON array"},
		{"/topics/b/records", "null", []string{cloudEvents}, 422, 422, "a JSON array"},
	} {
		got := s.do("POST", tc.path, tc.body, tc.headers...)
		if got.status != tc.status || got.code(t) != tc.code || !strings.Contains(got.body, strings.ReplaceAll(tc.says, `"`, `\"`)) {
			t.Errorf("%s %.60s: %d %s; want %d, %d, %q", tc.path, tc.body, got.status, got.body, tc.status, tc.code, tc.says)
		}
	}
	fault := s.cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: -1})
	defer fault.Remove()
	for _, tc := range []struct{ body, contentType string }{{one, cloudEvent}, {"[" + one + "," + one + "]", cloudEvents}} {
		got := s.do("POST", "/topics/b/records", tc.body, tc.contentType)
		if got.status != 503 || got.code(t) != 50302 || got.header.Get("Retry-After") == "" {
			t.Errorf("%s while Kafka takes nothing: %d %s", tc.contentType, got.status, got.body)
		}
	}
}

// ?async=true does not wait for Kafka, and loses nothing by that.
func TestAsyncAnswersBeforeKafkaDoes(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "1000", "MAX_BATCH_BYTES": "1000", "MAX_IN_FLIGHT_BYTES": "1000"})
	s.do("POST", "/topics/b/records", "0").want(t, "a record", 200, "")
	release := make(chan struct{})
	s.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	body := `{"records":[{"value":1},{"value":"` + repeat('x', 600) + `"}]}`
	s.do("POST", "/topics/b?async=true", body, jsonV2).want(t, "two records", 204, "")
	got := s.do("POST", "/topics/b/partitions/0?async=true", body, jsonV2)
	if got.status != 429 || !strings.Contains(got.body, "MAX_IN_FLIGHT_BYTES") {
		t.Errorf("what Kafka has not acknowledged counts as in flight: %d %s; want 429", got.status, got.body)
	}
	close(release)
	eventually(t, "its bytes are free", func() bool { return s.do("POST", "/topics/b/partitions/0?async=true", body, jsonV2).status == 204 })
	if r := s.records("b", 5); string(r[1].Value) != "1" || string(r[3].Value) != "1" {
		t.Errorf("stored are %+v", r)
	}
	for path, want := range map[string]int{"/topics/b?async=maybe": 400, "/topics/nowhere?async=true": 40401, "/topics/b?async=true": 40402} {
		if got := s.do("POST", path, `{"records":[{"value":1},{"value":2,"partition":9}]}`, jsonV2); got.code(t) != want {
			t.Errorf("%s: %d %s; want %d", path, got.status, got.body, want)
		}
	}
	s.do("POST", "/topics/b?async=false", `{"records":[{"value":1}]}`, jsonV2).want(t, "async=false", 200, "")
	if n := len(s.records("b", 6)); n != 6 {
		t.Errorf("%d records; want 6: one that names no partition must not hand over the others", n)
	}
}

func TestAShutdownWaitsForAsyncRecords(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/b/records", "0").want(t, "a record", 200, "")
	s.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		s.cluster.SleepControl(func() { time.Sleep(time.Second) })
		return nil, nil, false
	})
	s.do("POST", "/topics/b?async=true", `{"records":[{"value":1},{"value":2}]}`, jsonV2).want(t, "two records", 204, "")
	s.stop()
	if r := s.records("b", 3); string(r[2].Value) != "2" {
		t.Errorf("stored are %+v", r)
	}
}
