package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/deliver"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/filter"
	"postamt/sidecar/internal/httpapi"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/lag"
	"postamt/sidecar/internal/registry"
	"postamt/sidecar/internal/session"
	"postamt/sidecar/internal/trace"
	"postamt/sidecar/internal/webhook"
)

// deliveries delivers this replica's part of all subscriptions, and tells what all replicas together
// know of them.
type deliveries struct {
	*deliver.Manager
	cluster  *kafka.Cluster
	asker    *lag.Asker
	sender   *webhook.Sender
	replicas *httpapi.Replicas
	boot     string

	mu      sync.Mutex
	address string
	known   chan struct{} // closed once address is
}

// clientPrefix begins the name of a replica among a group's members: postamt-deliver@address@boot.
const clientPrefix = "postamt-deliver@"

func newSender(c config.Webhook, tracer *trace.Tracer) (*webhook.Sender, error) {
	sender, err := webhook.New(webhook.Options{Allow: c.Allow, Deny: c.Deny, Edge: c.Edge, RequireHTTPS: c.RequireHTTPS, Proxy: c.Proxy, Version: Version, Tracer: tracer})
	if err != nil {
		return nil, fmt.Errorf("make the sender of deliveries: %w", err)
	}
	return sender, nil
}

func newDeliveries(cfg config.Config, cluster *kafka.Cluster, asker *lag.Asker, producer *kafka.Producer, sender *webhook.Sender, sessions *session.Manager, subscriptions *registry.Registry, log *slog.Logger, reg prometheus.Registerer) *deliveries {
	d := &deliveries{
		cluster: cluster, asker: asker, sender: sender, replicas: httpapi.NewReplicas(sessions.Sign), boot: sessions.Boot(), known: make(chan struct{}),
	}
	d.Manager = deliver.NewManager(deliver.Parts{
		Open: func(o deliver.SourceOptions) (deliver.Source, error) {
			return kafka.OpenDeliveries(cfg.Kafka.BootstrapServers, kafka.DeliveriesOptions{
				Group: o.Group, Topics: o.Topics, ClientID: d.client(), Assigned: o.Assigned, Revoked: o.Revoked, Lost: o.Lost, Expired: o.Expired,
			})
		},
		Send: sender, Letters: kafka.NewDeadLetterWriter(producer, cluster),
		Compile:    func(expression string) (deliver.Filter, error) { return filter.Compile(expression) },
		Partitions: cluster.Partitions, DecodeLetter: kafka.DecodeDeadLetter, Left: d.left,
		Withdraw:    subscriptions.Withdraw,
		Window:      deliver.Window{Records: int64(cfg.Delivery.WindowRecords), Bytes: int(cfg.Delivery.WindowBytes), Memory: deliver.NewMemory(cfg.Delivery.MemoryBytes)},
		StopTimeout: cfg.Delivery.StopTimeout, Log: log,
	}, reg)
	subscriptions.Subscribe(d.Change)
	return d
}

// SetAddress says where the other replicas reach this one.
func (d *deliveries) SetAddress(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.address == "" {
		close(d.known)
	}
	d.address = address
}

func (d *deliveries) client() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return clientPrefix + d.address + "@" + d.boot
}

// Run delivers, once this replica can be named to the others, until ctx ends.
func (d *deliveries) Run(ctx context.Context) error {
	defer d.sender.Close()
	defer d.replicas.Close()
	select {
	case <-ctx.Done():
		return nil
	case <-d.known:
	}
	return d.Manager.Run(ctx)
}

// replica is a process that delivers.
type replica struct{ address, boot string }

