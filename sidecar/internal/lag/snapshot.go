package lag

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
)

// Snapshot is one look at all groups. It is not changed once it is made.
type Snapshot struct {
	CollectedAt time.Time `json:"collected_at"`
	AgeMS       int64     `json:"age_ms"` // when it was asked for
	Groups      []Group   `json:"groups"` // in order of the name

	brokers   []int32
	addresses map[int32]string
	topics    []topicState
}

// behind is a lag. That of a whole is the sum of the records of its parts and the largest of
// their seconds, of those that have one.
type behind struct {
	Lag        Count   `json:"lag"`
	LagSeconds Seconds `json:"lag_seconds"`
	// Estimated says that LagSeconds is not known to within two rounds.
	Estimated bool `json:"lag_seconds_estimated,omitempty"`
}

var nothing = behind{Lag: unknown, LagSeconds: unknown}

// Group is a consumer group; Members is not known for streams groups.
type Group struct {
	Group    string `json:"group"`
	State    string `json:"state"`
	Protocol string `json:"protocol"`
	Members  Count  `json:"members"`
	behind
	Topics []Topic `json:"topics"`
}

// Topic is what a group reads of a topic. Uncommitted counts the partitions that the group
// is to read, by subscription or assignment, and has never committed in.
type Topic struct {
	Topic string `json:"topic"`
	behind
	Uncommitted int         `json:"uncommitted_partitions"`
	Partitions  []Partition `json:"partitions"`

	reads bool // subscribed or assigned, so that Uncommitted means something
}

// Partition is how far a group is in a partition. Without a committed offset there is no lag;
// without an end offset (the leader did not answer, or there is no such partition any more)
// neither.
type Partition struct {
	Partition int32
	Committed Count
	End       Count
	behind
}

// Count is a number of things, or -1 where it is not known: null in JSON.
type Count int64

// Seconds is a time span, or -1 where it is not known: null in JSON.
type Seconds float64

const unknown = -1

// add adds a part, where its lag is known.
func (b *behind) add(part behind) {
	if part.Lag < 0 {
		return
	}
	b.Lag = max(0, b.Lag) + part.Lag
	if part.LagSeconds > b.LagSeconds {
		b.LagSeconds, b.Estimated = part.LagSeconds, part.Estimated
	}
}

func (c Count) append(b []byte) []byte {
	if c < 0 {
		return append(b, "null"...)
	}
	return strconv.AppendInt(b, int64(c), 10)
}

func (s Seconds) append(b []byte) []byte {
	if s < 0 {
		return append(b, "null"...)
	}
	return strconv.AppendFloat(b, math.Round(float64(s)*1000)/1000, 'f', -1, 64)
}

// MarshalJSON writes the number, or null.
func (c Count) MarshalJSON() ([]byte, error) { return c.append(nil), nil }

// MarshalJSON writes seconds with milliseconds, or null.
func (s Seconds) MarshalJSON() ([]byte, error) { return s.append(nil), nil }

// MarshalJSON is written out, since a snapshot can have some 100,000 partitions.
func (p Partition) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 128)
	b = strconv.AppendInt(append(b, `{"partition":`...), int64(p.Partition), 10)
	b = p.Committed.append(append(b, `,"committed":`...))
	b = p.End.append(append(b, `,"end":`...))
	b = p.Lag.append(append(b, `,"lag":`...))
	b = p.LagSeconds.append(append(b, `,"lag_seconds":`...))
	if p.Estimated {
		b = append(b, `,"lag_seconds_estimated":true`...)
	}
	return append(b, '}'), nil
}

var _ json.Marshaler = Partition{}

// WriteTo writes the snapshot as JSON, group by group: whole, it can be of 18 MB, and any number
// of clients can ask at once.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	head, err := json.Marshal(Snapshot{CollectedAt: s.CollectedAt, AgeMS: s.AgeMS, Groups: []Group{}})
	if err != nil {
		return 0, err
	}
	n, err := w.Write(bytes.TrimSuffix(head, []byte("]}")))
	written := int64(n)
	for i, g := range s.Groups {
		if err != nil {
			return written, err
		}
		group, failed := json.Marshal(g)
		if failed != nil {
			return written, failed
		}
		if i > 0 {
			group = slices.Insert(group, 0, ',')
		}
		n, err = w.Write(group)
		written += int64(n)
	}
	if err != nil {
		return written, err
	}
	n, err = w.Write([]byte("]}"))
	return written + int64(n), err
}

// Only returns the snapshot with no group but the named one, and whether there is such a
// group.
func (s *Snapshot) Only(group string) (*Snapshot, bool) {
	one := *s
	one.Groups = []Group{}
	for _, g := range s.Groups {
		if g.Group == group {
			one.Groups = append(one.Groups, g)
		}
	}
	return &one, len(one.Groups) > 0
}
