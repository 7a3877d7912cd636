package httpapi

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"postamt/sidecar/internal/event"
)

// RecordStream produces records of one topic whose number is not known beforehand.
type RecordStream interface {
	// Send hands a record over, and waits while too many have no acknowledgement. An error
	// means that the record was not taken, and that no later one will be.
	Send(ctx context.Context, rec event.Record) error
	// Skip gives the next record, which is not sent, its outcome.
	Skip(err *event.Error)
	// Close says that no more is sent. Finish does so, too, and waits for the last
	// acknowledgement or the end of ctx.
	Close()
	Finish(ctx context.Context)
	// Results gives, after Finish, what became of each record, in their order.
	Results() iter.Seq2[int, event.Result]
}

const (
	// uploadBuffer is what one upload keeps of its body without counting it as in flight.
	uploadBuffer = 16 << 10
	// resultBytes is what a RecordStream keeps of each record until the answer.
	resultBytes = 16
	// countedAtOnce is for how many results bytes are counted at a time.
	countedAtOnce = 1024
	// lastBytes is how long what a client is sending is still taken after an answer that does
	// not wait for it, and lastPause how long nothing may come then.
	lastBytes = 3 * time.Second
	lastPause = 200 * time.Millisecond
)

// recordReader takes a body apart.
type recordReader interface {
	// next gives a record, or why it is none (bad). err means that there is no further one,
	// io.EOF that the body was read to its end.
	next() (rec event.Record, bad *event.Error, err error)
	// ahead is how many bytes have been read beyond the last record.
	ahead() int
}

// upload is a body of many records, which are produced while it arrives. These times hold:
// READ_TIMEOUT bounds each wait for the client's next bytes, and not the whole, which may take
// as long as it likes; REQUEST_TIMEOUT bounds the wait for the last acknowledgements after
// the last byte, and a wait for room below MAX_IN_FLIGHT_BYTES. A shutdown ends an upload
// after half its time. In each case the client gets the results of what it has sent.
type upload struct {
	s    *Server
	ctx  context.Context
	body io.ReadCloser // unpacked

	records  recordReader
	stream   RecordStream
	mark     func(*event.Record) // gives it what it is to have before it counts
	received int
	ended    *event.Error // why the body was not read to its end

	inBuffer int64 // bytes that were read and are of no record yet
	held     int64 // what of them is counted as in flight
	besides  int64 // what is counted as MAX_STREAM_BYTES: for results, and to unpack
}

// receive produces the records of a request's body, which reader takes apart, and then calls
// answer, unless there is nothing to report: then the answer is an error. cost is what is kept of
// each record until the answer, in bytes.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, topic string, cost int64, reader func(io.Reader) recordReader, answer func(*upload)) error {
	release, err := s.openStream()
	if err != nil {
		return err
	}
	defer release()
	// The request's own context ends, too, when reading does by a deadline of ours; and while a
	// body is being read nothing else would end it.
	u := &upload{s: s, ctx: context.WithoutCancel(r.Context())}
	defer func() {
		s.inFlight.Release(u.held)
		s.uploads.Release(u.besides)
	}()
	encoding := r.Header.Get("Content-Encoding")
	if strings.EqualFold(encoding, "zstd") {
		if !s.uploads.TryAcquire(zstdBytes) {
			return event.Errorf(event.TooMany, 0, "produce", "the streams of records that come in hold as many bytes as they may (MAX_STREAM_BYTES=%d); repeat the request later, or without zstd", s.opts.Limits.StreamBytes)
		}
		u.besides = zstdBytes
	}
	conn := http.NewResponseController(w)
	// Otherwise an answer that begins before the body's end would first wait for more of it.
	_ = conn.EnableFullDuplex()
	patient := &patientReader{ReadCloser: r.Body, conn: conn, pause: s.opts.ReadTimeout}
	defer context.AfterFunc(s.stopping, func() { patient.endIn(s.opts.ShutdownTimeout / 2) })()

	if u.body, err = unpack(encoding, patient); err != nil {
		u.ended = asError(err)
	} else {
		defer func() { _ = u.body.Close() }()
		u.stream, u.mark = s.recordStream(u.ctx, 0, func(size int, _ error) { s.inFlight.Release(int64(size)) })
		defer u.stream.Close()
		u.records = reader(u)
		if err := u.feed(topic, cost); err != io.EOF { //nolint:errorlint // feed returns it bare
			u.ended = patient.why(err)
		}
	}
	if u.ended == nil {
		patient.over()      // what comes next is ours, and may take its time
		u.ctx = r.Context() // which ends when the client goes away
	} else {
		w.Header().Set("Connection", "close")
		defer patient.discard()()
	}
	if u.received > 0 {
		ctx, cancel := context.WithTimeout(u.ctx, s.opts.RequestTimeout)
		defer cancel()
		u.stream.Finish(ctx)
		err = u.noneStored()
	} else if u.ended != nil {
		err = u.ended
	}
	if gone := u.ctx.Err(); gone != nil {
		err = gone
	}
	if err != nil {
		s.fail(w, r.WithContext(u.ctx), err)
		return nil
	}
	if u.ended != nil {
		s.count(w, r, u.ended)
	}
	answer(u)
	return nil
}

