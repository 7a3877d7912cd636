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
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// firstBuffer bounds the memory that a client takes by only saying how much it will send.
const firstBuffer = 64 << 10

// buffers keeps the memory of bodies and answers for other requests.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// maxReused is how large a buffer may be to be kept: one large request is not to hold its
// memory for many small ones.
const maxReused = 1 << 20

// buffer gives memory for size bytes or more, as far as there is any that can be used again,
// and firstBuffer of them otherwise.
func buffer(size int64) []byte {
	b := *buffers.Get().(*[]byte) //nolint:forcetypeassert // nothing else is put there
	if size = min(max(0, size), firstBuffer) + bytes.MinRead; int64(cap(b)) < size {
		b = make([]byte, 0, size)
	}
	return b
}

// reuse gives memory back that nobody looks at any more.
func reuse(b []byte) {
	if cap(b) <= maxReused {
		b = b[:0]
		buffers.Put(&b)
	}
}

// readBody reads a request's body whole, unpacked, up to maxBytes; variable names the limit.
// What has come of it counts as in flight until release is called, which must be, error or
// not.
func (s *Server) readBody(r *http.Request, maxBytes int64, variable string) (body []byte, release func(), err error) {
	counted := &countedReader{limit: s.inFlight, limitBytes: s.opts.Limits.InFlightBytes}
	release = func() { s.inFlight.Release(counted.held) }
	tooLarge := func() error {
		return event.Errorf(event.TooLarge, 0, "read body", "the body is larger than %d bytes (%s)", maxBytes, variable)
	}
	if r.ContentLength > maxBytes {
		return nil, release, tooLarge()
	}
	encoding := r.Header.Get("Content-Encoding")
	src, whole := r.Body, strings.EqualFold(encoding, "zstd")
	if !whole {
		if src, err = unpack(encoding, r.Body); err != nil {
			return nil, release, err
		}
		defer func() { _ = src.Close() }()
	}
	counted.Reader = io.LimitReader(src, maxBytes+1)
	buf := bytes.NewBuffer(buffer(r.ContentLength))
	switch _, err := buf.ReadFrom(counted); {
	case int64(buf.Len()) > maxBytes:
		return nil, release, tooLarge()
	case err != nil:
		return nil, release, bodyError(err)
	}
	if !whole {
		return buf.Bytes(), release, nil
	}
	// A decoder that unpacks what it is sent while it comes would hold the window that the body
	// says it needs, 8 MiB for some bytes, for as long as a client likes.
	body, err = s.zstd.DecodeAll(buf.Bytes(), nil)
	reuse(buf.Bytes())
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), int64(len(body)) > maxBytes:
		return nil, release, tooLarge()
	case err != nil:
		return nil, release, bodyError(err)
	}
	return body, release, counted.hold(int64(len(body)))
}

// zstdDecoder unpacks bodies that are there whole, a few at a time.
func zstdDecoder(maxBytes int64) *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(uint64(max(maxBytes, zstdWindow)))) // it bounds windows, too
	if err != nil {
		panic(err) // it has no other cause than options that are not allowed
	}
	return d
}

// countedReader counts what is read against the limit of bytes in flight.
type countedReader struct {
	io.Reader
	limit      *semaphore.Weighted
	limitBytes int64
	held       int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if full := c.hold(c.held + int64(n)); full != nil {
		return 0, full
	}
	return n, err
}

// hold makes n what is counted.
func (c *countedReader) hold(n int64) error {
	if n < c.held {
		c.limit.Release(c.held - n)
	} else if !c.limit.TryAcquire(n - c.held) {
		return event.Errorf(event.TooMany, 0, "read body", "this replica works on as many bytes as it may (MAX_IN_FLIGHT_BYTES=%d); repeat the request later", c.limitBytes)
	}
	c.held = n
	return nil
}

const (
	// zstdWindow is the largest window of a body: what RFC 8878 wants every decoder to take.
	zstdWindow = 8 << 20
	// zstdBytes is what it takes to unpack a body while it comes.
	zstdBytes = zstdWindow + 1<<20
)

// unpack undoes the Content-Encoding of a request's body.
func unpack(encoding string, body io.ReadCloser) (io.ReadCloser, error) {
	switch encoding := strings.ToLower(encoding); encoding {
	case "", "identity":
		return body, nil
	case "gzip":
		zr, err := gzip.NewReader(body)
		if err != nil {
			return nil, bodyError(err)
		}
		return zr, nil
	case "zstd":
		zr, err := zstd.NewReader(body, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(zstdWindow))
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
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return &event.Error{Kind: event.Invalid, Op: "read body", Msg: "the body is packed with a window of more than 8 MiB; pack it with a smaller one (without zstd's --long and --ultra)", Err: err}
	}
	return &event.Error{Kind: event.Invalid, Op: "read body", Msg: "the body could not be read; is it packed as its Content-Encoding says?", Err: err}
}

