package bootstrap

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

const example = `
environments: [test, prod]
events:
  voucher: {partitions: 3, retention: 7d, dead_letters: true}
topics:                      # names of their own, outside the convention
  my-topic: {partitions: 3}
`

func TestParseExpandsEventsIntoEnvironments(t *testing.T) {
	topics, err := Parse("topics.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, topic := range topics {
		got = append(got, topic.Name)
	}
	want := []string{
		"_postamt.sessions", "_postamt.subscriptions", "my-topic",
		"prod.voucher", "prod.voucher.dead-letters", "test.voucher", "test.voucher.dead-letters",
	}
	if !slices.Equal(got, want) {
		t.Errorf("topics are %v, want %v", got, want)
	}
	for _, topic := range topics {
		wantConfigs := map[string]string{}
		wantPartitions := 3
		switch {
		case strings.HasPrefix(topic.Name, "_postamt."):
			wantConfigs, wantPartitions = map[string]string{"cleanup.policy": "compact", "segment.bytes": "16777216"}, 1
		case strings.HasSuffix(topic.Name, ".dead-letters"):
			wantConfigs = map[string]string{"retention.ms": "2592000000"} // 30 days
		case topic.Name != "my-topic":
			wantConfigs = map[string]string{"retention.ms": "604800000"} // 7 days
		}
		if !maps.Equal(topic.Configs, wantConfigs) || topic.Partitions != wantPartitions {
			t.Errorf("%s has %d partitions, %v; want %d, %v", topic.Name, topic.Partitions, topic.Configs, wantPartitions, wantConfigs)
		}
	}
}

func TestParseReadsEverySetting(t *testing.T) {
	topics, err := Parse("topics.yaml", []byte(`
topics:
  first: &kept
    partitions: 12
    replication: 3
    retention: forever
    dead_letters: true
    configs: {min.insync.replicas: 2, cleanup.policy: "compact,delete", max.message.bytes: 2000000}
  second: {<<: *kept, partitions: 1, dead_letters: false}
`))
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]Topic)
	for _, topic := range topics {
		got[topic.Name] = topic
	}
	first, letters, second := got["first"], got["first.dead-letters"], got["second"]
	if first.Partitions != 12 || first.Replication != 3 || !maps.Equal(first.Configs, map[string]string{
		"retention.ms": "-1", "min.insync.replicas": "2", "cleanup.policy": "compact,delete", "max.message.bytes": "2000000",
	}) {
		t.Errorf("first is %+v", first)
	}
	if letters.DeadLettersOf != "first" || letters.Replication != 3 || !maps.Equal(letters.Configs, map[string]string{
		"retention.ms": "2592000000", "min.insync.replicas": "2",
	}) {
		t.Errorf("first.dead-letters is %+v", letters)
	}
	if second.Partitions != 1 || second.Replication != 3 || second.Configs["retention.ms"] != "-1" || len(got) != 5 {
		t.Errorf("second is %+v, among %d topics", second, len(got))
	}
}

func TestParseRetention(t *testing.T) {
	for retention, want := range map[string]string{
		"7d": "604800000", "36h": "129600000", "1d12h": "129600000", "2w": "1209600000", "1w1d": "691200000",
		"90m": "5400000", "1500ms": "1500", "0.5h": "1800000", "forever": "-1",
		"7": "", "0": "", "0s": "", "-1h": "", "1d-1h": "", "week": "", "''": "", "1us": "", "9999w99999d": "", "99999d99999999999h": "", "[7d]": "", "~": "",
	} {
		topics, err := Parse("t", []byte("topics: {a: {partitions: 1, retention: "+retention+"}}"))
		switch {
		case want == "" && (err == nil || !strings.Contains(err.Error(), "retention is ")):
			t.Errorf("retention %s gives %v, want a mistake", retention, err)
		case want != "" && err != nil:
			t.Errorf("retention %s: %v", retention, err)
		case want != "" && topics[2].Configs["retention.ms"] != want:
			t.Errorf("retention %s gives %s ms, want %s", retention, topics[2].Configs["retention.ms"], want)
		}
	}
}

