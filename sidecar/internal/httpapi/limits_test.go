package httpapi_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/filter"
)

// raw sends bytes on a connection of its own and returns all that comes until its end.
func (s *service) raw(request string) string {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		s.t.Fatal(err)
	}
	reply, err := io.ReadAll(conn)
	if err != nil {
		s.t.Errorf("%.60q is not ended by the server: %q, %v", request, reply, err)
	}
	return string(reply)
}

// sealKey is a key for secrets of subscriptions.
const sealKey = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

// Each limit of the configuration is reached, at its default where that can be, and its error
// names the variable. A limit that has no case here, nor in the tests of the package that holds it, fails the test.
func TestEveryLimitIsReachedAndNamed(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	small := serve(t, map[string]string{"MAX_SESSIONS": "1", "MAX_STREAMS": "1", "MAX_SUBSCRIPTIONS": "1", "POSTAMT_SECRET_KEY": sealKey, "MAX_STREAM_RECORDS": "100", "REQUEST_TIMEOUT": "1s", "READ_TIMEOUT": "300ms",
		"SESSION_MAX_WAIT": "200ms", "SESSION_MAX_BYTES": "1000", "SESSION_IDLE_TIMEOUT": "1s"})
	narrow := serve(t, map[string]string{"MAX_STREAM_RECORDS": "50", "MAX_STREAM_BYTES": "9438784"})
	tight := serve(t, map[string]string{"MAX_IN_FLIGHT_BYTES": "20971520"})
	records := func(n int) string {
		return `{"records":[` + strings.TrimSuffix(strings.Repeat(`{"value":1},`, n), ",") + `]}`
	}
	batch := func(bytes int) string {
		const frame = len(`{"records":[{"value":1}],"ignored":""}`)
		return `{"records":[{"value":1}],"ignored":"` + repeat('x', bytes-frame) + `"}`
	}
	cases := map[string]func(t *testing.T){
		"MAX_BODY_BYTES": func(t *testing.T) {
			s.do("POST", "/topics/a/records", repeat('x', 1_000_000)).want(t, "a body below", 200, "")
			got := s.do("POST", "/topics/a/records", repeat('x', 1<<20+1))
			got.refused(t, 413, "larger than 1048576 bytes (MAX_BODY_BYTES)")
			s.do("POST", "/consumers/g", `{"name":"`+repeat('x', 1<<20)+`"}`, plainV2).refused(t, 413, "MAX_BODY_BYTES")
			s.do("POST", "/topics/a/records", packed("gzip", repeat(0, 1<<27)), "Content-Encoding: gzip").refused(t, 413, "MAX_BODY_BYTES") // a bomb
		},
		"MAX_BATCH_BYTES": func(t *testing.T) {
			s.do("POST", "/topics/b", batch(16<<20), jsonV2).want(t, "a batch as large as may be", 200, "")
			s.do("POST", "/topics/b", batch(16<<20+1), jsonV2).refused(t, 413, "larger than 16777216 bytes (MAX_BATCH_BYTES)")
		},
		"MAX_RECORDS": func(t *testing.T) {
			s.do("POST", "/topics/b", records(10_000), jsonV2).want(t, "as many records as may be", 200, "")
			s.do("POST", "/topics/b", records(10_001), jsonV2).refused(t, 422, "there are 10001 records; a request takes at most 10000 (MAX_RECORDS)")
		},
		"MAX_STREAM_RECORDS": func(t *testing.T) {
			lines := strings.Repeat(`{"value":1}`+"\n", 101)
			small.do("POST", "/topics/a/records", lines[:len(lines)-12], ndjson).want(t, "as many lines as may be", 200, "")
			if got := small.do("POST", "/topics/a/records", lines, ndjson); got.status != 422 || !strings.Contains(got.body, "at most 100 records (MAX_STREAM_RECORDS)") {
				t.Errorf("a line too many: %d %s", got.status, got.body)
			}
		},
		"MAX_STREAM_BYTES": func(t *testing.T) { // room to unpack one
			body, sender := io.Pipe()
			first := make(chan answer, 1)
			go func() {
				defer close(first)
				first <- narrow.send("POST", "/topics/b/records", body, ndjson, "Content-Encoding: zstd")
			}()
			text := packed("zstd", "{}\n")
			_, _ = io.WriteString(sender, text[:len(text)/2])
			eventually(t, "it is a stream", func() bool { return strings.Contains(narrow.metricsText(), "postamt_streams 1\n") })
			narrow.do("POST", "/topics/b/records", text, ndjson, "Content-Encoding: zstd").refused(t, 429, "MAX_STREAM_BYTES=9438784")
			narrow.do("POST", "/topics/b/records", "{}\n", ndjson).want(t, "a stream that is not packed", 200, "")
			narrow.do("POST", "/topics/b/records", packed("zstd", "{}"), "Content-Encoding: zstd").want(t, "a packed record", 200, "")
			_, _ = io.WriteString(sender, text[len(text)/2:])
			_ = sender.Close()
			(<-first).want(t, "the first", 200, "")
			narrow.do("POST", "/topics/b/records", text, ndjson, "Content-Encoding: zstd").want(t, "after it", 200, "")
		},
		"MAX_BATCH_ENTRIES": func(t *testing.T) {
			var entries []string
			for i := range 11 {
				entries = append(entries, fmt.Sprintf(`{"id":"%d","value":{"type":"STRING","data":"x"}}`, i))
			}
			cluster := s.do("GET", "/v3/clusters", "").body
			_, rest, _ := strings.Cut(cluster, `"cluster_id":"`)
			id, _, _ := strings.Cut(rest, `"`)
			batch := func(n int) answer {
				return s.do("POST", "/v3/clusters/"+id+"/topics/b/records:batch", `{"entries":[`+strings.Join(entries[:n], ",")+`]}`, plainJSON)
			}
			batch(10).want(t, "as many entries as may be", 207, "")
			batch(11).refused(t, 422, "there are 11 entries; a batch takes at most 10 (MAX_BATCH_ENTRIES)")
		},
		"MAX_HEADER_BYTES": func(t *testing.T) {
			s.do("GET", "/health/live", "", "X-Large: "+repeat('x', 15_000)).want(t, "a header below", 200, "")
			for _, request := range []string{"GET / HTTP/1.1\r\nHost: x\r\nX-Large: " + repeat('x', 30_000), "GET /" + repeat('x', 30_000)} {
				reply := s.raw(request)
				if !strings.HasPrefix(reply, "HTTP/1.1 431 ") || !strings.Contains(reply, `{"error_code":431,"message":"the request's header is larger than 16384 bytes (MAX_HEADER_BYTES)"}`) || !strings.Contains(reply, "Content-Type: application/json\r\n") {
					t.Errorf("%.30q is answered with %q", request, reply)
				}
			}
		},
		"MAX_IN_FLIGHT_BYTES": func(t *testing.T) {
			// A batch that is still being sent holds what has come of it.
			body, sender := io.Pipe()
			slow := make(chan answer, 1)
			go func() {
				defer close(slow)
				slow <- tight.send("POST", "/topics/b", body, jsonV2, "Content-Length: 16777216")
			}()
			if _, err := io.WriteString(sender, strings.TrimSuffix(batch(16<<20), "}")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // the other must not be in the way of what is still in the sockets
			tight.do("POST", "/topics/b", batch(8<<20), jsonV2).refused(t, 429, "MAX_IN_FLIGHT_BYTES=20971520")
			tight.do("POST", "/topics/b", batch(2<<20), jsonV2).want(t, "what fits beside it", 200, "")
			_, _ = io.WriteString(sender, "}")
			_ = sender.Close()
			(<-slow).want(t, "the batch that comes slowly", 200, "")
			tight.do("POST", "/topics/b", batch(8<<20), jsonV2).want(t, "after it", 200, "")
		},
		"MAX_SESSIONS": func(t *testing.T) {
			small.do("POST", "/consumers/g", `{"name":"first"}`, plainV2).want(t, "the first session", 200, "")
			small.do("POST", "/consumers/g", `{}`, plainV2).refused(t, 429, "MAX_SESSIONS")
		},
		"MAX_STREAMS": func(t *testing.T) {
			first := small.stream("/streams/a")
			small.do("GET", "/streams/a", "").refused(t, 429, "MAX_STREAMS=1")
			small.do("GET", "/topics/a/partitions/0/records?offset=0", "").refused(t, 429, "MAX_STREAMS=1")
			first.close()
		},
		"MAX_SUBSCRIPTIONS": func(t *testing.T) {
			const hook = `{"topics":["a"],"url":"http://webshop/","dead_letters":"b"}`
			small.do("PUT", "/subscriptions/first", hook).want(t, "the first subscription", 201, "")
			small.do("PUT", "/subscriptions/second", hook).refused(t, 429, "MAX_SUBSCRIPTIONS")
			small.do("PUT", "/subscriptions/first", hook).want(t, "the first one again", 200, "")
			small.do("DELETE", "/subscriptions/first", "").want(t, "deleted", 204, "")
		},
		"REQUEST_TIMEOUT": func(t *testing.T) {
			release := make(chan struct{})
			small.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
				small.cluster.SleepControl(func() { <-release })
				return nil, nil, false
			})
			defer close(release)
			for path, body := range map[string]string{"/topics/b/records": "1", "/topics/b": records(2)} {
				begun := time.Now()
				got := small.do("POST", path, body, jsonV2)
				got.refused(t, 503, "in time (REQUEST_TIMEOUT): it may be stored")
				if took := time.Since(begun); took < 800*time.Millisecond || took > 10*time.Second {
					t.Errorf("%s ends after %v; want a second", path, took)
				}
			}
		},
		"READ_TIMEOUT": func(t *testing.T) {
			for request, want := range map[string]string{
				"": "", "GET /health/live HTTP/1.1\r\nHost: x\r\nX-Slow: ": "", // nobody to answer yet
				"GET /health/live HT": "cannot be read as HTTP/1.1",
				"POST /topics/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nContent-Type: application/vnd.kafka.json.v2+json\r\n\r\n{": "READ_TIMEOUT",
				"POST /consumers/g HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{":                                     "READ_TIMEOUT",
			} {
				begun := time.Now()
				if reply := small.raw(request); !strings.Contains(reply, want) || want == "READ_TIMEOUT" && !strings.HasPrefix(reply, "HTTP/1.1 408 ") || want == "" && reply != "" {
					t.Errorf("%q is answered with %q; want %s", request, reply, want)
				}
				if took := time.Since(begun); took > 10*time.Second {
					t.Errorf("%q is cut off after %v", request, took)
				}
			}
		},
		"SESSION_MAX_WAIT": func(t *testing.T) {
			begun := time.Now()
			small.do("GET", "/topics/a/partitions/0/records?offset=latest&timeout=60000", "").want(t, "a read without a group", 200, "[]")
			if took := time.Since(begun); took > 10*time.Second {
				t.Errorf("a read waits %v; want 200ms", took)
			}
		},
		"SESSION_MAX_BYTES": func(t *testing.T) {
			small.do("POST", "/topics/b", `{"records":[{"value":"`+repeat('x', 600)+`"},{"value":"`+repeat('x', 600)+`"}]}`, jsonV2).want(t, "records", 200, "")
			if got := offsets(small.do("GET", records0+"?offset=0&max_bytes=5000", "")); len(got) != 1 {
				t.Errorf("a read of 5,000 bytes gives the offsets %v; want one record of 600 bytes", got)
			}
		},
		"SESSION_IDLE_TIMEOUT": func(t *testing.T) {
			eventually(t, "an idle session ends", func() bool { return strings.Contains(small.metricsText(), "postamt_sessions 0\n") })
			small.do("GET", "/consumers/g/instances/first/records", "").refused(t, 404, "instance")
		},
	}
	elsewhere := map[string]string{"MAX_CONTAINERS": "../containers/containers_test.go"} // what no request reaches
	for _, field := range reflect.VisibleFields(reflect.TypeFor[config.Limits]()) {
		name := "MAX_" + field.Tag.Get("env")
		switch file := elsewhere[name]; {
		case file != "":
			if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), name+" is ") {
				t.Errorf("no test in %s reaches the limit %s: %v", file, name, err)
			}
		case cases[name] == nil:
			t.Errorf("no case reaches the limit %s", name)
		}
	}
	for _, name := range []string{ // in order: those of small follow on each other
		"MAX_BODY_BYTES", "MAX_BATCH_BYTES", "MAX_RECORDS", "MAX_STREAM_RECORDS", "MAX_STREAM_BYTES", "MAX_BATCH_ENTRIES", "MAX_HEADER_BYTES", "MAX_IN_FLIGHT_BYTES",
		"MAX_SESSIONS", "SESSION_IDLE_TIMEOUT", "SESSION_MAX_BYTES", "SESSION_MAX_WAIT", "MAX_STREAMS", "MAX_SUBSCRIPTIONS", "READ_TIMEOUT", "REQUEST_TIMEOUT",
	} {
		t.Run(name, cases[name])
	}
}

