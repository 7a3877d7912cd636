package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"postamt/sidecar/internal/event"
)

// source is a consumer group with one member, in memory.
type source struct {
	opts SourceOptions

	mu       sync.Mutex
	news     *sync.Cond
	log      map[event.TopicPartition][]event.Record
	read     map[event.TopicPartition]int
	assigned map[event.TopicPartition]bool
	paused   map[event.TopicPartition]bool
	commits  map[event.TopicPartition]event.Commit
	refuse   int // commits that fail
	slow     time.Duration
	broken   error // what the next poll says
	closed   bool
}

func newSource() *source {
	s := &source{
		log: make(map[event.TopicPartition][]event.Record), read: make(map[event.TopicPartition]int), assigned: make(map[event.TopicPartition]bool),
		paused: make(map[event.TopicPartition]bool), commits: make(map[event.TopicPartition]event.Commit),
	}
	s.news = sync.NewCond(&s.mu)
	return s
}

func (s *source) add(records ...event.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		tp := event.TopicPartition{Topic: r.Topic, Partition: r.Partition}
		s.log[tp] = append(s.log[tp], r)
	}
	s.news.Broadcast()
}

// give assigns partitions, as a rebalance does.
func (s *source) give(tps ...event.TopicPartition) {
	commits := make(map[event.TopicPartition]event.Commit)
	s.mu.Lock()
	for _, tp := range tps {
		c, ok := s.commits[tp]
		if !ok {
			c = event.Commit{Offset: event.NoCommit}
		}
		commits[tp] = c
	}
	s.mu.Unlock()
	s.opts.Assigned(commits)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tp := range tps {
		s.assigned[tp] = true
		delete(s.paused, tp)
		s.read[tp] = 0
		for _, r := range s.log[tp] {
			if r.Offset < commits[tp].Offset {
				s.read[tp]++
			}
		}
	}
	s.news.Broadcast()
}

func (s *source) take(tps ...event.TopicPartition) {
	s.mu.Lock()
	for _, tp := range tps {
		delete(s.assigned, tp)
	}
	s.mu.Unlock()
	s.opts.Revoked(tps)
}

func (s *source) Poll(ctx context.Context, maxRecords int) ([]event.Record, error) {
	defer context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.news.Broadcast()
	})()
	s.mu.Lock()
	defer s.mu.Unlock()
	for ctx.Err() == nil {
		if err := s.broken; err != nil {
			s.broken = nil
			return nil, err
		}
		for tp := range s.assigned {
			left := s.log[tp][s.read[tp]:]
			if n := min(len(left), maxRecords); n > 0 && !s.paused[tp] {
				s.read[tp] += n
				return slices.Clone(left[:n]), nil
			}
		}
		s.news.Wait()
	}
	return nil, nil
}

func (s *source) Pause(tps []event.TopicPartition)  { s.pause(tps, true) }
func (s *source) Resume(tps []event.TopicPartition) { s.pause(tps, false) }

func (s *source) pause(tps []event.TopicPartition, is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tp := range tps {
		s.paused[tp] = is
	}
	s.news.Broadcast()
}

func (s *source) Commit(_ context.Context, commits map[event.TopicPartition]event.Commit) error {
	s.mu.Lock()
	slow := s.slow
	s.mu.Unlock()
	time.Sleep(slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return errors.New("refused")
	}
	maps.Copy(s.commits, commits)
	return nil
}

func (s *source) Close(context.Context) {
	s.mu.Lock()
	tps := slices.Collect(maps.Keys(s.assigned))
	s.closed = true
	s.mu.Unlock()
	if len(tps) > 0 {
		s.take(tps...)
	}
}

func (s *source) refuseNext(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = n
}

// slowDown makes commits take so long.
func (s *source) slowDown(to time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slow = to
}

func (s *source) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *source) isPaused(tp event.TopicPartition) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.paused[tp]
}

func (s *source) committed(tp event.TopicPartition) event.Commit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commits[tp]
}

// endpoint answers as a function says, and remembers what it was sent.
type endpoint struct {
	answer func(ctx context.Context, a event.Attempt) event.Outcome

	mu       sync.Mutex
	accepted []string
	attempts int
	open     int
	most     int // at once
}

