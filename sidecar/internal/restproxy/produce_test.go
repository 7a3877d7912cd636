package restproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

const anyNumber = 1000

// show writes a record so that Kafka's null differs from what is empty.
func show(b []byte) string {
	if b == nil {
		return "null"
	}
	return fmt.Sprintf("%q", b)
}

func TestDecodeProduceKeysAndValues(t *testing.T) {
	for _, tc := range []struct {
		format     Format
		record     string
		key, value string // as show writes them
	}{
		{JSON, `{}`, `null`, `null`},
		{JSON, `{"key":null,"value":null}`, `null`, `null`},
		{JSON, `{"key":"k","value":{"a": [1, 2 ]}}`, `"\"k\""`, `"{\"a\":[1,2]}"`},
		{JSON, `{"value":"null"}`, `null`, `"\"null\""`},
		{JSON, `{"value":""}`, `null`, `"\"\""`},
		{JSON, `{"value":false}`, `null`, `"false"`},
		{JSON, `{"value":0}`, `null`, `"0"`},
		// Numbers stay as they were written: a float64 would lose all of these.
		{JSON, `{"value":1e400}`, `null`, `"1e400"`},
		{JSON, `{"value":12345678901234567890}`, `null`, `"12345678901234567890"`},
		{JSON, `{"value":[0.10, -0, 1E+2]}`, `null`, `"[0.10,-0,1E+2]"`},
		{JSON, `{"value":"ü\u00fc<&>\ud83d\ude00"}`, `null`, `"\"ü\\u00fc<&>\\ud83d\\ude00\""`},
		{JSON, `{"value":{"b":1,"a":2,"b":3}}`, `null`, `"{\"b\":1,\"a\":2,\"b\":3}"`}, // order and repetition are the sender's
		{Binary, `{"key":"","value":""}`, `""`, `""`},
		{Binary, `{"value":null}`, `null`, `null`},
		{Binary, `{"key":"AP8=","value":"bnVsbA=="}`, `"\x00\xff"`, `"null"`},
		{Binary, `{"value":"A\u0041=="}`, `null`, `"\x00"`}, // a JSON string before it is base64
		{Text, `{"key":"","value":"Grüße\n"}`, `""`, `"Grüße\n"`},
		{Text, `{"value":null}`, `null`, `null`},
		{Text, `{"value":"null"}`, `null`, `"null"`},
		{JSON, `{"value":1,"unknown":{},"value_schema":"x"}`, `null`, `"1"`},
	} {
		records, err := DecodeProduce([]byte(`{"value_schema_id":7,"records":[`+tc.record+`]}`), tc.format, anyNumber)
		if err != nil {
			t.Errorf("%s %s: %v", tc.format, tc.record, err)
			continue
		}
		r := records[0]
		if show(r.Key) != tc.key || show(r.Value) != tc.value || r.Partition != event.AnyPartition || !r.Timestamp.IsZero() || r.Headers != nil {
			t.Errorf("%s %s is %s = %s in %+v; want %s = %s", tc.format, tc.record, show(r.Key), show(r.Value), r, tc.key, tc.value)
		}
	}
}

func TestDecodeProduceKeepsOrderPartitionTimestampAndHeaders(t *testing.T) {
	records, err := DecodeProduce([]byte(` { "records" : [
		{"value": 1, "partition": 0, "timestamp": 1767323045678},
		{"value": 2, "timestamp": "2026-01-02T03:04:05.678+00:00", "partition": null},
		{"value": 3, "timestamp": "1767323045678", "headers": []},
		{"value": 4, "timestamp": null, "headers": [
			{"key":"h","value":"AA=="}, {"key":"h","value":null}, {"key":"h"}, {"key":"h","value":""}]}
	] } `), JSON, 4)
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(1767323045678)
	for i, want := range []struct {
		partition int32
		at        time.Time
	}{{0, at}, {event.AnyPartition, at}, {event.AnyPartition, at}, {event.AnyPartition, time.Time{}}} {
		r := records[i]
		if string(r.Value) != fmt.Sprint(i+1) || r.Partition != want.partition || !r.Timestamp.Equal(want.at) {
			t.Errorf("records[%d] is %+v; want partition %d at %v", i, r, want.partition, want.at)
		}
	}
	var headers []string
	for _, h := range records[3].Headers {
		headers = append(headers, h.Key+"="+show(h.Value))
	}
	if want := []string{`h="\x00"`, "h=null", "h=null", `h=""`}; !slices.Equal(headers, want) {
		t.Errorf("headers are %v; want %v", headers, want)
	}
}

