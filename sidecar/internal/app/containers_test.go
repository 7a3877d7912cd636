package app_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postamt/sidecar/internal/app"
	"postamt/sidecar/internal/config"
)

func TestContainersServesMetricsAndItsHealthIsTheEngines(t *testing.T) {
	var away atomic.Bool
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case away.Load():
			http.Error(w, "No server is available", http.StatusServiceUnavailable)
		case r.URL.Path == "/containers/json":
			fmt.Fprint(w, `[{"Id":"1","Names":["/shop-kafka-1"],"Image":"kafka","Labels":{"com.docker.compose.service":"kafka","postamt.metrics.port":"9404"}}]`)
		case r.URL.Path == "/containers/1/json":
			fmt.Fprint(w, `{"RestartCount":3}`)
		default:
			fmt.Fprint(w, "{}")
		}
	}))
	defer engine.Close()
	targets := filepath.Join(t.TempDir(), "hosts.json")
	cfg, err := config.Load(map[string]string{
		"HTTP_ADDRESS": "127.0.0.1:0", "METRICS_ADDRESS": "127.0.0.1:0", "HEALTH_INTERVAL": "10ms",
		"CONTAINERS_ENGINE": engine.URL, "CONTAINERS_PROJECT": "shop", "CONTAINERS_INTERVAL": "10ms", "CONTAINERS_TARGETS_FILE": targets,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addresses, ended := make(chan net.Addr, 2), make(chan error, 1)
	go func() {
		ended <- app.RunContainers(ctx, cfg, slog.New(slog.DiscardHandler), func(api, metrics net.Addr) {
			addresses <- api
			addresses <- metrics
		})
	}()
	api, metrics := "http://"+(<-addresses).String(), "http://"+(<-addresses).String()
	await := func(url, want string) {
		t.Helper()
		got := ""
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(got, want); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: got %s; want %s in it", url, got, want)
			}
			resp, err := http.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			got = fmt.Sprintf("%d %s", resp.StatusCode, text)
		}
	}
	await(api+"/health", `200 {"status":"ok","role":"containers"`)
	await(metrics+"/metrics", `container_restarts_total{name="shop-kafka-1",service="kafka"} 3`)
	if text, err := os.ReadFile(targets); !strings.Contains(string(text), "kafka:9404") {
		t.Errorf("CONTAINERS_TARGETS_FILE has %s, %v; want kafka:9404 in it", text, err)
	}
	away.Store(true)
	await(api+"/health", `503 {"status":"degraded","role":"containers"`)
	away.Store(false)
	await(api+"/health", `200 `)

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("asked to stop, RunContainers returns %v; want nil", err)
	}
	if _, err := os.Stat(targets); !os.IsNotExist(err) {
		t.Errorf("CONTAINERS_TARGETS_FILE is still there: %v", err)
	}
}
