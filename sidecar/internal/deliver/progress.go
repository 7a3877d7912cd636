package deliver

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

// A commit's offset says that everything before it is decided. Its metadata says what else is to
// be known by the next owner of the partition: what is decided above it, and how far undecided
// records are. So after a rebalance only what was in flight is repeated, and blame does not start
// again.

const (
	// maxUndecided is how many undecided records a commit tells about.
	maxUndecided = 32
	// progressVersion begins the metadata, as text. What begins otherwise is somebody else's, or of
	// another version, and only the offset is gone by.
	progressVersion = "p1:"
)

// progress is what the metadata of a commit says.
type progress struct {
	accepted time.Time // when a record of the subscription was last accepted, to the second
	decided  []int64
	records  map[int64]attempted
}

// attempted is what is known of a record that is not decided.
type attempted struct {
	attempts, booked int
	first            time.Time // to the second
}

// Progress is what may be committed of a partition, if that has changed since Committed.
func (e *Engine) Progress(tp event.TopicPartition) (c event.Commit, changed bool) {
	p := e.partitions[tp]
	if p == nil || !p.dirty {
		return event.Commit{}, false
	}
	base := p.base()
	b := make([]byte, 0, 64)
	b = binary.AppendUvarint(b, seconds(e.accepted))
	bitmap := p.decided.bitmap(base)
	b = binary.AppendUvarint(b, uint64(len(bitmap)))
	b = append(b, bitmap...)
	all := p.undecided()
	b = binary.AppendUvarint(b, uint64(len(all)))
	for _, u := range all {
		b = binary.AppendUvarint(b, uint64(u.offset-base)) //nolint:gosec // it is not below the base
		b = binary.AppendUvarint(b, uint64(u.attempts))    //nolint:gosec // a count
		b = binary.AppendUvarint(b, uint64(u.booked))      //nolint:gosec // a count
		b = binary.AppendUvarint(b, seconds(u.first))
	}
	c = event.Commit{Offset: base}
	if len(bitmap) > 0 || len(all) > 0 {
		c.Metadata = progressVersion + base64.RawStdEncoding.EncodeToString(b)
	}
	return c, true
}

// Committed says that what Progress gave is being committed.
func (e *Engine) Committed(tp event.TopicPartition) { e.setDirty(tp, false) }

// Uncommitted says that it could not be: Progress gives it again.
func (e *Engine) Uncommitted(tp event.TopicPartition) { e.setDirty(tp, true) }

func (e *Engine) setDirty(tp event.TopicPartition, dirty bool) {
	if p := e.partitions[tp]; p != nil {
		p.dirty = dirty
	}
}

type undecided struct {
	offset int64
	attempted
}

// undecided lists the lowest undecided records that have been attempted.
func (p *partition) undecided() []undecided {
	var all []undecided
	for _, d := range p.records {
		if len(all) == maxUndecided {
			return all
		}
		if d.state != decided && d.attempts > d.earlier {
			all = append(all, undecided{d.Record.Offset, attempted{d.attempts, d.booked, d.first}})
		}
	}
	for _, offset := range slices.Sorted(maps.Keys(p.prior.records)) { // not read yet
		if len(all) == maxUndecided {
			return all
		}
		if offset >= p.next {
			all = append(all, undecided{offset, p.prior.records[offset]})
		}
	}
	return all
}

func seconds(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(0, t.Unix())) //nolint:gosec // not negative
}

func timeOf(seconds uint64) time.Time {
	if seconds == 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0) //nolint:gosec // bounded
}

// decodeProgress reads what an earlier owner committed. Metadata that cannot be read says nothing:
// then records come again that need not, and none is lost.
func decodeProgress(c event.Commit) progress {
	text, ours := strings.CutPrefix(c.Metadata, progressVersion)
	if !ours {
		return progress{}
	}
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return progress{}
	}
	r := reader{b: b}
	p := progress{accepted: timeOf(r.number()), records: make(map[int64]attempted)}
	for i, bits := range r.bytes(event.MaxWindowRecords / 8) {
		for bit := range 8 {
			if bits&(1<<bit) != 0 {
				p.decided = append(p.decided, c.Offset+int64(i*8+bit))
			}
		}
	}
	for range min(r.number(), maxUndecided) {
		offset := c.Offset + int64(r.number()%(2*event.MaxWindowRecords)) //nolint:gosec // bounded
		u := attempted{attempts: r.count(), booked: r.count(), first: timeOf(r.number())}
		p.records[offset] = u
	}
	if r.err != nil || len(r.b) > 0 {
		return progress{}
	}
	return p
}

// reader takes numbers off a slice of bytes; after an error it gives zeros.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("it ends too soon")

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.err, r.b = errShort, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) count() int { return int(min(r.number(), 1<<30)) } //nolint:gosec // bounded

func (r *reader) bytes(most uint64) []byte {
	n := r.number()
	if n > most || n > uint64(len(r.b)) {
		r.err, r.b = errShort, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}
