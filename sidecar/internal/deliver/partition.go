package deliver

import (
	"slices"
	"time"

	"golang.org/x/time/rate"

	"postamt/sidecar/internal/event"
)

// stage is how far a delivery is.
type stage int

const (
	parked        stage = iota // beyond the window
	waiting                    // behind another one in its lane
	ready                      // may start
	inFlight                   // an attempt is being made
	ended                      // an attempt has just ended
	resting                    // may start at a time
	lettering                  // its dead letter is to be written
	writing                    // its dead letter is being written
	letterResting              // its dead letter is to be written again at a time
	decided
)

// Delivery is one record on its way to the endpoint.
type Delivery struct {
	Record event.Record
	Origin event.Origin

	partition *partition
	lane      *lane // nil: it waits for no other
	state     stage
	size      int
	earlier   int // attempts before it came here
	attempts  int // all of them
	first     time.Time
	failures  int // in this engine, since the last outage: they lengthen the wait
	counted   int // outcomes among those that tell how the endpoint is
	booked    int // failures that count against the record
	bookedAt  uint64
	pending   uint64 // when it failed, as long as that is not booked; 0: no
	// The next booked failure may make it a dead letter.
	lastChance bool
	byItself   bool // to be tried with nothing else in flight
	skipped    bool // becomes a dead letter unless the attempt in flight succeeds
	started    uint64
	startedAt  time.Time
	last       event.Outcome
	lastAt     time.Time
	until      time.Time // of its rest
	index      int       // in the heap of those that rest; -1: not in it

	reason      event.Reason
	letterTries int
	letterErr   error         // why it could not be written
	limiter     *rate.Limiter // that let its attempt start; nil: there was none
}

// Attempt is the attempt that Next gave a delivery for.
func (d *Delivery) Attempt() event.Attempt {
	return event.Attempt{Record: &d.Record, Origin: d.Origin, Number: d.attempts, Started: d.startedAt}
}

// Unstarted tells whether no attempt has been made before the one that Next gave.
func (d *Delivery) Unstarted() bool {
	return d.attempts <= d.earlier+1 && d.booked == 0 && d.failures == 0
}

// Place is where the record was read.
func (d *Delivery) Place() event.TopicPartition { return d.partition.at }

// lane is the records that wait for one another, in the order of their offsets. The first is the
// one that is being delivered.
type lane struct {
	key     string
	records []*Delivery
	room    [1]*Delivery // of most lanes: they have one record
}

// join is true for the first in the lane.
func (l *lane) join(d *Delivery) bool {
	l.records = append(l.records, d)
	return len(l.records) == 1
}

// partition is the window of one partition.
type partition struct {
	at       event.TopicPartition
	window   Window
	next     int64       // offset that the next record must have at least
	records  []*Delivery // in order; the first is undecided
	decided  offsets
	prior    progress // what the commit said of records that have not come yet
	parked   []*Delivery
	lanes    map[string]*lane
	all      *lane // of OrderByPartition
	bytes    int
	held     int64 // bytes of Memory
	inFlight int
	full     bool
	crowded  bool
	dirty    bool // there is something to commit
	sealed   bool
	dropped  bool
}

func newPartition(at event.TopicPartition, committed event.Commit, window Window) *partition {
	window.Memory.join()
	p := &partition{at: at, window: window, next: max(0, committed.Offset), decided: offsets{span: window.Records}, lanes: make(map[string]*lane)}
	if committed.Offset >= 0 {
		p.prior = decodeProgress(committed)
		for _, offset := range p.prior.decided {
			p.decided.set(offset, p.next)
		}
	}
	return p
}

// base is the offset that may be committed: of the lowest undecided record.
func (p *partition) base() int64 {
	if len(p.records) > 0 {
		return p.records[0].Record.Offset
	}
	return p.next
}

// end is the offset that lies beyond the window.
func (p *partition) end() int64 { return p.base() + p.window.Records }

