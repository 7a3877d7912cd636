package registry

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"postamt/sidecar/internal/event"
)

// Stored is a subscription as the table has it. One whose Invalid is not empty is not delivered:
// of it, only what could be read is filled. Where its settings could not, Settings have but From.
type Stored struct {
	event.Subscription
	Settings Settings // without headers' values and secrets
	ETag     string   // changes with all that is stored
	Invalid  string   // why it cannot be read
}

// recordVersion is raised when older replicas could not understand what is stored.
const recordVersion = 1

// storedRecord is the JSON of a subscription in the table. Its key is the name.
type storedRecord struct {
	Version    int             `json:"version"`
	Generation int64           `json:"generation"`
	State      event.State     `json:"state"`
	Settings   json.RawMessage `json:"settings"` // as a PUT has them
	Sealed     []byte          `json:"sealed"`   // sealedPart
	Redrive    *storedRedrive  `json:"redrive,omitempty"`
	Created    time.Time       `json:"created"`
	Changed    time.Time       `json:"changed"`
}

// sealedPart is what nobody may read in the table.
type sealedPart struct {
	Headers map[string]string `json:"headers,omitempty"`
	Secrets []storedSecret    `json:"secrets"`
}

type storedSecret struct {
	Key   []byte    `json:"key"`
	Until time.Time `json:"until,omitzero"`
}

type storedRedrive struct {
	ID    int64              `json:"id"`
	Until map[string][]int64 `json:"until"` // by topic, the end of each partition; -1 of one that is not read
}

// sealedOf is what a sealed part is bound to, so that one subscription's is none of another's.
func sealedOf(name string) string { return "subscription " + name }

// etagOf names a stored form. The sealed part differs each time that it is written.
func etagOf(text []byte) string {
	hash := sha256.Sum256(text)
	return base64.RawURLEncoding.EncodeToString(hash[:12])
}

// encode makes the stored form, and what it will be read as.
func (r *Registry) encode(s Stored) ([]byte, Stored, error) {
	settings, err := json.Marshal(s.Settings)
	if err != nil {
		return nil, s, err
	}
	part := sealedPart{Headers: s.Headers}
	for _, secret := range s.Secrets {
		part.Secrets = append(part.Secrets, storedSecret{secret.Key, secret.Until.UTC()})
	}
	secret, err := json.Marshal(part)
	if err != nil {
		return nil, s, err
	}
	out := storedRecord{
		Version: recordVersion, Generation: s.Generation, State: s.State, Settings: settings,
		Sealed: r.opts.Seals.seal(secret, sealedOf(s.Name)), Created: s.Created.UTC(), Changed: s.Changed.UTC(),
	}
	if s.Redrive.ID > 0 {
		out.Redrive = &storedRedrive{s.Redrive.ID, make(map[string][]int64)}
		for _, tp := range slices.SortedFunc(maps.Keys(s.Redrive.Until), event.TopicPartition.Compare) {
			ends := out.Redrive.Until[tp.Topic]
			for len(ends) < int(tp.Partition) {
				ends = append(ends, -1)
			}
			out.Redrive.Until[tp.Topic] = append(ends, s.Redrive.Until[tp])
		}
	}
	text, err := json.Marshal(out)
	if err != nil {
		return nil, s, err
	}
	if len(text) > maxRecordBytes {
		return nil, s, event.Errorf(event.Unprocessable, 0, opPut, "the subscription has %d bytes; it may have %d: give it fewer topics", len(text), maxRecordBytes)
	}
	s.ETag = etagOf(text)
	return text, s, nil
}

// maxRecordBytes keeps a record within what the table's producer sends.
const maxRecordBytes = 900_000

// decode reads a stored form. It always gives something: what cannot be read is Invalid.
func (r *Registry) decode(name string, text []byte) Stored {
	s := Stored{ETag: etagOf(text)}
	if err := r.read(name, text, &s); err != nil {
		s.Invalid = err.Error()
	}
	s.Name = name
	return s
}

// read fills s as far as it can. Where a subscription is comes first: one that another version has
// written, whose settings this one refuses, or whose secrets cannot be opened still has its place,
// and a PUT lets it go on there.
func (r *Registry) read(name string, text []byte, s *Stored) error {
	var in storedRecord
	notOurs := json.Unmarshal(text, &in) // where a member has another type, the others are read all the same
	settings, notJSON := DecodeSettings(in.Settings)
	redrive, noRedrive := in.Redrive.read()
	stateKnown := slices.Contains([]event.State{event.Active, event.Paused, event.GoneAt}, in.State)
	s.Subscription, s.Settings.From = settings.subscription(name), settings.From
	s.Generation, s.Redrive, s.Created, s.Changed = max(0, in.Generation), redrive, in.Created, in.Changed
	if stateKnown {
		s.State = in.State
	}
	switch {
	case notOurs != nil:
		return fmt.Errorf("it is not JSON of ours: %w", notOurs)
	case in.Version != recordVersion:
		return fmt.Errorf("its version is %d; this replica knows only %d", in.Version, recordVersion)
	case in.Generation < 1 || !stateKnown:
		return fmt.Errorf("its generation is %d and its state %q", in.Generation, in.State)
	}
	if err := cmp.Or(notJSON, settings.err()); err != nil {
		return errors.New(messageOf(err))
	}
	s.Settings = settings
	if noRedrive != nil {
		return noRedrive
	}
	secret, err := r.opts.Seals.open(in.Sealed, sealedOf(name))
	if err != nil {
		return err
	}
	var part sealedPart
	if err := json.Unmarshal(secret, &part); err != nil {
		return fmt.Errorf("its secrets are not JSON of ours: %w", err)
	}
	if len(part.Secrets) == 0 {
		return errors.New("it has no secret")
	}
	s.Headers = part.Headers
	for _, secret := range part.Secrets {
		s.Secrets = append(s.Secrets, event.Secret(secret))
	}
	return nil
}

func (in *storedRedrive) read() (event.Redrive, error) {
	if in == nil {
		return event.Redrive{}, nil
	}
	out := event.Redrive{ID: in.ID, Until: make(map[event.TopicPartition]int64)}
	for topic, ends := range in.Until {
		for p, end := range ends {
			if end < -1 {
				return event.Redrive{}, fmt.Errorf("its redrive ends at offset %d of %s", end, topic)
			}
			if end >= 0 {
				out.Until[event.TopicPartition{Topic: topic, Partition: int32(p)}] = end //nolint:gosec // no topic has so many
			}
		}
	}
	return out, nil
}

// subscription is what the deliveries need of settings.
func (s Settings) subscription(name string) event.Subscription {
	rate, _ := perSecond(s.RateLimit)
	return event.Subscription{
		Name: name, Topics: s.Topics, URL: s.URL, Filter: s.Filter, Ordering: s.Ordering, MaxInFlight: s.MaxInFlight, RateLimit: rate,
		Timeout: s.Timeout, Structured: s.Structured, Retry: s.Retry, DeadLetters: s.DeadLetters,
	}
}
