//go:build stack

package stacktest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestHTTPToConsoleConsumer(t *testing.T) {
	topic := newTopic(t, 1)
	if got, want := produce(t, topic, "key1", "Hello, Kafka!"), (place{Topic: topic}); got != want {
		t.Errorf("the first record was stored at %+v; want %+v", got, want)
	}
	got := kafkaTool(t, "", "kafka-console-consumer.sh", "--topic", topic, "--from-beginning", "--max-messages", "1",
		"--timeout-ms", "20000", "--formatter-property", "print.key=true")
	if want := "key1\tHello, Kafka!"; got != want {
		t.Errorf("the console consumer printed %q; want %q", got, want)
	}
}

// session is a pull session. There are no cookies: any replica answers.
type session struct{ url string }

const v2 = "application/vnd.kafka.v2+json"

// openSession creates a pull session that begins at the beginning of the topics.
func openSession(t *testing.T, group, format string, topics ...string) session {
	t.Helper()
	created := expect(t, 200, "POST", "/consumers/"+group,
		fmt.Sprintf(`{"format":%q,"auto.offset.reset":"earliest"}`, format), "Content-Type: "+v2)
	var in struct {
		BaseURI string `json:"base_uri"`
	}
	created.decode(t, &in)
	s := session{in.BaseURI}
	expect(t, 204, "POST", s.url+"/subscription", fmt.Sprintf(`{"topics":["%s"]}`, strings.Join(topics, `","`)),
		"Content-Type: "+v2)
	return s
}

// record is one of the answer to a session's read, in the formats json and text.
type record struct {
	Topic     string `json:"topic"`
	Key       any    `json:"key"`
	Value     any    `json:"value"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

// read asks until it has n records.
func (s session) read(t *testing.T, n int) []record {
	t.Helper()
	var all []record
	eventually(t, 30*time.Second, fmt.Sprintf("%d records from %s", n, s.url), func() error {
		got := call(t, "GET", s.url+"/records?timeout=1000", "")
		if got.status != 200 {
			return fmt.Errorf("got %v after %d records", got, len(all))
		}
		var batch []record
		got.decode(t, &batch)
		if all = append(all, batch...); len(all) < n {
			return fmt.Errorf("got %d: %+v", len(all), all)
		}
		return nil
	})
	return all
}

func TestConsoleProducerToPullSession(t *testing.T) {
	topic, group := newTopic(t, 1), unique("group")
	kafkaTool(t, "a\nb\nc\n", "kafka-console-producer.sh", "--topic", topic)

	s := openSession(t, group, "text", topic)
	var values []any
	for _, r := range s.read(t, 3) {
		values = append(values, r.Value)
	}
	if got := fmt.Sprint(values); got != "[a b c]" {
		t.Errorf("the session read %s; want [a b c]", got)
	}

	expect(t, 200, "POST", s.url+"/offsets", "", "Content-Type: "+v2)
	got := expect(t, 200, "GET", s.url+"/offsets?topic="+topic+"&partition=0", "").body
	if want := fmt.Sprintf(`{"offsets":[{"topic":%q,"partition":0,"offset":3,"metadata":""}]}`, topic); strings.TrimSpace(got) != want {
		t.Errorf("committed: %s; want %s", got, want)
	}
	expect(t, 204, "DELETE", s.url, "")
}
