//go:build stack

package stacktest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// prometheus asks Prometheus' API, through Traefik.
func prometheus(t *testing.T, path string, query url.Values, v any) error {
	t.Helper()
	got := call(t, "GET", "/api/v1/"+path+"?"+query.Encode(), "", "Host: prometheus.localhost")
	var in struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(got.body), &in); err != nil {
		return fmt.Errorf("Prometheus answers %v", got)
	}
	if in.Status != "success" {
		return fmt.Errorf("Prometheus says %s", in.Error)
	}
	return json.Unmarshal(in.Data, v)
}

func TestEveryPrometheusTargetIsUp(t *testing.T) {
	want := make(map[string]int)
	for _, job := range []string{"kafka", "traefik", "producer", "consumer", "monitor", "prometheus", "alertmanager"} {
		want[job] = len(containers(t, job)) // jobs are named as services
	}
	eventually(t, time.Minute, "every target up", func() error {
		var in struct {
			Active []struct {
				Labels                       map[string]string
				ScrapeURL, Health, LastError string
			} `json:"activeTargets"`
		}
		if err := prometheus(t, "targets", nil, &in); err != nil {
			return err
		}
		up := make(map[string]int)
		for _, target := range in.Active {
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
			up[target.Labels["job"]]++
		}
		if fmt.Sprint(up) != fmt.Sprint(want) {
			return fmt.Errorf("targets by job: %v; want %v", up, want)
		}
		return nil
	})
}

// query is one expression that a dashboard or a rule asks.
type query struct {
	from, expr string
	record     string // what a rule stores the result as
	alert      bool
}

// allQueries reads them from the files.
func allQueries(t *testing.T) []query {
	t.Helper()
	var all []query
	dashboards, _ := filepath.Glob(filepath.Join(project.root, "grafana/dashboards/*.json"))
	for _, file := range dashboards {
		var in any
		decodeFile(t, file, json.Unmarshal, &in)
		exprs := exprsBelow(in)
		if len(exprs) == 0 {
			t.Errorf("%s asks nothing", file)
		}
		for _, expr := range exprs {
			all = append(all, query{from: filepath.Base(file), expr: expr})
		}
	}
	rules, _ := filepath.Glob(filepath.Join(project.root, "prometheus/rules/*.yml"))
	for _, file := range rules {
		var in struct {
			Groups []struct {
				Rules []struct{ Record, Alert, Expr string }
			}
		}
		decodeFile(t, file, yaml.Unmarshal, &in)
		for _, group := range in.Groups {
			for _, rule := range group.Rules {
				all = append(all, query{filepath.Base(file) + " " + rule.Record + rule.Alert, rule.Expr, rule.Record, rule.Alert != ""})
			}
		}
	}
	if len(dashboards) == 0 || len(rules) == 0 {
		t.Fatalf("%d dashboards and %d files of rules; want some", len(dashboards), len(rules))
	}
	return all
}

