//go:build static

package stacktest

import (
	"errors"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	grafana "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	grafanaprometheus "github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"go.yaml.in/yaml/v3"
)

// panelTypes are those of Grafana 9.4 that 13 still has and that our dashboards use. A new one
// needs its schema in TestDashboardsFitGrafanasSchema.
var panelTypes = []string{"row", "stat", "timeseries", "state-timeline", "table", "bargauge", "heatmap"}

// panelUnits are those in use; of a name that it does not know, Grafana makes a suffix.
var panelUnits = []string{"none", "short", "s", "ms", "bytes", "Bps", "cps", "reqps", "ops", "percentunit"}

// Grafana cannot run here. Its types, made from its own schemas, tell a member that is misspelt
// or in the wrong place, which Grafana would leave out without a word.
func TestDashboardsFitGrafanasSchema(t *testing.T) {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(bargauge.VariantConfig())
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(statetimeline.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(grafanaprometheus.VariantConfig())
	check := func(content []byte) cog.BuildErrors {
		var d grafana.Dashboard //nolint:staticcheck // its successor is not what Grafana 9.4 to 12 read
		errs := cog.BuildErrors(nil)
		if err := d.UnmarshalJSONStrict(content); err != nil && !errors.As(err, &errs) {
			t.Fatal(err)
		}
		return errs
	}
	for _, d := range dashboards(t, root) {
		for _, err := range check(d.content) {
			t.Errorf("%s: %v", d.file, err)
		}
		// The check must see what is wrong deep inside of a panel.
		for _, broken := range [][2]string{{`"drawStyle"`, `"drawstyle"`}, {`"textMode"`, `"textmode"`}, {`"legendFormat"`, `"legend"`}, {`"titleFormat"`, `"title"`}} {
			wrong := strings.Replace(string(d.content), broken[0], broken[1], 1)
			if wrong != string(d.content) && len(check([]byte(wrong))) == 0 {
				t.Errorf("%s: nothing is found wrong with %s instead of %s", d.file, broken[1], broken[0])
			}
		}
	}
}

func TestDashboardsAreWhole(t *testing.T) {
	all := dashboards(t, root)
	uids, titles := make(map[string]string), make(map[string]string)
	for _, d := range all {
		if d.UID+".json" != d.file || d.ID != nil {
			t.Errorf("%s: uid %q, and an id: %t; want the uid as the file's name, and no id, which is Grafana's to give", d.file, d.UID, d.ID != nil)
		}
		if other := titles[d.Title]; other != "" || d.Title == "" {
			t.Errorf("%s: the title %q is that of %s", d.file, d.Title, other)
		}
		uids[d.UID], titles[d.Title] = d.file, d.file
	}
	if _, home := uids["overview"]; !home || len(all) < 7 {
		t.Errorf("%d dashboards, overview among them: %t; want 7 or more and the one that docker-compose.yml makes the home page", len(all), home)
	}
	for _, d := range all {
		t.Run(d.UID, func(t *testing.T) {
			if d.SchemaVersion != 39 || d.Editable || d.Description == "" || !slices.Equal(d.Tags, []string{"postamt"}) {
				t.Errorf("schema %d, editable %t, description %q, tags %v; want 39, false, what it tells, [postamt]", d.SchemaVersion, d.Editable, d.Description, d.Tags)
			}
			checkVariables(t, d)
			checkPanels(t, d)
			links := d.Links
			for _, p := range d.Panels {
				links = append(links, p.Links...)
			}
			byTag := false
			for _, link := range links {
				byTag = byTag || link.Type == "dashboards" && slices.Contains(link.Tags, "postamt")
				if link.Type != "link" {
					continue
				}
				u, err := url.Parse(link.URL)
				if err != nil || link.Title == "" || uids[strings.TrimPrefix(u.Path, "/d/")] == "" {
					t.Errorf("the link %q leads to %q (%v), which is no dashboard", link.Title, link.URL, err)
				}
			}
			if !byTag {
				t.Error("there is no link to the other dashboards")
			}
			names := make(map[string]bool)
			for _, a := range d.Annotations.List {
				names[a.Name] = true
				if a.Datasource.UID != "${datasource}" || a.Expr == "" || a.Target.Expr != a.Expr {
					t.Errorf("the annotation %+v: want ${datasource}, and the expression where Grafana up to 11 and where 12 look for it", a)
				}
			}
			if !names["Alerts"] || !names["Starts"] {
				t.Errorf("annotations %v; want Alerts and Starts", names)
			}
		})
	}
}

func checkVariables(t *testing.T, d dashboard) {
	t.Helper()
	defined := map[string]bool{"__url_time_range": true, "__all": true}
	for name := range builtIn {
		defined[name] = true
	}
	if first := d.Templating.List[0]; first.Name != "datasource" || first.Type != "datasource" || first.Current.Value != "prometheus" {
		t.Errorf("the first variable is %v; want the data source, with the uid prometheus chosen, which the others ask", first)
	}
	for _, v := range d.Templating.List {
		if defined[v.Name] {
			t.Errorf("the variable %s is defined twice", v.Name)
		}
		defined[v.Name] = true
		if v.Label == "" || v.Description == "" {
			t.Errorf("the variable %s needs a label and a description", v.Name)
		}
		switch v.Type {
		case "datasource":
		case "custom":
			if !slices.ContainsFunc(v.Options, func(o struct{ Value string }) bool { return o.Value == v.Current.Value }) {
				t.Errorf("%v of %v is chosen for the variable %s", v.Current.Value, v.Options, v.Name)
			}
		case "query":
			if _, label := v.asks(); label == "" || !v.Multi || !v.IncludeAll || v.AllValue != ".*" || v.Datasource.UID != "${datasource}" {
				t.Errorf("the variable %+v: want label_values(…) of ${datasource}, more than one or all of them, all being .*", v)
			}
		default:
			t.Errorf("the variable %s is of the type %s, which the tests do not know", v.Name, v.Type)
		}
	}
	used := make(map[string]bool)
	for _, match := range variableUse.FindAllStringSubmatch(string(d.content), -1) {
		name := match[1] + match[2]
		if used[name] = true; !defined[name] {
			t.Errorf("$%s is used and not defined", name)
		}
	}
	for _, v := range d.Templating.List {
		if !used[v.Name] {
			t.Errorf("the variable %s is not used", v.Name)
		}
	}
}

// counters never show as they are: what matters is how fast they grow.
var bareCounter = regexp.MustCompile(`\b\w+_total\b(\{[^}]*\})?\s*([^\s\[{]|$)`)

// topicCounter is a counter that Kafka has of each topic, and of all together under the topic "".
var topicCounter = regexp.MustCompile(`kafka_server_brokertopicmetrics_(?:messagesin|bytesin|bytesout|totalproducerequests|totalfetchrequests|failedproducerequests|failedfetchrequests)_total(?:\{[^}]*\})?`)

func checkPanels(t *testing.T, d dashboard) {
	t.Helper()
	ids := make(map[int]bool)
	var grid [][24]string
	row, panels := "", 0
	for i, p := range d.Panels {
		if p.Title == "" || !strings.HasSuffix(p.Title, "?") || ids[p.ID] || p.ID == 0 || !slices.Contains(panelTypes, p.Type) {
			t.Errorf("panel %d, %q of the type %s: want a question, a number of its own, and a type that Grafana 9.4 to 13 have: %v", p.ID, p.Title, p.Type, panelTypes)
		}
		ids[p.ID] = true
		at := p.GridPos
		if at.X < 0 || at.W < 1 || at.X+at.W > 24 || at.H < 1 || at.Y < 0 {
			t.Errorf("%q is at %v, which is not on the grid", p.Title, at)
			continue
		}
		for y := at.Y; y < at.Y+at.H; y++ {
			for len(grid) <= y {
				grid = append(grid, [24]string{})
			}
			for x := at.X; x < at.X+at.W; x++ {
				if grid[y][x] != "" {
					t.Fatalf("%q lies over %q", p.Title, grid[y][x])
				}
				grid[y][x] = p.Title
			}
		}
		if p.Type == "row" {
			if len(p.Panels) > 0 || i+1 == len(d.Panels) || d.Panels[i+1].Type == "row" {
				t.Errorf("the row %q: want its panels behind it, and some", p.Title)
			}
			row = p.Title
			continue
		}
		panels++
		if row == "" {
			t.Errorf("%q comes before the first row", p.Title)
		}
		if p.Description == "" || len(p.Description) < len("As it says.") {
			t.Errorf("%q needs a description", p.Title)
		}
		if !slices.Contains(panelUnits, p.FieldConfig.Defaults.Unit) {
			t.Errorf("%q has the unit %q; want one of %v", p.Title, p.FieldConfig.Defaults.Unit, panelUnits)
		}
		for i, s := range p.FieldConfig.Defaults.Thresholds.Steps {
			if (i == 0) != (s.Value == nil) || i > 1 && *s.Value <= *p.FieldConfig.Defaults.Thresholds.Steps[i-1].Value {
				t.Errorf("%q: the thresholds do not rise", p.Title)
			}
		}
		checkTargets(t, p)
	}
	if panels < 10 {
		t.Errorf("only %d panels were found", panels)
	}
}

func checkTargets(t *testing.T, p dashboardPanel) {
	t.Helper()
	if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
		t.Errorf("%q asks %d things of %q; want some, of ${datasource}", p.Title, len(p.Targets), p.Datasource.UID)
	}
	refs := make(map[string]bool)
	for _, target := range p.Targets {
		if target.Datasource.UID != "${datasource}" || refs[target.RefID] || target.RefID == "" || target.Instant == target.Range {
			t.Errorf("%q: the query %+v: want ${datasource}, a letter of its own, and either instant or range", p.Title, target)
		}
		refs[target.RefID] = true
		if p.Type != "table" && p.Type != "stat" && target.LegendFormat == "" {
			t.Errorf("%q: the series of %s have no name", p.Title, target.Expr)
		}
		if (p.Type == "table") != (target.Format == "table") {
			t.Errorf("%q, a %s, has the format %q", p.Title, p.Type, target.Format)
		}
		if found := bareCounter.FindString(quoted.ReplaceAllString(target.Expr, `""`)); found != "" {
			t.Errorf("%q shows a counter and not its rate: %s", p.Title, target.Expr)
		}
		if strings.Contains(target.Expr, "irate(") {
			t.Errorf("%q: %s rests on two samples; want rate over $__rate_interval", p.Title, target.Expr)
		}
		for _, match := range topicCounter.FindAllString(target.Expr, -1) {
			if !strings.Contains(match, `topic=""`) && !strings.Contains(match, `topic!=""`) {
				t.Errorf("%q: %s counts twice: what is of a topic, and what is of all together", p.Title, match)
			}
		}
	}
	// What an override is for must be the name of a column.
	names := make(map[string]bool)
	for _, transformation := range p.Transformations {
		for _, name := range transformation.Options.RenameByName {
			names[name] = true
		}
	}
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.ID != "byName" || !names[o.Matcher.Options] {
			t.Errorf("%q: an override is for %q, which is none of its columns", p.Title, o.Matcher.Options)
		}
		for _, property := range o.Properties {
			if !slices.Contains([]string{"unit", "thresholds", "mappings", "custom.cellOptions"}, property.ID) {
				t.Errorf("%q: an override sets %s, which the tests do not know", p.Title, property.ID)
			}
		}
	}
}

// An entry of allowed-empty.yml says why, and is about a query that there still is.
func TestAllowedEmptyQueriesAreThere(t *testing.T) {
	var allowed []allowedEmpty
	decodeFile(t, filepath.Join(root, "prometheus/tests/allowed-empty.yml"), yaml.Unmarshal, &allowed)
	all := asks(allQueries(t, root))
	for i, entry := range allowed {
		if entry.Reason == "" || entry.Contains == "" {
			t.Errorf("entry %d needs expr_contains and reason", i+1)
		}
		if !slices.ContainsFunc(all, func(a ask) bool { return strings.Contains(a.text, entry.Contains) }) {
			t.Errorf("no query contains %q any more", entry.Contains)
		}
	}
}
