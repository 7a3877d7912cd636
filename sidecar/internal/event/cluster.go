package event

// ClusterState is one look at a cluster's metadata.
type ClusterState struct {
	Brokers   []int32          // ids of the brokers that are up
	Addresses map[int32]string // of the brokers, as they tell their clients: host:port
	Topics    []TopicState     // every topic, Kafka's own among them, in order of the name
}

// TopicState is a topic as it is. Two topics of one name that lived one after the other
// differ in ID, which is all zero where the cluster gives none. Configs is not filled.
type TopicState struct {
	Topic
	ID [16]byte
}

// TopicSpec is a topic as it is to be.
type TopicSpec struct {
	Name        string
	Partitions  int
	Replication int
	Configs     map[string]string // what is set on the topic itself; the rest is the broker's default
	// Assignments are the brokers of each partition's replicas, the first being preferred as its leader.
	// With them Partitions and Replication are -1; nil: Kafka places the replicas.
	Assignments [][]int32
}

// ConfigChange sets one of a topic's settings, or takes it back to the broker's default.
type ConfigChange struct {
	Name  string
	Value *string // nil: back to the default
}

// OffsetRange is what a partition's log holds: the records from Start up to, not including,
// End, the high watermark or the last stable offset. Both are -1 where the partition could not be asked.
type OffsetRange struct {
	Start, End int64
}

// Position is an offset of a partition.
type Position struct {
	TopicPartition
	Offset int64
}

// GroupState is a consumer group: who is in it, and how far it has committed.
type GroupState struct {
	Name     string
	State    string // Kafka's word: Stable, Empty, PreparingRebalance, …
	Protocol string // classic, consumer or streams
	Members  int    // -1 where the group could not be described

	Subscribed []string                     // topics that a member asked for by name
	Assigned   map[string][]int32           // partitions that members have now
	Committed  map[string][]CommittedOffset // only what has been committed
}

// CommittedOffset is the next offset that a group will read in a partition.
type CommittedOffset struct {
	Partition int32
	Offset    int64
}
