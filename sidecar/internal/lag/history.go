package lag

import (
	"cmp"
	"slices"
	"time"
)

// maxPoints bounds what is remembered of one partition: 1.5 KiB.
const maxPoints = 64

// point says that the log's end was at offset at every look from first to last, in Unix
// milliseconds: the record at offset-1 was there at first, the one at offset was not at last.
type point struct {
	offset      int64
	first, last int64
}

// history remembers when a partition's log had grown how far, so that the time at which a
// record came can be told without reading it. Offsets rise and times do not fall from point
// to point. The zero history knows nothing.
type history struct {
	points []point
}

// observe adds a look at the log's end.
func (h *history) observe(end int64, now time.Time) {
	at := now.UnixMilli()
	n := len(h.points)
	switch {
	case n > 0 && end < h.points[n-1].offset: // made anew, or cut off by an unclean election
		h.points = append(h.points[:0], point{end, at, at})
	case n > 0 && end == h.points[n-1].offset:
		h.points[n-1].last = max(at, h.points[n-1].last)
	default:
		if n > 0 {
			at = max(at, h.points[n-1].last) // a clock that was set back a little
		}
		h.points = append(h.points, point{end, at, at})
	}
	h.thin()
}

// thin makes room by forgetting every other point of the older half: what is long ago is
// known less finely. The two oldest stay: they hold the time of the oldest unread record,
// once that has been read.
func (h *history) thin() {
	if len(h.points) <= maxPoints {
		return
	}
	kept := h.points[:2]
	for i, p := range h.points[2:] {
		if i >= maxPoints/2 || i%2 == 0 {
			kept = append(kept, p)
		}
	}
	h.points = kept
}

// prune forgets what is only needed for records before offset.
func (h *history) prune(offset int64) {
	before := 0
	for before+1 < len(h.points) && h.points[before+1].offset <= offset {
		before++
	}
	h.points = slices.Delete(h.points, 0, before)
}

// arrival tells when the record at offset came: after from and by to, and at best in
// between, in Unix milliseconds. Where the record is older than the first look, from is
// negative and best is that first look, the latest that it can be. The log must have been
// observed to go beyond offset.
func (h *history) arrival(offset int64) (from, best, to int64) {
	i, _ := h.find(offset + 1)
	if i == 0 {
		return -1, h.points[0].first, h.points[0].first
	}
	a, b := h.points[i-1], h.points[i]
	// As if the records between the two looks had come evenly: each in the middle of its share.
	share := (float64(offset-a.offset) + 0.5) / float64(b.offset-a.offset)
	return a.last, a.last + int64(share*float64(b.first-a.last)), b.first
}

// find returns the first point that is at offset or beyond, and whether it is at offset.
func (h *history) find(offset int64) (int, bool) {
	return slices.BinarySearchFunc(h.points, offset, func(p point, offset int64) int { return cmp.Compare(p.offset, offset) })
}

// learn adds the time of the record at offset, which has been read. The producer may have
// written any time into it: what the looks at the log have shown counts for more.
func (h *history) learn(offset int64, at time.Time) {
	ms := at.UnixMilli()
	i, exact := h.find(offset)
	next := i
	if exact {
		next++
	}
	if next == len(h.points) {
		return // the log has been cut off meanwhile
	}
	ms = min(ms, h.points[next].first)
	if next > 0 {
		ms = max(ms, h.points[next-1].last)
	}
	if h.points[next].offset == offset+1 {
		h.points[next].first = ms
	} else {
		h.points = slices.Insert(h.points, next, point{offset + 1, ms, ms})
	}
	if exact {
		h.points[i].last = ms
	} else {
		h.points = slices.Insert(h.points, i, point{offset, ms, ms})
	}
	h.thin()
}