func (e *endpoint) Send(ctx context.Context, _ *event.Subscription, a event.Attempt) event.Outcome {
	e.mu.Lock()
	e.attempts++
	e.open++
	e.most = max(e.most, e.open)
	answer := e.answer
	e.mu.Unlock()
	out := answer(ctx, a)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open--
	if out.Verdict == event.Delivered {
		e.accepted = append(e.accepted, fmt.Sprintf("%s/%d/%d", a.Origin.Topic, a.Origin.Partition, a.Origin.Offset))
	}
	return out
}

func (e *endpoint) set(answer func(context.Context, event.Attempt) event.Outcome) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = answer
}

func (e *endpoint) tries() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attempts
}

func (e *endpoint) peak() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.most
}

func (e *endpoint) got() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.accepted)
}

func ok(context.Context, event.Attempt) event.Outcome {
	return event.Outcome{Verdict: event.Delivered, Status: 200}
}

func answers(verdict event.Verdict, status int) func(context.Context, event.Attempt) event.Outcome {
	return func(context.Context, event.Attempt) event.Outcome {
		return event.Outcome{Verdict: verdict, Status: status, Err: "no"}
	}
}

// hang is an endpoint that takes the request and says nothing.
func hang(ctx context.Context, _ event.Attempt) event.Outcome {
	<-ctx.Done()
	return event.Outcome{Verdict: event.Unreachable, Err: "no answer"}
}

// letters keeps dead letters in memory.
type letters struct {
	mu   sync.Mutex
	fail int
	all  []event.DeadLetter
}

func (l *letters) Write(_ context.Context, d event.DeadLetter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail > 0 {
		l.fail--
		return errors.New("Kafka is away")
	}
	l.all = append(l.all, d)
	return nil
}

func (l *letters) failNext(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = n
}

func (l *letters) got() []event.DeadLetter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// office is a Manager with everything that it needs, around one subscription.
type office struct {
	*Manager
	t       *testing.T
	source  *source // of the newest worker of records
	redrive *source
	opened  []string // groups
	end     *endpoint
	letters *letters
	left    atomic.Int64
	mu      sync.Mutex // of opened and gone
	gone    []string
	sub     event.Subscription
	reg     *prometheus.Registry
	stop    func()
	stopped chan struct{}
}

var voucher0 = event.TopicPartition{Topic: "test.voucher", Partition: 0}

func subscriptionForTest() event.Subscription {
	return event.Subscription{
		Name: "shop", Generation: 1, Topics: []string{"test.voucher"}, URL: "http://shop", Ordering: event.OrderByKey, MaxInFlight: 64,
		Timeout: 15 * time.Second, State: event.Active,
		Retry: event.Retry{Initial: time.Second, Max: 5 * time.Minute, MaxAttempts: 8, GiveUpAfter: 96 * time.Hour},
	}
}

type yes func(*event.Record) (bool, bool, error)

func (f yes) Match(_ context.Context, r *event.Record) (bool, bool, error) { return f(r) }

// open runs an office until the test ends. It is to be called inside a bubble.
func open(t *testing.T, change func(*office, *Parts)) *office {
	o := &office{t: t, end: &endpoint{answer: ok}, letters: &letters{}, sub: subscriptionForTest(), reg: prometheus.NewRegistry(), stopped: make(chan struct{})}
	o.source, o.redrive = newSource(), newSource()
	parts := Parts{
		Send: o.end, Letters: o.letters, Window: Window{Records: 100, Bytes: 1 << 20}, StopTimeout: 10 * time.Second, Log: slog.New(slog.DiscardHandler),
		Open: func(opts SourceOptions) (Source, error) {
			o.mu.Lock()
			o.opened = append(o.opened, opts.Group)
			s := o.source
			o.mu.Unlock()
			if opts.Group == "postamt.shop.redrive" {
				s = o.redrive
			}
			s.mu.Lock()
			s.opts, s.closed = opts, false
			s.mu.Unlock()
			return s, nil
		},
		Compile: func(string) (Filter, error) {
			return yes(func(r *event.Record) (bool, bool, error) {
				switch string(r.Value) {
				case "unwanted":
					return false, false, nil
				case "lacking":
					return false, true, nil
				case "strange":
					return false, false, errors.New("it cannot be evaluated")
				}
				return true, false, nil
			}), nil
		},
		Partitions: func(context.Context, string) (int, error) { return 1, nil },
		DecodeLetter: func(r *event.Record) (event.DeadLetter, bool) {
			return event.DeadLetter{Record: r, Subscription: string(r.Key), Origin: event.Origin{TopicPartition: voucher0, Offset: r.Offset + 1000}, Attempts: 8}, len(r.Key) > 0
		},
		Left: func(context.Context, string, map[event.TopicPartition]int64) (int64, error) {
			return o.left.Load(), nil
		},
		Withdraw: func(_ context.Context, name string, _ int64, _ string) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.gone = append(o.gone, name)
			return nil
		},
	}
	if change != nil {
		change(o, &parts)
	}
	o.Manager = NewManager(parts, o.reg)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(o.stopped)
		_ = o.Run(ctx)
	}()
	o.stop = func() {
		cancel()
		<-o.stopped
	}
	o.tell()
	synctest.Wait()
	return o
}

