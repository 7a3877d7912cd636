package httpapi_test

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
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
	"postamt/sidecar/internal/kafka"
)

// A replica of these tests is a process of its own, since only such a one can be killed.
const replicaVariable = "POSTAMT_TEST_REPLICA"

// graceVariable is among a service's settings what Config.ReplicaGrace is to be.
const graceVariable = "POSTAMT_TEST_GRACE"

func TestMain(m *testing.M) {
	if os.Getenv(replicaVariable) == "" {
		// They wait most of the time: more of them at once than there are processors are sooner done.
		if err := flag.Set("test.parallel", "3"); err != nil { // the command line has the last word
			panic(err)
		}
		os.Exit(m.Run())
	}
	environ := make(map[string]string)
	if err := json.Unmarshal([]byte(os.Getenv(replicaVariable)), &environ); err != nil {
		panic(err)
	}
	grace := environ[graceVariable]
	delete(environ, graceVariable)
	cfg, err := config.Load(environ)
	if err != nil {
		panic(err)
	}
	cfg.ReplicaGrace, _ = time.ParseDuration(grace)
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
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "a"), kfake.SeedTopics(1, "b", "_postamt.sessions", "_postamt.subscriptions"))
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
		if got := a.do("POST", base+"/records", "x", "Postamt-Forwarded: "+forged, "Postamt-Method: GET"); got.status != 405 {
			t.Errorf("another method than the request's: %d %s", got.status, got.body)
		}
		for _, method := range []string{"GET", "POST", "PUT"} {
			if got := a.do(method, "/replica/batches/x", "", "Postamt-Forwarded: "+forged); got.status != 421 {
				t.Errorf("a forged %s of a batch: %d %s", method, got.status, got.body)
			}
		}
	}
	b.do("DELETE", base, "").want(t, "delete", 204, "")
	for _, r := range r {
		if got := r.do("GET", base+"/records", ""); got.status != 404 || got.code(t) != 40403 {
			t.Errorf("after it was deleted: %d %s", got.status, got.body)
		}
	}
	if text := a.metricsText(); strings.Contains(text, `route="/consumers/{group}/instances/{instance}/positions"`) {
		t.Errorf("a request that was forwarded counts twice: %s", text)
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
	go func() { defer close(waiting); waiting <- a.do("GET", base+"/records?timeout=100", "") }() // while it hangs
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
	if _, err := io.ReadFull(conn, make([]byte, 10_000)); err != nil { // and no more
		t.Fatal(err)
	}
	other.http = http.DefaultTransport // to hold 20 MB against the contract takes longer than the test has
	got := other.offsets(base, records)
	for i, o := range got {
		if o != fmt.Sprint(i) {
			t.Fatalf("it reads the offsets %v", got)
		}
	}
}

// An owner that is only busy keeps its session, and the request waits.
func TestABusyOwnerKeepsItsSession(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	a.create("")
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	a.do("GET", base+"/records?timeout=100", "").want(t, "at first", 200, "[]")
	var long sync.WaitGroup
	defer long.Wait()
	start := time.Now()
	long.Go(func() {
		a.do("GET", base+"/records?timeout=9000", "").want(t, "a read that waits", 200, "[]")
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("a read of 9 s took %v: it began anew elsewhere", took)
		}
	})
	time.Sleep(500 * time.Millisecond)
	b.do("GET", base+"/records?timeout=300", "").want(t, "the read behind it", 200, "[]")
	if text := b.metricsText(); !strings.Contains(text, `postamt_sessions_taken_over_total{result="taken"} 0`) {
		t.Errorf("the session was taken from an owner that is alive: %s", text)
	}
}

// key is what replicas sign with.
func (s *service) key() []byte {
	s.t.Helper()
	var key []byte
	eventually(s.t, "there is a key", func() bool {
		for _, r := range s.table() {
			if string(r.Key) == "signing-key" {
				key = r.Value
			}
		}
		return key != nil
	})
	return key
}

