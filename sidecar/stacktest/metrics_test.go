//go:build stack

package stacktest

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	sampleLine = regexp.MustCompile(`^(\w+)(?:\{(.*)\})? \S+$`)
	labelName  = regexp.MustCompile(`(\w+)="(?:[^"\\]|\\.)*"`)
)

// exposed are the metrics in a scrape with type and labels, and how many series each has.
func exposed(t *testing.T, text string) (all map[string]metric, series map[string]int) {
	t.Helper()
	all, series = make(map[string]metric), make(map[string]int)
	kinds := make(map[string]string)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" {
			kinds[f[2]] = f[3]
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		is := sampleLine.FindStringSubmatch(strings.TrimSpace(line))
		if is == nil {
			t.Fatalf("a scrape has the line %q", line)
		}
		name := is[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && kinds[name] == "" && kinds[base] != "" {
				name = base
			}
		}
		m := metric{kind: cmp.Or(kinds[name], kinds[strings.TrimSuffix(name, "_total")]), labels: all[name].labels}
		for _, label := range labelName.FindAllStringSubmatch(is[2], -1) {
			if l := label[1]; !slices.Contains(m.labels, l) && (l != "le" || m.kind != "histogram") && (l != "quantile" || m.kind != "summary") {
				m.labels = append(m.labels, l)
			}
		}
		all[name] = m
		series[name]++
	}
	return all, series
}

func compareToDocs(t *testing.T, of string, got, docs map[string]metric) {
	t.Helper()
	if len(got) < 20 {
		t.Errorf("%s exposes %d metrics; this test expects more", of, len(got))
	}
	for name, m := range got {
		doc, ok := docs[name]
		if !ok {
			// The JVM's summaries are listed as the series that they are.
			_, ok = docs[name+"_count"]
		}
		switch {
		case !ok:
			t.Errorf("%s exposes %s, which docs/metrics.md does not have", of, name)
		case doc.kind != "" && doc.kind != m.kind:
			t.Errorf("%s exposes %s as a %s; docs/metrics.md has a %s", of, name, m.kind, doc.kind)
		case doc.kind != "":
			for _, l := range m.labels {
				if !slices.Contains(doc.labels, l) {
					t.Errorf("%s exposes %s with the label %s, which docs/metrics.md does not have", of, name, l)
				}
			}
		}
	}
}

// What the stack exposes while it works is what docs/metrics.md has, and Kafka's part of it is small.
func TestTheStackExposesWhatIsDocumented(t *testing.T) {
	sidecars, kafka := documentedMetrics(t, project.root)
	keepBusy(t)
	for _, role := range []string{"producer", "consumer", "monitor"} {
		for _, container := range containers(t, role) {
			got, _ := exposed(t, metrics(t, container))
			compareToDocs(t, role, got, sidecars)
		}
	}

	// What needs more than one broker, more than has happened here, or another version of Kafka.
	notHere := regexp.MustCompile(`brokerregistrationstate|(broker|controller)requesthandleravgidle|_requestmetrics_\w+timems`)
	var got map[string]metric
	var series map[string]int
	eventually(t, time.Minute, "Kafka exposes what is documented", func() error {
		got, series = exposed(t, compose(t, "exec", "-T", "prometheus", "wget", "-qO-", "http://kafka:9404/metrics"))
		for name := range kafka {
			if series[name] == 0 && series[strings.TrimSuffix(strings.TrimSuffix(name, "_count"), "_sum")] == 0 && !notHere.MatchString(name) {
				return fmt.Errorf("docs/metrics.md has %s, which Kafka does not expose", name)
			}
		}
		return nil
	})
	compareToDocs(t, "kafka", got, kafka)
	rest, topics := 0, 0
	for name, n := range series {
		switch {
		case name == "kafka_log_log_size": // one of each partition
		case strings.HasPrefix(name, "kafka_server_brokertopicmetrics_"):
			topics += n
		default:
			rest += n
		}
	}
	t.Logf("%d series of partitions, %d of topics, %d others", series["kafka_log_log_size"], topics, rest)
	if rest >= 1000 {
		t.Errorf("Kafka exposes %d series besides those of topics and partitions; want fewer than 1,000", rest)
	}
}
