//go:build stack

// Package stacktest tests a running Compose project from outside: through Traefik on
// 127.0.0.1, and with Kafka's own tools in its container. scripts/test brings the project up
// and names its settings in ENV_FILE. These tests stop, kill and scale its containers, so
// they run on no other.
package stacktest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postamt/sidecar/internal/contract"
)

// project is what ENV_FILE says of the project under test.
var project struct {
	root, envFile, name    string
	api, dashboard, broker string // addresses on the host
}

func TestMain(m *testing.M) {
	if err := readEnvFile(); err != nil {
		fmt.Fprintln(os.Stderr, "stack tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if len(violations.found) > 0 {
		fmt.Printf("%d answers are not as openapi.yaml has them; the first is\n%v\n", len(violations.found), violations.found[0])
		code = 1
	}
	os.Exit(code)
}

// violations are the answers that were not as openapi.yaml has them. Many of them come where
// no test waits for them alone, so the run as a whole fails.
var violations struct {
	mu    sync.Mutex
	found []error
}

func violated(err error) {
	violations.mu.Lock()
	defer violations.mu.Unlock()
	violations.found = append(violations.found, err)
}

// ours tells our answers from those of Grafana, Prometheus, and of Traefik alone, which has
// no X-Request-Id.
func ours(req *http.Request, resp *http.Response) bool {
	host := cmp.Or(req.Host, req.URL.Host)
	if "http://"+req.URL.Host != project.api && "http://"+req.URL.Host != strings.Replace(project.api, "127.0.0.1", "localhost", 1) || strings.Contains(host, ".localhost") {
		return false
	}
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return resp.Header.Get("X-Request-Id") != "" || resp.Header.Get("Content-Type") == "application/json"
	}
	return true
}

// checked is what requests to the API go over.
var checked = &contract.Transport{Base: http.DefaultTransport, Fail: violated, Ours: ours}

func readEnvFile() error {
	file := os.Getenv("ENV_FILE")
	if file == "" {
		return errors.New("ENV_FILE must name the settings of the project under test; ./scripts/test stack does so")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(root, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	settings := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			settings[name] = value
		}
	}
	project.root, project.envFile = root, file
	project.name = cmp.Or(settings["COMPOSE_PROJECT_NAME"], "postamt")
	project.api = "http://127.0.0.1:" + cmp.Or(settings["HTTP_PORT"], "80")
	project.dashboard = "http://127.0.0.1:" + cmp.Or(settings["DASHBOARD_PORT"], "8080")
	project.broker = "localhost:" + cmp.Or(settings["KAFKA_PORT"], "9092")
	return nil
}

