//go:build stack

package stacktest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// pace is how fast a second Prometheus, which is there for one test, runs through our rules.
type pace struct {
	scrape time.Duration
	faster float64 // by which every `for` and every window is shorter
	// How long the stack is watched at rest, under the demo's load, and at rest again.
	before, load, after time.Duration
}

// paceOf is the real one with STACK_LONG=1. Otherwise a `for` of 15 minutes is one of a minute and a
// quarter; what is compared with a time, such as a lag of 300 s, stays. An agent on a busy machine
// takes seconds to answer, so scrapes are not that much faster.
func paceOf() pace {
	if os.Getenv("STACK_LONG") != "" {
		return pace{15 * time.Second, 1, 5 * time.Minute, 35 * time.Minute, 5 * time.Minute}
	}
	return pace{5 * time.Second, 15, 25 * time.Second, 80 * time.Second, 20 * time.Second}
}

var (
	oneDuration = regexp.MustCompile(`(\d+)(ms|[smhdwy])`)
	window      = regexp.MustCompile(`\[[^\]:]+\]|\boffset [0-9a-z]+`)
	units       = map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute,
		"h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "y": 365 * 24 * time.Hour}
)

// shorten divides a duration of Prometheus, such as 1h30m.
func (p pace) shorten(text string) (shorter, d time.Duration) {
	for _, match := range oneDuration.FindAllStringSubmatch(text, -1) {
		count, _ := strconv.Atoi(match[1])
		d += time.Duration(count) * units[match[2]]
	}
	return time.Duration(float64(d) / p.faster), d
}

func inPrometheus(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// shortenFor leaves room for three scrapes that failed, and what takes longer takes longer still.
func (p pace) shortenFor(text string) string {
	shorter, d := p.shorten(text)
	return inPrometheus(min(d, shorter+3*p.scrape))
}

// shortenWindow leaves five scrapes in it, for a rate.
func (p pace) shortenWindow(text string) string {
	shorter, d := p.shorten(text)
	return inPrometheus(min(d, max(shorter, 5*p.scrape)))
}

func (p pace) shortenWindows(expr string) string {
	expr = strings.Join(strings.Fields(expr), " ")
	return window.ReplaceAllStringFunc(expr, func(text string) string {
		if of, ok := strings.CutPrefix(text, "offset "); ok {
			return "offset " + p.shortenWindow(of)
		}
		return "[" + p.shortenWindow(strings.Trim(text, "[]")) + "]"
	})
}

// atTheirPace are alerts whose `for` waits for something that is no faster in a test: the group of a
// subscription that was made anew is removed after 5 to 7 minutes.
var atTheirPace = []string{"ConsumerGroupEmpty"}

// synthetic must fire as soon as the demo sells: it shows that targets, windows and `for` work here.
const synthetic = "DemoSells"

// writeConfig puts our configuration and rules into a folder, at the pace. What it fires has a label
// of its own; told tells whether Alertmanager hears of it.
func (p pace) writeConfig(t *testing.T, dir string, told bool) {
	t.Helper()
	var config map[string]any
	decodeFile(t, filepath.Join(project.root, "prometheus/prometheus.yml"), yaml.Unmarshal, &config)
	config["global"] = map[string]any{
		"scrape_interval": p.scrape.String(), "scrape_timeout": min(p.scrape, 10*time.Second).String(),
		"evaluation_interval": min(p.scrape, 5*time.Second).String(),
		"external_labels":     map[string]string{"prometheus": "test"},
	}
	if !told {
		delete(config, "alerting")
	}
	writeYAML(t, filepath.Join(dir, "prometheus.yml"), config)

	files, _ := filepath.Glob(filepath.Join(project.root, "prometheus/rules/*.yml"))
	for _, file := range files {
		var rules struct {
			Groups []struct {
				Name  string           `yaml:"name"`
				Rules []map[string]any `yaml:"rules"`
			} `yaml:"groups"`
		}
		decodeFile(t, file, yaml.Unmarshal, &rules)
		for _, group := range rules.Groups {
			for _, rule := range group.Rules {
				rule["expr"] = p.shortenWindows(rule["expr"].(string))
				for _, key := range []string{"for", "keep_firing_for"} {
					if text, ok := rule[key].(string); ok && !slices.ContainsFunc(atTheirPace, func(name string) bool { return rule["alert"] == name }) {
						rule[key] = p.shortenFor(text)
					}
				}
			}
		}
		writeYAML(t, filepath.Join(dir, "rules", filepath.Base(file)), rules)
	}
	writeYAML(t, filepath.Join(dir, "rules", "test.yml"), map[string]any{"groups": []any{map[string]any{
		"name": "test", "rules": []any{map[string]any{
			"alert": synthetic, "for": p.shortenFor("5m"),
			"expr": p.shortenWindows(`sum(rate(kafka_server_brokertopicmetrics_messagesin_total{topic=""}[5m])) > 1`),
		}},
	}}})
}

func writeYAML(t *testing.T, file string, v any) {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o755)
	}
	if err == nil {
		err = os.WriteFile(file, text, 0o644) //nolint:gosec // the container has another user
	}
	if err != nil {
		t.Fatal(err)
	}
}

