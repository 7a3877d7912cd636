// Package session keeps pull sessions: members of consumer groups that a client reads and
// commits over HTTP, one request at a time. What is committed is only what the client was
// given.
package session

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// Consumer is a member of a consumer group; package kafka has it.
type Consumer interface {
	// Poll waits for records until ctx ends and hands up to maxRecords of them to take,
	// while no partition can be taken away. They are take's to keep.
	Poll(ctx context.Context, maxRecords int, take func([]event.Record)) error
	// Buffered is Poll of what has arrived already: it does not wait.
	Buffered(maxRecords int, take func([]event.Record)) error
	// Seek makes assigned partitions go on elsewhere. No Poll runs meanwhile.
	Seek(ctx context.Context, to map[event.TopicPartition]event.Seek) error
	Commit(ctx context.Context, offsets map[event.TopicPartition]event.Commit) error
	Assigned() []event.TopicPartition
	// Close ends it. With leave, the group's other members get the partitions at once.
	Close(leave bool)
}

// Join is what a session asks of Kafka: to be a member of a group for topics or a pattern, or
// to read given partitions without being one.
type Join struct {
	Group, Member  string
	Topics         []string
	Pattern        string
	Partitions     []event.TopicPartition
	ReadCommitted  bool
	Seeks          map[event.TopicPartition]event.Seek
	Starts         map[event.TopicPartition]int64 // of partitions without a commit; others begin at their beginning
	Assigned, Lost func([]event.TopicPartition)
	Fenced         func() // another process is this member now
}

// Kafka is what sessions need of it.
type Kafka interface {
	Open(ctx context.Context, j Join) (Consumer, error)
	// Ends tells where the next records of topics, or of all that match a pattern, will be.
	Ends(ctx context.Context, topics []string, pattern string, readCommitted bool) (map[event.TopicPartition]int64, error)
	// Bounds tells the beginning and the end of each partition of a topic.
	Bounds(ctx context.Context, topic string) (map[int32]event.Bounds, error)
	// OffsetsAt tells the first offset of each partition at or after a time, or its end.
	OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int32]int64, error)
	Committed(ctx context.Context, group string) (map[event.TopicPartition]event.Commit, error)
	// Leave ends the membership of a session that no replica has opened.
	Leave(ctx context.Context, group, member string) error
}

// ErrMoved is what a Session says that another replica has by now: ask the Manager again.
var ErrMoved error = event.Errorf(event.Unavailable, 0, "session", "the session is moving to another replica; repeat the request")

// pollRecords is how many records one poll takes out of the client's buffer: nearly always all
// that a fetch brought, as the client fetches again when the buffer is empty.
const pollRecords = 10_000

// Settings are what a session is created with.
type Settings struct {
	Group, Name   string
	Format        restproxy.Format
	FromEarliest  bool
	AutoCommit    bool // each read commits what the one before it gave
	ReadCommitted bool
	MinBytes      int           // a read waits for so much; 1 or less: for any record
	Wait          time.Duration // longest wait of a read
}

// Session is one pull consumer. It is safe for concurrent use; reads wait for each other.
type Session struct {
	Settings
	kafka   Kafka
	reading chan struct{} // holds one token: of who reads or seeks

	subscribing sync.Mutex // held to replace the consumer

	mu       sync.Mutex
	consumer Consumer     // nil while nothing is subscribed, or not opened yet after a move
	member   int          // counts consumers: what an earlier one still has to say is not heard
	sub      subscription // what the table has
	lastUsed time.Time
	saved    time.Time // when the table had it last
	users    int       // requests that use it now
	closed   error     // why it is of no use any more
	moved    bool      // the client may have been given more than is known here, and nothing since
	out      *Batch    // on its way to the client

	// save changes what the table has. It is nil where there is no table.
	save func(ctx context.Context, change func(*record)) error
	// owned asks Kafka whether the session is still this replica's; nil where there is no table.
	owned func(ctx context.Context) error
	lost  func() // is called when another process has turned out to have the session

	joined   bool               // the group has told this member its partitions, or that it has none
	changed  chan struct{}      // closed when joined or assigned change
	seeking  int                // seeks that wait for the reader to end
	stopPoll context.CancelFunc // ends the reader's wait

	assigned     map[event.TopicPartition]int // which assignment of it this is, counted up
	next         int
	pending      []event.Record // polled, not given yet; of assigned partitions
	pendingBytes int64
	delivered    map[event.TopicPartition]int64 // offset after the last record given
	committed    map[event.TopicPartition]int64 // what of that Kafka has
	given        map[event.TopicPartition]bool  // something of it has been, or the client has said where it goes on
	// floor is what has been committed of a partition before anything of it was given: a client
	// commits then what it has from the replica before, or an answer whose arrival is not known
	// here, and that must not come again.
	floor map[event.TopicPartition]int64
}