func (a answer) refused(t *testing.T, status int, says string) {
	t.Helper()
	if a.status != status || !strings.Contains(a.body, says) {
		t.Errorf("%d %.300s; want %d, %q", a.status, a.body, status, says)
	}
	if retry := a.header.Get("Retry-After"); (retry != "") != (status == 429 || status == 503) {
		t.Errorf("%d with Retry-After %q", a.status, retry)
	}
}

// What is limited without a variable says how much it may be.
func TestLimitsWithoutAVariable(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/consumers/"+repeat('g', 250), `{}`, plainV2).refused(t, 422, "the consumer group's name has 250 bytes; it may have 249")
	s.do("POST", "/consumers/g", `{"name":"`+repeat('i', 250)+`"}`, plainV2).refused(t, 422, "the consumer instance's name has 250 bytes; it may have 249")
	s.do("POST", "/consumers/"+repeat('g', 249), `{"name":"`+repeat('i', 249)+`"}`, plainV2).want(t, "names as long as may be", 200, "")
	s.do("GET", "/streams/a?filter="+repeat('x', filter.MaxBytes+1), "").refused(t, 422, "it has at most 4096")
	s.do("GET", "/streams/a?from=c1."+repeat('A', 8190), "").refused(t, 422, "the cursor has 8193 bytes; it has at most 8192")
	// A topic of so many partitions that no cursor would fit is read partition by partition.
	s.topic("wide", 900)
	s.do("GET", "/streams/wide", "").refused(t, 422, "read them one by one, with ?partition=")
	one := s.stream("/streams/wide?partition=899")
	if b := one.block(); b["id"] == "" {
		t.Errorf("a stream of one partition begins with %v", b)
	}
	one.close()
	s.topic("broad", 850)
	many := s.stream("/streams/broad")
	if b := many.block(); b["id"] == "" || len(b["id"]) > 8192 {
		t.Errorf("the cursor of 850 partitions has %d bytes", len(b["id"]))
	}
	many.close()
}

