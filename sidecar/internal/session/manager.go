package session

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"postamt/sidecar/internal/event"
)

const (
	// sweepInterval is how often sessions that nobody uses are looked for.
	sweepInterval = time.Second
	// renewInterval is how often a session that is used is written to the table.
	renewInterval = time.Minute
	// expiryGrace is how much longer than the idle timeout other replicas leave a session alone:
	// its owner removes it first, and renews it less often than it is used.
	expiryGrace = 2 * time.Minute
	// signingKey is the table's key of what replicas sign forwarded requests with.
	signingKey      = "signing-key"
	signingKeyBytes = 32
)

// Table keeps what sessions are to survive their replica; package kafka has it.
type Table interface {
	Get(key string) (value []byte, ok bool)
	// CatchUp makes Get know everything that was written before.
	CatchUp(ctx context.Context) error
	// Update sets a key to what change makes of it, as one step; nil is none.
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
	// Following tells whether changes have come in without a break for the last seconds.
	Following() bool
}

// Options configure a Manager.
type Options struct {
	Boot        string // names this process
	MaxSessions int
	IdleTimeout time.Duration
	// ReleaseTimeout bounds how long Run gives its sessions up; what is left then is taken over
	// when this replica does not answer any more.
	ReleaseTimeout time.Duration
	Log            *slog.Logger
}

// Manager keeps the sessions that this replica owns, and knows who owns the others. It is safe
// for concurrent use.
type Manager struct {
	kafka Kafka
	table Table
	opts  Options
	log   *slog.Logger

	taking singleflight.Group // of takeovers, by key
	ending sync.WaitGroup     // sessions that are being closed

	mu       sync.Mutex
	sessions map[string]*Session
	opening  int // sessions that are being made or taken over
	closing  bool
	address  string               // of this replica's HTTP API
	deleting map[string]int       // by key, how many requests delete it
	seen     map[string]time.Time // when the table's record of a session changed
	since    time.Time            // from when on the table has been followed without a break
}

// NewManager makes an empty Manager. The table must tell Changed what happens to it.
func NewManager(k Kafka, o Options) *Manager {
	return &Manager{kafka: k, opts: o, log: o.Log, sessions: make(map[string]*Session), seen: make(map[string]time.Time), deleting: make(map[string]int)}
}

// UseTable says where sessions are kept, before anything else is asked.
func (m *Manager) UseTable(t Table) { m.table = t }

// SetAddress says where other replicas reach this one. Until then it owns no sessions.
func (m *Manager) SetAddress(address string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.address = address
}

// owner is this replica.
func (m *Manager) owner() Owner {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Owner{m.opts.Boot, m.address}
}

// Boot names this process to the others.
func (m *Manager) Boot() string { return m.opts.Boot }

// Create makes a session. A name that the group has already is a Conflict (40902).
func (m *Manager) Create(ctx context.Context, settings Settings) (*Session, error) {
	key := keyOf(settings.Group, settings.Name)
	taken := event.Errorf(event.Conflict, 40902, "create session", "group %q has a consumer instance %q already; delete it, or take another name", settings.Group, settings.Name)
	done, err := m.reserve(key, taken)
	if err != nil {
		return nil, err
	}
	defer done()
	r := record{Settings: settings, Owner: m.owner(), Epoch: 1, Renewed: time.Now()}
	err = m.table.Update(ctx, key, func(old []byte) ([]byte, error) {
		if old != nil {
			return nil, taken
		}
		return r.encode(), nil
	})
	if err != nil {
		return nil, err
	}
	return m.add(key, r, false)
}

// reserve takes a place for a session that is to be this replica's.
func (m *Manager) reserve(key string, taken error) (done func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closing:
		return nil, event.Errorf(event.Unavailable, 50302, "session", "this replica is about to stop; repeat the request")
	case m.address == "":
		return nil, event.Errorf(event.Unavailable, 50302, "session", "this replica does not know its own address yet; repeat the request")
	case m.sessions[key] != nil && taken != nil:
		return nil, taken
	case len(m.sessions)+m.opening >= m.opts.MaxSessions:
		return nil, event.Errorf(event.TooMany, 0, "session", "this replica has %d sessions, as many as it may (MAX_SESSIONS); delete some, or let them expire", len(m.sessions))
	}
	m.opening++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.opening--
	}, nil
}

