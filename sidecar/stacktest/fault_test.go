//go:build stack

package stacktest

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

const (
	connections = 16
	pause       = 5 * time.Millisecond
	// settled is how many requests show that the traffic flows.
	settled = 500
	// A request may wait for Traefik to find out that a replica is gone: every 2 s, and for 1 s.
	slowestThroughFault = 5 * time.Second
)

// twoProducersUnderLoad is how the tests of replicas begin and end.
func twoProducersUnderLoad(t *testing.T) (replica string, l *load) {
	t.Helper()
	replica = scale(t, "producer", 2)[0]
	l = startLoad(t, newTopic(t, 3), connections, pause)
	t.Cleanup(func() { // whatever happened, the next test finds both
		docker(t, "start", replica)
		awaitServers(t, "producer", 2)
	})
	l.awaitAcknowledged(t, settled)
	return replica, l
}

// comesBack starts a replica and waits until it takes its share of the requests again.
func comesBack(t *testing.T, replica string, l *load) {
	t.Helper()
	docker(t, "start", replica)
	awaitServers(t, "producer", 2)
	before := requests(t, replica, "/topics/{topic}/records")
	l.awaitAcknowledged(t, settled)
	if after := requests(t, replica, "/topics/{topic}/records"); after-before < settled/4 {
		t.Errorf("the replica that came back got %v of more than %d requests; want about half", after-before, settled)
	}
}

func TestFaultStoppedReplicaFailsNoRequest(t *testing.T) {
	replica, l := twoProducersUnderLoad(t)
	docker(t, "stop", "--time", "40", replica)
	l.awaitAcknowledged(t, settled)
	comesBack(t, replica, l)

	results := l.finish()
	if failed := failures(results); len(failed) > 0 {
		t.Errorf("%d of %d requests failed while one of two producers was stopped and started; want none. The first: %v",
			len(failed), len(results), failed[0])
	}
	if r := slowest(results); r.end.Sub(r.begun) > slowestThroughFault {
		t.Errorf("the slowest request took longer than %v: %v", slowestThroughFault, r)
	}
	checkStored(t, l.topic, results)
}

func TestFaultKilledReplicaFailsAtMostWhatWasInFlightOnIt(t *testing.T) {
	replica, l := twoProducersUnderLoad(t)
	docker(t, "kill", "--signal", "KILL", replica)
	killed := time.Now()
	l.awaitAcknowledged(t, settled)
	comesBack(t, replica, l)

	results := l.finish()
	failed := failures(results)
	if len(failed) > l.conns {
		t.Errorf("%d requests failed; want at most those in flight, %d", len(failed), l.conns)
	}
	for _, r := range failed {
		if r.begun.After(killed) {
			t.Errorf("failed, and was begun after the kill at %s, so it was not in flight: %v", killed.Format("05.000"), r)
		}
	}
	if r := slowest(results); r.end.Sub(r.begun) > slowestThroughFault {
		t.Errorf("the slowest request took longer than %v: %v", slowestThroughFault, r)
	}
	t.Logf("%d requests failed", len(failed))
	checkStored(t, l.topic, results)
}

func TestFaultRestartOfKafkaLosesNothing(t *testing.T) {
	topic, group := newTopic(t, 3), unique("group")
	s := openSession(t, group, "text", topic)
	events := openStream(t, topic, "from=earliest&format=text", "")
	l := startLoad(t, topic, 4, 20*time.Millisecond)
	l.awaitAcknowledged(t, 100)

	compose(t, "restart", "kafka")
	restarted := time.Now()
	l.awaitAcknowledged(t, 100)
	t.Logf("writing again %v after the restart", time.Since(restarted))

	results := l.finish()
	for _, r := range failures(results) {
		var body struct {
			Code    int    `json:"error_code"`
			Message string `json:"message"`
		}
		if r.err != nil || r.answer.status != 503 || r.answer.header.Get("Retry-After") == "" {
			t.Errorf("while Kafka was away: %v; want 200, or 503 with Retry-After", r)
			continue
		}
		if r.answer.decode(t, &body); body.Code == 0 || body.Message == "" {
			t.Errorf("while Kafka was away: %v; want error_code and message", r)
		}
	}
	if r := slowest(results); r.end.Sub(r.begun) > 31*time.Second {
		t.Errorf("past the deadline of 30 s: %v", r)
	}
	checkStored(t, topic, results)

	// Readers that were there before the restart get every record too.
	var want []string
	for _, value := range readTopic(t, topic) {
		want = append(want, value)
	}
	var read, streamed []string
	for _, r := range s.read(t, len(want)) {
		read = append(read, r.Value.(string))
	}
	for range want {
		streamed = append(streamed, events.next(t).record.Value.(string))
	}
	slices.Sort(want)
	for name, got := range map[string][]string{"pull session": read, "stream": streamed} {
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("the %s that was open got %d records; want each of the %d once", name, len(got), len(want))
		}
	}
}

// librdkafka's threads wait until a time of day. While a clock is ahead they begin waits that end hours
// after it has been set back, and what they should have done meanwhile, such as connect again, is not done.
func TestFaultAClockThatIsSetBackStopsNoProducer(t *testing.T) {
	replica, l := twoProducersUnderLoad(t)
	setRight := shiftClock(t, replica, 2*time.Hour)
	time.Sleep(5 * time.Second) // each of them begins one
	setRight()
	eventually(t, 2*time.Minute, "its two clients are made anew", func() error {
		if n := sum(t, replica, "postamt_producer_remakes_total ", ""); n < 2 {
			return fmt.Errorf("%v are", n)
		}
		return nil
	})
	before := stored(t, replica)
	eventually(t, time.Minute, "the replica stores records", func() error {
		if now := stored(t, replica); now < before+settled {
			return fmt.Errorf("it has stored %v since", now-before)
		}
		return nil
	})
	checkStored(t, l.topic, l.finish())
	docker(t, "stop", "--time", "30", replica) // with what is left of the clients that stand still
	if code := docker(t, "inspect", "--format", "{{.State.ExitCode}}", replica); code != "0" {
		t.Errorf("it was asked to stop, and its exit code is %s; want 0", code)
	}
}

