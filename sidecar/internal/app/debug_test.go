package app_test

import (
	"net/http"
	"testing"

	"postamt/sidecar/internal/app"
)

// Deliveries are POSTs to wherever a client says, of whose answers the beginning is shown: another
// replica's profiles and metrics are not to be had so.
func TestNoDeliveryReadsMetricsOrProfiles(t *testing.T) {
	p := startRole(t, app.Producer, clusterFor(t), nil)
	for _, path := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/debug/pprof/goroutine"} {
		for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusMethodNotAllowed} {
			if got, _, err := p.try(method, p.metrics+path, ""); err != nil || got != want {
				t.Errorf("%s %s: %d, %v; want %d", method, path, got, err, want)
			}
		}
	}
}