// members lists the replicas that are in a subscription's group.
func (d *deliveries) members(ctx context.Context, group string) ([]replica, error) {
	members, err := d.cluster.Members(ctx, group)
	if err != nil {
		return nil, err
	}
	var all []replica
	for _, m := range members {
		rest, ours := strings.CutPrefix(m.Client, clientPrefix)
		address, boot, ok := strings.Cut(rest, "@")
		if r := (replica{address, boot}); ours && ok && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all, nil
}

// askTimeout bounds what another replica is waited for.
const askTimeout = 2 * time.Second

// each asks all replicas of a group at once, this one without a request. own and other return
// whether there was an answer.
func (d *deliveries) each(ctx context.Context, all []replica, own func() error, other func(context.Context, replica) error) (answered, missing []string) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	errs := make([]error, len(all))
	var asking sync.WaitGroup
	for i, r := range all {
		asking.Go(func() {
			if r.boot == d.boot {
				errs[i] = own()
			} else {
				errs[i] = other(ctx, r)
			}
		})
	}
	asking.Wait()
	for i, r := range all {
		if ee, ok := errors.AsType[*event.Error](errs[i]); errs[i] == nil || ok && ee.Kind == event.NotFound {
			answered = append(answered, r.address)
		} else {
			missing = append(missing, r.address)
		}
	}
	return answered, missing
}

// Status merges what Kafka and all replicas say of a subscription.
func (d *deliveries) Status(ctx context.Context, sub *event.Subscription) (event.DeliveryStatus, error) {
	s := event.DeliveryStatus{State: event.DeliveryIdle}
	all, err := d.members(ctx, sub.Group())
	if err != nil {
		return s, err
	}
	places := make(map[event.TopicPartition]*event.PartitionStatus)
	_, lags, err := d.asker.Lag(ctx, sub.Group())
	if ee, ok := errors.AsType[*event.Error](err); err != nil && (!ok || ee.Kind != event.NotFound) {
		return s, err
	}
	for _, l := range lags {
		s.Partitions = append(s.Partitions, event.PartitionStatus{TopicPartition: l.TopicPartition, Committed: l.Committed, End: l.End, Lag: l.Lag, LagSeconds: l.Seconds})
	}
	for i := range s.Partitions {
		places[s.Partitions[i].TopicPartition] = &s.Partitions[i]
	}
	var mu sync.Mutex
	down := false
	add := func(address string, own event.DeliveryStatus) {
		mu.Lock()
		defer mu.Unlock()
		down = down || own.State == event.DeliveryDown
		s.InFlight += own.InFlight
		for _, p := range own.Partitions {
			if at := places[p.TopicPartition]; at != nil {
				at.WindowRecords, at.WindowBytes, at.Stuck, at.Replica = p.WindowRecords, p.WindowBytes, p.Stuck, address
			}
		}
	}
	s.Replicas, s.Missing = d.each(ctx, all,
		func() error {
			if own, ok := d.OwnStatus(sub.Name); ok {
				add(d.self(), own)
			}
			return nil
		},
		func(ctx context.Context, r replica) error {
			own, err := d.replicas.Status(ctx, r.address, r.boot, sub.Name)
			if err == nil {
				add(r.address, own)
			}
			return err
		})
	switch {
	case sub.State == event.Paused:
		s.State = event.DeliveryPaused
	case sub.State == event.GoneAt:
		s.State = event.DeliveryGone
	case down:
		s.State = event.DeliveryDown
	case len(all) > 0:
		s.State = event.DeliveryActive
	}
	if sub.Redrive.ID > 0 {
		left, err := d.left(ctx, sub.RedriveGroup(), sub.Redrive.Until)
		if err != nil {
			return s, err
		}
		s.Redrive = &event.RedriveStatus{ID: sub.Redrive.ID, Running: left > 0, Left: left}
	}
	return s, nil
}

func (d *deliveries) self() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.address
}

// Attempts gives the newest attempts of each replica, the newest first.
func (d *deliveries) Attempts(ctx context.Context, sub *event.Subscription) ([]event.AttemptRecord, error) {
	all, err := d.members(ctx, sub.Group())
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	attempts := []event.AttemptRecord{}
	add := func(address string, own []event.AttemptRecord) {
		mu.Lock()
		defer mu.Unlock()
		for _, a := range own {
			a.Replica = address
			attempts = append(attempts, a)
		}
	}
	d.each(ctx, all,
		func() error {
			add(d.self(), d.OwnAttempts(sub.Name))
			return nil
		},
		func(ctx context.Context, r replica) error {
			own, err := d.replicas.Attempts(ctx, r.address, r.boot, sub.Name)
			if err == nil {
				add(r.address, own)
			}
			return err
		})
	slices.SortStableFunc(attempts, func(a, b event.AttemptRecord) int { return b.Started.Compare(a.Started) })
	return attempts, nil
}

