package filter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
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
		return v.attribute("ce_type", typeOf(r.Topic)), true
	case "source":
		return v.attribute("ce_source", "/topics/"+r.Topic), true
	case "subject":
		if s, ok := v.header("ce_subject"); ok {
			return s, true
		}
		return text(r.Key), true
	case "id":
		return v.attribute("ce_id", fmt.Sprintf("%s/%d/%d/%d", r.Topic, r.Partition, r.Offset, r.Timestamp.UnixMilli())), true
	case "time":
		if s, ok := v.header("ce_time"); ok {
			if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
				return t, true
			}
		}
		return r.Timestamp, true
	}
	return nil, false
}

func (v *variables) attribute(header, otherwise string) string {
	if s, ok := v.header(header); ok {
		return s
	}
	return otherwise
}

// header is the last header of a name, which is the one that counts where a name repeats.
func (v *variables) header(name string) (string, bool) {
	for _, h := range slices.Backward(v.record.Headers) {
		if h.Key == name && h.Value != nil {
			return strings.ToValidUTF8(string(h.Value), "\uFFFD"), true
		}
	}
	return "", false
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

// typeOf is the event that a topic is of: <environment>.<event>.
func typeOf(topic string) string {
	if _, name, ok := strings.Cut(topic, "."); ok && name != "" {
		return name
	}
	return topic
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