// add keeps a session that the table says is ours. moved is one that another replica had.
func (m *Manager) add(key string, r record, moved bool) (*Session, error) {
	s := newSession(r.Settings, m.kafka, time.Now())
	s.sub, s.moved, s.saved = r.subscription, moved, time.Now()
	s.save = func(ctx context.Context, change func(*record)) error { return m.save(ctx, s, key, r.Epoch, change) }
	s.owned = func(ctx context.Context) error { return m.owned(ctx, s, key, r.Epoch) }
	s.lost = func() { m.drop(key, s, ErrMoved) }
	m.mu.Lock()
	if m.closing {
		m.mu.Unlock()
		m.release(context.Background(), map[string]*Session{key: s})
		return nil, event.Errorf(event.Unavailable, 50302, "session", "this replica is about to stop; repeat the request")
	}
	m.sessions[key] = s
	m.mu.Unlock()
	// It may have been taken away before it was ours to lose.
	if value, ok := m.table.Get(key); !ok {
		m.drop(key, s, ErrMoved)
	} else if now, err := decodeRecord(key, value); err != nil || now.Epoch != r.Epoch {
		m.drop(key, s, ErrMoved)
	}
	return s, nil
}

// save changes the record of a session that is ours.
func (m *Manager) save(ctx context.Context, s *Session, key string, epoch int64, change func(*record)) error {
	err := m.table.Update(ctx, key, func(old []byte) ([]byte, error) {
		r, err := m.mine(key, old, epoch)
		if err != nil {
			return nil, err
		}
		change(&r)
		r.Renewed = time.Now()
		return r.encode(), nil
	})
	if errors.Is(err, ErrMoved) {
		m.drop(key, s, ErrMoved)
	}
	return err
}

// owned asks Kafka whether a session is still ours.
func (m *Manager) owned(ctx context.Context, s *Session, key string, epoch int64) error {
	if err := m.table.CatchUp(ctx); err != nil {
		return err
	}
	value, _ := m.table.Get(key)
	_, err := m.mine(key, value, epoch)
	if err != nil {
		m.drop(key, s, ErrMoved)
	}
	return err
}

// mine decodes a record, which must be of this replica and epoch.
func (m *Manager) mine(key string, value []byte, epoch int64) (record, error) {
	if value == nil {
		return record{}, ErrMoved
	}
	r, err := decodeRecord(key, value)
	if err != nil || r.Owner.Boot != m.opts.Boot || r.Epoch != epoch {
		return record{}, ErrMoved
	}
	return r, nil
}

// drop forgets a session that is not ours any more. It does not wait for its end.
func (m *Manager) drop(key string, s *Session, why error) {
	s.mu.Lock()
	if s.closed == nil {
		s.closed = why
	}
	s.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[key] == s { // else who has removed it ends it
		delete(m.sessions, key)
		m.ending.Go(func() { s.end(why, false) })
	}
}

// Changed is told what the table has of a key from now on; nil is nothing.
func (m *Manager) Changed(key string, value []byte) {
	if key == signingKey {
		return
	}
	m.mu.Lock()
	if m.seen[key] = time.Now(); value == nil {
		delete(m.seen, key)
	}
	s := m.sessions[key]
	deleting := m.deleting[key] > 0
	m.mu.Unlock()
	if s == nil || value == nil && deleting {
		return
	}
	if r, err := decodeRecord(key, value); value == nil || err == nil && r.Owner.Boot != m.opts.Boot {
		m.log.Info("another replica has the session now", "group", s.Group, "instance", s.Name, "address", r.Owner.Address)
		m.drop(key, s, ErrMoved)
	}
}

// Place is where a session is: here, when Session is not nil, or with another replica, or,
// when Owner is not set, with none.
type Place struct {
	Session *Session
	Done    func() // to be called when the request has been served; the session does not expire before
	Owner   Owner
	Epoch   int64
	key     string
}

