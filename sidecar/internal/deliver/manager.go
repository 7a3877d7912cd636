package deliver

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// Parts are what a Manager delivers with. All are safe for concurrent use.
type Parts struct {
	Open    func(SourceOptions) (Source, error)
	Send    Sender
	Letters DeadLetters
	Compile func(expression string) (Filter, error)
	// Partitions tells how many partitions a topic has.
	Partitions func(ctx context.Context, topic string) (int, error)
	// DecodeLetter is false of a record that is no dead letter.
	DecodeLetter func(*event.Record) (event.DeadLetter, bool)
	// Left tells how many records a group has before it up to given offsets.
	Left func(ctx context.Context, group string, until map[event.TopicPartition]int64) (int64, error)
	// Withdraw stores that an endpoint wants no more records of a generation.
	Withdraw func(ctx context.Context, name string, generation int64, url string) error
	// Withdrawn is called when an endpoint has said so; NewManager sets it.
	Withdrawn func(name string, generation int64, url string)

	Window Window
	// StopTimeout is how long a subscription that ends may take to give its partitions back.
	StopTimeout time.Duration
	Log         *slog.Logger
}

// Manager delivers, on this replica, its part of every subscription that Change tells of. It is safe
// for concurrent use.
type Manager struct {
	parts   Parts
	metrics *metrics

	asked chan struct{} // that withdrawals has something

	mu          sync.Mutex
	withdrawals map[withdrawal]bool // to be stored: whose subscription is paused here until then

	runners map[string]*runner
	running sync.WaitGroup
	ctx     context.Context // of Run; nil before
}

type withdrawal struct {
	name       string
	generation int64
	url        string
}

// NewManager makes a Manager that delivers nothing yet.
func NewManager(parts Parts, reg prometheus.Registerer) *Manager {
	m := &Manager{parts: parts, metrics: newMetrics(reg), runners: make(map[string]*runner), withdrawals: make(map[withdrawal]bool), asked: make(chan struct{}, 1)}
	m.parts.Withdrawn = func(name string, generation int64, url string) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.withdrawals[withdrawal{name, generation, url}] = true
		select {
		case m.asked <- struct{}{}:
		default:
		}
	}
	reg.MustRegister(&gauges{m})
	return m
}

// Change tells what a subscription is now; nil is that there is none. It does not wait.
func (m *Manager) Change(name string, sub *event.Subscription) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.runners[name]
	if r == nil {
		if sub == nil {
			return
		}
		r = &runner{m: m, name: name, woken: make(chan struct{}, 1)}
		m.runners[name] = r
		m.start(r)
	}
	r.tell(sub)
}

// start is called with mu held.
func (m *Manager) start(r *runner) {
	if m.ctx != nil && m.ctx.Err() == nil {
		m.running.Go(func() { r.run(m.ctx) })
	}
}

// Run delivers until ctx ends, and then until all partitions have been given back.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx = ctx
	for _, name := range slices.Sorted(maps.Keys(m.runners)) {
		m.start(m.runners[name])
	}
	m.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			m.mu.Lock() // who starts a runner has done so, or does not any more
			running := &m.running
			m.mu.Unlock()
			running.Wait()
			return nil
		case <-m.asked:
			m.mu.Lock()
			all := m.withdrawals
			m.withdrawals = make(map[withdrawal]bool)
			m.mu.Unlock()
			for w := range all {
				m.withdraw(ctx, w)
			}
		}
	}
}

// withdraw stores a withdrawal, later where that fails, but for a subscription that is no more.
func (m *Manager) withdraw(ctx context.Context, w withdrawal) {
	const patience = 10 * time.Second
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := m.parts.Withdraw(bounded, w.name, w.generation, w.url)
	if ee, ok := errors.AsType[*event.Error](err); err == nil || ctx.Err() != nil || ok && ee.Kind == event.NotFound {
		return
	}
	m.parts.Log.Warn("it could not be stored that an endpoint wants no more records", "subscription", w.name, "error", err)
	time.AfterFunc(patience, func() { m.parts.Withdrawn(w.name, w.generation, w.url) })
}

// forget takes out a runner that has nothing to do any more, unless it has been told something.
func (m *Manager) forget(r *runner) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.wanted() != nil {
		return false
	}
	m.metrics.forget(r.name) // before another runner of the name can count
	delete(m.runners, r.name)
	return true
}

// worker is what delivers a subscription here; nil is none.
func (m *Manager) worker(name string) *worker {
	m.mu.Lock()
	r := m.runners[name]
	m.mu.Unlock()
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.worker
}

// ask has f look at a worker in its loop. It is false when the subscription is not delivered here.
func (m *Manager) ask(name string, f func(*worker)) bool {
	w := m.worker(name)
	return w != nil && w.do(func() { f(w) })
}

