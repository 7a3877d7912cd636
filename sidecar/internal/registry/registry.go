// Package registry keeps subscriptions in a compacted topic, the same for all replicas: what
// clients say of them, what may not be read sealed, and where each begins to read.
package registry

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
)

// Table keeps subscriptions by name; package kafka has it.
type Table interface {
	Get(key string) (value []byte, ok bool)
	// CatchUp makes Get know everything that was written before, and tells Changed of it.
	CatchUp(ctx context.Context) error
	// Update sets a key to what change makes of it, as one step; nil is none.
	Update(ctx context.Context, key string, change func(old []byte) ([]byte, error)) error
}

// Kafka answers where topics and groups are. Its errors are event.Errors.
type Kafka interface {
	// Bounds and OffsetsAt are NotFound of a topic that there is not.
	Bounds(ctx context.Context, topic string) (map[int32]event.Bounds, error)
	OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int32]int64, error)
	// Committed is empty of a group that there is not.
	Committed(ctx context.Context, group string) (map[event.TopicPartition]event.Commit, error)
	// CommitStart commits for a group that has no members.
	CommitStart(ctx context.Context, group string, commits map[event.TopicPartition]event.Commit) error
	// DeleteGroup is a Conflict of a group with members, and nothing of one that there is not.
	DeleteGroup(ctx context.Context, group string) error
	// GroupsWithPrefix lists the groups whose names begin so.
	GroupsWithPrefix(ctx context.Context, prefix string) ([]event.GroupState, error)
}

// Options configure a Registry.
type Options struct {
	Seals *Seals
	// MaxSubscriptions bounds those of the whole installation.
	MaxSubscriptions int
	// CheckURL and CheckHeaders say whether deliveries may use them; their errors may be shown.
	CheckURL     func(string) error
	CheckHeaders func(map[string]string) error
	Log          *slog.Logger
}

// Registry is safe for concurrent use.
type Registry struct {
	table Table
	kafka Kafka
	opts  Options
	log   *slog.Logger

	mu   sync.RWMutex
	all  map[string]Stored
	told []func(name string, sub *event.Subscription)

	superfluous map[string]time.Time // groups that the sweeper has seen, and since when; Run's alone
}

// New makes an empty Registry. The table must tell Changed what happens to it.
func New(k Kafka, o Options) *Registry {
	return &Registry{kafka: k, opts: o, log: o.Log, all: make(map[string]Stored), superfluous: make(map[string]time.Time)}
}

// UseTable says where subscriptions are kept, before anything else is asked.
func (r *Registry) UseTable(t Table) { r.table = t }

// Subscribe has told hear of every subscription that there is, and of every change from then on,
// in order. nil is one that there is no more, or that cannot be read. told must be quick, and must
// not call the Registry.
func (r *Registry) Subscribe(told func(name string, sub *event.Subscription)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(r.all)) {
		if s := r.all[name]; s.Invalid == "" {
			told(name, &s.Subscription)
		}
	}
	r.told = append(r.told, told)
}

