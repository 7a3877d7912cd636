package app

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/event"
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
