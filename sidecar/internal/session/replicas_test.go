package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// twoReplicas share a table, and a group that both open consumers of.
func twoReplicas(t *testing.T) (*fakeTable, *group, *Manager, *Manager) {
	t.Helper()
	table, g := newTable(), &group{}
	return table, g, managerFor(t, g, table, 10, 5*time.Minute), managerFor(t, g, table, 10, 5*time.Minute)
}

func place(t *testing.T, m *Manager) Place {
	t.Helper()
	p, err := m.Find(t.Context(), "g", "c")
	if err != nil {
		t.Fatal(err)
	}
	if p.Done != nil {
		p.Done()
		if err := p.Session.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestATakenOverSessionGoesOnWhereItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g, one, two := twoReplicas(t)
		s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c", Format: restproxy.Text, MinBytes: 3, Wait: time.Second, ReadCommitted: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		f := g.members[0]
		f.assign(a0, a1)
		f.arrive(a0, 10, 1, 1)
		read(t, s, plenty).Delivered()
		if err := s.Seek(t.Context(), []Position{{TopicPartition: a1, At: AtOffset, Offset: 13}, {TopicPartition: a0, At: AtEnd}}); err != nil {
			t.Fatal(err)
		}
		if err := s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 12}}); err != nil {
			t.Fatal(err)
		}
		p := place(t, two)
		if p.Session != nil || p.Owner.Boot != one.Boot() || p.Epoch != 1 {
			t.Fatalf("the other replica sees %+v", p)
		}
		if err := two.TakeOver(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		wantCode(t, "to take over what another has taken", one.TakeOver(t.Context(), Place{key: "g/c", Epoch: 1}), event.Unavailable, 0)
		synctest.Wait()
		if _, err := s.Read(t.Context(), time.Second, plenty); !errors.Is(err, ErrMoved) || one.Len() != 0 || f.left {
			t.Errorf("the old owner: %v, %d sessions, left its group: %v", err, one.Len(), f.left)
		}
		moved := place(t, two).Session
		if moved == nil {
			t.Fatal("the new owner does not have it")
		}
		j := g.members[1].join
		want := Join{Group: "g", Member: "c", Topics: []string{"a"}, ReadCommitted: true,
			Seeks: map[event.TopicPartition]event.Seek{a1: {Offset: 13, Since: event.NoCommit}}, Starts: map[event.TopicPartition]int64{a0: 20, a1: 20}}
		if j.Assigned, j.Lost, j.Fenced = nil, nil, nil; !reflect.DeepEqual(j, want) || moved.Format != restproxy.Text || moved.MinBytes != 3 || moved.Wait != time.Second {
			t.Errorf("it opens %+v; want %+v", j, want)
		}
	})
}

// What the client was given by the replica before is not known: a commit of all that was read
// must not be answered as if it had been done.
func TestCommitsAfterAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g, one, two := twoReplicas(t)
		s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c", FromEarliest: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		if err := two.TakeOver(t.Context(), place(t, two)); err != nil {
			t.Fatal(err)
		}
		moved := place(t, two).Session
		f := g.members[1]
		f.assign(a0, a1)
		f.arrive(a0, 10, 1, 1, 1)
		wantCode(t, "a commit of all that was read", moved.Commit(t.Context()), event.Conflict, 40903)
		// By offsets it is known what: that must not come again, be it here already or on its way.
		if err := moved.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 12}, a1: {Offset: 11}}); err != nil {
			t.Fatal(err)
		}
		f.arrive(a1, 10, 1, 1)
		b := read(t, moved, plenty)
		if show(b.Records) != "[a0@12 a1@11]" {
			t.Errorf("after the commit comes %s", show(b.Records))
		}
		b.Delivered()
		if err := moved.Commit(t.Context()); err != nil || f.stored() != "map[a0:13 a1:12]" {
			t.Errorf("after a read all can be committed: %v, %s", err, f.stored())
		}
		// Of a session that has committed all that there is nothing can be missing.
		if err := one.TakeOver(t.Context(), place(t, one)); err != nil {
			t.Fatal(err)
		}
		back := place(t, one).Session
		g.members[len(g.members)-1].assign(a0, a1)
		g.committed = map[event.TopicPartition]event.Commit{a0: {Offset: 20}, a1: {Offset: 19}}
		wantCode(t, "a record may be missing", back.Commit(t.Context()), event.Conflict, 40903)
		g.committed[a1] = event.Commit{Offset: 20}
		if err := back.Commit(t.Context()); err != nil {
			t.Errorf("nothing is missing: %v", err)
		}
	})
}

