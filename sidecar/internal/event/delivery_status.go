package event

import "time"

// DeliveryState is what a subscription does, as far as the replicas know. The set is closed.
type DeliveryState string

const (
	DeliveryActive DeliveryState = "active" // records are delivered, or there is nothing to deliver
	DeliveryDown   DeliveryState = "down"   // the endpoint accepts nothing: it is probed with one record at a time
	DeliveryPaused DeliveryState = "paused" // by a request
	DeliveryGone   DeliveryState = "gone"   // paused by the endpoint's 410
	DeliveryIdle   DeliveryState = "idle"   // no replica delivers it yet
)

// DeliveryStatus is how far a subscription is and why nothing moves. One replica knows only its own
// partitions; the whole is merged from what all of them say.
type DeliveryStatus struct {
	State      DeliveryState
	Partitions []PartitionStatus // in order
	InFlight   int               // attempts that run now
	Replicas   []string          // addresses of those that answered
	Missing    []string          // addresses of those that deliver it and did not answer
	Redrive    *RedriveStatus    // nil: there never was one
}

// PartitionStatus is how far a subscription is in a partition.
type PartitionStatus struct {
	TopicPartition
	Committed     int64   // NoCommit where nothing has been
	End           int64   // the high watermark; -1 where it is not known
	Lag           int64   // records that are not decided; -1 where it is not known
	LagSeconds    float64 // age of the oldest of them; -1 where it is not known
	WindowRecords int     // between the lowest record that is not decided and the newest one fetched
	WindowBytes   int
	Stuck         *StuckRecord // what holds the partition up; nil where nothing does
	Replica       string       // address of the one that has the partition; "" where none has
}

// StuckRecord is the lowest record of a partition that is not decided and has failed.
type StuckRecord struct {
	Offset       int64
	Key          []byte // nil: it has none
	Verdict      Verdict
	Status       int    // of the last answer; 0: there was none
	Err          string // of the last attempt
	Booked       int    // failures that count towards a dead letter
	Attempts     int    // all of them
	FirstAttempt time.Time
	NextAttempt  time.Time // zero: it is under way, or waits for a probe
}

// RedriveStatus is how far the last request to deliver dead letters again is.
type RedriveStatus struct {
	ID      int64
	Running bool
	Left    int64 // letters between its position and the end as it was at the request
}

// AttemptRecord is an attempt that was made, as a replica remembers its newest ones.
type AttemptRecord struct {
	TopicPartition
	Offset  int64
	Number  int
	Started time.Time
	Outcome Outcome
	Replica string // address of the one that made it
}

// StoredLetter is a dead letter as its topic keeps it.
type StoredLetter struct {
	DeadLetter
	Place    Place // where it is kept
	Redriven bool  // it has been delivered again, or has become a new letter
}