// run runs a command in the project's folder and returns what it printed.
func run(stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = project.root
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func docker(t *testing.T, args ...string) string {
	t.Helper()
	return dockerIn(t, "", args...)
}

// dockerOut is docker for goroutines, which must not end a test.
func dockerOut(args ...string) (string, error) { return dockerWith("", args...) }

func dockerWith(stdin string, args ...string) (string, error) {
	command := append(strings.Fields(cmp.Or(os.Getenv("STACK_DOCKER"), "docker")), args...)
	return run(stdin, command[0], command[1:]...)
}

func dockerIn(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := dockerWith(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func compose(t *testing.T, args ...string) string {
	t.Helper()
	return docker(t, append([]string{"compose", "--env-file", project.envFile}, args...)...)
}

// kafkaTool runs one of Kafka's own tools in the container of the broker.
func kafkaTool(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	return dockerIn(t, stdin, append([]string{
		"compose", "--env-file", project.envFile, "exec", "-T", "kafka",
		"/opt/kafka/bin/" + name, "--bootstrap-server", "localhost:9092",
	}, args...)...)
}

// eventually asks again and again until there is no error, and fails with the last one.
func eventually(t *testing.T, within time.Duration, what string, ask func() error) {
	t.Helper()
	if err := poll(within, ask); err != nil {
		t.Fatalf("%s: not within %v: %v", what, within, err)
	}
}

// poll is eventually for goroutines.
func poll(within time.Duration, ask func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := ask()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %s", a.status, a.body) }

// decode reads the body as JSON into v.
func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("the answer %v is not the JSON expected: %v", a, err)
	}
}

// client follows no redirect and gives up after what no request should take.
var client = &http.Client{
	Timeout:       60 * time.Second,
	Transport:     checked,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// request sends a request with headers given as "Name: value"; url is a path of the API or whole.
func request(method, url, body string, headers ...string) (answer, error) {
	return requestBy(client, method, url, body, headers...)
}

func requestBy(client *http.Client, method, url, body string, headers ...string) (answer, error) {
	if strings.HasPrefix(url, "/") {
		url = project.api + url
	}
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if req.Header.Add(name, value); name == "Host" {
			req.Host = value
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

// call is request for a test that expects an answer of any kind.
func call(t *testing.T, method, url, body string, headers ...string) answer {
	t.Helper()
	got, err := request(method, url, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return got
}

// expect is call for a test that expects one status.
func expect(t *testing.T, status int, method, url, body string, headers ...string) answer {
	t.Helper()
	got := call(t, method, url, body, headers...)
	if got.status != status {
		t.Fatalf("%s %s: got %v; want status %d", method, url, got, status)
	}
	return got
}

// place is where the producer said that a record is.
type place struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// produce writes one record through Traefik.
func produce(t *testing.T, topic, key, value string) place {
	t.Helper()
	var p place
	expect(t, 200, "POST", "/topics/"+topic+"/records?key="+key, value).decode(t, &p)
	return p
}

var names atomic.Int64

// unique makes a name that no other test and no earlier run has used.
func unique(prefix string) string {
	return prefix + "-" + strconv.FormatInt(time.Now().Unix(), 36) + "-" + strconv.FormatInt(names.Add(1), 10)
}

// newTopic makes a topic for one test.
func newTopic(t *testing.T, partitions int) string {
	t.Helper()
	topic := unique("stacktest")
	kafkaTool(t, "", "kafka-topics.sh", "--create", "--topic", topic, "--partitions", strconv.Itoa(partitions))
	return topic
}

// service is what Traefik's API says of one.
type service struct {
	Name         string            `json:"name"`
	Status       string            `json:"status"`
	ServerStatus map[string]string `json:"serverStatus"`
}

func traefikService(name string) (s service, err error) {
	got, err := request("GET", project.dashboard+"/api/http/services/"+name+"@docker", "")
	if err == nil {
		err = json.Unmarshal([]byte(got.body), &s)
	}
	return s, err
}

// awaitServers waits until Traefik sends to n servers of a service and all of them are UP.
func awaitServers(t *testing.T, name string, n int) {
	t.Helper()
	if err := serversUp(name, n, 3*time.Minute); err != nil {
		t.Fatal(err)
	}
}

func serversUp(name string, n int, within time.Duration) error {
	return poll(within, func() error {
		s, err := traefikService(name)
		if err != nil {
			return err
		}
		up := 0
		for url, status := range s.ServerStatus {
			if status == "UP" && url != "" {
				up++
			}
		}
		if up != n || len(s.ServerStatus) != n {
			return fmt.Errorf("for %v Traefik has had the servers %v of %s; want %d, all UP", within, s.ServerStatus, name, n)
		}
		return nil
	})
}

// containers lists the ids of a service's containers, running or not.
func containers(t *testing.T, name string) []string {
	t.Helper()
	ids := strings.Fields(compose(t, "ps", "-aq", name))
	slices.Sort(ids)
	return ids
}

// scale gives a service n replicas, and waits until Traefik sends to all of them.
func scale(t *testing.T, name string, n int) []string {
	t.Helper()
	if len(containers(t, name)) != n {
		compose(t, "up", "-d", "--no-deps", "--no-recreate", "--scale", name+"="+strconv.Itoa(n), name)
	}
	awaitServers(t, name, n)
	return containers(t, name)
}

// metrics reads what a sidecar's container exposes, from inside the network of Prometheus:
// no port of it is published.
func metrics(t *testing.T, container string) string {
	t.Helper()
	ip := docker(t, "inspect", "--format", `{{(index .NetworkSettings.Networks "`+project.name+`-metrics").IPAddress}}`, container)
	return compose(t, "exec", "-T", "prometheus", "wget", "-qO-", "http://"+ip+":8081/metrics")
}

// requests counts what a replica has answered on a route.
func requests(t *testing.T, container, route string) float64 {
	t.Helper()
	return sum(t, container, "postamt_http_requests_total{", `route="`+route+`"`)
}

// sum adds up the samples of a sidecar's metric that have a label.
func sum(t *testing.T, container, metric, label string) float64 {
	t.Helper()
	sum := 0.0
	for line := range strings.Lines(metrics(t, container)) {
		if strings.HasPrefix(line, metric) && strings.Contains(line, label) {
			fields := strings.Fields(line)
			n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				t.Fatalf("metric %q: %v", line, err)
			}
			sum += n
		}
	}
	return sum
}
