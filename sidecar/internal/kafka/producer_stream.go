package kafka

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"postamt/sidecar/internal/event"
)

const (
	// streamOpenRecords is how many records of a stream may wait for their acknowledgement: as
	// many as a broker takes while an answer is on its way. Each costs 16 bytes from the start.
	streamOpenRecords = 1024
	// streamOpenBytes bounds the same in bytes; one record may be larger.
	streamOpenBytes = 4 << 20
	// outcomesAtOnce is how many outcomes are made room for at a time.
	outcomesAtOnce = 256
	// queueFullWait is how long a stream waits before it tries again where other requests have
	// filled librdkafka's queue.
	queueFullWait = 20 * time.Millisecond
)

// Stream produces records of one topic whose number is not known beforehand. It stays with
// one librdkafka handle to its end, so that its records keep their order, and keeps 16 bytes
// of each record. Send, Skip, Finish and Results are for one goroutine.
//
// Its acknowledgements are taken as they come, whatever its user does meanwhile, by a
// goroutine that ends with the last of them after Finish or Close, one of which must be
// called.
type Stream struct {
	producer *Producer
	handle   *handle
	reported func(size int, err error)
	reports  chan ckafka.Event // has room for all that is open: librdkafka's poller never waits
	progress chan struct{}     // a report has come
	closed   chan struct{}
	end      sync.Once

	mu        sync.Mutex
	outcomes  [][]outcome // outcomesAtOnce in each but the last
	n         int
	open      int
	openBytes int
	errs      []*event.Error
	known     map[problem]int32 // where each is in errs
	broken    error             // why no more is sent
	sealed    bool              // the outcomes have been given out
}

// outcome is what became of a record, in 16 bytes.
type outcome struct {
	offset    int64
	partition int32
	state     int32 // open, stored, or 1 + the place of its error in errs
}

const (
	open   = -1
	stored = 0
)

// problem is what makes two errors one to a client.
type problem struct {
	kind event.Kind
	code int
	msg  string
}

// sent goes with a record to librdkafka and comes back with its report.
type sent struct {
	index, size int32
	timestamp   int64 // ms since 1970
}

var errMaybe = event.Errorf(event.Unavailable, codeUnavailable, "kafka.Stream", msgMaybe)

// Stream opens a stream that has at most window records open at once, streamOpenRecords when
// it is 0. reported is called once for each record that Send took: with its size (event.Record's)
// when it no longer counts as in flight, and why it is not stored.
func (p *Producer) Stream(window int, reported func(size int, err error)) *Stream {
	if window <= 0 {
		window = streamOpenRecords
	}
	s := &Stream{
		producer: p, handle: p.batching.Load(), reported: reported, reports: make(chan ckafka.Event, window),
		progress: make(chan struct{}, 1), closed: make(chan struct{}), known: make(map[problem]int32),
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closing: // the handle takes nothing more, so that there is nothing to wait for
	default:
		p.workers.Go(s.collect)
	}
	return s
}

// Send hands a record over, and waits before that while too much is open. A record that cannot
// be handed over has its outcome like any other. An error means that the record was not taken
// at all: ctx has ended, or Kafka has stopped to acknowledge what was sent before
// (Unavailable), which is no better for what comes after.
func (s *Stream) Send(ctx context.Context, rec event.Record) error {
	size := rec.Size()
	for {
		s.mu.Lock()
		err, room := s.broken, s.open == 0 || s.open < cap(s.reports) && s.openBytes+size <= streamOpenBytes
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if room {
			break
		}
		if err := s.wait(ctx, nil); err != nil {
			return err
		}
	}
	if rec.Timestamp.IsZero() {
		rec.Timestamp = time.Now()
	}
	rec.Timestamp = rec.Timestamp.Truncate(time.Millisecond)

	index := s.add(outcome{state: open}, size)
	var m ckafka.Message
	fill(&m, &rec)
	m.Opaque = sent{int32(index), int32(size), rec.Timestamp.UnixMilli()} //nolint:gosec // both are bounded far below
	// Until a record of this stream could have been acknowledged; what is in the queue is
	// others', which is given up by then.
	for giveUp := time.Now().Add(s.producer.opts.Timeout); ; {
		err := error(errClosed)
		s.handle.use(func(client *ckafka.Producer) { err = client.Produce(&m, s.reports) })
		var ce ckafka.Error
		switch {
		case err == nil:
			return nil
		case errors.As(err, &ce) && ce.Code() == ckafka.ErrQueueFull && time.Now().Before(giveUp):
			timer := time.NewTimer(queueFullWait)
			wait := s.wait(ctx, timer.C)
			timer.Stop()
			if wait == nil {
				continue
			}
		}
		s.settle(rec.Topic, index, size, outcome{}, s.producer.failed(s.handle, err, rec.Timestamp))
		if s.handle.failed.Load() || errors.Is(err, errClosed) {
			s.breakOff()
		}
		return nil
	}
}

// wait returns when a report has come or timer has fired, or with an error when ctx has ended.
func (s *Stream) wait(ctx context.Context, timer <-chan time.Time) error {
	select {
	case <-s.progress:
	case <-timer:
	case <-ctx.Done():
		return wrap("kafka.Stream", ctx.Err())
	}
	return nil
}

// Skip gives the next record, which is not sent, its outcome.
func (s *Stream) Skip(err *event.Error) {
	s.add(outcome{state: s.intern(err)}, 0)
}