func (o *office) groups() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.opened)
}

func (o *office) withdrawn() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.gone)
}

func (o *office) tell() {
	sub := o.sub
	o.Change("shop", &sub)
	synctest.Wait()
}

// records of a partition, from an offset on; every third has the same key.
func recordsOf(tp event.TopicPartition, from, n int64) []event.Record {
	out := make([]event.Record, n)
	for i := range out {
		offset := from + int64(i)
		out[i] = event.Record{
			Topic: tp.Topic, Partition: tp.Partition, Offset: offset, Value: []byte("{}"), Timestamp: time.Now(),
			Key: fmt.Append(nil, "k", offset%3),
		}
	}
	return out
}

func TestRecordsAreDeliveredAndCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 50)...)
		time.Sleep(time.Second)
		if got := o.end.got(); len(got) != 50 {
			t.Errorf("%d records were accepted, want 50", len(got))
		}
		if c := o.source.committed(voucher0); c.Offset != 50 || c.Metadata != "" {
			t.Errorf("the commit is %+v, want 50", c)
		}
		if n := testutil.ToFloat64(o.metrics.attempts.WithLabelValues("shop", "delivered")); n != 50 {
			t.Errorf("%v attempts are counted", n)
		}
	})
}

func TestOutageMakesNoDeadLetters(t *testing.T) {
	for name, answer := range map[string]func(context.Context, event.Attempt) event.Outcome{
		"503": answers(event.Unreachable, 503), "500": answers(event.Failed, 500), "404": answers(event.Refused, 404), "nobody": answers(event.Unreachable, 0),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // three days take no time
				o := open(t, nil)
				defer o.stop()
				o.source.give(voucher0)
				o.source.add(recordsOf(voucher0, 0, 10)...)
				time.Sleep(time.Minute)
				o.end.set(answer)
				o.source.add(recordsOf(voucher0, 10, 300)...)
				time.Sleep(72 * time.Hour)
				if n := len(o.letters.got()); n != 0 || o.source.committed(voucher0).Offset != 10 {
					t.Errorf("%d dead letters, committed %+v; want none, 10", n, o.source.committed(voucher0))
				}
				if s, _ := o.OwnStatus("shop"); s.State != event.DeliveryDown || s.Partitions[0].Stuck == nil {
					t.Errorf("the status is %+v, want down, and why", s)
				}
				// A probe a few minutes apart at the most, and one at a time.
				if o.end.tries() > 10+64+5000 {
					t.Errorf("the endpoint was asked %d times", o.end.tries())
				}
				o.end.set(ok)
				time.Sleep(10 * time.Minute)
				if n := len(o.letters.got()); n != 0 || o.source.committed(voucher0).Offset != 310 {
					t.Errorf("after it: %d dead letters, committed %+v; want none, 310", n, o.source.committed(voucher0))
				}
			})
		})
	}
}

// poisoned refuses one record for good.
func poisoned(offset int64, verdict event.Verdict) func(context.Context, event.Attempt) event.Outcome {
	return func(ctx context.Context, a event.Attempt) event.Outcome {
		if a.Origin.Offset == offset {
			return event.Outcome{Verdict: verdict, Status: 400, Err: "no"}
		}
		return ok(ctx, a)
	}
}