func newSession(s Settings, k Kafka, now time.Time) *Session {
	return &Session{
		Settings: s, kafka: k, reading: make(chan struct{}, 1), lastUsed: now, changed: make(chan struct{}),
		assigned:  make(map[event.TopicPartition]int),
		delivered: make(map[event.TopicPartition]int64),
		committed: make(map[event.TopicPartition]int64),
		given:     make(map[event.TopicPartition]bool),
		floor:     make(map[event.TopicPartition]int64),
	}
}

// Subscribe joins the group for topics, or for a pattern when there are none. What was
// subscribed before is left, and what was read of it and not committed will come again. To
// ask for what is subscribed already changes nothing.
func (s *Session) Subscribe(ctx context.Context, topics []string, pattern string) error {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	if have := s.subscription(); len(have.Partitions) > 0 {
		return event.Errorf(event.Conflict, 40903, "subscribe", "the session has partitions that were assigned by hand; DELETE …/subscription first, or make another session")
	}
	return s.replace(ctx, subscription{Topics: topics, Pattern: pattern}, topics)
}

// Assign reads the given partitions without joining the group. None ends an assignment.
func (s *Session) Assign(ctx context.Context, tps []event.TopicPartition) error {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	if have := s.subscription(); !have.empty() && len(have.Partitions) == 0 {
		return event.Errorf(event.Conflict, 40903, "assign", "the session is subscribed; DELETE …/subscription first, or make another session")
	}
	var topics []string
	for _, tp := range tps {
		topics = append(topics, tp.Topic)
	}
	return s.replace(ctx, subscription{Partitions: tps}, topics)
}

// Unsubscribe leaves the group. A read that waits returns with nothing.
func (s *Session) Unsubscribe(ctx context.Context) error {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	return s.replace(ctx, subscription{}, nil)
}

func (s *Session) subscription() subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sub
}

// replace makes the session read something else, which the table is told first: who takes the
// session over from then on reads the new. It is called while subscribing is held.
func (s *Session) replace(ctx context.Context, sub subscription, topics []string) error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.subscription().equal(sub) {
		return s.join(ctx) // which may still be to be done
	}
	var err error
	if !sub.empty() && !s.FromEarliest {
		// What "latest" means is decided now, not when the session happens to read first.
		if sub.Starts, err = s.kafka.Ends(ctx, topics, sub.Pattern, s.ReadCommitted); err != nil {
			return err
		}
	}
	if err := s.store(ctx, func(r *record) { r.subscription = sub }); err != nil {
		return err
	}
	s.leave(true)
	s.mu.Lock()
	s.sub = sub
	s.moved = false
	s.mu.Unlock()
	return s.join(ctx)
}

// store changes what the table has of the session.
func (s *Session) store(ctx context.Context, change func(*record)) error {
	if err := s.usable(); err != nil || s.save == nil {
		return err
	}
	if err := s.save(ctx, change); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = time.Now()
	return nil
}

func (s *Session) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// Resume opens what a session reads that was taken over, unless that is done. Before it, the
// session can be subscribed anew, unsubscribed and deleted: what it reads may be gone.
func (s *Session) Resume(ctx context.Context) error {
	s.mu.Lock()
	done := s.consumer != nil || s.sub.empty()
	s.mu.Unlock()
	if done {
		return nil
	}
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	return s.join(ctx)
}

