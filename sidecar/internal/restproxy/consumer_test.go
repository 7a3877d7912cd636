package restproxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

func TestDecodeCreateConsumer(t *testing.T) {
	for body, want := range map[string]CreateConsumer{
		``:     {Format: Binary},
		`{}`:   {Format: Binary},
		`null`: {Format: Binary},
		`{"name":"c1","format":"JSON","auto.offset.reset":"earliest","auto.commit.enable":"false","fetch.min.bytes":1,"consumer.request.timeout.ms":1000}`: {Name: "c1", Format: JSON, FromEarliest: true, MinBytes: 1, Wait: time.Second},
		`{"name":"c1","id":"c2","format":"text"}`:                           {Name: "c2", Format: Text}, // the deprecated name wins
		`{"auto.commit.enable":true,"fetch.min.bytes":"100"}`:               {Format: Binary, AutoCommit: true, MinBytes: 100},
		`{"auto.commit.enable":"TRUE","fetch.min.bytes":null}`:              {Format: Binary, AutoCommit: true},
		`{"enable.auto.commit":true,"isolation.level":"read_committed"}`:    {Format: Binary, AutoCommit: true, ReadCommitted: true},
		`{"auto.commit.enable":"false","enable.auto.commit":"true"}`:        {Format: Binary},
		`{"responseMinBytes":5,"requestWaitMs":"2000"}`:                     {Format: Binary, MinBytes: 5, Wait: 2 * time.Second},
		`{"fetch.min.bytes":-1}`:                                            {Format: Binary, MinBytes: -1},
		`{"fetch.min.bytes":10000000,"consumer.request.timeout.ms":"0"}`:    {Format: Binary, MinBytes: 10_000_000},
		`{"auto.offset.reset":"LATEST","isolation.level":"READ_committed"}`: {Format: Binary, ReadCommitted: true},
		`{"fetch.max.bytes":7,"unknown":[{}]}`:                              {Format: Binary}, // unknown members are ignored
	} {
		got, err := DecodeCreateConsumer([]byte(body))
		if err != nil || got != want {
			t.Errorf("%s is %+v, %v; want %+v", body, got, err, want)
		}
	}
	for body, want := range map[string]int{
		`{`: 400, `[]`: 422, `"x"`: 422, `{"name":5}`: 422, `{"format":"avro"}`: 422, `{"format":7}`: 422,
		`{"auto.offset.reset":"none"}`: 42204, `{"auto.commit.enable":"yes"}`: 42204, `{"auto.commit.enable":1}`: 42204,
		`{"auto.commit.enable":{}}`: 422, `{"fetch.min.bytes":[1]}`: 422, `{"isolation.level":"serializable"}`: 42204,
		`{"fetch.min.bytes":-2}`: 40001, `{"fetch.min.bytes":-10}`: 40001, `{"fetch.min.bytes":10000001}`: 40001, `{"fetch.min.bytes":"-2"}`: 40001,
		`{"fetch.min.bytes":1.5}`: 42204, `{"fetch.min.bytes":"many"}`: 42204, `{"fetch.min.bytes":9223372036854775808}`: 42204,
		`{"consumer.request.timeout.ms":-1}`: 42204, `{"consumer.request.timeout.ms":3600001}`: 42204, `{"consumer.request.timeout.ms":"soon"}`: 42204,
	} {
		_, err := DecodeCreateConsumer([]byte(body))
		if got := code(err); got != want {
			t.Errorf("%s: %v; want code %d", body, err, want)
		}
	}
}

func TestDecodeSubscription(t *testing.T) {
	for body, want := range map[string]string{
		`{"topics":["a"]}`:                              "[a] ",
		`{"topics":["b","a","b"]}`:                      "[b a b] ",
		`{"topic_pattern":"^test\\..*"}`:                `[] ^test\..*`,
		`{"topics":["a"],"topic_pattern":"x"}`:          "[a] ",
		`{"topics":[],"topic_pattern":"x","more":true}`: "[] x",
		// Refused: the error's code.
		``: "400", `{`: "400", `{}`: "422", `null`: "422", `[]`: "422", `{"topics":[]}`: "422", `{"topics":"a"}`: "422", `{"topics":[""]}`: "422",
		`{"topics":[1]}`: "422", `{"topic_pattern":"("}`: "422", `{"topic_pattern":""}`: "422", `{"topic_pattern":["a"]}`: "422",
	} {
		s, err := DecodeSubscription([]byte(body))
		got := fmt.Sprint(s.Topics, " ", s.Pattern)
		if err != nil {
			got = fmt.Sprint(code(err))
		}
		if got != want {
			t.Errorf("%s is %q, %v; want %q", body, got, err, want)
		}
	}
}

