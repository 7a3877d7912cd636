// Package bootstrap makes the topics that a file declares exist, and Postamt's own.
//
// The file (compose/topics.yaml in the stack) says:
//
//	environments: [test, prod]
//	events:                      # each becomes a topic in every environment: test.voucher, prod.voucher
//	  voucher: {partitions: 3, retention: 7d, dead_letters: true}
//	topics:                      # names of their own
//	  my-topic: {partitions: 3, replication: 1, configs: {cleanup.policy: compact}}
//
// Each may have partitions (required), retention (7d, 36h, 1d12h, forever; else the broker's),
// replication (else the configured factor), dead_letters (adds <topic>.dead-letters, which
// keeps 30 days and takes 64 KiB more than the topic) and configs, in Kafka's own names.
//
// It creates what is missing, raises partition counts and sets configurations. It never
// deletes, shrinks or moves: such differences are drift, which is reported. To run it again,
// or twice at once, is safe.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

// Admin is what bootstrap asks of Kafka. Errors are event.Errors; Conflict means that
// somebody else has done it, Unavailable that it may work later.
type Admin interface {
	Cluster(ctx context.Context) (event.ClusterState, error)
	TopicConfigs(ctx context.Context, topics ...string) (map[string]map[string]string, error)
	BrokerConfig(ctx context.Context, broker int32, name string) (string, error)
	CreateTopic(ctx context.Context, spec event.TopicSpec) error
	SetPartitions(ctx context.Context, topic string, n int) error
	SetTopicConfigs(ctx context.Context, topic string, configs map[string]string) error
}

// Options say what to do.
type Options struct {
	File              string        // the topics file
	Topics            []byte        // its content, instead of File
	ReplicationFactor int           // of topics that do not say
	Timeout           time.Duration // for all of it, the wait for Kafka first
	PlanOnly          bool          // write to Out what would change, and change nothing
	Strict            bool          // drift is an error
	Out               io.Writer     // for PlanOnly
	Log               *slog.Logger
}

// ErrDrift is in the error that Strict gives.
var ErrDrift = errors.New("topics differ from what is declared")

const (
	askTimeout  = 5 * time.Second        // of one question: a broker that starts may take a connection and not answer
	askPause    = time.Second            // between two, while Kafka is away
	settlePause = 250 * time.Millisecond // between two looks, while changes spread through the brokers
	sayEvery    = 5 * time.Second        // what is waited for

	// brokerGrace is how long more brokers may take to join the first, when the replication
	// needs them. In Compose they are healthy before bootstrap begins.
	brokerGrace = 20 * time.Second
)

// Run makes the declared topics exist, or, with PlanOnly, says what it would do. It waits for
// Kafka, and ends when every partition of every declared topic has a leader. The file is read
// first: a mistake in it is reported at once.
func Run(ctx context.Context, admin Admin, o Options) error {
	topics, err := load(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done within BOOTSTRAP_TIMEOUT (%v)", o.Timeout))
	defer cancel()
	b := &run{admin: admin, o: o, topics: topics}
	if err := b.waitForBrokers(ctx); err != nil {
		return err
	}
	var plan Plan
	if o.PlanOnly {
		plan, err = b.show(ctx)
	} else {
		plan, err = b.settle(ctx)
	}
	if err != nil {
		return err
	}
	if o.Strict && len(plan.Drift) > 0 {
		return strictError(plan.Drift)
	}
	return nil
}

func load(o Options) ([]Topic, error) {
	if o.Topics != nil {
		return Parse("topics.yaml", o.Topics)
	}
	file := o.File
	data, err := os.ReadFile(file) //nolint:gosec // the operator says which file
	if info, statErr := os.Stat(file); statErr == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory: Docker makes one where a file that does not exist is mounted", file)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no topics file at %s: mount one there, or say in TOPICS_FILE where it is", file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the topics file: %w", err)
	}
	return Parse(filepath.Base(file), data)
}

func strictError(drift []Drift) error {
	var lines []string
	for _, d := range drift {
		lines = append(lines, d.Topic+" "+d.Detail)
	}
	return fmt.Errorf("%w: %s", ErrDrift, strings.Join(lines, "; "))
}

type run struct {
	admin   Admin
	o       Options
	topics  []Topic
	changes int // made by this run
	said    time.Time
}

// say logs what is waited for, every few seconds.
func (b *run) say(msg string, args ...any) {
	if time.Since(b.said) >= sayEvery {
		b.said = time.Now()
		b.o.Log.Info(msg, args...) //nolint:sloglint // the callers' are constants
	}
}

// waitForBrokers returns when Kafka answers and has as many brokers as the replication needs,
// or when it has had its time to get them: the plan then says what cannot be.
func (b *run) waitForBrokers(ctx context.Context) error {
	need := b.o.ReplicationFactor
	for _, t := range b.topics {
		need = max(need, t.Replication)
	}
	var answered time.Time
	for {
		cluster, err := b.ask(ctx)
		switch {
		case err != nil:
			b.say("waiting for Kafka to answer", "err", err)
		case len(cluster.Brokers) >= need:
			return nil
		case answered.IsZero():
			answered = time.Now()
			fallthrough
		default:
			if time.Since(answered) >= brokerGrace {
				return nil
			}
			b.say("waiting for more brokers", "brokers", len(cluster.Brokers), "needed", need)
		}
		if !pause(ctx, askPause) {
			if err != nil {
				return fmt.Errorf("wait for Kafka: %w; last answer: %w", context.Cause(ctx), err)
			}
			return fmt.Errorf("wait for %d brokers: %w", need, context.Cause(ctx))
		}
	}
}