// Changed is told what the table has of a key from now on; nil is nothing.
func (r *Registry) Changed(key string, text []byte) {
	if !validName(key) {
		return // a number that was drawn
	}
	var s Stored
	if text != nil {
		s = r.decode(key, text)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var sub *event.Subscription
	switch {
	case text == nil:
		delete(r.all, key)
	case s.Invalid != "":
		r.log.Error("a stored subscription cannot be read; it is not delivered", "subscription", key, "error", s.Invalid)
		r.all[key] = s
	default:
		r.all[key] = s
		sub = &s.Subscription
	}
	for _, told := range r.told {
		told(key, sub)
	}
}

var names = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func validName(name string) bool { return names.MatchString(name) }

// CheckName returns why a name is none that a subscription can have, or nil.
func CheckName(name string) error {
	if validName(name) {
		return nil
	}
	return event.Errorf(event.Unprocessable, 0, opPut, "the name is %s; it must be 1 to 63 of a to z, 0 to 9 and -, and not begin with -", quoted(name))
}

func notFound(name string) error {
	return event.Errorf(event.NotFound, 0, "subscription", "there is no subscription %s; GET /subscriptions lists those that there are", quoted(name))
}

// Get finds a subscription, with all that any replica has written before.
func (r *Registry) Get(ctx context.Context, name string) (Stored, error) {
	if !validName(name) {
		return Stored{}, notFound(name)
	}
	if err := r.table.CatchUp(ctx); err != nil {
		return Stored{}, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	if s, ok := r.all[name]; ok {
		return s, nil
	}
	return Stored{}, notFound(name)
}

// Readable is Get of a subscription that can be read; one that cannot is a Conflict.
func (r *Registry) Readable(ctx context.Context, name string) (Stored, error) {
	s, err := r.Get(ctx, name)
	if err == nil && s.Invalid != "" {
		err = unreadable(s)
	}
	return s, err
}

func unreadable(s Stored) error {
	return event.Errorf(event.Conflict, 0, "subscription", "what is stored of the subscription cannot be used: %s; DELETE it, or PUT it again", s.Invalid)
}

// List gives all subscriptions, in order of their names.
func (r *Registry) List(ctx context.Context) ([]Stored, error) {
	if err := r.table.CatchUp(ctx); err != nil {
		return nil, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]Stored, 0, len(r.all))
	for _, name := range slices.Sorted(maps.Keys(r.all)) {
		out = append(out, r.all[name])
	}
	return out, nil
}

// Condition decides by the ETag of what is stored, "" for nothing, whether it may be written.
type Condition func(etag string) bool

// errCondition is of a write whose condition did not hold.
func errCondition(etag string) error {
	now := "there is none"
	if etag != "" {
		now = `its ETag is now "` + etag + `"`
	}
	return event.Errorf(event.Precondition, 0, "subscription", "the subscription is not as If-Match or If-None-Match wants it: %s; GET it, and decide anew", now)
}

// Delete removes a subscription. Its consumer groups go later, when nobody is in them.
func (r *Registry) Delete(ctx context.Context, name string, condition Condition) error {
	if !validName(name) {
		return notFound(name)
	}
	return r.table.Update(ctx, name, func(old []byte) ([]byte, error) {
		switch {
		case old == nil:
			return nil, notFound(name)
		case !condition(etagOf(old)):
			return nil, errCondition(etagOf(old))
		}
		return nil, nil
	})
}

// change writes what edit makes of a subscription that there is and that can be read, and returns
// it. Where edit changes nothing, nothing is written: it tells so.
func (r *Registry) change(ctx context.Context, name string, edit func(*Stored) (changed bool, err error)) (Stored, error) {
	if !validName(name) {
		return Stored{}, notFound(name)
	}
	var out Stored
	err := r.table.Update(ctx, name, func(old []byte) ([]byte, error) {
		if old == nil {
			return nil, notFound(name)
		}
		s := r.decode(name, old)
		if s.Invalid != "" {
			return nil, unreadable(s)
		}
		changed, err := edit(&s)
		if err != nil {
			return nil, err
		}
		if !changed {
			out = s
			return old, nil
		}
		s.Changed = time.Now().UTC()
		text, stored, err := r.encode(s)
		out = stored
		return text, err
	})
	return out, err
}

// SetState makes a subscription active or paused, by a client's word.
func (r *Registry) SetState(ctx context.Context, name string, state event.State) (Stored, error) {
	return r.change(ctx, name, func(s *Stored) (bool, error) {
		changed := s.State != state
		s.State = state
		return changed, nil
	})
}

// Withdraw pauses an active subscription whose endpoint wants no more records. One that has begun
// a later generation since, or has another endpoint, is left alone.
func (r *Registry) Withdraw(ctx context.Context, name string, generation int64, url string) error {
	_, err := r.change(ctx, name, func(s *Stored) (bool, error) {
		if s.Generation != generation || s.URL != url || s.State != event.Active {
			return false, nil
		}
		s.State = event.GoneAt
		return true, nil
	})
	return err
}

const (
	// overlap is how long a secret that was rotated out signs beside the new one.
	overlap = 24 * time.Hour
	// maxSecrets is how many secrets of a subscription may sign at once.
	maxSecrets = 4
)

// Rotate gives a subscription a secret, or a new one of our own when it is nil. The one that it
// had signs beside it until the time that is returned.
func (r *Registry) Rotate(ctx context.Context, name string, secret []byte) (key []byte, until time.Time, err error) {
	if secret == nil {
		secret = newSecret()
	}
	now := time.Now().UTC()
	s, err := r.change(ctx, name, func(s *Stored) (bool, error) { return s.rotate(secret, now) })
	if err != nil {
		return nil, time.Time{}, err
	}
	for _, other := range s.Secrets[1:] {
		if other.Until.After(until) {
			until = other.Until
		}
	}
	return secret, until, nil
}

// rotate puts a secret before those that still sign.
func (s *Stored) rotate(secret []byte, now time.Time) (changed bool, err error) {
	if string(s.Secrets[0].Key) == string(secret) {
		return false, nil
	}
	kept := []event.Secret{{Key: secret}}
	for _, old := range s.Secrets {
		if old.Until.IsZero() {
			old.Until = now.Add(overlap)
		}
		if old.Until.After(now) && string(old.Key) != string(secret) {
			kept = append(kept, old)
		}
	}
	if len(kept) > maxSecrets {
		soonest := slices.MinFunc(kept[1:], func(a, b event.Secret) int { return a.Until.Compare(b.Until) })
		return false, event.Errorf(event.Conflict, 0, "secret", "the subscription has as many secrets that sign as it may, %d; the next one ends at %s", maxSecrets, soonest.Until.Format(time.RFC3339))
	}
	s.Secrets = kept
	return true, nil
}

// messageOf is what of an error may be shown.
func messageOf(err error) string {
	if ee, ok := errors.AsType[*event.Error](err); ok {
		return ee.Msg
	}
	return err.Error()
}
