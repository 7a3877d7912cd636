package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// ProducerOptions configure a Producer.
type ProducerOptions struct {
	Servers []string
	// Linger is how long records wait for others while many requests are in flight, best in whole
	// milliseconds, and as long as Kafka takes to answer (see sticky).
	Linger time.Duration
	// Timeout is how long a record may wait for its acknowledgement before it is given up.
	Timeout time.Duration
	// MaxQueuedBytes bounds what each of the two handles keeps for Kafka, also for callers that
	// have gone.
	MaxQueuedBytes int64
	// MaxRecordBytes is the largest record that is handed to Kafka at all: the topic's
	// max.message.bytes, which Kafka checks, is lower.
	MaxRecordBytes int64
	// Silence is how long librdkafka may report no statistics before it is taken to stand still;
	// zero is 45 s.
	Silence time.Duration
}

// busyRequests is how many requests may be in flight before records are made to wait for
// one another. Up to here every record leaves at once, which spares a lone client the
// linger; above, batches spare Kafka a request for every record.
const busyRequests = 2

// calm is how long no more than busyRequests must have been in flight before records leave at
// once again. Under load all requests of a batch are answered together: for a moment hardly
// any is in flight, and the first that come would go alone.
const calm = 100 * time.Millisecond

// patienceStep is how much longer than until its deadline a request may wait: all who wait look at
// the clock together, as a timer for each would cost more than the rest of the wait.
const patienceStep = 100 * time.Millisecond

// Producer writes records with librdkafka: idempotent, acknowledged by every in-sync
// replica. It has two handles, one that sends at once and one that lingers; a request stays
// with the one that it began with, so that its records keep their order. A handle that
// fails for good, or stands still, is made anew. It is safe for concurrent use.
type Producer struct {
	opts    ProducerOptions
	log     *slog.Logger
	metrics *producerMetrics

	requests atomic.Int64 // in flight
	busy     atomic.Int64 // when more than busyRequests were last in flight, as Unix nanoseconds
	quick    atomic.Pointer[handle]
	batching atomic.Pointer[handle]

	tick atomic.Pointer[chan struct{}] // closed, and replaced, every patienceStep

	mu      sync.Mutex // held to replace a handle
	closing chan struct{}
	workers sync.WaitGroup
}

// handle is one librdkafka producer and the goroutines that read its events.
type handle struct {
	name    string
	linger  time.Duration
	p       *ckafka.Producer
	failed  atomic.Bool   // for good: another one takes its place
	gone    chan struct{} // closed once what was held is given, or lost: no more reports are to be waited for
	workers sync.WaitGroup

	using  sync.RWMutex // read-held to hand over records, held to close: p must outlive its users
	closed bool
}

// errClosed is of a handle that was replaced between being picked and being used.
var errClosed = event.Errorf(event.Unavailable, codeUnavailable, "kafka.Produce", "the producer has just been made anew; repeat the request")

// use calls f with the producer, unless it has been closed.
func (h *handle) use(f func(*ckafka.Producer)) bool {
	h.using.RLock()
	defer h.using.RUnlock()
	if !h.closed {
		f(h.p)
	}
	return !h.closed
}

// close waits for those who hand over records, gives what is held until ctx ends, and frees the
// producer. Nothing was held back by it before: librdkafka takes records without waiting.
func (h *handle) close(ctx context.Context) {
	if h.end() {
		h.flush(ctx)
		h.free()
	}
}

// drop is close for a handle in whose place there is another one: what Kafka does not acknowledge
// soon is reported as failed.
func (h *handle) drop() {
	const soon, reported = time.Second, 30 * time.Second
	if !h.end() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	h.flush(ctx)
	_ = h.p.Purge(ckafka.PurgeInFlight | ckafka.PurgeQueue)
	ctx, cancel = context.WithTimeout(context.Background(), reported)
	defer cancel()
	h.flush(ctx)
	h.free()
}

// end has no more records handed over. It is false where another one has ended the handle, and waits
// for that one to have given what is held.
func (h *handle) end() bool {
	h.using.Lock()
	before := h.closed
	h.closed = true
	h.using.Unlock()
	if before {
		<-h.gone
	}
	return !before
}

// flush hands out reports until there are none to come, or ctx ends.
func (h *handle) flush(ctx context.Context) {
	for h.p.Flush(100) > 0 && ctx.Err() == nil {
		continue
	}
}

