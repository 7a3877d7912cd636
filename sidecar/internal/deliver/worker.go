package deliver

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
)

const (
	// Polls bring at most so many records.
	pollRecords = 1000
	// A commit follows what it covers by this much, so that it covers more.
	commitInterval = 200 * time.Millisecond
	// commitTimeout bounds one commit.
	commitTimeout = 5 * time.Second
	// A partition that goes lets its attempts end for so long, then breaks them off.
	revokeGrace = 5 * time.Second
	// What was broken off is waited for so long.
	cancelGrace = 2 * time.Second
	// A letter waits at most this long for Kafka; then it is tried again.
	letterTimeout = 30 * time.Second
	// Dead letters that are written at once.
	maxWriting = 64
	// A source that failed is opened anew after this.
	openPause = 5 * time.Second
	// Of each subscription so many attempts are remembered.
	keptAttempts = 20
	// Whether others hold less memory is looked for this often.
	crowdInterval = time.Second
	// A goroutine that has made an attempt waits for the next one for so long: a new one would have
	// to grow its stack first. Idle subscriptions have none.
	attemptIdle = time.Second
)

// Sender makes one attempt. It returns a verdict whatever happens, and soon when ctx ends.
type Sender interface {
	Send(ctx context.Context, sub *event.Subscription, a event.Attempt) event.Outcome
}

// DeadLetters keeps what was given up. A nil error means that every in-sync replica has the letter.
type DeadLetters interface {
	Write(ctx context.Context, l event.DeadLetter) error
}

// Filter tells whether a record is wanted; missing is a no for want of something that it asks for.
type Filter interface {
	Match(ctx context.Context, r *event.Record) (match, missing bool, err error)
}

// Source is a member of a consumer group, whose callbacks are those of SourceOptions.
type Source interface {
	// Poll waits for records until ctx ends. Those of a partition come in the order of their offsets.
	Poll(ctx context.Context, maxRecords int) ([]event.Record, error)
	Pause(tps []event.TopicPartition)
	Resume(tps []event.TopicPartition)
	Commit(ctx context.Context, commits map[event.TopicPartition]event.Commit) error
	// Close leaves the group, after Revoked for what is assigned.
	Close(ctx context.Context)
}

// SourceOptions say what a Source reads and whom it tells. Callbacks come one at a time, and not
// while records are between a Poll and the next one.
type SourceOptions struct {
	Group    string
	Topics   []string
	Assigned func(map[event.TopicPartition]event.Commit)
	Revoked  func([]event.TopicPartition) // they go when it returns
	Lost     func([]event.TopicPartition) // they have gone
	Expired  func(tp event.TopicPartition, from, to int64)
}

// worker delivers one generation of a subscription on this replica, and its dead letters while they
// are redriven: it moves what an Engine decides. Everything of the engine happens in its loop.
type worker struct {
	parts   Parts
	log     *slog.Logger
	metrics *subscriptionMetrics
	life    context.Context // of attempts
	end     context.CancelFunc
	feeds   sync.WaitGroup
	trying  sync.WaitGroup // goroutines that make attempts

	calls   chan func()
	records chan batch
	starts  chan start
	results chan func()
	ended   chan struct{} // closed when the loop has ended

	// Of the loop alone:
	engine   *Engine
	sub      *event.Subscription
	filter   Filter
	broken   error // why nothing is sent: the filter cannot be compiled
	owned    map[event.TopicPartition]*ownership
	total    int // partitions of all that is read, on all replicas
	flying   int // attempts, letters and commits
	writing  int
	commits  int // that are being made
	resting  int // partitions that are paused
	changed  bool
	attempts []event.AttemptRecord // a ring
	oldest   int                   // where the next attempt goes, once the ring is full
	state    event.DeliveryState

	committing chan struct{} // has one during a commit: the last one of a partition is to be the last
}

// ownership is a partition that this replica has.
type ownership struct {
	feed   *feed
	ctx    context.Context // ends to break its attempts off
	cancel context.CancelFunc
	since  int64 // its feed's turn when it came
	paused bool
}