func TestARefusedRecordBecomesADeadLetterWhileOthersPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(poisoned(3, event.Refused))
		o.letters.failNext(2) // Kafka is away for a moment
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 15)...)
		time.Sleep(time.Second)
		o.source.add(recordsOf(voucher0, 15, 5)...) // after it was refused
		time.Sleep(time.Minute)
		got := o.letters.got()
		if len(got) != 1 || got[0].Origin.Offset != 3 || got[0].Reason != event.ReasonRefused || got[0].Topic != "test.voucher.dead-letters" || got[0].Attempts < 2 {
			t.Fatalf("dead letters are %+v, want one of offset 3 after two attempts or more", got)
		}
		if c := o.source.committed(voucher0); c.Offset != 20 {
			t.Errorf("the commit is %+v, want 20", c)
		}
		if n := len(o.end.got()); n != 19 {
			t.Errorf("%d were accepted, want the 19 others", n)
		}
	})
}

func TestARecordThatFailsHoldsUpOnlyItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(poisoned(0, event.Failed)) // k0
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 30)...)
		time.Sleep(100 * time.Millisecond)
		if n := len(o.end.got()); n != 20 {
			t.Errorf("%d were accepted, want the 20 of the other keys", n)
		}
		s, _ := o.OwnStatus("shop")
		if st := s.Partitions[0].Stuck; st == nil || st.Offset != 0 || st.Status != 400 || string(st.Key) != "k0" || st.NextAttempt.IsZero() {
			t.Errorf("what holds it up is %+v", st)
		}
		// What is decided above survives in the commit.
		time.Sleep(time.Second)
		if p := decodeProgress(o.source.committed(voucher0)); len(p.decided) != 20 || p.records[0].attempts == 0 {
			t.Errorf("the commit says %+v", p)
		}
	})
}

func TestAFullWindowPausesItsPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(poisoned(0, event.Unreachable))
		o.source.give(voucher0)
		for from := int64(0); from < 1000; from += 10 {
			o.source.add(recordsOf(voucher0, from, 10)...)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if !o.source.isPaused(voucher0) {
			t.Error("the partition is not paused")
		}
		if n := len(o.end.got()); n != 66 { // of the keys k1 and k2 in the window of 100
			t.Errorf("%d were accepted, want the 66 of the window", n)
		}
		o.end.set(ok)
		time.Sleep(10 * time.Minute)
		if c := o.source.committed(voucher0); c.Offset != 1000 {
			t.Errorf("afterwards the commit is %+v, want 1000", c)
		}
	})
}

func TestRevokedPartitionsAreCommittedAndLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			switch a.Origin.Offset {
			case 1: // soon enough
				time.Sleep(2 * time.Second)
			case 2: // not soon enough
				return hang(ctx, a)
			}
			return ok(ctx, a)
		})
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 9)...)
		synctest.Wait()
		began := time.Now()
		o.source.take(voucher0)
		if took := time.Since(began); took < revokeGrace || took > revokeGrace+cancelGrace {
			t.Errorf("it took %v", took)
		}
		// k0 and k1 went on until the partition was to go; of k1 the one that took long ended.
		c := o.source.committed(voucher0)
		if p := decodeProgress(c); c.Offset != 2 || !slices.Equal(p.decided, []int64{3, 6}) {
			t.Errorf("committed is %d, and above it %v; want 2, and 3 and 6", c.Offset, p.decided)
		}
		// Another member goes on: what was decided does not come again.
		o.end.set(ok)
		before := len(o.end.got())
		o.source.give(voucher0)
		time.Sleep(time.Second)
		if got := o.end.got()[before:]; !slices.Equal(sorted(got), []string{"test.voucher/0/2", "test.voucher/0/4", "test.voucher/0/5", "test.voucher/0/7", "test.voucher/0/8"}) {
			t.Errorf("then came %v", got)
		}
	})
}

func sorted(s []string) []string { slices.Sort(s); return s }

func TestStopCommitsWhatIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		o.source.give(voucher0)
		o.source.refuseNext(1) // the one that is due while it runs
		o.source.add(recordsOf(voucher0, 0, 5)...)
		time.Sleep(commitInterval + 10*time.Millisecond)
		o.stop()
		if c := o.source.committed(voucher0); c.Offset != 5 || !o.source.isClosed() {
			t.Errorf("committed is %+v, closed %v", c, o.source.isClosed())
		}
	})
}

func TestAFailedCommitIsMadeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.source.give(voucher0)
		o.source.refuseNext(3)
		o.source.add(recordsOf(voucher0, 0, 5)...)
		time.Sleep(2 * time.Second)
		if c := o.source.committed(voucher0); c.Offset != 5 {
			t.Errorf("committed is %+v", c)
		}
	})
}

func TestASourceThatFailsIsOpenedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 5)...)
		time.Sleep(time.Second)
		o.source.mu.Lock()
		o.source.broken = errors.New("an offset cannot be fetched")
		o.source.news.Broadcast()
		o.source.mu.Unlock()
		time.Sleep(openPause + time.Second)
		if len(o.groups()) != 2 {
			t.Fatalf("opened were %v", o.groups())
		}
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 5, 5)...)
		time.Sleep(time.Second)
		if c := o.source.committed(voucher0); c.Offset != 10 || len(o.end.got()) != 10 {
			t.Errorf("committed is %+v after %d", c, len(o.end.got()))
		}
	})
}

func TestABrownOutMakesNoDeadLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		var n atomic.Int64
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			if n.Add(1)%4 == 0 { // one of four
				return ok(ctx, a)
			}
			return event.Outcome{Verdict: event.Refused, Status: 403}
		})
		o.source.give(voucher0)
		records := recordsOf(voucher0, 0, 1000)
		for i := range records {
			records[i].Key = nil
		}
		o.source.add(records...)
		time.Sleep(24 * time.Hour)
		if got, letters := len(o.end.got()), len(o.letters.got()); got != 1000 || letters != 0 {
			t.Errorf("%d were accepted, and %d dead letters written; want all, none", got, letters)
		}
	})
}

func TestWhatFailedIsTriedAgainBesideABacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, p *Parts) {
			o.sub.MaxInFlight = 4
			p.Window.Records = 10_000
		})
		defer o.stop()
		var failed atomic.Bool
		var came time.Duration
		began := time.Now()
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			if a.Origin.Offset == 0 {
				if !failed.Swap(true) {
					return event.Outcome{Verdict: event.Failed, Status: 500}
				}
				came = time.Since(began)
			}
			time.Sleep(100 * time.Millisecond)
			return ok(ctx, a)
		})
		records := recordsOf(voucher0, 0, 5000) // two minutes' work
		for i := range records {
			records[i].Key = nil
		}
		o.source.give(voucher0)
		o.source.add(records...)
		time.Sleep(time.Hour)
		if came == 0 || came > 2*time.Second {
			t.Errorf("it was tried again after %v; its wait is a second at the most", came)
		}
	})
}

func TestAfterAnOutageEverythingIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(answers(event.Unreachable, 503))
		o.source.give(voucher0)
		records := recordsOf(voucher0, 0, 100)
		for i := range records {
			records[i].Key = nil
		}
		o.source.add(records...)
		time.Sleep(24 * time.Hour)
		var first, last time.Time
		var mu sync.Mutex
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			mu.Lock()
			defer mu.Unlock()
			if first.IsZero() {
				first = time.Now()
			}
			last = time.Now()
			return ok(ctx, a)
		})
		time.Sleep(time.Hour)
		if n := len(o.end.got()); n != 100 || last.Sub(first) > time.Second {
			t.Errorf("%d were accepted, the last one %v after the first", n, last.Sub(first))
		}
	})
}

func TestNothingOfASealedPartitionIsTaken(t *testing.T) {
	e := New(optionsOf(new(subscriptionForTest()), Window{Records: 100, Bytes: 1 << 20}), nil)
	now := time.Now()
	e.Assign(voucher0, event.Commit{Offset: 0}, now)
	e.Seal(voucher0)
	e.Offer(recordsOf(voucher0, 0, 3))
	if _, found := e.Next(now); found {
		t.Error("a record was begun that was polled before the partition was to go")
	}
	e.Drop(voucher0)
	e.Assign(voucher0, event.Commit{Offset: 0}, now)
	e.Offer(recordsOf(voucher0, 0, 3))
	if d, found := e.Next(now); !found || d.Record.Offset != 0 {
		t.Errorf("then the first is %+v, %v", d, found)
	}
}

