// Package config is the one value that every role is built from. It comes from
// environment variables only and is checked whole: every mistake is reported at once.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/webhook"
)

// Config is all that a role can be told. The help tags are what `postamt config` prints.
type Config struct {
	HTTPAddress    string `env:"HTTP_ADDRESS" envDefault:":8080" help:"where the HTTP API listens"`
	MetricsAddress string `env:"METRICS_ADDRESS" envDefault:":8081" help:"where /metrics and /debug/pprof/ listen; never route it to the outside"`

	Kafka     Kafka     `envPrefix:"KAFKA_"`
	Bootstrap Bootstrap `envPrefix:"BOOTSTRAP_"`
	Topics    string    `env:"TOPICS_FILE" envDefault:"/etc/postamt/topics.yaml" help:"the topics that bootstrap makes exist"`
	Limits    Limits    `envPrefix:"MAX_"`

	RequestTimeout    time.Duration  `env:"REQUEST_TIMEOUT" envDefault:"30s" help:"bounds a request; a record not acknowledged by then is answered with 503. Of a stream of records, it bounds the wait after the last byte"`
	ReadTimeout       time.Duration  `env:"READ_TIMEOUT" envDefault:"30s" help:"how long a client may take to send one request whole; of a stream of records, how long it may pause"`
	AllowTopicChanges bool           `env:"ALLOW_TOPIC_CHANGES" envDefault:"false" help:"lets clients of v3 make, grow and delete topics"`
	ProducerLinger    time.Duration  `env:"PRODUCER_LINGER" envDefault:"1ms" help:"how long records wait for others under load, in whole milliseconds; a lone client never waits"`
	Session           Session        `envPrefix:"SESSION_"`
	Seal              Seal           `envPrefix:"POSTAMT_SECRET_"`
	Webhook           Webhook        `envPrefix:"WEBHOOK_"`
	Delivery          Delivery       `envPrefix:"DELIVERY_"`
	StreamHeartbeat   time.Duration  `env:"STREAM_HEARTBEAT" envDefault:"15s" help:"how often a quiet stream sends a comment"`
	MonitorInterval   time.Duration  `env:"MONITOR_INTERVAL" envDefault:"5s" help:"how often the monitor asks Kafka for every group's lag; where that takes more than half of it, twice that time"`
	Containers        Containers     `envPrefix:"CONTAINERS_"`
	HealthInterval    time.Duration  `env:"HEALTH_INTERVAL" envDefault:"5s" help:"how often the background checks of /health run"`
	TrustedProxies    []netip.Prefix `env:"TRUSTED_PROXIES" envDefault:"127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7" help:"whose X-Forwarded-* headers are believed, as CIDRs"`
	Shutdown          Shutdown       `envPrefix:"SHUTDOWN_"`
	Demo              Demo           `envPrefix:"DEMO_"`
	Traces            Traces         `envPrefix:"OTEL_"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"INFO" help:"DEBUG, INFO, WARN or ERROR"`
	LogFormat string     `env:"LOG_FORMAT" envDefault:"json" help:"json or text"`

	// OpenAPI is what GET /openapi.yaml answers. It is part of the binary, and no setting.
	OpenAPI []byte
	// ReplicaGrace is how long replicas wait for one another before they ask whether the other is alive:
	// 5s when zero. It is no setting, either: tests make it shorter.
	ReplicaGrace time.Duration
}

// Kafka says where the cluster is.
type Kafka struct {
	BootstrapServers  []string `env:"BOOTSTRAP_SERVERS" envDefault:"localhost:9092" help:"host:port of one or more brokers, with commas between"`
	ReplicationFactor int16    `env:"REPLICATION_FACTOR" envDefault:"1" help:"replicas of each topic that bootstrap makes"`
}

// Bootstrap configures the role that makes topics.
type Bootstrap struct {
	Deadline time.Duration `env:"TIMEOUT" envDefault:"2m" help:"how long bootstrap waits for Kafka and for its topics' leaders"`
}

