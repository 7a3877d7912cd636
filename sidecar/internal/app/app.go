// Package app builds a role from its Config, runs its parts and stops them in order.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/health"
	"postamt/sidecar/internal/httpapi"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/lag"
	"postamt/sidecar/internal/session"
	"postamt/sidecar/internal/stream"
	"postamt/sidecar/internal/trace"
)

// Version is what this binary calls itself.
const Version = "0.1.0"

// Role is what a process does.
type Role string

const (
	Producer Role = "producer"
	Consumer Role = "consumer"
	Monitor  Role = "monitor"
	Dev      Role = "dev" // all of them
)

func (r Role) is(role Role) bool { return r == role || r == Dev }

// worker is a part that runs in the background until its context ends.
type worker func(context.Context) error

// Run serves a role until ctx is canceled or a part fails. It stops in this order: /health
// turns 503 while requests are still taken, so that the proxy turns away; requests in
// flight end; background work ends; the producer gives what it holds; the clients close.
// ready, if not nil, is told the two addresses once they are bound.
func Run(ctx context.Context, role Role, cfg config.Config, log *slog.Logger, ready func(api, metrics net.Addr)) error {
	return run(ctx, role, cfg, log, prometheus.NewRegistry(), ready)
}

func run(ctx context.Context, role Role, cfg config.Config, log *slog.Logger, reg metricsRegistry, ready func(api, metrics net.Addr)) error {
	registerProcess(reg, role)
	var stopBy time.Time // set once serve has returned
	tracer, err := newTracer(cfg.Traces, role, log, reg)
	if err != nil {
		return err
	}
	if tracer != nil {
		log = trace.Logger(log)
		defer func() { closeTracer(ctx, tracer, stopBy) }()
	}

	client, err := kafka.NewClient(cfg.Kafka.BootstrapServers)
	if err != nil {
		return fmt.Errorf("make the Kafka client: %w", err)
	}
	defer client.Close()
	cluster := kafka.NewCluster(client)
	checks := []health.Check{{Name: "kafka", Run: cluster.Refresh}}
	parts := httpapi.Parts{Topics: cluster, Tracer: tracer}
	var workers []worker
	var delivering *deliveries
	var more writeMetrics

	var producer *kafka.Producer
	if role.is(Producer) || role.is(Consumer) { // which writes dead letters
		producer, err = kafka.NewProducer(kafka.ProducerOptions{
			Servers: cfg.Kafka.BootstrapServers, Linger: cfg.ProducerLinger,
			// Kafka's last word comes before the request's deadline.
			Timeout:        cfg.RequestTimeout - cfg.RequestTimeout/10,
			MaxQueuedBytes: cfg.Limits.InFlightBytes + recordOverheadBytes,
			MaxRecordBytes: cfg.Limits.BatchBytes + recordOverheadBytes,
		}, log, reg)
		if err != nil {
			return err
		}
		defer func() {
			flush, cancel := context.WithDeadline(context.WithoutCancel(ctx), stopBy)
			defer cancel()
			producer.Close(flush)
		}()
		checks = append(checks, health.Check{Name: "producer", Run: producer.Check, Blocks: role.is(Producer)})
	}
	if role.is(Producer) {
		parts.Producer = producer
		parts.OpenStream = func(window int, reported func(int, error)) httpapi.RecordStream {
			return producer.Stream(window, reported)
		}
		if tracer != nil {
			parts.Producer = tracedProducer{producer, tracer}
		}
		admin := kafka.NewAdmin(client)
		parts.Admin, parts.GroupLag = admin, lag.NewAsker(admin, log).Lag
	}
	if role.is(Consumer) {
		parts.Sessions = session.NewManager(sessionKafka{cluster, cfg.Kafka.BootstrapServers}, session.Options{
			Boot: uuid.NewString(), MaxSessions: cfg.Limits.Sessions, IdleTimeout: cfg.Session.IdleTimeout,
			ReleaseTimeout: releaseTime(cfg), Log: log,
		})
		table, err := kafka.OpenTable(cfg.Kafka.BootstrapServers, sessionsTopic, parts.Sessions.Changed, log)
		if err != nil {
			return err
		}
		defer table.Close()
		parts.Sessions.UseTable(table)
		parts.Streams = &stream.Opener{Kafka: cluster, Source: func(topic string, from map[int32]int64) (stream.Source, error) {
			return kafka.OpenPartitions(cfg.Kafka.BootstrapServers, topic, from)
		}}
		workers = append(workers, func(ctx context.Context) error { return runSessions(ctx, parts.Sessions, table) })

		sender, err := newSender(cfg.Webhook, tracer)
		if err != nil {
			return err
		}
		subscriptions, stored, err := openSubscriptions(cfg, cluster, sender, log)
		if err != nil {
			return err
		}
		defer stored.Close()
		parts.Subscriptions = subscriptions
		workers = append(workers, stored.Run, subscriptions.Run)
		delivering = newDeliveries(cfg, cluster, lag.NewAsker(kafka.NewAdmin(client), log), producer, sender, parts.Sessions, subscriptions, log, reg)
		parts.Deliveries, parts.OwnDeliveries = delivering, delivering
	}
	if role.is(Monitor) {
		collector := lag.New(kafka.NewAdmin(client), lag.Options{Interval: cfg.MonitorInterval, Log: log})
		reg.MustRegister(collector)
		more = collector.WriteMetrics
		parts.Lag = func(group string) (io.WriterTo, error) { return lagOf(collector, group) }
		workers = append(workers, collector.Run)
	}
	parts.Health = health.New(string(role), Version, cfg.HealthInterval, checks, log, reg)
	workers = append(workers, parts.Health.Run)
	stopBy, err = serve(ctx, cfg, parts, workers, delivering, log, reg, more, ready)
	return err
}

