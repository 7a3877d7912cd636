// Package webhook makes one attempt to deliver a record: it signs it as Standard Webhooks has it,
// sends it to the endpoint, and decides what the answer means. It calls no address that its rules
// deny.
package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/trace"
)

const op = "webhook"

// Options configure a Sender. The zero value is a Sender as it is without any setting.
type Options struct {
	Allow, Deny  []Target // see Target
	Edge         []string // interfaces (eth0) or networks (10.0.0.0/8) of this machine that deliveries may use; none or "auto": that of the default route
	RequireHTTPS bool
	Proxy        string        // URL of the proxy that makes all connections; "" or "none": there is none
	Version      string        // for User-Agent
	Tracer       *trace.Tracer // makes a span of each attempt; nil: there are none

	Resolver *net.Resolver             // nil: the machine's
	Networks func() ([]Network, error) // nil: the machine's
	TLS      *tls.Config               // nil: the machine's certificates
}

// What a Sender does to connections. An idle one is closed before servers do it (Node.js and
// uvicorn after 5 s), as a request that is sent into a connection being closed is a failure.
const (
	dialTimeout         = 10 * time.Second
	idleTimeout         = 4 * time.Second
	maxIdlePerEndpoint  = 1024 // as many attempts as a subscription may have in flight
	maxIdle             = 8192
	maxAnswerHeader     = 64 << 10 // bytes
	pingAfter           = 10 * time.Second
	pingTimeout         = 5 * time.Second
	writeBufferBytes    = 16 << 10 // a common request is one write
	connectionKeepAlive = 15 * time.Second
)

// Sender makes attempts for all subscriptions: they share its connections. It is safe for
// concurrent use.
type Sender struct {
	transport http.RoundTripper
	idle      func() // closes connections that nobody uses
	rules     *rules
	agent     string
	tracer    *trace.Tracer // or nil
}

// New makes a Sender. It must be closed.
func New(o Options) (*Sender, error) {
	rules, err := newRules(o)
	if err != nil {
		return nil, err
	}
	proxy, err := ParseProxy(o.Proxy)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: connectionKeepAlive, Resolver: o.Resolver}
	t := &http.Transport{
		TLSClientConfig:        o.TLS.Clone(),
		TLSHandshakeTimeout:    dialTimeout,
		DisableCompression:     true, // a few bytes that were packed can be many
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerEndpoint,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswerHeader,
		WriteBufferSize:        writeBufferBytes,
		ForceAttemptHTTP2:      true, // which a dialer of one's own would switch off
		// A connection that became silent would swallow every attempt until each one's timeout.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	if proxy != nil {
		// The operator chose its address, and it is the one to look up and check the endpoints'.
		t.Proxy = http.ProxyURL(proxy)
		t.DialContext = dialer.DialContext
	} else {
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return rules.dial(ctx, dialer, network, address)
		}
	}
	rules.proxied = proxy != nil
	return &Sender{transport: t, idle: t.CloseIdleConnections, rules: rules, agent: "postamt/" + o.Version, tracer: o.Tracer}, nil
}

// ParseProxy reads WEBHOOK_PROXY; "" and "none" are nil.
func ParseProxy(text string) (*url.URL, error) {
	if text == "" || text == "none" {
		return nil, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil && strings.Contains(text, "@"), err == nil && u.User != nil:
		return nil, errors.New("WEBHOOK_PROXY has a user or a password, which `postamt config` would show; it must have none: let the proxy know this machine by its address")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5":
		return nil, fmt.Errorf("WEBHOOK_PROXY is %q; it must be the URL of a proxy such as http://proxy:3128 (or https, socks5), or none", text)
	}
	return u, nil
}

// Close closes the connections that no attempt uses.
func (s *Sender) Close() { s.idle() }

// Send makes an attempt. It returns a verdict whatever happens, at the latest when the
// subscription's timeout is over or ctx ends.
func (s *Sender) Send(ctx context.Context, sub *event.Subscription, a event.Attempt) (out event.Outcome) {
	begun := time.Now()
	var span *trace.Attempt
	defer func() {
		// A record that brings this code down would bring every replica down, one after the other.
		if p := recover(); p != nil {
			out = event.Outcome{Verdict: event.Failed, Err: clip(fmt.Sprintf("the attempt could not be made (a bug of Postamt's): %v", p), maxErrBytes)}
		}
		out.Duration = time.Since(begun)
		out.Trace = span.End(out)
	}()
	if s.tracer != nil {
		ctx, span = s.tracer.Attempt(ctx, sub, a)
	}
	ctx, cancel := context.WithTimeout(ctx, sub.Timeout)
	defer cancel()
	req, err := s.request(ctx, sub, a)
	if err != nil {
		return event.Outcome{Verdict: event.Unreachable, Err: clip(err.Error(), maxErrBytes)}
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return event.Outcome{Verdict: event.Unreachable, Err: clip(redact(describe(ctx, sub.Timeout, err), sub.Headers), maxErrBytes)}
	}
	defer resp.Body.Close()
	return answer(resp, sub.Headers)
}

// What is read of an answer's body. A secret that the endpoint repeats is cut out before the body
// is cut to what is kept, so that none is kept by half.
const (
	maxBodyBytes  = 4 << 10
	maxReadBytes  = maxBodyBytes + maxHeadersBytes
	maxDrainBytes = 64 << 10 // to use the connection again; beyond, a new one costs less
)

// answer decides what an answer means, and keeps the beginning of its body.
func answer(resp *http.Response, headers map[string]string) event.Outcome {
	out := event.Outcome{Verdict: verdict(resp.StatusCode), Status: resp.StatusCode}
	if resp.Body != http.NoBody {
		out.Body = beginning(resp.Body, headers)
	}
	if out.Verdict == event.Delivered {
		return out
	}
	out.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	text := fmt.Sprintf("the answer is %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	if location := resp.Header.Get("Location"); resp.StatusCode/100 == 3 && location != "" {
		text += "; redirects are not followed, and this one is to " + location
	}
	out.Err = clip(redact(text, headers), maxErrBytes)
	return out
}

// beginning is what is kept of an answer's body.
func beginning(r io.Reader, headers map[string]string) string {
	body, err := io.ReadAll(io.LimitReader(r, maxReadBytes))
	if err == nil && len(body) == maxReadBytes {
		_, _ = io.CopyN(io.Discard, r, maxDrainBytes-maxReadBytes) // nobody wants it
	}
	text := redact(string(body), headers)
	if len(body) == maxReadBytes { // which may have cut a secret in two: drop as much as one can have
		text = text[:max(len(text)-maxHeadersBytes, 0)]
	}
	return clip(text, maxBodyBytes)
}
