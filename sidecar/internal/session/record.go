package session

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// record is what the table keeps of a session: all that a replica needs to go on with it.
type record struct {
	Settings
	subscription
	Owner   Owner
	Epoch   int64     // counts owners up
	Renewed time.Time // by the owner's clock: for people, nothing is decided by it
}

// Owner is the replica that has a session. No Boot means that it was released.
type Owner struct {
	Boot    string // of the process: a new one after each start
	Address string // ip:port of its HTTP API
}

// subscription is what a session reads, and where from.
type subscription struct {
	Topics     []string
	Pattern    string
	Partitions []event.TopicPartition // assigned by the client, not by the group
	Starts     map[event.TopicPartition]int64
	Seeks      map[event.TopicPartition]event.Seek
}

func (s subscription) empty() bool {
	return len(s.Topics) == 0 && s.Pattern == "" && len(s.Partitions) == 0
}

// equal tells whether the same is read. Where from is not compared.
func (s subscription) equal(t subscription) bool {
	return slices.Equal(s.Topics, t.Topics) && s.Pattern == t.Pattern && slices.Equal(s.Partitions, t.Partitions)
}

// recordVersion is raised when older replicas could not understand what is stored.
const recordVersion = 1

// storedRecord is a record's JSON. Its key is the group, a slash and the name.
type storedRecord struct {
	Version       int              `json:"version"`
	Format        restproxy.Format `json:"format"`
	FromEarliest  bool             `json:"from_earliest,omitempty"`
	AutoCommit    bool             `json:"auto_commit,omitempty"`
	ReadCommitted bool             `json:"read_committed,omitempty"`
	MinBytes      int              `json:"min_bytes,omitempty"`
	WaitMillis    int64            `json:"wait_ms"`
	Topics        []string         `json:"topics,omitempty"`
	Pattern       string           `json:"topic_pattern,omitempty"`
	Partitions    []storedPlace    `json:"partitions,omitempty"`
	Starts        []storedPlace    `json:"starts,omitempty"`
	Seeks         []storedPlace    `json:"seeks,omitempty"`
	Boot          string           `json:"owner,omitempty"`
	Address       string           `json:"address,omitempty"`
	Epoch         int64            `json:"epoch"`
	Renewed       time.Time        `json:"renewed"`
}

type storedPlace struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset,omitempty"`
	Since     int64  `json:"since,omitempty"` // of a seek
}

func (p storedPlace) place() event.TopicPartition {
	return event.TopicPartition{Topic: p.Topic, Partition: p.Partition}
}

func keyOf(group, name string) string { return group + "/" + name }

func (r record) encode() []byte {
	out := storedRecord{
		Version: recordVersion, Format: r.Format, FromEarliest: r.FromEarliest, AutoCommit: r.AutoCommit, ReadCommitted: r.ReadCommitted,
		MinBytes: r.MinBytes, WaitMillis: r.Wait.Milliseconds(), Topics: r.Topics, Pattern: r.Pattern,
		Boot: r.Owner.Boot, Address: r.Owner.Address, Epoch: r.Epoch, Renewed: r.Renewed.UTC(),
	}
	for _, tp := range r.Partitions {
		out.Partitions = append(out.Partitions, storedPlace{Topic: tp.Topic, Partition: tp.Partition})
	}
	for _, tp := range slices.SortedFunc(maps.Keys(r.Starts), event.TopicPartition.Compare) {
		out.Starts = append(out.Starts, storedPlace{Topic: tp.Topic, Partition: tp.Partition, Offset: r.Starts[tp]})
	}
	for _, tp := range slices.SortedFunc(maps.Keys(r.Seeks), event.TopicPartition.Compare) {
		out.Seeks = append(out.Seeks, storedPlace{Topic: tp.Topic, Partition: tp.Partition, Offset: r.Seeks[tp].Offset, Since: r.Seeks[tp].Since})
	}
	b, err := json.Marshal(out)
	if err != nil {
		panic(err) // it holds nothing that could not be written
	}
	return b
}

// decodeRecord reads what the table has under a key. An error says what is wrong with it.
func decodeRecord(key string, value []byte) (record, error) {
	var in storedRecord
	group, name, ok := strings.Cut(key, "/")
	if !ok || group == "" || name == "" {
		return record{}, fmt.Errorf("the key %q is not a group and a name", key)
	}
	if err := json.Unmarshal(value, &in); err != nil {
		return record{}, err
	}
	if in.Version != recordVersion {
		return record{}, fmt.Errorf("version %d is not known, only %d is", in.Version, recordVersion)
	}
	format, err := restproxy.ParseFormat(string(in.Format))
	if err != nil {
		return record{}, err
	}
	if in.WaitMillis < 0 || in.WaitMillis > int64(time.Hour/time.Millisecond) || in.Epoch < 0 {
		return record{}, fmt.Errorf("wait_ms is %d and epoch %d", in.WaitMillis, in.Epoch)
	}
	for _, places := range [][]storedPlace{in.Partitions, in.Starts, in.Seeks} {
		for _, p := range places {
			if p.Topic == "" || p.Partition < 0 || p.Offset < 0 || p.Since < event.NoCommit {
				return record{}, fmt.Errorf("a place is %+v", p)
			}
		}
	}
	r := record{
		Settings: Settings{
			Group: group, Name: name, Format: format, FromEarliest: in.FromEarliest, AutoCommit: in.AutoCommit, ReadCommitted: in.ReadCommitted,
			MinBytes: in.MinBytes, Wait: time.Duration(in.WaitMillis) * time.Millisecond,
		},
		subscription: subscription{Topics: in.Topics, Pattern: in.Pattern},
		Owner:        Owner{in.Boot, in.Address}, Epoch: in.Epoch, Renewed: in.Renewed,
	}
	for _, p := range in.Partitions {
		r.Partitions = append(r.Partitions, p.place())
	}
	if len(in.Starts) > 0 {
		r.Starts = make(map[event.TopicPartition]int64)
	}
	for _, p := range in.Starts {
		r.Starts[p.place()] = p.Offset
	}
	if len(in.Seeks) > 0 {
		r.Seeks = make(map[event.TopicPartition]event.Seek)
	}
	for _, p := range in.Seeks {
		r.Seeks[p.place()] = event.Seek{Offset: p.Offset, Since: p.Since}
	}
	if one := 0; !r.empty() {
		for _, given := range []bool{len(r.Topics) > 0, r.Pattern != "", len(r.Partitions) > 0} {
			if given {
				one++
			}
		}
		if one != 1 || slices.Contains(r.Topics, "") {
			return record{}, fmt.Errorf("it must have one of topics, a pattern and partitions, and has %d", one)
		}
	}
	return r, nil
}