// free takes hours where librdkafka stands still, as does the library around it.
func (h *handle) free() {
	close(h.gone)
	h.p.Close()
	h.workers.Wait()
}

// NewProducer connects in the background: Kafka need not be there yet.
func NewProducer(opts ProducerOptions, log *slog.Logger, reg prometheus.Registerer) (*Producer, error) {
	p := &Producer{opts: opts, log: log, metrics: newProducerMetrics(reg), closing: make(chan struct{})}
	p.tick.Store(new(make(chan struct{})))
	p.workers.Go(p.keepTime)
	for name, linger := range map[string]time.Duration{"quick": 0, "batching": opts.Linger} {
		h, err := p.open(name, linger)
		if err != nil {
			p.Close(context.Background())
			return nil, err
		}
		p.slot(name).Store(h)
	}
	return p, nil
}

func (p *Producer) slot(name string) *atomic.Pointer[handle] {
	if name == "quick" {
		return &p.quick
	}
	return &p.batching
}

func (p *Producer) open(name string, linger time.Duration) (*handle, error) {
	client, err := ckafka.NewProducer(&ckafka.ConfigMap{
		"bootstrap.servers":             strings.Join(p.opts.Servers, ","),
		"client.id":                     "postamt-" + name,
		"enable.idempotence":            true,             // implies acks=all, and retries that keep the order
		"partitioner":                   "murmur2_random", // keys land where Java clients put them
		"linger.ms":                     strconv.FormatFloat(linger.Seconds()*1000, 'f', -1, 64),
		"sticky.partitioning.linger.ms": int(sticky(linger).Milliseconds()),
		"message.timeout.ms":            int(p.opts.Timeout.Milliseconds()),
		// One record may be this large; a batch of several stays below the default of a topic's
		// max.message.bytes, 1,048,588. Kafka refuses a batch as a whole, and librdkafka does not
		// split one: a topic must not allow less than that (bootstrap sees to it).
		"message.max.bytes":            int(p.opts.MaxRecordBytes),
		"batch.size":                   1_000_000,
		"queue.buffering.max.messages": 10_000_000, // the bytes are what counts
		"queue.buffering.max.kbytes":   int(p.opts.MaxQueuedBytes >> 10),
		// A topic is handed over only after metadata showed it, so that a wait of
		// librdkafka's own for one that has just been made, or deleted, can be short.
		"topic.metadata.propagation.max.ms":  5000,
		"topic.metadata.refresh.interval.ms": 10_000, // new partitions
		"reconnect.backoff.max.ms":           1000,
		"socket.connection.setup.timeout.ms": 5000,
		"statistics.interval.ms":             int(statisticsInterval.Milliseconds()),
		"go.delivery.report.fields":          "none", // partition and offset come all the same
		// By default each handle makes room for a million of them, which the garbage collector
		// goes through again and again. Reports go to channels of their own, and nothing is sent
		// over the channel for records.
		"go.events.channel.size":  100,
		"go.produce.channel.size": 1,
		"go.logs.channel.enable":  true,
		"log.connection.close":    false,
	})
	if err != nil {
		return nil, fmt.Errorf("make the %s producer: %w", name, err)
	}
	h := &handle{name: name, linger: linger, p: client, gone: make(chan struct{})}
	h.workers.Go(func() { p.watch(h) })
	h.workers.Go(func() { p.forwardLogs(h) })
	return h, nil
}

// sticky is how long records without a key go to one partition before another is chosen: as long as
// a batch is collected, in whole milliseconds. By default it is twice as long, which costs a core: an
// idempotent producer gives Kafka no second batch for a partition before the first one, of five records
// or more, is acknowledged, and while records whose linger is over wait for that, librdkafka's thread
// does not sleep. 0 is a partition of its own for each record, which is for those that do not linger.
func sticky(linger time.Duration) time.Duration {
	return (linger + time.Millisecond - 1).Truncate(time.Millisecond)
}

// silentLooks is at how many looks in a row there must have been no statistics: a process that was
// stopped as a whole looks once when it goes on.
const silentLooks = 3

// errSilent is of a handle whose threads wait for a time of day that is hours away: librdkafka's
// waits end by the clock on the wall (confluentinc/librdkafka#2145), which has been set back. What
// it does from time to time it does not do then, as to connect to a Kafka that has been away.
var errSilent = errors.New("librdkafka stands still; has the clock been set back?")

