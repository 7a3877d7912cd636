package app

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/httpapi"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/trace"
)

// newTracer makes what traces a role, or nil where there is no endpoint for traces.
func newTracer(cfg config.Traces, role Role, log *slog.Logger, reg prometheus.Registerer) (*trace.Tracer, error) {
	if !cfg.On() {
		return nil, nil //nolint:nilnil // which is what no tracer is everywhere
	}
	o, err := cfg.Options()
	if err != nil {
		return nil, err
	}
	o.Service, o.Version = cmp.Or(o.Service, "postamt-"+string(role)), Version
	tracer, err := trace.New(o, log, reg)
	if err == nil {
		log.Info("tracing", "endpoint", o.Endpoint, "sampler", o.Sampler.Name, "ratio", o.Sampler.Ratio)
	}
	return tracer, err
}

// lastSpans is how long a replica that stops waits at most for the collector.
const lastSpans = 2 * time.Second

// closeTracer sends the last spans, until stopBy.
func closeTracer(ctx context.Context, tracer *trace.Tracer, stopBy time.Time) {
	if latest := time.Now().Add(lastSpans); stopBy.After(latest) {
		stopBy = latest
	}
	bounded, cancel := context.WithDeadline(context.WithoutCancel(ctx), stopBy)
	defer cancel()
	tracer.Close(bounded)
}

// tracedProducer makes a span of what each request produces.
type tracedProducer struct {
	*kafka.Producer
	tracer *trace.Tracer
}

// Produce is httpapi.Producer's.
func (p tracedProducer) Produce(ctx context.Context, until time.Time, records []event.Record) []event.Result {
	if len(records) == 0 {
		return nil
	}
	span := p.tracer.Send(ctx, records[0].Topic, records)
	results := p.Producer.Produce(ctx, until, records)
	span.Done(results)
	return results
}

// OpenStream makes a stream with one span, from the first record to the last acknowledgement.
func (p tracedProducer) OpenStream(window int, reported func(size int, err error)) httpapi.RecordStream {
	s := &tracedStream{tracer: p.tracer}
	s.open.Store(1) // until it is closed
	s.RecordStream = p.Stream(window, func(size int, err error) {
		if err != nil {
			s.span.Failed(err)
		}
		reported(size, err)
		s.less()
	})
	return s
}

type tracedStream struct {
	httpapi.RecordStream
	tracer *trace.Tracer
	span   *trace.Send // from the first record on
	open   atomic.Int64
	once   sync.Once
}

func (s *tracedStream) Send(ctx context.Context, r event.Record) error {
	if s.span == nil {
		s.span = s.tracer.Send(ctx, r.Topic, nil)
	}
	s.span.Add(&r)
	s.open.Add(1)
	err := s.RecordStream.Send(ctx, r)
	if err != nil {
		s.span.Failed(err)
		s.less()
	}
	return err
}

// less is called once for each record that was sent, and once at the end.
func (s *tracedStream) less() {
	if s.open.Add(-1) == 0 && s.span != nil {
		s.span.End()
	}
}

func (s *tracedStream) Close() {
	s.RecordStream.Close()
	s.once.Do(s.less)
}

func (s *tracedStream) Finish(ctx context.Context) {
	s.RecordStream.Finish(ctx)
	s.once.Do(s.less)
}
