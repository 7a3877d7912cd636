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
}

func newTable() *fakeTable { return &fakeTable{rows: make(map[string][]byte)} }

func (f *fakeTable) Get(key string) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.rows[key]
	return v, ok
}

func (f *fakeTable) CatchUp(context.Context) error { return f.refused() }
func (f *fakeTable) Following() bool               { return f.refused() == nil }

func (f *fakeTable) refused() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refuse
}

func (f *fakeTable) Update(_ context.Context, key string, change func([]byte) ([]byte, error)) error {
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
	f.mu.Unlock()
	for _, tell := range f.tell {
		tell(key, value)
	}
	return nil
}

// managerFor is one replica of those that share a table.
func managerFor(t *testing.T, g *group, table *fakeTable, maxSessions int, idle time.Duration) *Manager {
	t.Helper()
	m := NewManager(g, Options{Boot: t.Name() + string(rune('A'+len(table.tell))), MaxSessions: maxSessions, IdleTimeout: idle, Log: slog.New(slog.DiscardHandler)})
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
	return p.Session, p.Done, err
}
