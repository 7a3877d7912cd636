package deliver

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"postamt/sidecar/internal/event"
)

// State tells what the engine does.
func (e *Engine) State() event.DeliveryState {
	switch {
	case e.paused:
		return event.DeliveryPaused
	case e.circuit.down:
		return event.DeliveryDown
	}
	return event.DeliveryActive
}

// Assigned lists the engine's partitions, in order.
func (e *Engine) Assigned() []event.TopicPartition {
	return slices.SortedFunc(maps.Keys(e.partitions), event.TopicPartition.Compare)
}

// Status tells how far each partition is. What only Kafka knows is left unknown: End and Lag.
func (e *Engine) Status(now time.Time) event.DeliveryStatus {
	s := event.DeliveryStatus{State: e.State(), InFlight: e.inFlight}
	for _, tp := range e.Assigned() {
		p := e.partitions[tp]
		ps := event.PartitionStatus{
			TopicPartition: tp, Committed: p.base(), End: -1, Lag: -1, LagSeconds: 0,
			WindowRecords: p.undecidedRecords(), WindowBytes: p.bytes,
		}
		if len(p.records) > 0 {
			lowest := p.records[0]
			ps.LagSeconds = -1
			if age, ok := event.Age(lowest.Record.Timestamp, now); ok {
				ps.LagSeconds = age.Seconds()
			}
			if lowest.last.Verdict != "" || lowest.booked > 0 || lowest.letterErr != nil {
				ps.Stuck = e.stuck(lowest)
			}
		}
		s.Partitions = append(s.Partitions, ps)
	}
	return s
}

func (p *partition) undecidedRecords() int {
	n := 0
	for _, d := range p.records {
		if d.state != decided {
			n++
		}
	}
	return n
}

func (e *Engine) stuck(d *Delivery) *event.StuckRecord {
	s := &event.StuckRecord{
		Offset: d.Record.Offset, Key: d.Record.Key, Verdict: d.last.Verdict, Status: d.last.Status, Err: d.last.Err,
		Booked: d.booked, Attempts: d.attempts, FirstAttempt: d.first,
	}
	if d.letterErr != nil {
		s.Err = fmt.Sprintf("it is given up (%s), and its dead letter cannot be written to %s: %s", d.reason, e.opts.DeadLetterFor(d.Origin.Topic), messageOf(d.letterErr))
		if d.state == letterResting {
			s.NextAttempt = d.until
		}
	}
	if d.state == resting {
		s.NextAttempt = d.until
		if e.circuit.down && e.circuit.probeAt.After(d.until) {
			s.NextAttempt = e.circuit.probeAt
		}
	}
	return s
}

// messageOf is what of an error may be shown.
func messageOf(err error) string {
	if ee, ok := errors.AsType[*event.Error](err); ok {
		return ee.Msg
	}
	return err.Error()
}

// load tells how full the fullest window is and how old the oldest undecided record, in seconds.
func (e *Engine) load(now time.Time) (full, oldest float64) {
	for _, p := range e.partitions {
		full = max(full, float64(p.next-p.base())/float64(p.window.Records), float64(p.bytes)/float64(p.window.Bytes))
		if p.crowded {
			full = 1
		}
		if len(p.records) > 0 {
			age, _ := event.Age(p.records[0].Record.Timestamp, now)
			oldest = max(oldest, age.Seconds())
		}
	}
	return min(full, 1), oldest
}
