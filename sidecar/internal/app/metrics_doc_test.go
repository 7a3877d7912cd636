package app

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/config"
)

var update = flag.Bool("update", false, "write the tables of docs/metrics.md anew")

// recorder is a registry that remembers what was registered.
type recorder struct {
	*prometheus.Registry
	mu         sync.Mutex
	collectors []prometheus.Collector
}

func (r *recorder) Register(c prometheus.Collector) error {
	r.mu.Lock()
	r.collectors = append(r.collectors, c)
	r.mu.Unlock()
	return r.Registry.Register(c)
}

func (r *recorder) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		if err := r.Register(c); err != nil {
			panic(err)
		}
	}
}

// documented is a metric as docs/metrics.md has it.
type documented struct {
	name, kind, labels, help string
	roles                    []string
}

var described = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), unit: "\w*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// metrics are those that were registered, with or without samples.
func (r *recorder) metrics(t *testing.T) []documented {
	t.Helper()
	var all []documented
	for _, c := range r.collectors {
		kinds := make(map[string]string) // of those that have samples
		samples := make(chan prometheus.Metric)
		go func() {
			defer close(samples)
			c.Collect(samples)
		}()
		for m := range samples {
			var out dto.Metric
			if err := m.Write(&out); err != nil {
				t.Fatal(err)
			}
			switch {
			case out.Counter != nil:
				kinds[m.Desc().String()] = "counter"
			case out.Histogram != nil:
				kinds[m.Desc().String()] = "histogram"
			case out.Summary != nil:
				kinds[m.Desc().String()] = "summary"
			}
		}
		descs := make(chan *prometheus.Desc)
		go func() {
			defer close(descs)
			c.Describe(descs)
		}()
		for d := range descs {
			is := described.FindStringSubmatch(d.String())
			if is == nil {
				t.Fatalf("client_golang says %s of a metric; this test expects another form", d)
			}
			m := documented{kind: kinds[d.String()]}
			for at, text := range map[int]*string{1: &m.name, 2: &m.help} {
				if _, err := fmt.Sscanf(is[at], "%q", text); err != nil {
					t.Fatal(d, err)
				}
			}
			labels := strings.FieldsFunc(is[4], func(c rune) bool { return c == ',' })
			for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(is[3], -1) {
				labels = append(labels, label[1])
			}
			slices.Sort(labels)
			m.labels = strings.Join(labels, ", ")
			switch c.(type) {
			case *prometheus.CounterVec:
				m.kind = "counter"
			case *prometheus.HistogramVec:
				m.kind = "histogram"
			default:
				if m.kind == "" && strings.HasSuffix(m.name, "_total") {
					m.kind = "counter" // has none yet
				}
			}
			m.kind = cmp.Or(m.kind, "gauge")
			all = append(all, m)
		}
	}
	return all
}

// registered starts a role, and tells what it has registered once it serves.
func registered(t *testing.T, role string, environ map[string]string) []documented {
	t.Helper()
	all := map[string]string{"HTTP_ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0", "SHUTDOWN_LISTEN_GRACE": "0s", "SHUTDOWN_TIMEOUT": "10s"}
	maps.Copy(all, environ)
	cfg, err := config.Load(all)
	if err != nil {
		t.Fatal(err)
	}
	reg, log := &recorder{Registry: prometheus.NewRegistry()}, slog.New(slog.DiscardHandler)
	ctx, stop := context.WithCancel(t.Context())
	serving, ended := make(chan struct{}), make(chan error, 1)
	ready := func(_, _ net.Addr) { close(serving) }
	go func() {
		if role == "containers" {
			ended <- runContainers(ctx, cfg, log, reg, ready)
		} else {
			ended <- run(ctx, Role(role), cfg, log, reg, ready)
		}
	}()
	select {
	case <-serving:
	case err := <-ended:
		t.Fatalf("%s: %v", role, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s does not serve", role)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("%s: %v", role, err)
	}
	return reg.metrics(t)
}

// docs/metrics.md has every metric that a role registers, and no other; -update makes it so.
func TestEveryMetricIsDocumented(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "a", "_postamt.sessions"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	environ := map[string]string{
		"KAFKA_BOOTSTRAP_SERVERS": strings.Join(cluster.ListenAddrs(), ","), "CONTAINERS_ENGINE": "http://127.0.0.1:1",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", // some metrics are of traces
	}
	roles := []string{"producer", "consumer", "monitor", "containers"}
	byName := make(map[string]*documented)
	for _, role := range roles {
		for _, m := range registered(t, role, environ) {
			known, ok := byName[m.name]
			if !ok {
				known = &m
				byName[m.name] = known
			}
			if known.kind != m.kind || known.labels != m.labels || known.help != m.help {
				t.Errorf("%s is %+v of one part and %+v of another", m.name, known, m)
			}
			if !slices.Contains(known.roles, role) {
				known.roles = append(known.roles, role)
			}
		}
	}

	const file, begin, end = "../../../docs/metrics.md", "<!-- begin: of the sidecars -->\n", "<!-- end: of the sidecars -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	old, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the tables, between %q and %q", file, begin, end)
	}
	want := tables(byName)
	if *update {
		if err := os.WriteFile(file, slices.Concat(before, []byte(begin), want, []byte(end), after), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
		return
	}
	has, wants := lines(old), lines(want)
	for line := range wants {
		if !has[line] {
			t.Errorf("docs/metrics.md lacks a line; go test ./sidecar/internal/app -run %s -update\n%s", t.Name(), line)
		}
	}
	for line := range has {
		if !wants[line] {
			t.Errorf("docs/metrics.md has a line of what there is not: %s", line)
		}
	}
}

func lines(text []byte) map[string]bool {
	all := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		all[line] = true
	}
	return all
}

// tables are the metrics by the roles that have them; of the runtime, whose names are not ours, the names.
func tables(byName map[string]*documented) []byte {
	var runtime []string
	byRoles := make(map[string][]*documented)
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if m := byName[name]; regexp.MustCompile(`^(go|process|promhttp)_`).MatchString(name) {
			runtime = append(runtime, "`"+name+"`")
		} else {
			byRoles[strings.Join(m.roles, ", ")] = append(byRoles[strings.Join(m.roles, ", ")], m)
		}
	}
	var out bytes.Buffer
	// Those of the most roles first.
	sets := slices.SortedFunc(maps.Keys(byRoles), func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.Count(b, ","), strings.Count(a, ",")), cmp.Compare(a, b))
	})
	for _, set := range sets {
		fmt.Fprintf(&out, "\n### %s\n\n| Metric | Type | Unit | Labels | Meaning |\n| --- | --- | --- | --- | --- |\n", strings.ToUpper(set[:1])+set[1:])
		for _, m := range byRoles[set] {
			fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, unit(m.name), m.labels, strings.ReplaceAll(m.help, "|", `\|`))
		}
	}
	fmt.Fprintf(&out, "\n### The Go runtime and the process, of all\n\n%s\n\n", strings.Join(runtime, ", "))
	return out.Bytes()
}

// unit is told by the name.
func unit(name string) string {
	for _, u := range []struct{ suffix, unit string }{
		{"_timestamp_seconds", "Unix time"}, {"_start_time_seconds", "Unix time"}, {"_seconds", "s"}, {"_bytes", "bytes"}, {"_memory_rss", "bytes"}, {"_ratio", "0 to 1"},
	} {
		if strings.HasSuffix(strings.TrimSuffix(name, "_total"), u.suffix) {
			return u.unit
		}
	}
	return "–"
}