func TestDecodeProduceSaysWhatIsWrongAndWhere(t *testing.T) {
	for _, tc := range []struct {
		format Format
		body   string
		kind   event.Kind
		says   string
	}{
		{JSON, ``, event.Invalid, "not JSON"},
		{JSON, `{"records":[{"value":1}]`, event.Invalid, "byte 24"},
		{JSON, `{"records":[{"value":1}]} {}`, event.Invalid, "byte 27"},
		{JSON, `{"records":[{"value":NaN}]}`, event.Invalid, "byte 22"},
		{JSON, "{\"records\":[{\"value\":\"\xff\"}]}", event.Invalid, "not UTF-8"},
		{JSON, `[{"value":1}]`, event.Unprocessable, "the body is a JSON array; it must be an object"},
		{JSON, `"Hello"`, event.Unprocessable, "the body is a JSON string"},
		{JSON, `{}`, event.Unprocessable, "records is empty or missing"},
		{JSON, `null`, event.Unprocessable, "records is empty or missing"},
		{JSON, `{"records":null}`, event.Unprocessable, "records is empty or missing"},
		{JSON, `{"records":[]}`, event.Unprocessable, "records is empty or missing"},
		{JSON, `{"records":{}}`, event.Unprocessable, "records is a JSON object; it must be an array"},
		{JSON, `{"records":[1]}`, event.Unprocessable, "it must be an object"},
		{JSON, `{"records":[{},{},{},{}]}`, event.Unprocessable, "there are 4 records; a request takes at most 3 (MAX_RECORDS)"},
		{JSON, `{"records":[{},{"partition":-1}]}`, event.Unprocessable, "records[1].partition is -1"},
		{JSON, `{"records":[{"partition":"0"}]}`, event.Unprocessable, "records.partition is a JSON string"},
		{JSON, `{"records":[{"partition":2147483648}]}`, event.Unprocessable, "a whole number of 32 bits"},
		{JSON, `{"records":[{"timestamp":"yesterday"}]}`, event.Invalid, "records[0].timestamp is"},
		{JSON, `{"records":[{"timestamp":0}]}`, event.Unprocessable, "records[0].timestamp is 0"},
		{JSON, `{"records":[{"timestamp":-1}]}`, event.Unprocessable, "after 1970"},
		{JSON, `{"records":[{},{"headers":[{"key":"a"},{"key":"b","value":"!"}]}]}`, event.Invalid, "records[1].headers[1].value is not base64"},
		{JSON, `{"records":[{"headers":[{"value":"AA=="}]}]}`, event.Unprocessable, "records[0].headers[0].key"},
		{JSON, `{"records":[{"headers":[{"key":"a\u0000b"}]}]}`, event.Unprocessable, "NUL"},
		{JSON, `{"records":[{"headers":{"a":"b"}}]}`, event.Unprocessable, "it must be an array"},
		{Binary, `{"records":[{"value":"AA=="},{"value":"Hello, Kafka!"}]}`, event.Invalid, "records[1].value is not base64"},
		{Binary, `{"records":[{"key":"AA"}]}`, event.Invalid, "records[0].key is not base64"}, // no padding
		{Binary, `{"records":[{"key":"_-8="}]}`, event.Invalid, "records[0].key is not base64"},
		{Binary, `{"records":[{"value":{"a":1}}]}`, event.Invalid, "records[0].value is an object; in format binary it must be a string; for JSON values the Content-Type is application/vnd.kafka.json.v2+json"},
		{Text, `{"records":[{"value":5}]}`, event.Invalid, "records[0].value is a number; in format text it must be a string"},
		{Text, `{"records":[{"value":[]}]}`, event.Invalid, "is an array"},
		{Text, `{"records":[{"value":true}]}`, event.Invalid, "is a boolean"},
	} {
		_, err := DecodeProduce([]byte(tc.body), tc.format, 3)
		wantError(t, tc.body, err, tc.kind, tc.says)
	}
}

// wantError checks an error's kind, and that its text for the user says something.
func wantError(t *testing.T, what string, err error, kind event.Kind, says string) {
	t.Helper()
	var ee *event.Error
	switch {
	case !errors.As(err, &ee):
		t.Errorf("%s: the error is %v; want one of kind %s", what, err, kind)
	case ee.Kind != kind || !strings.Contains(ee.Msg, says):
		t.Errorf("%s: the error is %s, %q; want %s, %q", what, ee.Kind, ee.Msg, kind, says)
	}
}

