// Package stream reads a topic without a group, from a place that the client names and in
// cursors that it keeps: any replica can go on where another one stopped.
package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/filter"
	"postamt/sidecar/internal/restproxy"
)

// Kafka is what streams need; package kafka has it.
type Kafka interface {
	Partitions(ctx context.Context, topic string) (int, error)
	Bounds(ctx context.Context, topic string) (map[int32]event.Bounds, error)
	OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int32]int64, error)
}

// Source reads partitions of one topic.
type Source interface {
	// Poll waits for records until ctx ends. The partitions of expired have no record at the
	// offset that was to be read next; they rest until Seek.
	Poll(ctx context.Context, maxRecords int) (records []event.Record, expired []int32, err error)
	Seek(to map[int32]int64)
	Close()
}

// pollRecords bounds what a stream holds between two writes to its client.
const pollRecords = 500

// grownOffset is how far offsets may grow while a stream is open: a cursor that fits today
// must still be taken when its client comes back.
const grownOffset = 1<<35 - 1

// filterTurn is how long matching records wait for others of the same poll: a slow filter
// holds back no event for longer, and does not make a write of each.
const filterTurn = 50 * time.Millisecond

// Opener opens streams.
type Opener struct {
	Kafka  Kafka
	Source func(topic string, from map[int32]int64) (Source, error)
}

// Request says what a stream reads.
type Request struct {
	Topic     string
	Partition int32          // event.AnyPartition: all
	From      string         // "", latest, earliest, a time as RFC 3339, or a cursor
	Filter    *filter.Filter // nil: every record
}

// Filtered counts the records that a filter has kept from a client, by the reason.
type Filtered struct {
	No      int // the filter says no
	Missing int // it asks for what the record does not have
	Failed  int // it is neither true nor false for the record
	// LastError is of the last one that failed, with its place.
	LastError string
}

// Gap says that the records of a partition from From up to, and without, To are gone.
type Gap struct {
	Partition int32 `json:"partition"`
	From      int64 `json:"from"`
	To        int64 `json:"to"`
}

// Event is a record or a gap, and the cursor that goes on after it.
type Event struct {
	Record *event.Record // nil for a gap
	Gap    Gap
	Cursor string
}

// Stream is one reader. It is not safe for concurrent use.
type Stream struct {
	opener    *Opener
	topic     string
	partition int32
	source    Source
	positions map[int32]int64 // of the next record
	opening   []Event
	expired   []int32 // partitions whose next record is gone
	filter    *filter.Filter
	pending   []event.Record // read, and not yet decided on
	filtered  Filtered
}

