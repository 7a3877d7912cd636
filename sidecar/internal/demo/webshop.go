package demo

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	maxDeliveryBytes = 16 << 20
	keptDeliveries   = 20 // the newest, which the page shows
	shownMissing     = 20
	askRegister      = 2 * time.Second
)

//go:embed page
var pageFiles embed.FS

// Webshop takes the vouchers of a Register by a subscription of its own, and knows which it has.
type Webshop struct {
	opts     Options
	api      *client
	register *client
	log      *slog.Logger

	mu       sync.Mutex
	secret   string
	verifier *standardwebhooks.Webhook
	known    bool // secret is the subscription's; until then no delivery can be judged
	joined   bool
	book     *book
	file     *file
	faults   faults
	invalid  int64 // deliveries whose signatures were not valid
	struck   int64 // deliveries that a fault kept out
	newest   []arrival
	sold     sold
	soldErr  string
	seen     seen
}

// arrival is a delivery as the page shows it.
type arrival struct {
	ID      string          `json:"id"`
	Key     string          `json:"key"`
	Number  int64           `json:"number"`
	Attempt json.RawMessage `json:"attempt,omitempty"`
	Arrived time.Time       `json:"arrived"`
	Waited  float64         `json:"waited_seconds"`
	Again   bool            `json:"again"`
}

// NewWebshop makes a web shop, with what its file has kept. It subscribes while Run runs.
func NewWebshop(o Options, log *slog.Logger) (*Webshop, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	f, kept, known, err := openFile(o.File, "whsec_"+base64.StdEncoding.EncodeToString(key))
	if err != nil {
		return nil, err
	}
	verifier, err := standardwebhooks.NewWebhook(kept.Secret)
	if err != nil {
		return nil, err
	}
	return &Webshop{
		opts: o, api: newClient(o.API, o.Host, 2), register: newClient(o.Register, "", 2), log: log,
		secret: kept.Secret, verifier: verifier, known: known, book: kept.Book, file: f, faults: faults{Mode: modeUp},
		seen: seen{letters: make(map[letterPlace]string)},
	}, nil
}

