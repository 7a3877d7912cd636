package registry

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

const opPut = "put subscription"

// maxTries is how often a write begins anew since somebody else has written meanwhile.
const maxTries = 5

// errChanged is of a subscription that is not any more as it was when a change of it began.
var errChanged error = event.Errorf(event.Conflict, 0, "subscription", "others change the subscription all the time; repeat the request")

// Put makes a subscription as settings say, or changes the one that there is. created tells that
// there was none that could be read; its first secret is there to be shown then.
//
// One that is new, has other topics, or an explicit From other than the one that it has, begins a
// generation: the positions of its new consumer group are committed before it is written. Topics
// that it keeps go on where they are, also those of one that cannot be read, as long as its
// generation can.
func (r *Registry) Put(ctx context.Context, name string, settings Settings, condition Condition) (s Stored, created bool, err error) {
	if err := CheckName(name); err != nil {
		return s, false, err
	}
	if !r.opts.Seals.Able() {
		return s, false, event.Errorf(event.Forbidden, 0, opPut, "this service has no key to keep webhook secrets under: set POSTAMT_SECRET_KEY (or POSTAMT_SECRET_KEY_FILE) to 32 random bytes in base64; ./scripts/up makes one")
	}
	checked := false
	for range maxTries {
		text, err := r.before(ctx, name)
		if err != nil {
			return s, false, err
		}
		if text == nil && !condition("") || text != nil && !condition(etagOf(text)) {
			return s, false, errCondition(etagText(text))
		}
		old := Stored{}
		if text != nil {
			old = r.decode(name, text)
		}
		if !checked {
			if err := r.check(ctx, settings, old); err != nil {
				return s, false, err
			}
			checked = true
		}
		s, created, err = r.put(ctx, name, settings, old, text)
		if !errors.Is(err, errChanged) {
			return s, created, err
		}
	}
	return s, false, errChanged
}

func etagText(text []byte) string {
	if text == nil {
		return ""
	}
	return etagOf(text)
}

// before is what is stored under a name now.
func (r *Registry) before(ctx context.Context, name string) ([]byte, error) {
	if err := r.table.CatchUp(ctx); err != nil {
		return nil, err
	}
	text, _ := r.table.Get(name)
	return text, nil
}

// put writes a subscription once; text is what was stored before.
func (r *Registry) put(ctx context.Context, name string, settings Settings, old Stored, text []byte) (Stored, bool, error) {
	now := time.Now().UTC()
	created := text == nil || old.Invalid != ""
	s := old
	s.Name, s.Invalid = name, ""
	s.Subscription = settings.subscription(name)
	s.Generation, s.State, s.Redrive, s.Created = old.Generation, old.State, old.Redrive, old.Created
	s.Secrets, s.Settings = old.Secrets, settings.shown()
	var err error
	if s.Headers, err = settings.headersOver(old.Headers); err != nil {
		return s, false, err
	}
	if len(old.Secrets) == 0 {
		if settings.Secret == nil {
			settings.Secret = newSecret()
		}
		s.Secrets = []event.Secret{{Key: settings.Secret}}
	} else if settings.Secret != nil {
		if _, err := s.rotate(settings.Secret, now); err != nil {
			return s, false, err
		}
	}
	if s.State == "" || s.State == event.GoneAt && s.URL != old.URL { // what another endpoint said
		s.State = event.Active
	}
	if s.Created.IsZero() {
		s.Created = now
	}
	if s.Settings.From == "" {
		if s.Settings.From = old.Settings.From; s.Settings.From == "" {
			s.Settings.From = fromLatest
		}
	}
	if !created && s.equal(old) {
		return old, false, nil
	}
	known := old.Generation > 0
	// Where it is not known what its from was, it stays: what it has not delivered must not be left
	// out since it could not be read. A replay moves it.
	moves := known && settings.From != "" && old.Settings.From != "" && !sameFrom(settings.From, old.Settings.From)
	if known && !moves && sameTopics(s.Topics, old.Topics) {
		s, err = r.swap(ctx, s, text)
		return s, created, err
	}
	var kept []string
	if known && !moves {
		if kept, err = r.kept(ctx, old); err != nil {
			return s, false, err
		}
	}
	s, err = r.begin(ctx, s, kept, s.Settings.From, text)
	return s, created, err
}

// shown leaves out what is not shown: of headers, only the names are.
func (s Settings) shown() Settings {
	s.Secret = nil
	names := make(map[string]*string, len(s.Headers))
	for name := range s.Headers {
		names[name] = nil
	}
	s.Headers = names
	return s
}

// headersOver takes from old what settings leave as it is.
func (s Settings) headersOver(old map[string]string) (map[string]string, error) {
	if len(s.Headers) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(s.Headers))
	var missing []string
	for name, text := range s.Headers {
		if text != nil {
			out[name] = *text
		} else if value, ok := old[name]; ok {
			out[name] = value
		} else {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, event.Errorf(event.Unprocessable, 0, opPut, "headers.%s is null, which leaves it as it is, and there is none; give it a value", strings.Join(missing, ", headers."))
	}
	return out, nil
}

// equal tells whether two are the same but for when they were made and changed.
func (s *Stored) equal(old Stored) bool {
	a, _ := s.Settings.MarshalJSON()
	b, _ := old.Settings.MarshalJSON()
	return string(a) == string(b) && s.Generation == old.Generation && s.State == old.State && maps.Equal(s.Headers, old.Headers) &&
		slices.EqualFunc(s.Secrets, old.Secrets, func(a, b event.Secret) bool { return string(a.Key) == string(b.Key) && a.Until.Equal(b.Until) })
}

