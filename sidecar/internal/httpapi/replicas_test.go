package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/app"
	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/contract"
)

// A replica of these tests is a process of its own, since only such a one can be killed.
const replicaVariable = "POSTAMT_TEST_REPLICA"

func TestMain(m *testing.M) {
	if os.Getenv(replicaVariable) == "" {
		os.Exit(m.Run())
	}
	environ := make(map[string]string)
	if err := json.Unmarshal([]byte(os.Getenv(replicaVariable)), &environ); err != nil {
		panic(err)
	}
	cfg, err := config.Load(environ)
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	err = app.Run(ctx, app.Dev, cfg, log, func(api, metrics net.Addr) { fmt.Println(api, metrics) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// replica is one of several processes that serve one cluster.
type replica struct {
	*service
	process *os.Process
	wait    func() error
}

func replicas(t *testing.T, n int, environ map[string]string) (*kfake.Cluster, []*replica) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "a"), kfake.SeedTopics(1, "b", "_postamt.sessions"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	out := make([]*replica, n)
	var started sync.WaitGroup
	for i := range out {
		started.Go(func() { out[i] = startReplica(t, cluster, environ) })
	}
	started.Wait()
	for _, r := range out {
		if r == nil {
			t.FailNow()
		}
	}
	return cluster, out
}

func startReplica(t *testing.T, cluster *kfake.Cluster, environ map[string]string) *replica {
	all := map[string]string{
		"HTTP_ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0", "KAFKA_BOOTSTRAP_SERVERS": strings.Join(cluster.ListenAddrs(), ","),
		"SHUTDOWN_LISTEN_GRACE": "0s", "SHUTDOWN_TIMEOUT": "15s", "HEALTH_INTERVAL": "100ms",
	}
	maps.Copy(all, environ)
	settings, err := json.Marshal(all)
	if err != nil {
		t.Error(err)
		return nil
	}
	cmd := exec.Command(os.Args[0]) //nolint:gosec // this test
	cmd.Env = append(os.Environ(), replicaVariable+"="+string(settings))
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return nil
	}
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return nil
	}
	r := &replica{process: cmd.Process, wait: sync.OnceValue(cmd.Wait)}
	t.Cleanup(func() { r.kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	api, metrics, ok := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || !ok {
		t.Errorf("a replica has not started: %v", err)
		return nil
	}
	r.service = &service{
		t: t, api: "http://" + api, metrics: "http://" + metrics, cluster: cluster,
		http: &contract.Transport{Base: http.DefaultTransport, Fail: func(err error) { t.Error(err) }},
	}
	return r
}

// kill ends a replica without its doing.
func (r *replica) kill() {
	_ = r.process.Kill()
	_ = r.wait()
}

const base = "/consumers/g/instances/c"

func (s *service) produced(values ...string) {
	s.t.Helper()
	for _, v := range values {
		s.do("POST", "/topics/b/records", v).want(s.t, "a record", 200, "")
	}
}

func (s *service) create(settings string) {
	s.t.Helper()
	s.do("POST", "/consumers/g", `{"name":"c","format":"json"`+settings+`}`, plainV2).want(s.t, "create", 200, "")
}

const earliest = `,"auto.offset.reset":"earliest"`

func TestAnyReplicaAnswersForAnySession(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 3, nil)
	a, b, c := r[0], r[1], r[2]
	a.produced("0", "1", "2", "3")
	a.create(earliest)
	if got := b.do("POST", "/consumers/g", `{"name":"c"}`, plainV2); got.status != 409 || got.code(t) != 40902 {
		t.Errorf("the same name on another replica: %d %s", got.status, got.body)
	}
	c.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	b.do("GET", base+"/subscription", "").want(t, "subscription", 200, `{"topics":["b"]}`)
	var first answer
	eventually(t, "a record comes", func() bool {
		first = b.do("GET", base+"/records?timeout=1000&max_bytes=1", "", "X-Request-Id: mine")
		return first.body != "[]"
	})
	if first.header.Get("X-Request-Id") != "mine" || !strings.Contains(first.body, `"offset":0`) || first.header.Get("Content-Type") != "application/vnd.kafka.json.v2+json" {
		t.Errorf("it reads %s with %v", first.body, first.header)
	}
	c.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	b.do("GET", base+"/offsets", b0, plainV2).want(t, "committed", 200, `{"offsets":[{"topic":"b","partition":0,"offset":1,"metadata":""}]}`)
	c.wantOffsets("after the commit", base, "1 2 3")
	b.do("POST", base+"/positions", `{"offsets":[{"topic":"b","partition":0,"offset":2}]}`, plainV2).want(t, "seek", 204, "")
	c.wantOffsets("after the seek", base, "2 3")
	if got := c.do("GET", base+"/records", "", "Accept: application/vnd.kafka.binary.v2+json"); got.status != 406 || got.code(t) != 40601 {
		t.Errorf("an error of the owner: %d %s", got.status, got.body)
	}
	if got := c.do("POST", base+"/offsets", `{`, plainV2); got.status != 400 {
		t.Errorf("what cannot be read: %d %s", got.status, got.body)
	}
	if text := c.metricsText(); !regexp.MustCompile(`postamt_session_requests_forwarded_total\{result="served"\} [1-9]`).MatchString(text) || !strings.Contains(text, `postamt_sessions_taken_over_total{result="taken"} 0`) {
		t.Errorf("the metrics do not say that requests were forwarded, and none taken over: %s", text)
	}
	a.http = http.DefaultTransport // how replicas speak to each other is not in the contract
	// A signature is for one replica, one path and one method.
	for _, forged := range []string{"00", "x", strings.Repeat("ab", 32)} {
		if got := a.do("GET", base+"/records", "", "Postamt-Forwarded: "+forged); got.status != 421 {
			t.Errorf("a forged signature: %d %s", got.status, got.body)
		}
		if got := a.do("POST", base+"/records", "x", "Postamt-Forwarded: "+forged, "Postamt-Method: GET"); got.status != 421 {
			t.Errorf("a forged signature of a read: %d %s", got.status, got.body)
		}
	}
	b.do("DELETE", base, "").want(t, "delete", 204, "")
	for _, r := range r {
		if got := r.do("GET", base+"/records", ""); got.status != 404 || got.code(t) != 40403 {
			t.Errorf("after it was deleted: %d %s", got.status, got.body)
		}
	}
	c.create(earliest) // the name is free
	b.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	start := time.Now()
	a.wantOffsets("the next session of the name", base, "1 2 3")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it waited %v for the partition: the one before has not left its group", took)
	}
}

