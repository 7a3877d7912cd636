package httpapi

import (
	"context"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/registry"
)

// Deliveries tells how far subscriptions are, as all replicas together know it. Its errors are
// event.Errors.
type Deliveries interface {
	Status(ctx context.Context, sub *event.Subscription) (event.DeliveryStatus, error)
	// Attempts gives the newest attempts of each replica, newest first.
	Attempts(ctx context.Context, sub *event.Subscription) ([]event.AttemptRecord, error)
	// Skip makes a dead letter of a record that is not decided; it is NotFound of any other.
	Skip(ctx context.Context, sub *event.Subscription, tp event.TopicPartition, offset int64) error
	// Test sends a sample.
	Test(ctx context.Context, sub *event.Subscription) event.Outcome
	// DeadLetters gives up to limit letters of a subscription from given offsets on, or from the
	// first one, and what after is for those that follow: nil when there are no more.
	DeadLetters(ctx context.Context, sub *event.Subscription, after map[event.TopicPartition]int64, limit int) (letters []event.StoredLetter, next map[event.TopicPartition]int64, err error)
}

// subscriptionBody is what the interface tells of a subscription. What follows Changed is in some
// answers only.
type subscriptionBody struct {
	Name       string             `json:"name"`
	State      string             `json:"state"`
	Reason     string             `json:"reason,omitempty"` // why it is invalid
	Generation int64              `json:"generation,omitempty"`
	Group      string             `json:"group,omitempty"`
	Settings   *registry.Settings `json:"settings,omitempty"`
	// OldSecretUntil is until when secrets that were rotated out sign, too.
	OldSecretUntil time.Time `json:"old_secret_until,omitzero"`
	Created        time.Time `json:"created,omitzero"`
	Changed        time.Time `json:"changed,omitzero"`

	Secret string `json:"secret,omitempty"` // shown once
	*deliveryBody
}

// stateInvalid is of a subscription that cannot be read.
const stateInvalid = "invalid"

func subscriptionOf(s registry.Stored) subscriptionBody {
	b := subscriptionBody{Name: s.Name, State: string(s.State), Created: s.Created, Changed: s.Changed}
	if s.Generation > 0 { // of one that cannot be read, this may be known
		b.Generation, b.Group = s.Generation, s.Group()
	}
	if len(s.Settings.Topics) > 0 { // and so may these
		b.Settings = &s.Settings
	}
	if s.Invalid != "" {
		b.State, b.Reason = stateInvalid, s.Invalid
	}
	now := time.Now()
	for _, secret := range s.Secrets {
		if secret.Until.After(now) && secret.Until.After(b.OldSecretUntil) {
			b.OldSecretUntil = secret.Until
		}
	}
	return b
}

// writeSubscription answers with a subscription, whose ETag is of what is stored: not of how far
// it is.
func (s *Server) writeSubscription(w http.ResponseWriter, r *http.Request, status int, stored registry.Stored, body subscriptionBody) {
	w.Header().Set("ETag", `"`+stored.ETag+`"`)
	w.Header().Set("Cache-Control", "no-store")
	s.writeJSON(w, r, status, "application/json", body)
}

// putSubscription serves PUT /subscriptions/{subscription}.
//
//	200 changed, or as it was   201 made, with its secret   400 not JSON   403 there is no key for secrets
//	412 not as If-Match or If-None-Match wants it           422 what is not allowed, all of it
//	429 too many                503 Kafka cannot be asked
func (s *Server) putSubscription(w http.ResponseWriter, r *http.Request) error {
	condition, err := conditionOf(r)
	if err != nil {
		return err
	}
	body, err := s.document(r)
	if err != nil {
		return err
	}
	settings, err := registry.DecodeSettings(body)
	if err != nil {
		return err
	}
	stored, created, err := s.Subscriptions.Put(r.Context(), r.PathValue("subscription"), settings, condition)
	if err != nil {
		return err
	}
	answer, status := subscriptionOf(stored), http.StatusOK
	if created {
		status, answer.Secret = http.StatusCreated, registry.SecretText(stored.Secrets[0].Key)
	}
	s.writeSubscription(w, r, status, stored, answer)
	return nil
}

// showSubscription serves GET /subscriptions/{subscription}: its settings, and why nothing moves.
func (s *Server) showSubscription(w http.ResponseWriter, r *http.Request) error {
	stored, err := s.Subscriptions.Get(r.Context(), r.PathValue("subscription"))
	if err != nil {
		return err
	}
	answer := subscriptionOf(stored)
	if stored.Invalid == "" {
		status, err := s.Deliveries.Status(r.Context(), &stored.Subscription)
		if err != nil {
			return err
		}
		answer.State, answer.deliveryBody = string(status.State), deliveryOf(status)
	}
	s.writeSubscription(w, r, http.StatusOK, stored, answer)
	return nil
}

