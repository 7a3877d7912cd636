package httpapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/httpapi"
)

// storing is a Producer that has everything stored at once, and Topics that has every topic.
type storing struct{ topics }

type topics = httpapi.Topics

func (storing) CheckTopic(context.Context, string) error { return nil }

func (storing) Produce(_ context.Context, _ time.Time, records []event.Record) []event.Result {
	return make([]event.Result, len(records))
}

// BenchmarkProduceV2 is what a request costs between net/http and Kafka's client.
func BenchmarkProduceV2(b *testing.B) {
	cfg, err := config.Load(nil)
	if err != nil {
		b.Fatal(err)
	}
	log := slog.New(slog.NewJSONHandler(io.Discard, nil)) //nolint:sloglint // at its default level, which a producer's has, too
	handler := httpapi.New(b.Context(), httpapi.Parts{Topics: storing{}, Producer: storing{}},
		httpapi.Options{Limits: cfg.Limits, RequestTimeout: time.Minute, ReadTimeout: time.Minute}, log, prometheus.NewRegistry())
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			body := []byte(`{"records":[` + strings.TrimSuffix(strings.Repeat(`{"value":{"text":"`+repeat('x', 187)+`"}},`, n), ",") + `]}`)
			b.ReportAllocs()
			for b.Loop() {
				r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/topics/t", bytes.NewReader(body))
				r.Header.Set("Content-Type", "application/vnd.kafka.json.v2+json")
				w := httptest.NewRecorder()
				if handler.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
		})
	}
}