// start is an attempt that is to be made.
type start struct {
	d       *Delivery
	attempt event.Attempt
	first   bool
	sub     *event.Subscription
	filter  Filter
	ctx     context.Context // of the partition
}

// batch is what one poll brought.
type batch struct {
	feed    *feed
	records []event.Record
	turn    int64 // of the feed when they came
}

func newWorker(parts Parts, sub *event.Subscription, metrics *subscriptionMetrics) *worker {
	w := &worker{
		parts: parts, metrics: metrics, log: parts.Log.With("subscription", sub.Name),
		calls: make(chan func()), records: make(chan batch), starts: make(chan start), results: make(chan func(), 64), ended: make(chan struct{}),
		owned: make(map[event.TopicPartition]*ownership), committing: make(chan struct{}, 1),
	}
	w.life, w.end = context.WithCancel(context.Background())
	w.engine = New(optionsOf(sub, parts.Window), rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))) //nolint:gosec // it spreads retries
	w.use(sub)
	return w
}

func optionsOf(sub *event.Subscription, window Window) Options {
	return Options{Window: window, Ordering: sub.Ordering, Retry: sub.Retry, DeadLetterFor: sub.DeadLetterTopic, Subscription: sub.Name}
}

// run delivers until ctx ends; then it gives its partitions back.
func (w *worker) run(ctx context.Context) error {
	defer w.end()
	closed := make(chan struct{})
	var err error
	own := &feed{w: w, group: w.sub.Group(), topics: w.sub.Topics} // before the loop may have another sub
	var reading sync.WaitGroup
	reading.Go(func() {
		if err = w.read(ctx, own); err == nil {
			w.feeds.Wait()
		}
		close(closed)
	})
	w.loop(closed)
	close(w.starts)
	w.trying.Wait()
	reading.Wait()
	return err
}

// loop runs until nothing is read any more and everything has come back.
func (w *worker) loop(closed <-chan struct{}) {
	defer close(w.ended)
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	var commit <-chan time.Time
	for {
		select {
		case f := <-w.calls:
			f()
		case f := <-w.results:
			f()
			for range len(w.results) { // those that have come together
				(<-w.results)()
			}
		case b := <-w.records:
			b.feed.offer(b)
			w.flow()
		case <-wake.C:
		case <-commit:
			commit = nil
			w.commit()
		case <-closed:
			closed = nil
			for tp := range w.owned { // a source that could not be closed in time has said nothing
				w.drop(tp)
			}
			w.end()
		}
		if closed == nil && w.flying == 0 {
			return
		}
		w.pump()
		if w.resting > 0 { // only what is offered fills a window
			w.flow()
		}
		if w.changed && commit == nil && w.commits == 0 { // one at a time: while Kafka is slow they would pile up
			w.changed = false
			commit = time.After(commitInterval)
		}
		at := w.engine.Wake(time.Now())
		if w.resting > 0 && w.engine.Crowded() {
			if look := time.Now().Add(crowdInterval); at.IsZero() || look.Before(at) {
				at = look
			}
		}
		if !at.IsZero() {
			wake.Reset(max(0, time.Until(at)))
		} else {
			wake.Stop()
		}
	}
}

// do runs f in the loop and waits for it. It is false when the loop has ended.
func (w *worker) do(f func()) bool {
	done := make(chan struct{})
	select {
	case w.calls <- func() { f(); close(done) }:
		<-done
		return true
	case <-w.ended:
		return false
	}
}

// pump starts attempts and dead letters.
func (w *worker) pump() {
	now := time.Now()
	for {
		d, ok := w.engine.Next(now)
		if !ok {
			break
		}
		w.flying++
		w.metrics.inFlight.Inc()
		s := start{d, d.Attempt(), d.Unstarted(), w.sub, w.filter, w.owned[d.Place()].ctx}
		select {
		case w.starts <- s:
		default:
			w.trying.Go(func() { w.try(s) })
		}
	}
	for w.writing < maxWriting {
		d, ok := w.engine.NextLetter(now)
		if !ok {
			break
		}
		w.flying++
		w.writing++
		go w.write(d, w.engine.Letter(d), w.owned[d.Place()].ctx)
	}
	w.setState()
}

