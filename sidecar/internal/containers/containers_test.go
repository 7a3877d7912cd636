package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	bootstrapID  = "4ad80501ba242ebd3cef87a076c0f664cf682c57bd6082df6cc0256bef49dfa5"
	containersID = "4a4cc813147b9381175c719def412db4b4b5b189ee0b7e0fd3c9ad3de9772586"
	kafkaID      = "af479ebc5df533246ba8065d9d6094f07ce4ad3d5f8a0fbbe45e8c7b9a2c2ff0"
)

// fakeEngine answers what was recorded of a real one.
type fakeEngine struct {
	*httptest.Server
	events chan string // lines of GET /events; an empty one ends the connection

	mu      sync.Mutex
	answers map[string]string // file or text by path; what has none is a 404
	asked   []string          // queries of /containers/json and /events
}

func newEngine(t *testing.T) *fakeEngine {
	t.Helper()
	f := &fakeEngine{events: make(chan string), answers: map[string]string{
		"/_ping":                                 "OK",
		"/containers/json":                       "list.json",
		"/containers/" + bootstrapID + "/json":   "bootstrap.json",
		"/containers/" + kafkaID + "/json":       "kafka.json",
		"/containers/" + kafkaID + "/stats":      "stats-v1.json",
		"/containers/" + containersID + "/json":  `{"RestartCount":2,"State":{"Running":true,"StartedAt":"2026-11-27T23:14:15.5Z","Health":{"Status":"unhealthy"}},"HostConfig":{"Memory":0,"PidsLimit":null}}`,
		"/containers/" + containersID + "/stats": "stats-v2.json",
	}}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		answer, ok := f.answers[r.URL.Path]
		if strings.HasSuffix(r.URL.Path, "s/json") || r.URL.Path == "/events" {
			f.asked = append(f.asked, r.URL.RawQuery)
		}
		f.mu.Unlock()
		switch {
		case r.URL.Path == "/events":
			w.(http.Flusher).Flush()
			for {
				select {
				case line := <-f.events:
					if line == "" {
						return
					}
					fmt.Fprintln(w, line)
					w.(http.Flusher).Flush()
				case <-r.Context().Done():
					return
				}
			}
		case !ok:
			http.NotFound(w, r)
		case answer == "503":
			http.Error(w, "No server is available", http.StatusServiceUnavailable)
		case strings.HasSuffix(answer, ".json"):
			http.ServeFile(w, r, filepath.Join("testdata", answer))
		default:
			fmt.Fprint(w, answer)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeEngine) set(path, answer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[path] = answer
}

func (f *fakeEngine) gone(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.answers, path)
}

func (f *fakeEngine) collector(o Options) *Collector {
	o.Engine, o.Project, o.Interval, o.Log = f.URL, "postamt", 15*time.Second, slog.New(slog.DiscardHandler)
	if o.Max == 0 {
		o.Max = 10
	}
	return New(o)
}

// samples are what a scrape would get, as name{service}: value, or name{interface}{service}.
func samples(t *testing.T, c *Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				if l.GetName() == "service" || l.GetName() == "interface" {
					name += "{" + l.GetValue() + "}"
				}
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return got
}

func refresh(t *testing.T, c *Collector) map[string]float64 {
	t.Helper()
	if err := c.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return samples(t, c)
}

