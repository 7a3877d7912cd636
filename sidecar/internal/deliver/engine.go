// Package deliver brings the records of subscriptions to their endpoints: in order by key, until
// they are accepted, and sets aside what an endpoint refuses while it takes others. It knows
// neither Kafka nor HTTP: both are given to it.
package deliver

import (
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"

	"postamt/sidecar/internal/backoff"
	"postamt/sidecar/internal/event"
)

// Window bounds what is in progress of a partition: what lies between its lowest undecided record
// and the newest one that was fetched. When it is full the partition rests until half of it is free.
type Window struct {
	Records int64 // as offsets; at most event.MaxWindowRecords
	Bytes   int   // of keys, values and headers that are undecided
	Memory  *Memory
}

// Options are what an Engine goes by.
type Options struct {
	Window   Window
	Ordering event.Ordering
	Retry    event.Retry
	// DeadLetterFor tells where the dead letters of a source topic go.
	DeadLetterFor func(source string) string
	Subscription  string
}

// Engine decides, for one subscription on one replica, which attempt is made next, what came of
// each record, and what may be committed. It does no I/O, starts no goroutine and reads no clock:
// it is told what happens, and when. It is not safe for concurrent use.
type Engine struct {
	opts    Options
	backoff backoff.Policy
	rnd     *rand.Rand

	partitions map[event.TopicPartition]*partition
	fresh      queue // first in their lanes, never attempted here
	again      queue // first in their lanes, to be attempted again
	preferred  bool  // whether the next to start is one of again
	resting    restHeap
	letters    queue // to be written
	alone      *Delivery
	inFlight   int
	seq        uint64 // of starts and ends of attempts

	maxInFlight int
	limiter     *rate.Limiter // nil: no limit
	paused      bool
	circuit     circuit
	blame       blame
	accepted    time.Time // when a record was last accepted
	trying      time.Time // since when attempts may be made; zero: they may not, or none has been asked for
}

// New makes an Engine without partitions that may have one attempt in flight.
func New(opts Options, rnd *rand.Rand) *Engine {
	e := &Engine{
		opts: opts, rnd: rnd, partitions: make(map[event.TopicPartition]*partition),
		backoff: backoff.Policy{Initial: opts.Retry.Initial, Max: opts.Retry.Max},
	}
	e.SetLimits(1, 0)
	return e
}

// SetLimits says how many attempts may be in flight and how many may start in a second; 0 is as
// many as there are.
func (e *Engine) SetLimits(maxInFlight int, perSecond float64) {
	e.maxInFlight = max(1, maxInFlight)
	switch limit := rate.Limit(perSecond); {
	case limit <= 0:
		e.limiter = nil
	case e.limiter == nil || e.limiter.Limit() != limit:
		e.limiter = rate.NewLimiter(limit, max(1, int(perSecond/10))) // bursts are a tenth of a second's
	}
}

// SetOptions changes what is gone by from now on. The ordering holds for records that are offered
// later.
func (e *Engine) SetOptions(opts Options) {
	e.opts = opts
	e.backoff = backoff.Policy{Initial: opts.Retry.Initial, Max: opts.Retry.Max}
}

// SetPaused makes nothing start, or go on. What is in flight ends as it does.
func (e *Engine) SetPaused(paused bool) {
	e.paused = paused
	if paused {
		e.trying = time.Time{}
	}
}

// Assign begins with a partition at what its group has committed. Without a commit it begins with
// the first record that is offered.
func (e *Engine) Assign(tp event.TopicPartition, committed event.Commit, now time.Time) {
	p := newPartition(tp, committed, e.opts.Window)
	e.partitions[tp] = p
	if at := p.prior.accepted; at.After(e.accepted) && !at.After(now) {
		e.accepted = at
	}
}

// Offer gives records that were read, of each partition in the order of their offsets. Those of
// partitions that are not this engine's, or are sealed, are left out: their next owner reads them.
func (e *Engine) Offer(records []event.Record) {
	for i := range records {
		e.OfferOne(records[i], event.OriginOf(&records[i]), 0)
	}
}

