// Package cloudevents reads CloudEvents 1.0 as they come over HTTP and makes records of them in
// CloudEvents' Kafka binding, in binary mode: attributes and extensions are headers ("ce_id"),
// the data is the value, unchanged, and the extension partitionkey is the key. It does no I/O.
//
// The SDK reads and validates. It does not undo the percent-encoding of HTTP headers, and its Kafka
// bindings would each bring a Kafka client of their own: both are done here.
package cloudevents

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"

	"postamt/sidecar/internal/event"
)

const (
	op     = "cloudevents"
	prefix = "Ce-"
)

// Mode is how a request holds events.
type Mode int

// The modes of the HTTP binding.
const (
	None       Mode = iota // no CloudEvent
	Binary                 // attributes are headers, the body is the data
	Structured             // the body is one event as JSON
	Batch                  // the body is an array of events as JSON
)

// ModeOf tells how a request holds events. It is an error when it means to and cannot be read.
func ModeOf(h http.Header) (Mode, error) {
	mediaType, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case mediaType == ce.ApplicationCloudEventsJSON:
		return Structured, nil
	case mediaType == ce.ApplicationCloudEventsBatchJSON:
		return Batch, nil
	case strings.HasPrefix(mediaType, "application/cloudevents"):
		return None, event.Errorf(event.Unsupported, 0, op, "CloudEvents as %s are not read here; known are %s and %s, and ce- headers", mediaType, ce.ApplicationCloudEventsJSON, ce.ApplicationCloudEventsBatchJSON)
	case h.Get("Ce-Specversion") != "":
		return Binary, nil
	case h.Get("Ce-Id") != "" || h.Get("Ce-Type") != "" || h.Get("Ce-Source") != "":
		return None, event.Errorf(event.Unprocessable, 0, op, "there are ce- headers and no ce-specversion among them; it must be 1.0")
	}
	return None, nil
}

// FromHeaders makes a record of an event in binary mode. The record has no topic.
func FromHeaders(h http.Header, body []byte) (event.Record, *event.Error) {
	decoded := make(http.Header)
	if ct := h.Get("Content-Type"); ct != "" {
		decoded.Set("Content-Type", ct)
	}
	for name, values := range h {
		if !strings.HasPrefix(name, prefix) || len(values) == 0 {
			continue
		}
		v, err := decode(values[0])
		if err != nil {
			return event.Record{}, event.Errorf(event.Invalid, 0, op, "%s is %q, which is not percent-encoded UTF-8", strings.ToLower(name), values[0])
		}
		decoded[name] = []string{v}
	}
	if v := decoded.Get("Ce-Specversion"); v != ce.CloudEventsVersionV1 {
		return event.Record{}, wrongVersion(v)
	}
	e, err := binding.ToEvent(context.Background(), cehttp.NewMessage(decoded, io.NopCloser(bytes.NewReader(body))))
	if err != nil {
		return event.Record{}, invalid(err)
	}
	return record(e)
}

// decode undoes what the HTTP binding does to a value (3.1.3.2): quotes, and percent-encoding.
func decode(v string) (string, error) {
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		var b strings.Builder
		for i := 1; i < len(v)-1; i++ {
			if v[i] == '\\' && i+1 < len(v)-1 {
				i++
			}
			b.WriteByte(v[i])
		}
		v = b.String()
	}
	v, err := url.PathUnescape(v)
	if err == nil && !utf8.ValidString(v) {
		err = errors.New("not UTF-8")
	}
	return v, err
}