// Open finds the place that a request names and begins to read there. Its errors are
// event.Errors.
func (o *Opener) Open(ctx context.Context, r Request) (*Stream, error) {
	bounds, err := o.Kafka.Bounds(ctx, r.Topic)
	if err != nil {
		return nil, err
	}
	if r.Partition != event.AnyPartition {
		only, ok := bounds[r.Partition]
		if !ok {
			return nil, noPartition("open stream", event.TopicPartition{Topic: r.Topic, Partition: r.Partition}, len(bounds))
		}
		bounds = map[int32]event.Bounds{r.Partition: only}
	}
	wanted, err := o.resolve(ctx, r, bounds)
	if err != nil {
		return nil, err
	}
	s := &Stream{opener: o, topic: r.Topic, partition: r.Partition, filter: r.Filter, positions: make(map[int32]int64)}
	var gaps []Gap
	for p, b := range bounds {
		// A partition that the cursor does not know has been added since: it is new whole.
		s.positions[p] = b.Beginning
		want, known := wanted[p]
		if !known {
			continue
		}
		if want < b.Beginning || want > b.End { // taken by retention; of a topic made anew
			gaps = append(gaps, Gap{p, want, b.Beginning})
			continue
		}
		s.positions[p] = want
	}
	for _, g := range gaps {
		s.opening = append(s.opening, Event{Gap: g, Cursor: s.Cursor()})
	}
	later := make(map[int32]int64, len(s.positions))
	for p, at := range s.positions {
		later[p] = max(at, grownOffset)
	}
	if len(encodeCursor(s.topic, later)) > maxCursorBytes {
		return nil, event.Errorf(event.Unprocessable, 0, "open stream", "topic %q has %d partitions, too many for one cursor; read them one by one, with ?partition=", r.Topic, len(bounds))
	}
	s.source, err = o.Source(r.Topic, maps.Clone(s.positions))
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (o *Opener) resolve(ctx context.Context, r Request, bounds map[int32]event.Bounds) (map[int32]int64, error) {
	wanted := make(map[int32]int64)
	switch {
	case r.From == "" || r.From == "latest":
		for p, b := range bounds {
			wanted[p] = b.End
		}
		return wanted, nil
	case r.From == "earliest":
		return wanted, nil
	case strings.HasPrefix(r.From, cursorPrefix):
		return decodeCursor(r.Topic, r.From)
	}
	t, err := restproxy.ParseTimestamp(r.From)
	if err != nil {
		return nil, event.Errorf(event.Invalid, 0, "open stream", "from is %q; it must be latest, earliest, a time like 2026-01-02T03:04:05Z, or a cursor (an event's id)", r.From)
	}
	wanted, err = o.Kafka.OffsetsAt(ctx, r.Topic, t)
	for p, at := range wanted { // what has come since the bounds were asked for is not beyond the end
		wanted[p] = min(at, bounds[p].End)
	}
	return wanted, err
}

// Topic is the topic that is read.
func (s *Stream) Topic() string { return s.topic }

// Cursor is the place after the last event that was handed out, in all partitions.
func (s *Stream) Cursor() string { return encodeCursor(s.topic, s.positions) }

// Opening is what was found when the stream was opened: gaps. It comes before all else.
func (s *Stream) Opening() []Event { return s.opening }

// Next waits for events until ctx ends, and returns none then. Events may come beside an
// error; the stream can go on after one of kind Unavailable. Records that the filter does not
// want move the cursor and are no events.
func (s *Stream) Next(ctx context.Context) (events []Event, err error) {
	if len(s.pending) == 0 {
		if len(s.expired) > 0 {
			return s.skip(ctx)
		}
		var expired []int32
		s.pending, expired, err = s.source.Poll(ctx, pollRecords)
		s.expired = append(s.expired, expired...)
	}
	begun := time.Now()
	for len(s.pending) > 0 {
		r := &s.pending[0]
		wanted, decided := s.wants(ctx, r)
		if !decided {
			break
		}
		s.pending = s.pending[1:]
		s.positions[r.Partition] = r.Offset + 1
		if wanted {
			events = append(events, Event{Record: r, Cursor: s.Cursor()})
		}
		if s.filter != nil && len(events) > 0 && time.Since(begun) > filterTurn {
			break
		}
	}
	return events, err
}

// wants asks the filter for a record. Nothing is decided when ctx ends before.
func (s *Stream) wants(ctx context.Context, r *event.Record) (wanted, decided bool) {
	if s.filter == nil {
		return true, true
	}
	match, missing, err := s.filter.Match(ctx, r)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return false, false
	case err != nil:
		s.filtered.Failed++
		s.filtered.LastError = fmt.Sprintf("partition %d, offset %d: %v", r.Partition, r.Offset, err)
	case missing:
		s.filtered.Missing++
	case !match:
		s.filtered.No++
	}
	return match, true
}

// Filtered counts what the filter has kept back since the last call.
func (s *Stream) Filtered() Filtered {
	f := s.filtered
	s.filtered = Filtered{}
	return f
}

func noPartition(op string, tp event.TopicPartition, n int) error {
	return event.Errorf(event.NotFound, 40402, op, "topic %q has no partition %d; it has %d, from 0 to %d", tp.Topic, tp.Partition, n, n-1)
}

// skip makes the partitions whose next record is gone go on at the first one that there is. Those
// that the topic has no more, as it was made anew, are not read any more.
func (s *Stream) skip(ctx context.Context) ([]Event, error) {
	bounds, err := s.opener.Kafka.Bounds(ctx, s.topic)
	if err != nil {
		return nil, err
	}
	var gaps []Event
	to := make(map[int32]int64)
	for _, p := range s.expired {
		b, ok := bounds[p]
		switch {
		case ok:
			to[p] = b.Beginning
		case s.partition == p:
			return nil, noPartition("stream", event.TopicPartition{Topic: s.topic, Partition: p}, len(bounds))
		default:
			delete(s.positions, p)
		}
	}
	for _, p := range s.expired {
		gap := Gap{p, s.positions[p], to[p]}
		if _, ok := to[p]; !ok || gap.From == gap.To {
			continue
		}
		s.positions[p] = gap.To
		gaps = append(gaps, Event{Gap: gap, Cursor: s.Cursor()})
	}
	s.expired = nil
	s.source.Seek(to)
	return gaps, nil
}

// Grow begins to read partitions that the topic has got since.
func (s *Stream) Grow(ctx context.Context) error {
	if s.partition != event.AnyPartition {
		return nil
	}
	n, err := s.opener.Kafka.Partitions(ctx, s.topic)
	if err != nil {
		return err
	}
	added := make(map[int32]int64)
	for p := range int32(n) {
		if _, known := s.positions[p]; !known {
			s.positions[p], added[p] = 0, 0
		}
	}
	if len(added) > 0 {
		s.source.Seek(added)
	}
	return nil
}

// Close ends the reading.
func (s *Stream) Close() { s.source.Close() }