// try makes one attempt after the other, outside the loop, until it has nothing to do for a while.
func (w *worker) try(s start) {
	idle := time.NewTimer(attemptIdle)
	defer idle.Stop()
	for ok := true; ok; {
		w.attempt(s)
		idle.Reset(attemptIdle)
		select {
		case s, ok = <-w.starts:
		case <-idle.C:
			return
		}
	}
}

// attempt filters and sends one record.
func (w *worker) attempt(s start) {
	d, a, ctx := s.d, s.attempt, s.ctx
	back := func(what func(now time.Time)) {
		w.results <- func() {
			w.flying--
			w.metrics.inFlight.Dec()
			w.changed = true
			what(time.Now())
		}
	}
	if s.filter != nil && s.first {
		match, missing, err := s.filter.Match(ctx, asRead(a))
		switch {
		case ctx.Err() != nil && err != nil:
			back(func(time.Time) { w.engine.Cancel(d) })
			return
		case err != nil:
			back(func(now time.Time) { w.engine.Unfiltered(d, err.Error(), now) })
			return
		case !match:
			w.metrics.filterOut(missing)
			back(func(now time.Time) { w.engine.Unwanted(d, now) })
			return
		}
	}
	out := w.parts.Send.Send(ctx, s.sub, a)
	if ctx.Err() != nil && out.Verdict != event.Delivered {
		back(func(time.Time) { w.engine.Cancel(d) })
		return
	}
	w.metrics.attempt(a, out)
	if out.Verdict != event.Delivered {
		log := w.log
		if out.Trace != "" {
			log = log.With("trace_id", out.Trace)
		}
		log.Warn("attempt failed", "topic", a.Origin.Topic, "partition", a.Origin.Partition, "offset", a.Origin.Offset, "attempt", a.Number,
			"verdict", string(out.Verdict), "status", out.Status, "duration_ms", out.Duration.Milliseconds(), "error", out.Err)
	}
	back(func(now time.Time) {
		w.remember(a, out)
		if out.Verdict == event.Withdrawn && s.sub.URL != w.sub.URL { // what another endpoint wants
			w.engine.Cancel(d)
			return
		}
		w.engine.Done(d, out, now)
		if out.Verdict == event.Withdrawn {
			w.parts.Withdrawn(w.sub.Name, w.sub.Generation, w.sub.URL)
		}
	})
}

// asRead is the record of an attempt as it was first read: what a filter asks for is not of the dead
// letter that it may have become since.
func asRead(a event.Attempt) *event.Record {
	if a.Origin.TopicPartition == (event.TopicPartition{Topic: a.Record.Topic, Partition: a.Record.Partition}) && a.Origin.Offset == a.Record.Offset {
		return a.Record
	}
	r := *a.Record
	r.Topic, r.Partition, r.Offset, r.Timestamp = a.Origin.Topic, a.Origin.Partition, a.Origin.Offset, a.Origin.Timestamp
	return &r
}

func (w *worker) remember(a event.Attempt, out event.Outcome) {
	r := event.AttemptRecord{TopicPartition: a.Origin.TopicPartition, Offset: a.Origin.Offset, Number: a.Number, Started: a.Started, Outcome: out}
	if len(w.attempts) < keptAttempts {
		w.attempts = append(w.attempts, r)
		return
	}
	w.attempts[w.oldest] = r
	w.oldest = (w.oldest + 1) % keptAttempts
}

// newest gives the attempts that are remembered, the newest first.
func (w *worker) newest() []event.AttemptRecord {
	all := slices.Concat(w.attempts[w.oldest:], w.attempts[:w.oldest])
	slices.Reverse(all)
	return all
}