// Readers that stop take a bounded amount of memory, and hold back nobody else. Those of this test are not
// cut off, however slow the machine is: that is the next test's.
func TestReadersThatStopAreBounded(t *testing.T) { // not beside others: it looks at the heap
	const readers, records = 16, 48
	s := serve(t, map[string]string{"READ_TIMEOUT": "10m"})
	s.large(records)
	before := s.atRest("before the readers", holding{}, holding{})
	live := bufio.NewReader(s.begun("text/event-stream", 1<<20)) // before the others keep the machine busy
	for i := range readers {
		_ = s.begun([]string{"text/event-stream", "application/x-ndjson"}[i%2], 4<<10)
	}
	var held uint64
	for i := 0; i < records; {
		line, err := live.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(line, []byte("data: ")) {
			continue
		}
		if i++; i%8 == 0 {
			held = max(held, heapInUse())
		}
	}
	if want := fmt.Sprintf("postamt_streams %d\n", readers+1); !strings.Contains(s.metricsText(), want) {
		t.Errorf("the readers are not all there any more; want %s", want)
	}
	// What one poll gave, what has been fetched meanwhile, each a record of each partition here,
	// and the record that is being written: far below the 43 MB that there are.
	perReader := (int64(held) - int64(before.heap)) / readers
	t.Logf("%d readers that stopped hold %d KiB each; before there were %d MiB", readers, perReader>>10, before.heap>>20)
	if perReader > 10<<20 {
		t.Errorf("each reader that stopped holds %d bytes", perReader)
	}
}

