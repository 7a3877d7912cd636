package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Whatever is set when, waits end as they do on the connection itself.
func TestDeadlinesEndWaitsWhenTheyShould(t *testing.T) {
	t.Parallel()
	ended := 0
	for seed := range uint64(100) {
		bare := traceDeadlines(t, seed, func(c net.Conn) net.Conn { return c })
		ours := traceDeadlines(t, seed, func(c net.Conn) net.Conn { return newDeadlineConn(c) })
		if !slices.Equal(bare, ours) {
			other := func(e string) bool { return slices.Contains(bare, e) }
			t.Errorf("seed %d: waits end unlike those of the connection itself: %v", seed, slices.DeleteFunc(ours, other))
		}
		ended += strings.Count(strings.Join(bare, "\n"), "true")
	}
	if ended < 300 {
		t.Errorf("deadlines have ended only %d waits: the test has nothing to see", ended)
	}
}

// traceDeadlines reads and writes for a minute while deadlines are set, and tells what became of
// each wait, and when.
func traceDeadlines(t *testing.T, seed uint64, wrap func(net.Conn) net.Conn) (trace []string) {
	synctest.Test(t, func(*testing.T) {
		near, far := net.Pipe()
		conn := wrap(near)
		start := time.Now()
		var mu sync.Mutex
		var work sync.WaitGroup
		wait := func(what string, of uint64, do func() (int, error)) {
			work.Go(func() {
				random := rand.New(rand.NewPCG(seed, of)) //nolint:gosec // it is to be the same again
				// No two things happen at the same time: each has its own remainder of a millisecond.
				for time.Sleep(time.Duration(of) * time.Microsecond); time.Since(start) < time.Minute; {
					n, err := do()
					if errors.Is(err, io.ErrClosedPipe) || errors.Is(err, io.EOF) {
						return
					}
					mu.Lock()
					trace = append(trace, fmt.Sprint(what, " ", time.Since(start), " ", n, " ", errors.Is(err, os.ErrDeadlineExceeded)))
					mu.Unlock()
					time.Sleep(time.Duration(random.IntN(3000))*time.Millisecond + time.Duration(of)*time.Microsecond)
				}
			})
		}
		wait("read", 1, func() (int, error) { return conn.Read(make([]byte, 100)) })
		wait("write", 3, func() (int, error) { return conn.Write(make([]byte, 100)) })
		wait("far read", 7, func() (int, error) { return far.Read(make([]byte, 60)) })
		wait("far write", 11, func() (int, error) { return far.Write(make([]byte, 1)) })
		random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is to be the same again
		for time.Sleep(100 * time.Microsecond); time.Since(start) < time.Minute; {
			t := time.Now().Add(time.Duration(random.IntN(20_000))*time.Millisecond + 500*time.Microsecond)
			switch random.IntN(6) {
			case 0:
				t = time.Unix(1, 0)
			case 1, 2:
				t = time.Time{}
			}
			switch random.IntN(5) {
			case 0:
				_ = conn.SetDeadline(t)
			case 1:
				_ = conn.SetWriteDeadline(t)
			default:
				_ = conn.SetReadDeadline(t)
			}
			time.Sleep(time.Duration(random.IntN(2000))*time.Millisecond + 100*time.Microsecond)
		}
		_ = near.Close()
		work.Wait()
		slices.Sort(trace)
	})
	return trace
}

// pipes is a listener of connections in this process, on which time is virtual.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close ends Accept; net/http calls it once.
func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) dial() net.Conn {
	near, far := net.Pipe()
	p <- far
	return near
}

// The timeouts of net/http's server, and its read while a handler works, which notices when the
// client goes away and is ended by a deadline, are as they are without Listener.
func TestTimeoutsOfAServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		clients := make(pipes)
		gone := make(chan time.Duration, 1)
		srv := &http.Server{
			ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch start := time.Now(); r.URL.Path {
				case "/body":
					_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(30 * time.Second))
					_, err := io.ReadAll(r.Body)
					_, _ = fmt.Fprint(w, time.Since(start), " ", errors.Is(err, os.ErrDeadlineExceeded))
				case "/long":
					_, _ = io.Copy(io.Discard, r.Body) // after which net/http reads
					<-r.Context().Done()
					gone <- time.Since(start)
				}
			}),
		}
		serving := make(chan error)
		go func() { serving <- srv.Serve(Listener(clients, 1000)) }()
		send := func(c net.Conn, text string) {
			if _, err := io.WriteString(c, text); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
		ends := func(c net.Conn, what string, want time.Duration) {
			t.Helper()
			start := time.Now()
			_, _ = io.Copy(io.Discard, c)
			if took := time.Since(start); took != want {
				t.Errorf("%s: the connection ends after %v; want %v", what, took, want)
			}
		}
		ends(clients.dial(), "nothing is sent", 10*time.Second)
		c := clients.dial()
		answers := bufio.NewReader(c)
		for i := range 30 { // on the same connection, a while after one another
			time.Sleep(time.Duration(i) * time.Second)
			send(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
			resp, err := http.ReadResponse(answers, nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(i, resp, err)
			}
		}
		ends(c, "an idle connection", 2*time.Minute)

		c = clients.dial()
		send(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		send(c, "GET / HT")
		time.Sleep(7 * time.Second)
		send(c, "TP/1.1\r\n")
		ends(c, "half a header", 3*time.Second)

		c = clients.dial()
		send(c, "POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "30s true" {
			t.Errorf("half a body is waited for %s; want 30s true", body)
		}
		_ = c.Close()

		c = clients.dial()
		send(c, "POST /long HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
		time.Sleep(time.Hour)
		_ = c.Close()
		if took := <-gone; took != time.Hour {
			t.Errorf("a client that goes away after 1h is noticed after %v", took)
		}
		_ = srv.Close()
		if err := <-serving; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// The runtime's timers are what deadlineConn spares: two for each request, not ten.
func TestFewDeadlinesAreArmed(t *testing.T) {
	t.Parallel()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counted := &counting{Listener: ln}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			_ = rc.SetReadDeadline(time.Now().Add(time.Minute))
			_, _ = io.Copy(io.Discard, r.Body)
			_ = rc.SetWriteDeadline(time.Now().Add(time.Minute))
		}),
	}
	done := make(chan error)
	go func() { done <- srv.Serve(Listener(counted, 1000)) }()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	const requests = 100
	for range requests {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+ln.Addr().String(), strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	client.CloseIdleConnections()
	if err := srv.Shutdown(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	counted.mu.Lock()
	defer counted.mu.Unlock()
	if counted.armed > 3*requests {
		t.Errorf("%d requests have armed %d deadlines", requests, counted.armed)
	}
}

type counting struct {
	net.Listener
	mu    sync.Mutex
	armed int
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c, l}, nil
}

type countedConn struct {
	net.Conn
	of *counting
}

func (c countedConn) count() {
	c.of.mu.Lock()
	defer c.of.mu.Unlock()
	c.of.armed++
}

func (c countedConn) SetReadDeadline(t time.Time) error {
	c.count()
	return c.Conn.SetReadDeadline(t)
}

func (c countedConn) SetWriteDeadline(t time.Time) error {
	c.count()
	return c.Conn.SetWriteDeadline(t)
}