// OfferOne gives one record. earlier is how many attempts have been made for it before it came
// here, as a dead letter tells.
func (e *Engine) OfferOne(r event.Record, origin event.Origin, earlier int) {
	p := e.partitions[event.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
	if p == nil || p.sealed {
		return
	}
	d := p.add(r, origin, earlier)
	if d == nil {
		return
	}
	if d.Record.Offset >= p.end() {
		p.parked = append(p.parked, d)
		return
	}
	e.enqueue(d)
}

// PassOver gives a record that is decided as it is: it is not this engine's to deliver.
func (e *Engine) PassOver(tp event.TopicPartition, offset int64) {
	if p := e.partitions[tp]; p != nil && !p.sealed {
		p.passOver(offset)
		e.release(p)
	}
}

// enqueue puts a record into its lane, and starts the lane if it is the first in it.
func (e *Engine) enqueue(d *Delivery) {
	if d.state != parked {
		return
	}
	d.state = waiting
	switch {
	case e.opts.Ordering == event.OrderByPartition:
		d.lane = d.partition.whole()
	case e.opts.Ordering == event.OrderByKey && d.Record.Key != nil:
		d.lane = d.partition.laneOf(d.Record.Key)
	}
	if d.lane == nil || d.lane.join(d) {
		e.ready(d)
	}
}

// ready makes the first of a lane one that may start.
func (e *Engine) ready(d *Delivery) {
	d.state = ready
	if d.failures > 0 || d.attempts > d.earlier {
		e.again.push(d)
	} else {
		e.fresh.push(d)
	}
}

// Next gives the delivery whose next attempt is to be made now, if there is one. Done, Cancel or
// Unwanted must be called for it.
func (e *Engine) Next(now time.Time) (*Delivery, bool) {
	e.wake(now)
	if e.trying.IsZero() && !e.paused {
		e.trying = now
	}
	if !e.mayStart(now) {
		return nil, false
	}
	limiter := e.limiter
	if limiter != nil && !limiter.AllowN(now, 1) {
		return nil, false
	}
	d := e.pick()
	if d != nil && d.byItself && e.inFlight > 0 { // it goes when the others have ended
		e.alone, d = d, nil
	}
	if d == nil {
		giveBack(limiter, now)
		return nil, false
	}
	if d.byItself {
		e.alone = d
	}
	e.seq++
	d.state, d.started, d.pending = inFlight, e.seq, 0
	d.limiter = limiter
	d.attempts++
	if d.first.IsZero() {
		d.first = now
	}
	d.startedAt = now
	e.inFlight++
	d.partition.inFlight++
	return d, true
}

// giveBack lets another attempt start instead. A Reservation could not be canceled for it: the time
// that it was for has passed.
func giveBack(limiter *rate.Limiter, now time.Time) {
	if limiter != nil {
		limiter.AllowN(now, -1)
	}
}

func (e *Engine) mayStart(now time.Time) bool {
	switch {
	case e.paused:
		return false
	case e.alone != nil && e.alone.state == inFlight:
		return false
	case e.circuit.down || e.alone != nil:
		return e.inFlight == 0 && (!e.circuit.down || !now.Before(e.circuit.probeAt))
	}
	return e.inFlight < min(e.maxInFlight, e.circuit.limit(e.maxInFlight))
}

// pick takes what is to start next. Those that are tried again and those that are not take turns:
// so a row of records that are refused, one after the other, does not look like an endpoint that
// is down, as long as there are others.
func (e *Engine) pick() *Delivery {
	if d := e.alone; d != nil {
		e.alone = nil
		if d.state == ready && !d.partition.sealed {
			return d
		}
	}
	first, second := &e.fresh, &e.again
	if e.preferred {
		first, second = second, first
	}
	for _, q := range []*queue{first, second} {
		if d := q.pop(ready); d != nil {
			e.preferred = q == &e.fresh
			return d
		}
	}
	return nil
}

// wake moves on what has rested for long enough.
func (e *Engine) wake(now time.Time) {
	for {
		d := e.resting.due(now)
		switch {
		case d == nil:
			return
		case d.state == resting:
			e.ready(d)
		case d.state == letterResting:
			d.state = lettering
			e.letters.push(d)
		}
	}
}

// Wake tells when Next or NextLetter may have something that they have not now, if nothing else
// happens; zero is never.
func (e *Engine) Wake(now time.Time) time.Time {
	at := e.resting.next()
	soonest := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	startable := !e.paused && (e.fresh.some(ready) || e.again.some(ready) || e.alone != nil)
	switch {
	case startable && e.circuit.down && e.inFlight == 0 && now.Before(e.circuit.probeAt):
		soonest(e.circuit.probeAt)
	case startable && e.mayStart(now) && e.limiter == nil:
		soonest(now)
	case startable && e.mayStart(now):
		r := e.limiter.ReserveN(now, 1)
		soonest(now.Add(r.DelayFrom(now)))
		r.CancelAt(now)
	}
	return at
}

// Done says what came of an attempt.
func (e *Engine) Done(d *Delivery, out event.Outcome, now time.Time) {
	e.end(d)
	d.last, d.lastAt = out, now
	d.last.Body = "" // of up to 4 KiB, for as long as the record fails
	switch out.Verdict {
	case event.Delivered:
		e.accept(d, now)
	case event.Withdrawn: // the record stays, for when the endpoint wants records again
		e.SetPaused(true)
		d.partition.dirty = true
		e.back(d)
	default:
		e.fail(d, now)
	}
}

// Cancel says that an attempt was broken off by us: nothing is known of it.
func (e *Engine) Cancel(d *Delivery) {
	e.end(d)
	e.back(d)
}

// Unwanted says that a record was not sent: the subscription's filter does not want it.
func (e *Engine) Unwanted(d *Delivery, now time.Time) {
	e.end(d)
	giveBack(d.limiter, now)
	e.decide(d)
}

// Unfiltered says that a record was not sent: its filter could not be evaluated, and why.
func (e *Engine) Unfiltered(d *Delivery, why string, now time.Time) {
	e.end(d)
	giveBack(d.limiter, now)
	d.attempts--
	if d.attempts == 0 {
		d.first = time.Time{}
	}
	d.last = event.Outcome{Err: why}
	e.letter(d, event.ReasonFilter)
}

func (e *Engine) end(d *Delivery) {
	e.seq++
	e.inFlight--
	d.partition.inFlight--
	d.state = ended
	if e.alone == d {
		e.alone = nil
	}
}

// back puts a delivery where it can start at once.
func (e *Engine) back(d *Delivery) {
	switch {
	case d.partition.dropped:
	case d.skipped:
		e.letter(d, event.ReasonSkipped)
	default:
		e.ready(d)
	}
}

func (e *Engine) accept(d *Delivery, now time.Time) {
	e.accepted = now
	e.blame.count(d, true)
	if e.circuit.succeed() {
		e.recovered(now)
	}
	e.decide(d)
	for _, other := range e.blame.proven(d.started) {
		e.book(other)
	}
}

// recovered makes what failed in an outage start anew, at once: what the endpoint said of a record
// meanwhile it would have said of any.
func (e *Engine) recovered(now time.Time) {
	for _, d := range e.resting.list {
		if d.state == resting && d.booked == 0 {
			d.failures, d.until = min(d.failures, 1), now // it has been tried: it is one of again
		}
	}
	e.resting.reorder()
}

func (e *Engine) fail(d *Delivery, now time.Time) {
	d.failures++
	d.partition.dirty = true
	e.blame.count(d, false)
	e.blame.saw(d, e.seq)
	wait := max(e.backoff.Delay(max(d.failures, d.booked), e.rnd), min(d.last.RetryAfter, e.opts.Retry.Max))
	e.circuit.fail(d, e.seq, now, func(n int) time.Duration {
		return max(e.backoff.Delay(n, e.rnd), min(d.last.RetryAfter, e.opts.Retry.Max))
	})
	if d.partition.dropped {
		return
	}
	if d.skipped {
		e.letter(d, event.ReasonSkipped)
		return
	}
	e.blame.suspect(d, e.seq)
	if e.givesUp(d, now) {
		e.letter(d, event.ReasonGaveUp)
		return
	}
	d.state = resting
	e.resting.add(d, now.Add(wait))
	if e.blame.alreadyGuilty(d) {
		e.book(d)
	}
}

// triedAtLeast is how long attempts must have been made before anything is given up: the time before,
// in which it was paused, or nothing ran here, or a clock was wrong, tells little of the endpoint.
const triedAtLeast = time.Hour

// givesUp tells whether the endpoint has accepted nothing for so long that a record that it has
// judged is not kept for it any more.
func (e *Engine) givesUp(d *Delivery, now time.Time) bool {
	since := d.first
	if e.accepted.After(since) {
		since = e.accepted
	}
	judged := d.last.Verdict == event.Refused || d.last.Verdict == event.Failed
	after := e.opts.Retry.GiveUpAfter
	tried := !e.trying.IsZero() && now.Sub(e.trying) >= min(after, triedAtLeast)
	return judged && tried && after > 0 && now.Sub(since) >= after
}

// book counts a failure against the record: the endpoint has taken others since. The last failure
// that makes it a dead letter must be one of an attempt that was begun with that known, since an
// outage may have been all that was the matter before.
func (e *Engine) book(d *Delivery) {
	d.pending = 0
	d.booked++
	d.bookedAt = e.seq
	d.partition.dirty = true
	need, reason := max(2, e.opts.Retry.MaxAttempts), event.ReasonExhausted
	if d.last.Verdict == event.Refused {
		// Where others fail, too, it may be the endpoint all the same: one of its replicas, say.
		need, reason = min(need, 2+e.blame.others(d)), event.ReasonRefused
	}
	// A receiver that this record crashes takes others with it, and they it: once with nothing else
	// in flight.
	crashes := d.last.Verdict == event.Unreachable
	switch {
	case d.partition.dropped, d.booked < need-1:
	case d.booked >= need && d.lastChance && (d.byItself || !crashes):
		e.letter(d, reason)
	default:
		d.lastChance, d.byItself = true, d.byItself || crashes
		if d.state == resting {
			e.resting.remove(d)
			e.ready(d)
		}
	}
}

// letter gives a record up: it is decided when its dead letter has been written.
func (e *Engine) letter(d *Delivery, reason event.Reason) {
	if e.alone == d {
		e.alone = nil
	}
	e.resting.remove(d)
	d.pending = 0
	d.state, d.reason = lettering, reason
	e.letters.push(d)
}

// NextLetter gives a record whose dead letter is to be written now. LetterDone must be called for
// it.
func (e *Engine) NextLetter(now time.Time) (*Delivery, bool) {
	e.wake(now)
	d := e.letters.pop(lettering)
	if d == nil {
		return nil, false
	}
	d.state = writing
	d.partition.inFlight++
	return d, true
}

// Letter is what is to be written of a delivery that NextLetter gave.
func (e *Engine) Letter(d *Delivery) event.DeadLetter {
	return event.DeadLetter{
		Record: &d.Record, Origin: d.Origin, Topic: e.opts.DeadLetterFor(d.Origin.Topic), Subscription: e.opts.Subscription,
		Reason: d.reason, Last: d.last, Attempts: d.attempts, FirstAttempt: d.first, LastAttempt: d.lastAt,
	}
}

// LetterDone says whether a dead letter has been written. One that has not is tried again.
func (e *Engine) LetterDone(d *Delivery, err error, now time.Time) {
	d.partition.inFlight--
	switch {
	case d.partition.dropped:
	case err == nil:
		e.decide(d)
	default:
		d.state = letterResting
		d.letterErr = err
		d.letterTries++
		e.resting.add(d, now.Add(e.backoff.Delay(d.letterTries, e.rnd)))
	}
}

// decide ends a delivery: it may be committed, and the next one of its lane may start.
func (e *Engine) decide(d *Delivery) {
	d.state = decided
	d.pending = 0
	p := d.partition
	if p.dropped {
		return
	}
	if next := p.decide(d); next != nil {
		e.ready(next)
	}
	e.release(p)
}

// release lets start what had been too far ahead.
func (e *Engine) release(p *partition) {
	for len(p.parked) > 0 && p.parked[0].Record.Offset < p.end() {
		d := p.parked[0]
		p.parked[0] = nil
		p.parked = p.parked[1:]
		e.enqueue(d)
	}
}

// Seal makes nothing of a partition start any more, and nothing be offered.
func (e *Engine) Seal(tp event.TopicPartition) {
	if p := e.partitions[tp]; p != nil {
		p.sealed = true
	}
}

// Drop forgets a partition. Done may still be called for what is in flight of it.
func (e *Engine) Drop(tp event.TopicPartition) {
	p := e.partitions[tp]
	if p == nil {
		return
	}
	p.sealed, p.dropped = true, true
	if e.alone != nil && e.alone.partition == p && e.alone.state != inFlight {
		e.alone = nil
	}
	delete(e.partitions, tp)
	p.window.Memory.leave(p.held)
	// What waits of it would only be in the way, and keep its records in memory.
	e.fresh.drop(p)
	e.again.drop(p)
	e.letters.drop(p)
	e.resting.drop(p)
	e.blame.drop(p)
}

// InFlight counts the attempts and dead letters of a partition that are being made.
func (e *Engine) InFlight(tp event.TopicPartition) int {
	if p := e.partitions[tp]; p != nil {
		return p.inFlight
	}
	return 0
}

// Skip makes a record a dead letter by an operator's word. An attempt that is being made may still
// deliver it.
func (e *Engine) Skip(tp event.TopicPartition, offset int64) error {
	const op = "skip"
	p := e.partitions[tp]
	if p == nil {
		return event.Errorf(event.NotFound, 0, op, "partition %d of topic %q is not read by this replica", tp.Partition, tp.Topic)
	}
	d := p.find(offset)
	switch {
	case d == nil && offset < p.next:
		return event.Errorf(event.Conflict, 0, op, "the record at offset %d is decided already; GET of the subscription shows the record that holds each partition up", offset)
	case d == nil, d.state == parked:
		return event.Errorf(event.Conflict, 0, op, "the record at offset %d is not being worked on yet; only those up to %d are", offset, min(p.next, p.end())-1)
	}
	switch d.state {
	case inFlight:
		d.skipped = true
	case waiting, ready, resting:
		e.letter(d, event.ReasonSkipped)
	}
	return nil
}
