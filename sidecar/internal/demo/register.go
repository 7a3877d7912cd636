package demo

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"postamt/sidecar/internal/backoff"
)

// keptSales is how many of the newest sales the register can say the place of.
const keptSales = 10_000

// sellAgain bounds the waits between tries of one sale.
var sellAgain = backoff.Policy{Initial: 200 * time.Millisecond, Max: 2 * time.Second}

// Register sells vouchers at a steady rate. What has not been acknowledged it sends again, with the
// same number, for as long as it takes.
type Register struct {
	opts Options
	api  *client
	log  *slog.Logger

	mu           sync.Mutex
	changed      chan struct{} // closed and made anew when rate changes
	rate         float64
	run          int64
	last         int64          // the highest number given to a voucher
	acknowledged int64          // how many are known to be stored
	open         map[int64]bool // numbers that are not known to be stored, or not yet
	newest       []sale         // a ring
	tries        int64          // that had no acknowledgement
	lastError    string
}

// sale is a voucher with the place that Kafka's acknowledgement says.
type sale struct {
	Number    int64  `json:"number"`
	Card      string `json:"card"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// sold is what GET /sold answers.
type sold struct {
	Run       int64   `json:"run"`
	Rate      float64 `json:"rate"`
	Last      int64   `json:"last"`    // numbers are from 1 to this
	Sold      int64   `json:"sold"`    // of them known to be stored
	Unknown   []int64 `json:"unknown"` // the others
	Failed    int64   `json:"failed"`  // tries without an acknowledgement
	LastError string  `json:"last_error,omitempty"`
	Newest    []sale  `json:"newest"` // oldest first
}

// NewRegister makes a register; it sells while Run runs.
func NewRegister(o Options, log *slog.Logger) *Register {
	r := &Register{opts: o, api: newClient(o.API, o.Host, o.Cards), log: log, rate: o.Rate, changed: make(chan struct{})}
	r.begin()
	return r
}

// begin counts from 1 again, on other cards. What is on its way is no sale of the new run.
func (r *Register) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.run = max(time.Now().UnixMilli(), r.run+1)
	r.last, r.acknowledged, r.tries, r.lastError = 0, 0, 0, ""
	r.open, r.newest = make(map[int64]bool), nil
}

// Run sells until ctx ends.
func (r *Register) Run(ctx context.Context) error {
	defer r.api.close()
	var selling sync.WaitGroup
	defer selling.Wait()
	free := make(chan int, r.opts.Cards)
	for card := range r.opts.Cards {
		free <- card
	}
	due := time.Now()
	for {
		r.mu.Lock()
		rate, changed := r.rate, r.changed
		r.mu.Unlock()
		var tick <-chan time.Time
		if rate > 0 {
			tick = time.After(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			due = time.Now()
			continue
		case <-tick:
		}
		// What could not be sold in its second is not made up for.
		if due = due.Add(time.Duration(float64(time.Second) / rate)); time.Since(due) > time.Second {
			due = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil
		case card := <-free:
			v := r.next(card)
			selling.Go(func() {
				r.sell(ctx, v)
				free <- card
			})
		}
	}
}

func (r *Register) next(card int) voucher {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	r.open[r.last] = true
	return voucher{Run: r.run, Number: r.last, Card: fmt.Sprintf("%s%d", cardPrefix(r.run), card), Amount: 10 + int(r.last%10)*5}
}

// sell sends a voucher until it is acknowledged, its run is over or ctx ends.
func (r *Register) sell(ctx context.Context, v voucher) {
	path := pathOf("topics", r.opts.Topic, "records") + "?key=" + url.QueryEscape(v.Card)
	for try := 1; ; try++ {
		s := sale{Number: v.Number, Card: v.Card}
		err := r.api.do(ctx, http.MethodPost, path, v, &s)
		if r.note(v, s, err) || ctx.Err() != nil {
			return
		}
		r.log.Debug("not known to be stored", "number", v.Number, "try", try, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(sellAgain.Delay(try, nil)):
		}
	}
}

// note tells whether there is nothing more to be done for a voucher.
func (r *Register) note(v voucher, s sale, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.Run != r.run {
		return true
	}
	if err != nil {
		r.tries++
		r.lastError = err.Error()
		return false
	}
	r.acknowledged++
	delete(r.open, v.Number)
	if len(r.newest) < keptSales {
		r.newest = append(r.newest, s)
	} else {
		r.newest[(r.acknowledged-1)%keptSales] = s
	}
	return true
}

// maxNewest bounds ?newest=.
const maxNewest = keptSales

func (r *Register) sold(newest int) sold {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := sold{
		Run: r.run, Rate: r.rate, Last: r.last, Sold: r.acknowledged, Failed: r.tries, LastError: r.lastError,
		Unknown: slices.Sorted(maps.Keys(r.open)), Newest: []sale{},
	}
	if s.Unknown == nil {
		s.Unknown = []int64{}
	}
	for i := r.acknowledged - int64(min(newest, len(r.newest))); i < r.acknowledged; i++ {
		s.Newest = append(s.Newest, r.newest[i%keptSales])
	}
	return s
}

// rateBody is what POST /rate takes.
type rateBody struct {
	Rate *float64 `json:"rate"`
}

// Handler serves what the register can be asked and told:
//
//	GET /sold     what was sold; ?newest=n with the places of the newest
//	DELETE /sold  begin to count anew
//	POST /rate    {"rate": vouchers a second}; 0 stops selling
func (r *Register) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /sold", func(w http.ResponseWriter, req *http.Request) {
		newest := 20
		if text := req.URL.Query().Get("newest"); text != "" {
			if _, err := fmt.Sscan(text, &newest); err != nil || newest < 0 || newest > maxNewest {
				writeError(w, http.StatusBadRequest, "newest is %q; it must be a number from 0 to %d", text, maxNewest)
				return
			}
		}
		writeJSON(w, http.StatusOK, r.sold(newest))
	})
	mux.HandleFunc("DELETE /sold", func(w http.ResponseWriter, _ *http.Request) {
		r.begin()
		writeJSON(w, http.StatusOK, r.sold(0))
	})
	mux.HandleFunc("POST /rate", func(w http.ResponseWriter, req *http.Request) {
		var in rateBody
		if !readJSON(w, req, &in) {
			return
		}
		if in.Rate == nil || *in.Rate < 0 || *in.Rate > r.opts.MaxRate {
			writeError(w, http.StatusUnprocessableEntity, "rate must be a number from 0 to %v, of vouchers a second", r.opts.MaxRate)
			return
		}
		r.mu.Lock()
		r.rate = *in.Rate
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		writeJSON(w, http.StatusOK, r.sold(0))
	})
	return guarded(mux)
}