// join opens what the session reads. It is called while subscribing is held.
func (s *Session) join(ctx context.Context) error {
	s.mu.Lock()
	if s.closed != nil || s.consumer != nil || s.sub.empty() {
		defer s.mu.Unlock()
		return s.closed
	}
	s.member++
	member := s.member
	s.joined = false
	j := Join{Topics: s.sub.Topics, Pattern: s.sub.Pattern, Partitions: s.sub.Partitions, Starts: s.sub.Starts, Seeks: s.sub.Seeks, Fenced: s.lost}
	s.mu.Unlock()
	j.Group, j.Member, j.ReadCommitted = s.Group, s.Name, s.ReadCommitted
	j.Assigned = func(tps []event.TopicPartition) { s.onAssigned(member, tps) }
	j.Lost = func(tps []event.TopicPartition) { s.onLost(member, tps) }
	consumer, err := s.kafka.Open(ctx, j) // may ask Kafka: not under the lock
	if err != nil {
		return err
	}
	s.mu.Lock()
	closed := s.closed
	if closed == nil {
		s.consumer = consumer
	}
	s.mu.Unlock()
	if closed != nil {
		consumer.Close(false)
		return closed
	}
	if len(j.Partitions) > 0 {
		s.onAssigned(member, j.Partitions)
	}
	return nil
}

// leave ends the consumer. It is called while subscribing is held.
func (s *Session) leave(group bool) {
	s.mu.Lock()
	consumer := s.consumer
	s.consumer = nil
	s.member++
	s.forget(func(event.TopicPartition) bool { return true })
	s.mu.Unlock()
	if consumer != nil {
		consumer.Close(group) // calls onLost: not under the lock
	}
}

// Subscription lists the subscribed topics; of a pattern, those that it has partitions of.
func (s *Session) Subscription() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.consumer == nil || s.sub.Pattern == "" {
		return slices.Clone(s.sub.Topics)
	}
	var topics []string
	for _, tp := range s.consumer.Assigned() {
		topics = append(topics, tp.Topic)
	}
	return slices.Compact(topics)
}

// Assignments lists the partitions that the session has at present.
func (s *Session) Assignments() []event.TopicPartition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.consumer == nil {
		return nil
	}
	return s.consumer.Assigned()
}

func (s *Session) onAssigned(member int, tps []event.TopicPartition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if member != s.member {
		return
	}
	for _, tp := range tps {
		s.next++
		s.assigned[tp] = s.next
	}
	s.joined = true
	close(s.changed)
	s.changed = make(chan struct{})
}

// joinTimeout is how long a commit or a seek waits for a session that is joining its group.
const joinTimeout = 10 * time.Second

// awaitAssigned returns the assignments of partitions, all of which the session must have.
// One that has not been told its partitions yet is waited for.
func (s *Session) awaitAssigned(ctx context.Context, op string, tps func(yield func(event.TopicPartition) bool)) (Consumer, map[event.TopicPartition]int, error) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for {
		s.mu.Lock()
		consumer, joined, changed := s.consumer, s.joined, s.changed
		var missing *event.TopicPartition
		epochs := make(map[event.TopicPartition]int)
		for tp := range tps {
			if epochs[tp] = s.assigned[tp]; epochs[tp] == 0 {
				missing = &tp
			}
		}
		s.mu.Unlock()
		switch {
		case consumer == nil:
			return nil, nil, event.Errorf(event.Conflict, 40903, op, "the session is not subscribed to anything, nor has it partitions assigned; POST …/subscription or …/assignments first")
		case missing == nil:
			return consumer, epochs, nil
		case joined:
			return nil, nil, event.Errorf(event.Conflict, 40903, op, "partition %d of topic %q is not assigned to this session at present; read again", missing.Partition, missing.Topic)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, event.Errorf(event.Conflict, 40903, op, "the session has not joined its consumer group yet; read, or repeat the request")
		}
	}
}

// onLost forgets what was read of partitions that other members have from now on: they
// start at what is committed.
func (s *Session) onLost(member int, tps []event.TopicPartition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if member != s.member {
		return
	}
	s.forget(func(tp event.TopicPartition) bool { return slices.Contains(tps, tp) })
}

func (s *Session) forget(lost func(event.TopicPartition) bool) {
	for tp := range s.assigned {
		if lost(tp) {
			delete(s.assigned, tp)
			delete(s.delivered, tp)
			delete(s.committed, tp)
			delete(s.given, tp)
			delete(s.floor, tp)
		}
	}
	s.pending = slices.DeleteFunc(s.pending, func(r event.Record) bool { return lost(placeOf(&r)) })
	s.count()
}

