package app

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"net/http/pprof"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
)

// metricsRegistry is where the parts of a role register their metrics, and a scrape finds them.
type metricsRegistry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// registerProcess registers what every role has.
func registerProcess(reg prometheus.Registerer, role Role) {
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(role))
}

// writeMetrics writes whole families of gauges as text.
type writeMetrics func(io.Writer) error

// metricsHandler answers with what is registered, and with more, if not nil, that is not.
func metricsHandler(reg metricsRegistry, more writeMetrics) http.Handler {
	if more == nil {
		return promhttp.HandlerFor(reg, promhttp.HandlerOpts{Registry: reg, EnableOpenMetrics: true})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		families, err := reg.Gather()
		if err != nil {
			http.Error(w, "gather metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
		// The other formats are protobuf, which more cannot be.
		format := expfmt.NegotiateAccept(r.Header, expfmt.NewFormat(expfmt.TypeOpenMetrics), expfmt.NewFormat(expfmt.TypeTextPlain))
		w.Header().Set("Content-Type", string(format))
		out, end := io.Writer(w), func() error { return nil }
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			// Of 50 MB of much the same; the best compression would take as long as all the rest.
			fast, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
			out, end = fast, fast.Close
		}
		encoder := expfmt.NewEncoder(out, format)
		for _, f := range families {
			err = errors.Join(err, encoder.Encode(f))
		}
		err = errors.Join(err, more(out))
		if closer, ok := encoder.(expfmt.Closer); ok {
			err = errors.Join(err, closer.Close())
		}
		if err = errors.Join(err, end()); err != nil {
			panic(http.ErrAbortHandler) // too late for a status, and it must not look whole
		}
	})
}

// debugHandler serves what never goes through the proxy. It takes no POST: deliveries, which are
// POSTs to wherever a client says, reach the network that other replicas listen in.
func debugHandler(reg metricsRegistry, more writeMetrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metricsHandler(reg, more))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func buildInfo(role Role) prometheus.Collector {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "postamt_build_info", Help: "Always 1; the labels say what runs.",
	}, []string{"version", "role"})
	g.WithLabelValues(Version, string(role)).Set(1)
	return g
}