// beside runs a container beside the project's in one of its networks, with the image of one of its
// services, until the test ends. It counts as the project's, so that what removes that removes it.
func beside(t *testing.T, name, service, network string, args ...string) string {
	t.Helper()
	image := docker(t, "inspect", "--format", "{{.Config.Image}}", containers(t, service)[0])
	i := slices.Index(args, "IMAGE")
	args[i] = image
	id := docker(t, append([]string{
		"run", "-d", "--network", project.name + "-" + network, "--network-alias", name, "--memory", "512m",
		"--label", "com.docker.compose.project=" + project.name, "--label", "com.docker.compose.service=" + name,
		"--label", "com.docker.compose.oneoff=False", "--label", "com.docker.compose.container-number=1",
	}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			command := append(strings.Fields(cmp.Or(os.Getenv("STACK_DOCKER"), "docker")), "logs", "--tail", "50", id)
			logs, _ := exec.Command(command[0], command[1:]...).CombinedOutput()
			t.Logf("%s says:\n%s", name, logs)
		}
		docker(t, "rm", "-f", id)
	})
	return id
}

// secondPrometheus watches the same targets as the stack's own.
type secondPrometheus struct {
	t         *testing.T
	container string
}

func startPrometheus(t *testing.T, p pace, told bool) *secondPrometheus {
	t.Helper()
	dir := t.TempDir()
	p.writeConfig(t, dir, told)
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the container has another user
		t.Fatal(err)
	}
	s := &secondPrometheus{t, beside(t, "second-prometheus", "prometheus", "metrics",
		"--volumes-from", containers(t, "prometheus")[0]+":ro", "-v", dir+":/etc/prometheus:ro", "--tmpfs", "/tsdb", "IMAGE",
		"--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tsdb")}
	eventually(t, time.Minute, "a second Prometheus evaluates every rule, and has seen Kafka", func() error {
		var up struct{ Result []any }
		if err := s.ask("query", url.Values{"query": {`up{job="kafka"} == 1`}}, &up); err != nil {
			return err
		}
		if len(up.Result) == 0 {
			return errors.New("it has not seen Kafka yet")
		}
		var in struct {
			Groups []struct {
				Rules []struct{ Name, Query, Health, LastError string }
			}
		}
		if err := s.ask("rules", nil, &in); err != nil {
			return err
		}
		for _, group := range in.Groups {
			for _, rule := range group.Rules {
				if rule.Health != "ok" {
					return fmt.Errorf("%s is %s: %s: %s", rule.Name, rule.Health, rule.LastError, rule.Query)
				}
			}
		}
		if len(in.Groups) < 2 {
			return fmt.Errorf("it has %d groups of rules", len(in.Groups))
		}
		return nil
	})
	return s
}

func (s *secondPrometheus) ask(path string, query url.Values, v any) error {
	out, err := dockerOut("exec", s.container, "wget", "-qO-", "http://127.0.0.1:9090/api/v1/"+path+"?"+query.Encode())
	if err != nil {
		return err
	}
	var in struct{ Data json.RawMessage }
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		return err
	}
	return json.Unmarshal(in.Data, v)
}

// alerts lists those that have been in a state since it began, by name, each with its labels.
func (s *secondPrometheus) alerts(state string) map[string][]string {
	s.t.Helper()
	var in struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	if err := s.ask("query", url.Values{"query": {`ALERTS{alertstate="` + state + `"}[3h]`}}, &in); err != nil {
		s.t.Fatal(err)
	}
	out := make(map[string][]string)
	for _, r := range in.Result {
		name := r.Metric["alertname"]
		delete(r.Metric, "__name__")
		from := time.Unix(int64(r.Values[0][0].(float64)), 0).UTC()
		out[name] = append(out[name], fmt.Sprintf("%v from %s, %d evaluations", r.Metric, from.Format(time.TimeOnly), len(r.Values)))
	}
	return out
}

// awaitFiring waits until an alert fires, or has fired.
func (s *secondPrometheus) awaitFiring(within time.Duration, name string) {
	s.t.Helper()
	eventually(s.t, within, name+" fires", func() error {
		firing := s.alerts("firing")
		if len(firing[name]) == 0 {
			return fmt.Errorf("firing: %v; pending: %v", slices.Sorted(maps.Keys(firing)), s.alerts("pending"))
		}
		return nil
	})
}

// A healthy stack of one broker fires no alert, neither at rest nor under the demo's load, but for
// the one that always fires. This file is the first, so it is the stack as it was brought up.
func TestAlertsAreQuietOnAHealthyStack(t *testing.T) {
	p := paceOf()
	s := startPrometheus(t, p, false)
	time.Sleep(p.before)
	if firing := s.alerts("firing"); len(firing[synthetic]) > 0 {
		t.Logf("%s fires before the demo has begun: something else produces", synthetic)
	}
	d := startDemo(t)
	d.rate(5)
	began := time.Now()
	s.awaitFiring(4*time.Minute+time.Duration(10*float64(time.Minute)/p.faster), synthetic)
	time.Sleep(p.load - time.Since(began))
	d.rate(0)
	time.Sleep(p.after)

	firing, pending := s.alerts("firing"), s.alerts("pending")
	if len(firing["Watchdog"]) == 0 {
		t.Errorf("Watchdog has not fired: it must always")
	}
	for name, series := range firing {
		if name != "Watchdog" && name != synthetic {
			t.Errorf("%s has fired on a healthy stack: %s", name, strings.Join(series, "; "))
		}
		delete(pending, name)
	}
	for name, series := range pending {
		t.Logf("%s was pending, and did not fire: %s", name, strings.Join(series, "; "))
	}
}

