package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"postamt/sidecar/internal/event"
)

const (
	// A reader waits at most this long for the end of the table as it is.
	catchUpTimeout = 2 * time.Second
	// A transaction that is open for so long belongs to a writer that died in it. Or to one that
	// is slow: the time doubles with each transaction that is ended for it, up to the second, and
	// is the first again after a minute.
	openTooLong     = 700 * time.Millisecond
	openMuchTooLong = 4 * openTooLong
	openCalm        = time.Minute
	// A write is tried again, from reading on, so often, and within this time in all.
	writeAttempts = 8
	writeTimeout  = 5 * time.Second
	// Before the next attempt a writer waits a random part of this.
	writeBackoff = 100 * time.Millisecond
	// As many writes as this wait at most, and go into one transaction.
	maxWaitingWrites = 10_000
	// Kafka aborts the transaction of a writer that died after this time, if no other writer
	// has done so before.
	tableTxnTimeout = 10 * time.Second
	// While a transaction is open, its end is waited for in steps of this.
	endWait = 50 * time.Millisecond
	// The follower asks again after this time when nothing has changed.
	followWait = time.Second
	// And after this, when Kafka could not answer.
	followPause = 500 * time.Millisecond
)

// Table is a map from keys to values in a compacted topic of one partition, the same for all
// processes that open it. A write is a compare-and-set: of two that go from the same value,
// one succeeds. It is safe for concurrent use.
//
// All writers have one transactional id. Whoever becomes its producer fences the one before,
// then reads to the end, checks, and writes in a transaction. A transaction that commits
// proves that nobody else has become the producer since, and so that nobody has written.
type Table struct {
	topic   string
	servers []string
	log     *slog.Logger
	changed func(key string, value []byte)
	reader  *tableReader // of who asks for the end
	writes  chan *tableWrite

	applying sync.Mutex // held while records are applied, so that changed is told in their order

	mu       sync.RWMutex
	rows     map[string][]byte
	id       [16]byte       // of the topic that rows are of
	next     int64          // offset after the last record that was applied
	openAt   int64          // where a transaction was seen to be open, if next is still that
	openFrom time.Time      // since when
	written  map[int64]bool // by offset, of the writer's own records: whether they have been read
	patience time.Duration
	ended    time.Time // when patience grew

	following atomic.Int64 // when the follower asked what it last had an answer to, in Unix nanoseconds

	flights       sync.Mutex
	flying, ahead *catchUp
	flyers        sync.WaitGroup
	life          context.Context // of the flyers
	end           context.CancelFunc
}

// OpenTable opens a table. Nothing is read before Run. changed, if not nil, is told every
// change in order, from the first record on; a value of nil means that the key is gone. It
// must not call the table's methods but Get.
func OpenTable(servers []string, topic string, changed func(key string, value []byte), log *slog.Logger) (*Table, error) {
	reader, err := newTableReader(servers, topic)
	if err != nil {
		return nil, err
	}
	if changed == nil {
		changed = func(string, []byte) {}
	}
	life, end := context.WithCancel(context.Background())
	return &Table{
		life: life, end: end,
		topic: topic, servers: servers, log: log.With("table", topic), changed: changed, reader: reader,
		writes: make(chan *tableWrite, maxWaitingWrites), rows: make(map[string][]byte), openAt: -1,
	}, nil
}

// Close ends the connections, after Run has returned.
func (t *Table) Close() {
	t.end()
	t.reader.client.Close()
	t.flyers.Wait()
}

// Get returns the value of a key as far as this process has read. It must not be changed.
func (t *Table) Get(key string) (value []byte, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	value, ok = t.rows[key]
	return value, ok
}

// Following tells whether changes come in: what Get knows is at most three seconds old.
func (t *Table) Following() bool {
	return time.Since(time.Unix(0, t.following.Load())) < 3*followWait
}