func sameFrom(a, b string) bool {
	at, errA := time.Parse(time.RFC3339, a)
	bt, errB := time.Parse(time.RFC3339, b)
	return a == b || errA == nil && errB == nil && at.Equal(bt)
}

func sameTopics(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// swap writes a subscription unless something else than text is stored by now.
func (r *Registry) swap(ctx context.Context, s Stored, text []byte) (Stored, error) {
	s.Changed = time.Now().UTC()
	after, out, err := r.encode(s)
	if err != nil {
		return s, err
	}
	err = r.table.Update(ctx, s.Name, func(now []byte) ([]byte, error) {
		switch {
		case (now == nil) != (text == nil) || string(now) != string(text):
			return nil, errChanged
		case now == nil && r.count() >= r.opts.MaxSubscriptions:
			return nil, event.Errorf(event.TooMany, 0, opPut, "there are %d subscriptions, as many as there may be (MAX_SUBSCRIPTIONS); delete some", r.count())
		}
		return after, nil
	})
	return out, err
}

func (r *Registry) count() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.all)
}

// Replay makes a subscription begin again elsewhere: latest, earliest or a time.
func (r *Registry) Replay(ctx context.Context, name, to string) (Stored, error) {
	if !validName(name) {
		return Stored{}, notFound(name)
	}
	for range maxTries {
		text, err := r.before(ctx, name)
		if err != nil {
			return Stored{}, err
		}
		if text == nil {
			return Stored{}, notFound(name)
		}
		s := r.decode(name, text)
		if s.Invalid != "" {
			return s, unreadable(s)
		}
		s, err = r.begin(ctx, s, nil, to, text)
		if !errors.Is(err, errChanged) {
			return s, err
		}
	}
	return Stored{}, errChanged
}

// Redrive asks for the dead letters of a subscription to be delivered again, up to those that
// there are now, and tells how many there are at most: letters of other subscriptions are among
// them. running tells whether the request before is still worked on; then this is a Conflict.
func (r *Registry) Redrive(ctx context.Context, name string, running func(*event.Subscription) (bool, error)) (letters int64, err error) {
	s, err := r.Readable(ctx, name)
	if err != nil {
		return 0, err
	}
	if s.Redrive.ID > 0 {
		if busy, err := running(&s.Subscription); err != nil {
			return 0, err
		} else if busy {
			return 0, event.Errorf(event.Conflict, 0, "redrive", "the dead letters of an earlier request are still being delivered; GET /subscriptions/%s shows how many are left", name)
		}
	}
	done, err := r.kafka.Committed(ctx, s.RedriveGroup())
	if err != nil {
		return 0, err
	}
	until := make(map[event.TopicPartition]int64)
	for _, topic := range deadLetterTopics(&s.Subscription) {
		bounds, err := r.kafka.Bounds(ctx, topic)
		if err != nil {
			return 0, err
		}
		for p, b := range bounds {
			tp := event.TopicPartition{Topic: topic, Partition: p}
			until[tp] = b.End
			from := b.Beginning
			if c, ok := done[tp]; ok {
				from = max(from, c.Offset)
			}
			letters += max(0, b.End-from)
		}
	}
	if letters == 0 {
		return 0, nil
	}
	before := s.Redrive.ID
	_, err = r.change(ctx, name, func(s *Stored) (bool, error) {
		if s.Redrive.ID != before {
			return false, errChanged
		}
		s.Redrive = event.Redrive{ID: before + 1, Until: until}
		return true, nil
	})
	return letters, err
}

// deadLetterTopics are where the dead letters of a subscription go, each once.
func deadLetterTopics(s *event.Subscription) []string {
	var out []string
	for _, topic := range s.Topics {
		if letters := s.DeadLetterTopic(topic); !slices.Contains(out, letters) {
			out = append(out, letters)
		}
	}
	return out
}

// err is what is wrong with settings by themselves.
func (s Settings) err() error {
	return (&reader{s.mistakes}).error(opPut)
}

// check collects all that is wrong with settings.
func (r *Registry) check(ctx context.Context, s Settings, old Stored) error {
	all := &reader{slices.Clone(s.mistakes)}
	say := func(err error) {
		if err != nil {
			all.mistake("%s", messageOf(err))
		}
	}
	if s.URL != "" && !all.has("url") {
		say(r.opts.CheckURL(s.URL))
	}
	if headers, err := s.headersOver(old.Headers); err != nil {
		say(err)
	} else {
		say(r.opts.CheckHeaders(headers))
	}
	sub := s.subscription("")
	for _, topic := range s.Topics {
		letters := sub.DeadLetterTopic(topic)
		if there, err := r.there(ctx, topic); err != nil {
			return err
		} else if !there {
			all.mistake("there is no topic %s; GET /topics lists those that there are", quoted(topic))
			continue
		}
		if slices.Contains(s.Topics, letters) {
			all.mistake("the dead letters of %s would go to %s, which is one of the topics: they would be delivered again without end", topic, letters)
		} else if there, err := r.there(ctx, letters); err != nil {
			return err
		} else if !there {
			all.mistake("the dead letters of %s would go to the topic %s, which there is not; declare it in compose/topics.yaml (dead_letters: true of an event, or a topic of that name) and run bootstrap, or name another one as dead_letters", topic, quoted(letters))
		}
	}
	return all.error(opPut)
}

// there asks Kafka for a topic. Our own, and Kafka's, are not there.
func (r *Registry) there(ctx context.Context, topic string) (bool, error) {
	if topic == "" || event.Own(topic) {
		return false, nil
	}
	_, err := r.kafka.Bounds(ctx, topic)
	if ee, ok := errors.AsType[*event.Error](err); ok && ee.Kind == event.NotFound {
		return false, nil
	}
	return err == nil, err
}
