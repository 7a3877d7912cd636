package webhook

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

func TestAnAnswerBecomesAnOutcome(t *testing.T) {
	for status, c := range map[int]struct {
		verdict event.Verdict
		err     string
	}{
		204: {event.Delivered, ""},
		307: {event.Refused, "the answer is 307 Temporary Redirect; redirects are not followed, and this one is to /elsewhere"},
		404: {event.Refused, "the answer is 404 Not Found"},
		410: {event.Withdrawn, "the answer is 410 Gone"},
		500: {event.Failed, "the answer is 500 Internal Server Error"},
		503: {event.Unreachable, "the answer is 503 Service Unavailable"},
	} {
		var requests atomic.Int32
		server := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			w.Header().Set("Retry-After", "7")
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			if status != 204 {
				fmt.Fprint(w, "because")
			}
		})
		out := newSender(t, nil).Send(t.Context(), subscription(server.URL), attempt(record("k", "v")))
		want := event.Outcome{Verdict: c.verdict, Status: status, Err: c.err, RetryAfter: 7 * time.Second, Body: "because"}
		if status == 204 {
			want.RetryAfter, want.Body = 0, ""
		}
		if out.Duration <= 0 || out.Duration > time.Minute {
			t.Errorf("%d took %v", status, out.Duration)
		}
		want.Duration = out.Duration
		if out != want {
			t.Errorf("%d: %+v\nwant %+v", status, out, want)
		}
		if n := requests.Load(); n != 1 {
			t.Errorf("%d: there were %d requests; want 1", status, n)
		}
	}
}

func TestWhoDoesNotAnswerIsUnreachable(t *testing.T) {
	closed := endpoint(t, nil)
	closed.Close()
	for name, c := range map[string]struct{ url, err string }{
		"nothing listens": {closed.URL, "nothing listens there: dial tcp 127.0.0.1:"},
		"closes at once":  {listen(t, func(c net.Conn) { _ = c.Close() }), "closed "},
		"half an answer": {listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			fmt.Fprint(c, "HTTP/1.1 200 O")
			_ = c.Close()
		}), "the endpoint closed the connection without an answer ("},
		"no HTTP": {listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			fmt.Fprint(c, "220 mail ESMTP\r\n")
		}), "malformed HTTP"},
		"a huge header": {listen(t, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1))
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nx: ", long(2*maxAnswerHeader), "\r\n\r\n")
		}), strconv.Itoa(maxAnswerHeader)},
		"no TLS": {strings.Replace(endpoint(t, func(http.ResponseWriter, *http.Request) {}).URL, "http:", "https:", 1), "the endpoint speaks HTTP and no TLS; its url must begin with http://"},
		"denied": {"http://172.21.0.9:9092/", "172.21.0.9 is in 172.21.0.0/16, a network of this machine (eth1) that is not its edge"},
	} {
		out := newSender(t, nil).Send(t.Context(), subscription(c.url), attempt(record("k", "v")))
		if out.Verdict != event.Unreachable || out.Status != 0 || !strings.Contains(out.Err, c.err) || len(out.Err) > maxErrBytes {
			t.Errorf("%s: %+v\nwant %q", name, out, c.err)
		}
	}
}

