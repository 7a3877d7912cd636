package restproxy

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// What is read as a record can be written as a line and read again as the same record.
func FuzzDecodeLine(f *testing.F) {
	for _, seed := range []string{
		`{"key":"k","value":{"a":[1,2,{"b":null}]},"headers":[{"key":"h","value":"AQI="},{"key":"n","value":null}],"partition":3,"timestamp":1767323045678}`,
		`{"topic":"t","key":null,"value":null,"key_base64":"/w==","value_base64":"AP8=","error":"the key and the value are not JSON","partition":0,"offset":7,"timestamp":1}`,
		`{"value":"\ud800"}`, `{"value":1} `, `{"value":1}{`, `null`, `[]`, `{"vaule":1}`, `{"partition":-1}`, `{"timestamp":"2026-01-02T03:04:05Z"}`,
		`{"headers":[{"key":"","value":null}]}`, `{"value":1e999}`, "{\"value\":\"\xff\"}", `{"key":"k","KEY":"l"}`, ``,
	} {
		f.Add([]byte(seed), "json")
		f.Add([]byte(seed), "binary")
		f.Add([]byte(seed), "text")
	}
	f.Fuzz(func(t *testing.T, line []byte, name string) {
		format, err := ParseFormat(name)
		if err != nil {
			return
		}
		rec, bad := DecodeLine(line, format)
		if bad != nil {
			if bad.Msg == "" || !utf8.ValidString(bad.Msg) && utf8.Valid(line) || bad.Kind != event.Invalid && bad.Kind != event.Unprocessable {
				t.Errorf("%q: %v", line, bad)
			}
			return
		}
		if rec.Timestamp.IsZero() {
			rec.Timestamp = rec.Timestamp.AddDate(2025, 0, 0)
		}
		again := AppendRecord(nil, &rec, format)
		if rec.Partition < 0 {
			return // a line of a stream has a partition
		}
		if !json.Valid(again) {
			t.Fatalf("%q is written as %q", line, again)
		}
		back, bad := DecodeLine(again, format)
		if bad != nil || string(back.Key) != string(rec.Key) || string(back.Value) != string(rec.Value) || (back.Value == nil) != (rec.Value == nil) ||
			len(back.Headers) != len(rec.Headers) || back.Timestamp.UnixMilli() != rec.Timestamp.UnixMilli() {
			t.Errorf("%q is %+v, and written and read again %+v, %v", line, rec, back, bad)
		}
	})
}
