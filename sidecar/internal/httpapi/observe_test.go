package httpapi

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestRequestIDsAreRandomUUIDs(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for range 10_000 {
		id := newRequestID()
		if u, err := uuid.Parse(id); err != nil || u.Version() != 4 || u.Variant() != uuid.RFC4122 || seen[id] {
			t.Fatalf("%s: %v; want a random UUID that has not been there", id, err)
		}
		seen[id] = true
	}
}

func TestRequestsAreCountedByWhatTheyAre(t *testing.T) {
	t.Parallel()
	m := newMetrics(prometheus.NewRegistry(), Parts{})
	var counting sync.WaitGroup
	for range 4 {
		counting.Go(func() {
			for i := range 1000 {
				m.of(seriesKey{"/a", "GET", 200 + i%2}).requests.Inc()
				m.of(seriesKey{"/b", "PUT", 200}).requests.Inc()
				m.of(seriesKey{"/b", "PUT", 200}).duration.ObserveWithExemplar(1, nil)
			}
		})
	}
	counting.Wait()
	const want = `# HELP postamt_http_requests_total Requests by route pattern, method and status code.
# TYPE postamt_http_requests_total counter
postamt_http_requests_total{code="200",method="GET",route="/a"} 2000
postamt_http_requests_total{code="201",method="GET",route="/a"} 2000
postamt_http_requests_total{code="200",method="PUT",route="/b"} 4000
`
	if err := testutil.CollectAndCompare(m.requests, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(m.duration); n != 2 {
		t.Errorf("%d series of durations; want those of two routes", n)
	}
}
