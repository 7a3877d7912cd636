//go:build stack

package stacktest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestEveryContainerIsHealthy(t *testing.T) {
	for id := range strings.FieldsSeq(compose(t, "ps", "-aq")) {
		var c struct {
			Name  string
			State struct {
				Status   string
				ExitCode int
				Health   *struct{ Status string }
			}
		}
		if err := json.Unmarshal([]byte(docker(t, "inspect", "--format", "{{json .}}", id)), &c); err != nil {
			t.Fatal(err)
		}
		switch {
		case strings.Contains(c.Name, "-bootstrap-"):
			if c.State.Status != "exited" || c.State.ExitCode != 0 {
				t.Errorf("%s is %s with %d; want that it ended with 0", c.Name, c.State.Status, c.State.ExitCode)
			}
		case c.State.Health == nil:
			t.Errorf("%s has no health check", c.Name)
		case c.State.Health.Status != "healthy":
			t.Errorf("%s is %s; want healthy", c.Name, c.State.Health.Status)
		}
	}
}

// The dashboard and Kafka's plain listener stay on this machine, whatever BIND_ADDRESS says.
func TestPortsArePublishedOnLoopback(t *testing.T) {
	for id := range strings.FieldsSeq(compose(t, "ps", "-q")) {
		var c struct {
			Name            string
			NetworkSettings struct {
				Ports map[string][]struct {
					IP   string `json:"HostIp"`
					Port string `json:"HostPort"`
				}
			}
		}
		if err := json.Unmarshal([]byte(docker(t, "inspect", "--format", "{{json .}}", id)), &c); err != nil {
			t.Fatal(err)
		}
		for port, bindings := range c.NetworkSettings.Ports {
			for _, b := range bindings {
				if b.IP != "127.0.0.1" {
					t.Errorf("%s: %s is published on %s:%s; want 127.0.0.1", c.Name, port, b.IP, b.Port)
				}
			}
		}
	}

	t.Setenv("BIND_ADDRESS", "0.0.0.0")
	var config struct {
		Services map[string]struct {
			Ports []struct {
				HostIP string `json:"host_ip"`
				Target int    `json:"target"`
			}
		}
	}
	if err := json.Unmarshal([]byte(compose(t, "config", "--format", "json")), &config); err != nil {
		t.Fatal(err)
	}
	open := make(map[string]bool)
	for name, s := range config.Services {
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" {
				open[fmt.Sprintf("%s:%d", name, p.Target)] = true
			}
		}
	}
	if want := map[string]bool{"traefik:80": true}; !maps.Equal(open, want) {
		t.Errorf("with BIND_ADDRESS=0.0.0.0 these are open to the network: %v; want %v alone", open, want)
	}
}

// Asked from Traefik's container, which is the only other one in the proxy's network.
func TestSocketProxyLetsOnlyReadsThrough(t *testing.T) {
	ask := func(method, path string) string {
		post := ""
		if method == "POST" {
			post = `--post-data '{"Image":"x"}' --header 'Content-Type: application/json'`
		}
		return compose(t, "exec", "-T", "traefik", "sh", "-c",
			fmt.Sprintf("wget -S -O /dev/null -T 5 %s 'http://socket-proxy:2375%s' 2>&1 || true", post, path))
	}
	id := docker(t, "inspect", "--format", "{{.Id}}", containers(t, "kafka")[0])
	for _, c := range []struct {
		method, path string
		allowed      bool
	}{
		{"GET", "/_ping", true},
		{"GET", "/v1.41/version", true},
		{"GET", "/v1.41/containers/json", true},
		{"GET", "/containers/" + id + "/json", true},
		{"GET", "/containers/" + id + "/stats?stream=false&one-shot=true", true},
		{"POST", "/containers/create", false},
		{"POST", "/v1.41/containers/create", false},
		{"POST", "/v1.41/containers/" + id + "/stop", false},
		{"POST", "/v1.41/containers/" + id + "/exec", false},
		{"POST", "/containers/json", false},
		{"GET", "/secrets", false},
		{"GET", "/v1.41/secrets", false},
		{"GET", "/v1.41/info", false},
		{"GET", "/v1.41/images/json", false},
		{"GET", "/v1.41/containers/" + id + "/archive?path=/etc/passwd", false},
		{"GET", "/v1.41/containers/" + id + "/logs?stdout=1", false},
		{"GET", "/v1.41/containers/" + id + "/export", false},
		{"GET", "/containers/json/../../v1.41/info", false},
		{"GET", "/v1.41%2Finfo", false},
	} {
		out := ask(c.method, c.path)
		if got := strings.Contains(out, " 200 OK"); got != c.allowed {
			t.Errorf("%s %s: allowed %t, want %t; wget says %s", c.method, c.path, got, c.allowed, out)
		}
		if !c.allowed && !strings.Contains(out, " 403 Forbidden") {
			t.Errorf("%s %s: want 403 Forbidden; wget says %s", c.method, c.path, out)
		}
	}
}

func TestUpAgainChangesNothing(t *testing.T) {
	scale(t, "producer", 1) // what up asks for
	scale(t, "consumer", 1)
	state := func() map[string]string {
		got := map[string]string{"topics": kafkaTool(t, "", "kafka-topics.sh", "--describe")}
		for line := range strings.Lines(compose(t, "ps", "-a", "--format", "{{.Name}} {{.ID}}")) {
			name, id, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[name] = id
			if !strings.Contains(name, "-bootstrap-") { // it may run again
				got[name] += docker(t, "inspect", "--format", ", started {{.State.StartedAt}}", id)
			}
		}
		for _, path := range []string{".", "secrets", "scripts", "compose", "traefik", "prometheus", "grafana"} {
			maps.Copy(got, files(t, filepath.Join(project.root, path), path != "."))
		}
		maps.Copy(got, files(t, project.envFile, false))
		return got
	}
	before := state()
	if out, err := run("", filepath.Join(project.root, "scripts", "up"), "-y"); err != nil {
		t.Fatalf("the second ./scripts/up failed: %v\n%s", err, out)
	}
	after := state()
	for name, was := range before {
		if is := after[name]; is != was {
			t.Errorf("%s was\n%s\nand is after a second ./scripts/up\n%s", name, was, is)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("the second ./scripts/up made %s", name)
		}
	}
}

// files sums up what is in a folder, and below it if deep.
func files(t *testing.T, root string, deep bool) map[string]string {
	t.Helper()
	sums := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && !deep:
			return filepath.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		sums[path] = fmt.Sprintf("%x", sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}
