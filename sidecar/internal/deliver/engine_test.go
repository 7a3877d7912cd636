package deliver

import (
	"math/rand/v2"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

// engineFor is an engine with one partition and records without keys in it, 0 up to n.
func engineFor(t *testing.T, n int64, change func(*event.Subscription)) (*Engine, time.Time) {
	t.Helper()
	sub := subscriptionForTest()
	if change != nil {
		change(&sub)
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	e := New(optionsOf(&sub, Window{Records: 100, Bytes: 1000}), rand.New(rand.NewPCG(1, 1)))
	e.SetLimits(64, 0)
	e.Assign(voucher0, event.Commit{Offset: 0}, now)
	records := recordsOf(voucher0, 0, n)
	for i := range records {
		records[i].Key = nil
	}
	e.Offer(records)
	return e, now
}

// startAll takes all that may start.
func startAll(e *Engine, now time.Time) (all []*Delivery) {
	for {
		d, found := e.Next(now)
		if !found {
			return all
		}
		all = append(all, d)
	}
}

var failed = event.Outcome{Verdict: event.Failed, Status: 500}

func TestAfterAnOutageTheNumberInFlightDoubles(t *testing.T) {
	e, now := engineFor(t, 60, nil)
	for _, d := range startAll(e, now) {
		e.Done(d, failed, now)
	}
	if e.State() != event.DeliveryDown {
		t.Fatalf("after 60 failures it is %s", e.State())
	}
	if early := startAll(e, now); len(early) > 0 {
		t.Fatalf("%d are tried at once", len(early))
	}
	now = now.Add(time.Hour)
	for _, want := range []int{1, 2, 8} { // with each success
		all := startAll(e, now)
		if len(all) != want {
			t.Fatalf("%d are in flight, want %d", len(all), want)
		}
		for _, d := range all {
			e.Done(d, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
		}
	}
}

func TestAfterAnOutageNobodyWaitsForItsRest(t *testing.T) {
	e, now := engineFor(t, 6, func(s *event.Subscription) {
		s.Retry.Initial, s.Retry.Max = time.Hour, 24*time.Hour
	})
	for _, d := range startAll(e, now) {
		e.Done(d, failed, now)
	}
	for e.State() == event.DeliveryDown {
		now = e.Wake(now)
		for _, d := range startAll(e, now) {
			e.Done(d, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
		}
	}
	for range 5 { // with two, then more, in flight
		for _, d := range startAll(e, now) {
			e.Done(d, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
		}
	}
	if c, _ := e.Progress(voucher0); c.Offset != 6 {
		t.Errorf("committed would be %+v, want all 6, at the moment of the first success", c)
	}
}

func TestAWindowOfBytes(t *testing.T) {
	e, now := engineFor(t, 3, nil)
	if e.Resting(voucher0) {
		t.Error("three small records fill it")
	}
	large := recordsOf(voucher0, 3, 1)
	large[0].Value = make([]byte, 1000)
	e.Offer(large)
	if !e.Resting(voucher0) {
		t.Error("a record of the window's size does not fill it")
	}
	for _, d := range startAll(e, now) {
		e.Done(d, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
	}
	if e.Resting(voucher0) {
		t.Error("it is empty, and full")
	}
}

func TestWhatTheEndpointTakesNowIsNotGivenUp(t *testing.T) {
	e, now := engineFor(t, 1, func(s *event.Subscription) {
		s.Retry.MaxAttempts, s.Retry.GiveUpAfter = 1000, 2*time.Hour
	})
	next := int64(1)
	for end := now.Add(24 * time.Hour); now.Before(end); now = now.Add(30 * time.Minute) {
		for _, d := range startAll(e, now) {
			out := failed
			if d.Record.Offset > 0 {
				out = event.Outcome{Verdict: event.Delivered, Status: 200}
			}
			e.Done(d, out, now)
		}
		if d, found := e.NextLetter(now); found {
			t.Fatalf("a dead letter after %v: %+v", now.Sub(d.first), e.Letter(d))
		}
		e.Offer(recordsOf(voucher0, next, 1))
		next++
	}
}

// Days in which nothing was tried say nothing of the endpoint.
func TestNothingIsGivenUpBeforeItHasBeenTriedForAWhile(t *testing.T) {
	settings := func(s *event.Subscription) { s.Retry.GiveUpAfter = 96 * time.Hour }
	const away = 97 * time.Hour
	for name, pass := range map[string]func(*Engine, time.Time) *Engine{
		"paused": func(e *Engine, now time.Time) *Engine {
			e.SetPaused(true)
			e.Next(now.Add(away / 2))
			e.SetPaused(false)
			return e
		},
		"another replica goes on": func(e *Engine, now time.Time) *Engine {
			c, _ := e.Progress(voucher0)
			next, _ := engineFor(t, 0, settings)
			next.Drop(voucher0)
			next.Assign(voucher0, c, now.Add(away))
			next.Offer(recordsOf(voucher0, 0, 1))
			return next
		},
	} {
		e, now := engineFor(t, 1, settings)
		fail := func() (letter bool) {
			for _, d := range startAll(e, now) {
				e.Done(d, failed, now)
			}
			_, letter = e.NextLetter(now)
			return letter
		}
		fail()
		e = pass(e, now)
		now = now.Add(away)
		if fail() {
			t.Errorf("%s for %v: given up with the first answer", name, away)
		}
		if now = now.Add(2 * triedAtLeast); !fail() {
			t.Errorf("%s for %v: not given up %v later; want it, as nothing is accepted", name, away, 2*triedAtLeast)
		}
	}
}

func TestARecordThatIsSkippedIsNotTriedWhileItsLetterIsWritten(t *testing.T) {
	e, now := engineFor(t, 0, nil)
	records := recordsOf(voucher0, 0, 2)
	records[0].Key, records[1].Key = []byte("k"), []byte("k")
	e.Offer(records)
	first := startAll(e, now)
	if err := e.Skip(voucher0, 1); err != nil {
		t.Fatal(err)
	}
	letter, found := e.NextLetter(now)
	if !found || letter.Record.Offset != 1 {
		t.Fatalf("the letter is %+v", letter)
	}
	e.Done(first[0], event.Outcome{Verdict: event.Delivered, Status: 200}, now)
	if d, found := e.Next(now); found {
		t.Errorf("%d is tried", d.Record.Offset)
	}
	e.LetterDone(letter, nil, now)
	if c, _ := e.Progress(voucher0); c.Offset != 2 {
		t.Errorf("committed would be %+v, want both", c)
	}
}

func TestCommitOfAnotherIsOnlyAnOffset(t *testing.T) {
	for _, metadata := range []string{"", "somebody's", "p1:", "p1:!", "p1:AAAA", "p2:AAAAAA", progressVersion + "AQAAAAAA"} {
		e := New(optionsOf(new(subscriptionForTest()), Window{Records: 100, Bytes: 1000}), nil)
		e.SetLimits(64, 0)
		e.Assign(voucher0, event.Commit{Offset: 5, Metadata: metadata}, time.Now())
		e.Offer(recordsOf(voucher0, 5, 3))
		if n := len(startAll(e, time.Now())); n != 3 {
			t.Errorf("with metadata %q %d of 3 are tried", metadata, n)
		}
	}
}

func FuzzDecodeProgress(f *testing.F) {
	f.Add(int64(7), "p1:gIe1wwMBAgEACgCAh7XDAw")
	f.Add(int64(0), "p1:")
	f.Fuzz(func(t *testing.T, offset int64, metadata string) {
		offset &= 1<<40 - 1
		for _, decided := range decodeProgress(event.Commit{Offset: offset, Metadata: metadata}).decided {
			if decided < offset || decided >= offset+event.MaxWindowRecords {
				t.Errorf("%d is said to be decided above %d", decided, offset)
			}
		}
	})
}

// What was in flight when an endpoint went down says no more than that it is down: the first probe
// comes as soon as if there had been five.
func TestTheFirstProbeComesSoonHoweverManyFailed(t *testing.T) {
	for seed := range uint64(20) {
		e, now := engineFor(t, 64, nil)
		e.rnd = rand.New(rand.NewPCG(seed, seed))
		all := startAll(e, now)
		for _, d := range all {
			e.Done(d, failed, now)
		}
		if wait := e.circuit.probeAt.Sub(now); len(all) != 64 || wait > time.Second {
			t.Fatalf("after %d failures at once the first probe comes in %v; want at most retry.initial, 1s", len(all), wait)
		}
		for probe := 1; probe <= 12; probe++ { // and further ones at intervals that grow
			now = now.Add(time.Hour)
			one := startAll(e, now)
			if len(one) != 1 {
				t.Fatalf("%d probes at once", len(one))
			}
			e.Done(one[0], failed, now)
			if wait, most := e.circuit.probeAt.Sub(now), min(time.Second<<probe, 5*time.Minute); wait > most {
				t.Fatalf("after probe %d the next one comes in %v, want at most %v", probe, wait, most)
			}
		}
	}
}

// Records that the filter does not want are no attempts, however long the filter takes.
func TestARateLimitIsOfAttempts(t *testing.T) {
	e, now := engineFor(t, 100, nil)
	e.SetLimits(64, 5)
	for n := range 99 {
		d, found := e.Next(now)
		if !found {
			t.Fatalf("after %d records that were not wanted the next one has to wait", n)
		}
		now = now.Add(time.Millisecond)
		e.Unwanted(d, now)
	}
	last, found := e.Next(now)
	if !found {
		t.Fatal("the last one has to wait")
	}
	e.Done(last, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
	e.Offer(recordsOf(voucher0, 100, 1))
	if _, found := e.Next(now.Add(time.Millisecond)); found {
		t.Error("an attempt within a fifth of a second of another one")
	}
}
