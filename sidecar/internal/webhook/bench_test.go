package webhook

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"postamt/sidecar/internal/event"
)

// An attempt against the same request made by a bare client, which is how fast it can be:
//
//	go test -bench 'Send|Bare' -benchmem ./sidecar/internal/webhook
func BenchmarkSend(b *testing.B) {
	server := benchEndpoint(b)
	s, sub, a := newSender(b, nil), subscription(server.URL), benchAttempt()
	for name, parallel := range map[string]int{"one": 0, "64": 64} {
		b.Run(name, func(b *testing.B) {
			benchmark(b, parallel, func() bool {
				return s.Send(b.Context(), sub, a).Verdict == event.Delivered
			})
		})
	}
}

func BenchmarkBareClient(b *testing.B) {
	server := benchEndpoint(b)
	a := benchAttempt()
	signed, err := newSender(b, nil).request(b.Context(), subscription(server.URL), a)
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: maxIdlePerEndpoint, DisableCompression: true}}
	b.Cleanup(client.CloseIdleConnections)
	for name, parallel := range map[string]int{"one": 0, "64": 64} {
		b.Run(name, func(b *testing.B) {
			benchmark(b, parallel, func() bool {
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, server.URL, bytes.NewReader(a.Record.Value))
				if err != nil {
					return false
				}
				req.Header = signed.Header
				resp, err := client.Do(req)
				if err != nil {
					return false
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
			})
		})
	}
}

// BenchmarkRequest is what of an attempt is this package's own work.
func BenchmarkRequest(b *testing.B) {
	s, sub, a := newSender(b, nil), subscription("http://webshop:8080/vouchers"), benchAttempt()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.request(b.Context(), sub, a); err != nil {
			b.Fatal(err)
		}
	}
}

func benchAttempt() event.Attempt {
	return attempt(record("4711", `{"id":4711,"shop":"linden","amount":50.5,"text":"`+long(400)+`"}`, "shop", "linden"))
}

func benchEndpoint(b *testing.B) *httptest.Server {
	return endpoint(b, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})
}

func benchmark(b *testing.B, parallel int, send func() bool) {
	b.ReportAllocs()
	if parallel == 0 {
		for b.Loop() {
			if !send() {
				b.Fatal("it was not delivered")
			}
		}
		return
	}
	b.SetParallelism(parallel / 2)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !send() {
				b.Error("it was not delivered")
				return
			}
		}
	})
}