func (s *Session) count() {
	s.pendingBytes = 0
	for i := range s.pending {
		s.pendingBytes += weight(&s.pending[i])
	}
}

// Batch is what one read gives. Exactly one of Delivered, Failed and Unknown must be called.
type Batch struct {
	Records   []event.Record
	session   *Session
	epochs    map[event.TopicPartition]int
	committed map[event.TopicPartition]int64 // by offsets while it was out
	ended     chan struct{}
	done      func()
}

// Read waits up to wait for records, or until ctx ends, and takes at least one of them,
// then more up to maxBytes of keys, values and headers. None is an empty batch. With
// AutoCommit it first commits what was delivered before.
func (s *Session) Read(ctx context.Context, wait time.Duration, maxBytes int64) (*Batch, error) {
	select {
	case s.reading <- struct{}{}:
	case <-ctx.Done():
		return nil, event.Errorf(event.Gone, 0, "read", "the client went away")
	}
	done := sync.OnceFunc(func() { <-s.reading })
	batch, err := s.read(ctx, wait, maxBytes)
	if err != nil {
		done()
		return nil, err
	}
	batch.done = done
	return batch, nil
}

func (s *Session) read(ctx context.Context, wait time.Duration, maxBytes int64) (*Batch, error) {
	if s.AutoCommit {
		// What was read of a topic that is gone cannot be committed; to read finds out whether there is
		// another one of its name.
		if err := s.commitDelivered(ctx); err != nil && !topicIsGone(err) {
			return nil, err
		}
	}
	s.mu.Lock()
	consumer, member, closed := s.consumer, s.member, s.closed
	s.mu.Unlock()
	take := func(records []event.Record) { s.take(member, records) }
	switch {
	case closed != nil:
		return nil, closed
	case consumer == nil:
		return nil, event.Errorf(event.Conflict, 40903, "read", "the session is not subscribed to anything, nor has it partitions assigned; POST …/subscription or …/assignments first")
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	s.stoppable(cancel)
	defer s.stoppable(nil)
	want := min(int64(max(s.MinBytes, 1)), maxBytes)
	for ctx.Err() == nil && s.waiting() < want {
		if err := consumer.Poll(ctx, pollRecords, take); err != nil {
			if closed := s.usable(); errors.Is(closed, ErrMoved) {
				return nil, closed
			}
			if s.replaced(member) {
				return s.give(maxBytes), nil // unsubscribed meanwhile: there is nothing
			}
			return nil, err
		}
	}
	for before := int64(-1); before < s.waiting() && s.waiting() < maxBytes; {
		before = s.waiting()
		if consumer.Buffered(pollRecords, take) != nil {
			break // the next read will meet it
		}
	}
	return s.give(maxBytes), nil
}

func topicIsGone(err error) bool {
	ee, ok := errors.AsType[*event.Error](err)
	return ok && ee.Kind == event.NotFound && ee.Code == 40401
}

// stoppable lets a seek end the wait of a read, from now on until it is told nil.
func (s *Session) stoppable(stop context.CancelFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopPoll = stop; stop != nil && s.seeking > 0 {
		stop()
	}
}

func (s *Session) take(member int, records []event.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if member != s.member {
		return
	}
	mine, floor, n := false, int64(0), 0
	for i := range records {
		if newPlace(records, i) {
			tp := placeOf(&records[i])
			_, mine = s.assigned[tp]
			floor = s.floor[tp]
		}
		if !mine || records[i].Offset < floor {
			continue
		}
		s.pendingBytes += weight(&records[i])
		if n < i {
			records[n] = records[i]
		}
		n++
	}
	if records = records[:n]; len(s.pending) == 0 {
		s.pending = records
	} else {
		s.pending = append(s.pending, records...)
	}
}

// weight is what a record counts until it is given: one that is empty counts, too.
func weight(r *event.Record) int64 { return int64(r.Size()) + 1 }

func (s *Session) waiting() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pendingBytes
}

func (s *Session) replaced(member int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.member != member
}

