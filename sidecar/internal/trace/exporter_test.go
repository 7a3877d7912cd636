package trace_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/trace"
	"postamt/sidecar/internal/trace/tracetest"
)

// A collector may take all spans with a warning, or only some of them.
func TestWhatTheCollectorTookIsCounted(t *testing.T) {
	for name, tc := range map[string]struct {
		rejected         int64
		says             string
		exported, failed float64
		log              string
	}{
		"a warning":        {0, "use v2", 3, 0, `msg="the collector has taken all spans, with a warning" warning="use v2"`},
		"some":             {2, "too old", 1, 2, `msg="spans of traces are lost" spans=2`},
		"without a word":   {1, "", 2, 1, `msg="spans of traces are lost" spans=1`},
		"more than it had": {7, "", 0, 3, `msg="spans of traces are lost" spans=3`},
		"fewer than none":  {-7, "what?", 3, 0, `warning=what?`},
	} {
		t.Run(name, func(t *testing.T) {
			c := tracetest.Open(t)
			c.Partly(tc.rejected, tc.says)
			o := options(c)
			o.Delay = time.Hour // until it is closed: one batch
			reg := prometheus.NewRegistry()
			var log bytes.Buffer
			tr, err := trace.New(o, slog.New(slog.NewTextHandler(&log, nil)), reg)
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				_, span := tr.Request(request(t, http.MethodGet, "/topics", sampled))
				span.End("GET", "/topics", 200)
			}
			tr.Close(t.Context())
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]float64)
			for _, m := range families[0].GetMetric() {
				got[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
			if got["exported"] != tc.exported || got["failed"] != tc.failed || got["dropped"] != 0 {
				t.Errorf("the counters are %v, want %v exported and %v failed", got, tc.exported, tc.failed)
			}
			if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), tc.log) {
				t.Errorf("the log is\n%s\nwant one line with %s", log.String(), tc.log)
			}
		})
	}
}
