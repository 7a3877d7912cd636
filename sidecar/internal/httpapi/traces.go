package httpapi

import (
	"context"
	"sync"
	"sync/atomic"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/stream"
	"postamt/sidecar/internal/trace"
)

// link links a request's span to what the records were made in that its client was given.
func (s *Server) link(ctx context.Context, records []event.Record) {
	if s.Tracer != nil {
		trace.Link(ctx, records)
	}
}

// linkEvents is link of a stream's events.
func (s *Server) linkEvents(ctx context.Context, events []stream.Event) {
	if s.Tracer == nil {
		return
	}
	for _, e := range events {
		if e.Record != nil {
			trace.Link(ctx, []event.Record{*e.Record})
		}
	}
}

// recordStream opens a RecordStream. mark must be called with each record before it is sent, and
// before its size counts: where there are traces it gives it the header of the one span that the
// stream has, from the first record to the last acknowledgement.
func (s *Server) recordStream(ctx context.Context, window int, reported func(size int, err error)) (rs RecordStream, mark func(*event.Record)) {
	if s.Tracer == nil {
		return s.OpenStream(window, reported), func(*event.Record) {}
	}
	t := &tracedStream{}
	t.open.Store(1) // until it is closed
	t.RecordStream = s.OpenStream(window, func(size int, err error) {
		if err != nil {
			t.span.Failed(err)
		}
		reported(size, err)
		t.less()
	})
	return t, func(r *event.Record) {
		if t.span == nil {
			t.span = s.Tracer.Send(ctx, r.Topic, nil)
		}
		t.span.Add(r)
	}
}

type tracedStream struct {
	RecordStream
	span *trace.Send // from the first record on
	open atomic.Int64
	once sync.Once
}

func (t *tracedStream) Send(ctx context.Context, r event.Record) error {
	t.open.Add(1)
	err := t.RecordStream.Send(ctx, r)
	if err != nil {
		t.span.Failed(err)
		t.less()
	}
	return err
}

// less is called once for each record that was sent, and once at the end.
func (t *tracedStream) less() {
	if t.open.Add(-1) == 0 && t.span != nil {
		t.span.End()
	}
}

func (t *tracedStream) Close() {
	t.RecordStream.Close()
	t.once.Do(t.less)
}

func (t *tracedStream) Finish(ctx context.Context) {
	t.RecordStream.Finish(ctx)
	t.once.Do(t.less)
}
