package bootstrap_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/compose"
	"postamt/sidecar/internal/bootstrap"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

const declared = `
environments: [test]
events:
  voucher: {partitions: 3, retention: 7d, dead_letters: true}
topics:
  my-topic: {partitions: 3}
`

func newAdmin(t *testing.T, opts ...kfake.Opt) *kafka.Admin {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kafka.NewClient(cluster.ListenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return kafka.NewAdmin(client)
}

func options(t *testing.T, file string) bootstrap.Options {
	t.Helper()
	path := filepath.Join(t.TempDir(), "topics.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return bootstrap.Options{File: path, ReplicationFactor: 1, Timeout: 30 * time.Second, Out: io.Discard, Log: slog.New(slog.DiscardHandler)}
}

func topics(t *testing.T, admin *kafka.Admin) map[string]int {
	t.Helper()
	cluster, err := admin.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	partitions := make(map[string]int)
	for _, topic := range cluster.Topics {
		partitions[topic.Name] = len(topic.Partitions)
	}
	return partitions
}

func TestRunMakesTheTopicsAndThenChangesNothing(t *testing.T) {
	admin := newAdmin(t, kfake.NumBrokers(1))
	if err := bootstrap.Run(t.Context(), admin, options(t, declared)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{
		"test.voucher": 3, "test.voucher.dead-letters": 3, "my-topic": 3, "_postamt.sessions": 1, "_postamt.subscriptions": 1,
	} {
		if got := topics(t, admin)[name]; got != want {
			t.Errorf("%s has %d partitions, want %d", name, got, want)
		}
	}
	configs, err := admin.TopicConfigs(t.Context(), "test.voucher", "test.voucher.dead-letters", "_postamt.sessions", "my-topic")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ topic, name, value string }{
		{"test.voucher", "retention.ms", "604800000"},
		{"test.voucher.dead-letters", "retention.ms", "2592000000"},
		{"test.voucher.dead-letters", "max.message.bytes", "1114124"}, // Kafka's default and 64 KiB
		{"_postamt.sessions", "cleanup.policy", "compact"},
	} {
		if got := configs[want.topic][want.name]; got != want.value {
			t.Errorf("%s has %s = %q, want %s", want.topic, want.name, got, want.value)
		}
	}
	if len(configs["my-topic"]) != 0 {
		t.Errorf("my-topic has %v set, though nothing is declared", configs["my-topic"])
	}

	again := options(t, declared)
	again.Strict = true
	var log bytes.Buffer
	again.Log = slog.New(slog.NewTextHandler(&log, nil))
	if err := bootstrap.Run(t.Context(), admin, again); err != nil || !strings.Contains(log.String(), "changes=0 drift=0") {
		t.Errorf("the second run gives %v and says\n%s", err, log.String())
	}
}

func TestTheStacksOwnFile(t *testing.T) {
	admin := newAdmin(t, kfake.NumBrokers(1))
	o := options(t, "")
	o.File, o.Topics = "", compose.Topics
	if err := bootstrap.Run(t.Context(), admin, o); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"test.voucher": 3, "test.voucher.dead-letters": 3, "prod.voucher": 3, "prod.voucher.dead-letters": 3, "my-topic": 3,
		"_postamt.sessions": 1, "_postamt.subscriptions": 1,
	}
	if got := topics(t, admin); !maps.Equal(got, want) {
		t.Errorf("topics are %v, want %v", got, want)
	}
}

func TestRunChangesWhatIsDeclaredOtherwise(t *testing.T) {
	admin := newAdmin(t, kfake.NumBrokers(1))
	for _, file := range []string{
		"topics: {a: {partitions: 3, retention: 1d, configs: {segment.ms: 60000}}}",
		"topics: {a: {partitions: 5, retention: 2d, configs: {cleanup.policy: 'compact,delete'}}}",
	} {
		if err := bootstrap.Run(t.Context(), admin, options(t, file)); err != nil {
			t.Fatal(err)
		}
	}
	configs, err := admin.TopicConfigs(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"retention.ms": "172800000", "cleanup.policy": "compact,delete", "segment.ms": "60000"}
	for name, value := range want {
		if configs["a"][name] != value {
			t.Errorf("a has %s = %q, want %s", name, configs["a"][name], value)
		}
	}
	if n := topics(t, admin)["a"]; n != 5 {
		t.Errorf("a has %d partitions, want 5", n)
	}

	fewer := options(t, "topics: {a: {partitions: 1, retention: 2d, configs: {cleanup.policy: 'compact,delete'}}}")
	if err := bootstrap.Run(t.Context(), admin, fewer); err != nil {
		t.Errorf("drift is an error without Strict: %v", err)
	}
	fewer.Strict = true
	err = bootstrap.Run(t.Context(), admin, fewer)
	if !errors.Is(err, bootstrap.ErrDrift) || !strings.Contains(err.Error(), "a has 5 partitions, 1 declared") || !strings.Contains(err.Error(), "a has segment.ms = 60000") {
		t.Errorf("Strict gives %v", err)
	}
	if n := topics(t, admin)["a"]; n != 5 {
		t.Errorf("a has %d partitions after the drift, want 5", n)
	}
}

func TestPlanOnlyChangesNothing(t *testing.T) {
	admin := newAdmin(t, kfake.NumBrokers(1))
	o := options(t, declared)
	var out strings.Builder
	o.Out, o.PlanOnly = &out, true
	if err := bootstrap.Run(t.Context(), admin, o); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "test.voucher.dead-letters  create  3 partitions, 1 replica, max.message.bytes = 1114124, retention.ms = 2592000000") ||
		!strings.HasSuffix(out.String(), "5 topics declared; 5 changes to make, 0 that differ and are left.\n") {
		t.Errorf("the plan is\n%s", out.String())
	}
	if got := topics(t, admin); len(got) != 0 {
		t.Errorf("a plan made %v", got)
	}
}