// writeJSON answers with v as JSON. An error means that the client did not get it.
func (s *Server) writeJSON(w http.ResponseWriter, r *http.Request, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil { // a value of ours that cannot be encoded is a bug
		s.log.ErrorContext(r.Context(), "encode answer", "path", r.URL.Path, "error", err)
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

// lastWrite is how long a shutdown waits for a client to take what is being sent.
const lastWrite = time.Second

// send writes a part of an answer through to the client.
func (s *Server) send(w http.ResponseWriter, b []byte) error {
	if err := s.push(w, b); err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	// What is only in our buffer has not been received by anyone.
	if err := rc.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	_ = rc.SetWriteDeadline(time.Time{}) // what comes next may take its time
	return nil
}

// push is send of a part that more is to follow soon: some of it may stay in our buffer.
func (s *Server) push(w http.ResponseWriter, b []byte) error {
	rc := http.NewResponseController(w)
	for len(b) > 0 {
		wait := s.opts.ReadTimeout
		if s.stopping.Err() != nil {
			wait = min(wait, lastWrite)
		}
		_ = rc.SetWriteDeadline(time.Now().Add(wait))
		n, err := w.Write(b[:min(len(b), sendStep)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// encodeStep is how much of a long answer is encoded before it is sent: the client reads while
// the rest is encoded, and no answer is in memory whole.
const encodeStep = 256 << 10

// writeRecords answers with an array of records. An error means that the client did not get
// all of it. lengthIn is a header that says how long the array is, "" for none but, of a short
// one, Content-Length.
func (s *Server) writeRecords(w http.ResponseWriter, records []event.Record, format restproxy.Format, lengthIn string) error {
	buf := append(buffer(firstBuffer), '[')
	defer func() { reuse(buf) }()
	begun := false
	begin := func(length int) {
		begun = true
		w.Header().Set("Content-Type", format.ContentType())
		if lengthIn != "" {
			w.Header().Set(lengthIn, strconv.Itoa(length))
		}
	}
	for i := range records {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = restproxy.AppendRecord(buf, &records[i], format)
		if len(buf) < encodeStep {
			continue
		}
		if !begun {
			rest := 0
			if lengthIn != "" {
				rest = lengthOf(records[i+1:], format)
			}
			begin(len(buf) + rest + len("]"))
		}
		if err := s.push(w, buf); err != nil {
			return err
		}
		buf = buf[:0]
	}
	if buf = append(buf, ']'); !begun && lengthIn == "" {
		return s.write(w, http.StatusOK, format.ContentType(), buf)
	}
	if !begun {
		begin(len(buf))
	}
	return s.send(w, buf)
}

// lengthOf is how long records are that follow others, in bytes of JSON. They are encoded twice
// then, which costs less than to have all of an answer in memory.
func lengthOf(records []event.Record, format restproxy.Format) int {
	buf := buffer(0)
	defer func() { reuse(buf) }()
	n := 0
	for i := range records {
		buf = restproxy.AppendRecord(buf[:0], &records[i], format)
		n += len(",") + len(buf)
	}
	return n
}

// query returns a request's query parameters, and refuses the ones that the route does not
// know, that come twice or have no value: a misspelt ?key= must not become a record without a
// key, nor ?partition= of a script whose variable is not set one of any partition.
func query(r *http.Request, known ...string) (url.Values, error) {
	values, err := queryOfLists(r, known...)
	for name, list := range values {
		if len(list) > 1 {
			return nil, event.Errorf(event.Unprocessable, 0, "query", "the query parameter %s is there %d times; it must be there once", name, len(list))
		}
		if list[0] == "" && name != "key" { // a key may be empty
			return nil, event.Errorf(event.Invalid, 0, "query", "the query parameter %s has no value; give it one, or leave it out", name)
		}
	}
	return values, err
}

// queryOfLists is query for parameters that may come more than once.
func queryOfLists(r *http.Request, known ...string) (url.Values, error) {
	if r.URL.RawQuery == "" {
		return nil, nil //nolint:nilnil // of which every parameter can be asked
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, &event.Error{Kind: event.Invalid, Op: "query", Msg: "the query cannot be read; is it percent-encoded?", Err: err}
	}
	for name := range values {
		if !slices.Contains(known, name) {
			hint := "; leave it out"
			if len(known) > 0 {
				hint = "; known are " + strings.Join(known, ", ")
			}
			return nil, event.Errorf(event.Unprocessable, 0, "query", "there is no query parameter %q here%s", name, hint)
		}
	}
	return values, nil
}