// Limits protect a replica. Each has an error of its own that names its variable.
type Limits struct {
	BodyBytes     int64 `env:"BODY_BYTES" envDefault:"1048576" help:"body of a request that carries one record or settings (413)"`
	BatchBytes    int64 `env:"BATCH_BYTES" envDefault:"16777216" help:"body of a request that carries many records (413)"`
	Records       int   `env:"RECORDS" envDefault:"10000" help:"records in one produce request (422)"`
	StreamRecords int   `env:"STREAM_RECORDS" envDefault:"1000000" help:"records in one produce request that is read as a stream: NDJSON, v3 (422)"`
	StreamBytes   int64 `env:"STREAM_BYTES" envDefault:"67108864" help:"what all produce requests that one replica reads as streams keep besides their bodies: a result of each record (16 bytes; v3: 32), 9 MiB to unpack zstd (429)"`
	BatchEntries  int   `env:"BATCH_ENTRIES" envDefault:"10" help:"entries in one v3 records:batch request (422)"`
	HeaderBytes   int   `env:"HEADER_BYTES" envDefault:"16384" help:"header of a request (431)"`
	InFlightBytes int64 `env:"IN_FLIGHT_BYTES" envDefault:"67108864" help:"bodies of all produce requests that one replica works on, and answers of reads without a group (429)"`
	Sessions      int   `env:"SESSIONS" envDefault:"1000" help:"pull sessions of one replica (429)"`
	Streams       int   `env:"STREAMS" envDefault:"1000" help:"streams of one replica (of records that come in, too), and reads without a group (429)"`
	Subscriptions int   `env:"SUBSCRIPTIONS" envDefault:"1000" help:"subscriptions of all replicas (429)"`
	Containers    int   `env:"CONTAINERS" envDefault:"200" help:"containers that the role containers has metrics of; what is beyond is left out, and counted"`
}

// Session configures pull sessions.
type Session struct {
	IdleTimeout time.Duration `env:"IDLE_TIMEOUT" envDefault:"5m" help:"a pull session that nobody has asked for so long is removed"`
	Address     string        `env:"ADDRESS" envDefault:"auto" help:"host:port at which other replicas reach the HTTP API of this one; auto: this machine's address towards Kafka"`
	MaxWait     time.Duration `env:"MAX_WAIT" envDefault:"30s" help:"longest wait of one read for records"`
	MaxBytes    int64         `env:"MAX_BYTES" envDefault:"67108864" help:"keys, values and headers in the answer of one read"`
}

// Webhook says where deliveries may go. What is link-local, metadata of a cloud, multicast or
// reserved is never called.
type Webhook struct {
	Allow        []webhook.Target `env:"ALLOW" envDefault:"none" help:"exceptions to WEBHOOK_DENY: networks (10.0.0.0/8), addresses and hosts (shop.example.com, *.example.com, *), with commas between; a network or an address also allows loopback and this machine's own addresses"`
	Deny         []webhook.Target `env:"DENY" envDefault:"none" help:"networks, addresses and hosts that no delivery may go to; 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7 closes private networks, * all that WEBHOOK_ALLOW does not name"`
	Edge         []string         `env:"EDGE" envDefault:"auto" help:"interfaces (eth0) or networks of this machine that deliveries may go to, since Kafka and metrics are in the others; auto: that of the default route"`
	RequireHTTPS bool             `env:"REQUIRE_HTTPS" envDefault:"false" help:"refuses endpoints whose url does not begin with https://"`
	Proxy        string           `env:"PROXY" envDefault:"none" help:"URL of a proxy for all deliveries (http, https, socks5); it then has to check the addresses that names stand for. HTTP_PROXY and the like are ignored"`
}

// Delivery bounds what subscriptions hold, and how they end on a replica.
type Delivery struct {
	WindowRecords int           `env:"WINDOW_RECORDS" envDefault:"16384" help:"offsets between the lowest record of a partition that is not decided and the newest one fetched; at this distance the partition waits"`
	WindowBytes   int64         `env:"WINDOW_BYTES" envDefault:"16777216" help:"keys, values and headers of the records of a partition that are fetched and not decided; at this size the partition waits"`
	MemoryBytes   int64         `env:"MEMORY_BYTES" envDefault:"100663296" help:"what all of that may take together on a replica, with 640 bytes for each record; beyond, partitions wait that have more than an equal share of it"`
	StopTimeout   time.Duration `env:"STOP_TIMEOUT" envDefault:"10s" help:"how long a subscription that ends on a replica may take to end its attempts, commit and leave"`
}

// Containers configures the role that tells what containers use.
type Containers struct {
	Engine   string        `env:"ENGINE" envDefault:"http://socket-proxy:2375" help:"URL of Docker Engine's API, or of a proxy that lets reads of containers through"`
	Project  string        `env:"PROJECT" envDefault:"postamt" help:"the Compose project whose containers are looked at"`
	Interval time.Duration `env:"INTERVAL" envDefault:"15s" help:"how often the engine is asked"`
	Targets  string        `env:"TARGETS_FILE" envDefault:"none" help:"where to write for Prometheus which of the project's services have a label postamt.metrics.port; none: nowhere"`
}

// Shutdown configures what happens after SIGTERM.
type Shutdown struct {
	ListenGrace time.Duration `env:"LISTEN_GRACE" envDefault:"5s" help:"after SIGTERM: how long requests are still taken while /health says 503, so that the proxy can turn away"`
	Timeout     time.Duration `env:"TIMEOUT" envDefault:"25s" help:"after that: how long requests in flight, the producer and the sessions may take to end"`
}

