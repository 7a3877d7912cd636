package main

import "maps"

// panel is a question with the queries that answer it.
type panel struct {
	kind, title, about string
	w, h               int
	queries            []query
	defaults           object // of every series or column
	custom             object // what of them only this kind of panel knows
	options            object
	overrides          []any
	transformations    []any
	links              []any
}

// query is an expression and what its series are called.
type query struct {
	expr, legend string
	format       string // "" for series
	instant      bool   // now, and not over time
	exemplars    bool
}

// q is a query whose series need a name: text with {{labels}}.
func q(expr, legend string) query { return query{expr: expr, legend: legend} }

// traced shows beside the curve which single requests were slow, where they were traced. The
// expression has to name a histogram: what a rule has recorded has no exemplars.
func (q query) traced() query {
	q.exemplars = true
	return q
}

// step is a colour from a value on.
type step struct {
	from  float64
	color string
}

// steps are the colours of values: the first one is for all below the second.
func steps(first string, more ...step) object {
	list := []any{object{"color": first, "value": nil}}
	for _, s := range more {
		list = append(list, object{"color": s.color, "value": s.from})
	}
	return object{"mode": "absolute", "steps": list}
}

// zero is good, anything above is the given colour.
func zero(color string) object { return steps("green", step{1, color}) }

// some is good, none is not.
var some = steps("red", step{1, "green"})

// upTo is good, then a warning, then bad.
func upTo(warning, bad float64) object {
	return steps("green", step{warning, "orange"}, step{bad, "red"})
}

// downTo is good, then a warning, then bad, where less is worse.
func downTo(warning, bad float64) object {
	return steps("red", step{bad, "orange"}, step{warning, "green"})
}

var noSteps = steps("green")

// newPanel has what all kinds have in common. unit is Grafana's name of one.
func newPanel(kind, title, about, unit string, queries ...query) *panel {
	return &panel{
		kind: kind, title: title, about: about, w: 8, h: 8, queries: queries,
		defaults: object{"unit": unit, "mappings": []any{}, "thresholds": noSteps, "color": object{"mode": "thresholds"}},
		custom:   object{}, options: object{},
	}
}

// stat is one number, with its course behind it.
func stat(title, about, unit, expr string, levels object) *panel {
	p := newPanel("stat", title, about, unit, query{expr: expr})
	p.w, p.h = 4, 4
	p.defaults["thresholds"] = levels
	p.options = object{
		"colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "percentChangeColorMode": "standard",
		"reduceOptions": lastValue(), "showPercentChange": false, "textMode": "value", "wideLayout": true,
	}
	return p
}

func lastValue() object {
	return object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}
}

func legend(mode string, show bool, calcs ...string) object {
	if calcs == nil {
		calcs = []string{}
	}
	return object{"calcs": calcs, "displayMode": mode, "placement": "bottom", "showLegend": show}
}

// lines are series over time. Below 0 there is nothing that we measure.
func lines(title, about, unit string, queries ...query) *panel {
	p := newPanel("timeseries", title, about, unit, queries...)
	p.defaults["color"] = object{"mode": "palette-classic"}
	p.defaults["min"] = 0
	p.custom = object{
		"drawStyle": "line", "fillOpacity": 10, "lineWidth": 1, "showPoints": "never", "spanNulls": false,
		"stacking": object{"group": "A", "mode": "none"}, "thresholdsStyle": object{"mode": "off"},
	}
	p.options = object{
		"legend":  legend("table", true, "lastNotNull", "max"),
		"tooltip": object{"mode": "multi", "sort": "desc"},
	}
	return p
}

// bars are values now, the largest at the top if the query sorts them.
func bars(title, about, unit string, levels object, queries ...query) *panel {
	p := newPanel("bargauge", title, about, unit, queries...)
	for i := range p.queries {
		p.queries[i].instant = true
	}
	p.defaults["min"] = 0
	p.defaults["thresholds"] = levels
	p.options = object{
		"displayMode": "basic", "legend": legend("list", false), "maxVizHeight": 300, "minVizHeight": 16, "minVizWidth": 8, "namePlacement": "auto",
		"orientation": "horizontal", "reduceOptions": lastValue(), "showUnfilled": true, "sizing": "auto", "valueMode": "color",
	}
	return p
}

// state is a value with a name and a colour.
type state struct {
	value, name, color string
}

// states are a band for each series, coloured by what its values mean.
func states(title, about string, meaning []state, queries ...query) *panel {
	p := newPanel("state-timeline", title, about, "none", queries...).means(meaning...)
	p.custom = object{"fillOpacity": 70, "lineWidth": 0}
	p.options = object{
		"alignValue": "left", "mergeValues": true, "rowHeight": 0.9, "showValue": "never",
		"legend":  legend("list", true),
		"tooltip": object{"mode": "single", "sort": "none"},
	}
	return p
}

func mapping(meaning []state) []any {
	options := object{}
	for i, s := range meaning {
		options[s.value] = object{"color": s.color, "index": i, "text": s.name}
	}
	return []any{object{"type": "value", "options": options}}
}

// heat shows how values of a histogram spread over time.
func heat(title, about, unit, expr string) *panel {
	p := newPanel("heatmap", title, about, unit, query{expr: expr, legend: "{{le}}", format: "heatmap"})
	delete(p.defaults, "color")
	p.defaults["custom"] = object{}
	p.options = object{
		"calculate": false, "cellGap": 1, "cellValues": object{"unit": "short"}, "color": object{
			"exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "reverse": false, "scale": "exponential", "scheme": "Oranges", "steps": 64,
		},
		"exemplars": object{"color": "rgba(255,0,255,0.7)"}, "filterValues": object{"le": 1e-9},
		"legend": object{"show": true}, "rowsFrame": object{"layout": "auto"}, "showValue": "never",
		"tooltip": object{"mode": "single", "yHistogram": false},
		"yAxis":   object{"axisPlacement": "left", "reverse": false, "unit": unit},
	}
	return p
}

