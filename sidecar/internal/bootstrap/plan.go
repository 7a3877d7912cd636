package bootstrap

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"postamt/sidecar/internal/event"
)

// deadLetterExtraBytes is what a dead letter may be larger than its record: the headers that
// say where it came from and why it was given up.
const deadLetterExtraBytes = 64 << 10

// Plan is what differs between the topics that are declared and those that are.
type Plan struct {
	Topics  int // declared
	Changes []Change
	Drift   []Drift
}

// Change is one request to Kafka. What it does is one of Create, Partitions and Configs.
type Change struct {
	Topic      string
	Create     *event.TopicSpec
	Partitions int               // the new number
	Configs    map[string]string // to set
	Detail     string            // for people
}

// Drift is a difference that is reported and left, since to remove it would lose records or
// move them between brokers.
type Drift struct {
	Topic, Detail string
}

// look is what a plan is made from.
type look struct {
	topics      []Topic // declared
	replication int     // where a topic does not say
	cluster     event.ClusterState
	configs     map[string]map[string]string // set on the declared topics that exist
	maxBytes    int                          // message.max.bytes, where a topic does not say
}

// plan compares. An error says which declared topics this cluster cannot have, and why.
func (l look) plan() (Plan, error) {
	plan := Plan{Topics: len(l.topics)}
	existing := make(map[string]event.TopicState, len(l.cluster.Topics))
	byKey := make(map[string]string, len(l.cluster.Topics))
	for _, t := range l.cluster.Topics {
		existing[t.Name] = t
		byKey[collisionKey(t.Name)] = t.Name
	}
	var refused []error
	for _, t := range l.topics {
		spec, err := l.spec(t)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		is, exists := existing[t.Name]
		if exists {
			l.compare(&plan, spec, is)
			continue
		}
		if other, taken := byKey[collisionKey(t.Name)]; taken {
			refused = append(refused, fmt.Errorf("topic %s cannot be made: Kafka has %s, and takes the two for one name, since its metrics write '.' as '_'", t.Name, other))
			continue
		}
		if err := l.possible(spec); err != nil {
			refused = append(refused, err)
			continue
		}
		plan.Changes = append(plan.Changes, Change{Topic: t.Name, Create: &spec, Detail: describe(spec)})
	}
	return plan, errors.Join(refused...)
}

// spec completes a declared topic with what depends on the cluster.
func (l look) spec(t Topic) (event.TopicSpec, error) {
	spec := event.TopicSpec{Name: t.Name, Partitions: t.Partitions, Replication: cmp.Or(t.Replication, l.replication), Configs: t.Configs}
	if t.DeadLettersOf == "" {
		return spec, nil
	}
	limit := l.configs[t.DeadLettersOf][configMaxBytes] // set by hand, and left
	for _, source := range l.topics {
		if source.Name == t.DeadLettersOf {
			limit = cmp.Or(source.Configs[configMaxBytes], limit, strconv.Itoa(l.maxBytes))
		}
	}
	n, err := strconv.Atoi(limit)
	if err != nil {
		return spec, fmt.Errorf("topic %s has %s %q, which is no number", t.DeadLettersOf, configMaxBytes, limit)
	}
	spec.Configs = maps.Clone(t.Configs)
	spec.Configs[configMaxBytes] = strconv.Itoa(n + deadLetterExtraBytes)
	return spec, nil
}

// possible refuses what Kafka would refuse, or would take and then never let anyone write to.
func (l look) possible(spec event.TopicSpec) error {
	if brokers := len(l.cluster.Brokers); spec.Replication > brokers {
		return fmt.Errorf("topic %s is to have %d replicas, and the cluster has %s: add brokers, or lower KAFKA_REPLICATION_FACTOR or the topic's replication",
			spec.Name, spec.Replication, count(brokers, "broker"))
	}
	if n, _ := strconv.Atoi(spec.Configs[configInSync]); n > spec.Replication {
		return fmt.Errorf("topic %s is to have %s %d and %s: nothing could ever be written to it",
			spec.Name, configInSync, n, count(spec.Replication, "replica"))
	}
	return nil
}

