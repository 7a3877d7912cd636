package filter

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"cel.dev/cel-go/interpreter"

	"postamt/sidecar/internal/event"
)

// variables shows a record to an expression, and works out only what it asks for.
type variables struct {
	record  *event.Record
	headers map[string]string
	data    any
	decoded bool
}

// Parent is no one: all that there is, is here.
func (v *variables) Parent() interpreter.Activation { return nil }

// ResolveName gives the value of a variable.
func (v *variables) ResolveName(name string) (any, bool) {
	r := v.record
	switch name {
	case "topic":
		return r.Topic, true
	case "partition":
		return int64(r.Partition), true
	case "offset":
		return r.Offset, true
	case "timestamp":
		return r.Timestamp, true
	case "key":
		return text(r.Key), true
	case "headers":
		if v.headers == nil {
			v.headers = headersOf(r)
		}
		return v.headers, true
	case "data":
		if !v.decoded {
			v.data, v.decoded = decode(r.Value), true
		}
		return v.data, true
	case "type":
		return v.event().Type(), true
	case "source":
		return v.event().Source(), true
	case "subject":
		if s, ok := v.event().Subject(); ok {
			return s, true
		}
		return nil, true
	case "id":
		return v.event().ID(), true
	case "time":
		return v.event().Time(), true
	}
	return nil, false
}

// event is the record as a delivery of it would say it.
func (v *variables) event() event.CloudEvent {
	return event.CloudEvent{Record: v.record, Origin: event.OriginOf(v.record)}
}

func headersOf(r *event.Record) map[string]string {
	m := make(map[string]string, len(r.Headers))
	for _, h := range r.Headers {
		m[strings.ToValidUTF8(h.Key, "\uFFFD")] = strings.ToValidUTF8(string(h.Value), "\uFFFD")
	}
	return m
}

// text is null, too, for what is no text: an expression could do nothing with it.
func text(b []byte) any {
	if b == nil || !utf8.Valid(b) {
		return nil
	}
	return string(b)
}

// decode reads JSON whole; anything else is nil.
func decode(value []byte) any {
	if !utf8.Valid(value) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // more than one value is no JSON
		return nil
	}
	return numbers(v)
}

// numbers makes numbers of what the decoder left as text, in place.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		return number(string(v))
	case map[string]any:
		for k, e := range v {
			v[k] = numbers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = numbers(e)
		}
	}
	return v
}

// exactDouble is up to where a double holds every whole number.
const exactDouble = 1 << 53

// number is a double, but for whole numbers that would lose digits so.
func number(s string) any {
	if len(s) > 15 { // of fewer digits a double loses none
		if i, err := strconv.ParseInt(s, 10, 64); err == nil && (i > exactDouble || i < -exactDouble) {
			return i
		}
		if u, err := strconv.ParseUint(s, 10, 64); err == nil && u > exactDouble {
			return u
		}
	}
	f, _ := strconv.ParseFloat(s, 64) // beyond its range: infinity
	return f
}
