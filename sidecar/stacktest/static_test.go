//go:build static

package stacktest

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

// labels that Traefik 2.11 and 3.7 both know, names in braces. One that a version does not
// know makes it leave out the whole container, silently.
var labels = patterns(`
	traefik.enable
	traefik.docker.{network|lbswarm}
	traefik.http.routers.{}.{rule|entrypoints|middlewares|priority|service|tls|tls.certresolver|tls.options}
	traefik.http.services.{}.loadbalancer.{server.port|server.scheme|passhostheader|serverstransport|responseforwarding.flushinterval}
	traefik.http.services.{}.loadbalancer.healthcheck.{path|port|scheme|hostname|interval|timeout|method|followredirects}
	traefik.http.services.{}.loadbalancer.sticky.cookie.{name|httponly|secure|samesite}
	traefik.http.middlewares.{}.retry.{attempts|initialinterval}
	traefik.http.middlewares.{}.ratelimit.{average|burst|period}
	traefik.http.middlewares.{}.inflightreq.amount
	traefik.http.middlewares.{}.basicauth.{users|usersfile|realm|removeheader|headerfield}
	traefik.http.middlewares.{}.{stripprefix.prefixes|redirectscheme.scheme|redirectscheme.permanent|compress|chain.middlewares|ipallowlist.sourcerange}
	traefik.tcp.routers.{}.{rule|entrypoints|middlewares|service|tls|tls.passthrough|tls.certresolver|tls.options}
	traefik.tcp.services.{}.loadbalancer.{server.port|proxyprotocol.version}
`)

// flags that both know. With an unknown one Traefik does not start.
var flags = patterns(`
	{providers.docker|providers.providersthrottleduration}
	providers.docker.{endpoint|exposedbydefault|network|constraints|watch|defaultrule|allowemptyservices}
	providers.file.{directory|filename|watch}
	entrypoints.{}.{address|http.redirections.entrypoint.to|http.redirections.entrypoint.scheme|http.redirections.entrypoint.permanent}
	entrypoints.{}.{http.tls|http.tls.certresolver|http.tls.options|http.middlewares|forwardedheaders.trustedips|asdefault}
	entrypoints.{}.transport.respondingtimeouts.{readtimeout|writetimeout|idletimeout}
	entrypoints.{}.transport.lifecycle.{gracetimeout|requestacceptgracetimeout}
	serverstransport.maxidleconnsperhost
	serverstransport.forwardingtimeouts.{dialtimeout|responseheadertimeout|idleconntimeout}
	certificatesresolvers.{}.acme.{email|storage|caserver|httpchallenge|httpchallenge.entrypoint|tlschallenge}
	{api|api.dashboard|api.insecure|ping|ping.entrypoint|accesslog|accesslog.format|log.level|log.format}
	metrics.prometheus.{entrypoint|addentrypointslabels|addrouterslabels|addserviceslabels|buckets|manualrouting}
	global.{checknewversion|sendanonymoususage}
`)

// patterns makes one expression of each line: {} is a name, {a|b} is a or b.
func patterns(lines string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		line = strings.ReplaceAll(regexp.QuoteMeta(line), `\{\}`, `[a-z0-9-]+`)
		line = strings.NewReplacer(`\{`, "(?:", `\|`, "|", `\}`, ")").Replace(line)
		out = append(out, regexp.MustCompile("^"+line+"$"))
	}
	return out
}

func known(name string, in []*regexp.Regexp) bool {
	for _, p := range in {
		if p.MatchString(strings.ToLower(name)) {
			return true
		}
	}
	return false
}

// matchers that have the same meaning in rules of both versions, which is with one value.
var (
	matcher = regexp.MustCompile("([A-Za-z]+)\\(`[^`]*`(,[^)]*)?\\)")
	both    = map[string]bool{"Host": true, "Path": true, "PathPrefix": true, "Method": true, "HostSNI": true, "ClientIP": true}
)

type composeFile struct {
	Services map[string]composeService
}

type composeService struct {
	Command any
	Labels  map[string]string
	Deploy  struct{ Labels map[string]string }
}

// UnmarshalYAML leaves out what an overlay removes with !reset.
func (s *composeService) UnmarshalYAML(node *yaml.Node) error {
	if node.Tag == "!reset" {
		return nil
	}
	type plain composeService
	return node.Decode((*plain)(s))
}

