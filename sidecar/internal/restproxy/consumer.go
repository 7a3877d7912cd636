package restproxy

import (
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

// codeConfig is the dialect's code for a consumer's setting that is not possible.
const codeConfig = 42204

// maxFetchMinBytes is the dialect's bound of fetch.min.bytes.
const maxFetchMinBytes = 10_000_000

// CreateConsumer is the body of POST /consumers/{group}. All of it may be left out.
type CreateConsumer struct {
	Name          string
	Format        Format
	FromEarliest  bool
	AutoCommit    bool
	ReadCommitted bool
	MinBytes      int
	Wait          time.Duration // 0: the default
}

// DecodeCreateConsumer reads the body of POST /consumers/{group}. Booleans and numbers may
// be written as strings, as the dialect's clients do; members that are not known are ignored.
func DecodeCreateConsumer(body []byte) (CreateConsumer, error) {
	var c CreateConsumer
	var req struct {
		Name      string `json:"name"`
		ID        string `json:"id"` // the deprecated name, which wins
		Format    string `json:"format"`
		Reset     string `json:"auto.offset.reset"`
		Auto      loose  `json:"auto.commit.enable"`
		AutoAlias loose  `json:"enable.auto.commit"`
		MinBytes  loose  `json:"fetch.min.bytes"`
		MinAlias  loose  `json:"responseMinBytes"`
		Wait      loose  `json:"consumer.request.timeout.ms"`
		WaitAlias loose  `json:"requestWaitMs"`
		Isolation string `json:"isolation.level"`
	}
	if len(body) > 0 {
		if err := unmarshal(body, &req); err != nil {
			return c, err
		}
	}
	var err error
	if c.Format, err = ParseFormat(req.Format); err != nil {
		return c, err
	}
	if c.Name = req.ID; c.Name == "" {
		c.Name = req.Name
	}
	switch strings.ToLower(req.Reset) {
	case "", "latest":
	case "earliest":
		c.FromEarliest = true
	default:
		return c, event.Errorf(event.Unprocessable, codeConfig, op, "auto.offset.reset is %q; it must be earliest or latest", req.Reset)
	}
	switch strings.ToLower(req.Isolation) {
	case "", "read_uncommitted":
	case "read_committed":
		c.ReadCommitted = true
	default:
		return c, event.Errorf(event.Unprocessable, codeConfig, op, "isolation.level is %q; it must be read_uncommitted or read_committed", req.Isolation)
	}
	if c.AutoCommit, err = req.Auto.or(req.AutoAlias).boolean("auto.commit.enable"); err != nil {
		return c, err
	}
	minBytes, err := req.MinBytes.or(req.MinAlias).number("fetch.min.bytes")
	if err != nil {
		return c, err
	}
	if minBytes < -1 || minBytes > maxFetchMinBytes {
		return c, event.Errorf(event.Unprocessable, 40001, op, "fetch.min.bytes is %d; it must be between -1 and %d", minBytes, maxFetchMinBytes)
	}
	c.MinBytes = int(minBytes)
	wait, err := req.Wait.or(req.WaitAlias).number("consumer.request.timeout.ms")
	if err != nil {
		return c, err
	}
	if wait < 0 || wait > int64(time.Hour/time.Millisecond) {
		return c, event.Errorf(event.Unprocessable, codeConfig, op, "consumer.request.timeout.ms is %d; it must be between 0 and one hour", wait)
	}
	c.Wait = time.Duration(wait) * time.Millisecond
	return c, nil
}

// loose is a JSON string, number or boolean, as text.
type loose string

func (l *loose) UnmarshalJSON(b []byte) error {
	text := string(b)
	if b[0] == '"' {
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
	}
	if b[0] == '{' || b[0] == '[' {
		return event.Errorf(event.Unprocessable, 0, op, "a setting is %s; it must be a string, a number or a boolean", kindOf(b))
	}
	if text != "null" {
		*l = loose(text)
	}
	return nil
}

func (l loose) or(other loose) loose {
	if l == "" {
		return other
	}
	return l
}

func (l loose) boolean(name string) (bool, error) {
	switch strings.ToLower(string(l)) {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, event.Errorf(event.Unprocessable, codeConfig, op, "%s is %q; it must be true or false", name, string(l))
}

func (l loose) number(name string) (int64, error) {
	if l == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(l), 10, 64)
	if err != nil {
		return 0, event.Errorf(event.Unprocessable, codeConfig, op, "%s is %q; it must be a whole number", name, string(l))
	}
	return n, nil
}

// Subscription is the body of POST …/subscription. Topics win when both are given.
type Subscription struct {
	Topics  []string `json:"topics"`
	Pattern string   `json:"topic_pattern"`
}

// DecodeSubscription reads the body of POST …/subscription.
func DecodeSubscription(body []byte) (Subscription, error) {
	var s Subscription
	if err := unmarshal(body, &s); err != nil {
		return s, err
	}
	for _, topic := range s.Topics {
		if !topicName.MatchString(topic) { // it would be waited for without end
			return s, event.Errorf(event.Unprocessable, 0, op, "topics has %q; a topic's name has 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-' (a pattern goes into topic_pattern)", topic)
		}
	}
	switch {
	case len(s.Topics) > 0:
		s.Pattern = ""
	case s.Pattern == "":
		return s, event.Errorf(event.Unprocessable, 0, op, `the body has neither topics nor topic_pattern; it must be {"topics":["…"]} or {"topic_pattern":"…"}`)
	}
	if _, err := regexp.Compile(s.Pattern); err != nil {
		return s, event.Errorf(event.Unprocessable, 0, op, "topic_pattern is not a regular expression: %v", err)
	}
	return s, nil
}

// DecodeCommit reads the body of POST …/offsets: the offset of the last record that the
// client has done with, for each partition. What is stored is the next one, so that the
// commits returned are one higher. No body, and no offsets member, is nil: commit all that
// was read.
func DecodeCommit(body []byte) (map[event.TopicPartition]event.Commit, error) {
	if len(body) == 0 {
		return nil, nil
	}
	var req struct {
		Offsets *[]struct {
			Topic     string `json:"topic"`
			Partition *int32 `json:"partition"`
			Offset    *int64 `json:"offset"`
			Metadata  string `json:"metadata"`
		} `json:"offsets"`
	}
	if err := unmarshal(body, &req); err != nil {
		return nil, err
	}
	if req.Offsets == nil {
		return nil, nil
	}
	commits := make(map[event.TopicPartition]event.Commit, len(*req.Offsets))
	for i, o := range *req.Offsets {
		switch {
		case o.Topic == "":
			return nil, event.Errorf(event.Unprocessable, 0, op, "offsets[%d].topic is missing", i)
		case o.Partition == nil || *o.Partition < 0:
			return nil, event.Errorf(event.Unprocessable, 0, op, "offsets[%d].partition is missing or negative", i)
		case o.Offset == nil || *o.Offset < 0 || *o.Offset == math.MaxInt64:
			return nil, event.Errorf(event.Unprocessable, 0, op, "offsets[%d].offset is missing, negative or out of range; it must be the offset of the last record that you have done with", i)
		}
		commits[event.TopicPartition{Topic: o.Topic, Partition: *o.Partition}] = event.Commit{Offset: *o.Offset + 1, Metadata: o.Metadata}
	}
	return commits, nil
}

// DecodePartitions reads {"partitions":[{"topic","partition"}]}.
func DecodePartitions(body []byte) ([]event.TopicPartition, error) {
	var req struct {
		Partitions *[]place `json:"partitions"`
	}
	if err := unmarshal(body, &req); err != nil {
		return nil, err
	}
	if req.Partitions == nil {
		return nil, event.Errorf(event.Unprocessable, 0, op, `the body has no partitions; it must be {"partitions":[{"topic":"…","partition":0}]}`)
	}
	tps := make([]event.TopicPartition, len(*req.Partitions))
	for i, p := range *req.Partitions {
		var err error
		if tps[i], err = p.check("partitions", i); err != nil {
			return nil, err
		}
	}
	return tps, nil
}

// place is a partition in a list of a request.
type place struct {
	Topic     string `json:"topic"`
	Partition *int32 `json:"partition"`
}

func (p place) check(list string, i int) (event.TopicPartition, error) {
	switch {
	case p.Topic == "":
		return event.TopicPartition{}, event.Errorf(event.Unprocessable, 0, op, "%s[%d].topic is missing", list, i)
	case p.Partition == nil || *p.Partition < 0:
		return event.TopicPartition{}, event.Errorf(event.Unprocessable, 0, op, "%s[%d].partition is missing or negative", list, i)
	}
	return event.TopicPartition{Topic: p.Topic, Partition: *p.Partition}, nil
}

// Position is where a partition is to be read next: at an offset, or, when Time is not zero,
// at the first record of that time or later.
type Position struct {
	event.TopicPartition
	Offset int64
	Time   time.Time
}

// DecodePositions reads the body of POST …/positions. A timestamp is RFC 3339 text, or a
// number of milliseconds since 1970.
func DecodePositions(body []byte) ([]Position, error) {
	var req struct {
		Offsets []struct {
			place
			Offset *int64 `json:"offset"`
		} `json:"offsets"`
		Timestamps []struct {
			place
			Timestamp loose `json:"timestamp"`
		} `json:"timestamps"`
	}
	if err := unmarshal(body, &req); err != nil {
		return nil, err
	}
	if req.Offsets == nil && req.Timestamps == nil {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the body has neither offsets nor timestamps; each is a list of what has topic, partition and offset or timestamp")
	}
	var out []Position
	for i, o := range req.Offsets {
		tp, err := o.check("offsets", i)
		if err != nil {
			return nil, err
		}
		if o.Offset == nil || *o.Offset < 0 {
			return nil, event.Errorf(event.Unprocessable, 0, op, "offsets[%d].offset is missing or negative; it must be the offset of the record to read next", i)
		}
		out = append(out, Position{TopicPartition: tp, Offset: *o.Offset})
	}
	for i, ts := range req.Timestamps {
		tp, err := ts.check("timestamps", i)
		if err != nil {
			return nil, err
		}
		t, err := ts.Timestamp.time()
		if err != nil {
			return nil, event.Errorf(event.Unprocessable, 0, op, "timestamps[%d].timestamp is %q; it must be like 2026-01-02T03:04:05Z, or milliseconds since 1970", i, string(ts.Timestamp))
		}
		out = append(out, Position{TopicPartition: tp, Time: t})
	}
	return out, nil
}

// maxTime is the last second of the year 9999, which RFC 3339 can still write.
const maxTime = 253402300799

// time reads what the dialect calls an instant.
func (l loose) time() (time.Time, error) {
	if ms, err := strconv.ParseInt(string(l), 10, 64); err == nil {
		if ms < 0 || ms/1000 > maxTime {
			return time.Time{}, strconv.ErrRange
		}
		return time.UnixMilli(ms), nil
	}
	t, err := time.Parse(time.RFC3339Nano, string(l))
	if err == nil && (t.Unix() < 0 || t.Unix() > maxTime) {
		return time.Time{}, strconv.ErrRange
	}
	return t, err
}
