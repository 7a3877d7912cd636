package webhook

import (
	"encoding/base64"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"postamt/sidecar/internal/event"
)

// Limits of what a subscription says of its endpoint.
const (
	maxURLBytes     = 2048
	maxHeaders      = 32
	maxHeadersBytes = 4 << 10 // names and values
	minSecret       = 24      // bytes, as Standard Webhooks has it
	maxSecret       = 64
	secretPrefix    = "whsec_"
)

func unprocessable(format string, args ...any) error {
	return event.Errorf(event.Unprocessable, 0, op, format, args...)
}

// CheckURL tells whether a URL can be an endpoint's. Where it may not be called, Sender.CheckURL
// says so.
func CheckURL(text string) error {
	_, err := parseURL(text)
	return err
}

func parseURL(text string) (*url.URL, error) {
	if len(text) > maxURLBytes {
		return nil, unprocessable("the url has %d bytes; it may have at most %d", len(text), maxURLBytes)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Opaque != "", u.Hostname() == "":
		return nil, unprocessable("the url is %q; it must be http://HOST/PATH or https://HOST/PATH", text)
	case u.User != nil:
		return nil, unprocessable("the url has a user or a password, which everyone could read; put them into headers, as Authorization")
	case strings.Contains(text, "#"):
		return nil, unprocessable("the url is %q; it must have no fragment (#…), which is not sent", text)
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return nil, unprocessable("the url has the port %q; it must be between 1 and 65535", port)
		}
	}
	return u, nil
}

// CheckURL tells whether a URL can be an endpoint's, as far as that can be told without looking its
// host up: what a name stands for is checked with each connection.
func (s *Sender) CheckURL(text string) error {
	u, err := parseURL(text)
	if err != nil {
		return err
	}
	if err := s.rules.checkURL(u); err != nil {
		return &event.Error{Kind: event.Unprocessable, Op: op, Msg: err.Error(), Err: err}
	}
	return nil
}

// checkURL applies the rules to what the URL says itself.
func (r *rules) checkURL(u *url.URL) error {
	if r.requireHTTPS && u.Scheme != "https" {
		return &deniedError{"the url begins with " + u.Scheme + "://; it must be https:// (WEBHOOK_REQUIRE_HTTPS)"}
	}
	host := u.Hostname()
	if addr, err := netip.ParseAddr(host); err == nil {
		return r.check(addr, host)
	}
	return r.checkName(host)
}

// reserved are the headers that deliveries or HTTP itself have, and what they begin with.
var reserved = []string{
	"host", "content-*", "transfer-encoding", "connection", "keep-alive", "proxy-*", "te", "trailer", "upgrade", "expect",
	"accept-encoding", "user-agent", "webhook-*", "ce-*", "kafka-*", "postamt-*", "traceparent", "tracestate", "idempotency-key", "x-idempotency-key",
}

// CheckHeaders tells whether a subscription can have these headers.
func CheckHeaders(headers map[string]string) error {
	if len(headers) > maxHeaders {
		return unprocessable("there are %d headers; there may be at most %d", len(headers), maxHeaders)
	}
	size := 0
	seen := make(map[string]string, len(headers))
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		value, lower := headers[name], strings.ToLower(name)
		size += len(name) + len(value)
		if !isToken(name) {
			return unprocessable("headers has %q; a name has letters, digits and any of !#$%%&'*+-.^_`|~", name)
		}
		if other, ok := seen[lower]; ok {
			return unprocessable("headers has %s and %s, which are the same; leave one of them out", other, name)
		}
		seen[lower] = name
		for _, pattern := range reserved {
			if prefix, ok := strings.CutSuffix(pattern, "*"); lower == pattern || ok && strings.HasPrefix(lower, prefix) {
				return unprocessable("headers has %s, which a delivery has by itself (%s); leave it out", name, pattern)
			}
		}
		if i := strings.IndexFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }); i >= 0 {
			return unprocessable("the value of the header %s has a control character at byte %d; leave it out", name, i) // and no value here: it is secret
		}
		if strings.Trim(value, " \t") != value {
			return unprocessable("the value of the header %s begins or ends with white space, which would get lost; leave it out", name)
		}
	}
	if size > maxHeadersBytes {
		return unprocessable("the headers have %d bytes; names and values may have at most %d", size, maxHeadersBytes)
	}
	return nil
}

func isToken(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}

// ParseSecret reads a secret as Standard Webhooks writes it: whsec_ and base64. Its error does not
// repeat it.
func ParseSecret(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	switch {
	case !ok || err != nil || strings.ContainsAny(encoded, "\r\n"):
		return nil, unprocessable("the secret must be whsec_ and after it %d to %d bytes in base64 (of the standard alphabet, with padding)", minSecret, maxSecret)
	case len(key) < minSecret || len(key) > maxSecret:
		return nil, unprocessable("the secret has %d bytes; it must have %d to %d", len(key), minSecret, maxSecret)
	}
	return key, nil
}

// CheckSecret tells whether a text can be a secret.
func CheckSecret(text string) error {
	_, err := ParseSecret(text)
	return err
}

// FormatSecret writes a secret as Standard Webhooks does.
func FormatSecret(key []byte) string {
	return secretPrefix + base64.StdEncoding.EncodeToString(key)
}