// add makes room for the outcome of the next record and returns its index.
func (s *Stream) add(o outcome, size int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n%outcomesAtOnce == 0 {
		s.outcomes = append(s.outcomes, make([]outcome, 0, outcomesAtOnce))
	}
	last := len(s.outcomes) - 1
	s.outcomes[last] = append(s.outcomes[last], o)
	if o.state == open {
		s.open++
		s.openBytes += size
	}
	s.n++
	return s.n - 1
}

// intern keeps an error once, however many records have it, and returns its state.
func (s *Stream) intern(err *event.Error) int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.internLocked(err)
}

func (s *Stream) internLocked(err *event.Error) int32 {
	what := problem{err.Kind, err.Code, err.Msg}
	state, ok := s.known[what]
	if !ok {
		s.errs = append(s.errs, err)
		state = int32(len(s.errs)) //nolint:gosec // at most one for each record
		s.known[what] = state
	}
	return state
}

// settle gives an open record its outcome: o, or err. It does nothing for one that has its
// outcome already.
func (s *Stream) settle(topic string, index, size int, o outcome, err error) {
	result := "stored"
	ee := (*event.Error)(nil)
	if errors.As(err, &ee) {
		result = string(ee.Kind)
	}
	s.mu.Lock()
	into := &s.outcomes[index/outcomesAtOnce][index%outcomesAtOnce]
	if into.state != open {
		s.mu.Unlock()
		return
	}
	if ee != nil {
		o.state = s.internLocked(ee)
	}
	if !s.sealed {
		*into = o
	} else {
		into.state = s.internLocked(errMaybe) // what the client was told
	}
	s.open--
	s.openBytes -= size
	s.mu.Unlock()
	s.producer.metrics.records.WithLabelValues(topic, result).Inc()
	s.reported(size, err)
	select {
	case s.progress <- struct{}{}:
	default:
	}
}

// breakOff makes every later Send fail.
func (s *Stream) breakOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = event.Errorf(event.Unavailable, codeUnavailable, "kafka.Stream", "Kafka has stopped to acknowledge records; send again, later, from the first one on that is not stored")
	}
}

// collect takes the reports until the stream is closed and has the last one, or until there
// can be no more because librdkafka's producer has been closed.
func (s *Stream) collect() {
	closed := s.closed
	for {
		select {
		case ev := <-s.reports:
			s.take(ev)
		case <-closed:
			closed = nil
		case <-s.handle.gone:
			for len(s.reports) > 0 {
				s.take(<-s.reports)
			}
			s.abandon()
			return
		}
		s.mu.Lock()
		done := closed == nil && s.open == 0
		s.mu.Unlock()
		if done {
			return
		}
	}
}

func (s *Stream) take(ev ckafka.Event) {
	m := ev.(*ckafka.Message)
	what := m.Opaque.(sent)
	var err error
	if m.TopicPartition.Error != nil {
		err = s.producer.failed(s.handle, m.TopicPartition.Error, time.UnixMilli(what.timestamp))
		ee, ce := (*event.Error)(nil), ckafka.Error{}
		if errors.As(err, &ee) && ee.Kind == event.Unavailable && (!errors.As(err, &ce) || ce.Code() != ckafka.ErrUnknownPartition && ce.Code() != ckafka.ErrInvalidDifferentRecord) {
			s.breakOff() // librdkafka has tried for as long as it may
		}
	}
	s.settle(*m.TopicPartition.Topic, int(what.index), int(what.size), outcome{int64(m.TopicPartition.Offset), m.TopicPartition.Partition, stored}, err)
}

// abandon settles what will never be reported.
func (s *Stream) abandon() {
	s.breakOff()
	s.mu.Lock()
	bytes, count, state := s.openBytes, s.open, s.internLocked(errMaybe)
	for _, part := range s.outcomes {
		for i := range part {
			if part[i].state == open {
				part[i].state = state
			}
		}
	}
	s.open, s.openBytes = 0, 0
	s.mu.Unlock()
	for range count {
		s.reported(bytes, errMaybe)
		bytes = 0
	}
	select {
	case s.progress <- struct{}{}:
	default:
	}
}

// Close says that nothing more is sent, and waits for nothing: what was sent goes on to
// Kafka, and reported is told.
func (s *Stream) Close() { s.end.Do(func() { close(s.closed) }) }

// Finish says that nothing more is sent and waits for the last acknowledgement, or for the
// end of ctx. What is open then has Unavailable as its outcome, and may be stored.
func (s *Stream) Finish(ctx context.Context) {
	s.Close()
	for {
		s.mu.Lock()
		done := s.open == 0
		s.mu.Unlock()
		if done || s.wait(ctx, nil) != nil {
			break
		}
	}
	s.mu.Lock()
	s.sealed = true
	s.mu.Unlock()
}

// Results gives the outcomes in the order of Send and Skip, after Finish. A place has no
// topic and no timestamp: the caller knows both.
func (s *Stream) Results() iter.Seq2[int, event.Result] {
	return func(yield func(int, event.Result) bool) {
		for i := range s.n {
			s.mu.Lock()
			o := s.outcomes[i/outcomesAtOnce][i%outcomesAtOnce]
			var r event.Result
			switch o.state {
			case stored:
				r.Place = event.Place{Partition: o.partition, Offset: o.offset}
			case open:
				r.Err = errMaybe
			default:
				r.Err = s.errs[o.state-1]
			}
			s.mu.Unlock()
			if !yield(i, r) {
				return
			}
		}
	}
}
