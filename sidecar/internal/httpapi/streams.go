package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/filter"
	"postamt/sidecar/internal/restproxy"
	"postamt/sidecar/internal/stream"
)

// streamTopic serves GET /streams/{topic}?from=&filter=&partition=&format=: records as they
// come, as Server-Sent Events, or as NDJSON when that is what Accept asks for. It commits
// nothing; each event's id is a cursor, from which ?from= or Last-Event-ID goes on without a
// record lost or repeated. Records that the filter does not want, or that it cannot be
// evaluated for, are left out and counted, and move the cursor that each heartbeat sends.
//
//	200 until the client goes away   400 unreadable parameter   404 no such topic
//	406 neither of the two forms     422 a cursor of another topic, a filter with a mistake
//	429 too many streams
func (s *Server) streamTopic(w http.ResponseWriter, r *http.Request) error {
	req, format, err := s.streamRequest(r)
	if err != nil {
		return err
	}
	lines, err := wantsLines(r.Header.Values("Accept"))
	if err != nil {
		return err
	}
	release, err := s.openStream()
	if err != nil {
		return err
	}
	defer release()
	st, err := s.Streams.Open(r.Context(), req)
	if err != nil {
		return err
	}
	defer st.Close()

	out := &streamWriter{send: func(b []byte) error { return s.send(w, b) }, lines: lines, format: format}
	contentType := "text/event-stream"
	if lines {
		contentType = "application/x-ndjson"
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)

	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, func() {
		cancel()
		// A write that waits for a client that has stopped reading.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(lastWrite))
	})()
	s.pump(ctx, st, out)
	return nil
}

// openStream counts a stream, or a read without a group, which needs as much while it lasts.
func (s *Server) openStream() (release func(), err error) {
	if !s.streams.TryAcquire(1) {
		return nil, event.Errorf(event.TooMany, 0, "open stream", "this replica has as many streams as it may (MAX_STREAMS=%d); close some", s.opts.Limits.Streams)
	}
	s.metrics.streams.Inc()
	return func() {
		s.streams.Release(1)
		s.metrics.streams.Dec()
	}, nil
}

