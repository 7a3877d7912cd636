package cloudevents

import (
	"encoding/base64"
	"encoding/json"
	"iter"
	"mime"
	"strings"
	"time"
	"unicode/utf8"

	ce "github.com/cloudevents/sdk-go/v2/event"

	"postamt/sidecar/internal/event"
)

// Records as CloudEvents over HTTP. The SDK does not write them: it would take a source for a URI
// and write it anew, and drop what it cannot read; here an attribute leaves as it came.

// ContentType is what the record's header says of its value, else what the value shows.
func ContentType(r *event.Record) string {
	for _, h := range r.Headers {
		if h.Key == "content-type" && len(h.Value) > 0 && printable(h.Value) {
			return string(h.Value)
		}
	}
	switch {
	case r.Value == nil:
		return ""
	case utf8.Valid(r.Value) && json.Valid(r.Value):
		return ce.ApplicationJSON
	}
	return "application/octet-stream"
}

// printable tells what can be the value of a header of HTTP as it is.
func printable(value []byte) bool {
	for _, c := range value {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// Complete tells by its type that a value is already a whole event, or a batch of them.
func Complete(contentType string) bool {
	if contentType == ce.ApplicationJSON { // as most are
		return false
	}
	mediaType, _, _ := mime.ParseMediaType(contentType)
	return strings.HasPrefix(mediaType, "application/cloudevents")
}

// Attributes gives the attributes of a record, without those of its data, in the order of the
// specification: those that it has to have, then what else the record has in headers.
func Attributes(e event.CloudEvent) iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		if !yield("specversion", ce.CloudEventsVersionV1) || !yield("id", e.ID()) || !yield("source", e.Source()) || !yield("type", e.Type()) {
			return
		}
		if s, ok := e.Subject(); ok && s != "" && !yield("subject", s) { // an attribute is never empty
			return
		}
		if !yield("time", e.Time().UTC().Format(time.RFC3339Nano)) {
			return
		}
		for i, h := range e.Record.Headers {
			name, ok := Extension(h.Key)
			if !ok || len(h.Value) == 0 || repeated(e.Record.Headers[i+1:], h.Key) {
				continue
			}
			if value, ok := e.Attribute(name); ok && !yield(name, value) {
				return
			}
		}
	}
}

// repeated tells whether a header comes again.
func repeated(headers []event.Header, key string) bool {
	for _, h := range headers {
		if h.Key == key && len(h.Value) > 0 {
			return true
		}
	}
	return false
}

// IsAttribute tells whether a record's header is an attribute, or may not be one.
func IsAttribute(key string) bool {
	name, ok := strings.CutPrefix(key, "ce_")
	return ok && checkName(name) == nil
}

// Extension gives the name of what a record's header adds to the attributes that every event has
// here, and to those of its data.
func Extension(key string) (string, bool) {
	if !IsAttribute(key) {
		return "", false
	}
	name := key[len("ce_"):]
	switch name {
	case "specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data":
		return "", false
	}
	return name, true
}

// JSON writes a record as an event in structured mode. Data that is JSON is not touched, text is a
// string, and anything else base64; a null value is no data.
func JSON(e event.CloudEvent) []byte {
	value, contentType := e.Record.Value, ContentType(e.Record)
	b := make([]byte, 0, len(value)+512)
	for name, value := range Attributes(e) {
		b = append(appendString(append(b, ','), name), ':')
		b = appendString(b, value)
	}
	b[0] = '{'
	if contentType != "" {
		b = appendString(append(b, `,"datacontenttype":`...), contentType)
	}
	mediaType, _, _ := mime.ParseMediaType(contentType)
	switch {
	case value == nil:
	case isJSON(contentType) && utf8.Valid(value) && json.Valid(value):
		b = append(append(b, `,"data":`...), value...)
	case !isJSON(contentType) && isText(mediaType) && utf8.Valid(value):
		b = appendString(append(b, `,"data":`...), string(value))
	default:
		b = append(b, `,"data_base64":"`...)
		b = append(base64.StdEncoding.AppendEncode(b, value), '"')
	}
	return append(b, '}')
}

func isText(mediaType string) bool {
	return strings.HasPrefix(mediaType, "text/") || mediaType == "application/xml" || strings.HasSuffix(mediaType, "+xml")
}

// appendString writes a string in JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(s) // a string cannot fail
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Encode does to a value what the HTTP binding asks for (3.1.3.2): what is not printable ASCII, and
// a space, a quote or a percent sign, is percent-encoded. Bytes that are no text are, too.
func Encode[T string | []byte](value T) string {
	const hex = "0123456789ABCDEF"
	n := 0
	for i := range len(value) {
		if encoded(value[i]) {
			n++
		}
	}
	if n == 0 {
		return string(value)
	}
	b := make([]byte, 0, len(value)+2*n)
	for i := range len(value) {
		if c := value[i]; encoded(c) {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

func encoded(c byte) bool { return c <= ' ' || c > '~' || c == '"' || c == '%' }