// stored counts the records that a replica has had acknowledged.
func stored(t *testing.T, container string) float64 {
	t.Helper()
	return sum(t, container, "postamt_produce_records_total{", `result="stored"`)
}

// Without Kafka the producer stays in rotation: it says 503 in time, and what needs no Kafka
// works as ever.
func TestFaultKafkaAwayIsAnErrorInTime(t *testing.T) {
	topic := newTopic(t, 1)
	kafka := containers(t, "kafka")[0]
	t.Cleanup(func() {
		compose(t, "up", "-d", "--wait", "--no-deps", "--no-recreate", "kafka")
		eventually(t, time.Minute, "writing after Kafka is back", func() error {
			got, err := request("POST", "/topics/"+topic+"/records", "after")
			if err == nil && got.status != 200 {
				err = fmt.Errorf("got %v; want 200", got)
			}
			return err
		})
	})
	docker(t, "stop", "--time", "60", kafka)

	type outcome struct {
		path string
		got  answer
		err  error
		took time.Duration
	}
	outcomes := make(chan outcome)
	paths := []string{"/topics/" + topic + "/records", "/topics/" + topic, "/topics/no-such-topic/records"}
	for _, path := range paths {
		go func() {
			begun := time.Now()
			got, err := request("POST", path, `{"records":[{"value":1}]}`, "Content-Type: application/vnd.kafka.json.v2+json")
			outcomes <- outcome{path, got, err, time.Since(begun)}
		}()
	}
	expect(t, 404, "GET", "/nowhere", "")
	expect(t, 200, "GET", "/health", "")
	for range paths {
		o := <-outcomes
		var body struct {
			Code int `json:"error_code"`
		}
		if o.err != nil || o.got.status != 503 || o.got.header.Get("Retry-After") == "" {
			t.Errorf("POST %s without Kafka: %v, %v; want 503 with Retry-After", o.path, o.got, o.err)
		} else if o.got.decode(t, &body); body.Code == 0 {
			t.Errorf("POST %s without Kafka: %v; want an error_code", o.path, o.got)
		}
		if o.took > 31*time.Second {
			t.Errorf("POST %s without Kafka took %v; want 30 s at most", o.path, o.took)
		}
	}
	awaitServers(t, "producer", len(containers(t, "producer")))
}

// Consumers are restarted one after the other: a stream's client, which connects again when
// its stream ends, gets every record once, and no read without a session fails.
func TestFaultRollingRestartOfConsumers(t *testing.T) {
	const n = 150
	replicas := scale(t, "consumer", 2)
	topic := newTopic(t, 3)
	s := openStream(t, topic, "from=latest&format=text", "")
	lastID := s.nextBlock(t).id
	t.Cleanup(func() {
		docker(t, append([]string{"start"}, replicas...)...)
		awaitServers(t, "consumer", 2)
	})

	restarted := make(chan error, 1)
	go func() {
		restarted <- func() error {
			for _, replica := range replicas {
				if _, err := dockerOut("stop", "--time", "40", replica); err != nil {
					return err
				}
				if _, err := dockerOut("start", replica); err != nil {
					return err
				}
				if err := serversUp("consumer", 2, time.Minute); err != nil {
					return err
				}
			}
			return nil
		}()
	}()

	// While that goes on, records come in at a pace, and metadata is read without a cookie.
	var lost []string
	produced, read := make(chan struct{}), make(chan []string, 1)
	go func() {
		defer close(produced)
		for i := range n {
			got, err := request("POST", fmt.Sprintf("/topics/%s/records?key=%d", topic, i), fmt.Sprint(i))
			if err != nil || got.status != 200 {
				lost = append(lost, fmt.Sprintf("record %d: %v, %v", i, got, err))
			}
			time.Sleep(150 * time.Millisecond)
		}
	}()
	go func() {
		var failed []string
		for {
			select {
			case <-produced:
				read <- failed
				return
			default:
			}
			if got, err := request("GET", "/topics/"+topic, ""); err != nil || got.status != 200 {
				failed = append(failed, fmt.Sprintf("%v, %v", got, err))
			}
		}
	}()

	times, connections := make(map[string]int), 1
	for deadline := time.After(2 * time.Minute); len(times) < n; {
		select {
		case e, ok := <-s.events:
			if !ok {
				s = openStream(t, topic, "from=latest&format=text", lastID)
				connections++
				continue
			}
			if lastID = e.id; e.record.Topic != "" {
				times[e.record.Value.(string)]++
			}
		case <-deadline:
			t.Fatalf("over %d connections the stream gave %d of %d records; not written: %v", connections, len(times), n, lost)
		}
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	for value, count := range times {
		if count > 1 {
			t.Errorf("the stream gave record %s %d times; want once", value, count)
		}
	}
	if connections < 2 {
		t.Errorf("the stream was never cut off, though both consumers were restarted")
	}
	if failed := <-read; len(failed) > 0 {
		t.Errorf("%d reads without a cookie failed; want none. The first: %s", len(failed), failed[0])
	}
	t.Logf("%d records over %d connections", len(times), connections)
}
