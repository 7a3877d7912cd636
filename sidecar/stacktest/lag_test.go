//go:build stack

package stacktest

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"
)

// describedLag is the lag by partition that Kafka's own tool prints; "-" is left out.
func describedLag(t *testing.T, group, topic string) map[string]float64 {
	t.Helper()
	out := kafkaTool(t, "", "kafka-consumer-groups.sh", "--describe", "--group", group)
	lag := make(map[string]float64)
	for line := range strings.Lines(out) {
		// GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
		if f := strings.Fields(line); len(f) > 5 && f[0] == group && f[1] == topic && f[5] != "-" {
			n, err := strconv.ParseFloat(f[5], 64)
			if err != nil {
				t.Fatalf("kafka-consumer-groups.sh printed %q: %v", line, err)
			}
			lag[f[2]] = n
		}
	}
	return lag
}

// monitoredLag is the lag by partition in the monitor's metrics.
func monitoredLag(t *testing.T, group, topic string) map[string]float64 {
	t.Helper()
	lag := make(map[string]float64)
	for line := range strings.Lines(metrics(t, containers(t, "monitor")[0])) {
		if !strings.HasPrefix(line, "kafka_consumergroup_lag{") ||
			!strings.Contains(line, `consumergroup="`+group+`"`) || !strings.Contains(line, `topic="`+topic+`"`) {
			continue
		}
		_, rest, _ := strings.Cut(line, `partition="`)
		partition, _, _ := strings.Cut(rest, `"`)
		fields := strings.Fields(line)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		lag[partition] = n
	}
	return lag
}

func TestLagIsWhatKafkaSays(t *testing.T) {
	topic, group := newTopic(t, 3), unique("group")
	fill := func(n int) {
		for partition := range 3 {
			for range n {
				expect(t, 200, "POST", fmt.Sprintf("/topics/%s/records?partition=%d", topic, partition), "x")
			}
		}
	}
	check := func(when string, want map[string]float64) {
		t.Helper()
		if got := describedLag(t, group, topic); !maps.Equal(got, want) {
			t.Fatalf("%s: kafka-consumer-groups.sh says %v; this test expects %v", when, got, want)
		}
		// The monitor asks every 15 s.
		eventually(t, 40*time.Second, when+": kafka_consumergroup_lag", func() error {
			if got := monitoredLag(t, group, topic); !maps.Equal(got, want) {
				return fmt.Errorf("got %v; want %v, as kafka-consumer-groups.sh says", got, want)
			}
			return nil
		})
	}

	fill(10)
	s := openSession(t, group, "text", topic)
	s.read(t, 30)
	// Half of one partition, all of another, nothing of the third. What is committed is the
	// offset after the one that is named.
	expect(t, 200, "POST", s.url+"/offsets", fmt.Sprintf(
		`{"offsets":[{"topic":%[1]q,"partition":0,"offset":4},{"topic":%[1]q,"partition":1,"offset":9}]}`, topic),
		"Content-Type: "+v2)
	check("a group with a member", map[string]float64{"0": 5, "1": 0})

	expect(t, 204, "DELETE", s.url, "")
	fill(2)
	check("a group whose session is deleted", map[string]float64{"0": 7, "1": 2})

	var lag struct {
		Groups []struct {
			Group, State string
			Lag          int
		}
	}
	expect(t, 200, "GET", "/lag?group="+group, "").decode(t, &lag)
	if len(lag.Groups) != 1 || lag.Groups[0].Lag != 9 || lag.Groups[0].State != "Empty" {
		t.Errorf("GET /lag says %+v; want the group, Empty, with a lag of 9", lag.Groups)
	}
}