func (l look) compare(plan *Plan, spec event.TopicSpec, is event.TopicState) {
	drift := func(format string, args ...any) {
		plan.Drift = append(plan.Drift, Drift{spec.Name, fmt.Sprintf(format, args...)})
	}
	switch have := len(is.Partitions); {
	case spec.Partitions > have:
		plan.Changes = append(plan.Changes, Change{Topic: spec.Name, Partitions: spec.Partitions,
			Detail: fmt.Sprintf("partitions %d → %d; later records of a key may be in another partition than its earlier ones", have, spec.Partitions)})
	case spec.Partitions < have:
		drift("has %d partitions, %d declared; Kafka cannot remove any", have, spec.Partitions)
	}
	for _, p := range is.Partitions {
		if len(p.Replicas) != spec.Replication {
			drift("has %s (partition %d), %d declared; kafka-reassign-partitions.sh changes that", count(len(p.Replicas), "replica"), p.Number, spec.Replication)
			break
		}
	}
	set := l.configs[spec.Name]
	alter := make(map[string]string)
	var details []string
	for _, name := range slices.Sorted(maps.Keys(spec.Configs)) {
		want := spec.Configs[name]
		have, ok := set[name]
		switch {
		case ok && sameValue(have, want):
			continue
		case ok:
			details = append(details, fmt.Sprintf("%s %s → %s", name, have, want))
		default:
			details = append(details, fmt.Sprintf("%s = %s", name, want))
		}
		alter[name] = want
	}
	if len(alter) > 0 {
		plan.Changes = append(plan.Changes, Change{Topic: spec.Name, Configs: alter, Detail: strings.Join(details, ", ")})
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if _, declared := spec.Configs[name]; !declared {
			drift("has %s = %s, which is not declared", name, set[name])
		}
	}
}

// sameValue compares as Kafka does, which writes what it was given in a form of its own:
// "0.50" comes back as "0.5", "compact, delete" as "compact,delete".
func sameValue(a, b string) bool {
	if a == b {
		return true
	}
	x, errX := strconv.ParseInt(strings.TrimSpace(a), 10, 64)
	y, errY := strconv.ParseInt(strings.TrimSpace(b), 10, 64)
	if errX == nil && errY == nil {
		return x == y
	}
	f, errF := strconv.ParseFloat(strings.TrimSpace(a), 64)
	g, errG := strconv.ParseFloat(strings.TrimSpace(b), 64)
	if errF == nil && errG == nil {
		return f == g
	}
	return words(a) == words(b)
}

func words(list string) string {
	parts := strings.Split(strings.ToLower(list), ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return strings.Join(parts, ",")
}

func describe(spec event.TopicSpec) string {
	parts := []string{count(spec.Partitions, "partition"), count(spec.Replication, "replica")}
	for _, name := range slices.Sorted(maps.Keys(spec.Configs)) {
		parts = append(parts, name+" = "+spec.Configs[name])
	}
	return strings.Join(parts, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c Change) action() string {
	switch {
	case c.Create != nil:
		return "create"
	case c.Partitions > 0:
		return "add partitions"
	}
	return "set"
}

// WriteTo writes the plan as a table for people.
func (p Plan) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	if len(p.Changes)+len(p.Drift) > 0 {
		var rows strings.Builder
		rows.WriteString("TOPIC\tACTION\tDETAIL\n")
		for _, c := range p.Changes {
			fmt.Fprintf(&rows, "%s\t%s\t%s\n", c.Topic, c.action(), c.Detail)
		}
		for _, d := range p.Drift {
			fmt.Fprintf(&rows, "%s\tnone (drift)\t%s\n", d.Topic, d.Detail)
		}
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = io.WriteString(t, rows.String()) // into memory
		_ = t.Flush()
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s declared; %s to make, %d that differ and are left.\n", count(p.Topics, "topic"), count(len(p.Changes), "change"), len(p.Drift))
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}