// feed sends records until there is a reason to stop: io.EOF is the body's end.
func (u *upload) feed(topic string, cost int64) error {
	for {
		rec, bad, err := u.records.next()
		if err != nil {
			return err
		}
		if u.received == u.s.opts.Limits.StreamRecords {
			return event.Errorf(event.Unprocessable, 0, "produce", "a request takes at most %d records (MAX_STREAM_RECORDS); send what comes after the last result with another one", u.received)
		}
		if u.received > 0 && u.received%countedAtOnce == 0 {
			if !u.wait(u.s.uploads, countedAtOnce*cost) {
				return event.Errorf(event.TooMany, 0, "produce", "for %v the streams of records that come in have held as many bytes as they may (MAX_STREAM_BYTES=%d); send what comes after the last result later", u.s.opts.RequestTimeout, u.s.opts.Limits.StreamBytes)
			}
			u.besides += countedAtOnce * cost
		}
		u.keep(u.records.ahead())
		if bad == nil {
			bad = u.place(&rec, topic)
		}
		if bad != nil {
			u.received++
			u.stream.Skip(bad)
			continue
		}
		u.mark(&rec)
		size := int64(rec.Size())
		if err := u.acquire(size); err != nil {
			return err
		}
		if err := u.stream.Send(u.ctx, rec); err != nil {
			u.s.inFlight.Release(size)
			return err
		}
		u.received++
	}
}

// place gives a record its topic and checks the partition that it names.
func (u *upload) place(rec *event.Record, topic string) *event.Error {
	rec.Topic = topic
	if rec.Partition == event.AnyPartition {
		return nil
	}
	ctx, cancel := context.WithTimeout(u.ctx, u.s.opts.RequestTimeout)
	defer cancel()
	if err := u.s.checkPlace(ctx, topic, rec.Partition); err != nil {
		return asError(err)
	}
	return nil
}

// Read reads on in the body, and counts what no record has been made of yet.
func (u *upload) Read(b []byte) (int, error) {
	u.keep(u.records.ahead()) // what was skipped since, such as empty lines, has become no record
	n, err := u.body.Read(b)
	u.inBuffer += int64(n)
	if more := u.inBuffer - uploadBuffer - u.held; more > 0 {
		if full := u.acquire(more); full != nil {
			return 0, full
		}
		u.held += more
	}
	return n, err
}

// keep counts no more than ahead bytes of the body, since the others have become a record.
func (u *upload) keep(ahead int) {
	u.inBuffer = int64(ahead)
	if less := u.held - max(0, u.inBuffer-uploadBuffer); less > 0 {
		u.s.inFlight.Release(less)
		u.held -= less
	}
}

// acquire waits for room below the limit of bytes in flight.
func (u *upload) acquire(n int64) error {
	if !u.wait(u.s.inFlight, n) {
		return event.Errorf(event.TooMany, 0, "produce", "for %v this replica has worked on as many bytes as it may (MAX_IN_FLIGHT_BYTES=%d); send what comes after the last result later", u.s.opts.RequestTimeout, u.s.opts.Limits.InFlightBytes)
	}
	return nil
}

// wait waits up to REQUEST_TIMEOUT for n of what limit has. It does not queue for it: whoever
// waits in a semaphore's queue makes all fail who do not wait.
func (u *upload) wait(limit *semaphore.Weighted, n int64) bool {
	for giveUp := time.Now().Add(u.s.opts.RequestTimeout); !limit.TryAcquire(n); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(giveUp) {
			return false
		}
	}
	return true
}

// noneStored returns an error when Kafka took no record at all: then the request as a whole
// can be repeated, and Retry-After says when.
func (u *upload) noneStored() error {
	var last error
	for _, result := range u.stream.Results() {
		if result.Err == nil || asError(result.Err).Kind != event.Unavailable {
			return nil
		}
		last = result.Err
	}
	return last
}

// patientReader bounds each wait for a client's bytes, and ends with a shutdown.
type patientReader struct {
	io.ReadCloser
	conn *http.ResponseController

	mu    sync.Mutex
	pause time.Duration // that the client may make
	until time.Time     // when reading ends, unless it is zero
	ended bool          // reading has, by itself
}

func (p *patientReader) Read(b []byte) (int, error) {
	p.mu.Lock()
	deadline := time.Now().Add(p.pause)
	if !p.until.IsZero() && p.until.Before(deadline) {
		deadline = p.until
	}
	_ = p.conn.SetReadDeadline(deadline)
	p.mu.Unlock()
	return p.ReadCloser.Read(b)
}

// over is called at the body's end. From then on net/http itself reads, to notice when the
// client goes away: a deadline, also one of a shutdown, would look like that.
func (p *patientReader) over() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	_ = p.conn.SetReadDeadline(time.Time{})
}

// discard reads on without a use for it, so that a client that is still sending gets the answer
// and not a reset of its connection. The returned function ends that once the client has paused
// or lastBytes have passed.
func (p *patientReader) discard() (end func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, p)
	}()
	return func() {
		p.endIn(lastBytes)
		p.mu.Lock()
		p.pause = lastPause
		_ = p.conn.SetReadDeadline(time.Now().Add(lastPause))
		p.mu.Unlock()
		<-done
	}
}

// endIn ends the current read, or any later one, after a time.
func (p *patientReader) endIn(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.until = time.Now().Add(d)
	_ = p.conn.SetReadDeadline(p.until)
}

// why says why reading ended.
func (p *patientReader) why(err error) *event.Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return asError(bodyError(err))
	case !p.until.IsZero() && !time.Now().Before(p.until):
		return event.Errorf(event.Unavailable, codeUnavailable, "read body", "this replica is about to stop; send what comes after the last result with another request")
	}
	return event.Errorf(event.Timeout, 0, "read body", "nothing has come for %v (READ_TIMEOUT); send what comes after the last result with another request", p.pause)
}