func (b *run) ask(ctx context.Context) (event.ClusterState, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return b.admin.Cluster(ctx)
}

// show writes the plan, and changes nothing.
func (b *run) show(ctx context.Context) (Plan, error) {
	l, err := b.look(ctx)
	if err != nil {
		return Plan{}, err
	}
	plan, err := l.plan()
	if err != nil {
		return Plan{}, err
	}
	if _, err := plan.WriteTo(b.o.Out); err != nil {
		return Plan{}, fmt.Errorf("write the plan: %w", err)
	}
	return plan, nil
}

// settle changes what is to be changed and looks again, until nothing is left: so it sees
// what another bootstrap does meanwhile, and what not every broker knows yet.
func (b *run) settle(ctx context.Context) (Plan, error) {
	b.said = time.Now() // silent where all goes as fast as it should
	for {
		plan, todo, err := b.step(ctx)
		switch {
		case err == nil && todo == "":
			for _, d := range plan.Drift {
				b.o.Log.Warn("topic differs and is left", "topic", d.Topic, "drift", d.Detail)
			}
			b.o.Log.Info("all declared topics exist", "topics", plan.Topics, "changes", b.changes, "drift", len(plan.Drift))
			return plan, nil
		case err != nil && !mayWorkLater(err):
			return plan, err
		case err != nil:
			todo = err.Error()
		}
		b.say("waiting for the topics to be ready", "todo", todo)
		if !pause(ctx, settlePause) {
			return plan, fmt.Errorf("wait for the topics to be ready: %w; to do: %s", context.Cause(ctx), todo)
		}
	}
}

// step looks, changes what is to be changed, and tells what is still to come: nothing when
// todo is empty.
func (b *run) step(ctx context.Context) (plan Plan, todo string, err error) {
	l, err := b.look(ctx)
	if err != nil {
		return Plan{}, "", err
	}
	if plan, err = l.plan(); err != nil {
		return plan, "", err
	}
	if len(plan.Changes) > 0 {
		return plan, count(len(plan.Changes), "change") + " to be seen", b.apply(ctx, plan.Changes)
	}
	if topics := l.leaderless(); len(topics) > 0 {
		return plan, "partitions without a leader in " + strings.Join(topics, ", "), nil
	}
	return plan, "", nil
}

func (b *run) look(ctx context.Context) (look, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l := look{topics: b.topics, replication: b.o.ReplicationFactor}
	var err error
	if l.cluster, err = b.admin.Cluster(ctx); err != nil {
		return l, err
	}
	var existing []string
	for _, is := range l.cluster.Topics {
		if slices.ContainsFunc(b.topics, func(t Topic) bool { return t.Name == is.Name }) {
			existing = append(existing, is.Name)
		}
	}
	if len(existing) > 0 {
		if l.configs, err = b.admin.TopicConfigs(ctx, existing...); err != nil {
			return l, err
		}
	}
	if len(l.cluster.Brokers) == 0 {
		return l, event.Errorf(event.Unavailable, 0, "bootstrap", "the cluster has no broker that is up")
	}
	limit, err := b.admin.BrokerConfig(ctx, l.cluster.Brokers[0], "message.max.bytes")
	if err != nil {
		return l, err
	}
	if l.maxBytes, err = strconv.Atoi(limit); err != nil {
		return l, fmt.Errorf("broker %d has message.max.bytes %q, which is no number", l.cluster.Brokers[0], limit)
	}
	return l, nil
}

// leaderless names the declared topics that cannot be written to yet.
func (l look) leaderless() []string {
	var names []string
	for _, is := range l.cluster.Topics {
		declared := slices.ContainsFunc(l.topics, func(t Topic) bool { return t.Name == is.Name })
		if declared && slices.ContainsFunc(is.Partitions, func(p event.Partition) bool { return p.Leader < 0 }) {
			names = append(names, is.Name)
		}
	}
	return names
}

// apply makes all changes that can be made. An error lists what Kafka refused; only where it
// refused nothing, it is what may work later.
func (b *run) apply(ctx context.Context, changes []Change) error {
	var refused, later error
	for _, c := range changes {
		var err error
		switch {
		case c.Create != nil:
			err = b.admin.CreateTopic(ctx, *c.Create)
		case c.Partitions > 0:
			err = b.admin.SetPartitions(ctx, c.Topic, c.Partitions)
		default:
			err = b.admin.SetTopicConfigs(ctx, c.Topic, c.Configs)
		}
		switch {
		case err == nil:
			b.changes++
			b.o.Log.Info("topic changed", "topic", c.Topic, "action", c.action(), "detail", c.Detail)
		case isKind(err, event.Conflict): // another bootstrap was faster: the next look shows with what
		case mayWorkLater(err):
			later = err
		default:
			refused = errors.Join(refused, fmt.Errorf("%s (%s): %w", c.action(), c.Detail, err))
		}
	}
	if refused != nil {
		return refused
	}
	return later
}

// mayWorkLater is true for a Kafka that is away, and for a topic that the broker which was
// asked has not heard of yet.
func mayWorkLater(err error) bool {
	return isKind(err, event.Unavailable) || isKind(err, event.NotFound)
}

func isKind(err error, kind event.Kind) bool {
	e, ok := errors.AsType[*event.Error](err)
	return ok && e.Kind == kind
}

// pause waits, and tells whether ctx lets it go on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
