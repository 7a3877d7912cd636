package event

// Group is a consumer group with its members.
type Group struct {
	GroupState
	Assignor    string // the name of the strategy that assigns partitions; "" where there is none yet
	Coordinator int32  // the broker that the group is kept at; -1 where it is not known
	List        []GroupMember
}

// GroupMember is a member of a consumer group.
type GroupMember struct {
	ID       string
	Instance string // group.instance.id; "" of a dynamic member
	Client   string
	Assigned map[string][]int32
}

// PartitionLag is how far a group is behind in a partition that it reads or has committed in.
type PartitionLag struct {
	TopicPartition
	Committed, End, Lag int64   // -1 where it is not known; of Committed and Lag: never committed
	Seconds             float64 // age of the oldest record that is not read; -1 where it is not known
}

// TopicConfig is one setting of a topic as it is in force.
type TopicConfig struct {
	Name      string
	Value     *string // nil where it has none, and of a sensitive one
	Source    string  // Kafka's word: DEFAULT_CONFIG, DYNAMIC_TOPIC_CONFIG, …
	ReadOnly  bool
	Sensitive bool
	Synonyms  []ConfigSynonym
}

// ConfigSynonym is where a setting's value can come from, the first being in force.
type ConfigSynonym struct {
	Name   string
	Value  *string
	Source string
}
