package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

const op = "decode"

// produceRequest is the body of POST /topics/{topic}. Unknown members are ignored, the ones
// that speak of schemas among them.
type produceRequest struct {
	Records []*produceRecord `json:"records"`
}

type produceRecord struct {
	Key       json.RawMessage `json:"key"`
	Value     json.RawMessage `json:"value"`
	Partition *int32          `json:"partition"`
	Timestamp json.RawMessage `json:"timestamp"`
	Headers   []struct {
		Key   string  `json:"key"`
		Value *string `json:"value"` // base64; null is Kafka's null
	} `json:"headers"`
}

// DecodeProduce reads the body of a produce request: {"records":[{"key","value",
// "partition","timestamp","headers"}]}. A key or value that is null or left out is Kafka's
// null. The records have no topic, and AnyPartition where they name none. Their keys and
// values may be parts of body, which must stay as it is while they are used.
func DecodeProduce(body []byte, format Format, maxRecords int) ([]event.Record, error) {
	if records, ok := scanProduce(body, format, maxRecords); ok {
		return records, nil
	}
	return parseProduce(body, format, maxRecords)
}

// parseProduce is DecodeProduce for every body, with all its errors.
func parseProduce(body []byte, format Format, maxRecords int) ([]event.Record, error) {
	var req produceRequest
	if err := unmarshal(body, &req); err != nil {
		return nil, err
	}
	switch n := len(req.Records); {
	case n == 0:
		return nil, event.Errorf(event.Unprocessable, 0, op, `records is empty or missing; the body must be {"records":[{"value":…}]}`)
	case n > maxRecords:
		return nil, event.Errorf(event.Unprocessable, 0, op, "there are %d records; a request takes at most %d (MAX_RECORDS)", n, maxRecords)
	}
	records := make([]event.Record, len(req.Records))
	for i, r := range req.Records {
		if r == nil { // it would become a record with neither key nor value
			return nil, event.Errorf(event.Unprocessable, 0, op, `records[%d] is null; a record is an object, such as {"value":…}`, i)
		}
		if err := r.decode(format, &records[i]); err != nil {
			err.Msg = fmt.Sprintf("records[%d].%s", i, err.Msg)
			return nil, err
		}
	}
	return records, nil
}

func (r *produceRecord) decode(format Format, into *event.Record) *event.Error {
	var err *event.Error
	if into.Key, err = embedded(r.Key, format, "key"); err != nil {
		return err
	}
	if into.Value, err = embedded(r.Value, format, "value"); err != nil {
		return err
	}
	into.Partition = event.AnyPartition
	if r.Partition != nil {
		if *r.Partition < 0 {
			return event.Errorf(event.Unprocessable, 0, op, "partition is %d; it must be a number from 0 up", *r.Partition)
		}
		into.Partition = *r.Partition
	}
	if !null(r.Timestamp) {
		t, err := ParseTimestamp(strings.Trim(string(r.Timestamp), `"`))
		if err != nil {
			return err.(*event.Error) //nolint:errorlint,forcetypeassert // it makes no other
		}
		into.Timestamp = t
	}
	for i, h := range r.Headers {
		if h.Key == "" || strings.ContainsRune(h.Key, 0) {
			return event.Errorf(event.Unprocessable, 0, op, "headers[%d].key is %q; it must not be empty or hold a NUL", i, h.Key)
		}
		header := event.Header{Key: h.Key}
		if h.Value != nil {
			v, err := base64.StdEncoding.DecodeString(*h.Value)
			if err != nil {
				return event.Errorf(event.Invalid, 0, op, "headers[%d].value is not base64", i)
			}
			header.Value = v
		}
		into.Headers = append(into.Headers, header)
	}
	return nil
}

