package demo

import (
	"encoding/json"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// set is a set of numbers, with a bit for each where they are dense: a year of five vouchers a
// second takes 20 MB.
type set map[int64]*page

const pageBits = 4096

type page [pageBits / 64]uint64

func (s set) has(i int64) bool {
	p := s[i/pageBits]
	return p != nil && p[i%pageBits/64]&(1<<(i%64)) != 0
}

// add tells whether i is new.
func (s set) add(i int64) bool {
	if s.has(i) {
		return false
	}
	p := s[i/pageBits]
	if p == nil {
		p = new(page)
		s[i/pageBits] = p
	}
	p[i%pageBits/64] |= 1 << (i % 64)
	return true
}

func (s set) size() int64 {
	n := 0
	for _, p := range s {
		for _, word := range p {
			n += bits.OnesCount64(word)
		}
	}
	return int64(n)
}

// place is where a record is, and when it was made; webhook-id says both.
type place struct {
	partition int32
	offset    int64
	at        time.Time
}

// placeOf reads topic/partition/offset/milliseconds.
func placeOf(id string) (p place, ok bool) {
	parts := strings.Split(id, "/")
	if len(parts) < 4 {
		return p, false
	}
	parts = parts[len(parts)-3:]
	partition, err1 := strconv.ParseInt(parts[0], 10, 32)
	offset, err2 := strconv.ParseInt(parts[1], 10, 64)
	at, err3 := strconv.ParseInt(parts[2], 10, 64)
	return place{int32(partition), offset, time.UnixMilli(at)}, err1 == nil && err2 == nil && err3 == nil && partition >= 0 && offset >= 0
}

// maxLate is how many vouchers that came out of order are kept one by one.
const maxLate = 10_000

// late is a voucher that came for the first time after a newer one of its card.
type late struct {
	Number    int64
	Partition int32
	Offset    int64
}

// book is what the web shop has received of one run of the register.
type book struct {
	Run         int64
	Numbers     set              // of vouchers
	Places      map[int32]set    // of records: a voucher whose outcome the register did not learn may be two
	Highest     map[string]int64 // number, by card
	Received    int64            // vouchers, as often as they came
	Repeated    int64            // the same record once more
	StoredTwice int64            // the same voucher in another record
	Earlier     int64            // of runs before
	Other       int64            // no vouchers of the register
	Late        []late
	MoreLate    int64
	LongestWait time.Duration // of a record that came for the first time
	Busiest     int64         // vouchers that came in one second, at most
	Second      int64         // the one that InSecond is of
	InSecond    int64
}

func newBook(run int64) *book {
	return &book{Run: run, Numbers: make(set), Places: make(map[int32]set), Highest: make(map[string]int64)}
}

// delivery is a line of the web shop's file.
type delivery struct {
	ID      string          `json:"id"`
	Key     string          `json:"key"`
	Value   json.RawMessage `json:"value,omitempty"` // where it is JSON
	Arrived int64           `json:"arrived"`         // in milliseconds
}

// voucher reads what was delivered, if it is one.
func (d *delivery) voucher() (v voucher, p place, ok bool) {
	p, ok = placeOf(d.ID)
	if json.Unmarshal(d.Value, &v) != nil {
		return v, p, false
	}
	return v, p, ok && v.Run > 0 && v.Number > 0 && v.Card == d.Key && strings.HasPrefix(v.Card, cardPrefix(v.Run))
}

// take enters a delivery and returns the book that it is in: a new one where it is of a newer run.
func (b *book) take(d delivery) *book {
	v, p, ok := d.voucher()
	switch {
	case !ok:
		b.Other++
		return b
	case v.Run < b.Run:
		b.Earlier++
		return b
	case v.Run > b.Run:
		b = newBook(v.Run)
	}
	b.Received++
	if second := d.Arrived / 1000; second != b.Second {
		b.Second, b.InSecond = second, 0
	}
	b.InSecond++
	b.Busiest = max(b.Busiest, b.InSecond)
	places := b.Places[p.partition]
	if places == nil {
		places = make(set)
		b.Places[p.partition] = places
	}
	if !places.add(p.offset) {
		b.Repeated++
		return b
	}
	b.LongestWait = max(b.LongestWait, time.UnixMilli(d.Arrived).Sub(p.at))
	if !b.Numbers.add(v.Number) {
		b.StoredTwice++
		return b
	}
	if v.Number > b.Highest[v.Card] {
		b.Highest[v.Card] = v.Number
	} else if len(b.Late) < maxLate {
		b.Late = append(b.Late, late{v.Number, p.partition, p.offset})
	} else {
		b.MoreLate++
	}
	return b
}

// missing are the numbers that were sold and did not come: how many, and the first of them.
func (b *book) missing(s sold, first int) (n int64, numbers []int64) {
	unknown := make(set)
	for _, number := range s.Unknown {
		unknown.add(number)
	}
	numbers = []int64{}
	for number := int64(1); number <= s.Last; number++ {
		if number%64 == 0 && number+64 <= s.Last && b.Numbers.whole(number) {
			number += 63
			continue
		}
		if b.Numbers.has(number) || unknown.has(number) {
			continue
		}
		if n++; len(numbers) < first {
			numbers = append(numbers, number)
		}
	}
	return n, numbers
}

// whole tells whether a number, which is a multiple of 64, and the 63 after it are all there.
func (s set) whole(i int64) bool {
	p := s[i/pageBits]
	return p != nil && ^p[i%pageBits/64] == 0
}