func TestFilter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, _ *Parts) { o.sub.Filter = "data.amount > 50" })
		defer o.stop()
		records := recordsOf(voucher0, 0, 4)
		records[0].Value, records[1].Value, records[2].Value = []byte("unwanted"), []byte("lacking"), []byte("strange")
		o.source.give(voucher0)
		o.source.add(records...)
		time.Sleep(time.Second)
		if got := o.end.got(); !slices.Equal(got, []string{"test.voucher/0/3"}) || o.end.tries() != 1 {
			t.Errorf("accepted are %v in %d attempts", got, o.end.tries())
		}
		if got := o.letters.got(); len(got) != 1 || got[0].Reason != event.ReasonFilter || got[0].Attempts != 0 || got[0].Last.Err == "" {
			t.Errorf("dead letters are %+v", got)
		}
		if c := o.source.committed(voucher0); c.Offset != 4 {
			t.Errorf("committed is %+v", c)
		}
		if no, missing := testutil.ToFloat64(o.metrics.filtered.WithLabelValues("shop", "no")), testutil.ToFloat64(o.metrics.filtered.WithLabelValues("shop", "missing")); no != 1 || missing != 1 {
			t.Errorf("counted are %v and %v", no, missing)
		}
	})
}

func TestAnEndpointThatIsGonePausesItsSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, _ *Parts) { o.sub.MaxInFlight = 1 })
		defer o.stop()
		o.end.set(answers(event.Withdrawn, 410))
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 5)...)
		time.Sleep(time.Hour)
		if o.end.tries() != 1 || !slices.Equal(o.withdrawn(), []string{"shop"}) {
			t.Errorf("%d attempts, and stored is %v", o.end.tries(), o.withdrawn())
		}
		o.sub.State = event.GoneAt
		o.tell()
		o.end.set(ok)
		time.Sleep(time.Hour)
		if o.end.tries() != 1 {
			t.Errorf("while it was paused there were %d attempts", o.end.tries()-1)
		}
		o.sub.State = event.Active
		o.tell()
		time.Sleep(time.Second)
		if c := o.source.committed(voucher0); c.Offset != 5 {
			t.Errorf("after it was resumed, committed is %+v", c)
		}
	})
}

func TestSkip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.end.set(poisoned(1, event.Failed))
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 6)...)
		time.Sleep(10 * time.Second)
		kind := func(err error) event.Kind {
			if ee, ok := errors.AsType[*event.Error](err); ok {
				return ee.Kind
			}
			return ""
		}
		if k := kind(o.OwnSkip(t.Context(), "shop", voucher0, 0)); k != event.Conflict {
			t.Errorf("to skip what is decided is %q", k)
		}
		if k := kind(o.OwnSkip(t.Context(), "shop", voucher0, 77)); k != event.Conflict {
			t.Errorf("to skip what there is not is %q", k)
		}
		if k := kind(o.OwnSkip(t.Context(), "shop", event.TopicPartition{Topic: "x"}, 0)); k != event.NotFound {
			t.Errorf("to skip in another topic is %q", k)
		}
		if err := o.OwnSkip(t.Context(), "shop", voucher0, 4); err != nil { // behind 1
			t.Error(err)
		}
		if err := o.OwnSkip(t.Context(), "shop", voucher0, 1); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		var reasons []string
		for _, l := range o.letters.got() {
			reasons = append(reasons, fmt.Sprint(l.Origin.Offset, " ", l.Reason))
		}
		if !slices.Equal(sorted(reasons), []string{"1 skipped", "4 skipped"}) || o.source.committed(voucher0).Offset != 6 {
			t.Errorf("dead letters are %v, committed %+v", reasons, o.source.committed(voucher0))
		}
	})
}

func TestLimitsAreSharedByPartitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, p *Parts) {
			o.sub.MaxInFlight = 8
			p.Partitions = func(context.Context, string) (int, error) { return 4, nil }
		})
		defer o.stop()
		o.end.set(func(ctx context.Context, a event.Attempt) event.Outcome {
			time.Sleep(time.Second)
			return ok(ctx, a)
		})
		records := recordsOf(voucher0, 0, 40)
		for i := range records {
			records[i].Key = nil
		}
		o.source.give(voucher0)
		o.source.add(records...)
		time.Sleep(time.Minute)
		if o.end.peak() != 2 || len(o.end.got()) != 40 {
			t.Errorf("%d were in flight at once, want a quarter of 8; %d accepted", o.end.peak(), len(o.end.got()))
		}
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, func(o *office, _ *Parts) { o.sub.RateLimit = 5 })
		defer o.stop()
		records := recordsOf(voucher0, 0, 100)
		for i := range records {
			records[i].Key = nil
		}
		o.source.give(voucher0)
		o.source.add(records...)
		time.Sleep(10 * time.Second)
		if n := len(o.end.got()); n < 50 || n > 52 {
			t.Errorf("%d were accepted in ten seconds, want 5 a second", n)
		}
	})
}

