package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/registry"
)

// deliveryBody is how far a subscription is. A number that is not known is null.
type deliveryBody struct {
	InFlight   int            `json:"in_flight"`
	Partitions []progressBody `json:"partitions"`
	Replicas   []string       `json:"replicas"`
	Missing    []string       `json:"missing"`
	Redrive    *redriveBody   `json:"redrive"`
}

type progressBody struct {
	Topic         string     `json:"topic"`
	Partition     int32      `json:"partition"`
	Committed     *int64     `json:"committed"`
	End           *int64     `json:"end"`
	Lag           *int64     `json:"lag"`
	LagSeconds    *float64   `json:"lag_seconds"`
	WindowRecords int        `json:"window_records"`
	WindowBytes   int        `json:"window_bytes"`
	Replica       *string    `json:"replica"`
	Stuck         *stuckBody `json:"stuck"`
}

type stuckBody struct {
	Offset int64 `json:"offset"`
	keyBody
	Verdict      *event.Verdict `json:"verdict"`
	Status       *int           `json:"status"`
	Error        string         `json:"error"`
	Booked       int            `json:"booked"`
	Attempts     int            `json:"attempts"`
	FirstAttempt *time.Time     `json:"first_attempt"`
	NextAttempt  *time.Time     `json:"next_attempt"`
}

// keyBody is a record's key: as text or, where it is none, in base64.
type keyBody struct {
	Key       *string `json:"key"`
	KeyBase64 []byte  `json:"key_base64,omitempty"`
}

type redriveBody struct {
	ID    int64  `json:"id"`
	State string `json:"state"` // running or done
	Left  int64  `json:"left"`
}

func keyOf(key []byte) keyBody {
	switch {
	case key == nil:
		return keyBody{}
	case utf8.Valid(key):
		return keyBody{Key: new(string(key))}
	}
	return keyBody{KeyBase64: key}
}

// known is nil for what stands for a number that is not known.
func known[N int64 | float64](n N) *N {
	if n < 0 {
		return nil
	}
	return &n
}

// orNull is nil for a zero value.
func orNull[V comparable](v V) *V {
	if v == *new(V) {
		return nil
	}
	return &v
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC())
}

func deliveryOf(s event.DeliveryStatus) *deliveryBody {
	b := &deliveryBody{
		InFlight: s.InFlight, Partitions: make([]progressBody, len(s.Partitions)),
		Replicas: append([]string{}, s.Replicas...), Missing: append([]string{}, s.Missing...),
	}
	for i, p := range s.Partitions {
		b.Partitions[i] = progressBody{
			Topic: p.Topic, Partition: p.Partition, Committed: known(p.Committed), End: known(p.End), Lag: known(p.Lag), LagSeconds: known(p.LagSeconds),
			WindowRecords: p.WindowRecords, WindowBytes: p.WindowBytes, Replica: orNull(p.Replica),
		}
		if st := p.Stuck; st != nil {
			b.Partitions[i].Stuck = &stuckBody{
				Offset: st.Offset, keyBody: keyOf(st.Key), Verdict: orNull(st.Verdict), Status: orNull(st.Status), Error: st.Err, Booked: st.Booked,
				Attempts: st.Attempts, FirstAttempt: timeOrNull(st.FirstAttempt), NextAttempt: timeOrNull(st.NextAttempt),
			}
		}
	}
	if s.Redrive != nil {
		b.Redrive = &redriveBody{s.Redrive.ID, redriveState(s.Redrive.Running), s.Redrive.Left}
	}
	return b
}

func redriveState(running bool) string {
	if running {
		return "running"
	}
	return "done"
}

// outcomeBody is what came of an attempt.
type outcomeBody struct {
	Verdict        event.Verdict `json:"verdict"`
	Status         *int          `json:"status"`
	Error          string        `json:"error"`
	DurationMillis float64       `json:"duration_ms"`
	Body           string        `json:"body"`
}

func outcomeOf(o event.Outcome) outcomeBody {
	return outcomeBody{o.Verdict, orNull(o.Status), o.Err, float64(o.Duration.Microseconds()) / 1000, o.Body}
}

type attemptBody struct {
	Time      time.Time `json:"time"`
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Attempt   int       `json:"attempt"`
	outcomeBody
	Replica string `json:"replica"`
}

// testSubscription serves POST …/test: what the endpoint answers to a signed sample. It is not
// delivered again, and decides nothing.
func (s *Server) testSubscription(w http.ResponseWriter, r *http.Request) error {
	stored, err := s.Subscriptions.Readable(r.Context(), r.PathValue("subscription"))
	if err != nil {
		return err
	}
	outcome := s.Deliveries.Test(r.Context(), &stored.Subscription)
	s.writeJSON(w, r, http.StatusOK, "application/json", outcomeOf(outcome))
	return nil
}