// A read that breaks off has given the client nothing: it is as if there had been none.
func TestAFailedReadAfterAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g, one, two := twoReplicas(t)
		s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c", FromEarliest: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		if err := two.TakeOver(t.Context(), place(t, two)); err != nil {
			t.Fatal(err)
		}
		moved := place(t, two).Session
		f := g.members[1]
		f.assign(a0)
		f.arrive(a0, 10, 1, 1, 1)
		read(t, moved, plenty).Failed()
		wantCode(t, "a commit of what the replica before gave", moved.Commit(t.Context()), event.Conflict, 40903)
		b := read(t, moved, plenty)
		if err := moved.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 12}}); err != nil {
			t.Fatal(err)
		}
		b.Failed()
		if b := read(t, moved, plenty); show(b.Records) != "[a0@12]" {
			t.Errorf("after a commit of a0 at 12 comes %s", show(b.Records))
		}
	})
}

func TestOneOfManyTakesOver(t *testing.T) {
	table, g := newTable(), &group{}
	first := managerFor(t, g, table, 10, time.Hour)
	if _, err := first.Create(t.Context(), Settings{Group: "g", Name: "c"}); err != nil {
		t.Fatal(err)
	}
	var all []*Manager
	for range 8 {
		all = append(all, managerFor(t, g, table, 10, time.Hour))
	}
	p := place(t, all[0])
	var took sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for _, m := range all {
		took.Go(func() {
			err := m.TakeOver(context.Background(), p)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, ErrMoved) {
				t.Error(err)
			}
		})
	}
	took.Wait()
	if won != 1 {
		t.Errorf("%d replicas have taken it over", won)
	}
}

// A fenced consumer is of a session that another process has, whatever the table says.
func TestAFencedSessionIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &group{}
		m := managerFor(t, g, newTable(), 10, time.Hour)
		s, err := m.Create(t.Context(), Settings{Group: "g", Name: "c"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		f := g.members[0]
		f.assign(a0)
		f.arrive(a0, 10, 1, 1)
		read(t, s, 2).Delivered()
		f.join.Fenced()
		synctest.Wait()
		if _, err := s.Read(t.Context(), time.Second, plenty); !errors.Is(err, ErrMoved) || m.Len() != 0 || len(s.pending) != 0 {
			t.Errorf("it reads: %v, with %d records buffered", err, len(s.pending))
		}
		// Nobody else has it: the next request gets it back.
		p := place(t, m)
		if p.Owner.Boot != "" {
			t.Errorf("it is with %v", p.Owner)
		}
		if err := m.TakeOver(t.Context(), p); err != nil || place(t, m).Session == nil {
			t.Errorf("to get it back: %v", err)
		}
	})
}

func TestAReplicaThatStopsReleasesItsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g, one, two := twoReplicas(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- one.Run(ctx) }()
		s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if f := g.members[0]; f.left {
			t.Error("the session has left its group: its partitions would go to others")
		}
		if p := place(t, two); p.Owner.Boot != "" || p.Epoch != 1 {
			t.Errorf("the table says %+v; want no owner", p)
		}
	})
}

func TestSessionsOfReplicasThatAreGoneExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, g, dead, alive := twoReplicas(t)
		for _, name := range []string{"used", "idle"} {
			s, err := dead.Create(t.Context(), Settings{Group: "g", Name: name})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- alive.Run(ctx) }()
		time.Sleep(4 * time.Minute)
		p, err := alive.Find(t.Context(), "g", "used")
		if err == nil {
			err = alive.TakeOver(t.Context(), p)
		}
		if err != nil {
			t.Fatal(err)
		}
		use := func() {
			t.Helper()
			if _, release, err := find(alive, "g", "used"); err != nil {
				t.Error(err)
			} else {
				release()
			}
		}
		for range 5 {
			use()
			time.Sleep(30 * time.Second)
		}
		if table.has("g/idle") != true {
			t.Error("another replica's session expired before its time")
		}
		// While the table cannot be followed, nobody can renew, and time does not count.
		table.away(true)
		time.Sleep(10 * time.Minute)
		if table.away(false); !table.has("g/idle") {
			t.Error("a session expired while Kafka was away")
		}
		time.Sleep(6 * time.Minute)
		if !table.has("g/idle") {
			t.Error("and at once when Kafka was back")
		}
		time.Sleep(2 * time.Minute)
		if table.has("g/idle") || !slices.Contains(g.gone, "idle") {
			t.Errorf("it has not expired, or not left its group: %v", g.gone)
		}
		if table.has("g/used") {
			t.Error("one of ours that nobody uses is still there")
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A session that is used is renewed, and not with every request.
func TestUsedSessionsAreRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, _, one, two := twoReplicas(t)
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for _, m := range []*Manager{one, two} {
			running.Go(func() {
				if err := m.Run(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		if _, err := one.Create(t.Context(), Settings{Group: "g", Name: "c"}); err != nil {
			t.Fatal(err)
		}
		before := table.count()
		for range 60 * 20 { // twenty minutes
			if p := place(t, one); p.Session == nil {
				t.Fatal("it is gone")
			}
			time.Sleep(time.Second)
		}
		if writes := table.count() - before; writes < 15 || writes > 21 {
			t.Errorf("%d renewals in twenty minutes; want about one a minute", writes)
		}
		stop()
		running.Wait()
	})
}

func TestWithoutTheTable(t *testing.T) {
	table, _, one, two := twoReplicas(t)
	if _, err := one.Create(t.Context(), Settings{Group: "g", Name: "c"}); err != nil {
		t.Fatal(err)
	}
	table.refuse = event.Errorf(event.Unavailable, 50302, "table", "away")
	_, err := one.Find(t.Context(), "g", "c")
	wantCode(t, "one that was here, and may have been taken over", err, event.Unavailable, 50302)
	_, err = one.Here(t.Context(), "g", "c")
	wantCode(t, "the same, of another replica", err, event.Unavailable, 50302)
	_, err = one.Find(t.Context(), "g", "other")
	wantCode(t, "one that is not known", err, event.Unavailable, 50302)
	_, err = two.Create(t.Context(), Settings{Group: "g", Name: "new"})
	wantCode(t, "a new one", err, event.Unavailable, 50302)
	wantCode(t, "to delete", one.Delete(t.Context(), "g", "c"), event.Unavailable, 50302)
	table.refuse = nil
	if p := place(t, one); p.Session == nil {
		t.Error("a delete that failed has removed the session")
	}
}

// A replica that has not heard of the table for a while asks before it serves what it has.
func TestAnOwnerThatDidNotHearOfItsLossAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, g, one, two := twoReplicas(t)
		for _, name := range []string{"c", "d"} {
			s, err := one.Create(t.Context(), Settings{Group: "g", Name: name})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Assign(t.Context(), []event.TopicPartition{a0}); err != nil {
				t.Fatal(err)
			}
		}
		stale := place(t, one).Session
		if table.asked > 0 {
			t.Errorf("a replica that follows the table has asked for it %d times", table.asked)
		}
		table.quiet = true
		for _, name := range []string{"c", "d"} {
			err := two.TakeOver(t.Context(), Place{key: keyOf("g", name), Epoch: 1})
			if err != nil {
				t.Fatal(err)
			}
		}
		// A commit of a request that came before: nobody else tells it from the new owner's.
		err := stale.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 12}})
		if !errors.Is(err, ErrMoved) || g.members[0].stored() != "map[]" {
			t.Errorf("a commit of a session that is another's by now: %v, stored %s", err, g.members[0].stored())
		}
		other, err := one.Find(t.Context(), "g", "d")
		if err != nil || other.Session != nil || other.Owner.Boot != two.Boot() {
			t.Errorf("it finds %+v, %v; want it with the other replica", other, err)
		}
		if _, err := one.Here(t.Context(), "g", "d"); !errors.Is(err, ErrMoved) {
			t.Errorf("sent there by a third: %v", err)
		}
	})
}

