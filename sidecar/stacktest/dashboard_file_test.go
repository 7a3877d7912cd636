//go:build stack || static

package stacktest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"go.yaml.in/yaml/v3"
)

// dashboard is what the tests want to know of one of Grafana's files.
type dashboard struct {
	file    string
	content []byte

	ID            *int
	UID           string
	Title         string
	Description   string
	Tags          []string
	SchemaVersion int
	Editable      bool
	Panels        []dashboardPanel
	Links         []dashboardLink
	Annotations   struct {
		List []struct {
			Name, Expr string
			Target     struct{ Expr string }
			Datasource datasource
		}
	}
	Templating struct {
		List []dashboardVariable
	}
}

type dashboardPanel struct {
	ID          int
	Type        string
	Title       string
	Description string
	Datasource  datasource
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults  fieldConfig
		Overrides []struct {
			Matcher    struct{ ID, Options string }
			Properties []struct{ ID string }
		}
	}
	Targets []struct {
		RefID, Expr, LegendFormat, Format string
		Datasource                        datasource
		Instant, Range                    bool
	}
	Transformations []struct {
		ID      string
		Options struct{ RenameByName map[string]string }
	}
	Links  []dashboardLink
	Panels []dashboardPanel
}

type fieldConfig struct {
	Unit       string
	Thresholds struct {
		Steps []struct {
			Color string
			Value *float64
		}
	}
}

type datasource struct{ Type, UID string }

type dashboardLink struct {
	Title, Type, URL string
	Tags             []string
}

type dashboardVariable struct {
	Name, Type, Label, Description string
	Query                          any // a string, or an object with one
	AllValue                       string
	IncludeAll, Multi              bool
	Current                        struct{ Value any }
	Datasource                     datasource
	Options                        []struct{ Value string }
}

// asks is the expression whose label a variable's choices are, "" if it asks nothing.
func (v dashboardVariable) asks() (selector, label string) {
	query, _ := v.Query.(map[string]any)
	text, _ := query["query"].(string)
	match := labelValues.FindStringSubmatch(text)
	if match == nil {
		return "", ""
	}
	return match[1], match[2]
}

// labelValues is how a variable of a dashboard asks for its choices.
var labelValues = regexp.MustCompile(`^label_values\((.+), *(\w+)\)$`)

// variableUse is a variable in an expression, a legend or a link.
var variableUse = regexp.MustCompile(`\$(?:\{(\w+)(?::\w+)?\}|(\w+))`)

// builtIn are the variables that Grafana sets, with what stands for them in a test.
var builtIn = map[string]string{"__rate_interval": "1m", "__interval": "15s", "__range": "15m"}

// withVariables puts in what Grafana would when everything is chosen.
func (d dashboard) withVariables(expr string) string {
	return variableUse.ReplaceAllStringFunc(expr, func(use string) string {
		match := variableUse.FindStringSubmatch(use)
		name := match[1] + match[2]
		if value, ok := builtIn[name]; ok {
			return value
		}
		for _, v := range d.Templating.List {
			if v.Name != name {
				continue
			}
			if v.IncludeAll {
				return v.AllValue
			}
			value, _ := v.Current.Value.(string)
			return value
		}
		return use // and the query is an error
	})
}

func dashboards(t *testing.T, root string) []dashboard {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "grafana/dashboards/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d dashboards, %v", len(files), err)
	}
	var all []dashboard
	for _, file := range files {
		d := dashboard{file: filepath.Base(file)}
		d.content = decodeFile(t, file, json.Unmarshal, &d)
		all = append(all, d)
	}
	return all
}

func decodeFile(t *testing.T, file string, unmarshal func([]byte, any) error, v any) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err == nil {
		err = unmarshal(content, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return content
}

// query is one expression that a dashboard, a variable or a rule asks.
type query struct {
	from, expr string
	label      string // a variable's, which the result must have
	record     string // what a rule stores the result as
	alert      bool
}

// allQueries reads them from the files.
func allQueries(t *testing.T, root string) []query {
	t.Helper()
	var all []query
	for _, d := range dashboards(t, root) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all = append(all, query{from: d.file + ": " + p.Title, expr: d.withVariables(target.Expr)})
			}
		}
		for _, a := range d.Annotations.List {
			all = append(all, query{from: d.file + ": the annotation " + a.Name, expr: d.withVariables(a.Expr)})
		}
		for _, v := range d.Templating.List {
			if selector, label := v.asks(); label != "" {
				all = append(all, query{from: d.file + ": the variable " + v.Name, expr: d.withVariables(selector), label: label})
			}
		}
	}
	rules, _ := filepath.Glob(filepath.Join(root, "prometheus/rules/*.yml"))
	for _, file := range rules {
		var in struct {
			Groups []struct {
				Rules []struct{ Record, Alert, Expr string }
			}
		}
		decodeFile(t, file, yaml.Unmarshal, &in)
		for _, group := range in.Groups {
			for _, rule := range group.Rules {
				all = append(all, query{from: filepath.Base(file) + ": " + rule.Record + rule.Alert, expr: rule.Expr, record: rule.Record, alert: rule.Alert != ""})
			}
		}
	}
	if len(rules) == 0 {
		t.Fatal("there are no files of rules")
	}
	return all
}

var (
	quoted     = regexp.MustCompile(`"[^"]*"|'[^']*'`)
	metricName = regexp.MustCompile(`\b(?:up|(?:kafka|jmx|postamt|traefik|prometheus|alertmanager|jvm|process|go|node|container)_[\w:]+|\w+:\w+:\w+)\b`)
)

// metricsOf are the names of metrics in an expression.
func metricsOf(expr string) []string {
	return metricName.FindAllString(quoted.ReplaceAllString(expr, `""`), -1)
}

// allowedEmpty is an entry of prometheus/tests/allowed-empty.yml.
type allowedEmpty struct {
	Contains string `yaml:"expr_contains"`
	Reason   string
	// Always says that nothing that tests do gives it data: once it has some, the entry is wrong.
	Always bool
}

// ask is a query as Prometheus gets it. For an alert, which is empty on a healthy stack, it is one
// of the metrics that the alert names.
type ask struct {
	query
	text string // what entries of allowed-empty.yml are compared with
}

func asks(queries []query) []ask {
	recorded := make(map[string]string)
	for _, q := range queries {
		if q.record != "" {
			recorded[q.record] += q.expr
		}
	}
	var out []ask
	for _, q := range queries {
		if !q.alert {
			out = append(out, ask{q, q.expr})
			continue
		}
		known := make(map[string]bool)
		for _, name := range metricsOf(q.expr) {
			if known[name] {
				continue
			}
			known[name] = true
			one := q
			one.expr = "last_over_time(" + name + "[1h])"
			// An alert on a recorded series may miss it where the rule that records it may be empty.
			out = append(out, ask{one, name + " in " + q.expr + " of " + recorded[name]})
		}
	}
	return out
}