func TestMetricsAreWhatTheEngineSays(t *testing.T) {
	f := newEngine(t)
	got := refresh(t, f.collector(Options{}))
	for name, want := range map[string]float64{
		// cgroup v1: 594,509,824 in use, of which 17,399,808 are inactive pages of files.
		"container_memory_usage_bytes{kafka}":               594509824,
		"container_memory_working_set_bytes{kafka}":         594509824 - 17399808,
		"container_memory_rss{kafka}":                       570929152,
		"container_memory_total_active_file_bytes{kafka}":   311296,
		"container_memory_total_inactive_file_bytes{kafka}": 17399808,
		"container_spec_memory_limit_bytes{kafka}":          1 << 30,
		"container_cpu_usage_seconds_total{kafka}":          27.131980047,
		"container_cpu_user_seconds_total{kafka}":           24.56,
		"container_cpu_system_seconds_total{kafka}":         2.56,
		"container_cpu_cfs_periods_total{kafka}":            0,
		"container_threads{kafka}":                          117,
		"container_threads_max{kafka}":                      512,
		"container_start_time_seconds{kafka}":               1795821255.089,
		"container_restarts_total{kafka}":                   0,
		"container_oom_events_total{kafka}":                 0,
		"container_healthy{kafka}":                          1,
		"container_running{kafka}":                          1,
		"container_info{kafka}":                             1,

		// cgroup v2, and no limits.
		"container_memory_working_set_bytes{containers}":           50000000,
		"container_memory_rss{containers}":                         40000000,
		"container_memory_total_active_file_bytes{containers}":     5000000,
		"container_memory_total_inactive_file_bytes{containers}":   10000000,
		"container_spec_memory_limit_bytes{containers}":            0,
		"container_threads_max{containers}":                        0,
		"container_cpu_usage_seconds_total{containers}":            3.5,
		"container_cpu_cfs_periods_total{containers}":              100,
		"container_cpu_cfs_throttled_periods_total{containers}":    25,
		"container_cpu_cfs_throttled_seconds_total{containers}":    1.5,
		"container_network_receive_bytes_total{eth0}{containers}":  100,
		"container_network_receive_bytes_total{eth1}{containers}":  200,
		"container_network_transmit_bytes_total{eth0}{containers}": 10,
		"container_network_transmit_bytes_total{eth1}{containers}": 20,
		"container_fs_reads_bytes_total{containers}":               8192,
		"container_fs_writes_bytes_total{containers}":              8192,
		"container_restarts_total{containers}":                     2,
		"container_healthy{containers}":                            0,

		"container_running{bootstrap}": 0,

		"postamt_containers_collect_errors_total": 0,
		"postamt_containers_left_out":             0,
	} {
		if is, ok := got[name]; !ok || is != want {
			t.Errorf("%s is %v (there: %t), want %v", name, is, ok, want)
		}
	}
	for _, name := range []string{
		"container_memory_usage_bytes{bootstrap}", // it has ended
		"container_healthy{bootstrap}",
		"container_fs_reads_bytes_total{kafka}", // cgroup v1 has not counted any
	} {
		if value, ok := got[name]; ok {
			t.Errorf("%s is %v; want no such series", name, value)
		}
	}
	for _, want := range []string{"com.docker.compose.project%3Dpostamt", "com.docker.compose.oneoff%3DFalse", "all=true"} {
		if !strings.Contains(f.asked[0], want) {
			t.Errorf("the list was asked for with %s; want %s in it", f.asked[0], want)
		}
	}
}

func TestAContainerThatGoesMeanwhileIsLeftOut(t *testing.T) {
	for _, path := range []string{"/json", "/stats"} {
		f := newEngine(t)
		f.gone("/containers/" + kafkaID + path)
		got := refresh(t, f.collector(Options{}))
		if _, ok := got["container_running{kafka}"]; ok || got["container_running{containers}"] != 1 {
			t.Errorf("without %s of kafka there is %v", path, got)
		}
	}
}

func TestAContainerThatEndsMeanwhileHasNoFigures(t *testing.T) {
	for _, answer := range []string{
		"", // so Engine 20.10 answers
		`{"read":"0001-01-01T00:00:00Z","preread":"0001-01-01T00:00:00Z","pids_stats":{},"memory_stats":{},"name":"/postamt-kafka-1"}`,
		"null",
	} {
		f := newEngine(t)
		f.set("/containers/"+kafkaID+"/stats", answer)
		got := refresh(t, f.collector(Options{}))
		if _, ok := got["container_memory_usage_bytes{kafka}"]; ok || got["container_info{kafka}"] != 1 || got["container_running{kafka}"] != 0 || got["container_threads{containers}"] != 21 {
			t.Errorf("after the answer %q there is %v; want of kafka that it exists and does not run, and figures of the others", answer, got)
		}
	}
}

func TestALookThatFailsIsCountedAndTheLastOneGoesStale(t *testing.T) {
	now := time.Now()
	f := newEngine(t)
	c := f.collector(Options{Now: func() time.Time { return now }})
	if got := samples(t, c); got["postamt_containers_last_collect_timestamp_seconds"] != 0 || len(got) != 4 {
		t.Errorf("before the first look there is %v", got)
	}
	refresh(t, c)
	f.set("/containers/json", "503")
	err := c.Refresh(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/containers/json: 503") {
		t.Errorf("the error is %v; want the path and the status", err)
	}
	if got := samples(t, c); got["postamt_containers_collect_errors_total"] != 1 || got["container_running{kafka}"] != 1 {
		t.Errorf("after a failure there is %v; want it counted, and the last look", got)
	}
	now = now.Add(52 * time.Second)
	if _, ok := samples(t, c)["container_running{kafka}"]; !ok {
		t.Error("the look is gone after 52 s; want it until three and a half intervals have passed")
	}
	now = now.Add(time.Second)
	if got := samples(t, c); len(got) != 4 {
		t.Errorf("after 53 s there is still %v", got)
	}
}