func TestLabelsAndFlagsAreValidForTraefik2And3(t *testing.T) {
	files, err := filepath.Glob(root + "/compose/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	checkedLabels, checkedFlags := 0, 0
	for _, file := range append(files, root+"/docker-compose.yml") {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var in composeFile
		if err := yaml.Unmarshal(content, &in); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for name, s := range in.Services {
			for label, value := range s.Labels {
				checkedLabels++
				if strings.HasPrefix(label, "traefik.") && !known(label, labels) {
					t.Errorf("%s: %s: the label %s is not known to both Traefik 2.11 and 3.7", file, name, label)
				}
				if !strings.HasSuffix(label, ".rule") {
					continue
				}
				for _, m := range matcher.FindAllStringSubmatch(value, -1) {
					if !both[m[1]] || m[2] != "" {
						t.Errorf("%s: %s: %s in a rule does not mean the same to Traefik 2.11 and 3.7", file, name, m[0])
					}
				}
			}
			if len(s.Deploy.Labels) > 0 && !strings.Contains(file, "swarm") {
				t.Errorf("%s: %s: labels below deploy are for Swarm alone", file, name)
			}
			command, _ := s.Command.([]any)
			for _, flag := range command {
				flag, ok := strings.CutPrefix(flag.(string), "--")
				if !ok || name != "traefik" {
					continue
				}
				checkedFlags++
				flag, _, _ = strings.Cut(flag, "=")
				if !known(flag, flags) {
					t.Errorf("%s: the flag --%s is not known to both Traefik 2.11 and 3.7", file, flag)
				}
			}
		}
	}
	if checkedLabels < 20 || checkedFlags < 10 {
		t.Errorf("only %d labels and %d flags were found; want those of the whole stack", checkedLabels, checkedFlags)
	}
}

// severities are those that the runbook explains; Watchdog has none.
var severities = map[string]bool{"critical": true, "warning": true, "info": true, "none": true}

// Every alert has a section in the runbook that its annotation leads to, and a test that
// fires it and one that does not.
func TestEveryAlertHasARunbookAndTests(t *testing.T) {
	runbook, err := os.ReadFile(root + "/docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]bool)
	for line := range strings.Lines(string(runbook)) {
		if title, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			sections[title] = true
		}
	}

	fires, quiet := make(map[string]bool), make(map[string]bool)
	each(t, "prometheus/tests/*.yml", func(_ string, in struct {
		Tests []struct {
			Alerts []struct {
				Name     string `yaml:"alertname"`
				Expected []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}) {
		for _, test := range in.Tests {
			for _, a := range test.Alerts {
				fires[a.Name] = fires[a.Name] || len(a.Expected) > 0
				quiet[a.Name] = quiet[a.Name] || len(a.Expected) == 0
			}
		}
	})

	alerts := make(map[string]bool)
	each(t, "prometheus/rules/*.yml", func(file string, in struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}) {
		for _, group := range in.Groups {
			for _, rule := range group.Rules {
				if rule.Alert == "" {
					continue
				}
				alerts[rule.Alert] = true
				if want := "docs/runbook.md#" + strings.ToLower(rule.Alert); rule.Annotations["runbook_url"] != want {
					t.Errorf("%s: the runbook_url of %s is %q; want %s", file, rule.Alert, rule.Annotations["runbook_url"], want)
				}
				if !severities[rule.Labels["severity"]] {
					t.Errorf("%s: the severity of %s is %q; want one that prometheus/alertmanager.yml routes", file, rule.Alert, rule.Labels["severity"])
				}
				if !strings.ContainsAny(rule.Annotations["summary"], "0123456789") && !strings.Contains(rule.Annotations["summary"], "$value") {
					t.Errorf("%s: the summary of %s says no number: %q", file, rule.Alert, rule.Annotations["summary"])
				}
				if !sections[rule.Alert] {
					t.Errorf("docs/runbook.md has no section %s", rule.Alert)
				}
				// Watchdog fires always: that is what it is for.
				if !fires[rule.Alert] || !quiet[rule.Alert] && rule.Alert != "Watchdog" {
					t.Errorf("%s: prometheus/tests has a case that fires it: %t, and one that does not: %t; want both", rule.Alert, fires[rule.Alert], quiet[rule.Alert])
				}
			}
		}
	})
	if len(alerts) < 10 {
		t.Errorf("only %d alerts were found", len(alerts))
	}
	for name := range fires {
		if !alerts[name] {
			t.Errorf("prometheus/tests tests %s, which no rule has", name)
		}
	}
	checkInhibitions(t, alerts)
}

// checkInhibitions finds names of alerts in prometheus/alertmanager.yml that no rule has (any more).
func checkInhibitions(t *testing.T, alerts map[string]bool) {
	t.Helper()
	checked := 0
	each(t, "prometheus/alertmanager.yml", func(file string, in struct {
		Inhibit []struct {
			Sources []string `yaml:"source_matchers"`
			Targets []string `yaml:"target_matchers"`
		} `yaml:"inhibit_rules"`
	}) {
		for _, rule := range in.Inhibit {
			for _, m := range slices.Concat(rule.Sources, rule.Targets) {
				names, ok := strings.CutPrefix(m, "alertname ")
				if !ok {
					continue
				}
				for name := range strings.SplitSeq(strings.Trim(names, `=~ "`), "|") {
					fits := regexp.MustCompile("^(?:" + name + ")$")
					checked++
					if !slices.ContainsFunc(slices.Collect(maps.Keys(alerts)), fits.MatchString) {
						t.Errorf("%s: %s: no alert is called %s", file, m, name)
					}
				}
			}
		}
	})
	if checked < 20 {
		t.Errorf("only %d names of alerts were found in the inhibitions", checked)
	}
}

// each reads every file that fits, where it is of the kind that do knows.
func each[T any](t *testing.T, glob string, do func(file string, in T)) {
	t.Helper()
	files, err := filepath.Glob(root + "/" + glob)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", glob, len(files), err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var list []any
		if yaml.Unmarshal(content, &list) == nil {
			continue // allowed-empty.yml
		}
		var in T
		if err := yaml.Unmarshal(content, &in); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		do(file, in)
	}
}
