package restproxy

import (
	"encoding/json"
	"testing"

	"postamt/sidecar/internal/event"
)

func FuzzDecodeV3(f *testing.F) {
	for _, seed := range []string{
		`{"partition_id":0,"headers":[{"name":"h","value":"AQI="},{"name":"n","value":null}],"key":{"type":"STRING","data":"k"},"value":{"type":"JSON","data":{"a":[1]}},"timestamp":"2026-01-02T03:04:05Z"}`,
		`{"value":{"type":"BINARY","data":"AP8="}}`, `{"value":{"type":"BINARY","data":"?"}}`, `{"value":{"type":"AVRO","schema_id":1,"data":1}}`, `{"value":{"data":1}}`,
		`{"key":{"type":"JSON","data":null},"value":null}`, `{}`, `[]`, `null`, `{"partition_id":-1}`, `{"timestamp":0}`, `{"value":{"type":"STRING","data":1}}`, `{"value":{"type":"JSON","data":1e999}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			return // the stream has ended there
		}
		rec, bad := DecodeV3(text)
		if bad != nil {
			if bad.Msg == "" || bad.Kind != event.Invalid && bad.Kind != event.Unprocessable && bad.Kind != event.NotFound {
				t.Errorf("%q: %v", text, bad)
			}
			return
		}
		if rec.Timestamp.IsZero() || rec.Partition < event.AnyPartition || rec.KeyPart.Size != len(rec.Key) || rec.ValuePart.Size != len(rec.Value) {
			t.Errorf("%q is %+v", text, rec)
		}
		if rec.ValuePart.Type == "JSON" && rec.Value != nil && !json.Valid(rec.Value) {
			t.Errorf("%q has the value %q", text, rec.Value)
		}
		report := AppendV3Report([]byte("{"), V3Place{Cluster: "c", Topic: "t", Timestamp: rec.Timestamp}, rec.KeyPart, rec.ValuePart)
		if !json.Valid(report) {
			t.Errorf("%q is reported as %q", text, report)
		}
		_, _ = DecodeV3Batch(text, 10)
		_, _, _ = DecodeNewTopic(text)
		_, _ = DecodePartitionsCount(text)
		_, _, _ = DecodeConfigChanges(text)
	})
}