func TestParseReportsEveryMistakeWithItsLine(t *testing.T) {
	_, err := Parse("topics.yaml", []byte(`environments: [test, Prod, test]
events:
  voucher: {partitions: many, retention: 7, dead_letters: maybe}
  Order: {partitions: 1}
  empty:
topics:
  a.b: {partitions: 0}
  a_b: {partitions: 1, replicas: 3}
  a.b: {partitions: 1}
  _postamt.x: {partitions: 1}
  "no spaces": {partitions: 1}
  c: {partitions: 1, configs: {retention.ms: 5, min.insync.replicas: two, max.message.bytes: 20000, segment.ms: [1], x: ~}}
  d: [partitions]
  e: {partitions: 1, dead_letters: true}
  e.dead-letters: {partitions: 1}
  `+strings.Repeat("f", 240)+`: {partitions: 1, dead_letters: true}
other: 1
`))
	if err == nil {
		t.Fatal("no mistake was found")
	}
	want := []string{
		`topics.yaml:1: environment "Prod": a name has a-z, 0-9 and '-' only`,
		`topics.yaml:1: environment test is listed twice`,
		`topics.yaml:3: dead_letters is "maybe"; it must be true or false`,
		`topics.yaml:3: partitions is "many"; it must be a whole number from 1 to 10000`,
		`topics.yaml:3: retention is "7"; it must be a time such as 7d, 36h or 1d12h (w, d, h, m, s, ms), or forever`,
		`topics.yaml:4: event "Order": a name has a-z, 0-9 and '-' only`,
		`topics.yaml:5: empty needs partitions, such as partitions: 3; their number can be raised later, never lowered`,
		`topics.yaml:7: partitions is "0"; it must be a whole number from 1 to 10000`,
		`topics.yaml:8: a_b has no "replicas"; it can have partitions, retention, replication, dead_letters, configs`,
		`topics.yaml:8: topics a.b and a_b are one name to Kafka's metrics, which write '.' as '_'; Kafka refuses the second; see line 7`,
		`topics.yaml:9: topics has a.b twice; the first is in line 7`,
		`topics.yaml:10: topic _postamt.x: names that begin with _postamt. or __ are Postamt's and Kafka's own`,
		`topics.yaml:11: topic "no spaces": a name has a-z, A-Z, 0-9, '.', '_' and '-' only, and is not . or ..`,
		`topics.yaml:12: max.message.bytes is "20000"; it must be a whole number from 1048588 up: the producer sends batches of up to 1,000,000 bytes, and Kafka refuses one as a whole`,
		`topics.yaml:12: min.insync.replicas is "two"; it must be a whole number from 1 up`,
		`topics.yaml:12: retention.ms is set by retention, such as retention: 7d`,
		`topics.yaml:12: segment.ms is a list; it must be one value`,
		`topics.yaml:12: x is nothing; it must be one value`,
		`topics.yaml:13: d must be a mapping (key: value), not a list`,
		`topics.yaml:13: d needs partitions, such as partitions: 3; their number can be raised later, never lowered`,
		`topics.yaml:15: topic e.dead-letters is declared twice; see line 14`,
		`topics.yaml:16: topic ffffffffffffffffffff… is 253 characters long; Kafka takes 249`,
		`topics.yaml:17: the file has no "other"; it can have environments, events, topics`,
	}
	got := strings.Split(err.Error(), "\n")
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("not expected: %s", line)
		}
	}
}

func TestParseRefusesWhatIsNoDeclaration(t *testing.T) {
	for name, test := range map[string]struct{ file, want string }{
		"an empty file":             {"", "t:1: the file is empty"},
		"a comment only":            {"# later\n", "t:1: the file is empty"},
		"not YAML":                  {"topics:\n\t- a", "t:2: this is not YAML"},
		"a list":                    {"- a", "t:1: the file must be a mapping"},
		"two documents":             {"topics: {}\n---\ntopics: {}", "a second document begins here"},
		"events nowhere":            {"events: {a: {partitions: 1}}", "events need environments"},
		"events in no environment":  {"environments: []\nevents: {a: {partitions: 1}}", "events need environments"},
		"environments of one word":  {"environments: test", "environments must be a list such as [test, prod], not \"test\""},
		"a key that is a list":      {"topics: {[a]: 1}", "topics has a key that is a list"},
		"a mapping within itself":   {"topics: &t {<<: *t, a: {partitions: 1}}", "more than 8 deep"},
		"mappings merged for ever":  {"topics: &t {<<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t, <<: *t}", "topics has << twice"},
		"two topics of one name":    {"environments: [test]\nevents: {a: {partitions: 1}}\ntopics: {test.a: {partitions: 1}}", "t:3: topic test.a is declared twice; see line 2"},
		"names that read as one":    {"environments: [test]\nevents: {a: {partitions: 1}}\ntopics: {test_a: {partitions: 1}}", "t:3: topics test.a and test_a are one name"},
		"a name that reads as ours": {"topics: {_postamt_sessions: {partitions: 1}}", "topics _postamt.sessions and _postamt_sessions are one name"},
	} {
		if _, err := Parse("t", []byte(test.file)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s gives %v, want %q", name, err, test.want)
		}
	}
	for _, file := range []string{"topics: {}", "topics:\nevents:\n", "environments: [test]"} {
		if topics, err := Parse("t", []byte(file)); err != nil || len(topics) != 2 {
			t.Errorf("%q gives %v, %v; want our own two topics", file, topics, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("topics: &t {<<: *t, a: {partitions: 1, configs: {x: ~}}}"))
	f.Add([]byte("environments: [a, *b]\nevents: {c: &b {partitions: 1_0}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		topics, err := Parse("t", data)
		if err != nil {
			return
		}
		for _, topic := range topics {
			if topic.Partitions < 1 || len(topic.Name) > maxNameLen || !namePattern.MatchString(topic.Name) {
				t.Errorf("%+v was taken", topic)
			}
		}
	})
}
