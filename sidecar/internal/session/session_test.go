package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
)

// fakeConsumer is a group member whose records and rebalances a test makes. Like the real
// one it never rebalances while take runs.
type fakeConsumer struct {
	join Join
	came chan struct{} // a token when there is something to poll

	mu        sync.Mutex
	assigned  map[event.TopicPartition]bool
	log       []event.Record // all of the partitions; read up to next
	next      int
	committed map[event.TopicPartition]event.Commit
	commits   int
	seeks     []map[event.TopicPartition]event.Seek
	refuse    error
	closed    chan struct{}
	slow      time.Duration // to close
	left      bool
}

func (f *fakeConsumer) Poll(ctx context.Context, maxRecords int, take func([]event.Record)) error {
	select {
	case <-ctx.Done():
		return nil
	case <-f.closed:
		return event.Errorf(event.Unavailable, 50302, "poll", "the client is closed")
	case <-f.came:
		return f.Buffered(maxRecords, take)
	}
}

func (f *fakeConsumer) Buffered(maxRecords int, take func([]event.Record)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	records := f.log[f.next:min(f.next+maxRecords, len(f.log))]
	if f.next += len(records); len(records) > 0 {
		take(slices.Clone(records))
	}
	if f.next < len(f.log) {
		f.wake()
	}
	return nil
}

func (f *fakeConsumer) wake() {
	select {
	case f.came <- struct{}{}:
	default:
	}
}

func (f *fakeConsumer) Seek(_ context.Context, to map[event.TopicPartition]event.Seek) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seeks = append(f.seeks, to)
	return f.refuse
}

func (f *fakeConsumer) Commit(_ context.Context, offsets map[event.TopicPartition]event.Commit) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return f.refuse
	}
	f.commits++
	maps.Copy(f.committed, offsets)
	return nil
}

func (f *fakeConsumer) Assigned() []event.TopicPartition {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Keys(f.assigned), func(a, b event.TopicPartition) int { return int(a.Partition - b.Partition) })
}

func (f *fakeConsumer) Close(leave bool) {
	time.Sleep(f.slow)
	f.left = leave
	close(f.closed)
	f.revoke(f.Assigned()...)
}

func (f *fakeConsumer) assign(tps ...event.TopicPartition) {
	f.mu.Lock()
	for _, tp := range tps {
		f.assigned[tp] = true
	}
	f.mu.Unlock()
	f.join.Assigned(tps)
}

func (f *fakeConsumer) revoke(tps ...event.TopicPartition) {
	f.mu.Lock()
	for _, tp := range tps {
		delete(f.assigned, tp)
	}
	f.mu.Unlock()
	f.join.Lost(tps)
}

// arrive makes records of a partition come, with values of the given sizes.
func (f *fakeConsumer) arrive(tp event.TopicPartition, offset int64, sizes ...int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, size := range sizes {
		f.log = append(f.log, event.Record{Topic: tp.Topic, Partition: tp.Partition, Offset: offset + int64(i), Value: make([]byte, size)})
	}
	f.wake()
}

func (f *fakeConsumer) stored() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]int64)
	for tp, c := range f.committed {
		out[fmt.Sprint(tp.Topic, tp.Partition)] = c.Offset
	}
	return fmt.Sprint(out)
}

// group is a fake of the group: it remembers each member that joined. Each partition of the
// topics a and b has the offsets 10 to 19.
type group struct {
	mu        sync.Mutex
	members   []*fakeConsumer
	refuse    error
	committed map[event.TopicPartition]event.Commit
	gone      []string // who was made to leave
}

func (g *group) Ends(context.Context, []string, string, bool) (map[event.TopicPartition]int64, error) {
	return map[event.TopicPartition]int64{a0: 20, a1: 20}, g.refuse
}

func (g *group) Bounds(context.Context, string) (map[int32]event.Bounds, error) {
	return map[int32]event.Bounds{0: {Beginning: 10, End: 20}, 1: {Beginning: 10, End: 20}}, g.refuse
}

func (g *group) OffsetsAt(_ context.Context, _ string, t time.Time) (map[int32]int64, error) {
	return map[int32]int64{0: t.Unix(), 1: t.Unix()}, g.refuse
}