// FromJSON makes a record of an event in structured mode. The record has no topic.
func FromJSON(text []byte) (event.Record, *event.Error) {
	if !utf8.Valid(text) || !json.Valid(text) {
		return event.Record{}, event.Errorf(event.Invalid, 0, op, "the event is not JSON: %v", json.Unmarshal(text, new(any)))
	}
	var version struct {
		Spec any `json:"specversion"`
	}
	if err := json.Unmarshal(text, &version); err != nil {
		return event.Record{}, event.Errorf(event.Unprocessable, 0, op, "a CloudEvent is a JSON object")
	}
	if version.Spec != any(ce.CloudEventsVersionV1) {
		return event.Record{}, wrongVersion(version.Spec)
	}
	e := ce.New()
	if err := e.UnmarshalJSON(text); err != nil {
		return event.Record{}, invalid(err)
	}
	// Data without a type is JSON in this mode, and would be of no type in the other one.
	if e.DataContentType() == "" && len(e.Data()) > 0 && !e.DataBase64 {
		e.SetDataContentType(ce.ApplicationJSON)
	}
	return record(&e)
}

// Result is one event of a batch: its id, where it has one, and its record, or why it is none.
type Result struct {
	ID     string
	Record event.Record
	Err    *event.Error
}

// FromBatch makes records of a batch. One that is no event does not spoil the others.
func FromBatch(body []byte, maxEvents int) ([]Result, *event.Error) {
	var texts []json.RawMessage
	if !json.Valid(body) {
		return nil, event.Errorf(event.Invalid, 0, op, "the batch is not JSON: %v", json.Unmarshal(body, new(any)))
	}
	if err := json.Unmarshal(body, &texts); err != nil || texts == nil {
		return nil, event.Errorf(event.Unprocessable, 0, op, "a batch of CloudEvents is a JSON array of events")
	}
	if len(texts) > maxEvents {
		return nil, event.Errorf(event.Unprocessable, 0, op, "there are %d events; a request takes at most %d (MAX_RECORDS)", len(texts), maxEvents)
	}
	results := make([]Result, len(texts))
	for i, text := range texts {
		var id struct {
			ID string `json:"id"`
		}
		_ = json.Unmarshal(text, &id) // FromJSON says what is wrong with it
		results[i].ID = id.ID
		results[i].Record, results[i].Err = FromJSON(text)
	}
	return results, nil
}

func wrongVersion(v any) *event.Error {
	return event.Errorf(event.Unprocessable, 0, op, "specversion is %q; it must be 1.0", fmt.Sprint(v))
}

// invalid says what is wrong with an event, in one line.
func invalid(err error) *event.Error {
	msg, _, _ := strings.Cut(err.Error(), ", error found in") // and a part of the event, twice
	if fields, ok := errors.AsType[ce.ValidationError](err); ok {
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			parts = append(parts, name+": "+fields[name].Error())
		}
		msg = strings.Join(parts, "; ")
	}
	return &event.Error{Kind: event.Unprocessable, Op: op, Msg: "this is no CloudEvent: " + strings.ToValidUTF8(strings.Join(strings.Fields(msg), " "), "?"), Err: err}
}

// record writes an event in the Kafka binding.
func record(e *ce.Event) (event.Record, *event.Error) {
	if err := e.Validate(); err != nil {
		return event.Record{}, invalid(err)
	}
	// An event without data is no tombstone.
	rec := event.Record{Partition: event.AnyPartition, Value: append([]byte{}, e.Data()...)}
	add := func(name, value string) {
		if value != "" {
			rec.Headers = append(rec.Headers, event.Header{Key: name, Value: []byte(value)})
		}
	}
	add("content-type", e.DataContentType())
	add("ce_specversion", e.SpecVersion())
	add("ce_id", e.ID())
	add("ce_source", e.Source())
	add("ce_type", e.Type())
	add("ce_subject", e.Subject())
	add("ce_dataschema", e.DataSchema())
	if !e.Time().IsZero() {
		add("ce_time", types.FormatTime(e.Time()))
	}
	extensions := e.Extensions()
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		text, err := types.Format(extensions[name])
		if err != nil {
			return event.Record{}, invalid(fmt.Errorf("%s: %w", name, err))
		}
		rec.Headers = append(rec.Headers, event.Header{Key: "ce_" + name, Value: []byte(text)})
		if name == "partitionkey" && text != "" {
			rec.Key = []byte(text)
		}
	}
	return rec, nil
}
