// Package httpapi is the HTTP interface of every role: it decodes requests, calls what it
// was given, and encodes the answers. It knows neither Kafka nor how roles are run.
package httpapi

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/health"
	"postamt/sidecar/internal/registry"
	"postamt/sidecar/internal/session"
	"postamt/sidecar/internal/stream"
	"postamt/sidecar/internal/trace"
)

// Producer writes records, all of one topic, and returns what became of each in the same
// order. A result without an error means that every in-sync replica has the record. It waits for
// that until ctx ends, or until comes, or a little longer.
type Producer interface {
	Produce(ctx context.Context, until time.Time, records []event.Record) []event.Result
}

// Topics answers what topics there are. Its errors are event.Errors.
type Topics interface {
	// CheckTopic and CheckPartition return NotFound when Kafka has just said that there is no
	// such topic, or partition.
	CheckTopic(ctx context.Context, topic string) error
	CheckPartition(ctx context.Context, tp event.TopicPartition) error
	Topics(ctx context.Context) ([]string, error)
	Topic(ctx context.Context, name string) (event.Topic, error)
	Offsets(ctx context.Context, tp event.TopicPartition) (event.Bounds, error)
	// ID is the cluster's, and Brokers are the ids of its brokers that are up.
	ID(ctx context.Context) (string, error)
	Brokers(ctx context.Context) ([]int32, error)
	// Committed tells what a consumer group has committed.
	Committed(ctx context.Context, group string) (map[event.TopicPartition]event.Commit, error)
}

// Parts is what a role serves. Routes whose part is nil answer that another role has them.
type Parts struct {
	Health   *health.Monitor
	Topics   Topics
	Producer Producer
	// OpenStream opens a RecordStream of which at most window records have no acknowledgement
	// (0: as many as is good); reported is called once for each that Send took, with its size,
	// when it no longer counts as in flight, and with why it is not stored.
	OpenStream func(window int, reported func(size int, err error)) RecordStream
	// Admin, and GroupLag, which tells who is in a group and how far it is behind in each
	// partition, are for v3.
	Admin    Admin
	GroupLag func(ctx context.Context, group string) (event.Group, []event.PartitionLag, error)
	Sessions *session.Manager
	Streams  *stream.Opener
	// Subscriptions are what clients want delivered, Deliveries how far that is, and OwnDeliveries
	// what of it this replica tells the others.
	Subscriptions *registry.Registry
	Deliveries    Deliveries
	OwnDeliveries OwnDeliveries
	// Tracer makes spans of requests; nil: there are none.
	Tracer *trace.Tracer
	// Lag describes the lag of a consumer group, or of all for "", as JSON.
	Lag func(group string) (io.WriterTo, error)
}

// Options are the numbers and policies of the interface.
type Options struct {
	Limits          config.Limits
	RequestTimeout  time.Duration
	ReadTimeout     time.Duration
	ShutdownTimeout time.Duration
	// AllowTopicChanges lets clients make, grow and delete topics.
	AllowTopicChanges bool
	Session           config.Session
	StreamHeartbeat   time.Duration
	TrustedProxies    []netip.Prefix
	OpenAPI           []byte        // of /openapi.yaml
	ReplicaGrace      time.Duration // 5s when zero; see replicaGrace
}

// Server serves the routes of one or more roles.
type Server struct {
	Parts
	opts     Options
	log      *slog.Logger
	metrics  *metrics
	inFlight *semaphore.Weighted // bytes of produce requests
	streams  *semaphore.Weighted
	uploads  *semaphore.Weighted // bytes that streams of records that come in hold besides
	zstd     *zstd.Decoder
	stopping context.Context // ends when long answers should
	replicas *http.Client    // to the other replicas
	outgoing sync.Map        // of *outgoing by id: batches that other replicas give to their clients
}

// New makes the handler of what parts holds. When stopping ends, waiting reads and streams
// end too, so that a shutdown need not wait for them.
func New(stopping context.Context, parts Parts, opts Options, log *slog.Logger, reg prometheus.Registerer) http.Handler {
	opts.ReplicaGrace = cmp.Or(opts.ReplicaGrace, replicaGrace)
	s := &Server{
		Parts: parts, opts: opts, log: log, metrics: newMetrics(reg, parts), stopping: stopping, replicas: replicaClient(),
		inFlight: semaphore.NewWeighted(opts.Limits.InFlightBytes),
		streams:  semaphore.NewWeighted(int64(opts.Limits.Streams)),
		uploads:  semaphore.NewWeighted(opts.Limits.StreamBytes),
		zstd:     zstdDecoder(opts.Limits.BatchBytes),
	}
	return s.observe(s.mux())
}

// handler answers a request, or returns why it could not: nothing has been written then.
type handler func(w http.ResponseWriter, r *http.Request) error

type route struct {
	method, path string
	role         string
	serve        handler
}

