package httpapi

import (
	"bytes"
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
//	408 nothing came for READ_TIMEOUT   413 a line too long, or too many empty ones   415 not packed as we know
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
		return &lineRecords{lines: pieceReader{src: body, max: int(s.opts.Limits.BodyBytes), end: lineEnd, what: "line"}, format: format}
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
	lines  pieceReader
	format restproxy.Format
}

func (l *lineRecords) next() (event.Record, *event.Error, error) {
	for empty := 0; ; {
		line, err := l.lines.next()
		if err != nil {
			return event.Record{}, nil, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			rec, bad := restproxy.DecodeLine(line, l.format)
			return rec, bad, nil
		}
		// One now and then shows that a client is still there; packed, there could be no end of them.
		if empty += len(line); empty > l.lines.max {
			return event.Record{}, nil, event.Errorf(event.TooLarge, 0, "read body", "there are more than %d bytes of empty lines (MAX_BODY_BYTES); send what comes after the last result with another request", l.lines.max)
		}
	}
}

func (l *lineRecords) ahead() int { return l.lines.ahead() }

// lineEnd finds the end of a line.
func lineEnd(b []byte) (int, error) { return bytes.IndexByte(b, '\n') + 1, nil }
