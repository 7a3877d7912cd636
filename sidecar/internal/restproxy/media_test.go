package restproxy

import (
	"errors"
	"testing"

	"postamt/sidecar/internal/event"
)

func TestFormatOfContentType(t *testing.T) {
	for contentType, want := range map[string]Format{ // "": refused
		"":                                   Binary,
		"application/vnd.kafka.json.v2+json": JSON,
		"application/vnd.kafka.json.v2+json; charset=utf-8": JSON,
		"Application/VND.kafka.JSON.v2+json":                JSON,
		"application/vnd.kafka.json.v1+json":                JSON,
		"application/vnd.kafka.json+json":                   JSON,
		"application/vnd.kafka.binary.v2+json":              Binary,
		"application/vnd.kafka.binary.v1+json":              Binary,
		"application/vnd.kafka.binary+json":                 Binary,
		"application/vnd.kafka.text.v2+json":                Text,
		"application/vnd.kafka.v2+json":                     Binary,
		"application/vnd.kafka.v1+json":                     Binary,
		"application/vnd.kafka+json":                        Binary,
		"application/json":                                  Binary,
		"application/octet-stream":                          Binary,
		"application/vnd.kafka.avro.v2+json":                "",
		"application/vnd.kafka.jsonschema.v2+json":          "",
		"application/vnd.kafka.protobuf.v2+json":            "",
		"application/x-www-form-urlencoded":                 "",
		"text/plain":                                        "",
		"application/vnd.kafka.json.v3+json":                "",
		"a b c":                                             "",
	} {
		got, err := FormatOf(contentType)
		if got != want || want == "" != (err != nil) {
			t.Errorf("FormatOf(%q) = %q, %v; want %q", contentType, got, err, want)
		}
		if err != nil {
			wantError(t, contentType, err, event.Unsupported, "")
		}
	}
	_, err := FormatOf("application/vnd.kafka.avro.v2+json")
	wantError(t, "avro", err, event.Unsupported, "schema registry")
}

func TestParseFormat(t *testing.T) {
	for text, want := range map[string]Format{"": Binary, "json": JSON, "JSON": JSON, "Binary": Binary, "text": Text, "avro": "", "js on": ""} {
		got, err := ParseFormat(text)
		if got != want || want == "" != (err != nil) {
			t.Errorf("ParseFormat(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestAcceptOfRecords(t *testing.T) {
	const json, binary, text = "application/vnd.kafka.json.v2+json", "application/vnd.kafka.binary.v2+json", "application/vnd.kafka.text.v2+json"
	for _, tc := range []struct {
		accept  []string
		session Format
		code    int // 0: taken
	}{
		{nil, JSON, 0},
		{[]string{""}, JSON, 0},
		{[]string{"*/*"}, JSON, 0},
		{[]string{"application/*"}, Text, 0},
		{[]string{"application/json"}, JSON, 0},
		{[]string{"application/vnd.kafka.v2+json"}, JSON, 0},
		// What Java's HttpURLConnection sends when it is told nothing.
		{[]string{"text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"}, JSON, 0},
		{[]string{json}, JSON, 0},
		{[]string{json + "; q=0.9"}, JSON, 0},
		{[]string{"application/vnd.kafka.json.v1+json"}, JSON, 0},
		{[]string{binary, json}, JSON, 0}, // two header lines
		{[]string{binary + ", */*;q=0.1"}, JSON, 0},
		{[]string{text}, Text, 0},
		{[]string{binary}, JSON, 40601},
		{[]string{json}, Binary, 40601},
		{[]string{json + ", " + text}, Binary, 40601},
		{[]string{"text/html"}, JSON, 406},
		{[]string{"application/vnd.kafka.avro.v2+json"}, JSON, 406},
		{[]string{"application/vnd.kafka.json.v2+json; q"}, JSON, 400},
	} {
		err := CheckRecordsAccept(tc.accept, tc.session)
		if got := code(err); got != tc.code {
			t.Errorf("Accept %q of a session in %s: %v; want code %d", tc.accept, tc.session, err, tc.code)
		}
	}
}

// code is the error_code, or the HTTP status that stands for the kinds of this package.
func code(err error) int {
	var ee *event.Error
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &ee):
		return -1
	case ee.Code != 0:
		return ee.Code
	}
	return map[event.Kind]int{event.Invalid: 400, event.NotAcceptable: 406, event.Unsupported: 415, event.Unprocessable: 422}[ee.Kind]
}

func TestAcceptOfOtherAnswers(t *testing.T) {
	for accept, want := range map[string]int{
		"": 0, "*/*": 0, "application/json": 0, "application/vnd.kafka.v2+json": 0, "application/vnd.kafka.json.v2+json": 0,
		"text/html, application/vnd.kafka.binary.v2+json;q=0.1": 0,
		"text/html": 406, "application/xml, text/*": 406, "/": 400,
	} {
		if got := code(CheckAccept([]string{accept})); got != want {
			t.Errorf("Accept %q gives %d; want %d", accept, got, want)
		}
	}
}

func TestRequestsWithoutRecordsComeInAnyOfTheDialectsTypes(t *testing.T) {
	for contentType, kind := range map[string]event.Kind{
		"application/vnd.kafka.v2+json": "", "application/vnd.kafka.json.v2+json": "", "application/vnd.kafka.binary.v2+json": "",
		"application/vnd.kafka.avro.v2+json": "", "application/vnd.kafka.jsonschema.v2+json": "", "application/vnd.kafka.protobuf.v2+json; charset=utf-8": "",
		"": "", "text/plain": event.Unsupported, "application/vnd.kafka.avro": event.Unsupported, "x;;": event.Unsupported,
	} {
		err := CheckContentType(contentType)
		if kind != "" {
			wantKind(t, err, kind)
		} else if err != nil {
			t.Errorf("%q: %v", contentType, err)
		}
	}
}