// A client sends the offset of the last record that it has done with; Kafka keeps the next.
func TestDecodeCommitStoresTheNextOffset(t *testing.T) {
	got, err := DecodeCommit([]byte(`{"offsets":[{"topic":"a","partition":0,"offset":41,"metadata":"m"},{"topic":"a","partition":1,"offset":0},{"topic":"b","partition":0,"offset":9}]}`))
	want := map[event.TopicPartition]event.Commit{
		{Topic: "a", Partition: 0}: {Offset: 42, Metadata: "m"}, {Topic: "a", Partition: 1}: {Offset: 1}, {Topic: "b", Partition: 0}: {Offset: 10},
	}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("commits are %v, %v; want %v", got, err, want)
	}
	for _, all := range []string{``, `{}`, `null`, `{"offsets":null}`} {
		if got, err := DecodeCommit([]byte(all)); got != nil || err != nil {
			t.Errorf("%q is %v, %v; want nil, which is all that was read", all, got, err)
		}
	}
	// A list that is empty names nothing, which is not the same as everything.
	if got, err := DecodeCommit([]byte(`{"offsets":[]}`)); got == nil || len(got) != 0 || err != nil {
		t.Errorf("an empty list is %v, %v", got, err)
	}
	for body, want := range map[string]int{
		`{`: 400, `[]`: 422, `{"offsets":{}}`: 422, `{"offsets":[{"partition":0,"offset":1}]}`: 422, `{"offsets":[{"topic":"a","offset":1}]}`: 422,
		`{"offsets":[{"topic":"a","partition":0}]}`: 422, `{"offsets":[{"topic":"a","partition":-1,"offset":1}]}`: 422,
		`{"offsets":[{"topic":"a","partition":0,"offset":-1}]}`: 422, `{"offsets":[{"topic":"a","partition":0,"offset":"1"}]}`: 422,
		`{"offsets":[{"topic":"a","partition":0,"offset":9223372036854775807}]}`: 422, // there is no next one
	} {
		got, err := DecodeCommit([]byte(body))
		if code(err) != want {
			t.Errorf("%s is %v, %v; want code %d", body, got, err, want)
		}
	}
}

