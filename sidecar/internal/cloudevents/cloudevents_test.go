package cloudevents

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

func text(rec event.Record) string {
	var b strings.Builder
	for _, h := range rec.Headers {
		fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
	}
	key := "null"
	if rec.Key != nil {
		key = string(rec.Key)
	}
	return fmt.Sprintf("%s: %s%s", key, &b, rec.Value)
}

func header(lines ...string) http.Header {
	h := make(http.Header)
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	return h
}

func TestEachModeGivesTheSameRecord(t *testing.T) {
	const want = `shop-1: content-type=application/json ce_specversion=1.0 ce_id=4711 ce_source=/till/7 ce_type=voucher.sold ce_subject=Grüße, "Käse" € ce_dataschema=https://example.com/s ce_time=2026-01-02T03:04:05.678Z ce_partitionkey=shop-1 ce_seats=3 {"a":1}`
	binary, err := FromHeaders(header("Content-Type: application/json", "ce-specversion: 1.0", "ce-id: 4711", "ce-source: /till/7", "ce-type: voucher.sold",
		`ce-subject: Gr%C3%BC%C3%9Fe,%20%22K%c3%a4se%22%20%E2%82%AC`, "ce-dataschema: https://example.com/s", "ce-time: 2026-01-02T03:04:05.678Z",
		"ce-partitionkey: shop-1", "ce-seats: 3", "Accept: */*"), []byte(`{"a":1}`))
	if err != nil || text(binary) != want {
		t.Errorf("binary: %v\n%s\nwant\n%s", err, text(binary), want)
	}
	const one = `{"specversion":"1.0","id":"4711","source":"/till/7","type":"voucher.sold","subject":"Grüße, \"Käse\" €","dataschema":"https://example.com/s","time":"2026-01-02T03:04:05.678Z","partitionkey":"shop-1","seats":3,"data":{"a":1}}`
	structured, err := FromJSON([]byte(one))
	if err != nil || text(structured) != want {
		t.Errorf("structured: %v\n%s\nwant\n%s", err, text(structured), want)
	}
	batch, err := FromBatch([]byte("["+one+`,{"id":"bad"},`+one+"]"), 3)
	if err != nil || len(batch) != 3 || text(batch[0].Record) != want || text(batch[2].Record) != want || batch[1].ID != "bad" || batch[1].Err == nil {
		t.Errorf("batch: %v, %+v", err, batch)
	}
}

func TestDataIsKeptAsItIs(t *testing.T) {
	const attributes = `"specversion":"1.0","id":"1","source":"s","type":"t"`
	for body, want := range map[string]string{
		`{` + attributes + `}`:                                                           "null: ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t ",
		`{` + attributes + `,"data":"text"}`:                                             `null: content-type=application/json ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t "text"`,
		`{` + attributes + `,"data":"text","datacontenttype":"text/plain"}`:              `null: content-type=text/plain ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t text`,
		`{` + attributes + `,"data_base64":"AP8=","datacontenttype":"x/y"}`:              "null: content-type=x/y ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t \x00\xff",
		`{` + attributes + `,"data":1e40,"datacontenttype":"text/json"}`:                 `null: content-type=text/json ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t 1e40`,
		`{"data":{"n":1e400, "m":1.00},` + attributes + `,"time":null}`:                  `null: content-type=application/json ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t {"n":1e400, "m":1.00}`,
		`{` + attributes + `,"datacontenttype":"application/vnd.x+json","data":{"a":1}}`: `null: content-type=application/vnd.x+json ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t {"a":1}`,
		`{` + attributes + `,"datacontenttype":"text/JSON; charset=utf-8","data":[1]}`:   `null: content-type=text/JSON; charset=utf-8 ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t [1]`,
		`{"data_base64":"AP8\u003d",` + attributes + `}`:                                 "null: ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t \x00\xff",
		`{` + attributes + `,"ext":-2147483648}`:                                         "null: ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t ce_ext=-2147483648 ",
		`{` + attributes + `,"partitionkey":"k","flag":true,"data":{"b": 2}}`:            `k: content-type=application/json ce_specversion=1.0 ce_id=1 ce_source=s ce_type=t ce_flag=true ce_partitionkey=k {"b": 2}`,
	} {
		rec, err := FromJSON([]byte(body))
		if err != nil || text(rec) != want {
			t.Errorf("%s: %v\n%q; want\n%q", body, err, text(rec), want)
		}
		if rec.Value == nil {
			t.Errorf("%s is a tombstone", body)
		}
	}
}

