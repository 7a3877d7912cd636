package httpapi_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// A body of some bytes can ask for a window of 8 MiB: while it comes, that must not be held for it.
func TestAWindowOfZstdIsNotHeldForABodyThatIsComing(t *testing.T) { // not beside others: it looks at the heap
	s := serve(t, nil)
	const clients = 40
	frame := "\x28\xb5\x2f\xfd\x00\x68\x18\x00\x00{}\n" // a window of 8 MiB, and a block that is not the last
	for _, target := range []string{"/topics/b HTTP/1.1\r\n" + jsonV2, "/topics/b/records HTTP/1.1\r\n" + plainJSON, "/topics/b/records HTTP/1.1\r\n" + ndjson} {
		before := heapInUse()
		var open int
		for range clients {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.api, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintf(conn, "POST %s\r\nHost: x\r\nContent-Encoding: zstd\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", target, len(frame), frame)
			// What is refused is answered at once.
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, _ := conn.Read(make([]byte, 20)); n == 0 {
				open++
			}
		}
		if held := int64(heapInUse()) - int64(before); held > 80<<20 {
			t.Errorf("%s: %d clients, of which %d are not refused, hold %d MiB", target, clients, open, held>>20)
		}
		if open == 0 {
			t.Errorf("%s: all are refused", target)
		}
	}
	runtime.KeepAlive(s)
}

func TestZstdIsHeldAgainstTheLimits(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "30000", "MAX_BATCH_BYTES": "30000", "MAX_IN_FLIGHT_BYTES": "30000"})
	for range 3 { // nothing of it stays counted
		s.do("POST", "/topics/a/records", packed("zstd", repeat('x', 30_000)), "Content-Encoding: zstd").want(t, "as large as may be", 200, "")
		s.do("POST", "/topics/a/records", packed("zstd", repeat('x', 30_001)), "Content-Encoding: ZSTD").refused(t, 413, "MAX_BODY_BYTES")
		s.do("POST", "/topics/a/records", packed("zstd", repeat('x', 40<<20)), "Content-Encoding: zstd").refused(t, 413, "MAX_BODY_BYTES")
		s.do("POST", "/topics/a/records", packed("zstd", repeat('x', 20_000))[:12], "Content-Encoding: zstd").refused(t, 400, "ended before its end")
		s.do("POST", "/topics/a/records", "no zstd", "Content-Encoding: zstd").refused(t, 400, "Content-Encoding")
	}
	s.do("POST", "/topics/a/records", "\x28\xb5\x2f\xfd\x00\x78\x18\x00\x00{}\n", ndjson, "Content-Encoding: zstd").refused(t, 400, "a window of more than 8 MiB")
}

// Empty lines become no record: they must not count for ever, and there is an end of them.
func TestEmptyLinesHoldNothing(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "60000", "MAX_BATCH_BYTES": "60000", "MAX_IN_FLIGHT_BYTES": "60000", "REQUEST_TIMEOUT": "3s"})
	body, sender := io.Pipe()
	answered := make(chan answer)
	go func() { defer close(answered); answered <- s.send("POST", "/topics/b/records", body, ndjson) }()
	for range 10 { // at most what may be between two records
		_, _ = io.WriteString(sender, strings.Repeat("\n", 50_000)+"{}\n")
	}
	_, _ = io.WriteString(sender, strings.Repeat(" \n", 25_000))
	s.records("b", 10)
	time.Sleep(200 * time.Millisecond) // the last ones come
	s.do("POST", "/topics/a/records", repeat('x', 40_000)).want(t, "a record beside it", 200, "")
	_ = sender.Close()
	if got := <-answered; got.status != 200 || got.sum(t) != (sum{Received: 10, Stored: 10}) {
		t.Errorf("the lines: %d %s", got.status, got.body)
	}
	s.do("POST", "/topics/b/records", packed("gzip", strings.Repeat("\n", 60_001)), ndjson, "Content-Encoding: gzip").refused(t, 413, "empty lines (MAX_BODY_BYTES)")
	got := s.do("POST", "/topics/b/records", "{}\n"+strings.Repeat("\r\n", 40_000)+"{}\n", ndjson)
	if last := got.sum(t); got.status != 413 || last.Stored != 1 || !strings.Contains(last.Message, "empty lines") {
		t.Errorf("after a record: %d %+v", got.status, last)
	}
}

// The results of a stream that goes on do not take the room of single records.
func TestResultsOfStreamsAreNotInFlight(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "200000", "MAX_BATCH_BYTES": "200000", "MAX_IN_FLIGHT_BYTES": "200000", "REQUEST_TIMEOUT": "10s"})
	s.http = http.DefaultTransport // to hold 12,000 lines against the contract takes minutes
	body, sender := io.Pipe()
	answered := make(chan answer)
	go func() { defer close(answered); answered <- s.send("POST", "/topics/b/records", body, ndjson) }()
	_, _ = io.WriteString(sender, strings.Repeat("{}\n", 12_000))
	s.records("b", 12_000)
	s.do("POST", "/topics/a/records", repeat('x', 150_000)).want(t, "a record beside the stream", 200, "")
	_ = sender.Close()
	(<-answered).want(t, "the stream", 200, "")
}

// A shutdown must not cut off who waits for the results of a body that has come whole.
func TestAShutdownWaitsForTheResultsOfLines(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"REQUEST_TIMEOUT": "10s", "SHUTDOWN_TIMEOUT": "8s"})
	s.do("POST", "/topics/b/records", "warm").want(t, "a record", 200, "")
	reached, release := make(chan struct{}, 100), make(chan struct{})
	s.cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		reached <- struct{}{} // kfake may ask more than once about a request
		s.cluster.SleepControl(func() { <-release })
		return nil, nil, false
	})
	answered := make(chan answer, 1)
	go func() {
		defer close(answered) // also where the connection breaks, which ends this
		answered <- s.do("POST", "/topics/b/records", `{"value":1}`+"\n", ndjson)
	}()
	<-reached
	s.stop()
	time.Sleep(5 * time.Second) // more than half of SHUTDOWN_TIMEOUT
	close(release)
	(<-answered).want(t, "the line", 200, "")
}
