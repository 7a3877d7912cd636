package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
)

// board is a dashboard: rows of panels, each row with a question that its panels answer.
type board struct {
	uid, title string
	about      string // what it tells, in the list of dashboards
	variables  []variable
	rows       []row
}

type row struct {
	question string
	panels   []*panel
}

// object is one of JSON's. Its members are written in the order of their names.
type object = map[string]any

// source is the Prometheus that the reader has chosen; there is one, with the uid "prometheus".
func source() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// columns is the width of Grafana's grid.
const columns = 24

// json is the dashboard in Grafana's classic form. Versions 9.4 to 13 read schema 39.
func (b board) json() ([]byte, error) {
	panels, err := b.panels()
	if err != nil {
		return nil, err
	}
	variables := []any{sourceVariable()}
	for _, v := range b.variables {
		variables = append(variables, v.json())
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // expressions are full of > and <
	enc.SetIndent("", "  ")
	err = enc.Encode(object{
		"annotations":          object{"list": annotations()},
		"description":          b.about,
		"editable":             false,
		"fiscalYearStartMonth": 0,
		"graphTooltip":         1, // one crosshair through all panels
		"links": []any{object{
			"asDropdown": true, "icon": "external link", "includeVars": true, "keepTime": true, "tags": []string{tag},
			"targetBlank": false, "title": "Dashboards", "tooltip": "The other dashboards of this stack", "type": "dashboards", "url": "",
		}},
		"liveNow":       false,
		"panels":        panels,
		"refresh":       "30s",
		"schemaVersion": 39,
		"tags":          []string{tag},
		"templating":    object{"list": variables},
		"time":          object{"from": "now-1h", "to": "now"},
		"timepicker":    object{},
		"timezone":      "browser",
		"title":         b.title,
		"uid":           b.uid,
		"version":       1,
		"weekStart":     "",
	})
	return out.Bytes(), err
}

// tag is what the dashboards find each other by.
const tag = "postamt"

// panels puts each row's panels side by side, and below those that do not fit.
func (b board) panels() ([]any, error) {
	var out []any
	y := 0
	place := func(p object, x, w, h int) {
		p["id"] = len(out) + 1
		p["gridPos"] = object{"x": x, "y": y, "w": w, "h": h}
		out = append(out, p)
	}
	for _, r := range b.rows {
		place(object{"type": "row", "title": r.question, "collapsed": false, "panels": []any{}}, 0, columns, 1)
		y++
		x, height := 0, 0
		for _, p := range r.panels {
			if p.w > columns || p.w < 1 || p.h < 2 {
				return nil, fmt.Errorf("%q is %d wide and %d high; want a width of 1 to %d and a height of 2 or more", p.title, p.w, p.h, columns)
			}
			if x+p.w > columns {
				x, y, height = 0, y+height, 0
			}
			place(p.json(), x, p.w, p.h)
			x, height = x+p.w, max(height, p.h)
		}
		y += height
	}
	return out, nil
}

// annotations are what every dashboard marks: alerts while they fire, and starts of processes, which
// are deployments or crashes.
func annotations() []any {
	// A sidecar's start names the version that began.
	const starts = `1000 * max by (job, instance, version) (
    process_start_time_seconds{job=~"producer|consumer|monitor|containers"} * on (job, instance) group_left (version) postamt_build_info
  or
    process_start_time_seconds{job=~"kafka|traefik|prometheus|alertmanager"}
)`
	return []any{
		annotation("Alerts", "red", `ALERTS{alertstate="firing", alertname!="Watchdog"}`, object{
			"titleFormat": "{{alertname}}", "textFormat": "{{severity}}", "tagKeys": "job,consumergroup,topic,service,subscription",
		}),
		annotation("Starts", "blue", starts, object{
			"titleFormat": "{{job}} {{version}} started", "textFormat": "{{instance}}", "tagKeys": "job",
			"useValueForTime": true, // the value says when
		}),
	}
}

func annotation(name, color, expr string, more object) object {
	out := object{
		"datasource": source(), "enable": true, "hide": false, "iconColor": color, "name": name,
		// Grafana up to 11 reads the first line, 12 the second, 13 either.
		"expr": expr, "step": "60s",
		"target": object{"datasource": source(), "editorMode": "code", "expr": expr, "instant": false, "interval": "60s", "range": true, "refId": "Anno"},
	}
	maps.Copy(out, more)
	return out
}

// variable is a choice at the top of the dashboard.
type variable struct {
	name, label, about string
	values             string   // label_values(metric, label): several of them or all
	options            []string // or one of these
	chosen             string
}

var (
	topicVariable        = variable{name: "topic", label: "Topic", about: "Topics to show.", values: `label_values(kafka_topic_partitions, topic)`}
	groupVariable        = variable{name: "consumergroup", label: "Group", about: "Consumer groups to show.", values: `label_values(kafka_consumergroup_members, consumergroup)`}
	brokerVariable       = variable{name: "instance", label: "Broker", about: "Kafka nodes to show.", values: `label_values(up{job="kafka"}, instance)`}
	serviceVariable      = variable{name: "service", label: "Service", about: "Services of Traefik to show.", values: `label_values(traefik_service_requests_total, service)`}
	subscriptionVariable = variable{name: "subscription", label: "Subscription", about: "Subscriptions to show.", values: `label_values(postamt_delivery_state, subscription)`}
	roleVariable         = variable{name: "job", label: "Role", about: "Roles of the sidecar to show.", values: `label_values(postamt_build_info, job)`}
	jobVariable          = variable{name: "job", label: "Job", about: "Jobs of Prometheus to show.", values: `label_values(up, job)`}
	quantileVariable     = variable{
		name: "quantile", label: "Percentile", about: "Which of the broker's percentiles the parts of the latency are.",
		options: []string{"0.50", "0.95", "0.99"}, chosen: "0.99",
	}
)

func (v variable) json() object {
	if v.values == "" {
		var options []any
		for _, o := range v.options {
			options = append(options, object{"selected": o == v.chosen, "text": o, "value": o})
		}
		return object{
			"current": object{"selected": true, "text": v.chosen, "value": v.chosen}, "description": v.about, "hide": 0,
			"includeAll": false, "label": v.label, "multi": false, "name": v.name, "options": options,
			"query": strings.Join(v.options, ","), "skipUrlSync": false, "type": "custom",
		}
	}
	return object{
		// .* and not a list of all values, which can be longer than a query may be.
		"allValue": ".*", "includeAll": true, "multi": true,
		"current":    object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}},
		"datasource": source(), "definition": v.values, "description": v.about, "hide": 0, "label": v.label, "name": v.name,
		"options": []any{}, "query": object{"query": v.values, "refId": v.name},
		"refresh": 2, "regex": "", "skipUrlSync": false, "sort": 1, "type": "query", // asked again with each change of the time
	}
}

func sourceVariable() object {
	return object{
		"current":     object{"selected": true, "text": "Prometheus", "value": "prometheus"},
		"description": "The Prometheus to ask.", "hide": 0, "includeAll": false, "label": "Source", "multi": false, "name": "datasource",
		"options": []any{}, "query": "prometheus", "refresh": 1, "regex": "", "skipUrlSync": false, "type": "datasource",
	}
}
