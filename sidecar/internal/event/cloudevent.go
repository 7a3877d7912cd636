package event

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// CloudEvent shows a record in the attributes of CloudEvents: its own ones, where it is an event in
// the Kafka binding (headers "ce_id", …), else what a delivery says of it.
type CloudEvent struct {
	Record *Record
	Origin Origin
}

// Attribute is the record's own value of an attribute, which is never empty. Of a header that
// repeats it is the last one that counts.
func (c CloudEvent) Attribute(name string) (string, bool) {
	for _, h := range slices.Backward(c.Record.Headers) {
		if len(h.Key) == len("ce_")+len(name) && strings.HasPrefix(h.Key, "ce_") && h.Key[len("ce_"):] == name && len(h.Value) > 0 {
			return strings.ToValidUTF8(string(h.Value), "\uFFFD"), true
		}
	}
	return "", false
}

// ID is the event's own, or the record's.
func (c CloudEvent) ID() string {
	if s, ok := c.Attribute("id"); ok {
		return s
	}
	return c.Origin.ID()
}

// Source is the event's own, or /topics/TOPIC.
func (c CloudEvent) Source() string {
	if s, ok := c.Attribute("source"); ok {
		return s
	}
	return "/topics/" + c.Origin.Topic
}

// Type is the event's own, or what the topic is of: topics are named ENVIRONMENT.EVENT.
func (c CloudEvent) Type() string {
	if s, ok := c.Attribute("type"); ok {
		return s
	}
	if _, name, ok := strings.Cut(c.Origin.Topic, "."); ok && name != "" {
		return name
	}
	return c.Origin.Topic
}

// Subject is the event's own, or the record's key where that is text. Not every event has one.
func (c CloudEvent) Subject() (string, bool) {
	if s, ok := c.Attribute("subject"); ok {
		return s, true
	}
	if c.Record.Key == nil || !utf8.Valid(c.Record.Key) {
		return "", false
	}
	return string(c.Record.Key), true
}

// Time is the event's own, where it can be read, or the record's.
func (c CloudEvent) Time() time.Time {
	if s, ok := c.Attribute("time"); ok {
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
			return t
		}
	}
	return c.Origin.Timestamp
}

// ID names the record wherever it is delivered from, and however often. The timestamp keeps ids
// apart after a topic was made anew.
func (o Origin) ID() string {
	var room [128]byte // of which the string is a copy
	b := append(append(room[:0], o.Topic...), '/')
	b = append(strconv.AppendInt(b, int64(o.Partition), 10), '/')
	b = append(strconv.AppendInt(b, o.Offset, 10), '/')
	return string(strconv.AppendInt(b, o.Timestamp.UnixMilli(), 10))
}
