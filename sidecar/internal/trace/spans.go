package trace

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	oteltrace "go.opentelemetry.io/otel/trace"

	"postamt/sidecar/internal/event"
)

// Request is the span of a request that is being answered. A nil one is of a request without a span.
type Request struct {
	span   oteltrace.Span
	method string
	links  []oteltrace.Link
	max    int
}

// requestKey is where a request's context has its Request.
type requestKey struct{}

// Request begins the span of a request, within the trace that its headers name. They are taken out:
// what goes on from here names this span, and not the one before it. What Traefik, Prometheus and
// other replicas ask every few seconds has no span.
func (t *Tracer) Request(r *http.Request) (*http.Request, *Request) {
	if polled(r.URL.Path) {
		return r, nil
	}
	ctx := w3c.Extract(r.Context(), requestCarrier{propagation.HeaderCarrier(r.Header)})
	r.Header.Del(parentHeader)
	r.Header.Del(stateHeader)
	ctx, span := t.start(ctx, "HTTP", oteltrace.SpanKindServer) // whose name is known at its end
	one := &Request{span: span, method: r.Method, max: t.maxLinks}
	if span.IsRecording() {
		ctx = context.WithValue(ctx, requestKey{}, one)
		span.SetAttributes(semconv.URLPath(text(r.URL.Path)), semconv.URLScheme("http"))
		span.SetAttributes(server(r.Host)...)
		if agent := r.UserAgent(); agent != "" {
			span.SetAttributes(semconv.UserAgentOriginal(text(agent)))
		}
	}
	return r.WithContext(ctx), one
}

func polled(path string) bool {
	return path == "/health" || strings.HasPrefix(path, "/health/") || strings.HasPrefix(path, "/replica/")
}

// server are the attributes of host or host:port.
func server(authority string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(authority)
	if err != nil {
		return []attribute.KeyValue{semconv.ServerAddress(text(strings.Trim(authority, "[]")))}
	}
	n, _ := strconv.Atoi(port)
	return []attribute.KeyValue{semconv.ServerAddress(text(host)), semconv.ServerPort(n)}
}

// Link links the span of a request to what the records were made in that its client was given, up to
// MaxLinks of them.
func Link(ctx context.Context, records []event.Record) {
	r, ok := ctx.Value(requestKey{}).(*Request)
	if !ok {
		return
	}
	r.links = link(r.span, r.links, records, r.max)
}

// End ends the span of a request to a route that was answered with a status, and returns the trace's
// ID. method is from a closed set, of which "other" is any other one.
func (r *Request) End(method, route string, status int) (id string) {
	if r == nil {
		return ""
	}
	if r.span.IsRecording() {
		name := method
		if method == r.method {
			r.span.SetAttributes(semconv.HTTPRequestMethodKey.String(method))
		} else {
			name = "HTTP"
			r.span.SetAttributes(semconv.HTTPRequestMethodOther, semconv.HTTPRequestMethodOriginal(text(r.method)))
		}
		if route != "" {
			name += " " + route
			r.span.SetAttributes(semconv.HTTPRoute(route))
		}
		r.span.SetName(name)
		r.span.SetAttributes(semconv.HTTPResponseStatusCode(status))
		if status >= http.StatusInternalServerError {
			r.span.SetAttributes(semconv.ErrorTypeKey.String(strconv.Itoa(status)))
			r.span.SetStatus(codes.Error, "")
		}
	}
	r.span.End()
	return idOf(r.span.SpanContext())
}

// Send is the span of records that are being produced.
type Send struct {
	span          oteltrace.Span
	parent, state []byte // of the records' headers
	maxLinks      int

	mu      sync.Mutex
	links   []oteltrace.Link
	records int
	failed  int
	err     error // the last one
}

// Send begins the span of records that are produced to a topic, and has those go on with its trace
// that name none of their own. To that which the others name, the span has links.
func (t *Tracer) Send(ctx context.Context, topic string, records []event.Record) *Send {
	ctx, span := t.start(ctx, "send", oteltrace.SpanKindProducer)
	if span.IsRecording() {
		topic = text(topic)
		span.SetName("send " + topic)
		span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingOperationName("send"), semconv.MessagingOperationTypeSend, semconv.MessagingDestinationName(topic))
	}
	s := &Send{span: span, maxLinks: t.maxLinks}
	parent, state := Headers(ctx)
	s.parent, s.state = []byte(parent), []byte(state)
	for i := range records {
		s.Add(&records[i])
	}
	return s
}