// ErrUnreadable is what Find says of a session whose record it cannot read. It can be deleted.
var ErrUnreadable error = event.Errorf(event.Conflict, 40903, "session", "what is stored of the session cannot be read by this version; DELETE it, and create it again")

// Find tells where a session is. One that is here is found without asking Kafka, as long as the
// table is followed: a replica that was stopped for a while, or cut off, may have lost it.
func (m *Manager) Find(ctx context.Context, group, name string) (Place, error) {
	key := keyOf(group, name)
	if err := m.keepUp(ctx); err != nil {
		return Place{}, err
	}
	if s, done := m.use(key); s != nil {
		return Place{Session: s, Done: done, key: key}, nil
	}
	value, ok := m.table.Get(key)
	if !ok {
		if err := m.table.CatchUp(ctx); err != nil {
			return Place{}, err
		}
		if value, ok = m.table.Get(key); !ok {
			return Place{}, notFound(group, name)
		}
	}
	r, err := decodeRecord(key, value)
	if err != nil {
		m.log.Error("a stored session cannot be read", "key", key, "error", err)
		return Place{}, ErrUnreadable
	}
	if r.Owner.Boot == m.opts.Boot { // it was ours, and another has joined its group in our place
		r.Owner = Owner{}
	}
	return Place{Owner: r.Owner, Epoch: r.Epoch, key: key}, nil
}

// keepUp catches up with the table when it has not been followed.
func (m *Manager) keepUp(ctx context.Context) error {
	if m.table.Following() {
		return nil
	}
	return m.table.CatchUp(ctx)
}

// Here finds a session for a request that another replica has forwarded. One that is just
// becoming ours is waited for a moment.
func (m *Manager) Here(ctx context.Context, group, name string) (Place, error) {
	key := keyOf(group, name)
	if err := m.keepUp(ctx); err != nil {
		return Place{}, err
	}
	for deadline := time.Now().Add(settleTimeout); ; {
		if s, done := m.use(key); s != nil {
			return Place{Session: s, Done: done, key: key}, nil
		}
		value, _ := m.table.Get(key)
		r, err := decodeRecord(key, value)
		if err != nil || r.Owner.Boot != m.opts.Boot || time.Now().After(deadline) {
			return Place{}, ErrMoved
		}
		select {
		case <-ctx.Done():
			return Place{}, ErrMoved
		case <-time.After(settlePause):
		}
	}
}

const (
	// settleTimeout is how long a replica may take from being the owner to having the session.
	settleTimeout = time.Second
	settlePause   = 10 * time.Millisecond
)

// Refresh makes Find know everything that any replica has done so far.
func (m *Manager) Refresh(ctx context.Context) error { return m.table.CatchUp(ctx) }

// use finds a session that is here.
func (m *Manager) use(key string) (*Session, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[key]
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users++
	return s, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.users--
		s.lastUsed = time.Now()
	}
}

// TakeOver makes a session this replica's that is elsewhere, or nowhere, as p says. ErrMoved
// means that another replica was faster, and Find is to be asked again.
func (m *Manager) TakeOver(ctx context.Context, p Place) error {
	_, err, _ := m.taking.Do(p.key, func() (any, error) {
		m.mu.Lock()
		here := m.sessions[p.key] != nil
		m.mu.Unlock()
		if here {
			return nil, nil
		}
		done, err := m.reserve(p.key, nil)
		if err != nil {
			return nil, err
		}
		defer done()
		var r record
		owner := m.owner()
		// Others may wait for the same: it goes on when this request ends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeOverTimeout)
		defer cancel()
		err = m.table.Update(ctx, p.key, func(old []byte) ([]byte, error) {
			if old == nil {
				return nil, ErrMoved
			}
			if r, err = decodeRecord(p.key, old); err != nil || r.Epoch != p.Epoch {
				return nil, ErrMoved
			}
			r.Owner = owner
			r.Epoch++
			r.Renewed = time.Now()
			return r.encode(), nil
		})
		if err != nil {
			return nil, err
		}
		_, err = m.add(p.key, r, true)
		return nil, err
	})
	return err
}

