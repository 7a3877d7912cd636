package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// AppendRecord appends a record in one line: {"topic","key","value","partition","offset",
// "timestamp","headers"}; the timestamp in milliseconds, headers left out when there are
// none. A key or value that the format cannot show is null and comes as "key_base64" or
// "value_base64" with the reason in "error", so that one such record stops nobody.
func AppendRecord(b []byte, r *event.Record, format Format) []byte {
	b = append(b, `{"topic":`...)
	b = appendString(b, r.Topic)
	b, keyFits := appendEmbedded(append(b, `,"key":`...), r.Key, format)
	b, valueFits := appendEmbedded(append(b, `,"value":`...), r.Value, format)
	if !keyFits {
		b = appendBase64(append(b, `,"key_base64":`...), r.Key)
	}
	if !valueFits {
		b = appendBase64(append(b, `,"value_base64":`...), r.Value)
	}
	if !keyFits || !valueFits {
		b = append(b, `,"error":`...)
		b = appendString(b, misfit(keyFits, valueFits, format))
	}
	b = append(b, `,"partition":`...)
	b = strconv.AppendInt(b, int64(r.Partition), 10)
	b = append(b, `,"offset":`...)
	b = strconv.AppendInt(b, r.Offset, 10)
	b = append(b, `,"timestamp":`...)
	b = strconv.AppendInt(b, r.Timestamp.UnixMilli(), 10)
	if len(r.Headers) > 0 {
		b = append(b, `,"headers":[`...)
		for i, h := range r.Headers {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, `{"key":`...)
			b = appendString(b, h.Key)
			b = append(b, `,"value":`...)
			b = appendBase64(b, h.Value)
			b = append(b, '}')
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// appendEmbedded appends a key or value, null when the format cannot show it.
func appendEmbedded(b, v []byte, format Format) (out []byte, fits bool) {
	switch {
	case v == nil:
		return append(b, "null"...), true
	case format == Binary:
		return appendBase64(b, v), true
	case format == Text && utf8.Valid(v):
		return appendString(b, v), true
	case format == JSON:
		valid, spaced := isJSON(v)
		if !valid {
			break
		}
		if spaced && bytes.ContainsAny(v, "\r\n") { // a record is one line
			var line bytes.Buffer
			_ = json.Compact(&line, v)
			v = line.Bytes()
		}
		return append(b, v...), true
	}
	return append(b, "null"...), false
}

func misfit(keyFits, valueFits bool, format Format) string {
	what := "the key and the value are"
	switch {
	case keyFits:
		what = "the value is"
	case valueFits:
		what = "the key is"
	}
	if format == Text {
		return what + " not UTF-8"
	}
	return what + " not JSON"
}

// appendBase64 appends bytes as a base64 string, and null for Kafka's null.
func appendBase64(b, v []byte) []byte {
	if v == nil {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, v)
	return append(b, '"')
}

// appendString appends text as a JSON string, as encoding/json writes it.
func appendString[T string | []byte](b []byte, text T) []byte {
	for i := range len(text) {
		switch c := text[i]; {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			quoted, _ := json.Marshal(string(text)) // a string always can be
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}