// releaseTime is the part of SHUTDOWN_TIMEOUT that is kept for giving sessions up.
func releaseTime(cfg config.Config) time.Duration {
	return min(5*time.Second, cfg.Shutdown.Timeout/4)
}

// sessionsTopic keeps what is to be known of pull sessions on every replica.
const sessionsTopic = "_postamt.sessions"

// runSessions runs the table until the sessions have been released.
func runSessions(ctx context.Context, sessions *session.Manager, table *kafka.Table) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var both errgroup.Group
	both.Go(func() error { return table.Run(life) })
	both.Go(func() error {
		sessions.Warm(ctx)
		return nil
	})
	both.Go(func() error {
		defer end()
		return sessions.Run(ctx)
	})
	return both.Wait()
}

// sessionKafka opens consumers for sessions, and answers what they ask of topics.
type sessionKafka struct {
	*kafka.Cluster
	servers []string
}

func (k sessionKafka) Open(ctx context.Context, j session.Join) (session.Consumer, error) {
	return kafka.OpenGroup(ctx, k.servers, kafka.GroupOptions(j))
}

// recordOverheadBytes is what a record needs beside its key, value and headers.
const recordOverheadBytes = 1 << 20

func lagOf(c *lag.Collector, group string) (io.WriterTo, error) {
	snapshot := c.Snapshot()
	if snapshot == nil {
		return nil, event.Errorf(event.Unavailable, 50302, "lag", "Kafka has not been asked yet; repeat the request")
	}
	if group == "" {
		return snapshot, nil
	}
	only, ok := snapshot.Only(group)
	if !ok {
		return nil, event.Errorf(event.NotFound, 0, "lag", "there is no consumer group %q that is active or has committed", group)
	}
	return only, nil
}