// takeOverTimeout bounds the write of a takeover, which is tried again several times.
const takeOverTimeout = 10 * time.Second

// Delete removes a session, which must be here or nowhere, and leaves its group.
func (m *Manager) Delete(ctx context.Context, group, name string) error {
	return m.remove(ctx, group, name, func() bool { return true })
}

// remove removes a session unless it turns out that it is not to be.
func (m *Manager) remove(ctx context.Context, group, name string, still func() bool) error {
	key := keyOf(group, name)
	m.mu.Lock()
	s := m.sessions[key]
	m.deleting[key]++
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.deleting[key]--; m.deleting[key] == 0 {
			delete(m.deleting, key)
		}
	}()
	var subscribed, kept bool
	err := m.table.Update(ctx, key, func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, notFound(group, name)
		}
		if kept = !still(); kept {
			return old, nil
		}
		r, err := decodeRecord(key, old)
		subscribed = err != nil || len(r.Partitions) == 0 && !r.empty()
		if err == nil && s != nil && r.Owner.Boot != m.opts.Boot {
			return nil, ErrMoved
		}
		return nil, nil
	})
	if err == nil && s == nil {
		if _, there := m.table.Get(key); !there { // it may have been made between our look and the write
			m.mu.Lock()
			s = m.sessions[key]
			m.mu.Unlock()
		}
	}
	gone, _ := errors.AsType[*event.Error](err)
	switch {
	case s != nil && gone != nil && gone.Kind == event.NotFound: // else it would stay for ever
		m.forget(key, s)
		s.end(err, true)
		return err
	case err != nil || kept:
		return err
	case s != nil:
		m.forget(key, s)
		s.end(notFound(group, name), true)
	case subscribed:
		if err := m.kafka.Leave(ctx, group, name); err != nil { // it is gone from there after its timeout
			m.log.Warn("a deleted session has not left its group", "group", group, "instance", name, "error", err)
		}
	}
	return nil
}

func (m *Manager) forget(key string, s *Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[key] == s {
		delete(m.sessions, key)
	}
}

// Len counts the sessions of this replica.
func (m *Manager) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sessions)
}

// Run renews the sessions that are used and removes those that nobody has used for the idle
// timeout, until ctx is canceled; then it releases all of them, so that other replicas take
// them over with the next request, and returns nil, at the latest after ReleaseTimeout.
func (m *Manager) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	var sweeping sync.WaitGroup
	free := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			m.mu.Lock()
			m.closing = true
			all := m.sessions
			m.sessions = make(map[string]*Session)
			m.mu.Unlock()
			ended := make(chan struct{})
			go func() { // a consumer that waits for Kafka is not waited for: the process ends
				defer close(ended)
				m.release(ctx, all)
				m.ending.Wait()
				sweeping.Wait()
			}()
			select {
			case <-ended:
			case <-time.After(m.opts.ReleaseTimeout):
			}
			return nil
		case <-tick.C:
			select {
			case free <- struct{}{}: // one at a time: the table may be slow
				sweeping.Go(func() {
					m.sweep(ctx, time.Now())
					<-free
				})
			default:
			}
		}
	}
}

// release gives sessions up without leaving their groups.
func (m *Manager) release(ctx context.Context, all map[string]*Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.ReleaseTimeout*4/5)
	defer cancel()
	var done sync.WaitGroup
	var kept atomic.Int64
	for _, s := range all {
		done.Go(func() {
			s.end(ErrMoved, false) // first: the next owner is not to be disturbed
			err := s.save(ctx, func(r *record) { r.Owner = Owner{} })
			if err != nil && !errors.Is(err, ErrMoved) {
				kept.Add(1)
			}
		})
	}
	done.Wait()
	if n := kept.Load(); n > 0 {
		m.log.Warn("sessions could not be released; they are taken over when this replica does not answer", "sessions", n)
	}
}

