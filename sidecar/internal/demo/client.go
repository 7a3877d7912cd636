// Package demo is both ends of a company's systems: a register that sells vouchers, and a web shop
// that has to learn of each of them, and can be told to fail. Both use nothing but the HTTP API.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// requestTimeout is longer than REQUEST_TIMEOUT, so that the API's own answer comes first.
	requestTimeout = 35 * time.Second
	maxAnswerBytes = 4 << 20
)

// client asks one HTTP service.
type client struct {
	base, host string // host: what is asked for there; "": that of base
	http       *http.Client
}

func newClient(base, host string, connections int) *client {
	transport := http.DefaultTransport.(*http.Transport).Clone() // it is one
	transport.Proxy, transport.MaxIdleConnsPerHost = nil, connections
	return &client{strings.TrimSuffix(base, "/"), host, &http.Client{Transport: transport, Timeout: requestTimeout}}
}

func (c *client) close() { c.http.CloseIdleConnections() }

// statusError is an answer that is no success.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %s", e.status, e.message) }

// do sends in as JSON, if there is one, and reads the answer into out, if there is one.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	req.Host = c.host
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes))
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		var said errorBody
		if json.Unmarshal(text, &said) != nil || said.Message == "" {
			said.Message = http.StatusText(resp.StatusCode)
		}
		return &statusError{resp.StatusCode, said.Message}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// Options are what register and web shop have to know.
type Options struct {
	API, Host string  // where the HTTP API is, and the Host to ask for there
	Topic     string  // what the vouchers are sold in
	Rate      float64 // vouchers a second, to begin with
	MaxRate   float64
	Cards     int    // keys; each has one voucher on its way to Kafka at a time
	Register  string // where the register is
	URL       string // where deliveries reach the web shop
	File      string // keeps what the web shop has received; "": in memory
}

// voucher is the value of a record that the register sells. Of one card the numbers go up.
type voucher struct {
	Run    int64  `json:"run"`    // when the register began to count, in milliseconds
	Number int64  `json:"number"` // counts from 1 over all cards
	Card   string `json:"card"`   // the key, too
	Amount int    `json:"amount"`
}

// cardPrefix begins the names of all cards of a run.
func cardPrefix(run int64) string { return fmt.Sprintf("%x-", run) }

// errorBody is the form of errors of the HTTP API, and so of ours.
type errorBody struct {
	Code    int    `json:"error_code"`
	Message string `json:"message"`
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone away
}

func writeError(w http.ResponseWriter, status int, format string, args ...any) {
	writeJSON(w, status, errorBody{status, fmt.Sprintf(format, args...)})
}

const maxRequestBytes = 64 << 10

// readJSON reads a request's body into v, or answers that it cannot.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		writeError(w, http.StatusBadRequest, "the body cannot be read: %v", err)
		return false
	}
	return true
}

// guarded lets pages of other sites change nothing. /health is what `postamt healthcheck` asks for.
func guarded(mux *http.ServeMux) http.Handler {
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "up"})
	})
	return http.NewCrossOriginProtection().Handler(mux)
}

func pathOf(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}
