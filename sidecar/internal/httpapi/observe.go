package httpapi

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/stream"
	"postamt/sidecar/internal/trace"
)

const (
	requestIDHeader = "X-Request-Id"
	maxRequestID    = 128
)

type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	inFlight prometheus.Gauge
	series   atomic.Pointer[map[seriesKey]series] // of requests and duration
	errors   *prometheus.CounterVec
	streams  prometheus.Gauge
	streamed *handed
	filtered *prometheus.CounterVec
	read     *handed

	forwarded *prometheus.CounterVec
	takenOver *prometheus.CounterVec
}

// newMetrics registers what every role has, and what a producer and a consumer have.
func newMetrics(reg prometheus.Registerer, parts Parts) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_http_requests_total", Help: "Requests by route pattern, method and status code.",
		}, []string{"route", "method", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postamt_http_request_duration_seconds", Help: "Time from a request's header to the end of its answer. Streams and waiting reads last as long as they are asked to.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"route", "method"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postamt_http_requests_in_flight", Help: "Requests that are being answered.",
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_http_errors_total", Help: "Requests that were answered with an error, by its kind: " + kinds() + ".",
		}, []string{"kind"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "postamt_streams", Help: "Open streams of this replica, of records that come in, too, and reads without a group: what MAX_STREAMS limits.",
		}),
		streamed: newHanded("stream", "postamt_stream_records_total", "Records sent over streams and given to reads without a group, by topic."),
		filtered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postamt_stream_filtered_records_total", Help: "Records that the filters of streams kept back, by topic and reason: no, missing (the filter asks for what the record does not have) or failed (it is neither true nor false).",
		}, []string{"topic", "reason"}),
		read: newHanded("session", "postamt_session_records_total", "Records given to pull sessions, by topic."),
	}
	m.forwarded = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postamt_session_requests_forwarded_total", Help: "Requests for sessions of other replicas, by what came of it: served, moved (it was elsewhere), unreachable, busy (it did not answer in time) or broken (the answer broke off, the client went away, or this replica stops).",
	}, []string{"result"})
	m.takenOver = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postamt_sessions_taken_over_total", Help: "Sessions that this replica has tried to take over, by what came of it: taken, lost (another replica was faster) or failed.",
	}, []string{"result"})
	for _, result := range []string{"served", "moved", "unreachable", "busy", "broken"} {
		m.forwarded.WithLabelValues(result)
	}
	for _, result := range []string{"taken", "lost", "failed"} {
		m.takenOver.WithLabelValues(result)
	}
	for kind := range statusOf { // from 0 on, so that the first error is an increase
		m.errors.WithLabelValues(string(kind))
	}
	reg.MustRegister(m.requests, m.duration, m.inFlight, m.errors)
	if parts.Producer != nil || parts.Sessions != nil {
		reg.MustRegister(m.streams)
	}
	if parts.Sessions != nil {
		reg.MustRegister(m.forwarded, m.takenOver, m.streamed.records, m.streamed.ages, m.filtered, m.read.records, m.read.ages, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "postamt_sessions", Help: "Pull sessions of this replica.",
		}, func() float64 { return float64(parts.Sessions.Len()) }))
	}
	return m
}

