// Package backoff says how long to wait before something that failed is tried again. It does no I/O.
package backoff

import (
	"math"
	"math/rand/v2"
	"time"
)

// Policy bounds the waits after failures in a row. Neither bound may be negative.
type Policy struct {
	Initial time.Duration // bound of the first wait; each failure doubles it
	Max     time.Duration // bound of any wait
}

// Delay returns how long to wait after failure n, with n counted from 1 (less counts as 1). Its
// chance comes from r; nil is the process's own source, which many goroutines may share.
//
// It is uniform in [0, min(Max, Initial·2ⁿ⁻¹)] ("full jitter"): with Initial 1s and Max 5m the
// bounds are 1s, 2s, 4s, … 4m16s, 5m, 5m. What failed together does not come back together.
//
// Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
func (p Policy) Delay(n int, r *rand.Rand) time.Duration {
	// The upper bound itself is possible, so there is one value more than the bound says; at the
	// end of the range there is no room for it, and three centuries less a nanosecond will do.
	values := min(int64(p.Bound(n)), math.MaxInt64-1) + 1
	if r == nil {
		return time.Duration(rand.Int64N(values))
	}
	return time.Duration(r.Int64N(values))
}

// Bound returns the longest wait after failure n: min(Max, Initial·2ⁿ⁻¹).
func (p Policy) Bound(n int) time.Duration {
	// Max is halved instead of Initial doubled, because halving cannot overflow.
	if shift := max(n, 1) - 1; shift < 63 && p.Initial <= p.Max>>shift {
		return p.Initial << shift
	}
	return p.Max
}