// pump writes what a stream gives until ctx ends or the client is gone. It fetches no more
// than it can write: a client that reads slowly slows its own stream only.
func (s *Server) pump(ctx context.Context, st *stream.Stream, out *streamWriter) {
	// The first id is sent at once, so that "latest" holds from now on even if the first
	// record comes while the client is away.
	if out.events(st.Opening()) != nil || out.heartbeat(st.Cursor(), stream.Filtered{}) != nil {
		return
	}
	beat := time.Now()
	var filtered stream.Filtered // since the last heartbeat
	for ctx.Err() == nil {
		turn, cancel := context.WithDeadline(ctx, beat.Add(s.opts.StreamHeartbeat))
		events, err := st.Next(turn)
		cancel()
		if out.events(events) != nil {
			return // the client is gone
		}
		now := time.Now()
		s.metrics.streamed.events(st.Topic(), events, now)
		s.linkEvents(ctx, events)
		filtered = s.metrics.countFiltered(st.Topic(), st.Filtered(), filtered)
		if now.Sub(beat) >= s.opts.StreamHeartbeat && ctx.Err() == nil {
			beat = now
			if out.heartbeat(st.Cursor(), filtered) != nil {
				return
			}
			filtered = stream.Filtered{}
			err = errors.Join(err, st.Grow(ctx)) // which finds out that a topic was deleted, too
		}
		switch {
		case err == nil, ctx.Err() != nil:
		case asError(err).Kind != event.Unavailable:
			out.fail(asError(err))
			return
		default: // Kafka is away: its client keeps trying, and so does this
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

func (s *Server) streamRequest(r *http.Request) (stream.Request, restproxy.Format, error) {
	req := stream.Request{Topic: r.PathValue("topic"), Partition: event.AnyPartition}
	params, err := query(r, "from", "filter", "partition", "format")
	if err != nil {
		return req, "", err
	}
	req.From = params.Get("from")
	// What a browser's EventSource sends when it connects again.
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		req.From = id
	}
	if text := params.Get("partition"); text != "" {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < 0 {
			return req, "", event.Errorf(event.Invalid, 0, "open stream", "partition is %q; it must be a number from 0 up", text)
		}
		req.Partition = int32(n)
	}
	if params.Has("filter") {
		if req.Filter, err = filter.Compile(params.Get("filter")); err != nil {
			return req, "", err
		}
	}
	text := params.Get("format")
	if text == "" {
		text = string(restproxy.JSON)
	}
	format, err := restproxy.ParseFormat(text)
	return req, format, err
}

// wantsLines tells whether Accept asks for NDJSON rather than Server-Sent Events.
func wantsLines(accept []string) (bool, error) {
	header := strings.ToLower(strings.Join(accept, ","))
	switch {
	case strings.Contains(header, "application/x-ndjson"):
		return true, nil
	case header == "", strings.Contains(header, "text/event-stream"), strings.Contains(header, "*/*"), strings.Contains(header, "text/*"):
		return false, nil
	}
	return false, event.Errorf(event.NotAcceptable, 0, "open stream", "a stream is text/event-stream or application/x-ndjson, and Accept is %s", header)
}

// streamWriter writes events in one of the two forms.
type streamWriter struct {
	send   func([]byte) error
	lines  bool
	format restproxy.Format
	buf    []byte
}

// heartbeat shows that the stream lives, and moves the client's cursor. It says what the
// filter could not decide on, which would else look like records that do not come.
func (o *streamWriter) heartbeat(cursor string, filtered stream.Filtered) error {
	if o.lines {
		line, _ := json.Marshal(struct {
			Cursor  string `json:"cursor"`
			Missing int    `json:"filter_missing,omitempty"`
			Failed  int    `json:"filter_failed,omitempty"`
			Error   string `json:"filter_error,omitempty"`
		}{cursor, filtered.Missing, filtered.Failed, filtered.LastError})
		o.buf = append(append(o.buf, line...), '\n')
		return o.flush()
	}
	o.buf = append(o.buf, ": "...)
	if filtered.Missing > 0 || filtered.Failed > 0 {
		o.buf = fmt.Appendf(o.buf, "filter: %d records lack what it asks for, %d failed", filtered.Missing, filtered.Failed)
		if filtered.LastError != "" {
			o.buf = append(append(o.buf, "; "...), strings.Join(strings.Fields(filtered.LastError), " ")...)
		}
	}
	o.buf = append(append(append(o.buf, "\nid: "...), cursor...), "\n\n"...)
	return o.flush()
}

func (o *streamWriter) events(events []stream.Event) error {
	for _, e := range events {
		switch {
		case o.lines && e.Record != nil:
			o.buf = append(restproxy.AppendRecord(o.buf, e.Record, o.format), '\n')
		case o.lines:
			gap, _ := json.Marshal(map[string]stream.Gap{"gap": e.Gap})
			o.buf = append(append(o.buf, gap...), '\n')
		case e.Record != nil:
			o.buf = append(append(append(o.buf, "id: "...), e.Cursor...), "\ndata: "...)
			o.buf = append(restproxy.AppendRecord(o.buf, e.Record, o.format), "\n\n"...)
		default:
			gap, _ := json.Marshal(e.Gap)
			o.buf = append(append(append(o.buf, "id: "...), e.Cursor...), "\nevent: gap\ndata: "...)
			o.buf = append(append(o.buf, gap...), "\n\n"...)
		}
		if len(o.buf) >= sendStep { // a poll may have given megabytes
			if err := o.flush(); err != nil {
				return err
			}
		}
	}
	return o.flush()
}

// fail is the last that a client hears of a stream that cannot go on.
func (o *streamWriter) fail(err *event.Error) {
	body, _ := json.Marshal(errorBody{codeOf(err), err.Msg})
	if o.lines {
		o.buf = append(append(append(o.buf, `{"error":`...), body...), "}\n"...)
	} else {
		o.buf = append(append(append(o.buf, "event: error\ndata: "...), body...), "\n\n"...)
	}
	_ = o.flush() // it is over either way
}

func (o *streamWriter) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	err := o.send(o.buf)
	if o.buf = o.buf[:0]; cap(o.buf) > maxKeptBuffer {
		o.buf = nil
	}
	return err
}

// maxKeptBuffer is how much memory an idle stream keeps for its next write.
const maxKeptBuffer = 64 << 10
