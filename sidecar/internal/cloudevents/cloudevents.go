// Package cloudevents reads CloudEvents 1.0 as they come over HTTP and makes records of them in
// CloudEvents' Kafka binding, in binary mode: attributes and extensions are headers ("ce_id"),
// the data is the value, unchanged, and the extension partitionkey is the key. It also writes records
// as CloudEvents. It does no I/O.
//
// The SDK reads and validates. It does not undo the percent-encoding of HTTP headers, and its Kafka
// bindings would each bring a Kafka client of their own: both are done here.
package cloudevents

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
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
		attribute, ok := strings.CutPrefix(name, prefix)
		if !ok || len(values) == 0 {
			continue
		}
		if err := checkName(strings.ToLower(attribute)); err != nil {
			return event.Record{}, err
		}
		switch {
		case attribute == "Data", attribute == "Datacontenttype":
			return event.Record{}, event.Errorf(event.Unprocessable, 0, op, "there is a header %s; in binary mode the body is the data, and Content-Type its type", strings.ToLower(name))
		case len(values) > 1:
			return event.Record{}, event.Errorf(event.Unprocessable, 0, op, "the header %s is there %d times; an attribute has one value", strings.ToLower(name), len(values))
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
	var e *ce.Event
	err := guard(func() (err error) {
		e, err = binding.ToEvent(context.Background(), cehttp.NewMessage(decoded, io.NopCloser(bytes.NewReader(body))))
		return err
	})
	if err != nil {
		return event.Record{}, invalid(err)
	}
	return record(e)
}

// guard makes an error of a panic of the SDK's: no client shall be able to cause a 500.
func guard(call func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it cannot be read (%v)", p)
		}
	}()
	return call()
}

// checkName refuses what is not the name of an attribute. The SDK would fold upper case into lower,
// and so make two attributes one.
func checkName(name string) *event.Error {
	if name == "" || strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }) {
		return event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: there is an attribute %q; a name has lower-case letters (a-z) and digits, at least one", name)
	}
	return nil
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
	members, data, bad := split(text)
	if bad != nil {
		return event.Record{}, bad
	}
	var version any
	_ = json.Unmarshal(members["specversion"], &version) // which is JSON, or missing
	if version != any(ce.CloudEventsVersionV1) {
		return event.Record{}, wrongVersion(version)
	}
	attributes, _ := json.Marshal(members) // which were JSON before
	e := ce.New()
	if err := guard(func() error { return e.UnmarshalJSON(attributes) }); err != nil {
		return event.Record{}, invalid(err)
	}
	if len(members["dataschema"]) > len(`""`) && e.DataSchema() == "" { // the SDK drops what it cannot read
		return event.Record{}, event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: dataschema must be a URI")
	}
	if bad := data.into(&e); bad != nil {
		return event.Record{}, bad
	}
	return record(&e)
}

// data is what an event holds as JSON, as it was written: one of the two, or neither.
type data struct{ plain, base64 json.RawMessage }

// split gives the attributes of an event, and apart from them its data, which must not go through
// the SDK: that reads numbers as float64, and takes one of two data for the other. An attribute
// that is null is none. All that the SDK would drop or change without a word is an error.
func split(text []byte) (map[string]json.RawMessage, data, *event.Error) {
	var data data
	switch {
	case !utf8.Valid(text):
		return nil, data, event.Errorf(event.Invalid, 0, op, "the event is not UTF-8")
	case !json.Valid(text):
		return nil, data, event.Errorf(event.Invalid, 0, op, "the event is not JSON: %v", json.Unmarshal(text, new(any)))
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if begin, _ := d.Token(); begin != json.Delim('{') {
		return nil, data, event.Errorf(event.Unprocessable, 0, op, "a CloudEvent is a JSON object")
	}
	seen := make(map[string]bool)
	members := make(map[string]json.RawMessage)
	for d.More() {
		token, _ := d.Token()
		name, _ := token.(string)
		var value json.RawMessage
		_ = d.Decode(&value) // it is JSON: see above
		if seen[name] {
			return nil, data, event.Errorf(event.Unprocessable, 0, op, "%q is there twice; leave one of them out", name)
		}
		seen[name] = true
		null := value[0] == 'n'
		switch name {
		case "data":
			data.plain = value
		case "data_base64":
			if !null {
				data.base64 = value
			}
		default:
			if bad := checkName(name); bad != nil {
				return nil, data, bad
			}
			if !null {
				members[name] = value
			}
			if bad := checkValue(name, value); bad != nil {
				return nil, data, bad
			}
		}
	}
	if data.plain != nil && data.base64 != nil {
		return nil, data, event.Errorf(event.Unprocessable, 0, op, "data and data_base64 are both there; leave one of them out")
	}
	return members, data, nil
}

// checkValue refuses what is no value of an attribute, such as a fraction: the SDK would cut it.
func checkValue(name string, value json.RawMessage) *event.Error {
	switch value[0] {
	case '"', 't', 'f', 'n':
		return nil
	case '{', '[':
	default:
		if _, err := strconv.ParseInt(string(value), 10, 32); err == nil {
			return nil
		}
	}
	what := string(value)
	if value[0] == '{' || value[0] == '[' || len(what) > 40 {
		what = "something else"
	}
	return event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: %s is %s; an attribute is a string, a boolean or a whole number of 32 bits", name, what)
}

// into gives an event its data: bytes, text, or JSON as it was written.
func (d data) into(e *ce.Event) *event.Error {
	switch {
	case d.base64 != nil:
		var text string
		if json.Unmarshal(d.base64, &text) != nil {
			return event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: data_base64 must be a string")
		}
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: data_base64 is not base64 (of the standard alphabet, with padding)")
		}
		e.DataEncoded, e.DataBase64 = b, true
	case d.plain == nil:
	case e.DataContentType() == "":
		// Data without a type is JSON in this mode, and would be of no type in the other one.
		e.SetDataContentType(ce.ApplicationJSON)
		e.DataEncoded = d.plain
	case isJSON(e.DataContentType()):
		e.DataEncoded = d.plain
	default:
		var text string
		if json.Unmarshal(d.plain, &text) != nil {
			return event.Errorf(event.Unprocessable, 0, op, "this is no CloudEvent: data must be a string, as datacontenttype is %s, which is not JSON; bytes go into data_base64", e.DataContentType())
		}
		e.DataEncoded = []byte(text)
	}
	return nil
}

// isJSON tells the types whose data is JSON: …/json, and whatever ends with +json.
func isJSON(contentType string) bool {
	mediaType, _, _ := mime.ParseMediaType(contentType)
	return strings.HasSuffix(mediaType, "/json") || strings.HasSuffix(mediaType, "+json")
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
	if !utf8.Valid(body) {
		return nil, event.Errorf(event.Invalid, 0, op, "the batch is not UTF-8")
	}
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
	if v == nil || v == "" {
		return event.Errorf(event.Unprocessable, 0, op, "specversion is missing; it must be 1.0")
	}
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
	if err := guard(e.Validate); err != nil {
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
