//go:build stack

package stacktest

import (
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// startHosts starts what the profile hosts has, where it does not run already (./scripts/test has it on).
func startHosts(t *testing.T) {
	t.Helper()
	// It gives up at once where one is not healthy for a moment.
	eventually(t, 2*time.Minute, "the profile hosts", func() error {
		_, err := dockerOut("compose", "--env-file", project.envFile, "--profile", "hosts", "up", "-d", "--wait", "--no-deps", "--no-recreate", "containers", "node-exporter")
		return err
	})
}

// valuesOf returns the values of a query by service, or under "" where they have none.
func valuesOf(t *testing.T, expr string) (map[string]float64, error) {
	t.Helper()
	var result struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := prometheus(t, "query", url.Values{"query": {expr}}, &result); err != nil {
		return nil, err
	}
	values := make(map[string]float64)
	for _, r := range result.Result {
		value, err := strconv.ParseFloat(r.Value[1].(string), 64)
		if err != nil {
			return nil, err
		}
		values[r.Metric["service"]] = value
	}
	return values, nil
}

// What Prometheus has of the containers is what docker says of them.
func TestContainersAreSeenAsDockerSeesThem(t *testing.T) {
	startHosts(t)
	kafka := containers(t, "kafka")[0]
	limit := docker(t, "inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", kafka)
	eventually(t, 90*time.Second, "kafka's memory", func() error {
		seen, err := valuesOf(t, `container_memory_working_set_bytes`)
		if err != nil {
			return err
		}
		shown, err := dockerOut("stats", "--no-stream", "--format", "{{.MemUsage}}", kafka)
		if err != nil {
			return err
		}
		used, err := bytesOf(strings.Fields(shown)[0])
		if err != nil {
			return err
		}
		// It is up to half a minute older.
		if math.Abs(seen["kafka"]-used) > used/5 {
			return fmt.Errorf("kafka uses %.0f bytes; docker stats says %s", seen["kafka"], shown)
		}
		for _, name := range []string{"traefik", "producer", "consumer", "monitor", "prometheus", "socket-proxy", "containers", "node-exporter"} {
			if seen[name] == 0 {
				return fmt.Errorf("there is no memory of %s among %v", name, seen)
			}
		}
		limits, err := valuesOf(t, `container_spec_memory_limit_bytes{service="kafka"}`)
		if err != nil {
			return err
		}
		threads, err := valuesOf(t, `container_threads_max{service="kafka"}`)
		if got := fmt.Sprintf("%.0f %.0f", limits["kafka"], threads["kafka"]); err == nil && got != limit {
			err = fmt.Errorf("kafka may use %s (bytes, threads); docker inspect says %s", got, limit)
		}
		return err
	})
	// One that has ended is seen, too, and has no figures.
	if runs, err := valuesOf(t, `container_running`); err != nil || runs["bootstrap"] != 0 || runs["kafka"] != 1 || len(runs) < 10 {
		t.Errorf("container_running is %v, %v; want 0 of bootstrap, and 1 of kafka", runs, err)
	}
	// Those of other projects are not.
	if others, err := valuesOf(t, `count(container_info{project!="`+project.name+`"})`); err != nil || len(others) != 0 {
		t.Errorf("containers of other projects are seen: %v, %v", others, err)
	}
	// The figures cost little: 24 series a container, two more for each further network, and 200 of the machine
	// with 2 processors.
	if series, err := valuesOf(t, `count({job=~"containers|node-exporter"})`); err != nil || series[""] > 1000 {
		t.Errorf("both jobs have %v series, %v; want 1,000 at most", series, err)
	}
}

// bytesOf reads what docker stats prints, such as 550.2MiB.
func bytesOf(text string) (float64, error) {
	for unit, bytes := range map[string]float64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			value, err := strconv.ParseFloat(number, 64)
			return value * bytes, err
		}
	}
	return 0, fmt.Errorf("%q is not in KiB, MiB or GiB", text)
}

// A container in which the kernel kills for want of memory, and that Docker starts again, is seen: how
// often, and which. With cgroup v1 Docker may miss the kill of the main process, so here it is a child.
func TestKillsForWantOfMemoryAndRestartsAreSeen(t *testing.T) {
	startHosts(t)
	name := unique("hog")
	image := docker(t, "inspect", "--format", "{{.Config.Image}}", containers(t, "prometheus")[0])
	docker(t, "run", "-d", "--name", name, "--memory", "8m", "--memory-swap", "8m", "--network", "none", "--restart", "on-failure:1",
		"--label", "com.docker.compose.project="+project.name, "--label", "com.docker.compose.service=hog", "--label", "com.docker.compose.oneoff=False",
		"--entrypoint", "sh", image, "-c", `for i in 1 2; do sh -c 'a=0123456789; while :; do a=$a$a; done'; sleep 1; done; exit 1`)
	t.Cleanup(func() { _, _ = dockerOut("rm", "-f", name) })
	eventually(t, 90*time.Second, "two kills and a restart of the container", func() error {
		kills, err := valuesOf(t, `container_oom_events_total{service="hog"}`)
		if err != nil {
			return err
		}
		restarts, err := valuesOf(t, `container_restarts_total{service="hog"}`)
		if err == nil && (kills["hog"] < 2 || restarts["hog"] != 1) {
			err = fmt.Errorf("%v kills, %v restarts", kills, restarts)
		}
		return err
	})
}

// Who stops the profile wants no alert: the targets go with it, and come back.
func TestTargetsOfHostsGoWhenTheyAreStopped(t *testing.T) {
	startHosts(t)
	targets := func(want int) {
		t.Helper()
		eventually(t, time.Minute, fmt.Sprintf("%d targets of the profile", want), func() error {
			var in struct {
				Active []struct{ ScrapePool, ScrapeURL string } `json:"activeTargets"`
			}
			err := prometheus(t, "targets", nil, &in)
			var known []string
			for _, target := range in.Active {
				if target.ScrapePool == "hosts" {
					known = append(known, target.ScrapeURL)
				}
			}
			if err == nil && len(known) != want {
				err = fmt.Errorf("Prometheus knows %v", known)
			}
			return err
		})
	}
	targets(2)
	compose(t, "--profile", "hosts", "stop", "containers", "node-exporter")
	targets(0)
	startHosts(t)
	targets(2)
}

// The socket proxy has 64 connections. A question that is given up, as to a container that hangs, takes
// none of them along: Traefik would soon be without an engine, too.
func TestQuestionsThatAreGivenUpLeaveTheSocketProxy(t *testing.T) {
	const giveUp = `
		for round in 1 2 3 4 5 6 7; do
			for n in 1 2 3 4 5 6 7 8 9 10; do wget -qO /dev/null http://127.0.0.1:2375/events & pids="$pids $!"; done
			sleep 0.3; kill $pids; wait; pids=
		done 2>/dev/null
		exec timeout 10 wget -qO - http://127.0.0.1:2375/_ping`
	if got := dockerIn(t, giveUp, "exec", "-i", containers(t, "socket-proxy")[0], "sh", "-s"); got != "OK" {
		t.Errorf("after 70 questions that were given up the proxy answers %q, want OK", got)
	}
}