// Demo configures the register and the web shop of `postamt demo` and `postamt dev --demo`.
type Demo struct {
	API      string  `env:"API" envDefault:"http://localhost" help:"of the demo: where register and web shop reach the HTTP API"`
	Host     string  `env:"HOST" envDefault:"auto" help:"the Host that they ask for there; auto: that of DEMO_API"`
	Topic    string  `env:"TOPIC" envDefault:"test.voucher" help:"where the register sells vouchers, and what the web shop subscribes to"`
	Rate     float64 `env:"RATE" envDefault:"5" help:"vouchers a second that the register sells"`
	Cards    int     `env:"CARDS" envDefault:"50" help:"cards that they are for: keys; each has one voucher on its way to Kafka at a time"`
	Register string  `env:"REGISTER" envDefault:"http://register:8080" help:"where the web shop asks the register what was sold"`
	URL      string  `env:"URL" envDefault:"http://webshop:8080/vouchers" help:"where deliveries reach the web shop"`
	File     string  `env:"FILE" envDefault:"none" help:"keeps what the web shop has received over its restarts; none: in memory"`
	Page     string  `env:"ADDRESS" envDefault:"127.0.0.1:8090" help:"where the web shop's page is with dev --demo; a container has HTTP_ADDRESS"`
}

// Bounds of what the demo may be told.
const (
	MaxDemoRate  = 5000
	maxDemoCards = 1000
)

// Load reads the Config from environment variables and checks it. Its error has one line
// for each mistake.
func Load(environ map[string]string) (Config, error) {
	environ = withoutEmpty(environ)
	cfg, err := env.ParseAsWithOptions[Config](env.Options{Environment: environ})
	if err == nil {
		return cfg, errors.Join(cfg.check(), cfg.Seal.read(environ["POSTAMT_SECRET_KEY_FILE"] != ""))
	}
	var all env.AggregateError
	if !errors.As(err, &all) {
		return cfg, err
	}
	// The others are checked as if what cannot be read were not there.
	readable := maps.Clone(environ)
	var mistakes []error
	for _, err := range all.Errors {
		if parse, ok := errors.AsType[env.ParseError](err); ok {
			name := variableOf(parse.Name)
			err = fmt.Errorf("%s: %w", name, parse.Err)
			delete(readable, name)
		}
		mistakes = append(mistakes, err)
	}
	if cfg, err = env.ParseAsWithOptions[Config](env.Options{Environment: readable}); err == nil {
		mistakes = append(mistakes, cfg.check(), cfg.Seal.read(environ["POSTAMT_SECRET_KEY_FILE"] != ""))
	}
	return cfg, errors.Join(mistakes...)
}

// variableOf names the variable of a field of the struct, which is what env's errors name.
func variableOf(field string) string {
	var c Config
	for _, v := range c.variables() {
		if v.field == field {
			return v.Name
		}
	}
	return field
}