// Run follows the topic and writes what Update is given, until ctx ends; then it returns nil.
func (t *Table) Run(ctx context.Context) error {
	follower, err := newTableReader(t.servers, t.topic)
	if err != nil {
		return err
	}
	defer follower.client.Close()
	var done sync.WaitGroup
	done.Go(func() { t.write(ctx) })
	for failed := false; ctx.Err() == nil; {
		// An answer may have waited for us, if this process was stopped meanwhile.
		asked := time.Now()
		_, err := t.read(ctx, follower, followWait)
		if errors.Is(err, errMadeAnew) {
			continue
		}
		if err != nil && ctx.Err() == nil {
			if !failed { // once: the health check says it, too
				t.log.Warn("cannot follow", "error", err)
			}
			sleep(ctx, followPause)
		}
		if failed = err != nil; !failed {
			t.following.Store(asked.UnixNano())
		}
	}
	done.Wait()
	return nil
}

// errMadeAnew is of a read that found another topic of the name, which nothing is known of yet.
var errMadeAnew = errors.New("the topic was made anew")

// read fetches once and applies. end is where the records of the topic end, among them those
// of transactions that are still open.
func (t *Table) read(ctx context.Context, r *tableReader, wait time.Duration) (end int64, err error) {
	t.mu.RLock()
	from, known := t.next, t.id
	t.mu.RUnlock()
	got, err := r.fetch(ctx, from, wait)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return 0, t.restart(ctx, r, from, known, got.id)
	}
	if err != nil {
		return 0, err
	}
	if !t.applyAll(got) {
		return 0, t.restart(ctx, r, from, known, got.id)
	}
	return got.end, nil
}

// applyAll applies what was fetched, unless that is of another topic.
func (t *Table) applyAll(got fetched) bool {
	t.applying.Lock()
	defer t.applying.Unlock()
	t.mu.Lock()
	if t.id == ([16]byte{}) {
		t.id = got.id
	}
	same := t.id == got.id
	t.mu.Unlock()
	if !same {
		return false
	}
	for _, rec := range got.records {
		t.apply(rec)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = max(t.next, got.next)
	if t.next < got.end && t.openAt != t.next {
		t.openAt, t.openFrom = t.next, time.Now()
	}
	return true
}

// stuck tells whether a transaction has been open for too long, and where.
func (t *Table) stuck() (at int64, is bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.next, t.openAt == t.next && time.Since(t.openFrom) > t.patienceNow()
}

func (t *Table) patienceNow() time.Duration {
	if time.Since(t.ended) > openCalm {
		return openTooLong
	}
	return t.patience
}

// endOpen tells whether the transaction that was open at an offset is still to be ended, which
// its caller then does.
func (t *Table) endOpen(at int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != at {
		return false
	}
	t.patience, t.ended = min(2*t.patienceNow(), openMuchTooLong), time.Now()
	return true
}

// apply is called with applying held. What another reader has applied already is skipped.
func (t *Table) apply(r *kgo.Record) {
	if r.Attrs.IsControl() {
		return
	}
	key := string(r.Key)
	t.mu.Lock()
	if r.Offset < t.next {
		t.mu.Unlock()
		return
	}
	if _, ours := t.written[r.Offset]; ours {
		t.written[r.Offset] = true
	}
	if r.Value == nil {
		delete(t.rows, key)
	} else {
		t.rows[key] = r.Value
	}
	t.next = r.Offset + 1
	t.mu.Unlock()
	t.changed(key, r.Value)
}

// restart begins anew with a topic that is not the one that was read up to an offset, or does
// not have what was to be read next: it has been deleted and made again. It returns errMadeAnew,
// or why that could not be done.
func (t *Table) restart(ctx context.Context, r *tableReader, from int64, known, id [16]byte) error {
	listed, err := kadm.NewClient(r.client).ListStartOffsets(ctx, t.topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return err
	}
	first, _ := listed.Lookup(t.topic, 0)
	t.applying.Lock()
	defer t.applying.Unlock()
	t.mu.Lock()
	if t.next != from || t.id != known {
		t.mu.Unlock()
		return errMadeAnew // another reader has seen to it, and knows more
	}
	gone := t.rows
	t.rows, t.next, t.id, t.openAt = make(map[string][]byte), first.Offset, id, -1
	t.mu.Unlock()
	t.log.Warn("the topic was made anew", "was_at", from, "begins_at", first.Offset)
	for key := range gone {
		t.changed(key, nil)
	}
	return errMadeAnew
}

// catchUp is a reading to the end that began after all who wait for it had asked.
type catchUp struct {
	done chan struct{}
	err  error
}

// CatchUp reads to the end as it is now: Get then knows everything that was written, by any
// process, before this call. Unavailable means that it could not within two seconds.
func (t *Table) CatchUp(ctx context.Context) error {
	t.flights.Lock()
	if t.ahead == nil {
		t.ahead = &catchUp{done: make(chan struct{})}
		if t.flying == nil {
			t.flyers.Go(t.fly)
		}
	}
	mine := t.ahead
	t.flights.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return wrap("kafka.CatchUp", ctx.Err())
	}
}

