package webhook

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

// The machine of the tests: an edge, and a network that Kafka is in.
func testNetworks() ([]Network, error) {
	return []Network{
		{Interface: "lo", Address: netip.MustParsePrefix("127.0.0.1/8")},
		{Interface: "lo", Address: netip.MustParsePrefix("::1/128")},
		{Interface: "eth0", Address: netip.MustParsePrefix("172.20.0.5/16"), Default: true},
		{Interface: "eth1", Address: netip.MustParsePrefix("172.21.0.5/16")},
		{Interface: "eth1", Address: netip.MustParsePrefix("fd00:21::5/64")},
	}, nil
}

func targets(t testing.TB, entries ...string) []Target {
	t.Helper()
	var all []Target
	for _, entry := range entries {
		var one Target
		if err := one.UnmarshalText([]byte(entry)); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	return all
}

// newSender makes a Sender that may call 127.0.0.1, where tests have their endpoints.
func newSender(t testing.TB, change func(*Options)) *Sender {
	t.Helper()
	o := Options{Allow: targets(t, "127.0.0.0/8"), Version: "1.2.3", Networks: testNetworks}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var (
	oldKey, newKey = bytes.Repeat([]byte{1}, 24), bytes.Repeat([]byte{2}, 32)
	attemptTime    = time.UnixMilli(1795374349418).UTC()
)

func subscription(url string) *event.Subscription {
	return &event.Subscription{Name: "webshop", URL: url, Timeout: 10 * time.Second, Secrets: []event.Secret{{Key: newKey}}}
}

func record(key, value string, headers ...string) *event.Record {
	r := &event.Record{Topic: "test.voucher", Partition: 2, Offset: 17, Key: []byte(key), Value: []byte(value), Timestamp: time.UnixMilli(1795374340000)}
	for i := 0; i < len(headers); i += 2 {
		r.Headers = append(r.Headers, event.Header{Key: headers[i], Value: []byte(headers[i+1])})
	}
	return r
}

func attempt(r *event.Record) event.Attempt {
	return event.Attempt{Record: r, Origin: event.OriginOf(r), Number: 1, Started: time.Now()}
}

// endpoint answers as handler does.
func endpoint(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s
}

// listen accepts connections and gives each to serve, which closes nothing by itself.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var conns []net.Conn
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			go serve(c)
		}
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return "http://" + ln.Addr().String()
}