// What a session reads may be gone when it is taken over: it can still be deleted, or read other.
func TestASessionThatCannotBeResumedCanBeEnded(t *testing.T) {
	for what, end := range map[string]func(*Manager, *Session) error{
		"delete":      func(m *Manager, _ *Session) error { return m.Delete(context.Background(), "g", "c") },
		"unsubscribe": func(_ *Manager, s *Session) error { return s.Unsubscribe(context.Background()) },
		"assign none": func(_ *Manager, s *Session) error { return s.Assign(context.Background(), nil) },
	} {
		synctest.Test(t, func(t *testing.T) {
			_, g, one, two := twoReplicas(t)
			s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c", FromEarliest: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Assign(t.Context(), []event.TopicPartition{a0}); err != nil {
				t.Fatal(err)
			}
			if err := two.TakeOver(t.Context(), place(t, two)); err != nil {
				t.Fatal(err)
			}
			g.refuse = event.Errorf(event.NotFound, 40401, "open", "no such topic")
			p, err := two.Find(t.Context(), "g", "c")
			if err != nil || p.Session == nil {
				t.Fatalf("%s: it is not found: %v", what, err)
			}
			defer p.Done()
			wantCode(t, "to resume it", p.Session.Resume(t.Context()), event.NotFound, 40401)
			if err := end(two, p.Session); err != nil {
				t.Errorf("to %s: %v", what, err)
			}
			synctest.Wait()
		})
	}
}

// A client that went back by a seek, and has committed nothing since, may have been given all of
// it by the replica before.
func TestACommitAfterASeekAndAMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, g, one, two := twoReplicas(t)
		s, err := one.Create(t.Context(), Settings{Group: "g", Name: "c", FromEarliest: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		g.members[0].assign(a0)
		g.committed = map[event.TopicPartition]event.Commit{a0: {Offset: 20}}
		if err := s.Seek(t.Context(), []Position{{TopicPartition: a0, At: AtBeginning}}); err != nil {
			t.Fatal(err)
		}
		if err := two.TakeOver(t.Context(), place(t, two)); err != nil {
			t.Fatal(err)
		}
		moved := place(t, two).Session
		g.members[1].assign(a0)
		wantCode(t, "a commit", moved.Commit(t.Context()), event.Conflict, 40903)
		g.committed[a0] = event.Commit{Offset: 15} // that ends the seek
		wantCode(t, "a commit", moved.Commit(t.Context()), event.Conflict, 40903)
		g.committed[a0] = event.Commit{Offset: 10}
		wantCode(t, "a commit", moved.Commit(t.Context()), event.Conflict, 40903)
	})
}

// A session that its owner renews while another replica is about to expire it stays.
func TestASessionThatIsRenewedWhileItExpiresStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table, _, dead, alive := twoReplicas(t)
		if _, err := dead.Create(t.Context(), Settings{Group: "g", Name: "c"}); err != nil {
			t.Fatal(err)
		}
		// The table has it already, and does not say so before the update.
		renewed := append(bytes.Clone(table.rows["g/c"]), ' ')
		table.rows["g/c"] = renewed
		tell := sync.OnceFunc(func() { alive.Changed("g/c", renewed) })
		expired := false
		table.before = func() { expired = true; tell() }
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- alive.Run(ctx) }()
		time.Sleep(5*time.Minute + expiryGrace + 5*time.Second)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !expired || !table.has("g/c") {
			t.Errorf("it was to expire: %v, and is there: %v; want both", expired, table.has("g/c"))
		}
	})
}