// table is what the topic of sessions has.
func (s *service) table() []*kgo.Record {
	s.t.Helper()
	client, err := kafka.NewClient(s.cluster.ListenAddrs(), kgo.ConsumeTopics("_postamt.sessions"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	var out []*kgo.Record
	for {
		ctx, cancel := context.WithTimeout(s.t.Context(), time.Second)
		fetches := client.PollFetches(ctx)
		cancel()
		if fetches.NumRecords() == 0 {
			return out
		}
		out = append(out, fetches.Records()...)
	}
}

// owner is the boot id of the session's.
func (s *service) owner() string {
	s.t.Helper()
	var in struct{ Owner string }
	for _, r := range s.table() {
		if string(r.Key) == "g/c" {
			if err := json.Unmarshal(r.Value, &in); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	return in.Owner
}

// signed sends what another replica would.
func (s *service) signed(key []byte, boot, method, path, batch string) (*http.Response, context.CancelFunc) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	req, err := http.NewRequestWithContext(ctx, method, s.api+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(method + " " + path + " " + boot))
	req.Header.Set("Postamt-Forwarded", hex.EncodeToString(mac.Sum(nil)))
	req.Header.Set("Postamt-Batch", batch)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp, cancel
}

// Only the forwarder's word makes a batch delivered, and it may come twice, or too late.
func TestABatchIsDeliveredWhenTheForwarderSaysSo(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	a.produced("0", "1")
	a.create(earliest)
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	b.do("GET", base+"/subscription", "").want(t, "there is a key then", 200, "")
	key, boot := a.key(), a.owner()
	read := func(batch string) (string, context.CancelFunc) {
		t.Helper()
		var text []byte
		var leave context.CancelFunc
		eventually(t, "records come", func() bool {
			var resp *http.Response
			resp, leave = a.signed(key, boot, "GET", base+"/records?timeout=5000&max_bytes=1", batch)
			n, err := strconv.Atoi(resp.Header.Get("Postamt-Length"))
			if err != nil { // none
				leave()
				return false
			}
			text = make([]byte, n)
			if _, err := io.ReadFull(resp.Body, text); err != nil {
				t.Fatal(err)
			}
			if resp.ContentLength >= 0 || resp.Header.Get("Postamt-Batch") != batch {
				t.Errorf("the answer has %d bytes and %v", resp.ContentLength, resp.Header)
			}
			return true
		})
		return string(text), leave
	}
	say := func(batch string, want int) {
		t.Helper()
		resp, done := a.signed(key, boot, "POST", "/replica/batches/"+batch, "")
		defer done()
		if resp.StatusCode != want {
			t.Errorf("to say that batch %s has arrived: %s; want %d", batch, resp.Status, want)
		}
	}
	first, leave := read("one")
	if !strings.Contains(first, `"offset":0`) || !strings.HasSuffix(first, "]") {
		t.Errorf("it gives %q", first)
	}
	leave() // died before it could say anything: who knows what the client has
	if got := b.do("POST", base+"/offsets", ""); got.status != 409 || got.code(t) != 40903 {
		t.Errorf("a commit of what may have arrived: %d %s", got.status, got.body)
	}
	say("one", 404)
	again, leave := read("two")
	defer leave()
	if again != first {
		t.Errorf("the next read gives %q; want %q again", again, first)
	}
	var commit sync.WaitGroup
	commit.Go(func() {
		b.do("POST", base+"/offsets", "").want(t, "a commit before it is known to have arrived", 200, "[]")
	})
	time.Sleep(100 * time.Millisecond)
	say("two", 204)
	commit.Wait()
	say("two", 404)
	b.do("GET", base+"/offsets", b0, plainV2).want(t, "committed", 200, `{"offsets":[{"topic":"b","partition":0,"offset":1,"metadata":""}]}`)
	b.wantOffsets("after the commit", base, "1")
	for _, misplaced := range []struct{ method, path string }{{"GET", "/replica/batches/two"}, {"POST", base + "/offsets"}} {
		if resp, done := b.signed(key, boot, misplaced.method, misplaced.path, ""); resp.StatusCode != 421 {
			t.Errorf("what is signed for another replica: %s", resp.Status)
		} else {
			done()
		}
	}
}

// A replica that dies while it gives records of another's session to a client.
func TestAForwarderThatDies(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	a, b := r[0], r[1]
	const records = 24
	for range records {
		a.produced(repeat('x', 900_000)) // more in all than the sockets hold
	}
	a.create(earliest + `,"fetch.min.bytes":10000000`)
	a.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe", 204, "")
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	fmt.Fprintf(conn, "GET %s/records?timeout=10000 HTTP/1.1\r\nHost: x\r\n\r\n", base)
	if _, err := io.ReadFull(conn, make([]byte, 10_000)); err != nil { // it has begun
		t.Fatal(err)
	}
	b.kill()
	a.http = http.DefaultTransport // to hold 20 MB against the contract takes longer than the test has
	if got := a.do("POST", base+"/offsets", ""); got.status != 409 {
		t.Errorf("a commit of what has broken off: %d %s", got.status, got.body)
	}
	for i, o := range a.offsets(base, records) {
		if o != fmt.Sprint(i) {
			t.Fatalf("record %d is of offset %s", i, o)
		}
	}
	a.do("POST", base+"/offsets", "").want(t, "and then", 200, "[]")
}

// posesAsOwner makes the table say that a server of the test has the session.
func (s *service) posesAsOwner(h http.HandlerFunc) {
	s.t.Helper()
	owner := httptest.NewServer(h)
	s.t.Cleanup(owner.CloseClientConnections)
	client, err := kafka.NewClient(s.cluster.ListenAddrs())
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	value := fmt.Sprintf(`{"version":1,"format":"json","wait_ms":1000,"owner":"x","address":%q,"epoch":1,"renewed":"2026-01-02T03:04:05Z"}`, strings.TrimPrefix(owner.URL, "http://"))
	if err := client.ProduceSync(s.t.Context(), &kgo.Record{Topic: "_postamt.sessions", Key: []byte("g/c"), Value: []byte(value)}).FirstErr(); err != nil {
		s.t.Fatal(err)
	}
}

// What an owner may do to a request that is forwarded to it.
func TestOwnersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		owner  http.HandlerFunc
		method string
		path   string
		status int
		taken  int
	}{
		{"it is alive, and takes for ever", func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/replica/") {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			<-r.Context().Done()
		}, "POST", base + "/offsets", 503, 0},
		{"it hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "GET", base + "/subscription", 200, 1},
		{"it closes connections", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "GET", base + "/subscription", 200, 1},
		{"it is another by now", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, "GET", base + "/subscription", 200, 1},
		{"it breaks off before the first byte", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Postamt-Batch", r.Header.Get("Postamt-Batch"))
			w.Header().Set("Postamt-Length", "10")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "GET", base + "/subscription", 200, 1},
		{"it answers with an error", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Cookie")+r.Header.Get("Authorization") != "" {
				t.Errorf("it is told %v", r.Header)
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error_code":50302,"message":"x"}`)
		}, "GET", base + "/subscription", 503, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, map[string]string{"REQUEST_TIMEOUT": "6s"})
			s.posesAsOwner(tc.owner)
			start := time.Now()
			got := s.do(tc.method, tc.path, "", "Cookie: a=b", "Authorization: Bearer x")
			if got.status != tc.status || got.status == 503 && got.header.Get("Retry-After") == "" {
				t.Errorf("it answers %d %v %s; want %d", got.status, got.header, got.body, tc.status)
			}
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
			if text := s.metricsText(); !strings.Contains(text, fmt.Sprintf(`postamt_sessions_taken_over_total{result="taken"} %d`, tc.taken)) {
				t.Errorf("sessions taken over: want %d; %s", tc.taken, text)
			}
		})
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