// Skip makes a dead letter of a record, on the replica that has its partition.
func (d *deliveries) Skip(ctx context.Context, sub *event.Subscription, tp event.TopicPartition, offset int64) error {
	all, err := d.members(ctx, sub.Group())
	if err != nil {
		return err
	}
	var asking errgroup.Group
	results := make([]error, len(all))
	for i, r := range all {
		asking.Go(func() error {
			if r.boot == d.boot {
				results[i] = d.OwnSkip(ctx, sub.Name, tp, offset)
			} else {
				results[i] = d.replicas.Skip(ctx, r.address, r.boot, sub.Name, tp, offset)
			}
			return nil
		})
	}
	_ = asking.Wait()
	var failed error
	for _, err := range results {
		if err == nil {
			return nil
		}
		if ee, ok := errors.AsType[*event.Error](err); ok && ee.Kind == event.NotFound {
			continue // it has other partitions
		}
		failed = err
	}
	if failed != nil {
		return failed
	}
	return event.Errorf(event.NotFound, 0, "skip", "partition %d of topic %q is not one that the subscription reads at present", tp.Partition, tp.Topic)
}

// Test sends a sample, signed as every delivery.
func (d *deliveries) Test(ctx context.Context, sub *event.Subscription) event.Outcome {
	sample := event.Record{
		Topic: sub.Topics[0], Offset: event.NoCommit, Key: []byte("test"), Value: []byte(`{"test":true}`), Timestamp: time.Now(),
		Headers: []event.Header{{Key: "content-type", Value: []byte("application/json")}, {Key: "postamt-test", Value: []byte("true")}},
	}
	return d.sender.Send(ctx, sub, event.Attempt{Record: &sample, Origin: event.OriginOf(&sample), Number: 1, Started: time.Now()})
}

// DeadLetters gives letters of a subscription from offsets on.
func (d *deliveries) DeadLetters(ctx context.Context, sub *event.Subscription, after map[event.TopicPartition]int64, limit int) ([]event.StoredLetter, map[event.TopicPartition]int64, error) {
	var topics []string
	for _, topic := range sub.Topics {
		if letters := sub.DeadLetterTopic(topic); !slices.Contains(topics, letters) {
			topics = append(topics, letters)
		}
	}
	letters, next, err := d.cluster.BrowseDeadLetters(ctx, topics, func(l *event.DeadLetter) bool { return l.Subscription == sub.Name }, after, limit)
	if err != nil || len(letters) == 0 {
		return letters, next, err
	}
	done, err := d.cluster.Committed(ctx, sub.RedriveGroup())
	for i := range letters {
		at := letters[i].Place
		c, ok := done[event.TopicPartition{Topic: at.Topic, Partition: at.Partition}]
		letters[i].Redriven = ok && at.Offset < c.Offset
	}
	return letters, next, err
}

// left counts what a group has before it up to given offsets, of what there is still.
func (d *deliveries) left(ctx context.Context, group string, until map[event.TopicPartition]int64) (int64, error) {
	done, err := d.cluster.Committed(ctx, group)
	if err != nil {
		return 0, err
	}
	bounds := make(map[string]map[int32]event.Bounds)
	var left int64
	for tp, end := range until {
		if bounds[tp.Topic] == nil {
			all, err := d.cluster.Bounds(ctx, tp.Topic)
			if ee, ok := errors.AsType[*event.Error](err); err != nil && (!ok || ee.Kind != event.NotFound) {
				return 0, err
			}
			if bounds[tp.Topic] = all; all == nil { // it has been deleted, and all that was left with it
				bounds[tp.Topic] = make(map[int32]event.Bounds)
			}
		}
		there := bounds[tp.Topic][tp.Partition]
		from := there.Beginning
		if c, ok := done[tp]; ok {
			from = max(from, c.Offset)
		}
		left += max(0, min(end, there.End)-from) // where it was made anew, it may end sooner
	}
	return left, nil
}
