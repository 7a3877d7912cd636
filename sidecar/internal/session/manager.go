package session

import (
	"context"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
)

// sweepInterval is how often sessions that nobody uses are looked for.
const sweepInterval = time.Second

// Manager keeps the sessions of one replica. It is safe for concurrent use.
type Manager struct {
	kafka       Kafka
	maxSessions int
	idleTimeout time.Duration

	mu       sync.Mutex
	sessions map[id]*Session
	closing  bool
}

type id struct{ group, name string }

// NewManager makes an empty Manager.
func NewManager(k Kafka, maxSessions int, idleTimeout time.Duration) *Manager {
	return &Manager{kafka: k, maxSessions: maxSessions, idleTimeout: idleTimeout, sessions: make(map[id]*Session)}
}

// Create makes a session. A name that the group has already is a Conflict (40902).
func (m *Manager) Create(s Settings) (*Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := id{s.Group, s.Name}
	switch {
	case m.closing:
		return nil, event.Errorf(event.Unavailable, 50302, "create session", "this replica is about to stop; repeat the request")
	case m.sessions[key] != nil:
		return nil, event.Errorf(event.Conflict, 40902, "create session", "group %q has a consumer instance %q already; delete it, or take another name", s.Group, s.Name)
	case len(m.sessions) >= m.maxSessions:
		return nil, event.Errorf(event.TooMany, 0, "create session", "this replica has %d sessions, as many as it may (MAX_SESSIONS); delete some, or let them expire", len(m.sessions))
	}
	session := newSession(s, m.kafka, time.Now())
	m.sessions[key] = session
	return session, nil
}

// Use finds a session and keeps it from expiring until done is called.
func (m *Manager) Use(group, name string) (s *Session, done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s = m.sessions[id{group, name}]
	if s == nil {
		return nil, nil, notFound(group, name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
	return s, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.users--
		s.lastUsed = time.Now()
	}, nil
}

// Delete removes a session and leaves its group.
func (m *Manager) Delete(group, name string) error {
	m.mu.Lock()
	s := m.sessions[id{group, name}]
	delete(m.sessions, id{group, name})
	m.mu.Unlock()
	if s == nil {
		return notFound(group, name)
	}
	s.close()
	return nil
}

// Len counts the sessions.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// Run removes sessions that nobody has used for the idle timeout, until ctx is canceled;
// then it removes all of them and returns nil.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.remove(func(*Session) bool { return true }, true)
			return nil
		case now := <-tick.C:
			m.remove(func(s *Session) bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.users == 0 && now.Sub(s.lastUsed) > m.idleTimeout
			}, false)
		}
	}
}

// remove closes the sessions that are chosen, all at once: leaving a group takes a while.
func (m *Manager) remove(chosen func(*Session) bool, closing bool) {
	var closed sync.WaitGroup
	m.mu.Lock()
	m.closing = m.closing || closing
	for key, s := range m.sessions {
		if chosen(s) {
			delete(m.sessions, key)
			closed.Go(s.close)
		}
	}
	m.mu.Unlock()
	closed.Wait()
}

func notFound(group, name string) error {
	return event.Errorf(event.NotFound, 40403, "session", "group %q has no consumer instance %q; it was never created, was deleted, or nobody has used it for too long", group, name)
}