// Add has one more record go on with the trace, or links the span to the one that it names.
func (s *Send) Add(r *event.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records++
	if !contextOf(r).IsValid() {
		goOn(r, s.parent, s.state)
	} else if s.span.IsRecording() {
		s.links = link(s.span, s.links, []event.Record{*r}, s.maxLinks)
	}
}

// Failed says that a record was not stored.
func (s *Send) Failed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed++
	s.err = err
}

// Done ends the span of records of which these are the results.
func (s *Send) Done(results []event.Result) {
	for i := range results {
		if results[i].Err != nil {
			s.Failed(results[i].Err)
		}
	}
	if len(results) == 1 && results[0].Err == nil && s.span.IsRecording() {
		s.span.SetAttributes(place(results[0].Place.Partition, results[0].Place.Offset)...)
	}
	s.End()
}

// End ends the span.
func (s *Send) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.span.IsRecording() {
		if s.records != 1 {
			s.span.SetAttributes(semconv.MessagingBatchMessageCount(s.records))
		}
		if s.failed > 0 {
			kind, msg := event.Internal, ""
			if ee, ok := errors.AsType[*event.Error](s.err); ok {
				kind, msg = ee.Kind, ee.Msg
			}
			s.span.SetAttributes(semconv.ErrorTypeKey.String(string(kind)), attribute.Int("postamt.records.failed", s.failed))
			s.span.SetStatus(codes.Error, text(msg))
		}
	}
	s.span.End()
}

func place(partition int32, offset int64) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.MessagingDestinationPartitionID(strconv.Itoa(int(partition))), semconv.MessagingKafkaOffset(int(offset))}
}

// Attempt is the span of one attempt to deliver a record. A nil one is of an attempt without a span.
type Attempt struct{ span oteltrace.Span }

// Attempt begins the span of an attempt, within the trace that the record names, or else that of ctx.
func (t *Tracer) Attempt(ctx context.Context, sub *event.Subscription, a event.Attempt) (context.Context, *Attempt) {
	if made := contextOf(a.Record); made.IsValid() {
		ctx = oteltrace.ContextWithRemoteSpanContext(ctx, made)
	}
	ctx, span := t.start(ctx, "deliver", oteltrace.SpanKindClient)
	if span.IsRecording() {
		name := text(sub.Name)
		span.SetName("deliver " + name)
		span.SetAttributes(semconv.MessagingSystemKafka, semconv.MessagingOperationName("deliver"), semconv.MessagingOperationTypeProcess,
			semconv.MessagingDestinationName(text(a.Origin.Topic)), semconv.MessagingConsumerGroupName(text(sub.Group())),
			semconv.HTTPRequestMethodKey.String(http.MethodPost),
			attribute.String("postamt.subscription", name), attribute.Int("postamt.attempt", a.Number))
		if a.Origin.Offset >= 0 { // not of the sample of a test
			span.SetAttributes(place(a.Origin.Partition, a.Origin.Offset)...)
		}
		if a.Number > 1 {
			span.SetAttributes(semconv.HTTPRequestResendCount(a.Number - 1))
		}
		if u, err := url.Parse(sub.URL); err == nil { // whose path and query may have secrets
			span.SetAttributes(server(u.Host)...)
		}
	}
	return ctx, &Attempt{span}
}

// End ends the span with what came of the attempt, and returns the trace's ID.
func (a *Attempt) End(out event.Outcome) (id string) {
	if a == nil {
		return ""
	}
	if a.span.IsRecording() {
		a.span.SetAttributes(attribute.String("postamt.verdict", string(out.Verdict)))
		kind := string(out.Verdict)
		if out.Status > 0 {
			a.span.SetAttributes(semconv.HTTPResponseStatusCode(out.Status))
			kind = strconv.Itoa(out.Status)
		}
		if out.Verdict != event.Delivered {
			a.span.SetAttributes(semconv.ErrorTypeKey.String(kind))
			a.span.SetStatus(codes.Error, text(out.Err))
		}
	}
	a.span.End()
	return idOf(a.span.SpanContext())
}