func TestWhatIsNoCloudEvent(t *testing.T) {
	for body, says := range map[string]string{
		`{`:                   "not JSON",
		"{\"id\":\"\xff\"}":   "not UTF-8",
		`[]`:                  "a CloudEvent is a JSON object",
		`null`:                "a CloudEvent is a JSON object",
		`{"id":"1"}`:          "specversion is missing",
		`{"specversion":1}`:   `specversion is "1"; it must be 1.0`,
		`{"specversion":"2"}`: `specversion is "2"`,
		`{"specversion":"1.0","source":"s","type":"t"}`:                                   "id",
		`{"specversion":"1.0","id":"","source":"s","type":"t"}`:                           "id",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","time":"soon"}`:            "this is no CloudEvent",
		`{"specversion":"1.0","id":1,"source":"s","type":"t"}`:                            "this is no CloudEvent",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"?"}`:        "this is no CloudEvent",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","bad-name":"x"}`:           "this is no CloudEvent",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"no,,"}`: "datacontenttype",
	} {
		_, err := FromJSON([]byte(body))
		if err == nil || !strings.Contains(err.Msg, says) {
			t.Errorf("%s: %v; want %q", body, err, says)
		}
	}
	const attributes = `{"specversion":"1.0","id":"1","source":"s","type":"t",`
	for members, says := range map[string]string{
		`"data_base64":"AAE=","data":1}`: "data and data_base64 are both there",
		`"data":1,"data_base64":"AAE="}`: "data and data_base64 are both there",
		`"dataschema":"::"}`:             "dataschema",
		`"data_base64":1}`:               "data_base64 must be a string",
		`"ext":1.5}`:                     "ext is 1.5; an attribute is",
		`"ext":123456789012}`:            "a whole number of 32 bits",
		`"ext":{"a":1}}`:                 `ext is something else; an attribute is`,
		`"data":"x","Data":"y"}`:         `an attribute "Data"`,
		`"":1}`:                          `an attribute ""`,
		`"data":1,"data":2}`:             `"data" is there twice`,
		`"subject":null,"subject":"a"}`:  `"subject" is there twice`,
		`"data":{"a":1},"datacontenttype":"application/xml"}`: "data must be a string",
	} {
		if _, err := FromJSON([]byte(attributes + members)); err == nil || err.Kind != event.Unprocessable || !strings.Contains(err.Msg, says) {
			t.Errorf("%s: %v; want %q", members, err, says)
		}
	}
	ok := []string{"ce-specversion: 1.0", "ce-id: 1", "ce-source: s", "ce-type: t"}
	for _, tc := range []struct{ add, says string }{
		{"ce-time: soon", "this is no CloudEvent"}, {"ce-subject: %zz", "not percent-encoded"}, {"ce-subject: %FF", "not percent-encoded"},
		{"ce-no-name: x", "this is no CloudEvent"}, {"ce-: x", `an attribute ""`}, {"ce-data: x", "the body is the data"}, {"ce-dataschema: ::", "this is no CloudEvent"},
		{"ce-id: 2", "ce-id is there 2 times"}, {"ce-datacontenttype: a/b", "Content-Type its type"}, {"ce-type: ", "type: "},
	} {
		if name, _, _ := strings.Cut(tc.add, ":"); name == "ce-type" {
			ok = ok[:3]
		}
		if _, err := FromHeaders(header(append(ok, tc.add)...), nil); err == nil || !strings.Contains(err.Msg, tc.says) {
			t.Errorf("%s: %v; want %q", tc.add, err, tc.says)
		}
	}
	for h, want := range map[string]event.Kind{"Content-Type: application/cloudevents+xml": event.Unsupported, "ce-id: 1": event.Unprocessable} {
		if _, err := ModeOf(header(h)); err == nil || err.(*event.Error).Kind != want { //nolint:errorlint,forcetypeassert // it makes no other
			t.Errorf("%s: %v; want %s", h, err, want)
		}
	}
}

func FuzzCloudEvent(f *testing.F) {
	for _, seed := range []string{
		`{"specversion":"1.0","id":"1","source":"s","type":"t","time":"2026-01-02T03:04:05Z","data":{"a":[1,null]}}`,
		`{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"AP8=","datacontenttype":"x/y","seats":3,"flag":true}`,
		`[{"specversion":"1.0","id":"1","source":"s","type":"t"},{"id":1},null,[]]`, `{"specversion":"1.0","data":"x"}`, `{}`, `{"specversion":"0.3"}`, ``,
		`{"specversion":"1.0","id":"1","source":"%","type":"t","dataschema":"::"}`,
	} {
		f.Add([]byte(seed), "k%20v", "\"q\\\"\"")
	}
	f.Fuzz(func(t *testing.T, body []byte, a, b string) {
		check := func(rec event.Record, err *event.Error) {
			if err != nil {
				if err.Msg == "" || !utf8.ValidString(err.Msg) || err.Kind != event.Invalid && err.Kind != event.Unprocessable {
					t.Errorf("%q: %v", body, err)
				}
				return
			}
			has := make(map[string]bool)
			for _, h := range rec.Headers {
				has[h.Key] = true
			}
			if rec.Value == nil || !has["ce_id"] || !has["ce_source"] || !has["ce_type"] || !has["ce_specversion"] {
				t.Errorf("%q is %+v", body, rec)
			}
		}
		check(FromJSON(body))
		if !json.Valid(body) {
			body = append([]byte{}, body...)
		}
		results, err := FromBatch(body, 5)
		if err == nil {
			for _, r := range results {
				check(r.Record, r.Err)
			}
		}
		check(FromHeaders(http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {a}, "Ce-Source": {b}, "Ce-Type": {"t"}, "Ce-X": {a}, "Ce-Time": {b}, "Content-Type": {a}}, body))
	})
}
