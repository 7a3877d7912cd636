package httpapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"postamt/sidecar/internal/event"
)

// bodyStep is how much of a body is read, and counted against the replica's limit, at once.
const bodyStep = 64 << 10

// readBody reads a request's body whole, unpacked, up to maxBytes; variable names the limit.
// What is read counts as in flight until release is called, which must be, error or not.
func (s *Server) readBody(r *http.Request, maxBytes int64, variable string) (body []byte, release func(), err error) {
	var held int64
	release = func() { s.inFlight.Release(held) }
	tooLarge := event.Errorf(event.TooLarge, 0, "read body", "the body is larger than %d bytes (%s)", maxBytes, variable)
	if r.ContentLength > maxBytes {
		return nil, release, tooLarge
	}
	unpacked, err := unpack(r)
	if err != nil {
		return nil, release, err
	}
	defer func() { _ = unpacked.Close() }()
	// What a client only says that it will send takes no memory.
	buf := bytes.NewBuffer(make([]byte, 0, min(max(0, r.ContentLength), bodyStep)+bytes.MinRead))
	for {
		n, err := io.CopyN(buf, unpacked, bodyStep)
		if int64(buf.Len()) > maxBytes {
			return nil, release, tooLarge
		}
		if !s.inFlight.TryAcquire(n) {
			return nil, release, event.Errorf(event.TooMany, 0, "read body", "this replica works on as many bytes as it may (MAX_IN_FLIGHT_BYTES=%d); repeat the request later", s.opts.Limits.InFlightBytes)
		}
		held += n
		if errors.Is(err, io.EOF) {
			return buf.Bytes(), release, nil
		}
		if err != nil {
			return nil, release, bodyError(err)
		}
	}
}

// unpack undoes the Content-Encoding of a request's body.
func unpack(r *http.Request) (io.ReadCloser, error) {
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip":
		zr, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, bodyError(err)
		}
		return zr, nil
	case "zstd":
		zr, err := zstd.NewReader(r.Body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(8<<20))
		if err != nil {
			return nil, bodyError(err)
		}
		return zr.IOReadCloser(), nil
	default:
		return nil, event.Errorf(event.Unsupported, 0, "read body", "the Content-Encoding is %q; known are gzip and zstd", encoding)
	}
}

// bodyError keeps the errors of the connection apart from those of what came over it.
func bodyError(err error) error {
	if ee := asError(err); ee.Kind != event.Internal {
		return ee
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return &event.Error{Kind: event.Invalid, Op: "read body", Msg: "the body ended before its end", Err: err}
	}
	return &event.Error{Kind: event.Invalid, Op: "read body", Msg: "the body could not be read; is it packed as its Content-Encoding says?", Err: err}
}

// writeJSON answers with v as JSON. An error means that the client did not get it.
func (s *Server) writeJSON(w http.ResponseWriter, r *http.Request, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil { // a value of ours that cannot be encoded is a bug
		s.log.Error("encode answer", "path", r.URL.Path, "error", err)
		status, body = http.StatusInternalServerError, []byte(`{"error_code":500,"message":"the answer could not be encoded"}`)
	}
	_ = s.write(w, status, contentType, append(body, '\n'))
}

// write answers with a body. An error means that the client did not get all of it.
func (s *Server) write(w http.ResponseWriter, status int, contentType string, body []byte) error {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	return s.send(w, body)
}

// sendStep is how much of an answer a client must take within READ_TIMEOUT: one that reads
// slowly is waited for, one that has stopped is not.
const sendStep = 64 << 10

// send writes a part of an answer through to the client.
func (s *Server) send(w http.ResponseWriter, b []byte) error {
	rc := http.NewResponseController(w)
	for len(b) > 0 {
		_ = rc.SetWriteDeadline(time.Now().Add(s.opts.ReadTimeout))
		n, err := w.Write(b[:min(len(b), sendStep)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	// What is only in our buffer has not been received by anyone.
	if err := rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = rc.SetWriteDeadline(time.Time{}) // what comes next may take its time
	return nil
}

// query returns a request's query parameters, and refuses the ones that the route does not
// know: a misspelt ?key= must not become a record without a key.
func query(r *http.Request, known ...string) (url.Values, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &event.Error{Kind: event.Invalid, Op: "query", Msg: "the query cannot be read; is it percent-encoded?", Err: err}
	}
	for name := range values {
		if !slices.Contains(known, name) {
			return nil, event.Errorf(event.Unprocessable, 0, "query", "there is no query parameter %q here; known are %s", name, strings.Join(known, ", "))
		}
	}
	return values, nil
}
