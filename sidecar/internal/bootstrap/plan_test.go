package bootstrap

import (
	"slices"
	"strings"
	"testing"

	"postamt/sidecar/internal/event"
)

// existing is a topic on brokers 1 to replicas.
func existing(name string, partitions, replicas int) event.TopicState {
	t := event.TopicState{Topic: event.Topic{Name: name}}
	for n := range partitions {
		p := event.Partition{Number: int32(n), Leader: 1}
		for r := range replicas {
			p.Replicas = append(p.Replicas, int32(r+1))
		}
		t.Partitions = append(t.Partitions, p)
	}
	return t
}

func TestPlan(t *testing.T) {
	set := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	for name, test := range map[string]struct {
		declared Topic
		is       []event.TopicState
		set      map[string]string // on the declared topic
		want     []string          // action or drift, and detail
		refused  string
	}{
		"missing": {
			declared: Topic{Name: "a", Partitions: 3, Configs: set("retention.ms", "1000")},
			want:     []string{"create: 3 partitions, 1 replica, retention.ms = 1000"},
		},
		"as declared": {
			declared: Topic{Name: "a", Partitions: 3, Configs: set("retention.ms", "1000")},
			is:       []event.TopicState{existing("a", 3, 1)}, set: set("retention.ms", "1000"),
		},
		"as declared, in Kafka's spelling": {
			declared: Topic{Name: "a", Partitions: 1, Configs: set("cleanup.policy", "Compact, delete", "min.cleanable.dirty.ratio", "0.50", "segment.ms", "007")},
			is:       []event.TopicState{existing("a", 1, 1)}, set: set("cleanup.policy", "compact,delete", "min.cleanable.dirty.ratio", "0.5", "segment.ms", "7"),
		},
		"too few partitions": {
			declared: Topic{Name: "a", Partitions: 4},
			is:       []event.TopicState{existing("a", 3, 1)},
			want:     []string{"add partitions: partitions 3 → 4; later records of a key may be in another partition than its earlier ones"},
		},
		"too many partitions": {
			declared: Topic{Name: "a", Partitions: 2},
			is:       []event.TopicState{existing("a", 3, 1)},
			want:     []string{"drift: has 3 partitions, 2 declared; Kafka cannot remove any"},
		},
		"other replication": {
			declared: Topic{Name: "a", Partitions: 1, Replication: 3},
			is:       []event.TopicState{existing("a", 1, 1)},
			want:     []string{"drift: has 1 replica (partition 0), 3 declared; kafka-reassign-partitions.sh changes that"},
		},
		"other configs": {
			declared: Topic{Name: "a", Partitions: 1, Configs: set("retention.ms", "1000", "cleanup.policy", "compact")},
			is:       []event.TopicState{existing("a", 1, 1)}, set: set("retention.ms", "5", "segment.ms", "60000"),
			want: []string{"set: cleanup.policy = compact, retention.ms 5 → 1000", "drift: has segment.ms = 60000, which is not declared"},
		},
		"too few brokers": {
			declared: Topic{Name: "a", Partitions: 1, Replication: 3},
			refused:  "topic a is to have 3 replicas, and the cluster has 2 brokers: add brokers, or lower KAFKA_REPLICATION_FACTOR or the topic's replication",
		},
		"never writable": {
			declared: Topic{Name: "a", Partitions: 1, Configs: set("min.insync.replicas", "2")},
			refused:  "topic a is to have min.insync.replicas 2 and 1 replica: nothing could ever be written to it",
		},
		"beside a name that reads as its own": {
			declared: Topic{Name: "a.b", Partitions: 1},
			is:       []event.TopicState{existing("a_b", 1, 1)},
			refused:  "topic a.b cannot be made: Kafka has a_b, and takes the two for one name, since its metrics write '.' as '_'",
		},
		"dead letters of what the broker limits": {
			declared: Topic{Name: "s.dead-letters", Partitions: 1, DeadLettersOf: "s", Configs: set()},
			want:     []string{"create: 1 partition, 1 replica, max.message.bytes = 1065536"},
		},
	} {
		l := look{
			topics: []Topic{test.declared}, replication: 1, maxBytes: 1_000_000,
			cluster: event.ClusterState{Brokers: []int32{1, 2}, Topics: test.is},
			configs: map[string]map[string]string{test.declared.Name: test.set},
		}
		if source := test.declared.DeadLettersOf; source != "" {
			l.topics = append(l.topics, Topic{Name: source, Partitions: 1})
			l.cluster.Topics = append(l.cluster.Topics, existing(source, 1, 1))
		}
		plan, err := l.plan()
		if got := errText(err); got != test.refused {
			t.Errorf("%s: refused with %q, want %q", name, got, test.refused)
		}
		var got []string
		for _, c := range plan.Changes {
			got = append(got, c.action()+": "+c.Detail)
		}
		for _, d := range plan.Drift {
			got = append(got, "drift: "+d.Detail)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: plan is\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(test.want, "\n"))
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestDeadLettersTakeMoreThanTheirSource(t *testing.T) {
	for name, test := range map[string]struct {
		declared, set map[string]string
		want          string
	}{
		"declared":                       {map[string]string{"max.message.bytes": "5000"}, map[string]string{"max.message.bytes": "9000"}, "70536"},
		"set on the topic by hand":       {nil, map[string]string{"max.message.bytes": "9000"}, "74536"},
		"neither: what the broker takes": {nil, nil, "1065536"},
	} {
		letters := Topic{Name: "s.dead-letters", DeadLettersOf: "s"}
		letters.Configs = map[string]string{}
		l := look{
			topics: []Topic{{Name: "s", Configs: test.declared}, letters}, maxBytes: 1_000_000,
			configs: map[string]map[string]string{"s": test.set},
		}
		spec, err := l.spec(letters)
		if err != nil || spec.Configs["max.message.bytes"] != test.want {
			t.Errorf("%s: max.message.bytes is %s, %v; want %s", name, spec.Configs["max.message.bytes"], err, test.want)
		}
	}
}

func TestPlanIsATable(t *testing.T) {
	var b strings.Builder
	_, err := Plan{
		Topics: 2,
		Changes: []Change{
			{Topic: "test.voucher", Create: &event.TopicSpec{}, Detail: "3 partitions, 1 replica"},
			{Topic: "my-topic", Partitions: 3, Detail: "partitions 1 → 3"},
		},
		Drift: []Drift{{"my-topic", "has segment.ms = 5, which is not declared"}},
	}.WriteTo(&b)
	const want = `TOPIC         ACTION          DETAIL
test.voucher  create          3 partitions, 1 replica
my-topic      add partitions  partitions 1 → 3
my-topic      none (drift)    has segment.ms = 5, which is not declared

2 topics declared; 2 changes to make, 1 that differ and are left.
`
	if err != nil || b.String() != want {
		t.Errorf("the table is\n%s%v\nwant\n%s", b.String(), err, want)
	}
}
