package demo

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// What the web shop can be told to do with deliveries.
const (
	modeUp     = "up"     // takes them
	modeDown   = "down"   // closes the connection
	modeSlow   = "slow"   // takes them after a delay
	modeHang   = "hang"   // never answers
	modeFail   = "fail"   // 500
	modeRefuse = "refuse" // 422
)

var modes = []string{modeUp, modeDown, modeSlow, modeHang, modeFail, modeRefuse}

const (
	maxDelay  = time.Minute
	maxPoison = 1000
)

// faults are what POST /faults takes: what happens, and to which deliveries.
type faults struct {
	Mode   string   `json:"mode"`
	Share  *float64 `json:"share,omitempty"`  // of the attempts, by chance; of the vouchers where they are refused; all when it is left out
	Delay  string   `json:"delay,omitempty"`  // of slow; 2s when it is left out
	Poison []int64  `json:"poison,omitempty"` // only these vouchers
}

func (f *faults) check() error {
	if !slices.Contains(modes, f.Mode) {
		return fmt.Errorf("mode is %q; it must be one of %s", f.Mode, strings.Join(modes, ", "))
	}
	if f.Share != nil && (*f.Share < 0 || *f.Share > 1) {
		return fmt.Errorf("share is %v; it must be from 0 to 1", *f.Share)
	}
	if len(f.Poison) > maxPoison {
		return fmt.Errorf("poison has %d numbers; it may have %d", len(f.Poison), maxPoison)
	}
	if f.Delay == "" {
		f.Delay = "2s"
	}
	if d, err := time.ParseDuration(f.Delay); err != nil || d < 0 || d > maxDelay {
		return fmt.Errorf("delay is %q; it must be a duration from 0s to %v, such as 2s", f.Delay, maxDelay)
	}
	return nil
}

// hits tells whether a delivery of a voucher fares as the mode says; number is 0 of what is none.
func (f *faults) hits(number int64) bool {
	switch {
	case f.Mode == modeUp:
		return false
	case len(f.Poison) > 0:
		return slices.Contains(f.Poison, number)
	case f.Share == nil:
		return true
	case f.Mode == modeRefuse: // who refuses one refuses it the next time, too
		return float64(scatter(number)) < *f.Share*math.MaxUint64
	}
	return rand.Float64() < *f.Share
}

// scatter makes of numbers in a row such as are spread evenly.
func scatter(number int64) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, number) // a hash takes all
	x := h.Sum64()
	x ^= x >> 32 // FNV spreads short texts over the lower bits alone
	return x * 0x9e3779b97f4a7c15
}

// strike does to a delivery what the mode says, and tells whether it has been answered.
func (f *faults) strike(w http.ResponseWriter, r *http.Request) bool {
	switch f.Mode {
	case modeSlow:
		delay, _ := time.ParseDuration(f.Delay) // checked
		select {
		case <-r.Context().Done():
			panic(http.ErrAbortHandler) // or it would be answered as taken
		case <-time.After(delay):
		}
		return false
	case modeHang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case modeFail:
		writeError(w, http.StatusInternalServerError, "the web shop was told to fail")
	case modeRefuse:
		writeError(w, http.StatusUnprocessableEntity, "the web shop was told to refuse this")
	default:
		panic(http.ErrAbortHandler) // closes the connection, without an answer
	}
	return true
}
