package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// lineRecord is one line of NDJSON that is to be produced: a v2 record, or a line that GET
// /streams has given. Of the latter, what says where the record was is read and ignored.
type lineRecord struct {
	produceRecord
	KeyBase64   *string `json:"key_base64"`
	ValueBase64 *string `json:"value_base64"`

	Topic  json.RawMessage `json:"topic"`
	Offset json.RawMessage `json:"offset"`
	Error  json.RawMessage `json:"error"`
}

// DecodeLine reads a record from one line: {"key","value","headers","partition","timestamp"}, as
// in a produce request. A key or value that the format cannot show may come as "key_base64" or
// "value_base64" instead. A member that is not known is an error: a misspelt "value" would make
// a tombstone. The record has no topic, and AnyPartition where it names none.
func DecodeLine(line []byte, format Format) (event.Record, *event.Error) {
	var rec event.Record
	var l lineRecord
	if err := unmarshalRecord(line, &l); err != nil {
		return rec, err
	}
	if err := l.decode(format, &rec); err != nil {
		return rec, err
	}
	if err := orBase64(&rec.Key, l.KeyBase64, "key"); err != nil {
		return rec, err
	}
	return rec, orBase64(&rec.Value, l.ValueBase64, "value")
}

func orBase64(into *[]byte, text *string, name string) *event.Error {
	switch {
	case text == nil:
		return nil
	case *into != nil:
		return event.Errorf(event.Unprocessable, 0, op, "%s and %s_base64 are both there; leave one of them out", name, name)
	}
	b, err := base64.StdEncoding.AppendDecode([]byte{}, []byte(*text))
	if err != nil {
		return event.Errorf(event.Invalid, 0, op, "%s_base64 is not base64 (of the standard alphabet, with padding)", name)
	}
	*into = b
	return nil
}

// unmarshalRecord reads one record that is an object of known members. What cannot be parsed is
// Invalid; what was parsed and has another shape, or a member twice, is Unprocessable.
func unmarshalRecord(text []byte, into any) *event.Error {
	if !utf8.Valid(text) {
		return event.Errorf(event.Invalid, 0, op, "it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, after := d.Token(); after == io.EOF {
			if bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("null")) {
				return event.Errorf(event.Unprocessable, 0, op, `it is null; a record is an object, such as {"value":…}`)
			}
			return checkRepeated(text, into)
		}
		return event.Errorf(event.Invalid, 0, op, "there is more after the record at byte %d", d.InputOffset())
	}
	var syntax *json.SyntaxError
	var shape *json.UnmarshalTypeError
	switch name, unknown := strings.CutPrefix(err.Error(), "json: unknown field "); {
	case unknown:
		if unquoted, err := strconv.Unquote(name); err == nil {
			name = unquoted
		}
		return event.Errorf(event.Unprocessable, 0, op, "there is no member %q in a record", name)
	case errors.As(err, &shape) && shape.Field == "":
		return event.Errorf(event.Unprocessable, 0, op, `it is a JSON %s; a record is an object, such as {"value":…}`, shape.Value)
	case errors.As(err, &shape):
		return event.Errorf(event.Unprocessable, 0, op, "%s is a JSON %s; it must be %s", strings.TrimPrefix(shape.Field, "produceRecord."), shape.Value, jsonType(shape.Type))
	case errors.As(err, &syntax):
		return event.Errorf(event.Invalid, 0, op, "it is not JSON at byte %d: %v", syntax.Offset, err)
	}
	return event.Errorf(event.Invalid, 0, op, "it is not JSON: it ends too soon")
}

// AppendLine appends the answer to one line: {"partition","offset"}, or {"error_code","message"}
// of a record that is not stored.
func AppendLine(b []byte, number int, r event.Result, errorOf func(error) (int, string)) []byte {
	if r.Err != nil {
		code, msg := errorOf(r.Err)
		return append(AppendError(b, code, "record "+strconv.Itoa(number)+": "+msg), '\n')
	}
	b = strconv.AppendInt(append(b, `{"partition":`...), int64(r.Place.Partition), 10)
	b = strconv.AppendInt(append(b, `,"offset":`...), r.Place.Offset, 10)
	return append(b, "}\n"...)
}

// AppendError appends {"error_code","message"}.
func AppendError(b []byte, code int, msg string) []byte {
	b = strconv.AppendInt(append(b, `{"error_code":`...), int64(code), 10)
	b = appendString(append(b, `,"message":`...), msg)
	return append(b, '}')
}