func TestRunsAtOnceAllSucceed(t *testing.T) {
	admin := newAdmin(t, kfake.NumBrokers(3))
	o := options(t, declared)
	o.ReplicationFactor = 3
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := bootstrap.Run(t.Context(), admin, o); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := topics(t, admin); len(got) != 5 {
		t.Errorf("topics are %v", got)
	}
}

func TestRunReportsAllThatKafkaRefuses(t *testing.T) {
	refusing := &starting{brokers: []time.Duration{0}, creation: event.Errorf(event.Unprocessable, 0, "kafka.CreateTopic", "a policy says no")}
	err := bootstrap.Run(t.Context(), refusing, options(t, "topics: {a: {partitions: 1, retention: 1s}, b: {partitions: 2}}"))
	for _, want := range []string{"create (1 partition, 1 replica, retention.ms = 1000): kafka.CreateTopic: a policy says no", "create (2 partitions, 1 replica): "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q in it", err, want)
		}
	}
}

func TestRunReadsTheFileFirst(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"):   "there is no topics file",
		dir:                               "is a directory: Docker makes one",
		options(t, "topics: {a: 1}").File: "topics.yaml:1: a must be a mapping",
	} {
		o := options(t, declared)
		o.File = path
		if err := bootstrap.Run(t.Context(), nil, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want %q", path, err, want)
		}
	}
}

// starting is a cluster whose brokers come up one after the other, and whose partitions get
// their leaders later still.
type starting struct {
	began    time.Time
	brokers  []time.Duration // when each is up
	elect    time.Duration   // when partitions have leaders
	made     []event.TopicState
	silent   bool // takes the question and never answers
	creation error
}

func (s *starting) Cluster(ctx context.Context) (event.ClusterState, error) {
	if s.silent {
		<-ctx.Done()
		return event.ClusterState{}, event.Errorf(event.Unavailable, 0, "kafka.Cluster", "no answer")
	}
	var state event.ClusterState
	for i, up := range s.brokers {
		if time.Since(s.began) >= up {
			state.Brokers = append(state.Brokers, int32(i))
		}
	}
	if len(state.Brokers) == 0 {
		return state, event.Errorf(event.Unavailable, 0, "kafka.Cluster", "connection refused")
	}
	for _, t := range s.made {
		t.Partitions = slices.Clone(t.Partitions)
		for i := range t.Partitions {
			t.Partitions[i].Leader = -1
			if time.Since(s.began) >= s.elect {
				t.Partitions[i].Leader = 0
			}
		}
		state.Topics = append(state.Topics, t)
	}
	return state, nil
}

func (s *starting) CreateTopic(_ context.Context, spec event.TopicSpec) error {
	if s.creation != nil {
		return s.creation
	}
	topic := event.TopicState{Topic: event.Topic{Name: spec.Name, Configs: spec.Configs}}
	for n := range spec.Partitions {
		topic.Partitions = append(topic.Partitions, event.Partition{Number: int32(n), Replicas: make([]int32, spec.Replication)})
	}
	s.made = append(s.made, topic)
	return nil
}

