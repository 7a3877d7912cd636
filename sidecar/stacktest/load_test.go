//go:build stack

package stacktest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/contract"
)

// load sends records to a topic over a number of connections until it is stopped.
type load struct {
	topic   string
	conns   int
	stop    context.CancelFunc
	workers sync.WaitGroup
	mu      sync.Mutex
	results []result
}

// result is what became of one record: an answer, or err when there was none.
type result struct {
	value      string
	begun, end time.Time
	answer     answer
	err        error
	place      place // where the answer says the record is
}

func (r result) acknowledged() bool { return r.err == nil && r.answer.status == http.StatusOK }

func (r result) String() string {
	if r.err != nil {
		return fmt.Sprintf("%s begun %s, after %v: %v", r.value, r.begun.Format("05.000"), r.end.Sub(r.begun), r.err)
	}
	return fmt.Sprintf("%s begun %s, after %v: %v", r.value, r.begun.Format("05.000"), r.end.Sub(r.begun), r.answer)
}

// startLoad keeps conns requests in flight, with a pause between a connection's requests
// that leaves the machine, which runs both ends, some time for other things.
func startLoad(t *testing.T, topic string, conns int, pause time.Duration) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{topic: topic, conns: conns, stop: cancel}
	t.Cleanup(func() { l.finish() })
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: conns}}
	for worker := range conns {
		l.workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				l.add(send(client, topic, fmt.Sprintf("%d-%d", worker, i)))
				time.Sleep(pause)
			}
		})
	}
	return l
}

func send(client *http.Client, topic, value string) result {
	r := result{value: value, begun: time.Now()}
	resp, err := client.Post(project.api+"/topics/"+topic+"/records?key="+value, "text/plain", strings.NewReader(value))
	if err == nil {
		var body []byte
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		r.answer = answer{resp.StatusCode, resp.Header, string(body)}
	}
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal([]byte(r.answer.body), &r.place)
	}
	r.end, r.err = time.Now(), err
	return r
}

func (l *load) add(r result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.results = append(l.results, r)
}

// acknowledgedSince counts the records that were sent and acknowledged after a moment.
func (l *load) acknowledgedSince(since time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, r := range l.results {
		if r.acknowledged() && r.begun.After(since) {
			n++
		}
	}
	return n
}

// awaitAcknowledged waits until n records more have been acknowledged.
func (l *load) awaitAcknowledged(t *testing.T, n int) {
	t.Helper()
	since := time.Now()
	eventually(t, time.Minute, fmt.Sprintf("%d records acknowledged", n), func() error {
		if got := l.acknowledgedSince(since); got < n {
			return fmt.Errorf("got %d", got)
		}
		return nil
	})
}

// finish ends the load and returns the results of all its requests.
func (l *load) finish() []result {
	l.stop()
	l.workers.Wait()
	// Against openapi.yaml afterwards, and some 200 of those that are alike, so that the load
	// is what it would be without.
	c, err := contract.Load()
	if err != nil {
		violated(err)
		return l.results
	}
	path := &url.URL{Path: "/topics/" + l.topic + "/records"}
	for i, r := range l.results {
		if r.err != nil || r.answer.header.Get("X-Request-Id") == "" || r.acknowledged() && i%(len(l.results)/200+1) != 0 {
			continue
		}
		if err := c.Check(http.MethodPost, path, contract.Answer{Status: r.answer.status, Header: r.answer.header, Body: []byte(r.answer.body)}); err != nil {
			violated(err)
		}
	}
	return l.results
}

// failures are the results without an acknowledgement.
func failures(results []result) []result {
	var out []result
	for _, r := range results {
		if !r.acknowledged() {
			out = append(out, r)
		}
	}
	return out
}

func slowest(results []result) result {
	var out result
	for _, r := range results {
		if r.end.Sub(r.begun) > out.end.Sub(out.begun) {
			out = r
		}
	}
	return out
}

// readTopic reads a topic from its beginning to the end that it has now, past Traefik and
// the sidecars.
func readTopic(t *testing.T, topic string) map[place]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(project.broker), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		t.Fatalf("end offsets of %s: %v", topic, err)
	}
	want := 0
	ends.Each(func(o kadm.ListedOffset) { want += int(o.Offset) })
	got := make(map[place]string, want)
	for len(got) < want {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("reading %s: %v after %d of %d records", topic, err, len(got), want)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			got[place{topic, r.Partition, r.Offset}] = string(r.Value)
		})
	}
	return got
}

// checkStored compares what was acknowledged with what Kafka has: each acknowledged record
// is exactly where its answer says, and no record is there twice.
func checkStored(t *testing.T, topic string, results []result) {
	t.Helper()
	stored := readTopic(t, topic)
	times := make(map[string]int)
	for _, value := range stored {
		times[value]++
	}
	lost, twice, acknowledged := 0, 0, 0
	for _, r := range results {
		if times[r.value] > 1 {
			twice++
			t.Logf("%d times in Kafka: %v", times[r.value], r)
		}
		if !r.acknowledged() {
			continue
		}
		acknowledged++
		if got, ok := stored[r.place]; !ok || got != r.value {
			lost++
			t.Logf("at %+v Kafka has %q (%t): %v", r.place, got, ok, r)
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged records are not where their answers say", lost, acknowledged)
	}
	if twice > 0 {
		t.Errorf("%d records are in Kafka more than once; want none", twice)
	}
	t.Logf("%d requests, %d acknowledged, %d records in Kafka; the slowest took %v",
		len(results), acknowledged, len(stored), slowest(results).end.Sub(slowest(results).begun))
}
