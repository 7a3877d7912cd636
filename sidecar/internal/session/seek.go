package session

import (
	"context"
	"maps"
	"slices"
	"time"

	"postamt/sidecar/internal/event"
)

// Where says what a session is to read next of a partition.
type Where string

const (
	AtOffset    Where = "offset"
	AtTime      Where = "timestamp" // the first record of this time or later
	AtBeginning Where = "beginning"
	AtEnd       Where = "end" // what comes from now on
)

// Position is where a partition is to be read next.
type Position struct {
	event.TopicPartition
	At     Where
	Offset int64
	Time   time.Time
}

// Seek makes partitions that the session has go on elsewhere: the next read starts there, and
// nothing that was fetched before comes any more. A place before the first record that there
// is becomes that; one after the end is refused, since Kafka would go back to the beginning.
func (s *Session) Seek(ctx context.Context, positions []Position) error {
	byPlace := make(map[event.TopicPartition]Position, len(positions))
	for _, p := range positions { // the last one counts
		byPlace[p.TopicPartition] = p
	}
	if len(byPlace) == 0 {
		return nil
	}
	if _, _, err := s.awaitAssigned(ctx, "seek", maps.Keys(byPlace)); err != nil {
		return err
	}
	seeks, err := s.resolve(ctx, byPlace)
	if err != nil {
		return err
	}
	release, err := s.interrupt(ctx)
	if err != nil {
		return err
	}
	defer release()
	consumer, epochs, err := s.awaitAssigned(ctx, "seek", maps.Keys(byPlace)) // it may have changed since
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	// The table first: who takes the session over from now on begins there, too.
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	all := maps.Clone(s.subscription().Seeks)
	if all == nil {
		all = make(map[event.TopicPartition]event.Seek)
	}
	maps.Copy(all, seeks)
	if err := s.storeSeeks(ctx, all); err != nil {
		return err
	}
	if err := consumer.Seek(ctx, seeks); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = false // what was read before is not to be committed any more
	sought := func(tp event.TopicPartition) bool {
		_, ok := seeks[tp]
		return ok && s.assigned[tp] == epochs[tp]
	}
	s.pending = slices.DeleteFunc(s.pending, func(r event.Record) bool { return sought(placeOf(&r)) })
	s.count()
	for tp := range seeks {
		if sought(tp) {
			delete(s.delivered, tp)
			delete(s.committed, tp)
			delete(s.floor, tp)
			s.given[tp] = true // it is where the client wants it
		}
	}
	return nil
}

// interrupt ends the wait of a read and keeps others from beginning until release is called.
func (s *Session) interrupt(ctx context.Context) (release func(), err error) {
	s.mu.Lock()
	s.seeking++
	if s.stopPoll != nil {
		s.stopPoll()
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.seeking--
		s.mu.Unlock()
	}()
	select {
	case s.reading <- struct{}{}:
		return func() { <-s.reading }, nil
	case <-ctx.Done():
		return nil, event.Errorf(event.Gone, 0, "seek", "the client went away")
	}
}

// resolve finds the offsets of positions.
func (s *Session) resolve(ctx context.Context, positions map[event.TopicPartition]Position) (map[event.TopicPartition]event.Seek, error) {
	committed, err := s.kafka.Committed(ctx, s.Group)
	if err != nil {
		return nil, err
	}
	bounds := make(map[string]map[int32]event.Bounds)
	ends := make(map[event.TopicPartition]int64)
	seeks := make(map[event.TopicPartition]event.Seek, len(positions))
	for tp, p := range positions {
		if bounds[tp.Topic] == nil {
			if bounds[tp.Topic], err = s.kafka.Bounds(ctx, tp.Topic); err != nil {
				return nil, err
			}
			if s.ReadCommitted { // an open transaction is after the end of such a reader
				of, err := s.kafka.Ends(ctx, []string{tp.Topic}, "", true)
				if err != nil {
					return nil, err
				}
				maps.Copy(ends, of)
			}
		}
		b, ok := bounds[tp.Topic][tp.Partition]
		if !ok {
			return nil, event.Errorf(event.NotFound, 40402, "seek", "topic %q has no partition %d", tp.Topic, tp.Partition)
		}
		end := b.End
		if e, ok := ends[tp]; ok {
			end = e
		}
		seek := event.Seek{Since: event.NoCommit}
		if c, ok := committed[tp]; ok {
			seek.Since = c.Offset
		}
		switch p.At {
		case AtBeginning:
			seek.Offset = b.Beginning
		case AtEnd:
			seek.Offset = end
		case AtTime:
			of, err := s.kafka.OffsetsAt(ctx, tp.Topic, p.Time)
			if err != nil {
				return nil, err
			}
			seek.Offset = of[tp.Partition]
		default:
			if p.Offset > b.End {
				return nil, event.Errorf(event.Unprocessable, 0, "seek", "offset %d is after the end of partition %d of topic %q, whose next record will be %d", p.Offset, tp.Partition, tp.Topic, b.End)
			}
			seek.Offset = max(p.Offset, b.Beginning)
		}
		seeks[tp] = seek
	}
	return seeks, nil
}