func TestRedriveDeliversLettersUpToTheEndAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := event.TopicPartition{Topic: "test.voucher.dead-letters", Partition: 0}
		o := open(t, nil)
		defer o.stop()
		letters := recordsOf(dead, 0, 6)
		for i, name := range []string{"shop", "other", "shop", "", "shop", "shop"} {
			letters[i].Key = []byte(name)
		}
		o.redrive.add(letters...)
		o.end.set(poisoned(1002, event.Refused))
		o.left.Store(5)
		o.sub.Redrive = event.Redrive{ID: 1, Until: map[event.TopicPartition]int64{dead: 5}}
		o.tell()
		o.redrive.give(dead)
		o.source.give(voucher0)
		time.Sleep(time.Second)
		o.source.add(recordsOf(voucher0, 0, 3)...) // they are not kept up
		time.Sleep(time.Second)
		// The letter at 2 is refused again; 4 waits for nobody's sake but its key's, which is the same.
		if got := sorted(o.end.got()); !slices.Equal(got, []string{"test.voucher/0/0", "test.voucher/0/1", "test.voucher/0/1000", "test.voucher/0/1004", "test.voucher/0/2"}) {
			t.Errorf("accepted are %v", got)
		}
		if got := o.letters.got(); len(got) != 1 || got[0].Origin.Offset != 1002 || got[0].Attempts < 10 || got[0].Topic != dead.Topic {
			t.Errorf("new dead letters are %+v, want one of 1002 whose attempts count on", got)
		}
		if c := o.redrive.committed(dead); c.Offset != 5 {
			t.Errorf("the redrive has committed %+v, want its end, 5", c)
		}
		o.left.Store(0)
		time.Sleep(2 * redriveInterval)
		if !o.redrive.isClosed() {
			t.Error("the redrive has not ended")
		}
		if !slices.Equal(o.groups(), []string{"postamt.shop.1", "postamt.shop.redrive"}) {
			t.Errorf("opened were %v", o.groups())
		}
	})
}

func TestChangesOfASubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		first := o.source
		first.give(voucher0)
		o.sub.URL = "http://elsewhere" // the same generation: the same worker
		o.tell()
		if len(o.groups()) != 1 {
			t.Errorf("opened were %v", o.groups())
		}
		o.mu.Lock()
		o.source = newSource()
		o.mu.Unlock()
		o.sub.Generation = 2
		o.tell()
		if !first.isClosed() || !slices.Equal(o.groups(), []string{"postamt.shop.1", "postamt.shop.2"}) {
			t.Errorf("opened were %v, the first one closed %v", o.groups(), first.isClosed())
		}
		if n := testutil.CollectAndCount(o.reg, "postamt_delivery_state"); n != 3 {
			t.Errorf("%d series of states", n)
		}
		o.Change("shop", nil)
		synctest.Wait()
		if _, found := o.OwnStatus("shop"); found || !o.source.isClosed() {
			t.Errorf("after it was deleted it is there: %v, closed %v", found, o.source.isClosed())
		}
		if n := testutil.CollectAndCount(o.reg); n != 0 {
			t.Errorf("%d series are left of it", n)
		}
		o.tell() // and made again
		if len(o.groups()) != 3 {
			t.Errorf("opened were %v", o.groups())
		}
	})
}

func TestAttemptsAreRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := open(t, nil)
		defer o.stop()
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 3*keptAttempts)...)
		time.Sleep(time.Second)
		got := o.OwnAttempts("shop")
		if len(got) != keptAttempts || got[0].Outcome.Verdict != event.Delivered || got[0].Started.Before(got[keptAttempts-1].Started) {
			t.Errorf("%d are remembered, the newest %+v", len(got), got[0])
		}
	})
}
