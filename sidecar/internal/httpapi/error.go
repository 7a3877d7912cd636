package httpapi

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"

	"postamt/sidecar/internal/event"
)

// The error codes of the REST Proxy dialect that handlers use themselves.
const (
	codeTopicNotFound     = 40401
	codePartitionNotFound = 40402
	codeUnavailable       = 50302
)

// statusOf maps a kind to its HTTP status.
var statusOf = map[event.Kind]int{
	event.Invalid: http.StatusBadRequest, event.Unprocessable: http.StatusUnprocessableEntity,
	event.Forbidden: http.StatusForbidden,
	event.NotFound:  http.StatusNotFound, event.NotAllowed: http.StatusMethodNotAllowed,
	event.NotAcceptable: http.StatusNotAcceptable, event.Unsupported: http.StatusUnsupportedMediaType,
	event.Conflict: http.StatusConflict, event.Precondition: http.StatusPreconditionFailed, event.TooLarge: http.StatusRequestEntityTooLarge,
	event.TooMany: http.StatusTooManyRequests, event.Unavailable: http.StatusServiceUnavailable,
	event.Timeout: http.StatusRequestTimeout, event.Internal: http.StatusInternalServerError,
	event.Misdirected: http.StatusMisdirectedRequest,
	event.Gone:        499, // nobody reads it; what proxies write into their logs
}

type errorBody struct {
	ErrorCode int    `json:"error_code"`
	Message   string `json:"message"`
}

// asError makes an event.Error of any error. One without a kind is a bug.
func asError(err error) *event.Error {
	var ee *event.Error
	switch {
	case errors.As(err, &ee):
		return ee
	case errors.Is(err, os.ErrDeadlineExceeded):
		return event.Errorf(event.Timeout, 0, "read body", "the request did not arrive whole in time (READ_TIMEOUT)")
	case errors.Is(err, context.Canceled):
		return event.Errorf(event.Gone, 0, "serve", "the client went away")
	}
	return &event.Error{Kind: event.Internal, Op: "serve", Msg: "an error on our side; the log has it under this request's X-Request-Id", Err: err}
}

// codeOf is the error_code of an error: its own, or the status of its kind.
func codeOf(err *event.Error) int {
	if err.Code != 0 {
		return err.Code
	}
	return statusOf[err.Kind]
}

// fail answers with an error in our one form.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	ee := asError(err)
	if ee.Kind == event.Unavailable && r.Context().Err() != nil {
		// Not Kafka was away but the client, who was waited for: that is no failure of ours.
		ee = &event.Error{Kind: event.Gone, Op: ee.Op, Msg: "the client went away", Err: err}
	}
	s.count(w, r, ee)
	if ee.Kind == event.Gone {
		// Nobody is there to read an answer. Ending here would make net/http send an empty 200
		// if somebody is after all.
		panic(http.ErrAbortHandler)
	}
	// An answer that ends before its request's body does would leave the rest of the body in
	// the way of the connection's next request.
	if ee.Kind == event.TooLarge || ee.Kind == event.Timeout {
		w.Header().Set("Connection", "close")
	}
	s.writeJSON(w, r, statusOf[ee.Kind], "application/json", errorBody{codeOf(ee), ee.Msg})
}

// count counts and logs why a request failed, or a part of it.
func (s *Server) count(w http.ResponseWriter, r *http.Request, err *event.Error) {
	s.metrics.errors.WithLabelValues(string(err.Kind)).Inc()
	s.log.Log(r.Context(), levelOf(err.Kind), "request failed", "request_id", w.Header().Get(requestIDHeader), "method", r.Method,
		"path", r.URL.Path, "kind", string(err.Kind), "error", err)
	if err.Kind == event.Unavailable || err.Kind == event.TooMany {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfterSeconds))
	}
}

// retryAfterSeconds is what a client should wait before it repeats a request that met a
// limit or an outage: long enough for a queue to drain, short enough that a register sells on.
const retryAfterSeconds = 2
