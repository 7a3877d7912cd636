package httpapi

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

const contentTypeNDJSON = "application/x-ndjson"

// produceLines serves POST /topics/{topic}/records with NDJSON: one record a line, read and
// produced while the body arrives. The answer, NDJSON too, begins after the end of the body
// and has one line for each record, in their order ({"partition","offset"}, or {"error_code",
// "message"} of one that is not stored), and {"received","stored","failed"} as its last line. A
// line that is no record fails alone; empty lines count for nothing.
//
//	200 each record has its result   400 body not whole   404 no such topic
//	408 nothing came for READ_TIMEOUT   413 a line too long   415 not packed as we know
//	422 over MAX_STREAM_RECORDS, or a parameter not allowed   429 over a limit
//	503 Kafka out of reach, or this replica is to stop; see Retry-After
//
// Where a body was not read to its end, the status and the last line's error_code and message say
// why, and the results before it say what was stored: what comes after them must be sent again.
// Where there are no results, or Kafka took not one record, the answer is an error as everywhere.
func (s *Server) produceLines(w http.ResponseWriter, r *http.Request) error {
	params, err := query(r, "format")
	if err != nil {
		return err
	}
	format := restproxy.JSON
	if params.Has("format") {
		if format, err = restproxy.ParseFormat(params.Get("format")); err != nil {
			return err
		}
	}
	topic := r.PathValue("topic")
	if err := s.checkPlace(r.Context(), topic, event.AnyPartition); err != nil {
		return err
	}
	return s.receive(w, r, topic, resultBytes, func(body io.Reader) recordReader {
		return &lineRecords{lines: lineReader{src: body, max: int(s.opts.Limits.BodyBytes)}, format: format}
	}, func(u *upload) { s.answerLines(w, u) })
}

func (s *Server) answerLines(w http.ResponseWriter, u *upload) {
	status := http.StatusOK
	if u.ended != nil {
		status = statusOf[u.ended.Kind]
	}
	w.Header().Set("Content-Type", contentTypeNDJSON)
	w.WriteHeader(status)
	stored := 0
	b := make([]byte, 0, sendStep)
	for i, result := range u.stream.Results() {
		if result.Err == nil {
			stored++
		}
		b = restproxy.AppendLine(b, i+1, result, errorOf)
		if len(b) >= sendStep/2 {
			if s.send(w, b) != nil {
				return // nobody reads it
			}
			b = b[:0]
		}
	}
	b = fmt.Appendf(b, `{"received":%d,"stored":%d,"failed":%d`, u.received, stored, u.received-stored)
	if u.ended != nil {
		b = append(b, ',')
		b = append(b, restproxy.AppendError(nil, codeOf(u.ended), u.ended.Msg)[1:]...)
	} else {
		b = append(b, '}')
	}
	_ = s.send(w, append(b, '\n'))
}

// errorOf is what one record's result says of its error.
func errorOf(err error) (code int, msg string) {
	ee := asError(err)
	return codeOf(ee), ee.Msg
}

// lineRecords reads records from lines.
type lineRecords struct {
	lines  lineReader
	format restproxy.Format
}

func (l *lineRecords) next() (event.Record, *event.Error, error) {
	for {
		line, err := l.lines.next()
		if err != nil {
			return event.Record{}, nil, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			rec, bad := restproxy.DecodeLine(line, l.format)
			return rec, bad, nil
		}
	}
}

func (l *lineRecords) ahead() int { return l.lines.end - l.lines.start }

// lineReader splits what it reads into lines, of at most max bytes.
type lineReader struct {
	src        io.Reader
	max        int
	buf        []byte
	start, end int // of what was read and not given
	searched   int // of that, without a line's end
	err        error
}

// next gives the next line without its end, valid until the next call. What has no line's end
// is a line at the body's end only: where a body breaks off, it may be half of one.
func (l *lineReader) next() ([]byte, error) {
	if l.start == l.end && len(l.buf) > uploadBuffer {
		*l = lineReader{src: l.src, max: l.max, err: l.err} // one long line is no reason to keep so much
	}
	for {
		if i := bytes.IndexByte(l.buf[l.start+l.searched:l.end], '\n'); i >= 0 {
			return l.take(l.searched+i, 1)
		}
		l.searched = l.end - l.start
		switch {
		case l.searched > l.max:
			return l.take(l.searched, 0) // which fails
		case errors.Is(l.err, io.EOF) && l.searched > 0:
			return l.take(l.searched, 0)
		case l.err != nil:
			return nil, l.err
		}
		if l.start > 0 {
			l.end = copy(l.buf, l.buf[l.start:l.end])
			l.start = 0
		}
		if l.end == len(l.buf) {
			grown := make([]byte, max(uploadBuffer, min(2*len(l.buf), l.max+2)))
			copy(grown, l.buf)
			l.buf = grown
		}
		var n int
		n, l.err = l.src.Read(l.buf[l.end:])
		l.end += n
	}
}

func (l *lineReader) take(n, separator int) ([]byte, error) {
	if n > l.max {
		return nil, event.Errorf(event.TooLarge, 0, "read body", "a line is longer than %d bytes (MAX_BODY_BYTES); send what comes after the last result with another request", l.max)
	}
	line := l.buf[l.start : l.start+n]
	l.start += n + separator
	l.searched = 0
	return line, nil
}