func (s *starting) TopicConfigs(_ context.Context, names ...string) (map[string]map[string]string, error) {
	configs := make(map[string]map[string]string)
	for _, t := range s.made {
		if slices.Contains(names, t.Name) {
			configs[t.Name] = t.Configs
		}
	}
	return configs, nil
}

func (s *starting) BrokerConfig(context.Context, int32, string) (string, error) {
	return "1048588", nil
}
func (s *starting) SetPartitions(context.Context, string, int) error                 { return nil }
func (s *starting) SetTopicConfigs(context.Context, string, map[string]string) error { return nil }

func TestRunWaits(t *testing.T) {
	ms := time.Millisecond
	for name, test := range map[string]struct {
		kafka       *starting
		replication int
		want        string // of the error
		within      [2]time.Duration
	}{
		"for Kafka to answer":              {&starting{brokers: []time.Duration{30 * time.Second}}, 1, "", [2]time.Duration{30 * time.Second, 32 * time.Second}},
		"for enough brokers":               {&starting{brokers: []time.Duration{0, 5 * time.Second, 9 * time.Second}}, 3, "", [2]time.Duration{9 * time.Second, 11 * time.Second}},
		"for leaders":                      {&starting{brokers: []time.Duration{0}, elect: 7 * time.Second}, 1, "", [2]time.Duration{7 * time.Second, 7500 * ms}},
		"not long for brokers that lack":   {&starting{brokers: []time.Duration{0}}, 3, "is to have 3 replicas, and the cluster has 1 broker:", [2]time.Duration{20 * time.Second, 22 * time.Second}},
		"not for ever":                     {&starting{}, 1, "wait for Kafka: not done within BOOTSTRAP_TIMEOUT (2m0s); last answer: kafka.Cluster: connection refused", [2]time.Duration{2 * time.Minute, 2 * time.Minute}},
		"not for ever, where it is silent": {&starting{silent: true}, 1, "last answer: kafka.Cluster: no answer", [2]time.Duration{2 * time.Minute, 2 * time.Minute}},
		"not for ever for leaders":         {&starting{brokers: []time.Duration{0}, elect: time.Hour}, 1, "BOOTSTRAP_TIMEOUT (2m0s); to do: partitions without a leader in _postamt.sessions, _postamt.subscriptions, my-topic", [2]time.Duration{2 * time.Minute, 2 * time.Minute}},
		"for a Kafka that is busy": {&starting{brokers: []time.Duration{0}, creation: event.Errorf(event.Unavailable, 0, "kafka.CreateTopic", "no controller")}, 1,
			"BOOTSTRAP_TIMEOUT (2m0s); to do: kafka.CreateTopic: no controller", [2]time.Duration{2 * time.Minute, 2 * time.Minute}},
		"not for what Kafka refuses": {&starting{brokers: []time.Duration{0}, creation: event.Errorf(event.Unprocessable, 0, "kafka.CreateTopic", "a policy says no")}, 1,
			"a policy says no", [2]time.Duration{0, time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, "topics: {my-topic: {partitions: 1}}")
			o.Timeout, o.ReplicationFactor = 2*time.Minute, test.replication
			var log bytes.Buffer
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
			synctest.Test(t, func(t *testing.T) {
				test.kafka.began = time.Now()
				err := bootstrap.Run(t.Context(), test.kafka, o)
				switch {
				case test.want == "" && err != nil:
					t.Error(err)
				case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
					t.Errorf("it ends with %v, want %q", err, test.want)
				}
				if took := time.Since(test.kafka.began); took < test.within[0] || took > test.within[1] {
					t.Errorf("it took %v, want %v", took, test.within)
				}
				if test.within[0] > 5*time.Second && !strings.Contains(log.String(), "waiting for ") {
					t.Errorf("it does not say what it waits for:\n%s", log.String())
				}
			})
		})
	}
}

func TestRunEndsWhenAsked(t *testing.T) {
	o := options(t, declared)
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		time.AfterFunc(3*time.Second, stop)
		if err := bootstrap.Run(ctx, &starting{silent: true}, o); !errors.Is(err, context.Canceled) {
			t.Errorf("a stop gives %v", err)
		}
	})
}