func decodeFile(t *testing.T, file string, unmarshal func([]byte, any) error, v any) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err == nil {
		err = unmarshal(content, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// labelValues is how a variable of a dashboard asks for its choices.
var labelValues = regexp.MustCompile(`^label_values\((.*), *\w+\)$`)

// exprsBelow finds what panels, annotations and variables ask, wherever they are.
func exprsBelow(v any) []string {
	var out []string
	switch v := v.(type) {
	case []any:
		for _, child := range v {
			out = append(out, exprsBelow(child)...)
		}
	case map[string]any:
		for name, child := range v {
			text, _ := child.(string)
			if match := labelValues.FindStringSubmatch(text); name == "query" && match != nil {
				out = append(out, match[1])
			} else if name == "expr" {
				out = append(out, text)
			} else {
				out = append(out, exprsBelow(child)...)
			}
		}
	}
	return out
}

// withVariables puts in what Grafana would.
func withVariables(expr string) string {
	for name, value := range map[string]string{
		"__rate_interval": "1m", "__interval": "15s", "__range": "15m",
		"consumergroup": ".*", "topic": ".*", "instance": ".*", "service": ".*",
	} {
		expr = strings.NewReplacer("${"+name+"}", value).Replace(expr)
		expr = regexp.MustCompile(`\$`+name+`\b`).ReplaceAllLiteralString(expr, value)
	}
	return expr
}

var (
	quoted     = regexp.MustCompile(`"[^"]*"|'[^']*'`)
	metricName = regexp.MustCompile(`\b(?:up|(?:kafka|postamt|traefik|prometheus|alertmanager|jvm|process|go)_[\w:]+|\w+:\w+:\w+)\b`)
)

// Every query of every dashboard and rule runs, and none is without a result under a little
// traffic but those that prometheus/tests/allowed-empty.yml lists. An alert is empty on a
// healthy stack; there the metrics that it names must exist.
func TestEveryQueryOfDashboardsAndRulesHasData(t *testing.T) {
	var allowed []struct {
		Contains string `yaml:"expr_contains"`
		Reason   string
	}
	decodeFile(t, filepath.Join(project.root, "prometheus/tests/allowed-empty.yml"), yaml.Unmarshal, &allowed)
	used := make([]bool, len(allowed))
	mayBeEmpty := func(text string) bool {
		for i, a := range allowed {
			if a.Reason == "" || a.Contains == "" {
				t.Fatalf("prometheus/tests/allowed-empty.yml: entry %d needs expr_contains and reason", i+1)
			}
			if strings.Contains(text, a.Contains) {
				used[i] = true
				return true
			}
		}
		return false
	}
	keepBusy(t)

	queries := allQueries(t)
	recorded := make(map[string]string)
	for _, q := range queries {
		recorded[q.record] = q.expr
	}
	left := queries
	eventually(t, 3*time.Minute, fmt.Sprintf("a result for each of %d queries", len(queries)), func() error {
		var names []string
		if err := prometheus(t, "label/__name__/values", nil, &names); err != nil {
			return err
		}
		var empty []query
		var why []string
		for _, q := range left {
			var result struct{ Result []json.RawMessage }
			err := prometheus(t, "query", url.Values{"query": {withVariables(q.expr)}}, &result)
			switch {
			case err != nil:
				t.Fatalf("%s: %s: %v", q.from, q.expr, err)
			case q.alert:
				for _, name := range metricName.FindAllString(quoted.ReplaceAllString(q.expr, `""`), -1) {
					if !slices.Contains(names, name) && !mayBeEmpty(name+" "+q.expr) && !mayBeEmpty(recorded[name]) {
						empty, why = append(empty, q), append(why, q.from+": there is no "+name)
						break
					}
				}
			case len(result.Result) == 0 && !mayBeEmpty(q.expr):
				empty, why = append(empty, q), append(why, q.from+": no result: "+q.expr)
			}
		}
		if left = empty; len(left) > 0 {
			return fmt.Errorf("%d left:\n%s", len(why), strings.Join(why, "\n"))
		}
		return nil
	})
	t.Logf("%d queries", len(queries))
	for i, a := range allowed {
		if !used[i] {
			t.Logf("not needed today: %s (%s)", a.Contains, a.Reason)
		}
	}
}

// keepBusy writes, reads, commits and streams a little until the test ends.
func keepBusy(t *testing.T) {
	t.Helper()
	startDemo(t).rate(5) // a subscription that is delivered
	const topic = "my-topic"
	group := unique("busy")
	produce(t, topic, "k", "v")
	s := openSession(t, group, "binary", topic)
	openStream(t, topic, "from=latest&format=binary", "")
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			// What does not work shows as a query without data.
			_, _ = request("POST", "/topics/"+topic+"/records", "busy")
			_, _ = request("POST", "/topics/"+topic, `{"records":[{"value":1},{"value":2}]}`, "Content-Type: application/vnd.kafka.json.v2+json")
			_, _ = request("GET", s.url+"/records?timeout=100", "")
			_, _ = request("POST", s.url+"/offsets", "", "Content-Type: "+v2)
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		_, _ = request("DELETE", s.url, "")
	})
}