func (g *group) Leave(_ context.Context, _, member string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = append(g.gone, member)
	return g.refuse
}

func (g *group) Committed(context.Context, string) (map[event.TopicPartition]event.Commit, error) {
	return g.committed, g.refuse
}

func (g *group) Open(_ context.Context, j Join) (Consumer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuse != nil {
		return nil, g.refuse
	}
	f := &fakeConsumer{
		join: j, came: make(chan struct{}, 1), assigned: make(map[event.TopicPartition]bool),
		committed: make(map[event.TopicPartition]event.Commit), closed: make(chan struct{}),
	}
	g.members = append(g.members, f)
	return f, nil
}

var (
	a0 = event.TopicPartition{Topic: "a", Partition: 0}
	a1 = event.TopicPartition{Topic: "a", Partition: 1}
)

const plenty = 1 << 20

// subscribed makes a session that has a0 and a1.
func subscribed(t *testing.T, s Settings) (*Session, *fakeConsumer) {
	t.Helper()
	g := &group{}
	s.Group, s.Name = "g", "c"
	session := newSession(s, g, time.Now())
	if err := session.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
		t.Fatal(err)
	}
	g.members[0].assign(a0, a1)
	return session, g.members[0]
}

func read(t *testing.T, s *Session, maxBytes int64) *Batch {
	t.Helper()
	b, err := s.Read(t.Context(), time.Second, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func show(records []event.Record) string {
	out := make([]string, len(records))
	for i, r := range records {
		out[i] = fmt.Sprintf("%s%d@%d", r.Topic, r.Partition, r.Offset)
	}
	return fmt.Sprint(out)
}

func wantCode(t *testing.T, what string, err error, kind event.Kind, code int) {
	t.Helper()
	if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != kind || ee.Code != code {
		t.Errorf("%s: %v; want %s, %d", what, err, kind, code)
	}
}

func TestOnlyWhatWasDeliveredIsCommitted(t *testing.T) {
	s, f := subscribed(t, Settings{})
	f.arrive(a0, 5, 1, 1, 1, 1)
	b := read(t, s, 4) // two records of a byte, each counted with one more
	if show(b.Records) != "[a0@5 a0@6]" {
		t.Fatalf("the first read gives %s", show(b.Records))
	}
	b.Delivered()
	if f.stored() != "map[]" {
		t.Errorf("delivered, and nobody asked to commit: %s", f.stored())
	}
	if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:7]" {
		t.Errorf("committed %s, %v; want a0 at 7, though more is buffered", f.stored(), err)
	}
	if err := s.Commit(t.Context()); err != nil || f.commits != 1 {
		t.Errorf("nothing new to commit: %d commits, %v; want 1", f.commits, err)
	}
	read(t, s, plenty).Failed()
	if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:7]" {
		t.Errorf("after a read that failed: committed %s, %v; want a0 at 7", f.stored(), err)
	}
}

// A client may have an answer whole before that is known here, and commit over another connection.
func TestACommitWaitsForTheAnswerThatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := subscribed(t, Settings{})
		f.arrive(a0, 5, 1, 1)
		time.AfterFunc(time.Second, read(t, s, plenty).Delivered)
		if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:7]" {
			t.Errorf("committed %s, %v; want a0 at 7", f.stored(), err)
		}
		f.arrive(a0, 7, 1)
		time.AfterFunc(time.Second, read(t, s, plenty).Failed)
		if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:7]" {
			t.Errorf("the answer fails: committed %s, %v; want a0 at 7", f.stored(), err)
		}
		b := read(t, s, plenty)
		start := time.Now()
		wantCode(t, "while a client takes long", s.Commit(t.Context()), event.Conflict, 40903)
		if took := time.Since(start); took != outTimeout || f.stored() != "map[a0:7]" {
			t.Errorf("after %v %s is committed; want a0 at 7 after %v", took, f.stored(), outTimeout)
		}
		if err := s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 8}}); err != nil || f.stored() != "map[a0:8]" {
			t.Errorf("by offsets: %s, %v; want a0 at 8 at once", f.stored(), err)
		}
		b.Delivered()
	})
}

