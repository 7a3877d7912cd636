//go:build stack || static

package stacktest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// metric is a line of docs/metrics.md.
type metric struct {
	kind   string // "" of those that are only listed by name
	labels []string
}

var listed = regexp.MustCompile("`((?:go|process|promhttp|jvm|jmx)_\\w+)`")

// documentedMetrics reads docs/metrics.md. A name can be of both a sidecar and a broker.
func documentedMetrics(t *testing.T, root string) (sidecars, kafka map[string]metric) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	sidecars, kafka = make(map[string]metric), make(map[string]metric)
	into := sidecars
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "## Kafka") {
			into = kafka
		}
		if f := strings.Split(line, "|"); len(f) == 7 && strings.HasPrefix(f[1], " `") { // metric, type, unit, labels, meaning
			name := strings.Trim(f[1], " `")
			if _, twice := into[name]; twice {
				t.Errorf("docs/metrics.md has %s twice", name)
			}
			labels := strings.FieldsFunc(f[4], func(c rune) bool { return c == ',' || c == ' ' })
			into[name] = metric{kind: strings.TrimSpace(f[2]), labels: labels}
		} else if strings.HasPrefix(line, "`") {
			for _, name := range listed.FindAllStringSubmatch(line, -1) {
				into[name[1]] = metric{}
			}
		}
	}
	if len(sidecars) < 50 || len(kafka) < 50 {
		t.Fatalf("docs/metrics.md has %d metrics of the sidecars and %d of Kafka; this test expects more", len(sidecars), len(kafka))
	}
	return sidecars, kafka
}