// watch reads a handle's events until its Close closes the channel.
func (p *Producer) watch(h *handle) {
	look := time.NewTicker(cmp.Or(p.opts.Silence, silentLooks*statisticsInterval) / silentLooks)
	defer look.Stop()
	silent := 0
	for {
		select {
		case ev, ok := <-h.p.Events():
			if !ok {
				return
			}
			switch ev := ev.(type) {
			case *ckafka.Stats:
				silent = 0
				p.metrics.observe(h.name, ev.String())
			case ckafka.Error:
				if ev.IsFatal() {
					p.replace(h, ev)
				}
			}
		case <-look.C:
			if silent++; silent >= silentLooks {
				p.replace(h, errSilent)
			}
		}
	}
}

// forwardLogs writes librdkafka's log lines into ours until Close closes the channel. They
// are the library's words about single connections: what matters of them shows in /health.
func (p *Producer) forwardLogs(h *handle) {
	for line := range h.p.Logs() {
		p.log.Debug("librdkafka", "client", h.name, "facility", line.Tag, "text", line.Message)
	}
}

// replace makes a new handle for one that stands still or failed for good, as an idempotent
// producer does when Kafka has lost its sequence. What the old one holds then drop sees to.
func (p *Producer) replace(h *handle, cause error) {
	if !h.failed.CompareAndSwap(false, true) {
		return
	}
	p.workers.Go(func() {
		p.log.Error("the producer is made anew", "client", h.name, "error", cause)
		p.metrics.remakes.Inc()
		for !p.swap(h) {
			select {
			case <-p.closing:
				return
			case <-time.After(time.Second):
			}
		}
		if p.slot(h.name).Load() != h { // else Close has it
			go h.drop() // nobody waits for one that stands still
		}
	})
}

// swap puts a new handle in the place of an old one. It is false when that must be tried
// again: the same settings made the old one, so that memory or file handles are short.
func (p *Producer) swap(old *handle) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closing:
		return true // Close has the old handle
	default:
	}
	next, err := p.open(old.name, old.linger)
	if err != nil {
		p.log.Error("make the producer anew", "client", old.name, "error", err)
		return false
	}
	p.slot(old.name).Store(next)
	return true
}

// Check fails while a handle is being made anew.
func (p *Producer) Check(context.Context) error {
	for _, h := range []*handle{p.quick.Load(), p.batching.Load()} {
		if h.failed.Load() {
			return errors.New("the producer is being made anew")
		}
	}
	return nil
}

// pick counts a request in, and gives the handle for it. Which one it is follows the load of
// all clients: one that waits for each answer before it goes on keeps its order over both.
func (p *Producer) pick(now time.Time) *handle {
	if p.requests.Add(1) > busyRequests {
		p.busy.Store(now.UnixNano())
		return p.batching.Load()
	}
	if now.UnixNano()-p.busy.Load() < int64(calm) {
		return p.batching.Load()
	}
	return p.quick.Load()
}

// keepTime lets those who wait look at the clock, until Close.
func (p *Producer) keepTime() {
	ticker := time.NewTicker(patienceStep)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-p.closing:
			return
		}
		if p.requests.Load() > 0 {
			close(*p.tick.Swap(new(make(chan struct{}))))
		}
	}
}

// single keeps the channels of requests with one record, all of whose reports have come.
var single = sync.Pool{New: func() any { return make(chan ckafka.Event, 1) }}

// Produce hands the records to Kafka in their order and returns, in the same order, what
// became of each. A place means that every in-sync replica has the record. An error of kind
// Unavailable says whether it may be stored all the same.
//
// When ctx ends before the last acknowledgement, or until comes, which is noticed up to
// patienceStep later, what is still open is reported as Unavailable; librdkafka goes on trying for
// the rest of its timeout. With a zero until only ctx ends it.
func (p *Producer) Produce(ctx context.Context, until time.Time, records []event.Record) []event.Result {
	start := time.Now()
	h := p.pick(start)
	defer p.requests.Add(-1)

	results := make([]event.Result, len(records))
	// The channel holds a report of each record, so that librdkafka's poller never waits
	// for us, even when this call has given up.
	var reports chan ckafka.Event
	if len(records) == 1 {
		reports = single.Get().(chan ckafka.Event) //nolint:forcetypeassert // nothing else is put there
	} else {
		reports = make(chan ckafka.Event, len(records))
	}
	open := 0
	alive := h.use(func(client *ckafka.Producer) {
		var m ckafka.Message
		for i := range records {
			r := &records[i]
			if r.Timestamp.IsZero() {
				r.Timestamp = start
			}
			r.Timestamp = r.Timestamp.Truncate(time.Millisecond)
			fill(&m, r)
			m.Opaque = &results[i]
			if err := client.Produce(&m, reports); err != nil {
				results[i].Err = p.failed(h, err, r.Timestamp)
				continue
			}
			results[i].Err = errOpen
			results[i].Place.Topic, results[i].Place.Timestamp = r.Topic, r.Timestamp
			open++
		}
	})
	if !alive {
		for i := range results {
			results[i].Err = errClosed
		}
	}
	open = p.await(ctx, until, h, reports, open)
	if open == 0 && len(records) == 1 {
		single.Put(reports)
	}
	if open > 0 {
		giveUp(results, cmp.Or(ctx.Err(), context.DeadlineExceeded))
	}
	p.metrics.done(records, results, time.Since(start))
	return results
}