// column is one of a table: a query's values, or a label of them.
type column struct {
	name, expr string
	label      string // instead of expr
	unit       string
	levels     object  // the text gets their colours
	meaning    []state // instead of numbers
}

// table has a row for each set of labels that its queries have in common.
func table(title, about string, of ...column) *panel {
	p := newPanel("table", title, about, "short")
	p.w, p.h = columns, 10
	p.custom = object{"align": "auto", "filterable": false, "inspect": false}
	values := 0
	for _, c := range of {
		if c.expr != "" {
			values++
		}
	}
	order, names := object{}, object{}
	hidden := object{"Time": true, "__name__": true}
	if values == 0 {
		hidden["Value"] = true
	}
	for i, c := range of {
		field := c.label
		if c.expr != "" {
			p.queries = append(p.queries, query{expr: c.expr, format: "table", instant: true})
			// So Grafana calls it, depending on whether there are others.
			if field = "Value"; values > 1 {
				field += " #" + refID(len(p.queries)-1)
			}
		}
		order[field], names[field] = i, c.name
		var properties []any
		set := func(id string, value any) { properties = append(properties, object{"id": id, "value": value}) }
		if c.unit != "" {
			set("unit", c.unit)
		}
		if c.levels != nil {
			set("thresholds", c.levels)
		}
		if c.meaning != nil {
			set("mappings", mapping(c.meaning))
		}
		if c.levels != nil || c.meaning != nil {
			set("custom.cellOptions", object{"type": "color-text"})
		}
		if properties != nil {
			p.overrides = append(p.overrides, object{"matcher": object{"id": "byName", "options": c.name}, "properties": properties})
		}
	}
	if len(p.queries) > 1 {
		p.transformations = append(p.transformations, object{"id": "merge", "options": object{}})
		p.defaults["noValue"] = "–" // a cell that one of the queries leaves empty
	}
	p.transformations = append(p.transformations, object{
		"id": "organize", "options": object{"excludeByName": hidden, "indexByName": order, "renameByName": names},
	})
	p.options = object{"cellHeight": "sm", "frameIndex": 0, "showHeader": true, "sortBy": []any{}}
	return p
}

// of puts a query where a table has only labels.
func (p *panel) of(expr string) *panel {
	p.queries = append(p.queries, query{expr: expr, format: "table", instant: true})
	return p
}

// sorted sorts a table by a column, the largest first.
func (p *panel) sorted(column string) *panel {
	p.options["sortBy"] = []any{object{"desc": true, "displayName": column}}
	return p
}

// size is in units of the grid, which is 24 wide.
func (p *panel) size(w, h int) *panel {
	p.w, p.h = w, h
	return p
}

// limits draws the values from which on it is bad as lines.
func (p *panel) limits(levels object) *panel {
	p.defaults["thresholds"] = levels
	p.custom["thresholdsStyle"] = object{"mode": "dashed"}
	return p
}

// stacked adds the series up.
func (p *panel) stacked() *panel {
	p.custom["stacking"] = object{"group": "A", "mode": "normal"}
	p.custom["fillOpacity"] = 40
	return p
}

// share is of values from 0 to 1.
func (p *panel) share() *panel {
	p.defaults["max"] = 1
	return p
}

// signed lets values be negative.
func (p *panel) signed() *panel {
	delete(p.defaults, "min")
	return p
}

// means gives values names.
func (p *panel) means(meaning ...state) *panel {
	p.defaults["mappings"] = mapping(meaning)
	return p
}

// otherwise is what is shown where there is no value.
func (p *panel) otherwise(text string) *panel {
	p.defaults["noValue"] = text
	return p
}

// named shows a stat for each of its series, with their names.
func (p *panel) named(legend string) *panel {
	p.queries[0].legend = legend
	p.options["textMode"] = "value_and_name"
	return p
}

// to leads on to another dashboard.
func (p *panel) to(b string, title string) *panel {
	p.links = append(p.links, object{
		"asDropdown": false, "icon": "external link", "includeVars": false, "keepTime": false, "tags": []string{}, "targetBlank": false,
		"title": title, "tooltip": "", "type": "link", "url": "/d/" + b + "?${__url_time_range}",
	})
	return p
}

func refID(i int) string { return string(rune('A' + i)) }

func (p *panel) json() object {
	var targets []any
	for i, q := range p.queries {
		target := object{
			"datasource": source(), "editorMode": "code", "expr": q.expr, "refId": refID(i), "instant": q.instant, "range": !q.instant,
		}
		if q.legend != "" {
			target["legendFormat"] = q.legend
		}
		if q.format != "" {
			target["format"] = q.format
		}
		if q.exemplars {
			target["exemplar"] = true
		}
		targets = append(targets, target)
	}
	defaults := maps.Clone(p.defaults)
	if len(p.custom) > 0 {
		defaults["custom"] = p.custom
	}
	overrides := p.overrides
	if overrides == nil {
		overrides = []any{}
	}
	out := object{
		"type": p.kind, "title": p.title, "description": p.about, "datasource": source(), "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": overrides}, "options": p.options,
	}
	if p.transformations != nil {
		out["transformations"] = p.transformations
	}
	if p.links != nil {
		out["links"] = p.links
	}
	return out
}
