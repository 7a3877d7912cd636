package app

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/containers"
	"postamt/sidecar/internal/health"
)

// RunContainers serves metrics of the project's containers at METRICS_ADDRESS, and /health at
// HTTP_ADDRESS, until ctx ends. It knows nothing of Kafka. ready, if not nil, is told the addresses.
func RunContainers(ctx context.Context, cfg config.Config, log *slog.Logger, ready func(api, metrics net.Addr)) error {
	return runContainers(ctx, cfg, log, prometheus.NewRegistry(), ready)
}

func runContainers(ctx context.Context, cfg config.Config, log *slog.Logger, reg metricsRegistry, ready func(api, metrics net.Addr)) error {
	const role Role = "containers"
	registerProcess(reg, role)
	options := containers.Options{
		Engine: cfg.Containers.Engine, Project: cfg.Containers.Project, Interval: cfg.Containers.Interval,
		Max: cfg.Limits.Containers, Targets: cfg.Containers.Targets, Log: log,
	}
	if options.Targets == "none" {
		options.Targets = ""
	}
	collector := containers.New(options)
	reg.MustRegister(collector)
	checks := []health.Check{{Name: "engine", Run: collector.Check, Blocks: true}}
	state := health.New(string(role), Version, cfg.HealthInterval, checks, log, reg)

	api, err := net.Listen("tcp", cfg.HTTPAddress)
	if err != nil {
		return fmt.Errorf("HTTP_ADDRESS: %w", err)
	}
	metrics, err := net.Listen("tcp", cfg.MetricsAddress)
	if err != nil {
		_ = api.Close()
		return fmt.Errorf("METRICS_ADDRESS: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return collector.Run(ctx) })
	group.Go(func() error { return state.Run(ctx) })
	group.Go(func() error {
		return serveUntil(ctx, server(healthHandler(state), cfg, log), api, time.Second, func() {})
	})
	group.Go(func() error {
		return serveUntil(ctx, server(debugHandler(reg, nil), cfg, log), metrics, time.Second, func() {})
	})
	log.Info("serving", "http", api.Addr().String(), "metrics", metrics.Addr().String(), "engine", options.Engine, "project", options.Project, "version", Version)
	if ready != nil {
		ready(api.Addr(), metrics.Addr())
	}
	return group.Wait()
}

// healthHandler serves GET /health of a role without an API: 503 while a check fails that blocks.
func healthHandler(state *health.Monitor) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		report := state.Report()
		w.Header().Set("Content-Type", "application/json")
		if !report.Serving {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(report) // who asked has gone
	})
	return mux
}