// Readers that stop are cut off after READ_TIMEOUT, and leave nothing.
func TestReadersThatStopAreCutOff(t *testing.T) { // not beside others: it looks at the heap
	const readers = 16
	s := serve(t, map[string]string{"READ_TIMEOUT": "500ms"})
	s.large(24) // more than fits into the sockets
	before := s.atRest("before the readers", holding{}, holding{})
	var conns []net.Conn
	for i := range readers {
		conns = append(conns, s.begun([]string{"text/event-stream", "application/x-ndjson"}[i%2], 4<<10))
	}
	eventually(t, "who has stopped is cut off", func() bool { return strings.Contains(s.metricsText(), "postamt_streams 0\n") })
	for _, conn := range conns { // their ends of the connections are what is left
		_ = conn.Close()
	}
	s.atRest("after the readers", before, holding{goroutines: 10, heap: 32 << 20})
}

const largeRecord = 900_000

// large writes so many records of largeRecord bytes.
func (s *service) large(records int) {
	s.t.Helper()
	for i := range records {
		s.do("POST", fmt.Sprintf("/topics/a/records?partition=%d", i%3), repeat('x', largeRecord)).want(s.t, "a record", 200, "")
	}
}

// begun opens a stream of topic a, of which it reads the beginning of the answer.
func (s *service) begun(accept string, readBuffer int) *net.TCPConn {
	s.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; {
		dialed, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			s.t.Fatal(err)
		}
		conn, _ := dialed.(*net.TCPConn)
		s.t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetReadBuffer(readBuffer)
		if _, err := fmt.Fprintf(conn, "GET /streams/a?from=earliest&format=text HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n\r\n", accept); err != nil {
			s.t.Fatal(err)
		}
		begin := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(conn, begin); err != nil {
			s.t.Fatal(err)
		}
		switch status := string(begin[9:]); {
		case status == "200":
			return conn
		// On a machine that is busy with the other readers Kafka may take longer than a request waits.
		case status != "503" || time.Now().After(deadline):
			s.t.Fatalf("a stream is answered with %s", status)
		}
	}
}