// listSubscriptions serves GET /subscriptions: all of them, with the states that they are to have.
func (s *Server) listSubscriptions(w http.ResponseWriter, r *http.Request) error {
	all, err := s.Subscriptions.List(r.Context())
	if err != nil {
		return err
	}
	answer := struct {
		Subscriptions []subscriptionBody `json:"subscriptions"`
	}{make([]subscriptionBody, len(all))}
	for i, stored := range all {
		answer.Subscriptions[i] = subscriptionOf(stored)
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", answer)
	return nil
}

// deleteSubscription serves DELETE /subscriptions/{subscription}: 204.
func (s *Server) deleteSubscription(w http.ResponseWriter, r *http.Request) error {
	condition, err := conditionOf(r)
	if err != nil {
		return err
	}
	if err := s.Subscriptions.Delete(r.Context(), r.PathValue("subscription"), condition); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// setState serves POST …/pause and …/resume.
func (s *Server) setState(state event.State) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		stored, err := s.Subscriptions.SetState(r.Context(), r.PathValue("subscription"), state)
		if err != nil {
			return err
		}
		s.writeSubscription(w, r, http.StatusOK, stored, subscriptionOf(stored))
		return nil
	}
}

// replaySubscription serves POST …/replay: {"to": latest, earliest or a time}.
func (s *Server) replaySubscription(w http.ResponseWriter, r *http.Request) error {
	body, err := s.document(r)
	if err != nil {
		return err
	}
	to, err := registry.DecodeReplay(body)
	if err != nil {
		return err
	}
	stored, err := s.Subscriptions.Replay(r.Context(), r.PathValue("subscription"), to)
	if err != nil {
		return err
	}
	s.writeSubscription(w, r, http.StatusOK, stored, subscriptionOf(stored))
	return nil
}

// rotateSecret serves POST …/secret: a new one of ours, or the one of the body.
func (s *Server) rotateSecret(w http.ResponseWriter, r *http.Request) error {
	body, err := s.document(r)
	if err != nil {
		return err
	}
	secret, err := registry.DecodeSecret(body)
	if err != nil {
		return err
	}
	key, until, err := s.Subscriptions.Rotate(r.Context(), r.PathValue("subscription"), secret)
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "no-store")
	s.writeJSON(w, r, http.StatusOK, "application/json", struct {
		Secret         string    `json:"secret"`
		OldSecretUntil time.Time `json:"old_secret_until,omitzero"`
	}{registry.SecretText(key), until})
	return nil
}

// document reads the body of one of our own resources, JSON whatever curl -d calls it.
func (s *Server) document(r *http.Request) ([]byte, error) {
	body, release, err := s.readBody(r, s.opts.Limits.BodyBytes, "MAX_BODY_BYTES")
	defer release()
	if err != nil || len(body) == 0 {
		return nil, err
	}
	contentType := r.Header.Get("Content-Type")
	mediaType, _, err := mime.ParseMediaType(contentType)
	if contentType != "" && (err != nil || mediaType != "application/json" && mediaType != "application/x-www-form-urlencoded") {
		return nil, event.Errorf(event.Unsupported, 0, "read body", "the Content-Type is %q; it must be application/json", contentType)
	}
	return body, nil
}

// conditionOf reads If-Match and If-None-Match.
func conditionOf(r *http.Request) (registry.Condition, error) {
	match, err := tagsOf(r, "If-Match")
	if err != nil {
		return nil, err
	}
	noneMatch, err := tagsOf(r, "If-None-Match")
	if err != nil {
		return nil, err
	}
	return func(etag string) bool {
		return (match == nil || match.has(etag, false)) && (noneMatch == nil || !noneMatch.has(etag, true))
	}, nil
}

// tags is what a header says of ETags: any, or those of a list.
type tags struct {
	any          bool
	strong, weak []string
}

// has tells whether an ETag, "" for none, is one of them. Only a weak comparison heeds weak ones.
func (t *tags) has(etag string, weak bool) bool {
	return etag != "" && (t.any || slices.Contains(t.strong, etag) || weak && slices.Contains(t.weak, etag))
}

// tagsOf reads a header of ETags; nil is one that is not there.
func tagsOf(r *http.Request, name string) (*tags, error) {
	lines := r.Header.Values(name)
	if len(lines) == 0 {
		return nil, nil
	}
	text := strings.Join(lines, ",")
	t := &tags{}
	if strings.TrimSpace(text) == "*" {
		t.any = true
		return t, nil
	}
	for rest := text; ; {
		if rest = strings.TrimLeft(rest, " \t,"); rest == "" && len(t.strong)+len(t.weak) > 0 {
			return t, nil
		}
		tag, weak := strings.CutPrefix(rest, "W/")
		quoted, opened := strings.CutPrefix(tag, `"`)
		value, after, closed := strings.Cut(quoted, `"`)
		after = strings.TrimLeft(after, " \t")
		if !opened || !closed || after != "" && after[0] != ',' {
			return nil, event.Errorf(event.Invalid, 0, "condition", `%s is %q; it must be * or ETags in quotes, as "abc"`, name, text)
		}
		if weak {
			t.weak = append(t.weak, value)
		} else {
			t.strong = append(t.strong, value)
		}
		rest = after
	}
}