// With Kafka away, neither the table nor the consumers hold up the end of a replica.
func TestAReplicaWithoutKafkaStopsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, table := &group{}, newTable()
		m := managerFor(t, g, table, 1000, 5*time.Minute)
		for i := range 1000 {
			s, err := m.Create(t.Context(), Settings{Group: "g", Name: fmt.Sprint(i)})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
				t.Fatal(err)
			}
		}
		for i, f := range g.members {
			f.slow = time.Duration(i%2) * 10 * time.Second
		}
		table.hang = true
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(5*time.Minute + sweepInterval/2) // the next sweep closes them all
		time.Sleep(2 * sweepInterval)
		stop()
		start := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(time.Minute)
	})
}

// What is stored and cannot be read is said, and can be removed.
func TestABadStoredRecord(t *testing.T) {
	for _, bad := range []string{``, `{`, `[]`, `{"version":99,"wait_ms":1}`, `{"version":1,"format":"avro","wait_ms":1}`, `{"version":1,"wait_ms":-1}`,
		`{"version":1,"partitions":[{"topic":"","partition":0}]}`, `{"version":1,"topics":["a"],"topic_pattern":"b"}`} {
		table, _, m, _ := twoReplicas(t)
		table.rows["g/c"] = []byte(bad)
		m.Changed("g/c", []byte(bad))
		_, err := m.Find(t.Context(), "g", "c")
		wantCode(t, bad, err, event.Conflict, 40903)
		_, err = m.Create(t.Context(), Settings{Group: "g", Name: "c"})
		wantCode(t, bad, err, event.Conflict, 40902)
		if err := m.Delete(t.Context(), "g", "c"); err != nil || table.has("g/c") {
			t.Errorf("%s: to delete it: %v", bad, err)
		}
	}
}

func TestReplicasShareAKey(t *testing.T) {
	_, _, one, two := twoReplicas(t)
	a, err := one.Sign(t.Context(), "x")
	b, err2 := two.Sign(t.Context(), "x")
	c, err3 := two.Sign(t.Context(), "y")
	if err := errors.Join(err, err2, err3); err != nil || string(a) != string(b) || string(a) == string(c) || len(a) != 32 {
		t.Errorf("signatures are %x, %x and %x, %v", a, b, c, err)
	}
	if _, _, other, _ := twoReplicas(t); true {
		if d, err := other.Sign(t.Context(), "x"); err != nil || string(d) == string(a) {
			t.Errorf("another table gives the same signature, %v", err)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	full := record{
		Settings: Settings{Group: "g", Name: "c", Format: restproxy.JSON, FromEarliest: true, AutoCommit: true, ReadCommitted: true, MinBytes: 5, Wait: time.Second},
		subscription: subscription{Topics: []string{"a", "b"}, Starts: map[event.TopicPartition]int64{a0: 1, a1: 2},
			Seeks: map[event.TopicPartition]event.Seek{a1: {Offset: 3, Since: event.NoCommit}}},
		Owner: Owner{"boot", "10.0.0.1:8080"}, Epoch: 7, Renewed: time.Unix(1767323045, 0),
	}
	f.Add("g/c", full.encode())
	full.subscription = subscription{Partitions: []event.TopicPartition{a0, a1}}
	f.Add("g/c", full.encode())
	f.Add("", []byte(`{"version":1}`))
	f.Add("g/c", []byte(`{"version":1,"epoch":-1,"seeks":[{"since":-5}]}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		r, err := decodeRecord(key, value)
		if err != nil {
			return
		}
		again, err := decodeRecord(keyOf(r.Group, r.Name), r.encode())
		if err != nil {
			t.Fatalf("%s does not come back: %v", r.encode(), err)
		}
		if !again.equal(r.subscription) || again.Settings != r.Settings || again.Owner != r.Owner || again.Epoch != r.Epoch ||
			!maps.Equal(again.Starts, r.Starts) || !maps.Equal(again.Seeks, r.Seeks) {
			t.Errorf("%+v came back as %+v", r, again)
		}
	})
}

func (f *fakeTable) has(key string) bool {
	_, ok := f.Get(key)
	return ok
}

func (f *fakeTable) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

func (f *fakeTable) away(is bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse = nil; is {
		f.refuse = fmt.Errorf("away")
	}
}
