package restproxy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

func TestAppendRecord(t *testing.T) {
	const place = `"partition":3,"offset":7,"timestamp":1767323045678`
	for _, tc := range []struct {
		name       string
		format     Format
		key, value []byte
		headers    []event.Header
		want       string // between the topic and the end
	}{
		{"null", JSON, nil, nil, nil, `"key":null,"value":null,` + place},
		{"json as it is", JSON, []byte(`"k"`), []byte(`{"a":1e400,"b":12345678901234567890,"c":"\u00fc<"}`), nil, `"key":"k","value":{"a":1e400,"b":12345678901234567890,"c":"\u00fc<"},` + place},
		{"json of many lines is one", JSON, nil, []byte("{\r\n  \"a\": \"x\\n\"\n}"), nil, `"key":null,"value":{"a":"x\n"},` + place},
		{"json null is not Kafka's, and shows as null all the same", JSON, nil, []byte("null"), nil, `"key":null,"value":null,` + place},
		{"not json", JSON, []byte("key1"), []byte("Hello, Kafka!"), nil, `"key":null,"value":null,"key_base64":"a2V5MQ==","value_base64":"SGVsbG8sIEthZmthIQ==","error":"the key and the value are not JSON",` + place},
		{"key alone is not json", JSON, []byte("key1"), []byte("1"), nil, `"key":null,"value":1,"key_base64":"a2V5MQ==","error":"the key is not JSON",` + place},
		{"empty is not json", JSON, nil, []byte{}, nil, `"key":null,"value":null,"value_base64":"","error":"the value is not JSON",` + place},
		{"json that is not UTF-8", JSON, nil, []byte("\"\xff\""), nil, `"key":null,"value":null,"value_base64":"Iv8i","error":"the value is not JSON",` + place},
		{"two json values", JSON, nil, []byte("1 2"), nil, `"key":null,"value":null,"value_base64":"MSAy","error":"the value is not JSON",` + place},
		{"binary", Binary, []byte{}, []byte{0, 0xff}, nil, `"key":"","value":"AP8=",` + place},
		{"binary null", Binary, nil, nil, nil, `"key":null,"value":null,` + place},
		{"text", Text, []byte{}, []byte("Grüße\n\"x\""), nil, `"key":"","value":"Grüße\n\"x\"",` + place},
		{"not text", Text, nil, []byte{0xff}, nil, `"key":null,"value":null,"value_base64":"/w==","error":"the value is not UTF-8",` + place},
		{
			"headers", JSON, nil, nil, []event.Header{{Key: "a", Value: []byte("x")}, {Key: "a"}, {Key: "ü\n", Value: []byte{}}},
			`"key":null,"value":null,` + place + `,"headers":[{"key":"a","value":"eA=="},{"key":"a","value":null},{"key":"ü\n","value":""}]`,
		},
	} {
		r := event.Record{
			Topic: "test.voucher", Partition: 3, Offset: 7, Key: tc.key, Value: tc.value, Headers: tc.headers,
			Timestamp: time.UnixMilli(1767323045678),
		}
		got := string(AppendRecord(nil, &r, tc.format))
		if want := `{"topic":"test.voucher",` + tc.want + `}`; got != want {
			t.Errorf("%s: record is\n%s; want\n%s", tc.name, got, want)
		}
		if strings.ContainsAny(got, "\r\n") || !json.Valid([]byte(got)) {
			t.Errorf("%s: %q is not one line of JSON", tc.name, got)
		}
	}
}