func TestTheTimeoutIsForTheWholeAttempt(t *testing.T) {
	const timeout = 300 * time.Millisecond
	for name, c := range map[string]struct {
		serve   func(net.Conn)
		verdict event.Verdict
		err     string
		body    string
	}{
		"no answer":     {func(net.Conn) {}, event.Unreachable, "there was no answer within 300ms", ""},
		"a slow header": {func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 200 OK\r\nx: ") }, event.Unreachable, "there was no answer within 300ms", ""},
		// The status has decided; what came of the body is kept.
		"a slow body":    {func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab") }, event.Delivered, "", "ab"},
		"a slow failure": {func(c net.Conn) { fmt.Fprint(c, "HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\nab") }, event.Failed, "the answer is 500 Internal Server Error", "ab"},
		"an endless body": {func(c net.Conn) {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\n\r\n")
			for {
				if _, err := c.Write([]byte("a")); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}, event.Delivered, "", "a"},
	} {
		sub := subscription(listen(t, func(conn net.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			c.serve(conn)
		}))
		sub.Timeout = timeout
		out := newSender(t, nil).Send(t.Context(), sub, attempt(record("k", "v")))
		if out.Verdict != c.verdict || out.Err != c.err || !strings.HasPrefix(out.Body, c.body) || len(out.Body) > maxBodyBytes {
			t.Errorf("%s: %+v\nwant %+v", name, out, c)
		}
		if out.Duration < timeout || out.Duration > 10*timeout {
			t.Errorf("%s took %v; want %v", name, out.Duration, timeout)
		}
	}
}

func TestAnAttemptEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	url := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		cancel()
	})
	out := newSender(t, nil).Send(ctx, subscription(url), attempt(record("k", "v")))
	if out.Verdict != event.Unreachable || !strings.Contains(out.Err, "the attempt was canceled") {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestOfABodyTheBeginningIsKept(t *testing.T) {
	const secret = "an-api-key-of-the-shop"
	for name, c := range map[string]struct{ body, want string }{
		"short":           {"ok", "ok"},
		"none":            {"", ""},
		"as long as kept": {long(maxBodyBytes), long(maxBodyBytes)},
		"longer":          {long(maxBodyBytes + 1), long(maxBodyBytes)},
		"endless":         {long(1 << 20), long(maxBodyBytes)},
		"cut in a rune":   {long(maxBodyBytes-1) + "ä", long(maxBodyBytes - 1)},
		"no text":         {"a\xffb\x00", "a\uFFFDb\x00"},
		"much of no text": {strings.Repeat("\xff\xffa", maxBodyBytes), strings.Repeat("\uFFFDa", maxBodyBytes/4)},
		"the request":     {"X-Api-Key: " + secret + "\n", "X-Api-Key: [redacted]\n"},
		"a secret, cut":   {long(maxBodyBytes-4) + secret, long(maxBodyBytes-4) + "[red"},
		// So much is redacted that the end of what is read, half a secret, would be kept.
		"a secret, read by half": {
			strings.Repeat(secret, 250) + long(maxReadBytes-250*len(secret)-4) + secret,
			strings.Repeat("[redacted]", 250)[:250*len("[redacted]")+maxReadBytes-250*len(secret)-maxHeadersBytes],
		},
	} {
		server := endpoint(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, c.body) })
		sub := subscription(server.URL)
		sub.Headers = map[string]string{"X-Api-Key": secret}
		out := newSender(t, nil).Send(t.Context(), sub, attempt(record("k", "v")))
		if out.Verdict != event.Delivered || out.Body != c.want || !utf8.ValidString(out.Body) {
			t.Errorf("%s: %s, %q\nwant %q", name, out.Verdict, out.Body, c.want)
		}
	}
}

func TestErrorsHaveNoSecrets(t *testing.T) {
	server := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", "/login?key="+r.Header.Get("X-Api-Key")+"&"+strings.Repeat("ä", 200))
		w.WriteHeader(302)
	})
	sub := subscription(server.URL)
	sub.Headers = map[string]string{"X-Api-Key": "topsecret"}
	out := newSender(t, nil).Send(t.Context(), sub, attempt(record("k", "v")))
	if !strings.Contains(out.Err, "/login?key=[redacted]&ä") || len(out.Err) > maxErrBytes || !utf8.ValidString(out.Err) {
		t.Errorf("the error is %q", out.Err)
	}
}

// A connection is used again after any answer whose rest is small enough to be read.
func TestConnectionsAreUsedAgain(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("bytes"))
		if n > 1 {
			w.WriteHeader(500)
		}
		_, _ = io.WriteString(w, long(n))
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	s := newSender(t, nil)
	sendMany := func(n, bytes int) {
		for range n {
			if out := s.Send(t.Context(), subscription(server.URL+"?bytes="+strconv.Itoa(bytes)), attempt(record("k", "v"))); out.Status == 0 {
				t.Fatalf("%+v", out)
			}
		}
	}
	for _, bytes := range []int{0, 1, maxBodyBytes, maxReadBytes, maxDrainBytes - 1} {
		sendMany(20, bytes)
		if n := connections.Load(); n != 1 {
			t.Errorf("20 answers of %d bytes took %d connections; want 1", bytes, n)
		}
	}
	sendMany(3, 8<<20)
	if n := connections.Load(); n != 3 { // the first one is the one that was there
		t.Errorf("3 answers of 8 MiB took %d connections; want 3", n)
	}

	// As many as are in flight at once stay open.
	connections.Store(0)
	s = newSender(t, nil)
	for range 5 {
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() { s.Send(t.Context(), subscription(server.URL), attempt(record("k", "v"))) })
		}
		wg.Wait()
	}
	if n := connections.Load(); n > 64 {
		t.Errorf("5 times 64 attempts at once took %d connections; want at most 64", n)
	}
}

