package deliver

import (
	"slices"

	"postamt/sidecar/internal/event"
)

// Blame needs evidence. A failure counts against a record, is booked, only when the endpoint has
// accepted another record in an attempt that began after it, and at least half of the last outcomes
// were good. So neither an outage nor a brown-out makes dead letters.
const (
	blameOutcomes = 20
	// Of one record so many outcomes count, good or bad: else a few records that cannot be taken, and
	// are tried again and again, would outweigh the others where there is little else; and in a
	// brown-out those that are accepted in the end would look like an endpoint that is well.
	countedOutcomes = 3
	// A record with so many booked failures needs no new evidence, as long as no other has failed
	// since; nor one that is refused again right after the endpoint took another.
	guiltyAfter = 3
)

type blame struct {
	outcomes [blameOutcomes]bool
	counted  int // all of them
	good     int // among the last

	pending []suspicion // by when they failed
	tidyAt  int         // at how many of them the void ones are taken out
	last    suspicion   // the last failure of all
	other   suspicion   // the last failure of another record than that
}

// suspicion is a failure that is not booked. It is void when the record is tried again.
type suspicion struct {
	d  *Delivery
	at uint64
}

func (b *blame) count(d *Delivery, accepted bool) {
	if d.counted == countedOutcomes {
		return
	}
	d.counted++
	i := b.counted % blameOutcomes
	if b.counted >= blameOutcomes && b.outcomes[i] {
		b.good--
	}
	b.outcomes[i] = accepted
	if accepted {
		b.good++
	}
	b.counted++
}

func (b *blame) mostlyGood() bool { return 2*b.good >= min(b.counted, blameOutcomes) }

// others counts the outcomes of other records than d among the last that were not good. All that are
// counted of d are such.
func (b *blame) others(d *Delivery) int {
	return max(0, min(b.counted, blameOutcomes)-b.good-d.counted)
}

// saw notes that a record has failed.
func (b *blame) saw(d *Delivery, at uint64) {
	if b.last.d != d {
		b.other = b.last
	}
	b.last = suspicion{d, at}
}

// suspect makes the last failure of a record one to be booked when there is evidence.
func (b *blame) suspect(d *Delivery, at uint64) {
	d.pending = at
	if len(b.pending) >= b.tidyAt { // what is void is only in the way
		b.pending = slices.DeleteFunc(b.pending, func(s suspicion) bool { return s.d.pending != s.at })
		b.tidyAt = max(64, 2*len(b.pending))
	}
	b.pending = append(b.pending, suspicion{d, at})
}

// proven returns the records whose failures are to be booked, now that an attempt has succeeded
// that began at a time.
func (b *blame) proven(began uint64) []*Delivery {
	var out []*Delivery
	n := 0
	for n < len(b.pending) {
		s := b.pending[n]
		if s.d.pending == s.at { // else it is void
			if s.at >= began || !b.mostlyGood() {
				break
			}
			out = append(out, s.d)
		}
		b.pending[n] = suspicion{}
		n++
	}
	b.pending = b.pending[n:]
	return out
}

// alreadyGuilty tells whether a failure is booked without evidence.
func (b *blame) alreadyGuilty(d *Delivery) bool {
	if d.booked < guiltyAfter && (!d.lastChance || d.last.Verdict != event.Refused) {
		return false
	}
	lastOther := b.last
	if lastOther.d == d {
		lastOther = b.other
	}
	return lastOther.at <= d.bookedAt
}

// drop forgets the records of a partition.
func (b *blame) drop(p *partition) {
	for _, s := range b.pending {
		if s.d.partition == p && s.d.pending == s.at {
			s.d.pending = 0
		}
	}
}
