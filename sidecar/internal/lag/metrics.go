package lag

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// The names and labels are kafka_exporter's, so that dashboards made for it work, but for
// lag_seconds, state and uncommitted_partitions, which it does not have.
var (
	brokersDesc = desc("kafka_brokers", "Brokers that are up.")

	partitionsDesc      = desc("kafka_topic_partitions", "Partitions of the topic.", "topic")
	currentOffsetDesc   = desc("kafka_topic_partition_current_offset", "Offset that the partition's next record will have (high watermark).", "topic", "partition")
	oldestOffsetDesc    = desc("kafka_topic_partition_oldest_offset", "Offset of the partition's first record.", "topic", "partition")
	leaderDesc          = desc("kafka_topic_partition_leader", "Id of the broker that leads the partition; -1 for none.", "topic", "partition")
	replicasDesc        = desc("kafka_topic_partition_replicas", "Replicas of the partition.", "topic", "partition")
	inSyncDesc          = desc("kafka_topic_partition_in_sync_replica", "Replicas of the partition that are in sync.", "topic", "partition")
	preferredDesc       = desc("kafka_topic_partition_leader_is_preferred", "1 where the leader is the partition's preferred broker, else 0.", "topic", "partition")
	underReplicatedDesc = desc("kafka_topic_partition_under_replicated_partition", "1 where a replica of the partition is not in sync, else 0.", "topic", "partition")

	membersDesc       = desc("kafka_consumergroup_members", "Members of the consumer group.", "consumergroup")
	stateDesc         = desc("kafka_consumergroup_state", "1 for the state that the consumer group is in; state is Kafka's word: Stable, Empty, PreparingRebalance, CompletingRebalance, Assigning, Reconciling, ….", "consumergroup", "state")
	committedDesc     = desc("kafka_consumergroup_current_offset", "Committed offset: the next one that the group will read.", "consumergroup", "topic", "partition")
	committedSumDesc  = desc("kafka_consumergroup_current_offset_sum", "Committed offsets of all partitions of the topic, added up.", "consumergroup", "topic")
	lagDesc           = desc("kafka_consumergroup_lag", "Records between the committed offset and the end of the partition.", "consumergroup", "topic", "partition")
	lagSumDesc        = desc("kafka_consumergroup_lag_sum", "Lag of all partitions of the topic, added up.", "consumergroup", "topic")
	lagSecondsDesc    = desc("kafka_consumergroup_lag_seconds", "Age of the oldest record of the partition that the group has not read; 0 when it has read all.", "consumergroup", "topic", "partition")
	uncommittedDesc   = desc("kafka_consumergroup_uncommitted_partitions", "Partitions that the group is to read and has never committed in; they have no lag.", "consumergroup", "topic")
	durationDesc      = desc("postamt_monitor_collect_duration_seconds", "How long the last look at all groups took.")
	lastCollectDesc   = desc("postamt_monitor_last_collect_timestamp_seconds", "When the last look at all groups succeeded, in Unix time; 0 before the first.")
	collectErrorsDesc = desc("postamt_monitor_collect_errors_total", "Looks at all groups that failed, or in which something was missing.")
)

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		brokersDesc, partitionsDesc, currentOffsetDesc, oldestOffsetDesc, leaderDesc, replicasDesc, inSyncDesc, preferredDesc, underReplicatedDesc,
		membersDesc, stateDesc, committedDesc, committedSumDesc, lagDesc, lagSumDesc, lagSecondsDesc, uncommittedDesc,
		durationDesc, lastCollectDesc, collectErrorsDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector: what the last look has shown, unless it is too old.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	s, duration, failed := c.snapshot, c.duration, c.errors
	c.mu.Unlock()

	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	ch <- prometheus.MustNewConstMetric(collectErrorsDesc, prometheus.CounterValue, float64(failed))
	gauge(durationDesc, duration.Seconds())
	if s == nil {
		gauge(lastCollectDesc, 0)
		return
	}
	gauge(lastCollectDesc, float64(s.CollectedAt.UnixMilli())/1000)
	// Half an interval more: a round that is due now is not missed yet.
	if c.now().Sub(s.CollectedAt) > missedRounds*c.interval+c.interval/2 {
		return
	}
	gauge(brokersDesc, float64(s.brokers))
	for _, t := range s.topics {
		t.collect(gauge)
	}
	for _, g := range s.Groups {
		g.collect(gauge)
	}
}

func (t topicState) collect(gauge func(*prometheus.Desc, float64, ...string)) {
	gauge(partitionsDesc, float64(len(t.Partitions)), t.Name)
	for _, p := range t.Partitions {
		number := strconv.Itoa(int(p.Number))
		gauge(leaderDesc, float64(p.Leader), t.Name, number)
		gauge(replicasDesc, float64(len(p.Replicas)), t.Name, number)
		gauge(inSyncDesc, float64(len(p.InSync)), t.Name, number)
		gauge(preferredDesc, oneIf(len(p.Replicas) > 0 && p.Leader == p.Replicas[0]), t.Name, number)
		gauge(underReplicatedDesc, oneIf(len(p.InSync) < len(p.Replicas)), t.Name, number)
	}
	for n, o := range t.offsets {
		number := strconv.Itoa(n)
		if o.End >= 0 {
			gauge(currentOffsetDesc, float64(o.End), t.Name, number)
		}
		if o.Start >= 0 {
			gauge(oldestOffsetDesc, float64(o.Start), t.Name, number)
		}
	}
}

func (g Group) collect(gauge func(*prometheus.Desc, float64, ...string)) {
	gauge(stateDesc, 1, g.Group, g.State)
	if g.Members >= 0 {
		gauge(membersDesc, float64(g.Members), g.Group)
	}
	for _, t := range g.Topics {
		if t.reads {
			gauge(uncommittedDesc, float64(t.Uncommitted), g.Group, t.Topic)
		}
		var offsets Count
		committed := false
		for _, p := range t.Partitions {
			number := strconv.Itoa(int(p.Partition))
			if p.Committed >= 0 {
				committed = true
				offsets += p.Committed
				gauge(committedDesc, float64(p.Committed), g.Group, t.Topic, number)
			}
			if p.Lag >= 0 {
				gauge(lagDesc, float64(p.Lag), g.Group, t.Topic, number)
				gauge(lagSecondsDesc, float64(p.LagSeconds), g.Group, t.Topic, number)
			}
		}
		if committed {
			gauge(committedSumDesc, float64(offsets), g.Group, t.Topic)
		}
		if t.Lag >= 0 {
			gauge(lagSumDesc, float64(t.Lag), g.Group, t.Topic)
		}
	}
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}