// kinds lists the kinds of errors that there are.
func kinds() string {
	var names []string
	for kind := range statusOf {
		names = append(names, string(kind))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// seriesKey holds what requests are counted by. All of it comes from closed sets.
type seriesKey struct {
	route, method string
	code          int
}

type series struct {
	requests prometheus.Counter
	duration prometheus.ExemplarObserver
}

// of finds the series of a request. Finding them by labels costs more than to count, and takes locks.
func (m *metrics) of(key seriesKey) series {
	known := m.series.Load()
	if known != nil {
		if s, ok := (*known)[key]; ok {
			return s
		}
	}
	s := series{
		m.requests.WithLabelValues(key.route, key.method, strconv.Itoa(key.code)),
		m.duration.WithLabelValues(key.route, key.method).(prometheus.ExemplarObserver), //nolint:forcetypeassert // every histogram is one
	}
	more := map[seriesKey]series{key: s}
	if known != nil {
		maps.Copy(more, *known)
	}
	m.series.CompareAndSwap(known, &more) // where another request was faster, a later one puts it there
	return s
}

// countFiltered counts what a stream's filter has kept back, and adds it to before.
func (m *metrics) countFiltered(topic string, now, before stream.Filtered) stream.Filtered {
	for reason, n := range map[string]int{"no": now.No, "missing": now.Missing, "failed": now.Failed} {
		if n > 0 {
			m.filtered.WithLabelValues(topic, reason).Add(float64(n))
		}
	}
	before.No += now.No
	before.Missing += now.Missing
	before.Failed += now.Failed
	if now.LastError != "" {
		before.LastError = now.LastError
	}
	return before
}

// levelOf says how loudly an error of a kind is logged: what a client did wrong is the
// client's to mend, an outage is logged by the health check, a bug is for us.
func levelOf(kind event.Kind) slog.Level {
	switch kind {
	case event.Internal:
		return slog.LevelError
	case event.Unavailable, event.TooMany, event.Forbidden: // the last may be Kafka's ACLs
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// observe gives each request an id, a deadline for its body, a line in the debug log, its metrics
// and, where there are traces, its span, and turns a panic into a 500.
func (s *Server) observe(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		s.metrics.inFlight.Inc()
		defer s.metrics.inFlight.Dec()

		id := r.Header.Get(requestIDHeader)
		if !validRequestID(id) {
			id = newRequestID()
		}
		w.Header().Set(requestIDHeader, id)
		if r.URL.Path != "/" { // every route takes a trailing slash
			sent := cmp.Or(r.URL.RawPath, r.URL.Path) // in which a slash of a name is %2F
			slashes := len(sent) - len(strings.TrimRight(sent, "/"))
			r.URL.Path = r.URL.Path[:len(r.URL.Path)-slashes]
			r.URL.RawPath = strings.TrimRight(r.URL.RawPath, "/")
			if r.URL.Path == "" {
				r.URL.Path = "/"
			}
		}
		if r.ContentLength != 0 {
			// Not the server's ReadTimeout: that would end streams and waiting reads too.
			_ = http.NewResponseController(w).SetReadDeadline(start.Add(s.opts.ReadTimeout))
		}
		var span *trace.Request
		if s.Tracer != nil {
			r, span = s.Tracer.Request(r)
		}
		rec := &recorder{ResponseWriter: w}
		aborted := s.guard(mux, rec, r)
		method := r.Method
		if !knownMethods[method] {
			method = "other"
		}
		traceID := span.End(method, r.Pattern, rec.status)
		if !rec.forwarded { // it counts where the client sent it
			of := s.metrics.of(seriesKey{r.Pattern, method, rec.status}) // the mux has set the pattern
			of.requests.Inc()
			of.duration.ObserveWithExemplar(time.Since(start).Seconds(), trace.Exemplar(traceID))
		}
		if s.log.Enabled(r.Context(), slog.LevelDebug) { // else the arguments are made for nothing
			s.log.DebugContext(r.Context(), "request", "request_id", id, "method", r.Method, "path", r.URL.Path, "status", rec.status, "duration", time.Since(start))
		}
		if aborted {
			panic(http.ErrAbortHandler) // net/http closes the connection
		}
	})
}

// guard serves a request. A panic becomes a 500, or aborted when an answer has been begun,
// which must not look whole then.
func (s *Server) guard(mux *http.ServeMux, rec *recorder, r *http.Request) (aborted bool) {
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			rec.status = statusOf[event.Gone]
			aborted = true
		default:
			aborted = rec.status != 0
			s.log.ErrorContext(r.Context(), "panic", "request_id", rec.Header().Get(requestIDHeader), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			if !aborted {
				s.fail(rec, r, fmt.Errorf("panic: %v", p))
			}
		}
	}()
	if r.RequestURI == "*" { // with any method; the mux would answer with a bare 400
		s.fail(rec, r, event.Errorf(event.NotFound, 0, "route", "there is nothing at *; a path begins with a slash"))
		return false
	}
	if escaped := r.URL.EscapedPath(); !strings.HasPrefix(escaped, "/") || path.Clean(escaped) != escaped {
		// The mux would redirect to the clean path, which a client that POSTs does not expect.
		s.fail(rec, r, event.Errorf(event.NotFound, 0, "route", "there is nothing at %s; a path has no empty, '.' or '..' segments", r.URL.Path))
		return false
	}
	mux.ServeHTTP(rec, r)
	return false
}

// knownMethods keeps the label's values few, whatever a client sends.
var knownMethods = map[string]bool{
	http.MethodGet: true, http.MethodHead: true, http.MethodPost: true, http.MethodPut: true,
	http.MethodPatch: true, http.MethodDelete: true, http.MethodOptions: true,
}

// validRequestID accepts what can go into a header and a log line unchanged.
func validRequestID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for _, c := range []byte(id) {
		if c < '!' || c > '~' {
			return false
		}
	}
	return true
}

// newRequestID makes an id that no other request has. It need not be a secret: the system's random
// source would take a tenth of the time of a small request.
func newRequestID() string {
	var id uuid.UUID
	binary.NativeEndian.PutUint64(id[:8], rand.Uint64()) //nolint:gosec // see above
	binary.NativeEndian.PutUint64(id[8:], rand.Uint64()) //nolint:gosec // see above
	id[6] = id[6]&0x0f | 0x40                            // version 4, random
	id[8] = id[8]&0x3f | 0x80                            // variant of RFC 9562
	return id.String()
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	status    int
	forwarded bool // another replica has sent the request, and proven it
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