// Whether a client has got an answer may never be known: it comes again, and only the client can
// say what it has.
func TestABatchWhoseArrivalIsUnknown(t *testing.T) {
	s, f := subscribed(t, Settings{FromEarliest: true})
	f.arrive(a1, 10, 1)
	read(t, s, plenty).Delivered()
	f.arrive(a0, 10, 1, 1, 1)
	read(t, s, plenty).Unknown()
	wantCode(t, "to commit all that was read", s.Commit(t.Context()), event.Conflict, 40903)
	if f.stored() != "map[]" {
		t.Errorf("it is refused, and %s is committed", f.stored())
	}
	b := read(t, s, plenty)
	if show(b.Records) != "[a0@10 a0@11 a0@12]" {
		t.Errorf("the next read gives %s; want the same again", show(b.Records))
	}
	b.Unknown()
	if err := s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 12}}); err != nil {
		t.Fatal(err)
	}
	b = read(t, s, plenty)
	if show(b.Records) != "[a0@12]" {
		t.Errorf("after a commit of a0 at 12 comes %s", show(b.Records))
	}
	b.Delivered()
	if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:13 a1:11]" {
		t.Errorf("after a read all can be committed: %v, %s", err, f.stored())
	}
	// What was subscribed is not any more: nothing of it is unclear.
	f.arrive(a0, 13, 1)
	b = read(t, s, plenty)
	if err := s.Unsubscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Unknown()
	if err := s.Commit(t.Context()); err != nil {
		t.Errorf("after unsubscribe: %v", err)
	}
}

func TestFailedGivesTheSameAgainInOrder(t *testing.T) {
	s, f := subscribed(t, Settings{})
	f.arrive(a0, 0, 1, 1)
	f.arrive(a1, 0, 1)
	b := read(t, s, 4)
	f.arrive(a0, 2, 1)
	b.Failed()
	again := read(t, s, plenty)
	if show(again.Records) != "[a0@0 a0@1 a1@0 a0@2]" {
		t.Errorf("after Failed: %s", show(again.Records))
	}
	again.Delivered()
	if len(s.pending) != 0 {
		t.Errorf("after Delivered: %s again", show(s.pending))
	}
}

func TestARevokedPartitionIsNeitherGivenNorCommitted(t *testing.T) {
	for _, tc := range []struct {
		name string
		// between the read of a0@0, a0@1, a1@0 and the next one
		meanwhile func(*testing.T, *Session, *fakeConsumer, *Batch)
		next      string
		stored    string // after a commit of everything
	}{
		{"lost before the answer was written", func(_ *testing.T, _ *Session, f *fakeConsumer, b *Batch) {
			f.revoke(a0)
			b.Delivered()
		}, "[a1@1]", "map[a1:2]"},
		{"lost before the answer failed", func(_ *testing.T, _ *Session, f *fakeConsumer, b *Batch) {
			f.revoke(a0)
			b.Failed()
		}, "[a1@0 a1@1]", "map[a1:2]"},
		{"lost after it was delivered", func(_ *testing.T, _ *Session, f *fakeConsumer, b *Batch) {
			b.Delivered()
			f.revoke(a0)
		}, "[a1@1]", "map[a1:2]"},
		// It starts at what is committed, which is not where this session is.
		{"lost and got back, delivered", func(_ *testing.T, _ *Session, f *fakeConsumer, b *Batch) {
			f.revoke(a0)
			f.assign(a0)
			b.Delivered()
		}, "[a1@1]", "map[a1:2]"},
		{"lost and got back, failed", func(_ *testing.T, _ *Session, f *fakeConsumer, b *Batch) {
			f.revoke(a0)
			f.assign(a0)
			b.Failed()
			f.arrive(a0, 0, 1) // the group's next read of it
		}, "[a1@0 a1@1 a0@0]", "map[a0:1 a1:2]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, f := subscribed(t, Settings{})
			f.arrive(a0, 0, 1, 1)
			f.arrive(a1, 0, 1, 1)
			b := read(t, s, 6)
			if show(b.Records) != "[a0@0 a0@1 a1@0]" {
				t.Fatalf("the first read gives %s", show(b.Records))
			}
			tc.meanwhile(t, s, f, b)
			b = read(t, s, plenty)
			if show(b.Records) != tc.next {
				t.Errorf("the next read gives %s; want %s", show(b.Records), tc.next)
			}
			b.Delivered()
			if err := s.Commit(t.Context()); err != nil || f.stored() != tc.stored {
				t.Errorf("committed %s, %v; want %s", f.stored(), err, tc.stored)
			}
		})
	}
}

