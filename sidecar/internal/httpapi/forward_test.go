package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// largeSession makes a session with records of 0.9 MB, of which the first two have been read and committed.
func (s *service) largeSession(records int) {
	s.t.Helper()
	for range records {
		s.produced(repeat('x', 900_000))
	}
	s.create(earliest + `,"fetch.min.bytes":10000000`)
	s.do("POST", base+"/subscription", `{"topics":["b"]}`, plainV2).want(s.t, "subscribe", 204, "")
	eventually(s.t, "two records are read", func() bool {
		return strings.Count(s.do("GET", base+"/records?max_bytes=1800000", "").body, `"offset":`) > 0 &&
			s.do("POST", base+"/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":1}]}`, plainV2).status == 200
	})
	s.do("POST", base+"/positions", `{"offsets":[{"topic":"b","partition":0,"offset":2}]}`, plainV2).want(s.t, "go on behind them", 204, "")
}

// reading is a read that has begun, and whose client reads no more of it yet.
func (s *service) reading() *http.Response {
	s.t.Helper()
	client := http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if tcp, ok := conn.(*net.TCPConn); ok {
			err = tcp.SetReadBuffer(64 << 10)
		}
		return conn, err
	}}
	s.t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.api+base+"/records?timeout=10000", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := client.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.ContentLength < 10_000_000 {
		s.t.Fatalf("a read is answered with %s and %d bytes", resp.Status, resp.ContentLength)
	}
	return resp
}

var offsetInRead = regexp.MustCompile(`"offset":(\d+)`)

// wantRest reads what a session gives from an offset on to the end, commits it, and reads that there is no more.
func (s *service) wantRest(from, to int) {
	s.t.Helper()
	s.http = http.DefaultTransport // to hold 20 MB against the contract takes longer than the test has
	for i, o := range s.offsets(base, to-from) {
		if o != fmt.Sprint(from+i) {
			s.t.Fatalf("record %d of those that are left is of offset %s; want %d", i, o, from+i)
		}
	}
	s.do("POST", base+"/offsets", "").want(s.t, "commit", 200, "[]")
	s.do("GET", base+"/records?timeout=100", "").want(s.t, "after the commit", 200, "[]")
	s.do("GET", base+"/offsets", b0, plainV2).want(s.t, "committed", 200, fmt.Sprintf(`{"offsets":[{"topic":"b","partition":0,"offset":%d,"metadata":""}]}`, to))
}

const largeRecords = 24 // more in all than the sockets hold

// The owner of a session dies while another replica gives a client what it has read.
func TestAnOwnerThatDiesInAForwardedRead(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, nil)
	owner, other := r[0], r[1]
	owner.largeSession(largeRecords)
	resp := other.reading()
	owner.kill()
	text, err := io.ReadAll(resp.Body)
	if err == nil {
		t.Errorf("the client takes %d bytes for the whole answer", len(text))
	}
	if got := other.do("POST", base+"/offsets", ""); got.status != 409 {
		t.Errorf("a commit of what has broken off: %d %s", got.status, got.body)
	}
	other.wantRest(2, largeRecords)
}

// One that stands still for a while goes on, and one that does so for too long is given up: its client's
// answer breaks off, and who asks next has the rest from the replica that takes the session over.
func TestAnOwnerThatStandsStillInAForwardedRead(t *testing.T) {
	t.Parallel()
	for name, long := range map[string]bool{"for a moment": false, "for too long": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, r := replicas(t, 2, map[string]string{graceVariable: "500ms"})
			owner, other := r[0], r[1]
			owner.largeSession(largeRecords)
			resp := other.reading()
			if err := owner.process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			awake := func() { _ = owner.process.Signal(syscall.SIGCONT) }
			if !long {
				time.AfterFunc(300*time.Millisecond, awake)
			}
			text, err := io.ReadAll(resp.Body)
			if !long {
				if offsets := offsetInRead.FindAllSubmatch(text, -1); err != nil || len(offsets) == 0 || !bytes.HasSuffix(text, []byte("]")) {
					t.Fatalf("%d bytes, %d records, %v", len(text), len(offsets), err)
				}
				other.do("POST", base+"/offsets", "").want(t, "a commit of all that has come", 200, "[]")
				if next := 2 + len(offsetInRead.FindAll(text, -1)); next < largeRecords {
					other.wantRest(next, largeRecords)
				}
				return
			}
			if err == nil {
				t.Errorf("the client takes %d bytes for the whole answer", len(text))
			}
			other.wantRest(2, largeRecords)
			awake()
			owner.do("GET", base+"/records?timeout=100", "").want(t, "by the one that comes back", 200, "[]")
		})
	}
}

// The replica between a client and the owner stands still while it passes records on, for so long that the
// owner gives them up: what the client has is not known to have arrived, and comes again.
func TestAForwarderThatStandsStill(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, map[string]string{graceVariable: "300ms"})
	owner, other := r[0], r[1]
	owner.largeSession(largeRecords)
	resp := other.reading()
	if err := other.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if got := owner.do("POST", base+"/offsets", ""); got.status != 409 { // which waits until it knows
		t.Errorf("a commit of what is on its way: %d %s", got.status, got.body)
	}
	owner.wantRest(2, largeRecords)
	if err := other.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the client takes %d bytes for the whole answer", len(text))
	}
	other.do("GET", base+"/records?timeout=100", "").want(t, "by the one that comes back", 200, "[]")
}

// A client that takes many times as long as the owner waits for a forwarder that is silent has all in the end:
// the forwarder tells the owner that it is still at it.
func TestASlowReaderThroughAnotherReplica(t *testing.T) {
	t.Parallel()
	_, r := replicas(t, 2, map[string]string{graceVariable: "500ms"}) // 1.5 s of silence
	owner, other := r[0], r[1]
	owner.largeSession(largeRecords)
	resp := other.reading()
	var text bytes.Buffer
	for range 20 {
		time.Sleep(200 * time.Millisecond)
		if _, err := io.CopyN(&text, resp.Body, 500_000); err != nil {
			t.Fatalf("after %d bytes: %v", text.Len(), err)
		}
	}
	if _, err := io.Copy(&text, resp.Body); err != nil || int64(text.Len()) != resp.ContentLength {
		t.Fatalf("%d bytes of %d: %v", text.Len(), resp.ContentLength, err)
	}
	n := len(offsetInRead.FindAll(text.Bytes(), -1))
	other.do("POST", base+"/offsets", "").want(t, "a commit of all that has come", 200, "[]")
	other.do("GET", base+"/offsets", b0, plainV2).want(t, "committed", 200, fmt.Sprintf(`{"offsets":[{"topic":"b","partition":0,"offset":%d,"metadata":""}]}`, 2+n))
	if metrics := other.metricsText(); !strings.Contains(metrics, `postamt_sessions_taken_over_total{result="taken"} 0`) {
		t.Errorf("the session was taken from its owner: %s", metrics)
	}
}
