package deliver

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"postamt/sidecar/internal/event"
)

// feed is what a worker reads: the topics of a subscription or, in a redrive, its dead letters. Each
// has a consumer group of its own; the engine is the same, since the endpoint is: what it accepts of
// one is evidence about the other.
type feed struct {
	w       *worker
	group   string
	topics  []string
	redrive *event.Redrive // nil: the subscription's own records
	source  Source
	total   int          // partitions, on all replicas; of the worker's loop
	turn    atomic.Int64 // counts assignments
}

// redriveFeed reads the dead letters that a redrive is of.
func redriveFeed(w *worker, sub *event.Subscription) *feed {
	f := &feed{w: w, group: sub.RedriveGroup(), redrive: &sub.Redrive}
	for tp := range sub.Redrive.Until {
		if !slices.Contains(f.topics, tp.Topic) {
			f.topics = append(f.topics, tp.Topic)
		}
	}
	slices.Sort(f.topics)
	return f
}

// read gives the worker what a feed brings until ctx ends; then it gives the feed's partitions back.
// An error ends it sooner.
func (w *worker) read(ctx context.Context, f *feed) error {
	opened := make(chan struct{})
	ready := func() { <-opened } // a source may call back before it is returned
	source, err := w.parts.Open(SourceOptions{
		Group: f.group, Topics: f.topics,
		Assigned: func(commits map[event.TopicPartition]event.Commit) { ready(); f.assigned(commits) },
		Revoked:  func(tps []event.TopicPartition) { ready(); f.revoked(tps) },
		Lost:     func(tps []event.TopicPartition) { ready(); f.lost(tps) },
		Expired:  f.expired,
	})
	if err != nil {
		return err
	}
	f.source = source
	close(opened)
	defer w.do(func() { w.total -= f.total; w.share() })
	err = f.poll(ctx)
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.parts.StopTimeout)
	defer cancel()
	source.Close(bounded)
	return err
}

// countPartitions counts those of all topics. Where Kafka cannot be asked, this replica takes
// itself for the only one.
func (f *feed) countPartitions(ctx context.Context) int {
	total := 0
	for _, topic := range f.topics {
		n, err := f.w.parts.Partitions(ctx, topic)
		if err != nil {
			return 0
		}
		total += n
	}
	return total
}

// poll gives the loop what the source brings until ctx ends. An error is of a source that may have
// stopped reading a partition: it is to be opened anew.
func (f *feed) poll(ctx context.Context) error {
	for ctx.Err() == nil {
		records, err := f.source.Poll(ctx, pollRecords)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if len(records) == 0 {
			continue
		}
		select {
		case f.w.records <- batch{f, records, f.turn.Load()}:
		case <-f.w.ended:
		}
	}
	return nil
}

// offer gives the engine what was read. It is called in the loop.
func (f *feed) offer(b batch) {
	w, records := f.w, b.records
	if f.turn.Load() != b.turn {
		// Partitions have come while these were in hand, which takes this loop standing still for
		// seconds. Of one that was lost and came back they are not what comes next.
		records = slices.DeleteFunc(records, func(r event.Record) bool {
			o := w.owned[event.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
			return o != nil && o.since > b.turn
		})
	}
	if f.redrive == nil {
		w.engine.Offer(records)
		return
	}
	for i := range records {
		r := &records[i]
		tp := event.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		if r.Offset >= f.redrive.Until[tp] {
			continue // another redrive's, if one is asked for
		}
		l, ok := w.parts.DecodeLetter(r)
		if !ok || l.Subscription != w.sub.Name {
			w.engine.PassOver(tp, r.Offset)
			w.changed = true
			continue
		}
		again := *l.Record
		again.Topic, again.Partition, again.Offset = r.Topic, r.Partition, r.Offset
		w.engine.OfferOne(again, l.Origin, l.Attempts)
	}
}

func (f *feed) commit(commits map[event.TopicPartition]event.Commit) error {
	f.w.committing <- struct{}{}
	defer func() { <-f.w.committing }()
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	err := f.source.Commit(ctx, commits)
	if err != nil {
		f.w.log.Info("progress could not be committed; it is tried again", "group", f.group, "error", err)
	}
	return err
}

func (f *feed) assigned(commits map[event.TopicPartition]event.Commit) {
	w := f.w
	total := f.countPartitions(w.life) // there may be more by now, or Kafka could not be asked before
	w.do(func() {
		now := time.Now()
		turn := f.turn.Add(1)
		if total > 0 {
			w.total, f.total = w.total+total-f.total, total
		}
		for tp, c := range commits {
			w.drop(tp)
			ctx, cancel := context.WithCancel(w.life)
			w.owned[tp] = &ownership{feed: f, ctx: ctx, cancel: cancel, since: turn}
			w.engine.Assign(tp, c, now)
		}
		// A source resumes what it assigns; but this loop may have paused it since, as one that it had.
		f.source.Resume(slices.Collect(maps.Keys(commits)))
		w.share()
	})
}

// revoked lets partitions go: nothing of them is begun, what has begun may end for a while, and what
// is decided is committed.
func (f *feed) revoked(tps []event.TopicPartition) {
	w := f.w
	w.do(func() {
		for _, tp := range tps {
			w.engine.Seal(tp)
		}
	})
	if !f.settled(tps, revokeGrace) {
		w.do(func() {
			for _, tp := range tps {
				if o := w.owned[tp]; o != nil {
					o.cancel()
				}
			}
		})
		f.settled(tps, cancelGrace)
	}
	var commits map[event.TopicPartition]event.Commit
	w.do(func() { commits = w.progress(tps) })
	if len(commits) > 0 {
		_ = f.commit(commits) // else they are repeated, and it has been logged
	}
	f.lost(tps)
}

// settled waits until nothing of the partitions is in flight.
func (f *feed) settled(tps []event.TopicPartition, most time.Duration) bool {
	const step = 10 * time.Millisecond
	for deadline := time.Now().Add(most); ; time.Sleep(step) {
		busy := 0
		if !f.w.do(func() {
			for _, tp := range tps {
				busy += f.w.engine.InFlight(tp)
			}
		}) || busy == 0 {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func (f *feed) lost(tps []event.TopicPartition) {
	f.w.do(func() {
		for _, tp := range tps {
			f.w.drop(tp)
		}
		f.w.share()
	})
}

func (f *feed) expired(tp event.TopicPartition, from, to int64) {
	f.w.metrics.expired.Add(float64(to - from))
	f.w.log.Error("retention took records before they were delivered", "topic", tp.Topic, "partition", tp.Partition, "from", from, "to", to)
}
