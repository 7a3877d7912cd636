package cloudevents

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	ce "github.com/cloudevents/sdk-go/v2/event"

	"postamt/sidecar/internal/event"
)

func of(r event.Record) event.CloudEvent {
	r.Topic, r.Partition, r.Offset, r.Timestamp = "test.voucher", 2, 7, time.UnixMilli(1767323045678)
	return event.CloudEvent{Record: &r, Origin: event.OriginOf(&r)}
}

func headers(pairs ...string) (out []event.Header) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, event.Header{Key: pairs[i], Value: []byte(pairs[i+1])})
	}
	return out
}

const attributesOfAnyRecord = `{"specversion":"1.0","id":"test.voucher/2/7/1767323045678","source":"/topics/test.voucher","type":"voucher"`

func TestDataInStructuredMode(t *testing.T) {
	const rest = `,"time":"2026-01-02T03:04:05.678Z"`
	for name, c := range map[string]struct {
		record event.Record
		want   string // after the attributes that every record has
	}{
		"JSON as it is":         {event.Record{Value: []byte(`{"n": 1.000, "big":12345678901234567890}`)}, rest + `,"datacontenttype":"application/json","data":{"n": 1.000, "big":12345678901234567890}}`},
		"JSON of a type":        {event.Record{Value: []byte(`[]`), Headers: headers("content-type", "application/json; charset=utf-8")}, rest + `,"datacontenttype":"application/json; charset=utf-8","data":[]}`},
		"no JSON in spite of":   {event.Record{Value: []byte(`{`), Headers: headers("content-type", "application/json")}, rest + `,"datacontenttype":"application/json","data_base64":"ew=="}`},
		"bytes":                 {event.Record{Value: []byte{0, 0xff}}, rest + `,"datacontenttype":"application/octet-stream","data_base64":"AP8="}`},
		"bytes within a string": {event.Record{Value: []byte("\"\xff\"")}, rest + `,"datacontenttype":"application/octet-stream","data_base64":"Iv8i"}`},
		"text":                  {event.Record{Value: []byte("a \"b\"\n"), Headers: headers("content-type", "text/plain")}, rest + `,"datacontenttype":"text/plain","data":"a \"b\"\n"}`},
		"JSON that is text":     {event.Record{Value: []byte("1"), Headers: headers("content-type", "text/plain")}, rest + `,"datacontenttype":"text/plain","data":"1"}`},
		"text that is none":     {event.Record{Value: []byte{0xff}, Headers: headers("content-type", "text/plain")}, rest + `,"datacontenttype":"text/plain","data_base64":"/w=="}`},
		"nothing":               {event.Record{Value: []byte{}}, rest + `,"datacontenttype":"application/octet-stream","data_base64":""}`},
		"null":                  {event.Record{}, rest + `}`},
		"a key":                 {event.Record{Key: []byte("k ü")}, `,"subject":"k ü"` + rest + `}`},
		"an empty key":          {event.Record{Key: []byte{}}, rest + `}`},
	} {
		got := string(JSON(of(c.record)))
		if want := attributesOfAnyRecord + c.want; got != want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		e := ce.New()
		if err := json.Unmarshal([]byte(got), &e); err != nil {
			t.Errorf("%s: the SDK says %v", name, err)
		} else if err := e.Validate(); err != nil {
			t.Errorf("%s: the SDK says %v", name, err)
		}
	}
}

// What comes in as a CloudEvent goes out as the same one, in either mode.
func TestEventsGoOutAsTheyCameIn(t *testing.T) {
	const one = `{"specversion":"1.0","id":"47 11","source":"/till/7","type":"voucher.sold","subject":"Grüße, \"Käse\" 100%","time":"2026-01-02T03:04:05.678Z","dataschema":"https://example.com/s","partitionkey":"shop-1","seats":"3","datacontenttype":"application/json","data":{"a":1.50}}`
	rec, bad := FromJSON([]byte(one))
	if bad != nil {
		t.Fatal(bad)
	}
	if got := string(JSON(of(rec))); got != one {
		t.Errorf("structured:\n%s\nwant\n%s", got, one)
	}
	h := http.Header{"Content-Type": {ContentType(&rec)}}
	for name, value := range Attributes(of(rec)) {
		h.Set("ce-"+name, Encode(value))
	}
	if got := h.Get("ce-subject"); got != "Gr%C3%BC%C3%9Fe,%20%22K%C3%A4se%22%20100%25" {
		t.Errorf("the subject is %s", got)
	}
	again, bad := FromHeaders(h, rec.Value)
	if bad != nil || text(again) != text(rec) {
		t.Errorf("binary: %v\n%s\nwant\n%s", bad, text(again), text(rec))
	}
}

func TestWhichHeadersAreAttributes(t *testing.T) {
	rec := event.Record{Headers: headers("ce_zone", "1", "ce_zone", "2", "ce_zone", "", "ce_Zone", "3", "ce_", "4", "ce_a-b", "5", "ce_data", "6", "ce_specversion", "0.3", "ce_datacontenttype", "7", "zone", "8", "ce_none", "")}
	var got []string
	for name, value := range Attributes(of(rec)) {
		got = append(got, name+"="+value)
	}
	const want = "specversion=1.0 id=test.voucher/2/7/1767323045678 source=/topics/test.voucher type=voucher time=2026-01-02T03:04:05.678Z zone=2"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("the attributes are\n%s\nwant\n%s", s, want)
	}
	for range Attributes(of(rec)) {
		break // who has enough is not given more
	}
}

func FuzzWrite(f *testing.F) {
	f.Add([]byte("key"), []byte(`{"a":1}`), "application/json", "ce_id", []byte("\xff % \" \x00"))
	f.Add([]byte(nil), []byte("text"), "text/plain", "ce_subject", []byte("Käse"))
	f.Fuzz(func(t *testing.T, key, value []byte, contentType, header string, attribute []byte) {
		e := of(event.Record{Key: key, Value: value, Headers: []event.Header{{Key: "content-type", Value: []byte(contentType)}, {Key: header, Value: attribute}}})
		if b := JSON(e); !json.Valid(b) {
			t.Errorf("this is no JSON: %s", b)
		}
		for name, v := range Attributes(e) {
			got, err := decode(Encode(v))
			if err != nil || got != v {
				t.Errorf("%s is %q, and %q after it was written and read (%v)", name, v, got, err)
			}
		}
		if s := Encode(attribute); !utf8.ValidString(s) || !printable([]byte(s)) || strings.ContainsAny(s, ` "`) {
			t.Errorf("%q is written %q", attribute, s)
		}
	})
}
