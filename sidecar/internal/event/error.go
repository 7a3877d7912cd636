package event

import "fmt"

// Kind says what the caller of a failed operation can do about it. The set is closed:
// each kind is one HTTP status and one value of a metric label.
type Kind string

const (
	Invalid       Kind = "invalid"        // could not be read as what it should be; do not repeat it unchanged
	Unprocessable Kind = "unprocessable"  // was read, and asks for what is not allowed
	Forbidden     Kind = "forbidden"      // the configuration does not allow it
	NotFound      Kind = "not_found"      // no such topic, partition, session or route
	NotAllowed    Kind = "not_allowed"    // the resource exists, this method on it does not
	NotAcceptable Kind = "not_acceptable" // no answer in the form that was asked for
	Unsupported   Kind = "unsupported"    // a body in a form that is not known
	Conflict      Kind = "conflict"       // somebody else changed or holds it
	Precondition  Kind = "precondition"   // it is not as the request wants it to be (If-Match)
	TooLarge      Kind = "too_large"      // over a limit of bytes
	TooMany       Kind = "too_many"       // over a limit of ours; repeat later
	Unavailable   Kind = "unavailable"    // Kafka is out of reach or its queue full; repeat later
	Timeout       Kind = "timeout"        // the client was too slow with its request
	Misdirected   Kind = "misdirected"    // another replica has it; only replicas ask each other so
	Internal      Kind = "internal"       // anything else: a bug until shown otherwise
	Gone          Kind = "client_gone"    // the client went away; nobody reads the answer
)

// Error is a failure with a Kind. Msg may be shown to anyone; Err only to the log.
type Error struct {
	Kind Kind
	Code int    // error_code, such as 40401; 0 means the kind's own
	Op   string // what was being done, such as "kafka.Produce"
	Msg  string // what was wrong and what would be right
	Err  error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Op, e.Msg)
	}
	return fmt.Sprintf("%s: %s: %v", e.Op, e.Msg, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error without a cause.
func Errorf(kind Kind, code int, op, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Op: op, Msg: fmt.Sprintf(format, args...)}
}
