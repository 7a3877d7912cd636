//go:build stack

package stacktest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// describedLag is the lag by partition that Kafka's own tool prints; "-" is left out.
func describedLag(t *testing.T, group, topic string) map[string]float64 {
	t.Helper()
	return lagIn(t, kafkaTool(t, "", "kafka-consumer-groups.sh", "--describe", "--group", group), group, topic)
}

func lagIn(t *testing.T, described, group, topic string) map[string]float64 {
	t.Helper()
	lag := make(map[string]float64)
	for line := range strings.Lines(described) {
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
	return monitored(t, "kafka_consumergroup_lag", "partition", `consumergroup="`+group+`"`, `topic="`+topic+`"`)
}

// monitored is a metric of the monitor by one of its labels, of those series that have the others.
func monitored(t *testing.T, name, by string, with ...string) map[string]float64 {
	t.Helper()
	values := make(map[string]float64)
	for line := range strings.Lines(metrics(t, containers(t, "monitor")[0])) {
		if !strings.HasPrefix(line, name+"{") || slices.ContainsFunc(with, func(label string) bool { return !strings.Contains(line, label) }) {
			continue
		}
		_, rest, _ := strings.Cut(line, by+`="`)
		value, _, _ := strings.Cut(rest, `"`)
		fields := strings.Fields(line)
		n, err := strconv.ParseFloat(fields[len(fields)-1], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		values[value] = n
	}
	return values
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
		eventually(t, time.Minute, when+": kafka_consumergroup_lag", func() error {
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

// What the monitor exports of groups of both protocols, while they have members and after, is what
// Kafka's own tool says.
func TestGroupsOfBothProtocols(t *testing.T) {
	topic := newTopic(t, 3)
	groups := make(map[string]string) // by protocol
	var members []*kgo.Client
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for protocol, opts := range map[string][]kgo.Opt{"classic": nil, "consumer": {kgo.ServerSideBalancer()}} {
		groups[protocol] = unique(protocol)
		member, err := kgo.NewClient(append(opts, kgo.SeedBrokers(project.broker), kgo.Balancers(kgo.RangeBalancer()),
			kgo.ConsumerGroup(groups[protocol]), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
			kgo.DisableAutoCommit(), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			t.Fatal(err)
		}
		defer member.Close()
		members = append(members, member)
	}
	for n := range int32(30) {
		if err := members[0].ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: n % 3}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for _, member := range members {
		for read := 0; read < 30; {
			read += member.PollFetches(ctx).NumRecords()
			if err := ctx.Err(); err != nil {
				t.Fatalf("%d of 30 records were read: %v", read, err)
			}
		}
		// Half of one partition, all of another, nothing of the third.
		half := &kgo.Record{Topic: topic, Partition: 0, Offset: 4, LeaderEpoch: -1}
		if err := member.CommitRecords(ctx, half, &kgo.Record{Topic: topic, Partition: 1, Offset: 9, LeaderEpoch: -1}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(state, count string, uncommitted map[string]float64) {
		t.Helper()
		want := map[string]float64{"0": 5, "1": 0}
		both := []string{"--describe", "--group", groups["classic"], "--group", groups["consumer"]}
		described := kafkaTool(t, "", "kafka-consumer-groups.sh", both...)
		states := kafkaTool(t, "", "kafka-consumer-groups.sh", append(both, "--state")...)
		for protocol, group := range groups {
			// … STATE #MEMBERS
			if said := regexp.MustCompile(`(?m)^` + group + `\s.*\s(\S+)\s+(\d+)\s*$`).FindStringSubmatch(states); said == nil || said[1] != state || said[2] != count {
				t.Fatalf("Kafka's tool says %q of %s; this test expects %s with %s members, in\n%s", said, group, state, count, states)
			}
			if lag := lagIn(t, described, group, topic); !maps.Equal(lag, want) {
				t.Fatalf("Kafka's tool says that the lag is %v; this test expects %v", lag, want)
			}
			of := `consumergroup="` + group + `"`
			eventually(t, time.Minute, "the monitor says the same", func() error {
				lag := monitoredLag(t, group, topic)
				is := monitored(t, "kafka_consumergroup_state", "state", of, `protocol="`+protocol+`"`)
				members := monitored(t, "kafka_consumergroup_members", "consumergroup", of)
				left := monitored(t, "kafka_consumergroup_uncommitted_partitions", "topic", of)
				if !maps.Equal(lag, want) || len(is) != 1 || is[state] != 1 || fmt.Sprint(members[group]) != count || !maps.Equal(left, uncommitted) {
					return fmt.Errorf("%s: lag %v, state %v, members %v, partitions without a commit %v; want %v, %s, %s, %v", protocol, lag, is, members, left, want, state, count, uncommitted)
				}
				return nil
			})
		}
	}
	check("Stable", "1", map[string]float64{topic: 1})
	for _, member := range members {
		member.Close()
	}
	check("Empty", "0", map[string]float64{}) // as long as its offsets live
}

// recorded is what Prometheus has recorded for the lag dashboard of a group and topic.
func recorded(t *testing.T, group, topic string) (records, seconds float64, err error) {
	t.Helper()
	get := func(name string) float64 {
		var in struct {
			Result []struct{ Value [2]any }
		}
		failed := prometheus(t, "query", url.Values{"query": {fmt.Sprintf("%s{consumergroup=%q, topic=%q}", name, group, topic)}}, &in)
		switch {
		case failed != nil:
			err = errors.Join(err, failed)
		case len(in.Result) != 1:
			err = errors.Join(err, fmt.Errorf("%d series %s", len(in.Result), name))
		default:
			text, _ := in.Result[0].Value[1].(string)
			n, failed := strconv.ParseFloat(text, 64)
			err = errors.Join(err, failed)
			return n
		}
		return math.NaN()
	}
	return get("consumergroup_topic:kafka_consumergroup_lag:sum"), get("consumergroup_topic:kafka_consumergroup_lag_seconds:max"), err
}

// Within 30 s of the end of a web shop the lag dashboard shows that its group falls behind, and then
// by how many records and seconds.
func TestAStoppedWebShopFallsBehindOnTheDashboard(t *testing.T) {
	const topic, within = "test.voucher", 30 * time.Second
	d := startDemo(t)
	d.rate(5)
	shop := containers(t, "webshop")[0]
	started := false
	start := func() {
		if !started {
			docker(t, "start", shop)
			awaitServers(t, "webshop", 1)
			started = true
		}
	}
	t.Cleanup(start)
	d.sold(10)
	var group string
	eventually(t, time.Minute, "the web shop's group is on the dashboard, with next to no lag", func() error {
		for name := range monitored(t, "kafka_consumergroup_lag_sum", "consumergroup", `topic="`+topic+`"`) {
			if strings.HasPrefix(name, "postamt.demo.") {
				group = name
			}
		}
		if records, seconds, err := recorded(t, group, topic); err != nil || records > 10 || seconds > 5 {
			return fmt.Errorf("group %q is at %v records, %v s: %w", group, records, seconds, err)
		}
		return nil
	})

	docker(t, "kill", "--signal", "KILL", shop)
	killed := time.Now()
	// At 5 a second, more than can be on their way.
	eventually(t, within, "the dashboard shows that the web shop's group falls behind", func() error {
		if records, seconds, err := recorded(t, group, topic); err != nil || records < 11 || seconds < 3 {
			return fmt.Errorf("it shows %v records, %v s: %w", records, seconds, err)
		}
		return nil
	})
	t.Logf("shown after %v", time.Since(killed).Round(time.Second))

	d.rate(0) // from here on the truth holds still
	eventually(t, time.Minute, "the dashboard shows the records and seconds that the group is behind", func() error {
		want := 0.0
		for _, n := range describedLag(t, group, topic) {
			want += n
		}
		records, seconds, err := recorded(t, group, topic)
		if err != nil || records != want {
			return fmt.Errorf("it shows %v records, Kafka's tool %v: %w", records, want, err)
		}
		age := time.Since(oldestUnread(t, group, topic)).Seconds()
		if seconds > age+1 || seconds < age-within.Seconds() {
			t.Errorf("it shows %v s; the oldest unread record is %.1f s old", seconds, age)
		}
		t.Logf("%v records, %v s of %.1f s", records, seconds, age)
		return nil
	})

	start()
	d.settle(2 * time.Minute)
	eventually(t, time.Minute, "the dashboard shows that the group has caught up", func() error {
		if records, seconds, err := recorded(t, group, topic); err != nil || records != 0 || seconds != 0 {
			return fmt.Errorf("it shows %v records, %v s: %w", records, seconds, err)
		}
		return nil
	})
}

// oldestUnread is the time of the oldest record of a topic that a group has not committed.
func oldestUnread(t *testing.T, group, topic string) time.Time {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(project.broker))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	lags, err := kadm.NewClient(client).Lag(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	from := make(map[int32]kgo.Offset)
	for _, l := range lags[group].Lag[topic] {
		if l.Lag > 0 {
			from[l.Partition] = kgo.NewOffset().At(l.Commit.At)
		}
	}
	if err := lags.Error(); err != nil || len(from) == 0 {
		t.Fatalf("nothing is unread: %v", err)
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(project.broker), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	oldest := time.Now()
	for len(from) > 0 && ctx.Err() == nil {
		reader.PollFetches(ctx).EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) > 0 {
				if at := p.Records[0].Timestamp; at.Before(oldest) {
					oldest = at
				}
				delete(from, p.Partition)
			}
		})
	}
	return oldest
}