// add takes a record into the window. It is nil for one that is decided, or was there before.
func (p *partition) add(r event.Record, origin event.Origin, earlier int) *Delivery {
	if r.Offset < p.next {
		return nil
	}
	if p.decided.has(r.Offset, p.base()) {
		p.passOver(r.Offset)
		return nil
	}
	d := &Delivery{Record: r, Origin: origin, partition: p, size: r.Size(), earlier: earlier, attempts: earlier, index: -1}
	if was, ok := p.prior.records[r.Offset]; ok {
		d.attempts, d.booked, d.first = max(was.attempts, earlier), was.booked, was.first
		delete(p.prior.records, r.Offset)
	}
	p.next = r.Offset + 1
	p.records = append(p.records, d)
	p.hold(d.size, 1)
	return d
}

// hold counts a record in, or with -1 out.
func (p *partition) hold(size, sign int) {
	p.bytes += sign * size
	more := int64(sign * (size + recordOverheadBytes))
	p.held += more
	p.window.Memory.hold(more)
}

// passOver notes that a record is decided without having been in the window.
func (p *partition) passOver(offset int64) {
	if offset < p.next {
		return
	}
	if len(p.records) > 0 { // else everything before is decided, too
		p.decided.set(offset, p.base())
	}
	p.next = offset + 1
	p.dirty = true
}

func (p *partition) laneOf(key []byte) *lane {
	l := p.lanes[string(key)]
	if l == nil {
		l = &lane{key: string(key)}
		l.records = l.room[:0]
		p.lanes[l.key] = l
	}
	return l
}

func (p *partition) whole() *lane {
	if p.all == nil {
		p.all = &lane{}
	}
	return p.all
}

// decide takes a decided delivery out of its lane and the window, and returns the next one of the
// lane if it may start now.
func (p *partition) decide(d *Delivery) (next *Delivery) {
	p.dirty = true
	p.hold(d.size, -1)
	p.decided.set(d.Record.Offset, p.base())
	d.Record.Key, d.Record.Value, d.Record.Headers = nil, nil, nil
	first := 0
	for first < len(p.records) && p.records[first].state == decided {
		p.records[first] = nil
		first++
	}
	p.records = p.records[first:]
	l := d.lane
	if l == nil {
		return nil
	}
	wasFirst := l.records[0] == d
	for len(l.records) > 0 && l.records[0].state == decided {
		l.records[0] = nil
		l.records = l.records[1:]
	}
	switch {
	case len(l.records) == 0:
		if l != p.all {
			delete(p.lanes, l.key)
		}
	case wasFirst && l.records[0].state == waiting:
		return l.records[0]
	}
	return nil
}

// find returns the undecided delivery at an offset, or nil.
func (p *partition) find(offset int64) *Delivery {
	i, ok := slices.BinarySearchFunc(p.records, offset, func(d *Delivery, offset int64) int { return int(d.Record.Offset - offset) })
	if !ok || p.records[i].state == decided {
		return nil
	}
	return p.records[i]
}

// rest tells whether the partition is to be read no further for now.
func (p *partition) rest() bool {
	span := p.next - p.base()
	if p.full {
		p.full = span > p.window.Records/2 || p.bytes > p.window.Bytes/2
	} else {
		p.full = span >= p.window.Records || p.bytes >= p.window.Bytes
	}
	p.crowded = p.window.Memory.crowded(p.held, p.crowded)
	return p.full || p.crowded
}

// Resting tells whether the window of a partition is full, or takes too much of the memory for all:
// it is to be paused as long as that is so.
func (e *Engine) Resting(tp event.TopicPartition) bool {
	p := e.partitions[tp]
	return p != nil && p.rest()
}

// Crowded tells whether partitions rest only until others hold less.
func (e *Engine) Crowded() bool {
	for _, p := range e.partitions {
		if p.crowded && !p.full {
			return true
		}
	}
	return false
}