func TestDecodePartitions(t *testing.T) {
	got, err := DecodePartitions([]byte(`{"partitions":[{"topic":"b","partition":1},{"topic":"a","partition":0}]}`))
	if want := []event.TopicPartition{{Topic: "b", Partition: 1}, {Topic: "a"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("partitions are %v, %v; want %v", got, err, want)
	}
	for body, want := range map[string]int{`x`: 400, `{"partitions":5}`: 422, `{"partitions":[{"partition":"0"}]}`: 422,
		`{}`: 422, `{"partitions":[{"topic":"a"}]}`: 422, `{"partitions":[{"topic":"a","partition":-1}]}`: 422} {
		if _, err := DecodePartitions([]byte(body)); code(err) != want {
			t.Errorf("%s: %v; want code %d", body, err, want)
		}
	}
}

func TestDecodePositions(t *testing.T) {
	at := func(text string) time.Time {
		t.Helper()
		parsed, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	got, err := DecodePositions([]byte(`{"offsets":[{"topic":"a","partition":1,"offset":0,"metadata":"m"}],"timestamps":[
		{"topic":"b","partition":0,"timestamp":"2026-01-02T03:04:05.6+01:00"},{"topic":"b","partition":1,"timestamp":1767323045678}]}`))
	want := []Position{
		{TopicPartition: event.TopicPartition{Topic: "a", Partition: 1}},
		{TopicPartition: event.TopicPartition{Topic: "b"}, Time: at("2026-01-02T02:04:05.6Z")},
		{TopicPartition: event.TopicPartition{Topic: "b", Partition: 1}, Time: at("2026-01-02T03:04:05.678Z")},
	}
	if err != nil || !slices.EqualFunc(got, want, func(a, b Position) bool {
		return a.TopicPartition == b.TopicPartition && a.Offset == b.Offset && a.Time.Equal(b.Time)
	}) {
		t.Errorf("positions are %v, %v; want %v", got, err, want)
	}
	for body, want := range map[string]int{
		``: 400, `x`: 400, `{}`: 422, `{"offsets":1}`: 422, `{"offsets":[{"topic":"a","partition":0}]}`: 422,
		`{"offsets":[{"topic":"a","partition":0,"offset":-1}]}`: 422, `{"offsets":[{"partition":0,"offset":1}]}`: 422,
		`{"timestamps":[{"topic":"a","partition":0}]}`: 422, `{"timestamps":[{"topic":"a","partition":0,"timestamp":"yesterday"}]}`: 422,
		`{"timestamps":[{"topic":"a","partition":0,"timestamp":-1}]}`: 422, `{"timestamps":[{"topic":"a","partition":0,"timestamp":1.5}]}`: 422,
		`{"timestamps":[{"topic":"a","partition":0,"timestamp":9223372036854775807}]}`: 422, `{"timestamps":[{"topic":"a","partition":0,"timestamp":{}}]}`: 422,
	} {
		if got, err := DecodePositions([]byte(body)); code(err) != want {
			t.Errorf("%s is %v, %v; want code %d", body, got, err, want)
		}
	}
}

func FuzzDecodePositions(f *testing.F) {
	for _, body := range []string{`{"offsets":[{"topic":"a","partition":1,"offset":0}]}`, `{"timestamps":[{"topic":"b","partition":0,"timestamp":"2026-01-02T03:04:05Z"}]}`, `{"timestamps":[{"topic":"b","partition":0,"timestamp":5}]}`, `[`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		positions, err := DecodePositions(body)
		if err != nil {
			checkKind(t, err)
		}
		for _, p := range positions {
			if p.Topic == "" || p.Partition < 0 || p.Offset < 0 || p.Time.Unix() > maxTime {
				t.Errorf("%s is %+v", body, p)
			}
		}
	})
}

func FuzzDecodeCreateConsumer(f *testing.F) {
	for _, body := range []string{
		``, `{"name":"c1","format":"json","auto.offset.reset":"earliest","auto.commit.enable":"false","fetch.min.bytes":1}`,
		`{"auto.commit.enable":true,"requestWaitMs":"1000"}`, `{"fetch.min.bytes":[]}`, `{"isolation.level":"read_committed","id":"x"}`, `{"fetch.min.bytes":"\ud800"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := DecodeCreateConsumer(body)
		if err != nil {
			checkKind(t, err)
			return
		}
		reset := map[bool]string{true: "earliest", false: "latest"}[c.FromEarliest]
		isolation := map[bool]string{true: "read_committed", false: "read_uncommitted"}[c.ReadCommitted]
		encoded, _ := json.Marshal(map[string]any{
			"name": c.Name, "format": c.Format, "auto.offset.reset": reset, "auto.commit.enable": c.AutoCommit,
			"isolation.level": isolation, "fetch.min.bytes": c.MinBytes, "consumer.request.timeout.ms": c.Wait.Milliseconds(),
		})
		if again, err := DecodeCreateConsumer(encoded); err != nil || again != c {
			t.Errorf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

func FuzzDecodeSubscription(f *testing.F) {
	for _, body := range []string{`{"topics":["a","b"]}`, `{"topic_pattern":"^x.*"}`, `{"topics":[],"topic_pattern":"["}`, `{}`, `[`} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := DecodeSubscription(body)
		if err != nil {
			checkKind(t, err)
			return
		}
		if (len(s.Topics) > 0) == (s.Pattern != "") {
			t.Errorf("%s is %+v: it must be either topics or a pattern", body, s)
		}
		encoded, _ := json.Marshal(s)
		if again, err := DecodeSubscription(encoded); err != nil || !slices.Equal(again.Topics, s.Topics) || again.Pattern != s.Pattern {
			t.Errorf("%+v came back as %+v, %v", s, again, err)
		}
	})
}

func FuzzDecodeCommit(f *testing.F) {
	for _, body := range []string{
		``, `{"offsets":[{"topic":"a","partition":0,"offset":41,"metadata":"m"}]}`, `{"offsets":[]}`, `{"offsets":[{"topic":"a"}]}`,
		fmt.Sprintf(`{"offsets":[{"topic":"a","partition":2147483647,"offset":%d}]}`, math.MaxInt64),
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		commits, err := DecodeCommit(body)
		if err != nil {
			checkKind(t, err)
			return
		}
		for tp, c := range commits {
			if tp.Topic == "" || tp.Partition < 0 || c.Offset < 1 {
				t.Errorf("%s commits %+v of %+v", body, c, tp)
			}
		}
	})
}
