package event

import (
	"strconv"
	"time"
)

// Verdict is what an attempt decided. The set is closed: each is one value of a metric label.
type Verdict string

const (
	Delivered   Verdict = "delivered"   // the endpoint has the record
	Refused     Verdict = "refused"     // the endpoint says that the record will never fit
	Failed      Verdict = "failed"      // the endpoint lives and could not take it
	Unreachable Verdict = "unreachable" // no answer, or one that says nothing about the record
	Withdrawn   Verdict = "gone"        // the endpoint wants no more records at all (410)
)

// Reason is why a record became a dead letter: a closed set, too.
type Reason string

const (
	ReasonRefused   Reason = "refused"            // by an endpoint that accepts others
	ReasonExhausted Reason = "attempts_exhausted" // so many attempts failed while others succeeded
	ReasonGaveUp    Reason = "gave_up"            // the endpoint accepted nothing for too long
	ReasonSkipped   Reason = "skipped"            // an operator decided it
	ReasonFilter    Reason = "filter_failed"      // the filter could not be evaluated for it
)

// Ordering says which records of a subscription wait for one another.
type Ordering string

const (
	OrderByKey       Ordering = "key"       // those of one key and partition
	OrderByPartition Ordering = "partition" // those of one partition
	OrderNone        Ordering = "none"
)

// State is what became of a subscription, as far as its record says.
type State string

const (
	Active State = "active"
	Paused State = "paused" // by a request
	GoneAt State = "gone"   // by the endpoint's 410
)

// Retry says when an attempt that failed is made again, and when no more.
type Retry struct {
	Initial     time.Duration // bound of the first wait; each failure doubles it
	Max         time.Duration // bound of any wait
	MaxAttempts int           // booked failures (not refusals) after which a record becomes a dead letter
	GiveUpAfter time.Duration // without one acceptance; 0: never
}

// Secret signs deliveries. One that was rotated out does so beside the new one for a while.
type Secret struct {
	Key   []byte
	Until time.Time // zero: for as long as the subscription has it
}

// Subscription is a named rule: records of these topics go to this endpoint.
type Subscription struct {
	Name        string
	Generation  int64 // counts up each time it is to begin somewhere else
	Topics      []string
	URL         string
	Filter      string // an expression in CEL; "" wants every record
	Ordering    Ordering
	MaxInFlight int
	RateLimit   float64 // attempts a second; 0: no limit
	Timeout     time.Duration
	Structured  bool // a delivery is one application/cloudevents+json, else the value with headers
	Headers     map[string]string
	Retry       Retry
	DeadLetters string // the topic of all dead letters; "": <source topic>.dead-letters
	Secrets     []Secret
	State       State
	Redrive     Redrive
	Created     time.Time
	Changed     time.Time
}

// Redrive is a request to deliver dead letters again. Its consumer group goes on from where the
// one before ended.
type Redrive struct {
	ID    int64                    // counts requests up; 0: there was none
	Until map[TopicPartition]int64 // the ends of the dead-letter topics when it was asked for
}

// MaxWindowRecords is the most offsets between the lowest record of a partition that is not decided
// and the newest one fetched: what is decided in between has to fit into the metadata of a
// commit, of which Kafka takes 4,096 bytes.
const MaxWindowRecords = 16_384

// DeadLettersSuffix makes the name of the topic that keeps a topic's dead letters.
const DeadLettersSuffix = ".dead-letters"

// DeadLetterTopic is where the dead letters of a source topic go.
func (s *Subscription) DeadLetterTopic(source string) string {
	if s.DeadLetters != "" {
		return s.DeadLetters
	}
	return source + DeadLettersSuffix
}

// Group is the consumer group that holds how far a subscription is.
func (s *Subscription) Group() string {
	return SubscriptionGroup(s.Name) + strconv.FormatInt(s.Generation, 10)
}

// RedriveGroup is the consumer group that holds how far its dead letters were delivered again. It
// outlives generations.
func (s *Subscription) RedriveGroup() string { return SubscriptionGroup(s.Name) + "redrive" }

// SubscriptionGroup is what the groups of a subscription begin with, whatever its generation.
func SubscriptionGroup(name string) string { return "postamt." + name + "." }

// Attempt is one HTTP request of a delivery.
type Attempt struct {
	Record  *Record
	Origin  Origin
	Number  int // counted from 1
	Started time.Time
}

// Origin is the place and time that a record was first read at: of a dead letter its source's, of
// any other record its own.
type Origin struct {
	TopicPartition
	Offset    int64
	Timestamp time.Time
}

// OriginOf is the origin of a record that is no dead letter.
func OriginOf(r *Record) Origin {
	return Origin{TopicPartition{r.Topic, r.Partition}, r.Offset, r.Timestamp}
}

// Outcome is what came of an attempt.
type Outcome struct {
	Verdict    Verdict
	Status     int           // of the answer; 0: there was none
	Err        string        // what went wrong, in at most 256 bytes; "" of a delivery
	RetryAfter time.Duration // what the endpoint asked for; 0: nothing
	Duration   time.Duration
	Body       string // the beginning of the answer's, as text, at most 4 KiB
	Trace      string // the id of the trace that the attempt is in, where that is exported
}

// DeadLetter is a record that was given up.
type DeadLetter struct {
	Record       *Record
	Origin       Origin
	Topic        string // where it is to be kept
	Subscription string
	Reason       Reason
	Last         Outcome // of the last attempt, if there was one
	Attempts     int     // with those of earlier letters of the same record
	FirstAttempt time.Time
	LastAttempt  time.Time
}
