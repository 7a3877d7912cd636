// Package restproxy is the REST Proxy dialect as plain types: what its requests and answers
// look like, and nothing of what they do. It does no I/O.
package restproxy

import (
	"mime"
	"slices"
	"strings"

	"postamt/sidecar/internal/event"
)

// Format is how keys and values are embedded in the dialect's JSON.
type Format string

const (
	JSON   Format = "json"   // any JSON
	Binary Format = "binary" // standard base64
	Text   Format = "text"   // UTF-8
)

// ContentType is of every answer that carries no records.
const ContentType = "application/vnd.kafka.v2+json"

// ContentType is of answers that carry records.
func (f Format) ContentType() string { return "application/vnd.kafka." + string(f) + ".v2+json" }

// formats maps the media types that name a format, or none: those mean binary, as they
// always have.
var formats = map[string]Format{
	"application/vnd.kafka.json.v2+json":   JSON,
	"application/vnd.kafka.json.v1+json":   JSON,
	"application/vnd.kafka.json+json":      JSON,
	"application/vnd.kafka.binary.v2+json": Binary,
	"application/vnd.kafka.binary.v1+json": Binary,
	"application/vnd.kafka.binary+json":    Binary,
	"application/vnd.kafka.text.v2+json":   Text,
	"application/vnd.kafka.v2+json":        Binary,
	"application/vnd.kafka.v1+json":        Binary,
	"application/vnd.kafka+json":           Binary,
	"application/json":                     Binary,
	"application/octet-stream":             Binary,
}

// namesFormat tells the media types that mean the format that they name.
func namesFormat(mediaType string) bool {
	f, ok := formats[mediaType]
	return ok && strings.Contains(mediaType, "."+string(f)) // the others name none
}

// FormatOf reads the format of a produce request from its Content-Type. None means binary.
func FormatOf(contentType string) (Format, error) {
	const op = "content type"
	if contentType == "" {
		return Binary, nil
	}
	if f, ok := formats[contentType]; ok { // as nearly all clients write it
		return f, nil
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return "", event.Errorf(event.Unsupported, 0, op, "the Content-Type %q cannot be read", contentType)
	}
	if f, ok := formats[mediaType]; ok {
		return f, nil
	}
	if needsRegistry(mediaType) {
		return "", event.Errorf(event.Unsupported, 0, op, "%s needs a schema registry, which there is none of; known formats are json, binary and text", mediaType)
	}
	return "", event.Errorf(event.Unsupported, 0, op, "the Content-Type is %s; it must be %s, %s or %s", mediaType, JSON.ContentType(), Binary.ContentType(), Text.ContentType())
}

func needsRegistry(mediaType string) bool {
	for _, registry := range []string{"avro", "jsonschema", "protobuf"} {
		if strings.HasPrefix(mediaType, "application/vnd.kafka."+registry+".") {
			return true
		}
	}
	return false
}

// CheckContentType refuses the Content-Type of a request that carries no records where it is none
// of the dialect's. Those that need a schema registry are: some clients always send theirs.
func CheckContentType(contentType string) error {
	if mediaType, _, err := mime.ParseMediaType(contentType); err == nil && needsRegistry(mediaType) {
		return nil
	}
	_, err := FormatOf(contentType)
	return err
}

// ParseFormat reads the format that a session is created with. None means binary.
func ParseFormat(text string) (Format, error) {
	switch f := Format(strings.ToLower(text)); f {
	case "":
		return Binary, nil
	case JSON, Binary, Text:
		return f, nil
	}
	return "", event.Errorf(event.Unprocessable, 0, "format", "format is %q; it must be json, binary or text", text)
}

// CheckAccept refuses a request that takes no JSON at all.
func CheckAccept(accept []string) error {
	if len(accept) == 0 {
		return nil
	}
	if len(accept) == 1 && (accept[0] == "*/*" || formats[accept[0]] != "") { // as nearly all clients write it
		return nil
	}
	if _, err := negotiate(accept, ""); err != nil {
		return err
	}
	return nil
}

// CheckRecordsAccept refuses a read that asks for a format that is not the session's.
func CheckRecordsAccept(accept []string, session Format) error {
	asked, err := negotiate(accept, session)
	if err != nil {
		return err
	}
	if asked != "" && asked != session {
		return event.Errorf(event.NotAcceptable, 40601, "accept", "the session was created with format %s and is asked for %s", session, asked)
	}
	return nil
}

// RecordsFormat reads the format of a read that no session has settled. None means binary.
func RecordsFormat(accept []string) (Format, error) {
	asked, err := negotiate(accept, "")
	if err == nil && asked == "" {
		asked = Binary
	}
	return asked, err
}

// negotiate returns the format that the Accept header names, preferred when it is among
// them, and "" when it names none but takes what we have.
func negotiate(accept []string, preferred Format) (Format, error) {
	var named []Format
	open := false
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		mediaType, _, err := mime.ParseMediaType(part)
		if err != nil {
			return "", event.Errorf(event.Invalid, 0, "accept", "the Accept header has %q, which cannot be read", strings.TrimSpace(part))
		}
		switch {
		case namesFormat(mediaType):
			named = append(named, formats[mediaType])
		case mediaType == "*/*", mediaType == "application/*", formats[mediaType] == Binary:
			open = true
		}
	}
	switch {
	case slices.Contains(named, preferred):
		return preferred, nil
	case open, strings.TrimSpace(strings.Join(accept, "")) == "":
		return "", nil
	case len(named) > 0:
		return named[0], nil
	}
	return "", event.Errorf(event.NotAcceptable, 0, "accept", "the answer can be %s or a format of it, and Accept is %s", ContentType, strings.Join(accept, ", "))
}
