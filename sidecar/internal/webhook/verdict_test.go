package webhook

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

func TestVerdict(t *testing.T) {
	for status, want := range map[int]event.Verdict{
		200: event.Delivered, 201: event.Delivered, 202: event.Delivered, 204: event.Delivered, 299: event.Delivered,
		410: event.Withdrawn,
		300: event.Refused, 301: event.Refused, 302: event.Refused, 304: event.Refused, 307: event.Refused, 308: event.Refused, // not followed
		400: event.Refused, 401: event.Refused, 403: event.Refused, 404: event.Refused, 405: event.Refused, 409: event.Refused,
		411: event.Refused, 413: event.Refused, 415: event.Refused, 422: event.Refused, 431: event.Refused, 451: event.Refused, 499: event.Refused,
		408: event.Failed, 425: event.Failed, 500: event.Failed, 501: event.Failed, 505: event.Failed, 507: event.Failed, 520: event.Failed, 599: event.Failed,
		101: event.Failed, 600: event.Failed, 999: event.Failed, // no answers of HTTP
		429: event.Unreachable, 502: event.Unreachable, 503: event.Unreachable, 504: event.Unreachable, // says nothing about the record
	} {
		if got := verdict(status); got != want {
			t.Errorf("verdict(%d) is %q; want %q", status, got, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 19, 5, 49, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "120": 2 * time.Minute, " 5 ": 5 * time.Second,
		"-1": 0, "1.5": 0, "soon": 0, "5s": 0,
		"99999999999999999999": maxRetryAfter, "9223372036854775807": maxRetryAfter, "31536000": maxRetryAfter,
		now.Add(90 * time.Second).Format(http.TimeFormat):     90 * time.Second,
		now.Add(time.Minute).Format(time.RFC850):              time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat):         0,
		now.Add(365 * 24 * time.Hour).Format(http.TimeFormat): maxRetryAfter,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("Retry-After %q is %v; want %v", text, got, want)
		}
	}
}

func TestClipCutsBetweenRunes(t *testing.T) {
	for _, c := range []struct {
		in   string
		n    int
		want string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "abc"}, {"", 0, ""}, {"aä", 2, "a"}, {"aä", 3, "aä"}, {"€€", 5, "€"}, {"\xff\xffab", 4, "\uFFFDa"}, {"x\xff", 9, "x\uFFFD"},
	} {
		if got := clip(c.in, c.n); got != c.want {
			t.Errorf("clip(%q, %d) is %q; want %q", c.in, c.n, got, c.want)
		}
	}
	for n := range 12 {
		if s := clip("Käse € 👍", n); len(s) > n || !utf8.ValidString(s) || !strings.HasPrefix("Käse € 👍", s) {
			t.Errorf("cut to %d bytes it is %q", n, s)
		}
	}
}

func TestRedactCutsOutWhatHeadersHold(t *testing.T) {
	headers := map[string]string{"Authorization": "Bearer abcdef123", "X-Api-Key": "topsecret", "X-Flag": "true"}
	const in = `{"authorization":"Bearer abcdef123","key":"topsecret topsecret","token":"abcdef123","ok":true}`
	const want = `{"authorization":"[redacted]","key":"[redacted] [redacted]","token":"[redacted]","ok":true}`
	if got := redact(in, headers); got != want {
		t.Errorf("it is %s\nwant %s", got, want)
	}
}
