package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// Listener gives our form to the errors that net/http answers by itself, before there is a
// request that a handler could see: a header that is too large or is none. It makes deadlines
// cheap, too (see deadlineConn).
func Listener(ln net.Listener, maxHeaderBytes int) net.Listener {
	return &listener{ln, maxHeaderBytes}
}

type listener struct {
	net.Listener
	maxHeaderBytes int
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{newDeadlineConn(c), l.maxHeaderBytes}, nil
}

type conn struct {
	*deadlineConn
	maxHeaderBytes int
}

// CloseWrite says that nothing more is sent. net/http looks for it: a client that is still sending
// gets its answer then, and not a reset of its connection.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

const (
	// What net/http writes, whole and in one call; no handler of ours answers with text/plain.
	// Here and below the line's end matters: a write may begin anywhere in a body, too, where
	// clients' records are, but those are JSON in every answer, which holds no bare CR or LF.
	plainError = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	// And what it answers to an Expect that it does not know, which no handler of ours does.
	expectationFailed = "417 Expectation Failed\r\n"
)

// Write sends bytes, or our form of an error.
func (c *conn) Write(b []byte) (int, error) {
	const statusAt = len("HTTP/1.1 ") // or 1.0
	if !bytes.HasPrefix(b, []byte("HTTP/1.")) || len(b) < statusAt+3 || b[statusAt] < '4' ||
		!bytes.Contains(b[:min(len(b), 256)], []byte(plainError)) && !bytes.HasPrefix(b[statusAt:], []byte(expectationFailed)) {
		return c.deadlineConn.Write(b)
	}
	status, _ := strconv.Atoi(string(b[statusAt : statusAt+3]))
	var msg string
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		msg = fmt.Sprintf("the request's header is larger than %d bytes (MAX_HEADER_BYTES)", c.maxHeaderBytes)
	case http.StatusExpectationFailed:
		msg = "the request's Expect is not known; known is 100-continue"
	case http.StatusNotImplemented:
		status, msg = http.StatusBadRequest, "the request's Transfer-Encoding is not known; known is chunked"
	default:
		status, msg = http.StatusBadRequest, "the request cannot be read as HTTP/1.1"
		if _, why, ok := bytes.Cut(b[bytes.Index(b, []byte(plainError))+len(plainError):], []byte(": ")); ok {
			msg += ": " + string(why)
		}
	}
	body, _ := json.Marshal(errorBody{status, msg})
	answer := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s: %s\r\nConnection: close\r\n\r\n%s\n",
		status, http.StatusText(status), len(body)+1, requestIDHeader, newRequestID(), body)
	if _, err := c.deadlineConn.Write(answer); err != nil {
		return 0, err
	}
	return len(b), nil
}