func TestHTTP2IsUsedWhereItIsOffered(t *testing.T) {
	var protocol atomic.Value
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { protocol.Store(r.Proto) }))
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the one who does not trust its certificate
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	s := newSender(t, func(o *Options) { o.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12} })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if out := s.Send(t.Context(), subscription(server.URL), attempt(record("k", "v"))); out.Verdict != event.Delivered {
				t.Errorf("%+v", out)
			}
		})
	}
	wg.Wait()
	if got := protocol.Load(); got != "HTTP/2.0" {
		t.Errorf("the protocol is %v", got)
	}
	if out := newSender(t, nil).Send(t.Context(), subscription(server.URL), attempt(record("k", "v"))); out.Verdict != event.Unreachable || !strings.Contains(out.Err, "certificate") {
		t.Errorf("a certificate of nobody that is known: %+v", out)
	}
}

// resolver answers for every name with what answers gives, one after the other.
func resolver(t *testing.T, answers func(question string) netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(dnsAnswer(packet[:n], answers), from)
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// dnsAnswer answers a question (RFC 1035) for an A or AAAA record.
func dnsAnswer(query []byte, answers func(string) netip.Addr) []byte {
	const header = 12
	var name []string
	i := header
	for query[i] != 0 {
		name = append(name, string(query[i+1:i+1+int(query[i])]))
		i += 1 + int(query[i])
	}
	kind := binary.BigEndian.Uint16(query[i+1:])
	end := i + 5
	reply := bytes.Clone(query[:end])
	copy(reply[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0})
	addr := answers(strings.Join(name, "."))
	if addr.Is4() != (kind == 1) {
		return reply // no such record
	}
	reply[7] = 1
	reply = append(reply, 0xc0, header)
	reply = binary.BigEndian.AppendUint16(reply, kind)
	reply = append(reply, 0, 1, 0, 0, 0, 0) // for 0 s
	data := addr.AsSlice()
	reply = binary.BigEndian.AppendUint16(reply, uint16(len(data)))
	return append(reply, data...)
}

// The name server says one thing while the endpoint is checked, and another when it is called.
func TestAnAnswerOfDNSThatChangesDoesNotPass(t *testing.T) {
	var requests atomic.Int32
	server := endpoint(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.Header().Set("Connection", "close") // each attempt looks the name up
	})
	port := netip.MustParseAddrPort(strings.TrimPrefix(server.URL, "http://")).Port()
	var answer atomic.Value
	dns := resolver(t, func(string) netip.Addr { return answer.Load().(netip.Addr) })
	// 127.0.0.1 is where a receiver may be here, 127.0.0.2 and the others are where none may be.
	s := newSender(t, func(o *Options) { o.Allow, o.Resolver = targets(t, "127.0.0.1", "*"), dns })
	sub := subscription(fmt.Sprintf("http://shop.example.com:%d/", port))
	if err := s.CheckURL(sub.URL); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ answer, err string }{
		{"127.0.0.1", ""},
		{"127.0.0.2", "shop.example.com is 127.0.0.2, which is a loopback address"},
		{"172.21.0.9", "shop.example.com is 172.21.0.9, which is in 172.21.0.0/16"},
		{"169.254.169.254", "shop.example.com is 169.254.169.254, which is where a cloud tells this machine its secrets"},
		{"::ffff:127.0.0.2", "shop.example.com is 127.0.0.2, which is a loopback address"},
		{"127.0.0.1", ""},
	} {
		answer.Store(netip.MustParseAddr(c.answer))
		before := requests.Load()
		out := s.Send(t.Context(), sub, attempt(record("k", "v")))
		came := requests.Load() - before
		if c.err == "" && (out.Verdict != event.Delivered || came != 1) {
			t.Errorf("%s: %+v, %d requests", c.answer, out, came)
		}
		if c.err != "" && (out.Verdict != event.Unreachable || !strings.Contains(out.Err, c.err) || came != 0) {
			t.Errorf("%s: %+v, %d requests; want %q", c.answer, out, came, c.err)
		}
	}
}

func TestANameThatIsDeniedIsNotLookedUp(t *testing.T) {
	var asked atomic.Int32
	dns := resolver(t, func(string) netip.Addr { asked.Add(1); return netip.MustParseAddr("127.0.0.1") })
	s := newSender(t, func(o *Options) { o.Allow, o.Deny, o.Resolver = nil, targets(t, "*.example.com"), dns })
	out := s.Send(t.Context(), subscription("http://shop.example.com/"), attempt(record("k", "v")))
	if out.Verdict != event.Unreachable || !strings.Contains(out.Err, "WEBHOOK_DENY") || asked.Load() != 0 {
		t.Errorf("the outcome is %+v, after %d questions", out, asked.Load())
	}
}