// embedded makes bytes of an embedded key or value. JSON stays as it was written, but for
// the space between its tokens.
func embedded(raw json.RawMessage, format Format, name string) ([]byte, *event.Error) {
	if null(raw) {
		return nil, nil
	}
	if format == JSON {
		var b bytes.Buffer
		b.Grow(len(raw))
		_ = json.Compact(&b, raw) // it was parsed once already
		return b.Bytes(), nil
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		hint := ""
		if format == Binary {
			hint = "; for JSON values the Content-Type is " + JSON.ContentType()
		}
		return nil, event.Errorf(event.Invalid, 0, op, "%s is %s; in format %s it must be a string%s", name, kindOf(raw), format, hint)
	}
	if format == Text {
		return []byte(text), nil
	}
	b, err := base64.StdEncoding.AppendDecode([]byte{}, []byte(text))
	if err != nil {
		return nil, event.Errorf(event.Invalid, 0, op, "%s is not base64 (of the standard alphabet, with padding); for JSON values the Content-Type is %s", name, JSON.ContentType())
	}
	return b, nil
}

// ParseTimestamp reads milliseconds since 1970 or RFC 3339.
func ParseTimestamp(text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if ms, numErr := strconv.ParseInt(text, 10, 64); numErr == nil {
		t, err = time.UnixMilli(ms), nil
	}
	if err != nil {
		return time.Time{}, event.Errorf(event.Invalid, 0, op, "timestamp is %q; it must be milliseconds since 1970 or like 2026-01-02T03:04:05Z", text)
	}
	// Kafka's client reads 0 as "now", and what is before is none at all; RFC 3339 ends with
	// the year 9999.
	if t.UnixMilli() <= 0 || t.Unix() > maxTime {
		return time.Time{}, event.Errorf(event.Unprocessable, 0, op, "timestamp is %s; it must be after 1970-01-01T00:00:00Z, and before the year 10000", text)
	}
	return t, nil
}

// AppendProduced appends the answer to a produce request. All members are always there:
// clients test for them. errorItem gives the code and message of a failed record.
func AppendProduced(b []byte, results []event.Result, errorItem func(error) (int, string)) []byte {
	b = append(b, `{"offsets":[`...)
	for i, r := range results {
		if i > 0 {
			b = append(b, ',')
		}
		if r.Err == nil {
			b = append(b, `{"partition":`...)
			b = strconv.AppendInt(b, int64(r.Place.Partition), 10)
			b = append(b, `,"offset":`...)
			b = strconv.AppendInt(b, r.Place.Offset, 10)
			b = append(b, `,"error_code":null,"error":null}`...)
			continue
		}
		code, msg := errorItem(r.Err)
		b = append(b, `{"partition":null,"offset":null,"error_code":`...)
		b = strconv.AppendInt(b, int64(code), 10)
		b = append(b, `,"error":`...)
		b = appendString(b, msg)
		b = append(b, '}')
	}
	return append(b, `],"key_schema_id":null,"value_schema_id":null}`...)
}

// unmarshal reads JSON whole. What cannot be parsed is Invalid; what was parsed and has
// another shape, or a member twice, is Unprocessable.
func unmarshal(body []byte, into any) error {
	if !utf8.Valid(body) {
		return event.Errorf(event.Invalid, 0, op, "the body is not UTF-8")
	}
	err := json.Unmarshal(body, into)
	var syntax *json.SyntaxError
	var shape *json.UnmarshalTypeError
	var already *event.Error
	switch {
	case err == nil:
		if twice := checkRepeated(body, into); twice != nil {
			return twice
		}
		return nil
	case errors.As(err, &already):
		return already
	case errors.As(err, &shape):
		return event.Errorf(event.Unprocessable, 0, op, "%s is a JSON %s; it must be %s", orBody(shape.Field), shape.Value, jsonType(shape.Type))
	case errors.As(err, &syntax):
		return event.Errorf(event.Invalid, 0, op, "the body is not JSON at byte %d: %v", syntax.Offset, err)
	}
	return event.Errorf(event.Invalid, 0, op, "the body is not JSON: %v", err)
}

// jsonType names what JSON calls a Go type.
func jsonType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice:
		return "an array"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	}
	return "a whole number of " + strconv.Itoa(t.Bits()) + " bits"
}

func orBody(field string) string {
	if field == "" {
		return "the body"
	}
	return field
}

func null(raw json.RawMessage) bool { return len(raw) == 0 || raw[0] == 'n' }

func kindOf(raw json.RawMessage) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return "a boolean"
	}
	return "a number"
}
