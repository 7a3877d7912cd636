package app

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// What is not registered stands between what is and the end, in each format and encoding.
func TestMetricsThatAreNotRegistered(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(buildInfo(Monitor))
	failing := false
	const more = "# HELP more A family.\n# TYPE more gauge\nmore{a=\"b\"} 1\n"
	srv := httptest.NewServer(metricsHandler(reg, func(w io.Writer) error {
		_, err := io.WriteString(w, more)
		if failing {
			return errors.New("broken")
		}
		return err
	}))
	defer srv.Close()
	get := func(accept string) (kind, body string, err error) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
		req.Header.Set("Accept", accept)
		resp, err := srv.Client().Do(req)
		if err != nil {
			return "", "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if !resp.Uncompressed {
			t.Errorf("%q: the answer was not compressed", accept)
		}
		return resp.Header.Get("Content-Type"), string(text), err
	}
	for accept, want := range map[string]struct{ kind, end string }{
		"": {"text/plain; version=0.0.4", more},
		"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5": {"application/openmetrics-text; version=1.0.0", more + "# EOF\n"},
		// Protobuf first, as Prometheus asks where it takes native histograms.
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,text/plain;version=0.0.4;q=0.3": {"text/plain; version=0.0.4", more},
	} {
		kind, body, err := get(accept)
		if err != nil || !strings.HasPrefix(kind, want.kind) || !strings.HasPrefix(body, "# HELP postamt_build_info ") || !strings.HasSuffix(body, want.end) {
			t.Errorf("%q: %s %q, %v; want %+v", accept, kind, body, err, want)
		}
	}
	failing = true
	if kind, body, err := get(""); err == nil {
		t.Errorf("an answer that broke off looks whole: %s %q", kind, body)
	}
}
