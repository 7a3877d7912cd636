package deliver

import "math/bits"

// offsets is a set of the offsets of one window: from a base on, span of them. Every method
// is told the base as it is now; it never goes back. What lies below it is forgotten.
type offsets struct {
	span  int64
	words []uint64 // a ring: the word of an offset is offset/64 modulo their number
	from  int64    // the base as the last method was told
}

// word is where the bits of an offset are.
func (o *offsets) word(offset int64) *uint64 { return &o.words[offset/64%int64(len(o.words))] }

// advance empties what has fallen below the base.
func (o *offsets) advance(base int64) {
	if o.words == nil {
		o.words, o.from = make([]uint64, o.span/64+2), base
		return
	}
	first, last := o.from/64, base/64
	if last-first >= int64(len(o.words)) {
		clear(o.words)
	} else {
		for w := first; w < last; w++ {
			*o.word(w * 64) = 0
		}
	}
	o.from = max(o.from, base)
}

// set adds an offset that lies in the window.
func (o *offsets) set(offset, base int64) {
	o.advance(base)
	if offset < base || offset >= base+o.span {
		return
	}
	*o.word(offset) |= 1 << (offset % 64)
}

func (o *offsets) has(offset, base int64) bool {
	if o.words == nil {
		return false
	}
	o.advance(base)
	return offset >= base && offset < base+o.span && *o.word(offset)&(1<<(offset%64)) != 0
}

// bitmap has a bit for each offset from the base on, up to the last one in the set.
func (o *offsets) bitmap(base int64) []byte {
	if o.words == nil {
		return nil
	}
	o.advance(base)
	var out []byte
	for w := base / 64; w <= (base+o.span-1)/64; w++ {
		for word := *o.word(w * 64); word != 0; word &= word - 1 {
			bit := w*64 + int64(bits.TrailingZeros64(word)) - base
			if bit < 0 || bit >= o.span {
				continue
			}
			for int64(len(out)) <= bit/8 {
				out = append(out, 0)
			}
			out[bit/8] |= 1 << (bit % 8)
		}
	}
	return out
}
