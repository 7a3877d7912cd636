package httpapi_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/httpapi"
	"postamt/sidecar/internal/trace"
)

// BenchmarkProduceOne is what one request with one record costs the process, from the connection
// to the answer, with the server's timeouts as app sets them. "bare" is a handler that reads the
// body and answers as long, which is what net/http and this benchmark's client take of it. "traced"
// has a tracer with the default sampler, so that one request in a hundred has a span.
func BenchmarkProduceOne(b *testing.B) {
	cfg, err := config.Load(nil)
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(io.Discard, nil)) //nolint:sloglint // at its default level, which a producer's has, too
	options := httpapi.Options{Limits: cfg.Limits, RequestTimeout: cfg.RequestTimeout, ReadTimeout: cfg.ReadTimeout}
	postamt := httpapi.New(b.Context(), httpapi.Parts{Topics: storing{}, Producer: storing{}}, options, log, prometheus.NewRegistry())
	tracer, err := trace.New(trace.Options{
		Endpoint: "http://127.0.0.1:9/v1/traces", Timeout: time.Second, Delay: time.Second, MaxQueue: 2048, Sampler: trace.Sampler{Name: cfg.Traces.Sampler, Ratio: 0.01},
	}, log, prometheus.NewRegistry())
	if err != nil {
		b.Fatal(err)
	}
	defer tracer.Close(b.Context())
	traced := httpapi.New(b.Context(), httpapi.Parts{Topics: storing{}, Producer: storing{}, Tracer: tracer}, options, log, prometheus.NewRegistry())
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/vnd.kafka.v2+json")
		_, _ = w.Write([]byte(`{"offsets":[{"partition":0,"offset":0,"error_code":null,"error":null}],"key_schema_id":null,"value_schema_id":null}`))
	})
	for name, handler := range map[string]http.Handler{"postamt": postamt, "traced": traced, "bare": bare} {
		b.Run(name, func(b *testing.B) { benchmarkConnection(b, handler, cfg) })
	}
}

func benchmarkConnection(b *testing.B, handler http.Handler, cfg config.Config) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: cfg.Limits.HeaderBytes}
	if name := b.Name(); name[len(name)-len("bare"):] != "bare" {
		ln = httpapi.Listener(ln, cfg.Limits.HeaderBytes)
	}
	go func() { _ = srv.Serve(ln) }()
	defer func() { _ = srv.Close() }()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	body := `{"records":[{"value":{"text":"` + repeat('x', 187) + `"}}]}`
	request := fmt.Appendf(nil, "POST /topics/t HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/vnd.kafka.json.v2+json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	answers := bufio.NewReader(conn)
	b.ReportAllocs()
	before := processorTime(b)
	defer func() { b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op") }()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		length := 0
		for {
			line, err := answers.ReadSlice('\n')
			if err != nil {
				b.Fatal(err)
			}
			if n, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
				for _, c := range bytes.TrimSpace(n) {
					length = 10*length + int(c-'0')
				}
			}
			if len(line) == 2 {
				break
			}
		}
		if _, err := answers.Discard(length); err != nil || length == 0 {
			b.Fatal(err, length)
		}
	}
}

// processorTime is what this process has had of the processor: others do not change it much.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