// fly reads to the end for those who wait, as long as there are some.
func (t *Table) fly() {
	for {
		t.flights.Lock()
		t.flying, t.ahead = t.ahead, nil
		now := t.flying
		t.flights.Unlock()
		if now == nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.life, catchUpTimeout)
		if err := t.readToEnd(ctx, t.askToEnd); err != nil {
			now.err = tableError("kafka.CatchUp", err)
		}
		cancel()
		close(now.done)
	}
}

// errStuck is of a reading to the end that came upon the transaction of a writer that died.
var errStuck = errors.New("a transaction has been open for too long")

// readToEnd reads up to the end as it is when it begins, and returns when changed has been told
// all. On the way there may be the transaction of a writer that died: then it calls ended, once,
// which has it ended, or returns why the reading is to stop.
func (t *Table) readToEnd(ctx context.Context, ended func(at int64) error) error {
	end := int64(-1)
	wait := time.Duration(0)
	var said error // by Kafka, which says more than that the time is over
	for {
		at, err := t.read(ctx, t.reader, wait)
		if errors.Is(err, errMadeAnew) {
			end = -1
		}
		if err != nil {
			if ctx.Err() == nil || said == nil {
				said = err
			}
			if !sleep(ctx, placePause) {
				return said
			}
			continue
		}
		if end < 0 {
			end, wait = at, endWait
		}
		t.mu.RLock()
		next := t.next
		t.mu.RUnlock()
		if next >= end {
			t.applying.Lock() // who has moved next may be about to tell
			defer t.applying.Unlock()
			return nil
		}
		if at, is := t.stuck(); is && ended != nil {
			if err := ended(at); err != nil {
				return err
			}
			ended = nil
		}
	}
}

// askToEnd has the writer end an open transaction.
func (t *Table) askToEnd(at int64) error {
	select {
	case t.writes <- &tableWrite{fence: true, openAt: at, answer: make(chan error, 1)}:
	default: // many writes wait: they will do it
	}
	return nil
}

// tableReader fetches from the table's partition.
type tableReader struct {
	topic  string
	client *kgo.Client

	mu     sync.Mutex
	leader int32 // -1: to be asked
	id     [16]byte
}

func newTableReader(servers []string, topic string) (*tableReader, error) {
	client, err := NewClient(servers, kgo.ClientID("postamt-table"))
	if err != nil {
		return nil, fmt.Errorf("make the client of table %s: %w", topic, err)
	}
	return &tableReader{topic: topic, client: client, leader: -1}, nil
}

// fetched is the answer to a fetch.
type fetched struct {
	id      [16]byte // of the topic; zero from a Kafka that has none
	records []*kgo.Record
	next    int64 // the offset after all that it has seen, be it records or not
	end     int64 // where the topic ends
}

// fetch returns the committed records from an offset on, waiting for some.
//
// It is not the client's own polling that does this, since that does not say how far it is in
// a log whose last records compaction, or an abort, has taken away.
func (r *tableReader) fetch(ctx context.Context, from int64, wait time.Duration) (fetched, error) {
	leader, id, err := r.find(ctx)
	if err != nil {
		return fetched{id: id}, err
	}
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis = int32(wait.Milliseconds())
	req.MinBytes = 1
	req.MaxBytes = fetchMaxBytes
	req.IsolationLevel = 1
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic, topic.TopicID = r.topic, id
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.FetchOffset = from
	partition.PartitionMaxBytes = fetchMaxBytes
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)
	// Tried once: whoever asks again asks for the leader, too.
	answer, err := r.client.Broker(int(leader)).Request(ctx, req)
	if err != nil {
		r.forget()
		return fetched{id: id}, err
	}
	resp := answer.(*kmsg.FetchResponse)
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		r.forget()
		return fetched{id: id}, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return fetched{}, errors.New("the answer is not of the partition that was asked for")
	}
	p := &resp.Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
		r.forget()
		return fetched{id: id}, err
	}
	got, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		KeepControlRecords: true, Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: r.topic,
	}, p, kgo.DefaultDecompressor(), nil)
	if got.Err != nil {
		return fetched{}, got.Err
	}
	return fetched{id, got.Records, max(next, from), p.HighWatermark}, nil
}