// sweep renews and expires, all at once: what the table is told goes into one transaction.
func (m *Manager) sweep(ctx context.Context, now time.Time) {
	var done sync.WaitGroup
	defer done.Wait()
	m.mu.Lock()
	for _, s := range m.sessions {
		s.mu.Lock()
		idle := s.users == 0 && now.Sub(s.lastUsed) > m.opts.IdleTimeout
		renew := !idle && (s.users > 0 || s.lastUsed.After(s.saved)) && now.Sub(s.saved) >= renewInterval
		s.mu.Unlock()
		switch {
		case idle:
			done.Go(func() {
				stillIdle := func() bool {
					s.mu.Lock()
					defer s.mu.Unlock()
					return s.users == 0 && now.Sub(s.lastUsed) > m.opts.IdleTimeout
				}
				if err := m.remove(ctx, s.Group, s.Name, stillIdle); err != nil && !errors.Is(err, ErrMoved) {
					m.log.Warn("an idle session could not be removed", "group", s.Group, "instance", s.Name, "error", err)
				}
			})
		case renew:
			done.Go(func() {
				if err := s.store(ctx, func(*record) {}); err != nil {
					m.log.Warn("a session could not be renewed", "group", s.Group, "instance", s.Name, "error", err)
				}
			})
		}
	}
	defer m.mu.Unlock()
	// What others have not renewed. While the table could not be followed, nobody could.
	if !m.table.Following() || m.since.IsZero() {
		m.since = now
		return
	}
	for key, seen := range m.seen {
		if seen.Before(m.since) {
			seen = m.since
		}
		if m.sessions[key] == nil && now.Sub(seen) > m.opts.IdleTimeout+expiryGrace {
			changed := m.seen[key]
			done.Go(func() { m.expire(ctx, key, changed) })
		}
	}
}

// expire removes a session of another replica that has not renewed it for too long. changed is
// when its record was last seen to change: the table has told us of all by the time it asks.
func (m *Manager) expire(ctx context.Context, key string, changed time.Time) {
	var before []byte
	err := m.table.Update(ctx, key, func(old []byte) ([]byte, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if before = old; m.seen[key] != changed || m.sessions[key] != nil {
			before = nil // somebody uses it
		}
		if before == nil {
			return old, nil
		}
		return nil, nil
	})
	r, bad := decodeRecord(key, before)
	switch {
	case err == nil && before == nil:
	case err != nil:
		m.log.Warn("an idle session of another replica could not be removed", "key", key, "error", err)
	case bad == nil && !r.empty() && len(r.Partitions) == 0:
		_ = m.kafka.Leave(ctx, r.Group, r.Name) // else it is out of the group after its timeout
	}
}

// Warm has the first write to the table behind it before a client waits for one: on a new
// cluster, Kafka makes its own topic of transactions for it, which takes seconds. It tries until
// it has succeeded or ctx ends.
func (m *Manager) Warm(ctx context.Context) {
	for {
		if _, err := m.signingKey(ctx); err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepInterval):
		}
	}
}

// Sign makes what proves to another replica that a request comes from one that reads the same
// table. text is what the request is.
func (m *Manager) Sign(ctx context.Context, text string) ([]byte, error) {
	key, err := m.signingKey(ctx)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil), nil
}

// signingKey is what the first replica that needed it has written.
func (m *Manager) signingKey(ctx context.Context) ([]byte, error) {
	if key, ok := m.table.Get(signingKey); ok {
		return key, nil
	}
	err := m.table.Update(ctx, signingKey, func(old []byte) ([]byte, error) {
		if len(old) == signingKeyBytes {
			return old, nil
		}
		key := make([]byte, signingKeyBytes)
		_, err := rand.Read(key)
		return key, err
	})
	if err != nil {
		return nil, err
	}
	written, _ := m.table.Get(signingKey)
	return written, nil
}

func notFound(group, name string) error {
	return event.Errorf(event.NotFound, 40403, "session", "group %q has no consumer instance %q; it was never created, was deleted, or nobody has used it for too long", group, name)
}