// give takes the batch off the pending records.
func (s *Session) give(maxBytes int64) *Batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &Batch{session: s, epochs: make(map[event.TopicPartition]int), committed: make(map[event.TopicPartition]int64), ended: make(chan struct{})}
	var size int64
	n := 0
	for n < len(s.pending) {
		w := weight(&s.pending[n])
		if n > 0 && size+w > maxBytes {
			break
		}
		size += w
		n++
	}
	if n > 0 {
		s.out = b
	}
	s.pendingBytes -= size
	b.Records = s.pending[:n:n]
	s.pending = s.pending[n:]
	for i := range b.Records {
		if newPlace(b.Records, i) {
			tp := placeOf(&b.Records[i])
			b.epochs[tp] = s.assigned[tp]
		}
	}
	return b
}

// Delivered says that the client was given the batch: it may be committed from now on.
func (b *Batch) Delivered() {
	s := b.session
	s.mu.Lock()
	for i := range b.Records {
		if i+1 < len(b.Records) && !newPlace(b.Records, i+1) {
			continue // a later one of the same partition follows
		}
		if tp := placeOf(&b.Records[i]); b.has(tp) {
			s.delivered[tp] = b.Records[i].Offset + 1
			s.given[tp] = true
			s.moved = false
		}
	}
	b.end()
}

// Failed says that the client did not get the batch: the next read gives it again.
func (b *Batch) Failed() {
	b.session.mu.Lock()
	b.giveAgain()
	b.end()
}

// Unknown says that the client may have got the batch, or not: the next read gives it again, but
// for what the client commits by offsets before. To commit without offsets is refused until then.
func (b *Batch) Unknown() {
	s := b.session
	s.mu.Lock()
	for tp := range b.epochs {
		if b.has(tp) {
			delete(s.given, tp)
			s.moved = true
		}
	}
	b.giveAgain()
	b.end()
}

// has tells whether the session still has a partition as it had when the batch was made.
func (b *Batch) has(tp event.TopicPartition) bool {
	return b.epochs[tp] != 0 && b.session.assigned[tp] == b.epochs[tp]
}

func (b *Batch) giveAgain() {
	s := b.session
	again := slices.DeleteFunc(b.Records, func(r event.Record) bool {
		tp := placeOf(&r)
		return !b.has(tp) || r.Offset < b.committed[tp]
	})
	s.pending = append(again, s.pending...)
	s.count()
}

// end is called with the session locked, and unlocks it.
func (b *Batch) end() {
	if b.session.out == b {
		b.session.out = nil
	}
	b.session.mu.Unlock()
	close(b.ended)
	b.done()
}

// outTimeout is how long a commit waits for an answer that is on its way.
const outTimeout = 5 * time.Second

// awaitOut waits until no batch is on its way: a client that has all of it may commit before it
// is known here.
func (s *Session) awaitOut(ctx context.Context) error {
	s.mu.Lock()
	out := s.out
	s.mu.Unlock()
	if out == nil {
		return nil
	}
	timeout := time.NewTimer(outTimeout)
	defer timeout.Stop()
	select {
	case <-out.ended:
		return nil
	case <-ctx.Done():
		return event.Errorf(event.Gone, 0, "commit", "the client went away")
	case <-timeout.C:
		return event.Errorf(event.Conflict, 40903, "commit", "records are being given to a reader of this session at present; commit when it has them all, or commit by offsets")
	}
}