// Records that were polled in the last moment before a partition went away are dropped.
func TestRecordsOfAPartitionThatIsNotOursAreDropped(t *testing.T) {
	s, f := subscribed(t, Settings{})
	f.revoke(a1)
	f.arrive(a1, 0, 1)
	f.arrive(a0, 0, 1)
	if b := read(t, s, plenty); show(b.Records) != "[a0@0]" {
		t.Errorf("it gives %s", show(b.Records))
	}
}

func TestMaxBytesAndMinBytes(t *testing.T) {
	for _, tc := range []struct {
		name     string
		settings Settings
		sizes    []int
		maxBytes int64
		want     []int // records of each read
	}{
		{"one record however large", Settings{}, []int{100, 100, 1}, 10, []int{1, 1, 1}},
		{"as many as fit", Settings{}, []int{9, 9, 9, 9, 9}, 20, []int{2, 2, 1}},
		{"empty records count, too", Settings{}, []int{0, 0, 0}, 2, []int{2, 1}},
		{"no minimum", Settings{MinBytes: -1}, []int{5}, plenty, []int{1}},
		{"a minimum that is reached", Settings{MinBytes: 30}, []int{9, 9, 9, 9}, plenty, []int{4}},
		{"a minimum that is not, at the end of the wait", Settings{MinBytes: 1000}, []int{9, 9}, plenty, []int{2}},
		{"a minimum over max_bytes is max_bytes", Settings{MinBytes: 1000}, []int{9, 9, 9}, 20, []int{2, 1}},
		{"more than one poll holds", Settings{}, make([]int, 3*pollRecords+1), plenty, []int{3*pollRecords + 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, f := subscribed(t, tc.settings)
				f.arrive(a0, 0, tc.sizes...)
				for i, want := range tc.want {
					b := read(t, s, tc.maxBytes)
					if len(b.Records) != want {
						t.Errorf("read %d gives %d records; want %d", i, len(b.Records), want)
					}
					b.Delivered()
				}
				if b := read(t, s, tc.maxBytes); len(b.Records) != 0 {
					t.Errorf("%d records are left", len(b.Records))
				}
			})
		})
	}
}

func TestReadReturnsAsSoonAsThereAreRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := subscribed(t, Settings{})
		start := time.Now()
		read(t, s, plenty).Delivered()
		if took := time.Since(start); took != time.Second {
			t.Errorf("a read without records took %v; want its wait, 1s", took)
		}
		start = time.Now()
		time.AfterFunc(300*time.Millisecond, func() { f.arrive(a0, 0, 1) })
		b := read(t, s, plenty)
		if took := time.Since(start); took != 300*time.Millisecond || len(b.Records) != 1 {
			t.Errorf("%d records after %v; want 1 after 300ms", len(b.Records), took)
		}
		b.Delivered()
		// A client that goes away ends its read.
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start = time.Now()
		if b, err := s.Read(ctx, time.Hour, plenty); err == nil {
			b.Failed()
		}
		if took := time.Since(start); took != 100*time.Millisecond {
			t.Errorf("the read of a client that is gone took %v", took)
		}
	})
}