func TestAppendProducedHasAllMembersAlways(t *testing.T) {
	item := func(err error) (int, string) { return 50003, err.Error() }
	for _, tc := range []struct {
		results []event.Result
		want    string
	}{
		{nil, `{"offsets":[],"key_schema_id":null,"value_schema_id":null}`},
		{
			[]event.Result{{Place: event.Place{Partition: 2, Offset: 1 << 40}}, {Err: errors.New("a \"b\"\n")}, {}},
			`{"offsets":[{"partition":2,"offset":1099511627776,"error_code":null,"error":null},` +
				`{"partition":null,"offset":null,"error_code":50003,"error":"a \"b\"\n"},` +
				`{"partition":0,"offset":0,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`,
		},
	} {
		if got := string(AppendProduced(nil, tc.results, item)); got != tc.want {
			t.Errorf("answer is\n%s; want\n%s", got, tc.want)
		}
	}
}

func TestParseTimestamp(t *testing.T) {
	for text, want := range map[string]int64{ // milliseconds; 0: refused
		"1": 1, "1767323045678": 1767323045678, "2026-01-02T03:04:05Z": 1767323045000,
		"2026-01-02T03:04:05.678912+01:00": 1767319445678,
		"0":                                0, "-1": 0, "1969-12-31T23:59:59Z": 0, "1970-01-01T00:00:00Z": 0,
		"": 0, "1.5": 0, "1e3": 0, "2026-01-02": 0, "99999999999999999999": 0,
	} {
		got, err := ParseTimestamp(text)
		if want == 0 != (err != nil) || err == nil && got.UnixMilli() != want {
			t.Errorf("%q is %v, %v; want %d", text, got, err, want)
		}
	}
}

// checkKind fails unless err is an error that blames the request.
func checkKind(t *testing.T, err error) {
	t.Helper()
	var ee *event.Error
	if !errors.As(err, &ee) || ee.Kind != event.Invalid && ee.Kind != event.Unprocessable || ee.Msg == "" {
		t.Errorf("the error is %#v", err)
	}
}

func FuzzDecodeProduce(f *testing.F) {
	for _, body := range []string{
		`{"records":[{"key":"k","value":{"a":1e400}}]}`, `{"records":[{"key":"AA==","value":"","partition":1}]}`,
		`{"records":[{"value":null,"timestamp":"2026-01-02T03:04:05Z","headers":[{"key":"h","value":null}]}]}`,
		`{"records":[{"value":"\ud800"},{"partition":-1}]}`, `{"records":5}`, `{"records":[{"timestamp":1}]} x`, ``, `{"records":[{"key":[[[[1]]]]}]}`,
	} {
		for i := range 3 {
			f.Add([]byte(body), i)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		format := []Format{JSON, Binary, Text}[((n%3)+3)%3]
		records, err := DecodeProduce(body, format, anyNumber)
		if err != nil {
			checkKind(t, err)
			return
		}
		// What was taken in goes out in the same format, in one line, and comes in as it was.
		line := []byte(`{"records":[`)
		for i := range records {
			if i > 0 {
				line = append(line, ',')
			}
			line = AppendRecord(line, &records[i], format)
		}
		line = append(line, "]}"...)
		if !json.Valid(line) || bytes.ContainsAny(line, "\r\n") {
			t.Fatalf("records go out as %s", line)
		}
		again, err := DecodeProduce(bytes.ReplaceAll(line, []byte(`"partition":-1,`), nil), format, anyNumber)
		if err != nil {
			if bytes.Contains(line, []byte(`"timestamp":-`)) {
				return // no timestamp was given: the zero one does not come in
			}
			t.Fatalf("%s: %v", line, err)
		}
		for i := range records {
			a, b := records[i], again[i]
			same := func(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
			if !same(a.Key, b.Key) || !same(a.Value, b.Value) || len(a.Headers) != len(b.Headers) || a.Timestamp.UnixMilli() != b.Timestamp.UnixMilli() {
				t.Fatalf("%+v came back as %+v", a, b)
			}
			for j := range a.Headers {
				if a.Headers[j].Key != b.Headers[j].Key || !same(a.Headers[j].Value, b.Headers[j].Value) {
					t.Fatalf("headers %+v came back as %+v", a.Headers, b.Headers)
				}
			}
		}
	})
}
