package webhook

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"postamt/sidecar/internal/event"
)

// says checks that an error is a 422 that says what is wanted; "" is no error.
func says(t *testing.T, what string, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	e, ok := errors.AsType[*event.Error](err)
	if !ok || e.Kind != event.Unprocessable || !strings.Contains(e.Msg, want) {
		t.Errorf("%s: the error is %v; want %q", what, err, want)
	}
}

func TestWhichURLsAreEndpoints(t *testing.T) {
	for url, want := range map[string]string{
		"http://webshop:8080/vouchers": "", "https://example.com": "", "https://example.com/a?b=c": "", "http://[2001:db8::1]:80/": "", "HTTP://WEBSHOP/": "", "http://webshop:65535": "",
		"":                                    "it must be http://HOST/PATH",
		"webshop:8080":                        "it must be http://HOST/PATH",
		"/vouchers":                           "it must be http://HOST/PATH",
		"ftp://webshop/":                      "it must be http://HOST/PATH",
		"http:///vouchers":                    "it must be http://HOST/PATH",
		"http://:8080/":                       "it must be http://HOST/PATH",
		"http:webshop":                        "it must be http://HOST/PATH",
		"http://a b/":                         "it must be http://HOST/PATH",
		"http://webshop/\n":                   "it must be http://HOST/PATH",
		"http://[::1/":                        "it must be http://HOST/PATH",
		"http://user:pw@webshop/":             "put them into headers, as Authorization",
		"http://webshop/#top":                 "no fragment",
		"http://webshop/#":                    "no fragment",
		"http://webshop:0/":                   `the port "0"; it must be between 1 and 65535`,
		"http://webshop:65536/":               "between 1 and 65535",
		"http://webshop:/":                    "between 1 and 65535",
		"http://webshop/" + long(17):          "",
		"http://webshop/" + long(maxURLBytes): fmt.Sprintf("has %d bytes; it may have at most %d", maxURLBytes+15, maxURLBytes),
	} {
		says(t, url, CheckURL(url), want)
	}
}

func long(n int) string { return strings.Repeat("a", n) }

func TestWhichURLsASenderMayCall(t *testing.T) {
	s := newSender(t, func(o *Options) {
		o.RequireHTTPS = true
		o.Deny = targets(t, "*.example.com", "10.0.0.0/8")
		o.Allow = nil
	})
	for url, want := range map[string]string{
		"https://webshop/":         "",
		"https://192.0.2.1/":       "",
		"https://example.com/":     "",
		"http://webshop/":          "it must be https:// (WEBHOOK_REQUIRE_HTTPS)",
		"https://a.example.com./":  "a.example.com is denied by *.example.com in WEBHOOK_DENY",
		"https://127.0.0.1:8080/":  "127.0.0.1 is a loopback address; WEBHOOK_ALLOW=127.0.0.1/32 would allow it",
		"https://[::1]/":           "WEBHOOK_ALLOW=::1/128",
		"https://10.1.2.3/":        "10.1.2.3 is denied by 10.0.0.0/8 in WEBHOOK_DENY",
		"https://169.254.169.254/": "no setting allows it",
		"https://172.21.0.9/":      "WEBHOOK_EDGE says which ones are",
		"webshop":                  "it must be http://HOST/PATH",
	} {
		says(t, url, s.CheckURL(url), want)
	}
}

