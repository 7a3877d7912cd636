package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/app"
	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/contract"
	"postamt/sidecar/internal/kafka"
)

// service is every role in one process on a cluster with the topics a (3 partitions) and b.
type service struct {
	t            *testing.T
	api, metrics string
	cluster      *kfake.Cluster
	http         http.RoundTripper  // holds every answer against openapi.yaml
	stop         context.CancelFunc // as SIGTERM does; the test waits for its end
}

func serve(t *testing.T, environ map[string]string) *service {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "a"), kfake.SeedTopics(1, "b", "_postamt.own", "_postamt.sessions", "_postamt.subscriptions"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	all := map[string]string{
		"HTTP_ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0", "KAFKA_BOOTSTRAP_SERVERS": strings.Join(cluster.ListenAddrs(), ","),
		// A connection that a client opened and never used is waited for up to 5s.
		"SHUTDOWN_LISTEN_GRACE": "0s", "SHUTDOWN_TIMEOUT": "15s", "HEALTH_INTERVAL": "100ms", "MONITOR_INTERVAL": "100ms",
	}
	maps.Copy(all, environ)
	grace := all[graceVariable]
	delete(all, graceVariable)
	cfg, err := config.Load(all)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.OpenAPI, err = contract.Text(); err != nil {
		t.Fatal(err)
	}
	cfg.ReplicaGrace, _ = time.ParseDuration(grace)
	ctx, stop := context.WithCancel(context.Background())
	s := &service{t: t, cluster: cluster, stop: stop, http: &contract.Transport{Base: http.DefaultTransport, Fail: func(err error) { t.Error(err) }}}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- app.Run(ctx, app.Dev, cfg, slog.New(slog.DiscardHandler), func(api, metrics net.Addr) {
			s.api, s.metrics = "http://"+api.String(), "http://"+metrics.String()
			close(ready)
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return s
}

// answer is a response that was read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request. Headers come as "Name: value". Whatever it asks, an error has our form.
func (s *service) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	return s.send(method, path, strings.NewReader(body), headers...)
}

func (s *service) send(method, path string, body io.Reader, headers ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.api+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
		if name == "Content-Length" {
			req.ContentLength, _ = strconv.ParseInt(value, 10, 64)
		}
	}
	resp, err := s.http.RoundTrip(req) // no redirects, and no cookies
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{resp.StatusCode, resp.Header, string(text)}
	if a.header.Get("X-Request-Id") == "" {
		s.t.Errorf("%s %s: no X-Request-Id", method, path)
	}
	if a.status >= 400 && !strings.HasPrefix(path, "/health") && !strings.HasPrefix(a.body, `{"offsets":[`) && a.header.Get("Content-Type") != "application/x-ndjson" && method != http.MethodHead {
		a.code(s.t)
	}
	return a
}

// code is the error_code of an error, which must have our form.
func (a answer) code(t *testing.T) int {
	t.Helper()
	var body struct {
		Code    *int    `json:"error_code"`
		Message *string `json:"message"`
	}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil || body.Code == nil || body.Message == nil || *body.Message == "" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("status %d, %s: %q is not an error in our form", a.status, a.header.Get("Content-Type"), a.body)
		return 0
	}
	if *body.Code != a.status && (*body.Code < 10000 || *body.Code/100 != a.status && *body.Code != 40001 && *body.Code != 40903) {
		t.Errorf("status %d with error_code %d", a.status, *body.Code)
	}
	return *body.Code
}

// want fails unless an answer has a status and, when it is not "", a body.
func (a answer) want(t *testing.T, what string, status int, body string) {
	t.Helper()
	if a.status != status || body != "" && strings.TrimSpace(a.body) != body {
		t.Errorf("%s: %d %s; want %d %s", what, a.status, a.body, status, body)
	}
}

// topic makes a topic with so many partitions.
func (s *service) topic(name string, partitions int32) {
	s.t.Helper()
	client, err := kafka.NewClient(s.cluster.ListenAddrs())
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(s.t.Context(), partitions, 1, nil, name); err != nil {
		s.t.Fatal(err)
	}
}

// records reads n records of a topic, past the HTTP interface.
func (s *service) records(topic string, n int) []*kgo.Record {
	s.t.Helper()
	client, err := kafka.NewClient(s.cluster.ListenAddrs(), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	var out []*kgo.Record
	for len(out) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			s.t.Fatalf("%d of %d records of %s within 10s", len(out), n, topic)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15s: %s", what)
		}
	}
}

func repeat(b byte, n int) string { return string(bytes.Repeat([]byte{b}, n)) }
