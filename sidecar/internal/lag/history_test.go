package lag

import (
	"math/rand/v2"
	"testing"
	"time"
)

// at is s seconds after a fixed time.
func at(s float64) time.Time {
	return time.UnixMilli(1_700_000_000_000 + int64(s*1000))
}

func TestArrival(t *testing.T) {
	looked := func(looks ...float64) *history { // pairs of second and end offset
		h := new(history)
		for i := 0; i < len(looks); i += 2 {
			h.observe(int64(looks[i+1]), at(looks[i]))
		}
		return h
	}
	for name, test := range map[string]struct {
		h      *history
		offset int64
		want   float64 // seconds
		doubt  float64 // seconds; negative: older than the first look
	}{
		"one record between two looks: in the middle": {looked(0, 10, 15, 11), 10, 7.5, 15},
		"first of three":                   {looked(0, 10, 15, 13), 10, 2.5, 15},
		"last of three":                    {looked(0, 10, 15, 13), 12, 12.5, 15},
		"after a quiet time":               {looked(0, 10, 15, 10, 30, 10, 45, 11), 10, 37.5, 15},
		"before a quiet time":              {looked(0, 10, 15, 12, 300, 12, 315, 13), 11, 11.25, 15},
		"older than the first look":        {looked(0, 10, 15, 12), 9, 0, -1},
		"older than all, with one look":    {looked(5, 10), 3, 5, -1},
		"a log made anew":                  {looked(0, 10, 15, 2, 30, 4), 2, 18.75 /* evenly from 15 to 30 */, 15},
		"older than the log was made anew": {looked(0, 10, 15, 2, 30, 4), 1, 15, -1},
		"a clock that was set back":        {looked(30, 10, 15, 12, 45, 14), 12, 33.75, 15},
	} {
		from, best, to := test.h.arrival(test.offset)
		if want := at(test.want).UnixMilli(); best != want {
			t.Errorf("%s: it came %v s after, want %v", name, float64(best-at(0).UnixMilli())/1000, test.want)
		}
		switch {
		case test.doubt < 0 && from >= 0:
			t.Errorf("%s: it is said to have come after %v", name, from)
		case test.doubt >= 0 && to-from != int64(test.doubt*1000):
			t.Errorf("%s: the doubt is %d ms, want %v s", name, to-from, test.doubt)
		}
	}
}

func TestLearnedTimesAreExact(t *testing.T) {
	for name, test := range map[string]struct {
		offset     int64
		told, want float64
	}{
		"older than all looks":                         {3, -500, -500},
		"just before the first look's end":             {9, -1, -1},
		"between looks":                                {12, 7, 7},
		"from the future":                              {3, 9999, 0},
		"older than the look that did not see it":      {12, -500, 0},
		"newer than the look that saw it":              {12, 16, 15},
		"the first record after a look":                {10, 4, 4},
		"a record that came alone (from 15 to 30)":     {20, 22, 22},
		"the last one, which is not below the end yet": {21, 50, -1},
	} {
		h := new(history)
		h.observe(10, at(0))
		h.observe(20, at(15))
		h.observe(21, at(30))
		h.learn(test.offset, at(test.told))
		if test.want == -1 && test.offset == 21 { // nothing was learned, and nothing broke
			if len(h.points) != 3 {
				t.Errorf("%s: it was believed", name)
			}
			continue
		}
		if from, best, to := h.arrival(test.offset); best != at(test.want).UnixMilli() || from != to {
			t.Errorf("%s: it came at %v s (doubt %d ms), want %v", name, float64(best-at(0).UnixMilli())/1000, to-from, test.want)
		}
	}
}

// Whatever is looked at and learned, the bracket of a record holds the time at which it came.
func TestHistoryNeverLies(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var h history
		var came []time.Time // by offset
		now, unread := at(0), int64(0)
		for range 500 {
			now = now.Add(time.Duration(rng.IntN(30_000)) * time.Millisecond)
			for range rng.IntN(4) {
				came = append(came, now)
			}
			now = now.Add(time.Duration(rng.IntN(15_000)) * time.Millisecond)
			h.observe(int64(len(came)), now)
			if unread < int64(len(came)) && rng.IntN(3) == 0 {
				unread += int64(rng.IntN(len(came) - int(unread) + 1))
				h.prune(unread)
			}
			if unread == int64(len(came)) {
				continue
			}
			offset := unread + int64(rng.IntN(len(came)-int(unread)))
			truth := came[offset].UnixMilli()
			if from, best, to := h.arrival(offset); from >= 0 && (truth < from || best < from || best > to) || truth > to {
				t.Fatalf("seed %d: record %d came at %d, said to be from %d by %d, best %d", seed, offset, truth, from, to, best)
			}
			if rng.IntN(5) == 0 {
				h.learn(offset, came[offset])
			}
			if len(h.points) > maxPoints {
				t.Fatalf("seed %d: %d points", seed, len(h.points))
			}
		}
	}
}