func TestWhichHeadersASubscriptionCanHave(t *testing.T) {
	many := make(map[string]string)
	for i := range maxHeaders + 1 {
		many[fmt.Sprint("X-", i)] = ""
	}
	for name, c := range map[string]struct {
		headers map[string]string
		want    string
	}{
		"none":            {nil, ""},
		"some":            {map[string]string{"Authorization": "Basic dTpw", "X-Api-Key": "a\tb Käse", "Accept": "", "cookie": "a=b"}, ""},
		"full":            {map[string]string{"A": long(maxHeadersBytes - 1)}, ""},
		"too large":       {map[string]string{"A": long(maxHeadersBytes)}, fmt.Sprintf("have %d bytes; names and values may have at most %d", maxHeadersBytes+1, maxHeadersBytes)},
		"too many":        {many, fmt.Sprintf("there are %d headers; there may be at most %d", maxHeaders+1, maxHeaders)},
		"twice":           {map[string]string{"X-a": "1", "x-A": "2"}, "X-a and x-A, which are the same"},
		"no name":         {map[string]string{"": "1"}, `headers has ""`},
		"no token":        {map[string]string{"a b": "1"}, `headers has "a b"`},
		"a letter":        {map[string]string{"ä": "1"}, `headers has "ä"`},
		"a line":          {map[string]string{"X-A": "secret\r\nHost: evil"}, "the value of the header X-A has a control character at byte 6"},
		"delete":          {map[string]string{"X-A": "\x7f"}, "control character at byte 0"},
		"white space":     {map[string]string{"X-A": " b"}, "begins or ends with white space"},
		"host":            {map[string]string{"Host": "x"}, "headers has Host, which a delivery has by itself (host)"},
		"length":          {map[string]string{"content-length": "1"}, "which a delivery has by itself (content-*)"},
		"type":            {map[string]string{"Content-Type": "x/y"}, "(content-*)"},
		"encoding":        {map[string]string{"Transfer-Encoding": "chunked"}, "(transfer-encoding)"},
		"connection":      {map[string]string{"Connection": "close"}, "(connection)"},
		"proxy":           {map[string]string{"Proxy-Authorization": "x"}, "(proxy-*)"},
		"agent":           {map[string]string{"User-Agent": "x"}, "(user-agent)"},
		"signature":       {map[string]string{"WEBHOOK-Signature": "x"}, "headers has WEBHOOK-Signature, which a delivery has by itself (webhook-*)"},
		"ce":              {map[string]string{"ce-zone": "x"}, "(ce-*)"},
		"kafka":           {map[string]string{"Kafka-Header-Shop": "x"}, "(kafka-*)"},
		"postamt":         {map[string]string{"Postamt-Attempt": "1"}, "(postamt-*)"},
		"trace":           {map[string]string{"Traceparent": "x"}, "(traceparent)"},
		"idempotency":     {map[string]string{"Idempotency-Key": "x"}, "(idempotency-key)"},
		"nearly reserved": {map[string]string{"Kafka": "x", "Webhook": "x", "X-Host": "x"}, ""},
	} {
		err := CheckHeaders(c.headers)
		says(t, name, err, c.want)
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error has the value: %v", name, err)
		}
	}
}

// Every header that a delivery can have is one that a subscription cannot.
func TestOwnHeadersAreReserved(t *testing.T) {
	s := newSender(t, nil)
	tombstone := record("k", "")
	tombstone.Value = nil
	for _, r := range []*event.Record{
		record("k", "v", "ce_zone", "1", "shop", "linden", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate", "a=1"),
		record("k", "v", "no token", "1"), tombstone,
	} {
		req, err := s.request(t.Context(), subscription("http://webshop/"), attempt(r))
		if err != nil {
			t.Fatal(err)
		}
		for name := range req.Header {
			if CheckHeaders(map[string]string{name: "x"}) == nil {
				t.Errorf("a subscription could set %s", name)
			}
		}
	}
}

func TestSecrets(t *testing.T) {
	for _, n := range []int{minSecret, 32, maxSecret} {
		key := bytes.Repeat([]byte{0xfe}, n)
		got, err := ParseSecret(FormatSecret(key))
		if err != nil || !bytes.Equal(got, key) {
			t.Errorf("of %d bytes: %v, %v", n, got, err)
		}
	}
	text := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xfe}, 25)) // with padding
	for secret, want := range map[string]string{
		secretPrefix + text: "",
		text:                "must be whsec_ and after it 24 to 64 bytes in base64",
		"WHSEC_" + text:     "must be whsec_",
		secretPrefix + strings.TrimRight(text, "="):       "must be whsec_",
		secretPrefix + strings.ReplaceAll(text, "/", "_"): "must be whsec_",
		secretPrefix + text[:4] + "\n" + text[4:]:         "must be whsec_",
		secretPrefix + "*":                                "must be whsec_",
		secretPrefix:                                      "has 0 bytes; it must have 24 to 64",
		FormatSecret(make([]byte, minSecret-1)):           "has 23 bytes",
		FormatSecret(make([]byte, maxSecret+1)):           "has 65 bytes",
	} {
		err := CheckSecret(secret)
		says(t, secret, err, want)
		if err != nil && len(secret) > 20 && strings.Contains(err.Error(), secret[10:20]) {
			t.Errorf("the error has the secret: %v", err)
		}
	}
}