func TestASessionOutlivesItsReplica(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	a.produced("old")
	a.create("")
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	b.produced("1", "2", "3", "4")
	a.kill()

	// Nobody had read before it died: what "latest" means was known all the same.
	start := time.Now()
	b.wantOffsets("after the owner was killed", base, "1 2 3 4")
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("to take the session over took %v", took)
	}
	b.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	b.do("POST", base+"/positions", `{"offsets":[{"topic":"b","partition":0,"offset":2}]}`, plainV2).want(t, "seek", 204, "")
	c := startReplica(t, b.cluster, nil)
	b.kill()
	c.wantOffsets("a seek outlives its replica", base, "2 3 4")

	d := startReplica(t, c.cluster, nil)
	c.kill()
	if got := d.do("POST", base+"/offsets", ""); got.status != 409 || got.code(t) != 40903 || !strings.Contains(got.body, "moved") {
		t.Errorf("a commit of what another replica gave: %d %s", got.status, got.body)
	}
	d.do("POST", base+"/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":3}]}`, plainV2).want(t, "a commit by offsets", 200, "[]")
	e := startReplica(t, d.cluster, nil)
	d.kill()
	e.wantOffsets("a commit ends the seek before it", base, "4")
	e.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	if text := e.metricsText(); !strings.Contains(text, `postamt_sessions_taken_over_total{result="taken"} 1`) {
		t.Errorf("the metrics do not say that a session was taken over: %s", text)
	}
	f := startReplica(t, e.cluster, nil)
	e.kill()
	f.do("GET", base+"/assignments", "").want(t, "the next replica has it", 200, "")
	eventually(t, "nothing is left to commit", func() bool { return f.do("POST", base+"/offsets", "").status == 200 })
	f.do("DELETE", base, "").want(t, "delete", 204, "")
}

func TestPartitionsByHandOutliveTheirReplica(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	a.produced("0", "1", "2")
	a.create(earliest)
	a.do("POST", base+"/assignments", b0, plainV2).want(t, "assign", 204, "")
	a.wantOffsets("at first", base, "0 1 2")
	a.do("POST", base+"/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":0}]}`, plainV2).want(t, "commit", 200, "[]")
	a.kill()
	b.wantOffsets("after the owner was killed", base, "1 2")
	b.do("GET", base+"/assignments", "").want(t, "assignments", 200, b0)
	b.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")

	// Without its topic it cannot be read, and can be ended.
	c := startReplica(t, b.cluster, nil)
	b.kill()
	if err := c.cluster.DeleteTopic("b"); err != nil {
		t.Fatal(err)
	}
	if got := c.do("GET", base+"/records", ""); got.status != 404 || got.code(t) != 40401 {
		t.Errorf("to read without the topic: %d %s", got.status, got.body)
	}
	c.do("POST", base+"/assignments", `{"partitions":[{"topic":"a","partition":0}]}`, plainV2).want(t, "other partitions", 204, "")
	c.do("POST", base+"/assignments", b0, plainV2)
	c.do("DELETE", base, "").want(t, "delete", 204, "")
}

