package stream

import (
	"context"
	"strconv"
	"time"

	"postamt/sidecar/internal/event"
)

const (
	// moreWait is how long a read that has records waits for the rest of those that there are.
	moreWait = 500 * time.Millisecond
	// fetchWait is how long a read waits at least for records that there are: the connection to
	// Kafka may take longer than its client wants to wait for new ones.
	fetchWait = 2 * time.Second
)

// Read gives the records of a partition that there are from an offset on: a number, earliest
// or latest. It waits for the first of them, and gives none after wait, or when stop ends.
// room is asked before a record is taken beside others, with the size of all of them in bytes; a record that
// is the first is taken however large it is, unless the answer is an error.
//
// An offset that the partition does not hold is Unprocessable; the one after its last record
// is held.
func (o *Opener) Read(ctx, stop context.Context, tp event.TopicPartition, from string, wait time.Duration, room func(bytes int64) error) ([]event.Record, error) {
	const op = "read"
	all, err := o.Kafka.Bounds(ctx, tp.Topic)
	if err != nil {
		return nil, err
	}
	bounds, ok := all[tp.Partition]
	if !ok {
		return nil, noPartition(op, tp, len(all))
	}
	offset, err := offsetOf(from, bounds)
	if err != nil {
		return nil, err
	}
	outside := func(b event.Bounds) error {
		return event.Errorf(event.Unprocessable, 0, op, "partition %d of topic %q has no offset %d; it has %d to %d, where the next record will be", tp.Partition, tp.Topic, offset, b.Beginning, b.End)
	}
	if offset < bounds.Beginning || offset > bounds.End {
		return nil, outside(bounds)
	}
	source, err := o.Source(tp.Topic, map[int32]int64{tp.Partition: offset})
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if offset < bounds.End {
		wait = max(wait, fetchWait)
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer context.AfterFunc(stop, cancel)()
	var out []event.Record
	var size int64
	for waiting.Err() == nil {
		turn, cancel := waiting, context.CancelFunc(func() {})
		if len(out) > 0 {
			turn, cancel = context.WithTimeout(waiting, moreWait)
		}
		records, expired, err := source.Poll(turn, pollRecords)
		over := turn.Err() != nil
		cancel()
		for i := range records {
			r := &records[i]
			err := room(size + int64(r.Size()))
			if err != nil && len(out) == 0 {
				return nil, err
			}
			if err != nil {
				return out, nil // there is no room for it beside the others
			}
			size += int64(r.Size())
			out = append(out, *r)
		}
		switch {
		case len(out) > 0 && (err != nil || over || len(expired) > 0 || out[len(out)-1].Offset+1 >= bounds.End):
			return out, nil // the next read meets the error, if it is still there
		case len(expired) > 0: // retention was faster, or the topic was made anew
			if all, err = o.Kafka.Bounds(ctx, tp.Topic); err != nil {
				return nil, err
			}
			if bounds, ok = all[tp.Partition]; !ok {
				return nil, noPartition(op, tp, len(all))
			}
			if offset < bounds.Beginning || offset > bounds.End {
				return nil, outside(bounds)
			}
			source.Seek(map[int32]int64{tp.Partition: offset})
		case err != nil:
			return nil, err
		}
	}
	return out, ctx.Err()
}

func offsetOf(from string, bounds event.Bounds) (int64, error) {
	const right = "it must be a number from 0 up, earliest or latest"
	switch from {
	case "":
		return 0, event.Errorf(event.Unprocessable, 0, "read", "offset is missing; %s", right)
	case "earliest":
		return bounds.Beginning, nil
	case "latest":
		return bounds.End, nil
	}
	n, err := strconv.ParseInt(from, 10, 64)
	switch {
	case err != nil:
		return 0, event.Errorf(event.Invalid, 0, "read", "offset is %q; %s", from, right)
	case n < 0:
		return 0, event.Errorf(event.Unprocessable, 0, "read", "offset is %d; %s", n, right)
	}
	return n, nil
}
