package app_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/app"
	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/contract"
)

// process is a role that a test started, and stops.
type process struct {
	t            *testing.T
	api, metrics string
	stop         context.CancelFunc
	ended        chan error
	base         *http.Transport
	client       *http.Client // holds every answer against openapi.yaml
}

func configOf(t *testing.T, environ map[string]string) config.Config {
	t.Helper()
	all := map[string]string{
		"HTTP_ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0", "SHUTDOWN_LISTEN_GRACE": "0s", "SHUTDOWN_TIMEOUT": "10s",
		"HEALTH_INTERVAL": "50ms", "MONITOR_INTERVAL": "50ms",
	}
	maps.Copy(all, environ)
	cfg, err := config.Load(all)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.OpenAPI, err = contract.Text(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// start runs a role until the test ends or stops it.
func start(t *testing.T, run func(context.Context, func(api, metrics net.Addr)) error) *process {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	base := &http.Transport{}
	p := &process{t: t, stop: stop, ended: make(chan error, 1), base: base, client: &http.Client{Transport: &contract.Transport{Base: base, Fail: func(err error) { t.Error(err) }}}}
	ready := make(chan struct{})
	go func() {
		p.ended <- run(ctx, func(api, metrics net.Addr) {
			p.api, p.metrics = "http://"+api.String(), "http://"+metrics.String()
			close(ready)
		})
		close(p.ended)
	}()
	t.Cleanup(func() {
		stop()
		for err := range p.ended {
			if err != nil {
				t.Error(err)
			}
		}
		p.base.CloseIdleConnections()
	})
	select {
	case <-ready:
	case err := <-p.ended:
		t.Fatalf("it did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("it did not start within 30s")
	}
	return p
}

func startRole(t *testing.T, role app.Role, cluster *kfake.Cluster, environ map[string]string) *process {
	t.Helper()
	all := map[string]string{"KAFKA_BOOTSTRAP_SERVERS": strings.Join(cluster.ListenAddrs(), ",")}
	maps.Copy(all, environ)
	cfg := configOf(t, all)
	return start(t, func(ctx context.Context, ready func(api, metrics net.Addr)) error {
		return app.Run(ctx, role, cfg, slog.New(slog.DiscardHandler), ready)
	})
}

func clusterFor(t *testing.T) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "a", "_postamt.sessions"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// try sends a request and returns its status and body.
func (p *process) try(method, url, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/vnd.kafka.json.v2+json")
	client := p.client
	if strings.HasPrefix(url, p.metrics+"/") {
		client = &http.Client{Transport: p.base} // not of the API
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text)), err
}

func (p *process) want(method, path, body string, status int) string {
	p.t.Helper()
	got, text, err := p.try(method, p.api+path, body)
	if err != nil || got != status {
		p.t.Errorf("%s %s: %d %s, %v; want %d", method, path, got, text, err, status)
	}
	return text
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// running lists what goroutines run of the service, as their stacks.
func running() string {
	var all strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&all, 1)
	var out []string
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		for _, ours := range []string{"sidecar/internal/app.", "sidecar/internal/httpapi", "sidecar/internal/session", "sidecar/internal/stream", "sidecar/internal/kafka", "sidecar/internal/lag", "sidecar/internal/health", "pkg/kgo.", "confluent-kafka-go"} {
			if strings.Contains(stack, ours) && !strings.Contains(stack, "app_test.") {
				out = append(out, stack)
				break
			}
		}
	}
	return strings.Join(out, "\n\n")
}

func TestShutdownGoesInOrder(t *testing.T) {
	cluster := clusterFor(t)
	p := startRole(t, app.Dev, cluster, map[string]string{"SHUTDOWN_LISTEN_GRACE": "700ms"})
	eventually(t, "the role is healthy", func() bool { status, _, _ := p.try("GET", p.api+"/health/ready", ""); return status == 200 })
	p.want("POST", "/topics/a/records", "first", 200)
	p.want("POST", "/consumers/g", `{"name":"c"}`, 200)
	p.want("POST", "/consumers/g/instances/c/subscription", `{"topics":["a"]}`, 204)

	// Three requests that are under way when the role is asked to stop.
	type answer struct {
		status int
		body   string
		err    error
		after  time.Duration
	}
	var asked time.Time
	run := func(method, path, body string) chan answer {
		c := make(chan answer, 1)
		go func() {
			status, text, err := p.try(method, p.api+path, body)
			c <- answer{status, text, err, time.Since(asked)}
		}()
		return c
	}
	release, reached := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.ProduceRequest).TransactionID != nil { // of sessions, that are released
			return nil, nil, false
		}
		close(reached)
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	produce := run("POST", "/topics/a/records", "second")
	<-reached
	read := run("GET", "/consumers/g/instances/c/records?timeout=30000", "")
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, p.api+"/streams/a", nil)
	resp, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	stream := bufio.NewReader(resp.Body)
	if _, err := stream.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reads are under way", func() bool {
		_, text, _ := p.try("GET", p.metrics+"/metrics", "")
		return strings.Contains(text, "postamt_http_requests_in_flight 3\n")
	})

	if running() == "" {
		t.Fatal("the look for goroutines finds none while the role serves")
	}
	asked = time.Now()
	p.stop()
	// The proxy must see it, and requests that still come must be answered.
	eventually(t, "health says draining", func() bool {
		status, text, err := p.try("GET", p.api+"/health", "")
		if err != nil {
			t.Fatalf("after %v: %v", time.Since(asked), err)
		}
		return status == 503 && strings.Contains(text, `"status":"draining"`)
	})
	p.want("GET", "/topics", "", 200)
	p.want("GET", "/health/live", "", 200)
	if _, _, err := p.try("GET", p.metrics+"/metrics", ""); err != nil {
		t.Errorf("metrics while draining: %v", err)
	}

	// Then what waits ends at once; only what is being done is waited for.
	if a := <-read; a.status != 200 || a.body != "[]" || a.after < 500*time.Millisecond || a.after > 5*time.Second {
		t.Errorf("the waiting read ends with %+v", a)
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	select {
	case err := <-p.ended:
		t.Fatalf("it ended with a request in flight: %v", err)
	case a := <-produce:
		t.Fatalf("the produce ended before Kafka answered: %+v", a)
	case <-time.After(50 * time.Millisecond):
	}
	eventually(t, "no new connections", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(p.api, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(release)
	if a := <-produce; a.status != 200 || !strings.Contains(a.body, `"offset":1`) {
		t.Errorf("the produce in flight: %+v", a)
	}
	if err := <-p.ended; err != nil {
		t.Errorf("it ended with %v", err)
	}
	p.client.CloseIdleConnections()
	var left string
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = running(); left == "" {
			return
		}
	}
	t.Errorf("goroutines are left:\n%s", left)
}

func TestRequestsThatDoNotEndAreCutOff(t *testing.T) {
	cluster := clusterFor(t)
	p := startRole(t, app.Producer, cluster, map[string]string{"SHUTDOWN_TIMEOUT": "300ms"})
	reached, release := make(chan struct{}), make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req.(*kmsg.ProduceRequest).TransactionID != nil { // of sessions, that are released
			return nil, nil, false
		}
		close(reached)
		cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	t.Cleanup(func() { close(release) })
	answered := make(chan int, 1)
	go func() {
		status, _, _ := p.try("POST", p.api+"/topics/a/records", "v")
		answered <- status
	}()
	<-reached
	begin := time.Now()
	p.stop()
	err := <-p.ended
	if err == nil || !strings.Contains(err.Error(), "requests did not end within 300ms") {
		t.Errorf("it ended with %v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if status := <-answered; status == 200 {
		t.Error("a record that Kafka has not acknowledged was answered with 200")
	}
}

func TestARoleSaysWhoServesWhatItDoesNot(t *testing.T) {
	cluster := clusterFor(t)
	for role, path := range map[app.Role]string{app.Producer: "/topics", app.Monitor: "/streams/a", app.Consumer: "/lag"} {
		p := startRole(t, role, cluster, nil)
		if text := p.want("GET", path, "", 404); !strings.Contains(text, "is served by the") {
			t.Errorf("%s of the %s: %s", path, role, text)
		}
		eventually(t, string(role)+" is healthy", func() bool { status, _, _ := p.try("GET", p.api+"/health", ""); return status == 200 })
		if _, text, _ := p.try("GET", p.metrics+"/metrics", ""); !strings.Contains(text, fmt.Sprintf(`postamt_build_info{role=%q`, role)) {
			t.Errorf("the metrics of the %s do not say so", role)
		}
	}
}

func TestAnAddressThatIsTakenIsNamed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	cluster := clusterFor(t)
	for _, variable := range []string{"HTTP_ADDRESS", "METRICS_ADDRESS"} {
		cfg := configOf(t, map[string]string{variable: taken.Addr().String(), "KAFKA_BOOTSTRAP_SERVERS": cluster.ListenAddrs()[0]})
		err := app.Run(t.Context(), app.Dev, cfg, slog.New(slog.DiscardHandler), nil)
		if err == nil || !strings.HasPrefix(err.Error(), variable+": ") {
			t.Errorf("%s is taken: %v", variable, err)
		}
	}
}

func TestDevKeepsRecordsOverARestart(t *testing.T) {
	dir := t.TempDir()
	dev := func() *process {
		return start(t, func(ctx context.Context, ready func(api, metrics net.Addr)) error {
			return app.RunDev(ctx, configOf(t, nil), "", dir, slog.New(slog.DiscardHandler), ready)
		})
	}
	const base = "/consumers/g/instances/c"
	first := dev()
	for _, topic := range []string{"my-topic", "test.voucher", "prod.voucher", "test.voucher.dead-letters"} { // the stack's own
		first.want("GET", "/topics/"+topic, "", 200)
	}
	for i := range 3 {
		first.want("POST", "/topics/my-topic/records?partition=1", fmt.Sprint(i), 200)
	}
	first.want("POST", "/consumers/g", `{"name":"c","format":"json","auto.offset.reset":"earliest"}`, 200)
	first.want("POST", base+"/subscription", `{"topics":["my-topic"]}`, 204)
	eventually(t, "a record is read", func() bool { return first.want("GET", base+"/records?max_bytes=1", "", 200) != "[]" })
	first.want("POST", base+"/offsets", "", 200)
	first.stop()
	if err := <-first.ended; err != nil {
		t.Fatal(err)
	}

	again := dev()
	if text := again.want("GET", "/topics/my-topic/partitions/1/offsets", "", 200); text != `{"beginning_offset":0,"end_offset":3}` {
		t.Errorf("after the restart: %s", text)
	}
	again.want("GET", base+"/subscription", "", 200) // the session is still there
	var text string
	eventually(t, "the rest is read", func() bool { text = again.want("GET", base+"/records", "", 200); return text != "[]" })
	if !strings.HasPrefix(text, `[{"topic":"my-topic","key":null,"value":1,"partition":1,"offset":1,`) {
		t.Errorf("after the restart the group reads %s; want it to go on after its commit", text)
	}
	if text := again.want("POST", "/topics/my-topic/records?partition=1", "3", 200); !strings.Contains(text, `"offset":3`) {
		t.Errorf("the next record is at %s", text)
	}
}

func TestDevRefusesABadFolder(t *testing.T) {
	err := app.RunDev(t.Context(), configOf(t, nil), "", "/dev/null/x", slog.New(slog.DiscardHandler), nil)
	if err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("--data in a place that cannot be: %v", err)
	}
}

// Every role describes itself, as this version.
func TestTheContractIsServed(t *testing.T) {
	c, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	if c.Version() != app.Version {
		t.Errorf("openapi.yaml is of version %s; this is %s", c.Version(), app.Version)
	}
	want, _ := contract.Text()
	cluster := clusterFor(t)
	for _, role := range []app.Role{app.Producer, app.Consumer, app.Monitor, app.Dev} {
		p := startRole(t, role, cluster, nil)
		if got := p.want("GET", "/openapi.yaml", "", 200); got != strings.TrimSpace(string(want)) {
			t.Errorf("the %s serves another document of %d bytes", role, len(got))
		}
		p.want("HEAD", "/openapi.yaml", "", 200)
	}
}
