// Package event is the vocabulary that the other packages share: records and where they
// are kept, and errors that say what a caller can do about them. It does no I/O.
package event

import (
	"cmp"
	"strings"
	"time"
)

// AnyPartition leaves the choice of the partition to the partitioner.
const AnyPartition int32 = -1

// Header is one header of a record. Keys may repeat; a nil Value is Kafka's null.
type Header struct {
	Key   string
	Value []byte
}

// Record is what a topic keeps. A nil Key or Value is Kafka's null, an empty one is empty:
// the two are kept apart everywhere.
type Record struct {
	Topic     string
	Partition int32 // AnyPartition when it is to be chosen
	Offset    int64 // of a record that was read
	Key       []byte
	Value     []byte
	Headers   []Header
	Timestamp time.Time // zero when producing: the time of the hand-over
}

// Size is what the record counts against limits, in bytes: key, value and headers.
func (r *Record) Size() int {
	n := len(r.Key) + len(r.Value)
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// Age is how old a record with a timestamp is; one from the future is 0 s old. It is false where there is no
// timestamp: Kafka has -1 for records of producers that do not know of any.
func Age(timestamp, now time.Time) (age time.Duration, ok bool) {
	if timestamp.UnixMilli() <= 0 {
		return 0, false
	}
	return max(0, now.Sub(timestamp)), true
}

// Place is where a record is kept.
type Place struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp time.Time
}

// Result is what became of one record of a produce request: the place, or why there is none.
type Result struct {
	Place Place
	Err   error
}

// TopicPartition names a partition.
type TopicPartition struct {
	Topic     string
	Partition int32
}

// Compare orders partitions by topic, then by number.
func (tp TopicPartition) Compare(other TopicPartition) int {
	return cmp.Or(cmp.Compare(tp.Topic, other.Topic), cmp.Compare(tp.Partition, other.Partition))
}

// Topic is what metadata says of a topic.
type Topic struct {
	Name       string
	Partitions []Partition // in order of their number
	Configs    map[string]string
}

// Partition is what metadata says of a partition. Leader is -1 where there is none.
type Partition struct {
	Number   int32
	Leader   int32
	Replicas []int32
	InSync   []int32
}

// Own tells whether a topic is one of Postamt's or Kafka's own, which no dialect reaches.
func Own(topic string) bool {
	return strings.HasPrefix(topic, "_postamt.") || strings.HasPrefix(topic, "__")
}

// OwnGroup tells whether a consumer group is one of Postamt's own.
func OwnGroup(group string) bool { return strings.HasPrefix(group, "postamt.") }

// Commit is what a consumer group stores of a partition.
type Commit struct {
	Offset   int64 // of the next record to read
	Metadata string
}

// Bounds is what a partition holds: from Beginning up to, and without, End.
type Bounds struct{ Beginning, End int64 }

// Seek is a place that a session has chosen for a partition.
type Seek struct {
	Offset int64 // of the next record to read
	// Since is what the group had committed then, or NoCommit: once it has committed something
	// else, that is the newer word.
	Since int64
}

// NoCommit is the offset of a partition that a group has never committed.
const NoCommit int64 = -1
