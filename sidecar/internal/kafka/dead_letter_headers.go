package kafka

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

// The headers that a dead letter has on top of its record's. Those of the same names that a record
// brings along, as a letter does that was delivered again, give way to them.
const (
	letterSubscription    = "postamt-subscription"
	letterSourceTopic     = "postamt-source-topic"
	letterSourcePartition = "postamt-source-partition"
	letterSourceOffset    = "postamt-source-offset"
	letterSourceTimestamp = "postamt-source-timestamp" // ms since 1970
	letterReason          = "postamt-reason"
	letterStatus          = "postamt-status" // of the last answer; not there without one
	letterError           = "postamt-error"  // of the last attempt; not there without one
	letterAttempts        = "postamt-attempts"
	letterFirstAttempt    = "postamt-first-attempt" // RFC 3339; not there when none was made
	letterLastAttempt     = "postamt-last-attempt"  // the same
)

// maxLetterErrorBytes is what a letter tells of an error.
const maxLetterErrorBytes = 256

// letterTime is RFC 3339 with the milliseconds that Kafka has, too.
const letterTime = "2006-01-02T15:04:05.000Z07:00"

func letterHeader(key string) bool {
	switch key {
	case letterSubscription, letterSourceTopic, letterSourcePartition, letterSourceOffset, letterSourceTimestamp,
		letterReason, letterStatus, letterError, letterAttempts, letterFirstAttempt, letterLastAttempt:
		return true
	}
	return false
}

// EncodeDeadLetter makes the record that a dead-letter topic keeps: key, value and headers are the
// record's, followed by what is known of it. Its partition is to be chosen by the key, its time is
// that of its writing.
func EncodeDeadLetter(l *event.DeadLetter) event.Record {
	out := event.Record{Topic: l.Topic, Partition: event.AnyPartition, Key: l.Record.Key, Value: l.Record.Value}
	out.Headers = slices.DeleteFunc(slices.Clone(l.Record.Headers), func(h event.Header) bool { return letterHeader(h.Key) })
	add := func(key, value string) {
		out.Headers = append(out.Headers, event.Header{Key: key, Value: []byte(value)})
	}
	add(letterSubscription, l.Subscription)
	add(letterSourceTopic, l.Origin.Topic)
	add(letterSourcePartition, strconv.Itoa(int(l.Origin.Partition)))
	add(letterSourceOffset, strconv.FormatInt(l.Origin.Offset, 10))
	add(letterSourceTimestamp, strconv.FormatInt(l.Origin.Timestamp.UnixMilli(), 10))
	add(letterReason, string(l.Reason))
	if l.Last.Status != 0 {
		add(letterStatus, strconv.Itoa(l.Last.Status))
	}
	if l.Last.Err != "" {
		add(letterError, cut(l.Last.Err, maxLetterErrorBytes))
	}
	add(letterAttempts, strconv.Itoa(l.Attempts))
	if !l.FirstAttempt.IsZero() {
		add(letterFirstAttempt, l.FirstAttempt.UTC().Format(letterTime))
	}
	if !l.LastAttempt.IsZero() {
		add(letterLastAttempt, l.LastAttempt.UTC().Format(letterTime))
	}
	return out
}

// cut shortens a text to at most n bytes of whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// DecodeDeadLetter reads a record of a dead-letter topic. The letter's Record is the one that was
// given up, without what a letter adds; its place and time are those of the letter, and what they
// were at first is its Origin. It is false of a record that is no letter, or whose headers
// cannot be read.
func DecodeDeadLetter(r *event.Record) (event.DeadLetter, bool) {
	l := event.DeadLetter{Topic: r.Topic}
	record := *r
	record.Headers = nil
	found := make(map[string]string)
	for _, h := range r.Headers {
		if !letterHeader(h.Key) {
			record.Headers = append(record.Headers, h)
			continue
		}
		if _, twice := found[h.Key]; twice || h.Value == nil {
			return event.DeadLetter{}, false
		}
		found[h.Key] = string(h.Value)
	}
	l.Record = &record
	ok := true
	number := func(key string, bits int, required bool) int64 {
		text, there := found[key]
		n, err := strconv.ParseInt(text, 10, bits)
		if there && (err != nil || n < 0 && key != letterSourceTimestamp) || !there && required {
			ok = false
		}
		return n
	}
	instant := func(key string) (t time.Time) {
		if text, there := found[key]; there {
			var err error
			t, err = time.Parse(time.RFC3339, text)
			ok = ok && err == nil
		}
		return t
	}
	l.Subscription, l.Reason = found[letterSubscription], event.Reason(found[letterReason])
	l.Origin.Topic = found[letterSourceTopic]
	ok = ok && l.Subscription != "" && l.Reason != "" && l.Origin.Topic != ""
	l.Origin.Partition = int32(number(letterSourcePartition, 32, true)) //nolint:gosec // it was parsed as one
	l.Origin.Offset = number(letterSourceOffset, 64, true)
	l.Origin.Timestamp = time.UnixMilli(number(letterSourceTimestamp, 64, true))
	l.Last = event.Outcome{Status: int(number(letterStatus, 32, false)), Err: found[letterError]}
	l.Attempts = int(number(letterAttempts, 32, true))
	l.FirstAttempt, l.LastAttempt = instant(letterFirstAttempt), instant(letterLastAttempt)
	if !ok {
		return event.DeadLetter{}, false
	}
	return l, true
}