func TestARedirectDoesNotReachWhatIsDenied(t *testing.T) {
	inner := endpoint(t, func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") })
	outer := endpoint(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, inner.URL, http.StatusTemporaryRedirect)
	})
	out := newSender(t, nil).Send(t.Context(), subscription(outer.URL), attempt(record("k", "v")))
	if out.Verdict != event.Refused || out.Status != 307 {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestHTTPSIsRequiredAtTheAttempt(t *testing.T) {
	server := endpoint(t, func(http.ResponseWriter, *http.Request) { t.Error("it was called") })
	s := newSender(t, func(o *Options) { o.RequireHTTPS = true })
	out := s.Send(t.Context(), subscription(server.URL), attempt(record("k", "v"))) // made before it was required
	if out.Verdict != event.Unreachable || !strings.Contains(out.Err, "WEBHOOK_REQUIRE_HTTPS") {
		t.Errorf("the outcome is %+v", out)
	}
}

func TestProxiesAreUsedOnlyWhereOneIsSet(t *testing.T) {
	var hosts []string
	proxy := endpoint(t, func(_ http.ResponseWriter, r *http.Request) { hosts = append(hosts, r.URL.String()) })
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	server := endpoint(t, func(http.ResponseWriter, *http.Request) {})
	if out := newSender(t, nil).Send(t.Context(), subscription(server.URL), attempt(record("k", "v"))); out.Verdict != event.Delivered || len(hosts) != 0 {
		t.Errorf("with HTTP_PROXY: %+v, %q", out, hosts)
	}
	// The address of the proxy is the operator's choice. Names are its to look up.
	s := newSender(t, func(o *Options) { o.Allow, o.Deny, o.Proxy = nil, targets(t, "*.example.com"), proxy.URL })
	for url, want := range map[string]string{
		"http://webshop.invalid/vouchers": "",
		"http://shop.example.com/":        "is denied by *.example.com",
		"http://169.254.169.254/":         "no setting allows it",
	} {
		out := s.Send(t.Context(), subscription(url), attempt(record("k", "v")))
		if want == "" && out.Verdict != event.Delivered || !strings.Contains(out.Err, want) {
			t.Errorf("%s: %+v; want %q", url, out, want)
		}
	}
	if len(hosts) != 1 || hosts[0] != "http://webshop.invalid/vouchers" {
		t.Errorf("the proxy was asked for %q", hosts)
	}
}

func TestReadingAProxysURL(t *testing.T) {
	for text, want := range map[string]string{"": "<nil>", "none": "<nil>", "http://proxy:3128": "http://proxy:3128", "socks5://10.0.0.1:1080": "socks5://10.0.0.1:1080"} {
		u, err := ParseProxy(text)
		got := "<nil>"
		if u != nil {
			got = u.String()
		}
		if err != nil || got != want {
			t.Errorf("%q is %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"proxy:3128", "ftp://proxy", "http://", "//proxy", "http://user:topsecret@proxy", "http://user:topsecret@proxy:x"} {
		if u, err := ParseProxy(text); err == nil || strings.Contains(err.Error(), "topsecret") {
			t.Errorf("%q is %v, %v", text, u, err)
		}
	}
}

type panics struct{}

func (panics) RoundTrip(*http.Request) (*http.Response, error) { panic("out of paper") }

func TestABugIsAFailureOfTheRecord(t *testing.T) {
	s := newSender(t, nil)
	s.transport = panics{}
	out := s.Send(t.Context(), subscription("http://webshop/"), attempt(record("k", "v")))
	if out.Verdict != event.Failed || !strings.Contains(out.Err, "a bug of Postamt's): out of paper") {
		t.Errorf("the outcome is %+v", out)
	}
}

// What is sent while the server closes an idle connection is sent again on another one.
func TestAConnectionThatWasClosedIsNoFailure(t *testing.T) {
	closed := make(chan struct{})
	url := listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = c.Close() // without having said so
		closed <- struct{}{}
	})
	s := newSender(t, nil)
	failures := 0
	for range 50 {
		if out := s.Send(t.Context(), subscription(url), attempt(record("k", "v"))); out.Verdict != event.Delivered {
			failures++
			if !strings.Contains(out.Err, "closed the connection without an answer") {
				t.Errorf("%+v", out)
			}
			continue // nobody took it, so nobody closes anything
		}
		<-closed
	}
	if failures > 10 { // the race can be lost, not always
		t.Errorf("%d of 50 attempts failed", failures)
	}
}
