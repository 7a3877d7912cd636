package demo

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"postamt/sidecar/internal/backoff"
)

const (
	subscriptionName = "demo"
	subscriptionPath = "/subscriptions/" + subscriptionName
	watchInterval    = time.Second
	// maxLetters is how many dead letters of a run are known one by one.
	maxLetters = 100_000
)

var joinAgain = backoff.Policy{Initial: 500 * time.Millisecond, Max: 5 * time.Second}

// letterPlace is where a dead letter was before it was one.
type letterPlace struct {
	partition int32
	offset    int64
}

// seen is what the API says of the subscription, some of it as old as watchInterval.
type seen struct {
	State      string `json:"state"`
	InFlight   int    `json:"in_flight"`
	Partitions []struct {
		Lag *int64 `json:"lag"`
	} `json:"partitions"`
	Redrive struct {
		State string `json:"state"`
	} `json:"redrive"`

	letters map[letterPlace]string // the reason, of this run's
	cursor  string
	err     string
}

func (s *seen) lag() (sum int64) {
	for _, p := range s.Partitions {
		if p.Lag != nil {
			sum += *p.Lag
		}
	}
	return sum
}

// Run subscribes, again and again until it works, and watches the subscription until ctx ends.
func (s *Webshop) Run(ctx context.Context) error {
	defer s.api.close()
	defer s.register.close()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = s.file.close() // every line was written
	}()
	failed := 0
	for {
		err := s.turn(ctx)
		wait := watchInterval
		if err != nil {
			failed++
			wait = joinAgain.Delay(failed, nil)
			s.log.Warn("the subscription could not be asked", "error", err, "failures", failed)
		} else {
			failed = 0
		}
		s.mu.Lock()
		if s.seen.err = ""; err != nil {
			s.seen.err = err.Error()
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// turn subscribes where that has not been done, and looks at what there is.
func (s *Webshop) turn(ctx context.Context) error {
	s.mu.Lock()
	joined := s.joined
	s.mu.Unlock()
	if !joined {
		if err := s.join(ctx); err != nil {
			return err
		}
	}
	var now seen
	err := s.api.do(ctx, http.MethodGet, subscriptionPath, nil, &now)
	if isStatus(err, http.StatusNotFound) { // somebody has deleted it
		s.mu.Lock()
		s.joined = false
		s.mu.Unlock()
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.seen.State, s.seen.InFlight, s.seen.Partitions, s.seen.Redrive = now.State, now.InFlight, now.Partitions, now.Redrive
	s.mu.Unlock()
	return s.readLetters(ctx)
}

func isStatus(err error, status int) bool {
	said, ok := errors.AsType[*statusError](err)
	return ok && said.status == status
}

// put is the subscription of the web shop. Its waits are short, so that one sees it come back.
type put struct {
	Topics  []string          `json:"topics"`
	URL     string            `json:"url"`
	From    string            `json:"from,omitempty"`
	Secret  string            `json:"secret"`
	Timeout string            `json:"timeout"`
	Retry   map[string]string `json:"retry"`
}

// join subscribes. A web shop that has no memory of what it received, or whose subscription is gone,
// has the run of the register delivered from its beginning: nothing that was sold is missing then.
func (s *Webshop) join(ctx context.Context) error {
	p := put{
		Topics: []string{s.opts.Topic}, URL: s.opts.URL, Timeout: "3s",
		Retry: map[string]string{"initial": "200ms", "max": "5s"},
	}
	s.mu.Lock()
	p.Secret = s.secret
	known := s.known
	s.mu.Unlock()
	err := s.api.do(ctx, http.MethodGet, subscriptionPath, nil, nil)
	if err != nil && !isStatus(err, http.StatusNotFound) {
		return err
	}
	if !known || err != nil {
		now, err := s.askRegister(ctx, http.MethodGet, "/sold", nil)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.learn(now)
		s.mu.Unlock()
		p.From = time.UnixMilli(now.Run).UTC().Format(time.RFC3339)
		if err := s.api.do(ctx, http.MethodDelete, subscriptionPath, nil, nil); err != nil && !isStatus(err, http.StatusNotFound) {
			return err
		}
	}
	if err := s.api.do(ctx, http.MethodPut, subscriptionPath, p, nil); err != nil {
		return err
	}
	s.log.Info("subscribed", "topic", s.opts.Topic, "url", s.opts.URL, "from", p.From)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known, s.joined = true, true
	return s.file.write(snapshot{s.secret, s.book})
}

// readLetters goes on reading the dead letters, to the end that they have now.
func (s *Webshop) readLetters(ctx context.Context) error {
	for {
		s.mu.Lock()
		cursor, prefix, full := s.seen.cursor, cardPrefix(s.book.Run), len(s.seen.letters) >= maxLetters
		s.mu.Unlock()
		if full {
			return nil
		}
		var in struct {
			Letters []struct {
				Key       string `json:"key"`
				Topic     string `json:"source_topic"`
				Partition int32  `json:"source_partition"`
				Offset    int64  `json:"source_offset"`
				Reason    string `json:"reason"`
			} `json:"dead_letters"`
			Next *string `json:"next"`
		}
		query := "?limit=1000"
		if cursor != "" {
			query += "&cursor=" + url.QueryEscape(cursor)
		}
		if err := s.api.do(ctx, http.MethodGet, subscriptionPath+"/dead-letters"+query, nil, &in); err != nil {
			return err
		}
		s.mu.Lock()
		if prefix != cardPrefix(s.book.Run) { // of a run that began meanwhile all are to be looked at
			s.mu.Unlock()
			continue
		}
		for _, l := range in.Letters {
			if l.Topic == s.opts.Topic && strings.HasPrefix(l.Key, prefix) {
				s.seen.letters[letterPlace{l.Partition, l.Offset}] = l.Reason
			}
		}
		if in.Next != nil {
			s.seen.cursor = *in.Next
		}
		s.mu.Unlock()
		if in.Next == nil {
			return nil
		}
	}
}