// take serves POST /vouchers.
//
//	204 it is kept   401 the signature is not ours   503 it could not be kept, or nothing is known yet
func (s *Webshop) take(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDeliveryBytes))
	if err != nil {
		writeError(w, http.StatusRequestTimeout, "the body broke off")
		return
	}
	s.mu.Lock()
	verifier, ready := s.verifier, s.joined
	s.mu.Unlock()
	if err := verifier.Verify(body, r.Header); err != nil {
		if !ready { // of a subscription that there was before
			w.Header().Set("Retry-After", "1")
			writeError(w, http.StatusServiceUnavailable, "the web shop is just starting")
			return
		}
		s.mu.Lock()
		s.invalid++
		s.mu.Unlock()
		writeError(w, http.StatusUnauthorized, "%v", err)
		return
	}
	d := delivery{ID: r.Header.Get("webhook-id")}
	d.Key, _ = url.PathUnescape(r.Header.Get("kafka-key"))
	if json.Valid(body) {
		d.Value = body
	}
	v, p, ok := d.voucher()
	if !ok {
		v.Number = 0
	}
	s.mu.Lock()
	faulty, hit := s.faults, s.faults.hits(v.Number)
	if hit && faulty.Mode != modeSlow {
		s.struck++
	}
	s.mu.Unlock()
	if hit && faulty.strike(w, r) {
		return
	}
	d.Arrived = time.Now().UnixMilli() // taken: what is slow has waited longer
	if err := s.keep(d, v, p, r.Header.Get("postamt-attempt")); err != nil {
		s.log.Error("a delivery could not be kept", "error", err)
		writeError(w, http.StatusServiceUnavailable, "it could not be kept")
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// keep has a delivery in the file before it is in the book.
func (s *Webshop) keep(d delivery, v voucher, p place, attempt string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.at.IsZero() || v.Number == 0 || v.Run < s.book.Run { // only counted
		s.book = s.book.take(d)
		return nil
	}
	if v.Run > s.book.Run {
		s.begin(v.Run)
	}
	full, err := s.file.add(d)
	if err != nil {
		return err
	}
	before := s.book.Repeated
	s.book = s.book.take(d)
	a := arrival{ID: d.ID, Key: d.Key, Number: v.Number, Arrived: time.UnixMilli(d.Arrived), Waited: max(0, time.UnixMilli(d.Arrived).Sub(p.at).Seconds()), Again: s.book.Repeated > before}
	if json.Valid([]byte(attempt)) {
		a.Attempt = json.RawMessage(attempt)
	}
	if s.newest = append(s.newest, a); len(s.newest) > keptDeliveries {
		s.newest = s.newest[1:]
	}
	if full {
		return s.file.write(snapshot{s.secret, s.book})
	}
	return nil
}

// state is what GET /state answers.
type state struct {
	Run      int64   `json:"run"`
	Rate     float64 `json:"rate"`
	Sold     int64   `json:"sold"`    // vouchers that Kafka has acknowledged
	Unknown  int     `json:"unknown"` // that the register has no answer for, or not yet
	Failed   int64   `json:"failed"`  // tries to sell without an acknowledgement
	Register string  `json:"register_error,omitempty"`

	Received       int64   `json:"received"` // deliveries of vouchers, taken
	Distinct       int64   `json:"distinct"` // vouchers
	Repeated       int64   `json:"repeated"` // the same record once more
	StoredTwice    int64   `json:"stored_twice"`
	OutOfOrder     int64   `json:"out_of_order"`         // first deliveries after a newer one of the card, but of dead letters
	AfterDead      int64   `json:"out_of_dead"`          // dead letters that came in late
	Missing        int64   `json:"missing"`              // acknowledged and not received
	SetAside       int64   `json:"set_aside"`            // of them dead letters
	MissingNumbers []int64 `json:"missing_numbers"`      // the first of them
	LongestWait    float64 `json:"longest_wait_seconds"` // from record to delivery
	Busiest        int64   `json:"busiest_second"`       // how many came in it
	Earlier        int64   `json:"earlier"`
	Other          int64   `json:"other"`
	Invalid        int64   `json:"invalid_signatures"`
	Struck         int64   `json:"struck"` // attempts that a fault kept out

	Faults       faults           `json:"faults"`
	Joined       bool             `json:"joined"`
	Subscription string           `json:"subscription"` // its state, as the API says
	InFlight     int              `json:"in_flight"`
	Lag          int64            `json:"lag"`
	Error        string           `json:"subscription_error,omitempty"`
	DeadLetters  map[string]int64 `json:"dead_letters"` // of this run, by reason
	Redriving    bool             `json:"redriving"`
	Newest       []arrival        `json:"newest"`
}

func (s *Webshop) state(ctx context.Context) state {
	now, err := s.askRegister(ctx, http.MethodGet, "/sold", nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.learn(now)
	} else {
		s.soldErr = err.Error()
	}
	b := s.book
	out := state{
		Run: b.Run, Rate: s.sold.Rate, Sold: s.sold.Sold, Unknown: len(s.sold.Unknown), Failed: s.sold.Failed, Register: s.soldErr,
		Received: b.Received, Distinct: b.Numbers.size(), Repeated: b.Repeated, StoredTwice: b.StoredTwice, OutOfOrder: b.MoreLate,
		LongestWait: b.LongestWait.Seconds(), Busiest: b.Busiest, Earlier: b.Earlier, Other: b.Other, Invalid: s.invalid, Struck: s.struck,
		Faults: s.faults, Joined: s.joined, Subscription: s.seen.State, InFlight: s.seen.InFlight, Lag: s.seen.lag(), Error: s.seen.err,
		DeadLetters: make(map[string]int64), Redriving: s.seen.Redrive.State == "running", Newest: append([]arrival{}, s.newest...),
	}
	if s.sold.Run == b.Run {
		out.Missing, out.MissingNumbers = b.missing(s.sold, shownMissing)
	}
	for p, reason := range s.seen.letters {
		out.DeadLetters[reason]++
		if !b.Places[p.partition].has(p.offset) {
			out.SetAside++
		}
	}
	for _, l := range b.Late {
		if _, ok := s.seen.letters[letterPlace{l.Partition, l.Offset}]; ok {
			out.AfterDead++
		} else {
			out.OutOfOrder++
		}
	}
	return out
}

func (s *Webshop) askRegister(ctx context.Context, method, path string, in any) (out sold, err error) {
	ctx, cancel := context.WithTimeout(ctx, askRegister)
	defer cancel()
	return out, s.register.do(ctx, method, path, in, &out)
}

// learn takes what the register says; a new run begins the book anew. mu is held.
func (s *Webshop) learn(now sold) {
	s.sold, s.soldErr = now, ""
	if now.Run > s.book.Run {
		s.begin(now.Run)
	}
}

// begin makes the book one of a new run. mu is held.
func (s *Webshop) begin(run int64) {
	s.book, s.newest, s.invalid, s.struck = newBook(run), nil, 0, 0
	s.seen.letters, s.seen.cursor = make(map[letterPlace]string), "" // all are looked at again
	if err := s.file.write(snapshot{s.secret, s.book}); err != nil {
		s.log.Error("the new book could not be kept", "error", err)
	}
}

// Handler serves the page, deliveries, and what the web shop can be asked and told:
//
//	GET /state      all that it knows
//	DELETE /state   begin anew, the register too
//	POST /faults    what is to happen to deliveries from now on
//	POST /redrive   have dead letters delivered again
//	POST /rate      passed on to the register
func (s *Webshop) Handler() http.Handler {
	mux := http.NewServeMux()
	files, err := fs.Sub(pageFiles, "page")
	if err != nil {
		panic(err) // it is part of the binary
	}
	page := http.FileServerFS(files)
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
		page.ServeHTTP(w, r)
	})
	mux.HandleFunc("POST /vouchers", s.take)
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, s.state(r.Context()))
	})
	mux.HandleFunc("DELETE /state", func(w http.ResponseWriter, r *http.Request) {
		now, err := s.askRegister(r.Context(), http.MethodDelete, "/sold", nil)
		if err != nil {
			passOn(w, "the register", err)
			return
		}
		s.mu.Lock()
		s.learn(now)
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, s.state(r.Context()))
	})
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var in faults
		if !readJSON(w, r, &in) {
			return
		}
		if err := in.check(); err != nil {
			writeError(w, http.StatusUnprocessableEntity, "%v", err)
			return
		}
		s.mu.Lock()
		s.faults = in
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, in)
	})
	mux.HandleFunc("POST /redrive", func(w http.ResponseWriter, r *http.Request) {
		var out json.RawMessage
		if err := s.api.do(r.Context(), http.MethodPost, subscriptionPath+"/redrive", nil, &out); err != nil {
			passOn(w, "Postamt", err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
	mux.HandleFunc("POST /rate", func(w http.ResponseWriter, r *http.Request) {
		var in rateBody
		if !readJSON(w, r, &in) {
			return
		}
		now, err := s.askRegister(r.Context(), http.MethodPost, "/rate", in)
		if err != nil {
			passOn(w, "the register", err)
			return
		}
		writeJSON(w, http.StatusOK, rateBody{&now.Rate})
	})
	return guarded(mux)
}

// passOn answers as the one behind did, or that there was no answer.
func passOn(w http.ResponseWriter, who string, err error) {
	if said, ok := errors.AsType[*statusError](err); ok {
		writeError(w, said.status, "%s: %s", who, said.message)
		return
	}
	writeError(w, http.StatusBadGateway, "%s does not answer: %v", who, err)
}