func TestAutoCommitCommitsThePreviousReadOnly(t *testing.T) {
	s, f := subscribed(t, Settings{AutoCommit: true})
	f.arrive(a0, 0, 1, 1, 1)
	read(t, s, 2).Delivered()
	if f.stored() != "map[]" {
		t.Errorf("after the first read %s is committed; want nothing", f.stored())
	}
	b := read(t, s, 2)
	if f.stored() != "map[a0:1]" {
		t.Errorf("after the second read %s is committed; want a0 at 1", f.stored())
	}
	b.Failed()
	b = read(t, s, 2)
	if f.stored() != "map[a0:1]" || show(b.Records) != "[a0@1]" {
		t.Errorf("a read that failed: %s is committed, and then comes %s", f.stored(), show(b.Records))
	}
	b.Delivered()
	f.refuse = errors.New("Kafka is away")
	if _, err := s.Read(t.Context(), time.Second, plenty); !errors.Is(err, f.refuse) {
		t.Errorf("the commit fails: %v; want that error, and no records", err)
	}
	f.refuse = nil
	if b := read(t, s, plenty); show(b.Records) != "[a0@2]" || f.stored() != "map[a0:2]" {
		t.Errorf("the next read gives %s with %s committed", show(b.Records), f.stored())
	}
}

// A read is what finds out that a topic was made anew: it does not fail before, for what can be
// committed no more.
func TestAutoCommitOfATopicThatIsGone(t *testing.T) {
	s, f := subscribed(t, Settings{AutoCommit: true})
	f.arrive(a0, 0, 1, 1)
	read(t, s, plenty).Delivered()
	f.refuse = event.Errorf(event.NotFound, 40401, "commit", "no such topic")
	f.arrive(a0, 2, 1)
	if b := read(t, s, plenty); show(b.Records) != "[a0@2]" {
		t.Errorf("it reads %s", show(b.Records))
	}
}

func TestCommitOfGivenOffsets(t *testing.T) {
	s, f := subscribed(t, Settings{})
	f.arrive(a0, 0, 1, 1, 1)
	read(t, s, plenty).Delivered()
	if err := s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 2, Metadata: "m"}}); err != nil || f.stored() != "map[a0:2]" {
		t.Errorf("committed %s, %v; want a0 at 2", f.stored(), err)
	}
	if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:3]" {
		t.Errorf("and then all: %s, %v; want a0 at 3", f.stored(), err)
	}
	other := event.TopicPartition{Topic: "a", Partition: 7}
	err := s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a1: {Offset: 1}, other: {Offset: 1}})
	wantCode(t, "of a partition that another member has", err, event.Conflict, 40903)
	if f.stored() != "map[a0:3]" {
		t.Errorf("a commit that is refused is refused whole: %s", f.stored())
	}
	if err := s.CommitOffsets(t.Context(), nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
	if err := s.Unsubscribe(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a0: {Offset: 1}})
	wantCode(t, "after unsubscribe", err, event.Conflict, 40903)
	if err := s.Commit(t.Context()); err != nil {
		t.Errorf("of everything after unsubscribe, which is nothing: %v", err)
	}
}

func TestSeekForgetsWhatWasRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := subscribed(t, Settings{})
		f.arrive(a0, 10, 1, 1, 1)
		f.arrive(a1, 10, 1, 1)
		read(t, s, 4).Delivered()
		seek := func(at Where, offset int64) error {
			return s.Seek(t.Context(), []Position{{TopicPartition: a0, At: at, Offset: offset, Time: time.Unix(14, 0)}})
		}
		if err := seek(AtOffset, 11); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(t.Context()); err != nil || f.stored() != "map[]" {
			t.Errorf("after a seek %s is committed, %v; want nothing of what came before it", f.stored(), err)
		}
		f.arrive(a0, 11, 1)
		b := read(t, s, plenty)
		if show(b.Records) != "[a1@10 a1@11 a0@11]" {
			t.Errorf("the next read gives %s", show(b.Records))
		}
		// It waits for the answer that is being written, and a read that waits ends for it.
		time.AfterFunc(time.Second, b.Failed)
		start := time.Now()
		if err := seek(AtEnd, 0); err != nil || time.Since(start) != time.Second {
			t.Errorf("a seek while an answer is written: %v after %v", err, time.Since(start))
		}
		b = read(t, s, plenty)
		if show(b.Records) != "[a1@10 a1@11]" {
			t.Errorf("what is given again is %s; a0 is elsewhere", show(b.Records))
		}
		b.Delivered()
		time.AfterFunc(time.Second, func() {
			if err := seek(AtTime, 0); err != nil {
				t.Error(err)
			}
		})
		start = time.Now()
		if b, err := s.Read(t.Context(), time.Hour, plenty); err != nil || len(b.Records) != 0 || time.Since(start) != time.Second {
			t.Errorf("a read that waits during a seek: %v, %v after %v", b, err, time.Since(start))
		} else {
			b.Delivered()
		}
		synctest.Wait()
		if err := errors.Join(seek(AtBeginning, 0), seek(AtOffset, 3), seek(AtOffset, 20)); err != nil {
			t.Error(err)
		}
		var got []int64
		for _, to := range f.seeks {
			got = append(got, to[a0].Offset)
		}
		if want := []int64{11, 20, 14, 10, 10, 20}; !slices.Equal(got, want) {
			t.Errorf("it seeks to %v; want %v", got, want)
		}
		wantCode(t, "a seek after the end", seek(AtOffset, 21), event.Unprocessable, 0)
		wantCode(t, "a seek of a partition that there is not", s.Seek(t.Context(), []Position{{TopicPartition: event.TopicPartition{Topic: "a", Partition: 5}}}), event.Conflict, 40903)
		f.revoke(a0)
		wantCode(t, "a seek of a partition that is not ours", seek(AtEnd, 0), event.Conflict, 40903)
	})
}