// A session whose record cannot be read, as one of a later version, can be deleted.
func TestAnUnreadableSessionCanBeDeleted(t *testing.T) {
	t.Parallel()
	cluster, r := replicas(t, 1, nil)
	a := r[0]
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "_postamt.sessions", Key: []byte("g/c"), Value: []byte(`{"version":99}`)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if got := a.do("GET", base+"/records", ""); got.status != 409 || got.code(t) != 40903 {
		t.Errorf("to read: %d %s", got.status, got.body)
	}
	a.do("DELETE", base, "").want(t, "delete", 204, "")
	a.create(earliest)
}

// Neither Kafka's absence nor a client that hangs keeps a replica from stopping in time.
func TestAReplicaThatCannotReleaseItsSessionsStopsInTime(t *testing.T) {
	t.Parallel()
	cluster, r := replicas(t, 1, map[string]string{"SHUTDOWN_TIMEOUT": "8s"})
	a := r[0]
	for i := range 20 {
		a.do("POST", "/consumers/g", fmt.Sprintf(`{"name":"c%d"}`, i), plainV2).want(t, "create", 200, "")
		a.do("POST", fmt.Sprintf("/consumers/g/instances/c%d/subscription", i), `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	fmt.Fprintf(conn, "POST /topics/b/records HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
	cluster.Close()
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	if err := a.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = a.wait()                                          // it says that a request was cut off
	if took := time.Since(start); took > 10*time.Second { // the 8 s, and what the machine needs
		t.Errorf("it took %v to stop", took)
	}
}

// A replica that is asked to stop gives its sessions up at once, and they keep their partitions.
func TestAReplicaThatStopsReleasesItsSessions(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	a.produced("0", "1")
	a.create(earliest)
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	a.wantOffsets("at first", base, "0 1")
	if err := a.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.wait(); err != nil {
		t.Errorf("the replica ended with %v", err)
	}
	start := time.Now()
	b.wantOffsets("after the owner stopped", base, "0 1")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// One that was thought dead and is not gives way, without what it had fetched.
func TestAnOwnerThatComesBackGivesWay(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, map[string]string{"SESSION_MAX_WAIT": "1s"})
	a, b := r[0], r[1]
	a.produced("0", "1", "2", "3")
	a.create(earliest)
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	eventually(t, "a record comes", func() bool { return a.do("GET", base+"/records?max_bytes=1", "").body != "[]" })
	if err := a.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.wantOffsets("while the owner hangs", base, "0 1 2 3")
	b.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	waiting := make(chan answer)
	go func() { waiting <- a.do("GET", base+"/records?timeout=100", "") }() // while it hangs
	time.Sleep(100 * time.Millisecond)
	if err := a.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if got := <-waiting; got.body != "[]" {
		t.Errorf("by the one that came back: %d %s; want nothing, since all is committed", got.status, got.body)
	}
	b.produced("4")
	a.wantOffsets("by the one that came back", base, "4")
	a.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
	b.do("GET", base+"/offsets", b0, plainV2).want(t, "committed", 200, `{"offsets":[{"topic":"b","partition":0,"offset":5,"metadata":""}]}`)
}

// Of all that want a session whose replica died, one gets it, and the others ask that one.
func TestTakeoversAtTheSameTime(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 3, nil)
	dead, left := r[0], r[1:]
	const sessions = 200
	var all sync.WaitGroup
	path := func(i int) string { return fmt.Sprintf("/consumers/g%d/instances/c", i) }
	for i := range sessions {
		all.Go(func() {
			dead.do("POST", fmt.Sprintf("/consumers/g%d", i), `{"name":"c","format":"json"}`, plainV2).want(t, "create", 200, "")
			if i%10 == 0 {
				dead.do("POST", path(i)+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
			}
		})
	}
	all.Wait()
	dead.kill()
	start := time.Now()
	for i := range sessions {
		for _, r := range left {
			all.Go(func() { r.do("GET", path(i)+"/subscription", "").want(t, "subscription", 200, "") })
		}
	}
	all.Wait()
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("%d sessions were taken over in %v", sessions, took)
	}
	counts := regexp.MustCompile(`(?m)^postamt_sessions (\d+)$`)
	total := 0
	for _, r := range left {
		n := 0
		_, _ = fmt.Sscan(counts.FindStringSubmatch(r.metricsText())[1], &n)
		total += n
	}
	if total != sessions {
		t.Errorf("the replicas have %d sessions; want each of the %d once", total, sessions)
	}
	for i := range sessions {
		all.Go(func() { left[i%2].do("DELETE", path(i), "").want(t, "delete", 204, "") })
	}
	all.Wait()
}

// What a client of a forwarded read has not received comes again, and is not committed.
func TestAReaderThroughAnotherReplicaLosesNothing(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, map[string]string{"READ_TIMEOUT": "3s"})
	owner, other := r[0], r[1]
	owner.create(earliest + `,"auto.commit.enable":"true","fetch.min.bytes":10000000`)
	owner.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	for range 3 { // who goes away while the owner waits
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, other.api+base+"/records?timeout=20000", nil)
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
		cancel()
	}
	const records = 24
	for range records {
		owner.produced(repeat('x', 900_000)) // more in all than the sockets hold
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(other.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprintf(conn, "GET %s/records?timeout=10000 HTTP/1.1\r\nHost: x\r\n\r\n", base)
	eventually(t, "the owner gives up", func() bool { return strings.Contains(owner.metricsText(), `postamt_http_requests_total{code="499"`) })
	other.http = http.DefaultTransport // to hold 20 MB against the contract takes longer than the test has
	got := other.offsets(base, records)
	for i, o := range got {
		if o != fmt.Sprint(i) {
			t.Fatalf("it reads the offsets %v", got)
		}
	}
}

// With Kafka away, a replica says that it cannot serve sessions: of those that it has, since it
// would not hear of it if another took them over.
func TestSessionsWithoutTheTable(t *testing.T) {
	t.Parallel()
	cluster, r := replicas(t, 1, nil)
	a := r[0]
	a.create(earliest)
	cluster.Close()
	eventually(t, "a session that is here may be another's by now", func() bool {
		got := a.do("GET", base+"/subscription", "")
		return got.status == 503 && got.code(t) == 50302 && got.header.Get("Retry-After") != ""
	})
	for _, got := range []answer{a.do("GET", "/consumers/g/instances/other/subscription", ""), a.do("POST", "/consumers/g", `{"name":"new"}`, plainV2)} {
		if got.status != 503 || got.code(t) != 50302 || got.header.Get("Retry-After") == "" {
			t.Errorf("without Kafka: %d %s", got.status, got.body)
		}
	}
}

func TestSessionsBeforeBootstrap(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "b"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	a := startReplica(t, cluster, nil)
	if got := a.do("POST", "/consumers/g", `{"name":"new"}`, plainV2); got.status != 503 || !strings.Contains(got.body, "bootstrap") {
		t.Errorf("without the topic of sessions: %d %s", got.status, got.body)
	}
}