// serve returns by when the rest must have stopped, too.
func serve(ctx context.Context, cfg config.Config, parts httpapi.Parts, workers []worker, delivering *deliveries, log *slog.Logger, reg metricsRegistry, more writeMetrics, ready func(api, metrics net.Addr)) (stopBy time.Time, err error) {
	stopBy = time.Now()
	// Background work goes on until the last request has ended.
	work, endWork := context.WithCancel(context.WithoutCancel(ctx))
	defer endWork()
	stopping, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()

	api, err := net.Listen("tcp", cfg.HTTPAddress)
	if err != nil {
		return stopBy, fmt.Errorf("HTTP_ADDRESS: %w", err)
	}
	metrics, err := net.Listen("tcp", cfg.MetricsAddress)
	if err != nil {
		return stopBy, errors.Join(fmt.Errorf("METRICS_ADDRESS: %w", err), api.Close())
	}
	if parts.Sessions != nil {
		set := func(address string) {
			parts.Sessions.SetAddress(address)
			delivering.SetAddress(address)
		}
		switch at := api.Addr().(*net.TCPAddr); {
		case cfg.Session.Address != "auto":
			set(cfg.Session.Address)
		case !at.IP.IsUnspecified():
			set(at.String())
		default:
			workers = append(workers, func(ctx context.Context) error {
				findAddress(ctx, cfg.Kafka.BootstrapServers, at.Port, set, log)
				return nil
			})
		}
	}
	requests := cfg.Shutdown.Timeout // for those in flight to end
	if parts.Sessions != nil {
		requests -= releaseTime(cfg)
	}
	handler := httpapi.New(stopping, parts, httpapi.Options{
		Limits: cfg.Limits, RequestTimeout: cfg.RequestTimeout, ReadTimeout: cfg.ReadTimeout, ShutdownTimeout: requests, AllowTopicChanges: cfg.AllowTopicChanges,
		Session: cfg.Session, StreamHeartbeat: cfg.StreamHeartbeat, TrustedProxies: cfg.TrustedProxies, OpenAPI: cfg.OpenAPI, ReplicaGrace: cfg.ReplicaGrace,
	}, log, reg)

	group, failed := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer endWork()
		drain := func() {
			log.Info("asked to stop", "listen_grace", cfg.Shutdown.ListenGrace)
			parts.Health.Drain()
			time.Sleep(cfg.Shutdown.ListenGrace) // the proxy's health checks see it meanwhile
			stopBy = time.Now().Add(cfg.Shutdown.Timeout)
			stop()
		}
		return serveUntil(failed, server(handler, cfg, log), httpapi.Listener(api, cfg.Limits.HeaderBytes), requests, drain)
	})
	group.Go(func() error {
		return serveUntil(work, server(debugHandler(reg, more), cfg, log), metrics, time.Second, func() {})
	})
	for _, w := range workers {
		group.Go(func() error { return w(work) })
	}
	if delivering != nil { // it gives its partitions back while requests still end
		group.Go(func() error { return delivering.Run(stopping) })
	}
	log.Info("serving", "http", api.Addr().String(), "metrics", metrics.Addr().String(), "kafka", cfg.Kafka.BootstrapServers, "version", Version)
	if ready != nil {
		ready(api.Addr(), metrics.Addr())
	}
	err = group.Wait()
	return stopBy, err
}

// findAddress says where other replicas reach the HTTP API that listens everywhere on a port: at
// the address that this machine has towards Kafka, so that no name has to be known. While the
// name of Kafka is not known either, it tries again.
func findAddress(ctx context.Context, servers []string, port int, set func(string), log *slog.Logger) {
	for ctx.Err() == nil {
		for _, server := range servers {
			conn, err := (&net.Dialer{}).DialContext(ctx, "udp", server) // sends nothing
			if err != nil {
				log.Debug("the way to Kafka is not known", "server", server, "error", err)
				continue
			}
			address := (&net.TCPAddr{IP: conn.LocalAddr().(*net.UDPAddr).IP, Port: port}).String()
			_ = conn.Close()
			log.Info("other replicas reach this one", "address", address)
			set(address)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func server(handler http.Handler, cfg config.Config, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: min(cfg.ReadTimeout, 10*time.Second),
		// Longer than Traefik keeps its own idle connections (90s), so that it is Traefik who
		// closes them: a request must not meet a connection that we are just closing.
		IdleTimeout:    2 * time.Minute,
		MaxHeaderBytes: cfg.Limits.HeaderBytes,
		// "OPTIONS *" is answered as whatever else there is not.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serveUntil answers requests on ln until ctx ends, then calls drain, then accepts no more
// and gives requests in flight up to grace to end.
func serveUntil(ctx context.Context, srv *http.Server, ln net.Listener, grace time.Duration, drain func()) error {
	errc := make(chan error, 1)
	go func() { errc <- srv.Serve(ln) }()
	select {
	case err := <-errc:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	drain()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(bounded)
	if err != nil { // what has not ended by now is cut off
		err = errors.Join(fmt.Errorf("requests did not end within %v: %w", grace, err), srv.Close())
	}
	// Serve has returned then: no goroutine outlives this call.
	if served := <-errc; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