// find asks who leads the partition, and for the topic's id, unless that is known.
func (r *tableReader) find(ctx context.Context) (leader int32, id [16]byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leader >= 0 {
		return r.leader, r.id, nil
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = &r.topic
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, r.client)
	if err != nil {
		return -1, id, err
	}
	for _, t := range resp.Topics {
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return -1, id, err
		}
		for _, p := range t.Partitions {
			if p.Partition == 0 && p.Leader >= 0 {
				r.leader, r.id = p.Leader, t.TopicID
				return r.leader, r.id, nil
			}
		}
	}
	return -1, id, kerr.LeaderNotAvailable
}

func (r *tableReader) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leader = -1
}

// tableWrite is one Update that waits.
type tableWrite struct {
	ctx    context.Context
	key    string
	change func(old []byte) ([]byte, error)
	answer chan error // has room for one
	fence  bool       // nothing is to be written, only the transaction ended that is open at an offset
	openAt int64

	tried bool   // a transaction with it may have been committed, or not
	value []byte // the key's value in that
}

// Update sets a key's value to what change makes of the one before; nil stands for none, both
// before and after. change may be called several times, and must only compute. An error of
// its own is returned as it is, and nothing is written. Conflict means that other processes
// write all the time, Unavailable that Kafka could not be asked: the change may have been made.
//
// Values must differ between any two writers: a write whose outcome is not known counts as
// done when its value is found.
func (t *Table) Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error {
	w := &tableWrite{ctx: ctx, key: key, change: change, answer: make(chan error, 1)}
	select {
	case t.writes <- w:
	default:
		return event.Errorf(event.TooMany, 0, "kafka.Update", "too many changes wait for Kafka; repeat the request later")
	}
	select {
	case err := <-w.answer:
		return err
	case <-ctx.Done():
		return wrap("kafka.Update", ctx.Err())
	}
}

// write takes what waits, all of it into one transaction, until ctx ends.
func (t *Table) write(ctx context.Context) {
	p := &tableProducer{t: t}
	defer p.end()
	for {
		var batch []*tableWrite
		select {
		case <-ctx.Done():
			for { // those that came last learn it at once
				select {
				case w := <-t.writes:
					w.answer <- wrap("kafka.Update", kgo.ErrClientClosed)
				default:
					return
				}
			}
		case w := <-t.writes:
			batch = append(batch, w)
		}
		for len(t.writes) > 0 {
			batch = append(batch, <-t.writes)
		}
		t.writeBatch(ctx, p, batch)
	}
}

func (t *Table) writeBatch(ctx context.Context, p *tableProducer, batch []*tableWrite) {
	bounded, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		var err error
		batch, err = p.try(bounded, batch)
		if len(batch) == 0 {
			return
		}
		t.log.Debug("write failed", "attempt", attempt, "writes", len(batch), "error", err)
		p.end()
		if attempt == writeAttempts || bounded.Err() != nil {
			for _, w := range batch {
				w.answer <- writeError(err)
			}
			return
		}
		sleep(ctx, rand.N(writeBackoff*time.Duration(attempt))+time.Millisecond)
	}
}

// writeError is what a writer gives up with.
func writeError(err error) error {
	const op = "kafka.Update"
	for _, fenced := range []error{kerr.ProducerFenced, kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.ConcurrentTransactions, kerr.TransactionAbortable, kerr.OperationNotAttempted} {
		if errors.Is(err, fenced) {
			return &event.Error{Kind: event.Conflict, Op: op, Msg: "other replicas change the same all the time; repeat the request", Err: err}
		}
	}
	return tableError(op, err)
}