// Commit stores the place after everything that the client was given. What that was is not
// known of a session that has moved since, or of one whose last answer may have been lost.
func (s *Session) Commit(ctx context.Context) error {
	if err := s.awaitOut(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	moved := s.moved
	s.mu.Unlock()
	if moved {
		if done, err := s.allCommitted(ctx); err != nil || done {
			return err
		}
		return event.Errorf(event.Conflict, 40903, "commit", "it is not known what the client was given: the session has moved to another replica since the last read, or the answer to that may have been lost; read again, or commit by offsets")
	}
	return s.commitDelivered(ctx)
}

// allCommitted tells whether there is nothing that the client could have been given, before
// the session moved, and not committed.
func (s *Session) allCommitted(ctx context.Context) (bool, error) {
	s.mu.Lock()
	assigned := slices.Collect(maps.Keys(s.assigned))
	sub := s.sub
	s.mu.Unlock()
	if len(assigned) == 0 {
		return sub.empty(), nil
	}
	var topics []string
	for _, tp := range assigned {
		topics = append(topics, tp.Topic)
	}
	ends, err := s.kafka.Ends(ctx, topics, "", s.ReadCommitted)
	if err != nil {
		return false, err
	}
	committed, err := s.kafka.Committed(ctx, s.Group)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(assigned, func(tp event.TopicPartition) bool {
		at, since := sub.Starts[tp], event.NoCommit
		if c, ok := committed[tp]; ok {
			at, since = c.Offset, c.Offset
		}
		if seek, ok := sub.Seeks[tp]; ok && seek.Since == since { // it holds, and was gone on from
			at = seek.Offset
		}
		return at < ends[tp]
	}), nil
}

func (s *Session) commitDelivered(ctx context.Context) error {
	s.mu.Lock()
	offsets := make(map[event.TopicPartition]event.Commit)
	for tp, offset := range s.delivered {
		if committed, ok := s.committed[tp]; !ok || committed != offset {
			offsets[tp] = event.Commit{Offset: offset}
		}
	}
	s.mu.Unlock()
	return s.CommitOffsets(ctx, offsets)
}

// CommitOffsets stores the given offsets, each of the next record to read. All must be of
// partitions that the session has: another member may be past them otherwise.
func (s *Session) CommitOffsets(ctx context.Context, offsets map[event.TopicPartition]event.Commit) error {
	if len(offsets) == 0 {
		return nil
	}
	consumer, epochs, err := s.awaitAssigned(ctx, "commit", maps.Keys(offsets))
	if err != nil {
		return err
	}
	if s.owned != nil && len(s.subscription().Partitions) > 0 {
		// Kafka does not know whose partitions are that were assigned by hand.
		if err := s.owned(ctx); err != nil {
			return err
		}
	}
	if err := consumer.Commit(ctx, offsets); err != nil {
		if closed := s.usable(); errors.Is(closed, ErrMoved) {
			return closed
		}
		return err
	}
	if err := s.forgetSeeks(ctx, offsets); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for tp, c := range offsets {
		if s.assigned[tp] != epochs[tp] {
			continue
		}
		s.committed[tp] = c.Offset
		if s.out != nil {
			s.out.committed[tp] = c.Offset
		}
		if !s.given[tp] {
			s.floor[tp] = c.Offset
			s.pending = slices.DeleteFunc(s.pending, func(r event.Record) bool { return placeOf(&r) == tp && r.Offset < c.Offset })
			s.count()
		}
	}
	return nil
}

// forgetSeeks takes the seeks of partitions out of the table that have been committed since:
// who takes the session over must not go back there.
func (s *Session) forgetSeeks(ctx context.Context, committed map[event.TopicPartition]event.Commit) error {
	has := func(seeks map[event.TopicPartition]event.Seek) bool {
		for tp := range committed {
			if _, ok := seeks[tp]; ok {
				return true
			}
		}
		return false
	}
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	seeks := s.subscription().Seeks
	if !has(seeks) {
		return nil
	}
	seeks = maps.Clone(seeks)
	for tp := range committed {
		delete(seeks, tp)
	}
	return s.storeSeeks(ctx, seeks)
}

// storeSeeks is called while subscribing is held.
func (s *Session) storeSeeks(ctx context.Context, seeks map[event.TopicPartition]event.Seek) error {
	if err := s.store(ctx, func(r *record) { r.Seeks = seeks }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sub.Seeks = seeks
	return nil
}

// end makes the session of no use, for a reason, and ends its consumer.
func (s *Session) end(why error, leaveGroup bool) {
	s.mu.Lock()
	if s.closed == nil {
		s.closed = why
	}
	s.mu.Unlock()
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	s.leave(leaveGroup)
}

// newPlace tells whether a record is of another partition than the one before it: records come
// in long runs of one partition, and a look into a map for each would be what a drain costs.
func newPlace(records []event.Record, i int) bool {
	return i == 0 || placeOf(&records[i]) != placeOf(&records[i-1])
}

func placeOf(r *event.Record) event.TopicPartition {
	return event.TopicPartition{Topic: r.Topic, Partition: r.Partition}
}
