package contract

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

// Transport sends requests over Base and checks each answer against openapi.yaml: once its
// body has been read to the end, or is closed. It is safe for concurrent use if Fail is.
type Transport struct {
	Base http.RoundTripper
	// Fail is told of each answer that is not as it should be.
	Fail func(error)
	// Ours tells which answers are of the interface; nil means all.
	Ours func(*http.Request, *http.Response) bool
}

// RoundTrip implements http.RoundTripper. Without a document nothing can be asked.
func (tr *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c, err := Load()
	if err != nil {
		return nil, err
	}
	resp, err := tr.Base.RoundTrip(req)
	if err != nil || tr.Ours != nil && !tr.Ours(req, resp) {
		return resp, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, check: func(body []byte, cut bool) {
		if err := c.Check(req.Method, req.URL, Answer{Status: resp.StatusCode, Header: resp.Header, Body: body, Cut: cut}); err != nil {
			tr.Fail(err)
		}
	}}
	return resp, nil
}

// maxWatched bounds what is kept of a body; of a longer one its beginning is checked.
const maxWatched = 64 << 20

// watched keeps what is read of a body.
type watched struct {
	io.ReadCloser
	check func(body []byte, cut bool)
	once  sync.Once
	mu    sync.Mutex
	buf   bytes.Buffer
	cut   bool
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.mu.Lock()
	if w.buf.Len()+n <= maxWatched {
		w.buf.Write(p[:n])
	} else {
		w.cut = true
	}
	w.mu.Unlock()
	if err != nil {
		w.end(!errors.Is(err, io.EOF))
	}
	return n, err
}

func (w *watched) Close() error {
	w.end(true)
	return w.ReadCloser.Close()
}

func (w *watched) end(cut bool) {
	w.once.Do(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.check(w.buf.Bytes(), cut || w.cut)
	})
}
