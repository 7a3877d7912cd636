package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postamt/sidecar/internal/event"
)

// verdict says what a status means for the record and the endpoint.
func verdict(status int) event.Verdict {
	switch status {
	case http.StatusGone:
		return event.Withdrawn
	case http.StatusRequestTimeout, http.StatusTooEarly:
		return event.Failed
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return event.Unreachable
	}
	switch status / 100 {
	case 2:
		return event.Delivered
	case 3, 4:
		return event.Refused
	}
	return event.Failed // 5xx, and what is no status of HTTP
}

// maxRetryAfter bounds what an endpoint can ask for; who waits has a bound of its own.
const maxRetryAfter = 30 * 24 * time.Hour

// retryAfter reads Retry-After: seconds, or a time. What is neither, or over, is nothing.
func retryAfter(text string, now time.Time) time.Duration {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0
	}
	if strings.Trim(text, "0123456789") == "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// describe says why there is no answer.
func describe(ctx context.Context, timeout time.Duration, err error) string {
	var denied *deniedError
	var dns *net.DNSError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &denied):
		return denied.Error()
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Sprintf("there was no answer within %v", timeout)
	case ctx.Err() != nil:
		return "the attempt was canceled, because this replica stops or gives the partition away"
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host %s", dns.Name)
	case errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/":
		return "the endpoint speaks HTTP and no TLS; its url must begin with http://"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: " + err.Error()
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the endpoint closed the connection without an answer (" + err.Error() + ")"
	}
	return err.Error()
}

// maxErrBytes bounds what is said of a failure; a dead letter carries it in a header.
const maxErrBytes = 256

// clip makes valid UTF-8 of at most n bytes.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	// Of a rune that is cut in two the rest is no UTF-8.
	return strings.ToValidUTF8(s[:n], "")
}

// minSecretBytes is from when on a value is searched for: shorter ones are words such as "true".
const minSecretBytes = 6

// redact cuts out what a subscription's headers hold, should the endpoint repeat it: a page for
// developers shows the whole request. Of "Bearer TOKEN" it is also the token alone.
func redact(s string, headers map[string]string) string {
	for _, value := range headers {
		for _, secret := range []string{value, value[strings.LastIndexByte(value, ' ')+1:]} {
			if len(secret) >= minSecretBytes {
				s = strings.ReplaceAll(s, secret, "[redacted]")
			}
		}
	}
	return s
}
