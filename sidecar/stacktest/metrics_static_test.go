//go:build static

package stacktest

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// others are metrics of exporters that are documented where they come from, and what Prometheus
// makes itself.
var others = regexp.MustCompile(`^(traefik|prometheus|alertmanager|node)_|^(up|ALERTS|scrape_\w+)$`)

// Rules and dashboards ask for nothing that docs/metrics.md does not have.
func TestQueriesAskForDocumentedMetrics(t *testing.T) {
	sidecars, kafka := documentedMetrics(t, root)
	queries := allQueries(t, root)
	recorded := make(map[string]bool)
	for _, q := range queries {
		recorded[q.record] = true
	}
	known := func(name string) bool {
		for _, metrics := range []map[string]metric{sidecars, kafka} {
			if m, ok := metrics[name]; ok && m.kind != "histogram" {
				return true
			}
			base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			if m, ok := metrics[base]; ok && base != name && (m.kind == "histogram" || m.kind == "") {
				return true
			}
		}
		return recorded[name] || others.MatchString(name)
	}
	asked := make(map[string]bool)
	for _, q := range queries {
		for _, name := range metricsOf(q.expr) {
			if !known(name) && !asked[name] {
				t.Errorf("%s asks for %s, which docs/metrics.md does not have: %s", q.from, name, q.expr)
			}
			asked[name] = true
		}
	}
	if len(asked) < 100 {
		t.Errorf("only %d metrics are asked for", len(asked))
	}
	// What the JMX exporter lets through is asked for, but for few.
	var unused []string
	for name := range kafka {
		if strings.HasPrefix(name, "kafka_") && !asked[name] {
			unused = append(unused, name)
		}
	}
	if slices.Sort(unused); len(unused) > 30 {
		t.Errorf("nothing asks for %d of the metrics that prometheus/jmx-kafka.yml lets through; want a few: %v", len(unused), unused)
	}
}