func TestContainersBeyondTheLimitAreLeftOutAndSaid(t *testing.T) {
	c := newEngine(t).collector(Options{Max: 2})
	err := c.Refresh(t.Context())
	if want := "project postamt has 3 containers; MAX_CONTAINERS is 2"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %v; want %s", err, want)
	}
	got := samples(t, c)
	if _, ok := got["container_running{kafka}"]; ok || got["postamt_containers_left_out"] != 1 || got["container_running{containers}"] != 1 {
		t.Errorf("with a limit of 2 there is %v; want the first two by name, and 1 left out", got)
	}
}

func TestOOMKillsAreCounted(t *testing.T) {
	f := newEngine(t)
	c := f.collector(Options{})
	c.followRetry = time.Millisecond
	refresh(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.followKills(ctx) }()
	oom := func(id string, at time.Time) string {
		return fmt.Sprintf(`{"status":"oom","id":%q,"Type":"container","Action":"oom","Actor":{"ID":%[1]q,"Attributes":{}},"time":%d,"timeNano":%d}`, id, at.Unix(), at.UnixNano())
	}
	start := time.Now()
	f.events <- oom(kafkaID, start)
	f.events <- oom(kafkaID, start.Add(time.Second))
	f.events <- `{"timeNano":` // the connection ends in the middle
	f.events <- ""
	deadline := time.Now().Add(10 * time.Second)
	for samples(t, c)["container_oom_events_total{kafka}"] != 2 || f.queries() < 3 {
		if time.Now().After(deadline) {
			t.Fatalf("there is %v after %d queries; want 2 kills of kafka, and a second connection", samples(t, c), f.queries())
		}
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("asked to stop, it returns %v; want nil", err)
	}
	f.mu.Lock()
	again := f.asked[2]
	f.mu.Unlock()
	next := start.Add(time.Second + time.Nanosecond)
	if want := fmt.Sprintf("since=%d.%09d", next.Unix(), next.Nanosecond()); !strings.Contains(again, want) {
		t.Errorf("the second connection asks for %s; want %s, or kills are counted twice", again, want)
	}

	// A container that was removed takes its count with it.
	list, err := os.ReadFile("testdata/list.json")
	if err != nil {
		t.Fatal(err)
	}
	f.set("/containers/json", strings.ReplaceAll(string(list), kafkaID, bootstrapID))
	c.kills[kafkaID] = kill{2, start.Add(-time.Hour)}
	refresh(t, c)
	if len(c.kills) != 0 {
		t.Errorf("kills of containers that are no more are kept: %v", c.kills)
	}
}

func (f *fakeEngine) queries() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked)
}

func TestTargetsAreWrittenAndTakenBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts.json")
	f := newEngine(t)
	c := f.collector(Options{Targets: file})
	refresh(t, c)
	var got any
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &got)
	}
	if want := `[map[labels:map[job:containers] targets:[containers:8081]]]`; err != nil || fmt.Sprint(got) != want {
		t.Errorf("the file has %s, %v; want %s", text, err, want)
	}

	was, _ := os.Stat(file)
	refresh(t, c)
	if is, _ := os.Stat(file); !os.SameFile(was, is) {
		t.Error("the file was written anew with the same text; Prometheus would read it again and again")
	}
	f.set("/containers/json", "[]")
	refresh(t, c)
	if text, _ := os.ReadFile(file); string(text) != "[]" {
		t.Errorf("without containers the file has %s; want []", text)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("after the end the file is still there (%v): its alerts would fire", err)
	}

	c = f.collector(Options{Targets: filepath.Join(t.TempDir(), "missing", "hosts.json")})
	if err := c.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "CONTAINERS_TARGETS_FILE: ") {
		t.Errorf("where no file can be written the error is %v; want the variable's name", err)
	}
}
