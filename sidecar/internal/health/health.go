// Package health keeps what the background checks of a role last found, and answers
// /health from it: no request ever waits for Kafka to learn how Kafka is.
package health

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// Status is the state of a role or of one check.
type Status string

const (
	OK       Status = "ok"
	Degraded Status = "degraded" // a check fails; the role serves what it can
	Starting Status = "starting" // the first checks have not run yet
	Draining Status = "draining" // it has been asked to stop
	Failing  Status = "failing"  // of a check
)

// Check is one thing that a role depends on. Run must end when its context does.
type Check struct {
	Name string
	Run  func(context.Context) error
	// Blocks says that no request can be served while it fails, so that the proxy must turn
	// to another replica. What fails on every replica at once, as Kafka does, does not block:
	// an answer of ours that says what is wrong is better than the proxy's.
	Blocks bool
}

// Result is what a check last found.
type Result struct {
	Status    Status  `json:"status"`
	LatencyMS float64 `json:"latency_ms"`
	Error     string  `json:"error,omitempty"`
}

// Report is the body of /health.
type Report struct {
	Status  Status            `json:"status"`
	Role    string            `json:"role"`
	Version string            `json:"version"`
	Checks  map[string]Result `json:"checks"`
	// Serving is whether the proxy should send requests here, Ready whether they can succeed.
	Serving bool `json:"-"`
	Ready   bool `json:"-"`
}

// Monitor runs the checks of a role. Its methods are safe for concurrent use.
type Monitor struct {
	role, version string
	interval      time.Duration
	checks        []Check
	log           *slog.Logger
	gauge         *prometheus.GaugeVec

	mu       sync.Mutex
	results  map[string]Result
	draining bool
}

// New makes a Monitor that reports starting until Run has run every check once. A check may
// take as long as the interval.
func New(role, version string, interval time.Duration, checks []Check, log *slog.Logger, reg prometheus.Registerer) *Monitor {
	m := &Monitor{
		role: role, version: version, interval: interval, checks: checks, log: log,
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "postamt_health_status",
			Help: "1 while the check succeeds, 0 while it fails. check: kafka, producer, engine.",
		}, []string{"check"}),
		results: make(map[string]Result),
	}
	reg.MustRegister(m.gauge)
	return m
}

// Run runs the checks, all at once, every interval until ctx is canceled; then it returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	tick := time.NewTicker(m.interval)
	defer tick.Stop()
	for {
		var wg sync.WaitGroup
		for _, c := range m.checks {
			wg.Go(func() { m.run(ctx, c) })
		}
		wg.Wait()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (m *Monitor) run(ctx context.Context, c Check) {
	bounded, cancel := context.WithTimeout(ctx, m.interval)
	defer cancel()
	start := time.Now()
	err := c.Run(bounded)
	if ctx.Err() != nil {
		return // asked to stop: this says nothing about what was checked
	}
	r := Result{Status: OK, LatencyMS: float64(time.Since(start).Microseconds()) / 1000}
	up := 1.0
	if err != nil {
		r.Status, r.Error, up = Failing, shown(err), 0
	}
	m.gauge.WithLabelValues(c.Name).Set(up)
	m.mu.Lock()
	before := m.results[c.Name].Status
	m.results[c.Name] = r
	m.mu.Unlock()
	switch {
	case err != nil && before != Failing:
		m.log.Warn("check fails", "check", c.Name, "error", err)
	case err == nil && before == Failing:
		m.log.Info("check succeeds again", "check", c.Name)
	}
}

// shown is what anyone may read of an error: the log has the rest.
func shown(err error) string {
	if ee := (*event.Error)(nil); errors.As(err, &ee) {
		return ee.Msg
	}
	return err.Error()
}

// Drain makes the role report draining from now on, so that proxies turn away.
func (m *Monitor) Drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.draining = true
}

// Report says how the role is.
func (m *Monitor) Report() Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Report{Status: OK, Role: m.role, Version: m.version, Checks: make(map[string]Result), Serving: true, Ready: true}
	for _, c := range m.checks {
		result, ran := m.results[c.Name]
		if !ran {
			r.Status, r.Serving, r.Ready = Starting, false, false
			continue
		}
		r.Checks[c.Name] = result
		if result.Status == OK {
			continue
		}
		r.Ready = false
		if c.Blocks {
			r.Serving = false
		}
		if r.Status == OK {
			r.Status = Degraded
		}
	}
	if m.draining {
		r.Status, r.Serving, r.Ready = Draining, false, false
	}
	return r
}