// OwnStatus tells what this replica knows of a subscription; false is that it does not deliver it.
func (m *Manager) OwnStatus(name string) (status event.DeliveryStatus, found bool) {
	found = m.ask(name, func(w *worker) {
		status = w.engine.Status(time.Now())
		status.Partitions = slices.DeleteFunc(status.Partitions, func(p event.PartitionStatus) bool { return w.owned[p.TopicPartition].feed.redrive != nil })
	})
	return status, found
}

// OwnAttempts gives the newest attempts that this replica has made, the newest first.
func (m *Manager) OwnAttempts(name string) (all []event.AttemptRecord) {
	m.ask(name, func(w *worker) { all = w.newest() })
	return all
}

// OwnSkip makes a dead letter of a record. It is NotFound of one that is not this replica's.
func (m *Manager) OwnSkip(_ context.Context, name string, tp event.TopicPartition, offset int64) error {
	var err error = event.Errorf(event.NotFound, 0, "skip", "this replica does not deliver the subscription")
	m.ask(name, func(w *worker) { err = w.engine.Skip(tp, offset) })
	return err
}

// runner delivers one subscription: one generation after the other.
type runner struct {
	m     *Manager
	name  string
	woken chan struct{}

	mu     sync.Mutex
	sub    *event.Subscription // as it is to be
	worker *worker
}

// tell says what the subscription is to be from now on.
func (r *runner) tell(sub *event.Subscription) {
	r.mu.Lock()
	r.sub = sub
	r.mu.Unlock()
	select {
	case r.woken <- struct{}{}:
	default:
	}
}

func (r *runner) wanted() *event.Subscription {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sub
}

// redriveInterval is how often a redrive looks whether it is done, on all replicas.
const redriveInterval = 2 * time.Second

// run makes what is delivered follow what is wanted, until ctx ends or the subscription is no more.
func (r *runner) run(ctx context.Context) {
	log := r.m.parts.Log.With("subscription", r.name)
	metrics := r.m.metrics.of(r.name)
	var w *worker
	var key string
	delivering, redriving := &job{}, &job{}
	stop := func() { // the letters first: they are given to what delivers
		redriving.stop()
		delivering.stop()
	}
	defer stop()
	var redrive, redriven int64             // the one that runs, the last one that has ended
	look := time.NewTicker(redriveInterval) // while there is one
	look.Stop()
	defer look.Stop()
	var told *event.Subscription
	for {
		sub := r.wanted()
		if sub == nil {
			stop()
			if r.m.forget(r) {
				return
			}
			continue
		}
		if delivering.over() || key != keyOf(sub) {
			stop()
			redriven = 0 // it may have been deleted and made again: then its redrives count from 1
			w, key = newWorker(r.m.parts, sub, metrics), keyOf(sub)
			r.show(w)
			delivering.begin(ctx, func(ctx context.Context) {
				if err := w.run(ctx); err != nil {
					log.Error("records cannot be read; it is tried again", "error", err)
				}
			})
		}
		if sub != told { // what the endpoint has said since counts, too
			w.update(sub)
			told = sub
		}
		if id := sub.Redrive.ID; id != redriven && (redriving.over() || redrive != id) {
			redriving.stop()
			if redrive = id; r.redriven(ctx, sub) { // before this replica began
				redriven = id
				continue
			}
			f := redriveFeed(w, sub)
			look.Reset(redriveInterval)
			w.feeds.Add(1)
			redriving.begin(ctx, func(ctx context.Context) {
				defer w.feeds.Done()
				if err := w.read(ctx, f); err != nil {
					log.Error("dead letters cannot be read; it is tried again", "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-r.woken:
		case <-delivering.done: // why has been logged
			pause(ctx, openPause)
		case <-redriving.done:
			pause(ctx, openPause)
		case <-look.C:
			if redriving.over() || !r.redriven(ctx, sub) {
				continue
			}
			log.Info("the dead letters have been delivered again, or are dead letters anew", "redrive", redrive)
			redriven = redrive
			redriving.stop()
			look.Stop()
		}
	}
}

// redriven tells whether all replicas together have come to the end of a redrive.
func (r *runner) redriven(ctx context.Context, sub *event.Subscription) bool {
	left, err := r.m.parts.Left(ctx, sub.RedriveGroup(), sub.Redrive.Until)
	return err == nil && left == 0
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// show lets others find the worker.
func (r *runner) show(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.worker = w
}

// keyOf is what a worker must be made anew for when it changes.
func keyOf(sub *event.Subscription) string {
	return sub.Group() + " " + string(sub.Ordering)
}

// job is something that runs beside a runner.
type job struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when it has ended; nil: it has been stopped, or never begun
}

func (j *job) begin(ctx context.Context, do func(context.Context)) {
	ctx, j.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	j.done = done
	go func() {
		defer close(done)
		do(ctx)
	}()
}

// over tells whether it does not run.
func (j *job) over() bool {
	select {
	case <-j.done:
		return true
	default:
		return j.done == nil
	}
}

// stop waits until it has ended.
func (j *job) stop() {
	if j.done != nil {
		j.cancel()
		<-j.done
		j.done = nil
	}
}