// tableError is of a table that cannot be read or written. Its topic is not a client's.
func tableError(op string, err error) error {
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: op, Msg: "the topic of Postamt's own that this needs has not been made yet (postamt bootstrap makes it); repeat the request later", Err: err}
	}
	if _, answered := errors.AsType[*kerr.Error](err); answered {
		return wrap(op, err)
	}
	return &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: op, Msg: msgAway, Err: err}
}

// tableProducer holds the transactional id, as far as it knows.
type tableProducer struct {
	t      *Table
	client *kgo.Client // nil: to be made, which fences all others
	close  func()      // closes the client, once
}

func (p *tableProducer) end() {
	if p.client != nil {
		p.close() // what it has open is aborted by the next who takes the id
		p.client = nil
	}
}

// try answers all of the batch that it can, and returns the rest with the reason.
func (p *tableProducer) try(ctx context.Context, batch []*tableWrite) ([]*tableWrite, error) {
	for _, w := range batch {
		if w.fence && p.t.endOpen(w.openAt) {
			p.end()
		}
	}
	if p.client == nil {
		client, err := NewClient(p.t.servers,
			kgo.ClientID("postamt-table"), kgo.TransactionalID(p.t.topic), kgo.TransactionTimeout(tableTxnTimeout),
			kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(1_000_000))
		if err != nil {
			return batch, err
		}
		p.client, p.close = client, sync.OnceFunc(client.Close)
	}
	// A record that is on its way is not given up for a context, only with the client.
	defer context.AfterFunc(ctx, p.close)()
	// Before anything is read: this may have to take the id anew.
	if _, _, err := p.client.ProducerID(ctx); err != nil {
		return batch, err
	}
	if err := p.readToEnd(ctx); err != nil {
		return batch, err
	}
	values := make(map[string][]byte) // by key, of what is to be written
	var written []*tableWrite
	for _, w := range batch {
		if w.fence {
			w.answer <- nil
			continue
		}
		old, staged := values[w.key]
		if !staged {
			old, _ = p.t.Get(w.key)
		}
		if w.tried && !staged && same(old, w.value) {
			w.answer <- nil
			continue
		}
		if err := w.ctx.Err(); err != nil {
			w.answer <- wrap("kafka.Update", err)
			continue
		}
		switch value, err := w.change(old); {
		case err != nil:
			w.answer <- err
		case same(value, old):
			w.answer <- nil
		default:
			values[w.key] = value
			written = append(written, w)
		}
	}
	if len(written) == 0 {
		return nil, nil
	}
	for _, w := range written {
		w.tried, w.value = true, values[w.key]
	}
	if err := p.transact(ctx, values); err != nil {
		return written, err
	}
	for _, w := range written {
		w.answer <- nil
	}
	return nil, nil
}

func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

// readToEnd reads what has been written. Whoever has a transaction open may have taken the id
// from us, and died: to take it back ends that.
func (p *tableProducer) readToEnd(ctx context.Context) error {
	return p.t.readToEnd(ctx, func(at int64) error {
		p.t.endOpen(at)
		return errStuck
	})
}

// errAborted is of a transaction whose commit was answered, and whose records are not there.
var errAborted = errors.New("the transaction was aborted")

// transact writes all values, or none, and reads them. Only that proves that they are there: the
// client makes an abort of a commit, and says nothing, when it does not find that it has written.
func (p *tableProducer) transact(ctx context.Context, values map[string][]byte) error {
	if err := p.client.BeginTransaction(); err != nil {
		return err
	}
	records := make([]*kgo.Record, 0, len(values))
	for key, value := range values {
		records = append(records, &kgo.Record{Topic: p.t.topic, Key: []byte(key), Value: value})
	}
	if err := p.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	written := make(map[int64]bool, len(records))
	for _, r := range records {
		written[r.Offset] = false
	}
	p.t.await(written)
	defer p.t.await(nil)
	if err := p.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return err
	}
	if err := p.readToEnd(ctx); err != nil {
		return err
	}
	p.t.mu.RLock()
	defer p.t.mu.RUnlock()
	for _, read := range written {
		if !read {
			return errAborted
		}
	}
	return nil
}

// await notes in written, from now on, what is read of it.
func (t *Table) await(written map[int64]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written = written
}