func (c *Config) check() error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for name, address := range map[string]string{"HTTP_ADDRESS": c.HTTPAddress, "METRICS_ADDRESS": c.MetricsAddress, "DEMO_ADDRESS": c.Demo.Page} {
		_, _, err := net.SplitHostPort(address)
		require(err == nil, "%s is %q; it must be host:port or :port", name, address)
	}
	if c.Session.Address != "auto" {
		host, port, err := net.SplitHostPort(c.Session.Address)
		require(err == nil && host != "" && port != "", "SESSION_ADDRESS is %q; it must be host:port, or auto", c.Session.Address)
	}
	require(len(c.Kafka.BootstrapServers) > 0, "KAFKA_BOOTSTRAP_SERVERS is empty; it must be host:port, with commas between several")
	for i, server := range c.Kafka.BootstrapServers {
		server = strings.TrimSpace(server) // as after the comma of "a:9092, b:9092"
		c.Kafka.BootstrapServers[i] = server
		host, port, err := net.SplitHostPort(server)
		require(err == nil && host != "" && port != "", "KAFKA_BOOTSTRAP_SERVERS has %q; it must be host:port, with commas between several", server)
	}
	require(c.Kafka.ReplicationFactor >= 1, "KAFKA_REPLICATION_FACTOR is %d; it must be at least 1", c.Kafka.ReplicationFactor)
	require(c.LogFormat == "json" || c.LogFormat == "text", "LOG_FORMAT is %q; it must be json or text", c.LogFormat)
	require(c.ProducerLinger >= 0 && c.ProducerLinger <= time.Second, "PRODUCER_LINGER is %v; it must be between 0s and 1s", c.ProducerLinger)
	require(c.RequestTimeout >= time.Second, "REQUEST_TIMEOUT is %v; it must be at least 1s", c.RequestTimeout)
	require(c.Limits.BatchBytes >= c.Limits.BodyBytes, "MAX_BATCH_BYTES is %d; it must not be below MAX_BODY_BYTES, %d", c.Limits.BatchBytes, c.Limits.BodyBytes)
	require(c.Limits.InFlightBytes >= c.Limits.BatchBytes, "MAX_IN_FLIGHT_BYTES is %d; it must not be below MAX_BATCH_BYTES, %d", c.Limits.InFlightBytes, c.Limits.BatchBytes)
	_, err := webhook.ParseProxy(c.Webhook.Proxy)
	errs = append(errs, err, webhook.CheckEdge(c.Webhook.Edge)) // Join leaves out what is nil
	leastStreamBytes := int64(c.Limits.StreamRecords)*32 + 9<<20
	require(c.Limits.StreamBytes >= leastStreamBytes, "MAX_STREAM_BYTES is %d; it must be at least 32 times MAX_STREAM_RECORDS and 9 MiB, %d", c.Limits.StreamBytes, leastStreamBytes)
	require(c.Limits.BatchBytes <= maxBatchBytes, "MAX_BATCH_BYTES is %d; it must be at most %d", c.Limits.BatchBytes, maxBatchBytes)
	require(c.Delivery.WindowRecords >= 1 && c.Delivery.WindowRecords <= event.MaxWindowRecords, "DELIVERY_WINDOW_RECORDS is %d; it must be between 1 and %d", c.Delivery.WindowRecords, event.MaxWindowRecords)
	require(c.Delivery.WindowBytes >= 1, "DELIVERY_WINDOW_BYTES is %d; it must be positive", c.Delivery.WindowBytes)
	require(c.Delivery.MemoryBytes >= 1, "DELIVERY_MEMORY_BYTES is %d; it must be positive", c.Delivery.MemoryBytes)
	require(c.Demo.Rate >= 0 && c.Demo.Rate <= MaxDemoRate, "DEMO_RATE is %v; it must be between 0 and %d", c.Demo.Rate, MaxDemoRate)
	require(c.Demo.Cards >= 1 && c.Demo.Cards <= maxDemoCards, "DEMO_CARDS is %d; it must be between 1 and %d", c.Demo.Cards, maxDemoCards)
	for name, address := range map[string]string{"DEMO_API": c.Demo.API, "DEMO_REGISTER": c.Demo.Register, "DEMO_URL": c.Demo.URL, "CONTAINERS_ENGINE": c.Containers.Engine} {
		u, err := url.Parse(address)
		require(err == nil && u.Scheme == "http" && u.Host != "", "%s is %q; it must be a URL that begins with http://", name, address)
	}
	if c.Traces.On() {
		_, err := c.Traces.Options()
		errs = append(errs, err)
	}
	require(c.Containers.Project != "", "CONTAINERS_PROJECT is empty; it must be a Compose project's name")
	require(c.Shutdown.ListenGrace >= 0, "SHUTDOWN_LISTEN_GRACE is %v; it must not be negative", c.Shutdown.ListenGrace)
	for name, n := range map[string]int64{
		"MAX_BODY_BYTES": c.Limits.BodyBytes, "MAX_RECORDS": int64(c.Limits.Records), "MAX_STREAM_RECORDS": int64(c.Limits.StreamRecords), "MAX_BATCH_ENTRIES": int64(c.Limits.BatchEntries), "MAX_HEADER_BYTES": int64(c.Limits.HeaderBytes),
		"MAX_SESSIONS": int64(c.Limits.Sessions), "MAX_STREAMS": int64(c.Limits.Streams), "MAX_SUBSCRIPTIONS": int64(c.Limits.Subscriptions), "MAX_CONTAINERS": int64(c.Limits.Containers), "SESSION_MAX_BYTES": c.Session.MaxBytes,
	} {
		require(n > 0, "%s is %d; it must be positive", name, n)
	}
	for name, d := range map[string]time.Duration{
		"READ_TIMEOUT": c.ReadTimeout, "BOOTSTRAP_TIMEOUT": c.Bootstrap.Deadline, "SESSION_IDLE_TIMEOUT": c.Session.IdleTimeout,
		"SESSION_MAX_WAIT": c.Session.MaxWait, "STREAM_HEARTBEAT": c.StreamHeartbeat, "MONITOR_INTERVAL": c.MonitorInterval, "CONTAINERS_INTERVAL": c.Containers.Interval,
		"HEALTH_INTERVAL": c.HealthInterval, "DELIVERY_STOP_TIMEOUT": c.Delivery.StopTimeout, "SHUTDOWN_TIMEOUT": c.Shutdown.Timeout,
	} {
		require(d > 0, "%s is %v; it must be positive", name, d)
	}
	return errors.Join(errs...)
}

// maxBatchBytes keeps a batch below librdkafka's own limit of a message, 1,000,000,000 bytes.
const maxBatchBytes = 512 << 20