// A session that is joining its group is waited for, but not for ever.
func TestCommitAndSeekWaitForTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &group{}
		s := newSession(Settings{Group: "g", Name: "c"}, g, time.Now())
		if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
			t.Fatal(err)
		}
		offsets := map[event.TopicPartition]event.Commit{a0: {Offset: 2}}
		start := time.Now()
		wantCode(t, "a commit of one that never joins", s.CommitOffsets(t.Context(), offsets), event.Conflict, 40903)
		if took := time.Since(start); took != joinTimeout {
			t.Errorf("it waited for %v; want %v", took, joinTimeout)
		}
		f := g.members[0]
		time.AfterFunc(time.Second, func() { f.assign(a0) })
		start = time.Now()
		if err := s.CommitOffsets(t.Context(), offsets); err != nil || time.Since(start) != time.Second {
			t.Errorf("a commit of one that joins: %v after %v; want nil after 1s", err, time.Since(start))
		}
		start = time.Now()
		wantCode(t, "one that has joined and got others", s.CommitOffsets(t.Context(), map[event.TopicPartition]event.Commit{a1: {}}), event.Conflict, 40903)
		if took := time.Since(start); took != 0 {
			t.Errorf("it waited for %v; it is known what this member has", took)
		}
	})
}

func TestConcurrentReadsWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := subscribed(t, Settings{})
		const n = 500
		f.arrive(a0, 0, make([]int, n)...)
		var mu sync.Mutex
		seen := make(map[int64]int)
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				for {
					b, err := s.Read(t.Context(), time.Second, 10)
					if err != nil {
						t.Error(err)
						return
					}
					if len(b.Records) == 0 {
						b.Delivered()
						return
					}
					if rand.IntN(3) == 0 {
						b.Failed()
						continue
					}
					mu.Lock()
					for i, r := range b.Records {
						seen[r.Offset]++
						if i > 0 && r.Offset != b.Records[i-1].Offset+1 {
							t.Errorf("a batch out of order: %s", show(b.Records))
						}
					}
					mu.Unlock()
					b.Delivered()
				}
			})
		}
		readers.Wait()
		for offset := range int64(n) {
			if seen[offset] != 1 {
				t.Fatalf("record %d was delivered %d times", offset, seen[offset])
			}
		}
		if err := s.Commit(t.Context()); err != nil || f.stored() != fmt.Sprintf("map[a0:%d]", n) {
			t.Errorf("committed %s, %v", f.stored(), err)
		}
		// One that gives up while it waits for its turn leaves the turn to others.
		b := read(t, s, plenty)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Read(ctx, time.Hour, plenty)
		wantCode(t, "a reader that waited for another", err, event.Gone, 0)
		b.Delivered()
		read(t, s, plenty).Delivered()
	})
}