// listAttempts serves GET …/attempts: the newest of each replica.
func (s *Server) listAttempts(w http.ResponseWriter, r *http.Request) error {
	stored, err := s.Subscriptions.Get(r.Context(), r.PathValue("subscription"))
	if err != nil {
		return err
	}
	attempts, err := s.Deliveries.Attempts(r.Context(), &stored.Subscription)
	if err != nil {
		return err
	}
	answer := struct {
		Attempts []attemptBody `json:"attempts"`
	}{make([]attemptBody, len(attempts))}
	for i, a := range attempts {
		answer.Attempts[i] = attemptBody{a.Started.UTC(), a.Topic, a.Partition, a.Offset, a.Number, outcomeOf(a.Outcome), a.Replica}
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", answer)
	return nil
}

// skipRecord serves POST …/skip: an operator makes a dead letter of a record that is stuck.
func (s *Server) skipRecord(w http.ResponseWriter, r *http.Request) error {
	body, err := s.document(r)
	if err != nil {
		return err
	}
	at, err := registry.DecodePlace(body)
	if err != nil {
		return err
	}
	stored, err := s.Subscriptions.Readable(r.Context(), r.PathValue("subscription"))
	if err != nil {
		return err
	}
	if err := s.Deliveries.Skip(r.Context(), &stored.Subscription, at.TopicPartition, at.Offset); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// redrive serves POST …/redrive: the dead letters that there are now are delivered again.
func (s *Server) redrive(w http.ResponseWriter, r *http.Request) error {
	running := func(sub *event.Subscription) (bool, error) {
		status, err := s.Deliveries.Status(r.Context(), sub)
		return status.Redrive != nil && status.Redrive.Running, err
	}
	letters, err := s.Subscriptions.Redrive(r.Context(), r.PathValue("subscription"), running)
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", struct {
		State   string `json:"state"`
		Letters int64  `json:"letters"` // at most: those of other subscriptions count, too
	}{redriveState(letters > 0), letters})
	return nil
}

type letterBody struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	keyBody
	SourceTopic     string       `json:"source_topic"`
	SourcePartition int32        `json:"source_partition"`
	SourceOffset    int64        `json:"source_offset"`
	SourceTimestamp time.Time    `json:"source_timestamp"`
	Reason          event.Reason `json:"reason"`
	Status          *int         `json:"status"`
	Error           string       `json:"error"`
	Attempts        int          `json:"attempts"`
	FirstAttempt    *time.Time   `json:"first_attempt"`
	LastAttempt     *time.Time   `json:"last_attempt"`
	Redriven        bool         `json:"redriven"`
}

const (
	defaultLetters = 100
	maxLetters     = 1000
)

// listDeadLetters serves GET …/dead-letters?cursor=&limit=: oldest first in each partition.
func (s *Server) listDeadLetters(w http.ResponseWriter, r *http.Request) error {
	params, err := query(r, "cursor", "limit")
	if err != nil {
		return err
	}
	limit := defaultLetters
	if text := params.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil {
			return event.Errorf(event.Invalid, 0, "dead letters", "limit is %q; it must be a number", text)
		}
		if limit < 1 || limit > maxLetters {
			return event.Errorf(event.Unprocessable, 0, "dead letters", "limit is %d; it must be from 1 to %d", limit, maxLetters)
		}
	}
	after, err := decodeLetterCursor(params.Get("cursor"))
	if err != nil {
		return err
	}
	stored, err := s.Subscriptions.Readable(r.Context(), r.PathValue("subscription"))
	if err != nil {
		return err
	}
	letters, next, err := s.Deliveries.DeadLetters(r.Context(), &stored.Subscription, after, limit)
	if err != nil {
		return err
	}
	answer := struct {
		DeadLetters []letterBody `json:"dead_letters"`
		Next        *string      `json:"next"` // the cursor of those that follow
	}{make([]letterBody, len(letters)), nil}
	if next != nil {
		answer.Next = new(encodeLetterCursor(next))
	}
	for i, l := range letters {
		answer.DeadLetters[i] = letterOf(l)
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", answer)
	return nil
}

func letterOf(l event.StoredLetter) letterBody {
	b := letterBody{
		Topic: l.Place.Topic, Partition: l.Place.Partition, Offset: l.Place.Offset,
		SourceTopic: l.Origin.Topic, SourcePartition: l.Origin.Partition, SourceOffset: l.Origin.Offset, SourceTimestamp: l.Origin.Timestamp.UTC(),
		Reason: l.Reason, Status: orNull(l.Last.Status), Error: l.Last.Err, Attempts: l.Attempts,
		FirstAttempt: timeOrNull(l.FirstAttempt), LastAttempt: timeOrNull(l.LastAttempt), Redriven: l.Redriven,
	}
	if l.Record != nil {
		b.keyBody = keyOf(l.Record.Key)
	}
	return b
}

// letterCursor begins the text that says where a list of dead letters goes on, and tells its form
// from later ones.
const letterCursor = "l1."

func encodeLetterCursor(after map[event.TopicPartition]int64) string {
	topics := make(map[string]map[int32]int64)
	for tp, offset := range after {
		if topics[tp.Topic] == nil {
			topics[tp.Topic] = make(map[int32]int64)
		}
		topics[tp.Topic][tp.Partition] = offset
	}
	text, _ := json.Marshal(topics) // it holds nothing that could not be written
	return letterCursor + base64.RawURLEncoding.EncodeToString(text)
}

func decodeLetterCursor(cursor string) (map[event.TopicPartition]int64, error) {
	if cursor == "" {
		return nil, nil
	}
	damaged := event.Errorf(event.Unprocessable, 0, "cursor", "the cursor is damaged; it must be what an answer has as next, unchanged")
	encoded, ok := strings.CutPrefix(cursor, letterCursor)
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	var topics map[string]map[int32]int64
	if !ok || err != nil || json.Unmarshal(text, &topics) != nil {
		return nil, damaged
	}
	after := make(map[event.TopicPartition]int64)
	for topic, offsets := range topics {
		for p, offset := range offsets {
			if p < 0 || offset < 0 {
				return nil, damaged
			}
			after[event.TopicPartition{Topic: topic, Partition: p}] = offset
		}
	}
	return after, nil
}