// notification is what Alertmanager posts, and the path that it was posted to.
type notification struct {
	path   string
	Status string
	Alerts []struct {
		Status string
		Labels map[string]string
	}
}

// receiver is a container that Alertmanager notifies.
type receiver struct {
	t         *testing.T
	container string
}

func startReceiver(t *testing.T) *receiver {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "receiver"), "./receiver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in whatever image
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the container has another user
		t.Fatal(err)
	}
	return &receiver{t, beside(t, "receiver", "producer", "out",
		"-v", dir+":/receiver:ro", "--entrypoint", "/receiver/receiver", "IMAGE")}
}

func (r *receiver) notifications() (all []notification, err error) {
	out, err := dockerOut("logs", r.container)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		path, body, _ := strings.Cut(line, " ")
		n := notification{path: path}
		if err := json.Unmarshal([]byte(body), &n); err != nil {
			return nil, fmt.Errorf("notification %q: %w", line, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// await waits until a path has been told of an alert in a state; from tells which Prometheus it is of.
func (r *receiver) await(within time.Duration, path, status, name, from string) {
	r.t.Helper()
	eventually(r.t, within, fmt.Sprintf("%s is told that %s is %s", path, name, status), func() error {
		all, err := r.notifications()
		if err != nil {
			return err
		}
		for _, n := range all {
			for _, a := range n.Alerts {
				if n.path == path && a.Status == status && a.Labels["alertname"] == name && a.Labels["prometheus"] == from {
					return nil
				}
			}
		}
		return fmt.Errorf("it was told %+v", all)
	})
}

// notifyReceiver has the stack's Alertmanager notify the receiver, by the variables that .env takes.
func notifyReceiver(t *testing.T) {
	t.Helper()
	extra := filepath.Join(t.TempDir(), "alerts.env")
	if err := os.WriteFile(extra, []byte("ALERT_WEBHOOK_URL=http://receiver:8080/all\n"+
		"ALERT_CRITICAL_WEBHOOK_URL=http://receiver:8080/pager\nALERT_WATCHDOG_URL=http://receiver:8080/watchdog\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	docker(t, "compose", "--env-file", project.envFile, "--env-file", extra, "up", "-d", "--wait", "--no-deps", "alertmanager")
	t.Cleanup(func() { compose(t, "up", "-d", "--wait", "--no-deps", "alertmanager") })
}

// A broker that is killed pages, alone though much else fails without it, and its return is told.
func TestAlertsTellOfAKilledBrokerAndOfItsReturn(t *testing.T) {
	p := paceOf()
	r := startReceiver(t)
	notifyReceiver(t)
	s := startPrometheus(t, p, true)
	broker := containers(t, "kafka")[0]
	t.Cleanup(func() { // whatever happened, the next test finds all of them
		compose(t, "up", "-d", "--wait", "--no-deps", "--no-recreate", "kafka")
		for _, name := range []string{"producer", "consumer", "monitor"} {
			awaitServers(t, name, len(containers(t, name)))
		}
	})

	docker(t, "kill", "--signal", "KILL", broker)
	killed := time.Now()
	// Its `for`, a scrape before it and an evaluation after it, 10 s for others to come along; and time
	// for a machine that is busy with starting all else again and again.
	within := time.Duration(float64(time.Minute)/p.faster) + 8*p.scrape + 2*time.Minute
	r.await(within, "/pager", "firing", "KafkaBrokerDown", "test")
	t.Logf("the pager was told %v after the kill", time.Since(killed).Round(time.Second))
	r.await(10*time.Second, "/all", "firing", "KafkaBrokerDown", "test")

	s.awaitFiring(5*time.Minute, "SidecarUnhealthy")
	time.Sleep(15 * time.Second) // a group of critical alerts waits for 10 s
	all, err := r.notifications()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		for _, a := range n.Alerts {
			if name := a.Labels["alertname"]; a.Labels["prometheus"] == "test" && name != "Watchdog" && name != "KafkaBrokerDown" {
				t.Errorf("%s was told of %s, which follows from KafkaBrokerDown: %v", n.path, name, a.Labels)
			}
		}
	}

	docker(t, "start", broker)
	started := time.Now()
	r.await(4*time.Minute, "/pager", "resolved", "KafkaBrokerDown", "test")
	t.Logf("the pager was told of the end %v after the start", time.Since(started).Round(time.Second))
	// The stack's own Prometheus repeats itself each minute.
	r.await(time.Minute, "/watchdog", "firing", "Watchdog", "")
}