// Readers that go away in every state leave nothing: no goroutine, client of Kafka or file.
func TestAbandonedReadersLeaveNothing(t *testing.T) { // not beside others: it counts what the process holds
	s := serve(t, map[string]string{"SESSION_IDLE_TIMEOUT": "1s"})
	abandon := func(request string) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, request)
		if len(request)%2 == 0 { // at once, or after the first bytes
			_ = conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			_, _ = conn.Read(make([]byte, 100))
		}
		_ = conn.Close()
	}
	const get = "GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
	round := func(n, sessions int) {
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				for i := range n / 8 {
					abandon(fmt.Sprintf(get, "/streams/a"+repeat('/', i%2)))
					abandon(fmt.Sprintf(get, "/streams/b?from=earliest&filter=true"))
					abandon(fmt.Sprintf(get, records0+"?offset=latest&timeout=30000"+repeat('0', i%2)))
				}
				for i := range sessions / 8 {
					base := fmt.Sprintf("/consumers/g%d", w)
					name := fmt.Sprintf("s%d-%d", w, i)
					if got := s.do("POST", base, `{"name":"`+name+`"}`, plainV2); got.status != 200 {
						t.Errorf("create: %d %s", got.status, got.body)
					}
					s.do("POST", base+"/instances/"+name+"/subscription", `{"topics":["a"]}`, plainV2)
					abandon(fmt.Sprintf(get, base+"/instances/"+name+"/records?timeout=30000"))
				}
			})
		}
		all.Wait()
	}
	round(80, 16) // what a first use takes and keeps
	before := s.atRest("before", holding{}, holding{})
	round(800, 160)
	after := s.atRest("after 2,400 streams and reads, and 160 sessions", before, holding{goroutines: 10, heap: 24 << 20})
	t.Logf("before %+v, after %+v", before, after)
	if !slices.Contains(strings.Split(s.metricsText(), "\n"), "postamt_streams 0") {
		t.Error("a stream is left")
	}
}
