package session

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

// fakeTable is a table in this process that all its users see at once.
type fakeTable struct {
	mu     sync.Mutex
	rows   map[string][]byte
	tell   []func(string, []byte)
	refuse error // of what asks Kafka
	writes int
	asked  int    // how often it was caught up with
	before func() // is called before an update compares
	quiet  bool   // nobody is told of changes, until somebody catches up
	untold []func()
	hang   bool // updates wait for their context's end
}

func newTable() *fakeTable { return &fakeTable{rows: make(map[string][]byte)} }

func (f *fakeTable) Get(key string) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.rows[key]
	return v, ok
}

func (f *fakeTable) CatchUp(context.Context) error {
	f.mu.Lock()
	f.asked++
	told := f.untold
	f.untold = nil
	f.mu.Unlock()
	for _, tell := range told {
		tell()
	}
	return f.refused()
}

func (f *fakeTable) Following() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refuse == nil && !f.quiet
}

func (f *fakeTable) refused() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refuse
}

func (f *fakeTable) Update(ctx context.Context, key string, change func([]byte) ([]byte, error)) error {
	if f.hang {
		<-ctx.Done()
		return event.Errorf(event.Unavailable, 50302, "table", "away")
	}
	if f.before != nil {
		f.before()
	}
	f.mu.Lock()
	old := f.rows[key]
	value, err := change(bytes.Clone(old))
	if f.refuse != nil {
		err = f.refuse
	}
	if err != nil || bytes.Equal(value, old) && (value == nil) == (old == nil) {
		f.mu.Unlock()
		return err
	}
	f.writes++
	if f.rows[key] = value; value == nil {
		delete(f.rows, key)
	}
	tell := func() {
		for _, tell := range f.tell {
			tell(key, value)
		}
	}
	if f.quiet {
		f.untold, tell = append(f.untold, tell), func() {}
	}
	f.mu.Unlock()
	tell()
	return nil
}

// managerFor is one replica of those that share a table.
func managerFor(t *testing.T, g *group, table *fakeTable, maxSessions int, idle time.Duration) *Manager {
	t.Helper()
	m := NewManager(g, Options{Boot: t.Name() + string(rune('A'+len(table.tell))), MaxSessions: maxSessions, IdleTimeout: idle, ReleaseTimeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler)})
	m.UseTable(table)
	m.SetAddress("127.0.0.1:1")
	table.tell = append(table.tell, m.Changed)
	return m
}

// find finds a session that must be here.
func find(m *Manager, group, name string) (*Session, func(), error) {
	p, err := m.Find(context.Background(), group, name)
	if err == nil && p.Session == nil {
		err = event.Errorf(event.Internal, 0, "use", "it is with %v", p.Owner)
	}
	if err == nil {
		err = p.Session.Resume(context.Background())
	}
	return p.Session, p.Done, err
}

func TestASessionThatIsMadeWhileItsNameIsDeleted(t *testing.T) {
	table := newTable()
	m := managerFor(t, &group{}, table, 10, time.Minute)
	table.before = func() { // the delete has found nothing here
		table.before = nil
		if _, err := m.Create(t.Context(), Settings{Group: "g", Name: "c"}); err != nil {
			t.Error(err)
		}
	}
	if err := m.Delete(t.Context(), "g", "c"); err != nil {
		t.Fatal(err)
	}
	if n := m.Len(); n != 0 || table.has("g/c") {
		t.Errorf("%d sessions are left, stored %v; it was deleted", n, table.has("g/c"))
	}
}