// await takes the reports of open records, and tells how many have not come when the wait is over.
func (p *Producer) await(ctx context.Context, until time.Time, h *handle, reports <-chan ckafka.Event, open int) int {
	tick := *p.tick.Load()
	for open > 0 {
		select {
		case ev := <-reports:
			m := ev.(*ckafka.Message)
			result := m.Opaque.(*event.Result)
			if err := m.TopicPartition.Error; err != nil {
				*result = event.Result{Err: p.failed(h, err, result.Place.Timestamp)}
			} else {
				result.Place.Partition, result.Place.Offset = m.TopicPartition.Partition, int64(m.TopicPartition.Offset)
				result.Err = nil
			}
			open--
		case <-ctx.Done():
			return open
		case <-h.gone:
			if len(reports) == 0 {
				return open
			}
		case <-tick:
			if !until.IsZero() && !time.Now().Before(until) {
				return open
			}
			tick = *p.tick.Load()
		}
	}
	return 0
}

// giveUp gives those of results that have none an error with its cause.
func giveUp(results []event.Result, cause error) {
	for i := range results {
		if results[i].Err == errOpen { //nolint:errorlint // the very value that was put there
			results[i] = event.Result{Err: &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: "kafka.Produce", Msg: msgMaybe, Err: cause}}
		}
	}
}

// errOpen marks a record whose report is still to come.
var errOpen = errors.New("no report yet")

// clocksDiffer is how near to now, by our clock, a timestamp must be for its refusal to tell of the
// clocks and not of the record: topics allow an hour and more.
const clocksDiffer = time.Minute

// failed maps an error of one record, and notices the fatal ones.
func (p *Producer) failed(h *handle, err error, timestamp time.Time) error {
	ce := ckafka.Error{}
	switch {
	case !errors.As(err, &ce):
	case ce.IsFatal() || ce.Code() == ckafka.ErrFatal:
		p.replace(h, err)
	case ce.Code() == ckafka.ErrInvalidTimestamp && time.Since(timestamp).Abs() < clocksDiffer:
		// A client takes an error of its record for final.
		return &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: "kafka.Produce", Msg: msgClocks, Err: err}
	}
	return wrap("kafka.Produce", err)
}

// fill makes m the message of a record. It can be used again for the next one: librdkafka has
// its own copy when Produce returns.
func fill(m *ckafka.Message, r *event.Record) {
	m.TopicPartition = ckafka.TopicPartition{Topic: &r.Topic, Partition: r.Partition}
	m.Key, m.Value, m.Timestamp = r.Key, r.Value, r.Timestamp
	m.Headers = m.Headers[:0]
	for _, h := range r.Headers {
		m.Headers = append(m.Headers, ckafka.Header{Key: h.Key, Value: h.Value})
	}
}

// Close gives what is in flight until ctx ends, then closes both handles. A Produce that
// begins later fails. What stands still is left to itself.
func (p *Producer) Close(ctx context.Context) {
	p.mu.Lock()
	select {
	case <-p.closing:
	default:
		close(p.closing)
	}
	p.mu.Unlock()
	var handles []*handle
	for _, h := range []*handle{p.quick.Load(), p.batching.Load()} {
		if h != nil {
			handles = append(handles, h)
		}
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		var closing sync.WaitGroup
		for _, h := range handles {
			closing.Go(func() { h.close(ctx) })
		}
		closing.Wait()
		p.workers.Wait()
	}()
	for _, h := range handles {
		<-h.gone
	}
	select {
	case <-closed:
	case <-time.After(time.Second):
	}
}