// safe tells whether HEAD may stand for GET: not where an answer without its body would
// lose the records in it.
func (rt route) safe() bool {
	return rt.method == http.MethodGet && !strings.HasPrefix(rt.path, "/consumers/") && !strings.HasPrefix(rt.path, "/streams/")
}

// routes is the whole interface. Traefik sends each role what is its own; the others are
// here so that a path has the same methods on every role.
func (s *Server) routes() []route {
	return []route{
		{"GET", "/health", "", s.getHealth},
		{"GET", "/health/live", "", s.getLive},
		{"GET", "/health/ready", "", s.getReady},
		{"GET", "/openapi.yaml", "", s.getOpenAPI},

		{"POST", "/topics/{topic}", "producer", s.produceV2},
		{"POST", "/topics/{topic}/partitions/{partition}", "producer", s.produceV2},
		{"POST", "/topics/{topic}/records", "producer", s.produceBody},

		{"GET", "/{$}", "producer", s.getRoot},
		{"POST", "/{$}", "producer", s.getRoot},
		{"GET", "/brokers", "producer", s.getBrokers},

		{"GET", "/v3/clusters", "producer", s.listClusters},
		{"GET", "/v3/clusters/{cluster}", "producer", s.inCluster(s.getCluster)},
		{"GET", "/v3/clusters/{cluster}/brokers", "producer", s.inCluster(s.listBrokersV3)},
		{"GET", "/v3/clusters/{cluster}/brokers/{broker}", "producer", s.inCluster(s.getBrokerV3)},
		{"GET", "/v3/clusters/{cluster}/topics", "producer", s.inCluster(s.listTopicsV3)},
		{"POST", "/v3/clusters/{cluster}/topics", "producer", s.inCluster(s.createTopicV3)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}", "producer", s.inCluster(s.getTopicV3)},
		{"PATCH", "/v3/clusters/{cluster}/topics/{topic}", "producer", s.inCluster(s.patchTopicV3)},
		{"DELETE", "/v3/clusters/{cluster}/topics/{topic}", "producer", s.inCluster(s.deleteTopicV3)},
		{"POST", "/v3/clusters/{cluster}/topics/{topic}/records", "producer", s.inCluster(s.produceV3)},
		{"POST", "/v3/clusters/{cluster}/topics/{topic}/records:batch", "producer", s.inCluster(s.produceV3Batch)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/configs", "producer", s.inCluster(s.listConfigs)},
		{"POST", "/v3/clusters/{cluster}/topics/{topic}/configs:alter", "producer", s.inCluster(s.alterConfigs)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/configs/{name}", "producer", s.inCluster(s.getConfig)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/partitions", "producer", s.inCluster(s.listPartitionsV3)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/partitions/{partition}", "producer", s.inCluster(s.getPartitionV3)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/partitions/{partition}/offset", "producer", s.inCluster(s.getOffsetV3)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/partitions/{partition}/replicas", "producer", s.inCluster(s.listReplicas)},
		{"GET", "/v3/clusters/{cluster}/topics/{topic}/partitions/{partition}/replicas/{broker}", "producer", s.inCluster(s.getReplica)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups", "producer", s.inCluster(s.listGroups)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}", "producer", s.inCluster(s.getGroup)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/consumers", "producer", s.inCluster(s.listConsumers)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/consumers/{consumer}", "producer", s.inCluster(s.getConsumer)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/consumers/{consumer}/assignments", "producer", s.inCluster(s.listAssignments)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/consumers/{consumer}/assignments/{topic}/partitions/{partition}", "producer", s.inCluster(s.getAssignment)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/lags", "producer", s.inCluster(s.listLags)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/lags/{topic}/partitions/{partition}", "producer", s.inCluster(s.getLagV3)},
		{"GET", "/v3/clusters/{cluster}/consumer-groups/{group}/lag-summary", "producer", s.inCluster(s.getLagSummary)},

		{"GET", "/topics", "consumer", s.listTopics},
		{"GET", "/topics/{topic}", "consumer", s.getTopic},
		{"GET", "/topics/{topic}/partitions", "consumer", s.listPartitions},
		{"GET", "/topics/{topic}/partitions/{partition}", "consumer", s.getPartition},
		{"GET", "/topics/{topic}/partitions/{partition}/offsets", "consumer", s.getOffsets},
		{"GET", "/topics/{topic}/partitions/{partition}/records", "consumer", s.readPartition},

		{"POST", "/consumers/{group}", "consumer", s.createSession},
		{"DELETE", "/consumers/{group}/instances/{instance}", "consumer", s.removeSession},
		{"POST", "/consumers/{group}/instances/{instance}/subscription", "consumer", s.withSession(s.subscribe)},
		{"GET", "/consumers/{group}/instances/{instance}/subscription", "consumer", s.withSession(joined(s.getSubscription))},
		{"DELETE", "/consumers/{group}/instances/{instance}/subscription", "consumer", s.withSession(s.unsubscribe)},
		{"GET", "/consumers/{group}/instances/{instance}/assignments", "consumer", s.withSession(joined(s.getAssignments))},
		{"POST", "/consumers/{group}/instances/{instance}/assignments", "consumer", s.withSession(s.assign)},
		{"POST", "/consumers/{group}/instances/{instance}/positions", "consumer", s.withSession(joined(s.seek))},
		{"POST", "/consumers/{group}/instances/{instance}/positions/beginning", "consumer", s.withSession(joined(s.seekTo(session.AtBeginning)))},
		{"POST", "/consumers/{group}/instances/{instance}/positions/end", "consumer", s.withSession(joined(s.seekTo(session.AtEnd)))},
		{"GET", "/consumers/{group}/instances/{instance}/records", "consumer", s.withSession(joined(s.readSession))},
		{"POST", "/consumers/{group}/instances/{instance}/offsets", "consumer", s.withSession(joined(s.commitOffsets))},
		{"GET", "/consumers/{group}/instances/{instance}/offsets", "consumer", s.withSession(s.getCommitted)},

		{"GET", "/streams/{topic}", "consumer", s.streamTopic},

		{"GET", "/subscriptions", "consumer", s.listSubscriptions},
		{"PUT", "/subscriptions/{subscription}", "consumer", s.putSubscription},
		{"GET", "/subscriptions/{subscription}", "consumer", s.showSubscription},
		{"DELETE", "/subscriptions/{subscription}", "consumer", s.deleteSubscription},
		{"POST", "/subscriptions/{subscription}/pause", "consumer", s.setState(event.Paused)},
		{"POST", "/subscriptions/{subscription}/resume", "consumer", s.setState(event.Active)},
		{"POST", "/subscriptions/{subscription}/test", "consumer", s.testSubscription},
		{"POST", "/subscriptions/{subscription}/skip", "consumer", s.skipRecord},
		{"POST", "/subscriptions/{subscription}/redrive", "consumer", s.redrive},
		{"POST", "/subscriptions/{subscription}/replay", "consumer", s.replaySubscription},
		{"POST", "/subscriptions/{subscription}/secret", "consumer", s.rotateSecret},
		{"GET", "/subscriptions/{subscription}/dead-letters", "consumer", s.listDeadLetters},
		{"GET", "/subscriptions/{subscription}/attempts", "consumer", s.listAttempts},

		{"GET", "/lag", "monitor", s.getLag},
	}
}

func (s *Server) has(role string) bool {
	switch role {
	case "producer":
		return s.Producer != nil
	case "consumer":
		return s.Sessions != nil
	case "monitor":
		return s.Lag != nil
	}
	return true
}

// mux routes by path first, so that a known path with another method is a 405 that names
// the methods, and everything else is a 404 in our form.
func (s *Server) mux() *http.ServeMux {
	byPath := make(map[string][]route)
	for _, rt := range s.routes() {
		byPath[rt.path] = append(byPath[rt.path], rt)
	}
	mux := http.NewServeMux()
	for path, routes := range byPath {
		mux.HandleFunc(path, s.answer(func(w http.ResponseWriter, r *http.Request) error {
			var allowed []string
			for _, rt := range routes {
				allowed = append(allowed, rt.method)
				if rt.safe() {
					allowed = append(allowed, http.MethodHead)
				}
				if rt.method != r.Method && (r.Method != http.MethodHead || !rt.safe()) {
					continue
				}
				if !s.has(rt.role) {
					return event.Errorf(event.NotFound, 0, "route", "%s %s is served by the %s, not by this service", rt.method, rt.path, rt.role)
				}
				return rt.serve(w, r)
			}
			slices.Sort(allowed)
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			return event.Errorf(event.NotAllowed, 0, "route", "%s is not allowed on %s; allowed: %s", r.Method, r.URL.Path, strings.Join(allowed, ", "))
		}))
	}
	s.replicaRoutes(mux)
	mux.HandleFunc("/", s.answer(func(_ http.ResponseWriter, r *http.Request) error {
		return event.Errorf(event.NotFound, 0, "route", "there is nothing at %s; the HTTP API has /topics, /v3, /brokers, /consumers, /streams, /subscriptions, /lag and /health, and /openapi.yaml describes it", r.URL.Path)
	}))
	return mux
}

// answer turns a handler's error into its one answer.
func (s *Server) answer(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// partitionOf reads the path value {partition}.
func partitionOf(r *http.Request) (int32, error) {
	text := r.PathValue("partition")
	n, ok := parsePartition(text)
	if !ok {
		return 0, event.Errorf(event.NotFound, codePartitionNotFound, "route", "there is no partition %q; partitions are numbers from 0 up", text)
	}
	return n, nil
}

// parsePartition reads a partition's number: digits, and no sign.
func parsePartition(text string) (int32, bool) {
	n, err := strconv.ParseUint(text, 10, 31)
	return int32(n), err == nil //nolint:gosec // it has 31 bits
}