func TestSubscribeTwice(t *testing.T) {
	g := &group{}
	s := newSession(Settings{Group: "g", Name: "c", FromEarliest: true, ReadCommitted: true}, g, time.Now())
	if _, err := s.Read(t.Context(), time.Second, plenty); err == nil {
		t.Error("a read without a subscription succeeds")
	} else {
		wantCode(t, "a read without a subscription", err, event.Conflict, 40903)
	}
	subscribe := func(pattern string, topics ...string) *fakeConsumer {
		t.Helper()
		if err := s.Subscribe(t.Context(), topics, pattern); err != nil {
			t.Fatal(err)
		}
		return g.members[len(g.members)-1]
	}
	f := subscribe("", "a", "b")
	if j := f.join; j.Group != "g" || j.Member != "c" || j.Starts != nil || !j.ReadCommitted || !slices.Equal(j.Topics, []string{"a", "b"}) {
		t.Errorf("it joins with %+v", j)
	}
	f.assign(a0)
	f.arrive(a0, 0, 1, 1)
	read(t, s, 2).Delivered()
	if subscribe("", "a", "b") != f || len(g.members) != 1 {
		t.Error("the same subscription again makes a new member")
	}
	if b := read(t, s, plenty); show(b.Records) != "[a0@1]" {
		t.Errorf("and what was buffered is gone: %s", show(b.Records))
	} else {
		b.Failed()
	}

	second := subscribe("", "b")
	select {
	case <-f.closed:
	default:
		t.Error("the old member has not left")
	}
	if got := s.Subscription(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the subscription is %v", got)
	}
	if err := s.Commit(t.Context()); err != nil || second.stored() != "map[]" {
		t.Errorf("what the old member delivered is committed by the new one: %s, %v", second.stored(), err)
	}
	b0 := event.TopicPartition{Topic: "b", Partition: 0}
	second.assign(b0)
	second.arrive(b0, 0, 1)
	if b := read(t, s, plenty); show(b.Records) != "[b0@0]" {
		t.Errorf("the new subscription gives %s; what was buffered of the old one must not come", show(b.Records))
	} else {
		b.Delivered()
	}

	third := subscribe("^x")
	if got := s.Subscription(); len(got) != 0 {
		t.Errorf("a pattern before it has partitions: %v", got)
	}
	third.assign(event.TopicPartition{Topic: "x1"}, event.TopicPartition{Topic: "x1", Partition: 1})
	if got := s.Subscription(); !slices.Equal(got, []string{"x1"}) || len(s.Assignments()) != 2 {
		t.Errorf("a pattern shows its topics as %v, its partitions as %v", got, s.Assignments())
	}
	g.refuse = event.Errorf(event.Unprocessable, 0, "open", "no")
	if err := s.Subscribe(t.Context(), []string{"y"}, ""); !errors.Is(err, g.refuse) {
		t.Errorf("a subscription that is not possible: %v", err)
	}
	g.refuse = nil
	subscribe("", "a")
}

// The callbacks of a member that was replaced may still come: they are not about the new one.
func TestAReplacedMemberIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &group{}
		s := newSession(Settings{Group: "g", Name: "c"}, g, time.Now())
		for _, topic := range []string{"old", "new"} {
			if err := s.Subscribe(t.Context(), []string{topic}, ""); err != nil {
				t.Fatal(err)
			}
		}
		old, f := g.members[0], g.members[1]
		f.assign(a0)
		f.arrive(a0, 0, 1, 1)
		read(t, s, 2).Delivered()
		old.join.Lost([]event.TopicPartition{a0})
		old.join.Assigned([]event.TopicPartition{a1})
		f.arrive(a1, 0, 1)
		if b := read(t, s, plenty); show(b.Records) != "[a0@1]" {
			t.Errorf("it reads %s; a0 is still the new member's, a1 never was", show(b.Records))
		} else {
			b.Delivered()
		}
		if err := s.Commit(t.Context()); err != nil || f.stored() != "map[a0:2]" {
			t.Errorf("committed %s, %v", f.stored(), err)
		}
	})
}

func TestSubscribeAtTheSameTimeLeavesOneMember(t *testing.T) {
	g := &group{}
	s := newSession(Settings{Group: "g", Name: "c"}, g, time.Now())
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if err := s.Subscribe(t.Context(), []string{fmt.Sprint(i)}, ""); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	open := 0
	for _, f := range g.members {
		select {
		case <-f.closed:
		default:
			if open++; !slices.Equal(f.join.Topics, s.Subscription()) {
				t.Errorf("the member of %v is open, the subscription is %v", f.join.Topics, s.Subscription())
			}
		}
	}
	if open != 1 {
		t.Errorf("%d members are open", open)
	}
}

func TestDeleteEndsAReadThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &group{}
		m := managerFor(t, g, newTable(), 10, time.Hour)
		s, err := m.Create(t.Context(), Settings{Group: "g", Name: "c"})
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			what string
			end  func() error
		}{
			{"unsubscribe", func() error { return s.Unsubscribe(t.Context()) }},
			{"delete", func() error { return m.Delete(t.Context(), "g", "c") }},
		} {
			if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
				t.Fatal(err)
			}
			g.members[len(g.members)-1].assign(a0)
			start := time.Now()
			time.AfterFunc(time.Second, func() {
				if err := tc.end(); err != nil {
					t.Error(err)
				}
			})
			b, err := s.Read(t.Context(), time.Hour, plenty)
			if err != nil || len(b.Records) != 0 || time.Since(start) != time.Second {
				t.Errorf("%s during a read gives %v, %v after %v; want nothing after 1s", tc.what, b, err, time.Since(start))
			} else {
				b.Delivered()
			}
			synctest.Wait()
		}
		_, err = s.Read(t.Context(), time.Second, plenty)
		wantCode(t, "a read after delete", err, event.NotFound, 40403)
		wantCode(t, "a subscription after delete", s.Subscribe(t.Context(), []string{"a"}, ""), event.NotFound, 40403)
	})
}

func TestIdleSessionsExpireAndUsedOnesDoNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &group{}
		m := managerFor(t, g, newTable(), 10, 5*time.Minute)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- m.Run(ctx) }()
		for _, name := range []string{"idle", "polled", "reading"} {
			s, err := m.Create(t.Context(), Settings{Group: "g", Name: name})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Subscribe(t.Context(), []string{"a"}, ""); err != nil {
				t.Fatal(err)
			}
		}
		use := func(name string) func() {
			_, release, err := find(m, "g", name)
			if err != nil {
				t.Errorf("%s after %v: %v", name, time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), err)
				return func() {}
			}
			return release
		}
		release := use("reading") // one long request
		for range 5 {
			time.Sleep(4 * time.Minute)
			use("polled")()
		}
		_, _, err := find(m, "g", "idle")
		wantCode(t, "an idle session", err, event.NotFound, 40403)
		select {
		case <-g.members[0].closed:
		default:
			t.Error("the idle session has not left its group")
		}
		release()
		time.Sleep(4 * time.Minute)
		use("reading")()
		time.Sleep(5*time.Minute + 2*sweepInterval)
		if m.Len() != 0 {
			t.Errorf("%d sessions are left", m.Len())
		}
		if _, err := m.Create(t.Context(), Settings{Group: "g", Name: "idle"}); err != nil {
			t.Errorf("the name is free again, but %v", err)
		}
		stop()
		if err := <-done; err != nil || m.Len() != 0 {
			t.Errorf("stopped with %v and %d sessions", err, m.Len())
		}
		_, err = m.Create(t.Context(), Settings{Group: "g", Name: "late"})
		wantCode(t, "create while stopping", err, event.Unavailable, 50302)
	})
}

func TestManagerRefuses(t *testing.T) {
	m := managerFor(t, &group{}, newTable(), 2, time.Hour)
	create := func(group, name string) error {
		_, err := m.Create(t.Context(), Settings{Group: group, Name: name})
		return err
	}
	if err := errors.Join(create("g", "c"), create("h", "c")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "a name that is taken", create("g", "c"), event.Conflict, 40902)
	wantCode(t, "a third session of two", create("g", "d"), event.TooMany, 0)
	wantCode(t, "delete of one that is not there", m.Delete(t.Context(), "g", "d"), event.NotFound, 40403)
	if err := m.Delete(t.Context(), "g", "c"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "delete again", m.Delete(t.Context(), "g", "c"), event.NotFound, 40403)
	if err := create("g", "d"); err != nil {
		t.Errorf("there is room again, but %v", err)
	}
}
