package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

// The seeds of these targets, and more of the others', are files below testdata/fuzz.

func FuzzDecodePartitions(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		tps, err := DecodePartitions(body)
		if err != nil {
			checkKind(t, err)
			if tps != nil {
				t.Errorf("%s: %v beside %v", body, tps, err)
			}
		}
	})
}

func FuzzMediaTypes(f *testing.F) {
	f.Fuzz(func(t *testing.T, contentType, accept string) {
		format, err := FormatOf(contentType)
		switch {
		case err == nil && format != JSON && format != Binary && format != Text:
			t.Errorf("the Content-Type %q is %q", contentType, format)
		case err != nil:
			wantKind(t, err, event.Unsupported)
		}
		list := strings.Split(accept, "\n")
		format, err = RecordsFormat(list)
		if err != nil {
			wantKind(t, err, event.Invalid, event.NotAcceptable)
			if CheckAccept(list) == nil {
				t.Errorf("Accept %q is right for an answer that has no format, and not for one that has", accept)
			}
			return
		}
		if format != JSON && format != Binary && format != Text {
			t.Errorf("Accept %q is %q", accept, format)
		}
		// Who is answered in a format takes it.
		if err := CheckRecordsAccept(list, format); err != nil {
			t.Errorf("Accept %q is answered in %s, and refuses it: %v", accept, format, err)
		}
	})
}

func FuzzParseTimestamp(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		at, err := ParseTimestamp(text)
		if err != nil {
			wantKind(t, err, event.Invalid, event.Unprocessable)
			return
		}
		if at.UnixMilli() <= 0 {
			t.Errorf("%q is %v, which Kafka takes for none", text, at)
		}
		if at.Year() > 9999 { // beyond what RFC 3339 can write
			return
		}
		again, err := ParseTimestamp(at.UTC().Format(time.RFC3339Nano))
		if err != nil || !again.Equal(at) {
			t.Errorf("%q is %v, and again %v, %v", text, at, again, err)
		}
	})
}

func FuzzDecodeTopics(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		if spec, _, err := DecodeNewTopic(body); err != nil {
			if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind == event.Internal {
				t.Errorf("%q: %v", body, err)
			}
		} else if spec.Name == "" || spec.Assignments != nil && (spec.Partitions != -1 || spec.Replication != -1 || slices.ContainsFunc(spec.Assignments, func(b []int32) bool { return len(b) == 0 })) {
			t.Errorf("%q is the topic %+v", body, spec)
		}
		if changes, _, err := DecodeConfigChanges(body); err == nil && (len(changes) == 0 || slices.ContainsFunc(changes, func(c event.ConfigChange) bool { return c.Name == "" })) {
			t.Errorf("%q changes %v", body, changes)
		}
		if n, err := DecodePartitionsCount(body); err == nil && n < 1 {
			t.Errorf("%q is %d partitions", body, n)
		}
		if entries, err := DecodeV3Batch(body, 10); err == nil && (len(entries) == 0 || len(entries) > 10) {
			t.Errorf("%q has %d entries", body, len(entries))
		}
	})
}

// Whatever a record holds, what is written is one line of JSON that has all of it.
func FuzzAppendRecord(f *testing.F) {
	f.Fuzz(func(t *testing.T, topic string, key, value, header []byte, partition int32, offset int64, kind uint8) {
		format := []Format{JSON, Binary, Text}[kind%3]
		r := event.Record{Topic: topic, Key: key, Value: value, Partition: partition, Offset: offset, Headers: []event.Header{{Key: string(header), Value: header}}, Timestamp: time.UnixMilli(offset % (1 << 48))}
		line := AppendRecord(nil, &r, format)
		if bytes.ContainsAny(line, "\r\n") || !json.Valid(line) {
			t.Fatalf("%+v as %s is %q", r, format, line)
		}
		var back struct {
			Key, Value json.RawMessage
			Partition  int32
			Offset     int64
			K64        *string `json:"key_base64"`
			V64        *string `json:"value_base64"`
			Error      string
		}
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatal(err)
		}
		if back.Partition != partition || back.Offset != offset {
			t.Errorf("%q is of another place than %d, %d", line, partition, offset)
		}
		for _, got := range []struct {
			want []byte
			raw  json.RawMessage
			b64  *string
		}{{key, back.Key, back.K64}, {value, back.Value, back.V64}} {
			want := string(got.want)
			switch {
			case got.b64 != nil:
				if b, err := base64.StdEncoding.DecodeString(*got.b64); err != nil || string(b) != want || back.Error == "" {
					t.Errorf("%q keeps %q as %q", line, want, b)
				}
			case format == Binary || format == Text:
				var text *string
				if err := json.Unmarshal(got.raw, &text); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if text == nil {
					continue // Kafka's null
				}
				if format == Binary {
					b, err := base64.StdEncoding.DecodeString(*text)
					if err != nil {
						t.Fatalf("%q: %v", line, err)
					}
					*text = string(b)
				}
				if *text != want {
					t.Errorf("%q keeps %q as %q", line, want, *text)
				}
			}
		}
	})
}

func wantKind(t *testing.T, err error, kinds ...event.Kind) {
	t.Helper()
	var ee *event.Error
	if !errors.As(err, &ee) || ee.Msg == "" {
		t.Fatalf("%v is no error that a client can be shown", err)
	}
	if !slices.Contains(kinds, ee.Kind) {
		t.Errorf("%v is %s; want one of %v", err, ee.Kind, kinds)
	}
}
