package lag

import (
	"bufio"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// family is a metric of the cluster. All of them are gauges.
type family struct {
	name, help string
	labels     []string
	write      func(w *writer, s *Snapshot)
}

// The names and labels are kafka_exporter's, so that dashboards made for it work, but for
// lag_seconds, state and uncommitted_partitions, which it does not have.
var families = []family{
	{"kafka_brokers", "Brokers that are up.", nil, func(w *writer, s *Snapshot) { w.sample(float64(len(s.brokers))) }},
	{"kafka_broker_info", "Always 1; the labels say which brokers are up, and where.", []string{"id", "address"}, func(w *writer, s *Snapshot) {
		for _, id := range s.brokers {
			w.of("id", strconv.Itoa(int(id)), "address", s.addresses[id])
			w.sample(1)
		}
	}},

	ofTopics("kafka_topic_partitions", "Partitions of the topic.", func(w *writer, t topicState) { w.sample(float64(len(t.Partitions))) }, "topic"),
	ofTopics("kafka_topic_partition_current_offset", "Offset that the partition's next record will have (high watermark).", func(w *writer, t topicState) {
		for n, o := range t.offsets {
			if o.End >= 0 {
				w.partition(n, float64(o.End), "")
			}
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_oldest_offset", "Offset of the partition's first record.", func(w *writer, t topicState) {
		for n, o := range t.offsets {
			if o.Start >= 0 {
				w.partition(n, float64(o.Start), "")
			}
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_leader", "Id of the broker that leads the partition; -1 for none.", func(w *writer, t topicState) {
		for _, p := range t.Partitions {
			w.partition(int(p.Number), float64(p.Leader), "")
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_replicas", "Replicas of the partition.", func(w *writer, t topicState) {
		for _, p := range t.Partitions {
			w.partition(int(p.Number), float64(len(p.Replicas)), "")
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_in_sync_replica", "Replicas of the partition that are in sync.", func(w *writer, t topicState) {
		for _, p := range t.Partitions {
			w.partition(int(p.Number), float64(len(p.InSync)), "")
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_leader_is_preferred", "1 where the leader is the partition's preferred broker, else 0.", func(w *writer, t topicState) {
		for _, p := range t.Partitions {
			w.partition(int(p.Number), oneIf(len(p.Replicas) > 0 && p.Leader == p.Replicas[0]), "")
		}
	}, "topic", "partition"),
	ofTopics("kafka_topic_partition_under_replicated_partition", "1 where a replica of the partition is not in sync, else 0.", func(w *writer, t topicState) {
		for _, p := range t.Partitions {
			w.partition(int(p.Number), oneIf(len(p.InSync) < len(p.Replicas)), "")
		}
	}, "topic", "partition"),

	{"kafka_consumergroup_members", "Members of the consumer group. Kafka does not tell those of streams groups.", []string{"consumergroup"}, func(w *writer, s *Snapshot) {
		for _, g := range s.Groups {
			if w.of("consumergroup", g.Group); g.Members >= 0 {
				w.sample(float64(g.Members))
			}
		}
	}},
	{
		"kafka_consumergroup_state", "1 for the state that the consumer group is in. state is Kafka's word: Stable, Empty, PreparingRebalance, CompletingRebalance, Assigning, Reconciling, …; protocol: classic, consumer, streams.",
		[]string{"consumergroup", "state", "protocol"}, func(w *writer, s *Snapshot) {
			for _, g := range s.Groups {
				w.of("consumergroup", g.Group, "state", g.State, "protocol", g.Protocol)
				w.sample(1)
			}
		},
	},
	ofReads("kafka_consumergroup_current_offset", "Committed offset: the next one that the group will read.", func(w *writer, t Topic) {
		for _, p := range t.Partitions {
			if p.Committed >= 0 {
				w.partition(int(p.Partition), float64(p.Committed), "")
			}
		}
	}, "partition"),
	ofReads("kafka_consumergroup_current_offset_sum", "Committed offsets of all partitions of the topic, added up.", func(w *writer, t Topic) {
		sum, committed := Count(0), false
		for _, p := range t.Partitions {
			if p.Committed >= 0 {
				sum, committed = sum+p.Committed, true
			}
		}
		if committed {
			w.sample(float64(sum))
		}
	}),
	ofReads("kafka_consumergroup_lag", "Records between the committed offset and the end of the partition.", func(w *writer, t Topic) {
		for _, p := range t.Partitions {
			if p.Lag >= 0 {
				w.partition(int(p.Partition), float64(p.Lag), "")
			}
		}
	}, "partition"),
	ofReads("kafka_consumergroup_lag_sum", "Lag of all partitions of the topic, added up.", func(w *writer, t Topic) {
		if t.Lag >= 0 {
			w.sample(float64(t.Lag))
		}
	}),
	ofReads(
		"kafka_consumergroup_lag_seconds", "Age of the oldest record of the partition that the group has not read; 0 when it has read all. estimated is true, and else not there, where the age is not known to within two rounds.",
		func(w *writer, t Topic) {
			for _, p := range t.Partitions {
				switch {
				case p.LagSeconds < 0:
				case p.Estimated:
					w.partition(int(p.Partition), float64(p.LagSeconds), `,estimated="true"`)
				default:
					w.partition(int(p.Partition), float64(p.LagSeconds), "")
				}
			}
		}, "partition", "estimated",
	),
	ofReads("kafka_consumergroup_uncommitted_partitions", "Partitions that the group is to read and has never committed in; they have no lag.", func(w *writer, t Topic) {
		if t.reads {
			w.sample(float64(t.Uncommitted))
		}
	}),
}

func ofTopics(name, help string, write func(*writer, topicState), labels ...string) family {
	return family{name, help, labels, func(w *writer, s *Snapshot) {
		for _, t := range s.topics {
			w.of("topic", t.Name)
			write(w, t)
		}
	}}
}

// ofReads is a family with a sample, or one of each partition, of what a group reads of a topic.
func ofReads(name, help string, write func(*writer, Topic), more ...string) family {
	return family{name, help, append([]string{"consumergroup", "topic"}, more...), func(w *writer, s *Snapshot) {
		for _, g := range s.Groups {
			for _, t := range g.Topics {
				w.of("consumergroup", g.Group, "topic", t.Topic)
				write(w, t)
			}
		}
	}}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// The monitor's own, which are registered as usual.
var (
	durationDesc      = prometheus.NewDesc("postamt_monitor_collect_duration_seconds", "How long the last look at all groups took.", nil, nil)
	lastCollectDesc   = prometheus.NewDesc("postamt_monitor_last_collect_timestamp_seconds", "When the last look at all groups succeeded, in Unix time; 0 before the first.", nil, nil)
	collectErrorsDesc = prometheus.NewDesc("postamt_monitor_collect_errors_total", "Looks at all groups that failed, or in which something was missing.", nil, nil)
)

// Describe implements prometheus.Collector. It names what WriteMetrics writes, too, so that
// nobody else registers it.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range families {
		ch <- prometheus.NewDesc(f.name, f.help, f.labels, nil)
	}
	ch <- durationDesc
	ch <- lastCollectDesc
	ch <- collectErrorsDesc
}

// Collect implements prometheus.Collector, for what is the monitor's own.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	s, duration, failed := c.snapshot, c.duration, c.errors
	c.mu.Unlock()
	last := 0.0
	if s != nil {
		last = float64(s.CollectedAt.UnixMilli()) / 1000
	}
	ch <- prometheus.MustNewConstMetric(collectErrorsDesc, prometheus.CounterValue, float64(failed))
	ch <- prometheus.MustNewConstMetric(durationDesc, prometheus.GaugeValue, duration.Seconds())
	ch <- prometheus.MustNewConstMetric(lastCollectDesc, prometheus.GaugeValue, last)
}

// WriteMetrics writes what the last look has shown, unless it is too old, as Prometheus' text
// and OpenMetrics have it in common. 200 groups × 1,000 partitions are 600,000 series: as values
// for a registry they would take 500 MB and the longer part of an interval (BenchmarkScrape).
func (c *Collector) WriteMetrics(out io.Writer) error {
	c.mu.Lock()
	s := c.snapshot
	c.mu.Unlock()
	if s == nil || c.now().Sub(s.CollectedAt) > c.staleAfter() {
		return nil
	}
	w := writer{Writer: bufio.NewWriterSize(out, 64<<10)}
	for _, f := range families {
		w.begin(f)
		f.write(&w, s)
	}
	return w.Flush()
}

// writer writes samples, those of a family one after the other. Its Flush tells the first error.
type writer struct {
	*bufio.Writer
	name   string
	labels []byte // what the samples to come have in common
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func (w *writer) begin(f family) {
	w.name, w.labels = f.name, w.labels[:0]
	for _, line := range []string{"# HELP " + f.name + " " + helpEscapes.Replace(f.help), "# TYPE " + f.name + " gauge"} {
		_, _ = w.WriteString(line)
		_ = w.WriteByte('\n')
	}
}

// of gives names and values of labels, in turn. What is in them is Kafka's to say: any text.
func (w *writer) of(labels ...string) {
	w.labels = w.labels[:0]
	for i := 0; i < len(labels); i += 2 {
		if i > 0 {
			w.labels = append(w.labels, ',')
		}
		w.labels = append(append(w.labels, labels[i]...), `="`...)
		w.labels = append(append(w.labels, labelEscapes.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD"))...), '"')
	}
}

func (w *writer) sample(value float64) {
	b := append(w.AvailableBuffer(), w.name...)
	if len(w.labels) > 0 {
		b = append(append(append(b, '{'), w.labels...), '}')
	}
	w.end(b, value)
}

// partition is a sample with the label partition, and more labels.
func (w *writer) partition(number int, value float64, more string) {
	b := append(append(append(w.AvailableBuffer(), w.name...), '{'), w.labels...)
	b = strconv.AppendInt(append(b, `,partition="`...), int64(number), 10)
	w.end(append(append(append(b, '"'), more...), '}'), value)
}

func (w *writer) end(b []byte, value float64) {
	b = append(b, ' ')
	if whole := math.Trunc(value); whole == value && math.Abs(value) < 1<<53 {
		b = strconv.AppendInt(b, int64(whole), 10)
	} else {
		b = strconv.AppendFloat(b, value, 'f', -1, 64)
	}
	_, _ = w.Write(append(b, '\n'))
}