// write keeps one dead letter, outside the loop.
func (w *worker) write(d *Delivery, l event.DeadLetter, ctx context.Context) { //nolint:revive // the context is the partition's, not a call's
	bounded, cancel := context.WithTimeout(ctx, letterTimeout)
	defer cancel()
	err := w.parts.Letters.Write(bounded, l)
	if err == nil {
		w.metrics.letter(l.Reason)
	}
	w.log.Warn("dead letter", "topic", l.Origin.Topic, "partition", l.Origin.Partition, "offset", l.Origin.Offset, "to", l.Topic,
		"reason", string(l.Reason), "attempts", l.Attempts, "status", l.Last.Status, "last_error", l.Last.Err, "error", err)
	w.results <- func() {
		w.flying--
		w.writing--
		w.changed = true
		w.engine.LetterDone(d, err, time.Now())
	}
}

// flow pauses the partitions whose windows are full and resumes those that have room again.
func (w *worker) flow() {
	for tp, o := range w.owned {
		full := w.engine.Resting(tp)
		switch {
		case full == o.paused:
			continue
		case full:
			w.resting++
			o.feed.source.Pause([]event.TopicPartition{tp})
		default:
			w.resting--
			o.feed.source.Resume([]event.TopicPartition{tp})
		}
		o.paused = full
	}
}

// commit stores what has changed, beside the loop.
func (w *worker) commit() {
	byFeed := make(map[*feed][]event.TopicPartition)
	for _, tp := range w.engine.Assigned() {
		f := w.owned[tp].feed
		byFeed[f] = append(byFeed[f], tp)
	}
	for f, tps := range byFeed {
		commits := w.progress(tps)
		if len(commits) == 0 {
			continue
		}
		w.flying++
		w.commits++
		go func() {
			err := f.commit(commits)
			w.results <- func() {
				w.flying--
				w.commits--
				if err != nil {
					w.uncommitted(commits)
				}
			}
		}()
	}
}

// progress takes what is to be committed; when that fails, uncommitted is to be called.
func (w *worker) progress(tps []event.TopicPartition) map[event.TopicPartition]event.Commit {
	commits := make(map[event.TopicPartition]event.Commit)
	for _, tp := range tps {
		if c, changed := w.engine.Progress(tp); changed {
			commits[tp] = c
			w.engine.Committed(tp)
		}
	}
	return commits
}

func (w *worker) uncommitted(commits map[event.TopicPartition]event.Commit) {
	for tp := range commits {
		w.engine.Uncommitted(tp)
	}
	w.changed = true
}

func (w *worker) drop(tp event.TopicPartition) {
	if o := w.owned[tp]; o != nil {
		o.cancel()
		if o.paused {
			w.resting--
		}
		delete(w.owned, tp)
		w.engine.Drop(tp)
	}
}

// share gives this replica its part of what the subscription may: by the partitions that it has.
func (w *worker) share() {
	part := 1.0
	if w.total > 0 && len(w.owned) > 0 {
		part = min(1, float64(len(w.owned))/float64(w.total))
	}
	w.engine.SetLimits(int(float64(w.sub.MaxInFlight)*part), w.sub.RateLimit*part)
}

// update has the subscription be delivered as it is now.
func (w *worker) update(sub *event.Subscription) { w.do(func() { w.use(sub) }) }

// use is called in the loop, or before it runs.
func (w *worker) use(sub *event.Subscription) {
	if w.sub == nil || w.sub.Filter != sub.Filter {
		w.filter, w.broken = nil, nil
		if sub.Filter != "" {
			if w.filter, w.broken = w.parts.Compile(sub.Filter); w.broken != nil {
				w.log.Error("nothing is delivered: the filter cannot be compiled any more", "error", w.broken)
			}
		}
	}
	w.sub = sub
	w.engine.SetOptions(optionsOf(sub, w.parts.Window))
	w.engine.SetPaused(sub.State != event.Active || w.broken != nil)
	w.share()
}

// setState says when the endpoint goes down or comes back.
func (w *worker) setState() {
	state := w.engine.State()
	if state == w.state {
		return
	}
	if w.state != "" {
		w.log.Info("the subscription has another state", "state", string(state), "before", string(w.state))
	}
	w.state = state
}
