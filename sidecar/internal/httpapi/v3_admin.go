package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"postamt/sidecar/internal/event"
)

// Admin answers and changes what v3 shows of topics and groups. Its errors are event.Errors.
type Admin interface {
	Cluster(ctx context.Context) (event.ClusterState, error)
	ConfigsOf(ctx context.Context, topic string) ([]event.TopicConfig, error)
	ListGroups(ctx context.Context) ([]event.Group, error)
	Group(ctx context.Context, name string) (event.Group, error)
	CheckNewTopic(ctx context.Context, spec event.TopicSpec) error
	CreateTopic(ctx context.Context, spec event.TopicSpec) error
	SetPartitions(ctx context.Context, topic string, n int) error
	DeleteTopic(ctx context.Context, topic string) error
	ChangeConfigs(ctx context.Context, topic string, changes []event.ConfigChange, validateOnly bool) error
}

// metadata is of every resource and list of v3.
type metadata struct {
	Self         string  `json:"self"`
	ResourceName string  `json:"resource_name,omitempty"`
	Next         *string `json:"next,omitempty"`
}

type link struct {
	Related string `json:"related"`
}

// resource is one thing with a URL: its kind, its metadata and its members.
type resource map[string]any

// resource makes a resource of kind Kafka…; path is below the cluster's URL, name its parts as
// Kafka's resource names have them.
func (c cluster) resource(kind, path, name string, members resource) resource {
	members["kind"] = "Kafka" + kind
	members["metadata"] = metadata{Self: c.base + path, ResourceName: "crn:///kafka=" + c.id + name}
	members["cluster_id"] = c.id
	return members
}

func (c cluster) link(path string) link { return link{c.base + path} }

func (s *Server) writeList(w http.ResponseWriter, r *http.Request, kind, self string, data []resource) {
	if data == nil {
		data = []resource{}
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", resource{
		"kind": "Kafka" + kind + "List", "data": data,
		"metadata": struct {
			Self string  `json:"self"`
			Next *string `json:"next"` // always null: a list is whole
		}{self, nil},
	})
}

func (s *Server) writeResource(w http.ResponseWriter, r *http.Request, res resource) error {
	s.writeJSON(w, r, http.StatusOK, "application/json", res)
	return nil
}

func escape(segment string) string { return url.PathEscape(segment) }

func clusterResource(c cluster) resource {
	return c.resource("Cluster", "", "", resource{"brokers": c.link("/brokers"), "topics": c.link("/topics"), "consumer_groups": c.link("/consumer-groups")})
}

// listClusters serves GET /v3/clusters: the one that there is. Clients learn its id here.
func (s *Server) listClusters(w http.ResponseWriter, r *http.Request) error {
	c, err := s.cluster(r)
	if err != nil {
		return err
	}
	s.writeList(w, r, "Cluster", s.baseURL(r)+"/v3/clusters", []resource{clusterResource(c)})
	return nil
}

// getCluster serves GET /v3/clusters/{cluster}.
func (s *Server) getCluster(w http.ResponseWriter, r *http.Request, c cluster) error {
	return s.writeResource(w, r, clusterResource(c))
}

func brokerResource(c cluster, id int32) resource {
	number := strconv.Itoa(int(id))
	// Its address is of no use to a client of HTTP, and not for everyone.
	return c.resource("Broker", "/brokers/"+number, "/broker="+number, resource{"broker_id": id})
}

// listBrokersV3 serves GET /v3/clusters/{cluster}/brokers.
func (s *Server) listBrokersV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	ids, err := s.Topics.Brokers(r.Context())
	if err != nil {
		return err
	}
	var data []resource
	for _, id := range ids {
		data = append(data, brokerResource(c, id))
	}
	s.writeList(w, r, "Broker", c.base+"/brokers", data)
	return nil
}

// getBrokerV3 serves GET /v3/clusters/{cluster}/brokers/{broker}.
func (s *Server) getBrokerV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	ids, err := s.Topics.Brokers(r.Context())
	if err != nil {
		return err
	}
	for _, id := range ids {
		if strconv.Itoa(int(id)) == r.PathValue("broker") {
			return s.writeResource(w, r, brokerResource(c, id))
		}
	}
	return event.Errorf(event.NotFound, codeUnknownV3, "v3", "there is no broker %q that is up", r.PathValue("broker"))
}

func topicResource(c cluster, t event.Topic) resource {
	path := "/topics/" + escape(t.Name)
	replicas := 0
	if len(t.Partitions) > 0 {
		replicas = len(t.Partitions[0].Replicas)
	}
	return c.resource("Topic", path, "/topic="+t.Name, resource{
		"topic_name": t.Name, "is_internal": false, "replication_factor": replicas, "partitions_count": len(t.Partitions),
		"partitions": c.link(path + "/partitions"), "configs": c.link(path + "/configs"),
	})
}

// listTopicsV3 serves GET /v3/clusters/{cluster}/topics.
func (s *Server) listTopicsV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	state, err := s.Admin.Cluster(r.Context())
	if err != nil {
		return err
	}
	var data []resource
	for _, t := range state.Topics {
		if !event.Own(t.Name) {
			data = append(data, topicResource(c, t.Topic))
		}
	}
	s.writeList(w, r, "Topic", c.base+"/topics", data)
	return nil
}

// getTopicV3 serves GET /v3/clusters/{cluster}/topics/{topic}: 404/40403 when there is none.
func (s *Server) getTopicV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	t, err := s.Topics.Topic(r.Context(), r.PathValue("topic"))
	if err != nil {
		return err
	}
	return s.writeResource(w, r, topicResource(c, t))
}

func configResource(c cluster, topic string, config event.TopicConfig) resource {
	synonyms := []resource{}
	for _, s := range config.Synonyms {
		synonyms = append(synonyms, resource{"name": s.Name, "value": s.Value, "source": s.Source})
	}
	return c.resource("TopicConfig", "/topics/"+escape(topic)+"/configs/"+escape(config.Name), "/topic="+topic+"/config="+config.Name, resource{
		"topic_name": topic, "name": config.Name, "value": config.Value, "source": config.Source, "synonyms": synonyms,
		"is_default": config.Source != "DYNAMIC_TOPIC_CONFIG", "is_read_only": config.ReadOnly, "is_sensitive": config.Sensitive,
	})
}

// listConfigs serves GET …/topics/{topic}/configs. A sensitive setting has no value.
func (s *Server) listConfigs(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic := r.PathValue("topic")
	configs, err := s.Admin.ConfigsOf(r.Context(), topic)
	if err != nil {
		return err
	}
	var data []resource
	for _, config := range configs {
		data = append(data, configResource(c, topic, config))
	}
	s.writeList(w, r, "TopicConfig", c.base+"/topics/"+escape(topic)+"/configs", data)
	return nil
}

// getConfig serves GET …/topics/{topic}/configs/{name}.
func (s *Server) getConfig(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic, name := r.PathValue("topic"), r.PathValue("name")
	configs, err := s.Admin.ConfigsOf(r.Context(), topic)
	if err != nil {
		return err
	}
	for _, config := range configs {
		if config.Name == name {
			return s.writeResource(w, r, configResource(c, topic, config))
		}
	}
	return event.Errorf(event.NotFound, codeUnknownV3, "v3", "topic %q has no setting %q", topic, name)
}

func partitionPath(topic string, n int32) (path, name string) {
	number := strconv.Itoa(int(n))
	return "/topics/" + escape(topic) + "/partitions/" + number, "/topic=" + topic + "/partition=" + number
}

func partitionResource(c cluster, topic string, p event.Partition) resource {
	path, name := partitionPath(topic, p.Number)
	members := resource{
		"topic_name": topic, "partition_id": p.Number, "offset": c.link(path + "/offset"), "replicas": c.link(path + "/replicas"), "leader": nil,
	}
	if p.Leader >= 0 {
		members["leader"] = c.link(path + "/replicas/" + strconv.Itoa(int(p.Leader)))
	}
	return c.resource("Partition", path, name, members)
}

// listPartitionsV3 serves GET …/topics/{topic}/partitions.
func (s *Server) listPartitionsV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	t, err := s.Topics.Topic(r.Context(), r.PathValue("topic"))
	if err != nil {
		return err
	}
	var data []resource
	for _, p := range t.Partitions {
		data = append(data, partitionResource(c, t.Name, p))
	}
	s.writeList(w, r, "Partition", c.base+"/topics/"+escape(t.Name)+"/partitions", data)
	return nil
}

// partition reads the partition of the path.
func (s *Server) partition(r *http.Request) (topic string, p event.Partition, err error) {
	n, err := partitionOf(r)
	if err != nil {
		return "", p, err
	}
	t, err := s.Topics.Topic(r.Context(), r.PathValue("topic"))
	if err != nil {
		return "", p, err
	}
	for _, p := range t.Partitions {
		if p.Number == n {
			return t.Name, p, nil
		}
	}
	return "", p, event.Errorf(event.NotFound, codePartitionNotFound, "v3", "topic %q has no partition %d; it has %d, from 0 to %d", t.Name, n, len(t.Partitions), len(t.Partitions)-1)
}

// getPartitionV3 serves GET …/partitions/{partition}.
func (s *Server) getPartitionV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic, p, err := s.partition(r)
	if err != nil {
		return err
	}
	return s.writeResource(w, r, partitionResource(c, topic, p))
}

// getOffsetV3 serves GET …/partitions/{partition}/offset: the first offset that there is, and
// the one that the next record will have.
func (s *Server) getOffsetV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic, p, err := s.partition(r)
	if err != nil {
		return err
	}
	bounds, err := s.Topics.Offsets(r.Context(), event.TopicPartition{Topic: topic, Partition: p.Number})
	if err != nil {
		return err
	}
	path, name := partitionPath(topic, p.Number)
	return s.writeResource(w, r, c.resource("PartitionOffset", path+"/offset", name+"/offset", resource{
		"topic_name": topic, "partition_id": p.Number, "earliest_offset": bounds.Beginning, "latest_offset": bounds.End,
	}))
}

func replicaResource(c cluster, topic string, p event.Partition, broker int32) resource {
	path, name := partitionPath(topic, p.Number)
	number := strconv.Itoa(int(broker))
	return c.resource("Replica", path+"/replicas/"+number, name+"/replica="+number, resource{
		"topic_name": topic, "partition_id": p.Number, "broker_id": broker, "is_leader": broker == p.Leader,
		"is_in_sync": slices.Contains(p.InSync, broker), "broker": c.link("/brokers/" + number),
	})
}

// listReplicas serves GET …/partitions/{partition}/replicas.
func (s *Server) listReplicas(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic, p, err := s.partition(r)
	if err != nil {
		return err
	}
	var data []resource
	for _, broker := range p.Replicas {
		data = append(data, replicaResource(c, topic, p, broker))
	}
	path, _ := partitionPath(topic, p.Number)
	s.writeList(w, r, "Replica", c.base+path+"/replicas", data)
	return nil
}

// getReplica serves GET …/partitions/{partition}/replicas/{broker}.
func (s *Server) getReplica(w http.ResponseWriter, r *http.Request, c cluster) error {
	topic, p, err := s.partition(r)
	if err != nil {
		return err
	}
	for _, broker := range p.Replicas {
		if strconv.Itoa(int(broker)) == r.PathValue("broker") {
			return s.writeResource(w, r, replicaResource(c, topic, p, broker))
		}
	}
	return event.Errorf(event.NotFound, codeUnknownV3, "v3", "partition %d of topic %q has no replica on broker %q", p.Number, topic, r.PathValue("broker"))
}

func groupResource(c cluster, g event.Group, details bool) resource {
	path := "/consumer-groups/" + escape(g.Name)
	members := resource{
		"consumer_group_id": g.Name, "state": enum(g.State), "type": strings.ToUpper(g.Protocol), "is_mixed_consumer_group": false,
		"consumers": c.link(path + "/consumers"), "lags": c.link(path + "/lags"), "lag_summary": c.link(path + "/lag-summary"),
	}
	if details {
		members["partition_assignor"], members["is_simple"] = g.Assignor, len(g.List) == 0 && g.Assignor == ""
		members["coordinator"] = nil
		if g.Coordinator >= 0 {
			members["coordinator"] = c.link("/brokers/" + strconv.Itoa(int(g.Coordinator)))
		}
	}
	return c.resource("ConsumerGroup", path, "/consumer-group="+g.Name, members)
}

// enum writes Kafka's word for a state as v3 does: PREPARING_REBALANCE.
func enum(state string) string {
	var b strings.Builder
	for i, c := range state {
		if i > 0 && c >= 'A' && c <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(c)
	}
	return cmp.Or(strings.ToUpper(b.String()), "UNKNOWN")
}

// listGroups serves GET …/consumer-groups: what a list of Kafka tells of each. Its members, its
// assignor and its coordinator are in the group's own resource.
func (s *Server) listGroups(w http.ResponseWriter, r *http.Request, c cluster) error {
	groups, err := s.Admin.ListGroups(r.Context())
	if err != nil {
		return err
	}
	var data []resource
	for _, g := range groups {
		data = append(data, groupResource(c, g, false))
	}
	s.writeList(w, r, "ConsumerGroup", c.base+"/consumer-groups", data)
	return nil
}

// getGroup serves GET …/consumer-groups/{group}.
func (s *Server) getGroup(w http.ResponseWriter, r *http.Request, c cluster) error {
	g, err := s.group(r)
	if err != nil {
		return err
	}
	return s.writeResource(w, r, groupResource(c, g, true))
}

func (s *Server) group(r *http.Request) (event.Group, error) {
	name := r.PathValue("group")
	if event.OwnGroup(name) {
		return event.Group{}, ownGroup(name)
	}
	g, err := s.Admin.Group(r.Context(), name)
	return g, noGroup(err)
}

// ownGroup hides a group of Postamt's own.
func ownGroup(name string) error {
	return event.Errorf(event.NotFound, codeUnknownV3, "v3", "there is no consumer group %q for clients; GET /subscriptions tells of those of Postamt's own", name)
}

// noGroup gives an unknown group v3's code.
func noGroup(err error) error {
	if err == nil {
		return nil
	}
	ee := *asError(err)
	if ee.Kind == event.NotFound {
		ee.Code = codeUnknownV3
	}
	return &ee
}

func consumerResource(c cluster, group string, m event.GroupMember) resource {
	path, name := consumerPath(group, m.ID)
	members := resource{"consumer_group_id": group, "consumer_id": m.ID, "instance_id": nil, "client_id": m.Client, "assignments": c.link(path + "/assignments")}
	if m.Instance != "" {
		members["instance_id"] = m.Instance
	}
	return c.resource("Consumer", path, name, members)
}

func consumerPath(group, consumer string) (path, name string) {
	return "/consumer-groups/" + escape(group) + "/consumers/" + escape(consumer), "/consumer-group=" + group + "/consumer=" + consumer
}

// listConsumers serves GET …/consumer-groups/{group}/consumers: its members.
func (s *Server) listConsumers(w http.ResponseWriter, r *http.Request, c cluster) error {
	g, err := s.group(r)
	if err != nil {
		return err
	}
	var data []resource
	for _, m := range g.List {
		data = append(data, consumerResource(c, g.Name, m))
	}
	s.writeList(w, r, "Consumer", c.base+"/consumer-groups/"+escape(g.Name)+"/consumers", data)
	return nil
}

// consumer reads the path's group and its member of the path.
func (s *Server) consumer(r *http.Request) (group string, m event.GroupMember, err error) {
	g, err := s.group(r)
	if err != nil {
		return "", m, err
	}
	for _, m := range g.List {
		if m.ID == r.PathValue("consumer") {
			return g.Name, m, nil
		}
	}
	return "", m, event.Errorf(event.NotFound, codeUnknownV3, "v3", "consumer group %q has no member %q", g.Name, r.PathValue("consumer"))
}

// getConsumer serves GET …/consumer-groups/{group}/consumers/{consumer}.
func (s *Server) getConsumer(w http.ResponseWriter, r *http.Request, c cluster) error {
	group, m, err := s.consumer(r)
	if err != nil {
		return err
	}
	return s.writeResource(w, r, consumerResource(c, group, m))
}

func assignmentResource(c cluster, group, consumer string, tp event.TopicPartition) resource {
	path, name := consumerPath(group, consumer)
	partition, _ := partitionPath(tp.Topic, tp.Partition)
	return c.resource("ConsumerAssignment", fmt.Sprintf("%s/assignments/%s/partitions/%d", path, escape(tp.Topic), tp.Partition),
		fmt.Sprintf("%s/assignment=%s/partition=%d", name, tp.Topic, tp.Partition), resource{
			"consumer_group_id": group, "consumer_id": consumer, "topic_name": tp.Topic, "partition_id": tp.Partition,
			"partition": c.link(partition), "lag": c.link(lagPath(group, tp)),
		})
}

// listAssignments serves GET …/consumers/{consumer}/assignments: the partitions that a member has, in
// order of topic and partition.
func (s *Server) listAssignments(w http.ResponseWriter, r *http.Request, c cluster) error {
	group, m, err := s.consumer(r)
	if err != nil {
		return err
	}
	var data []resource
	for _, topic := range slices.Sorted(maps.Keys(m.Assigned)) {
		if event.Own(topic) {
			continue
		}
		for _, p := range slices.Sorted(slices.Values(m.Assigned[topic])) {
			data = append(data, assignmentResource(c, group, m.ID, event.TopicPartition{Topic: topic, Partition: p}))
		}
	}
	path, _ := consumerPath(group, m.ID)
	s.writeList(w, r, "ConsumerAssignment", c.base+path+"/assignments", data)
	return nil
}

// getAssignment serves GET …/consumers/{consumer}/assignments/{topic}/partitions/{partition}.
func (s *Server) getAssignment(w http.ResponseWriter, r *http.Request, c cluster) error {
	n, err := partitionOf(r)
	if err != nil {
		return err
	}
	group, m, err := s.consumer(r)
	if err != nil {
		return err
	}
	tp := event.TopicPartition{Topic: r.PathValue("topic"), Partition: n}
	if event.Own(tp.Topic) || !slices.Contains(m.Assigned[tp.Topic], n) {
		return event.Errorf(event.NotFound, codeUnknownV3, "v3", "member %q of consumer group %q does not have partition %d of topic %q", m.ID, group, n, tp.Topic)
	}
	return s.writeResource(w, r, assignmentResource(c, group, m.ID, tp))
}

// lags reads the lags of the path's group, the largest first.
func (s *Server) lags(r *http.Request) (event.Group, []event.PartitionLag, error) {
	name := r.PathValue("group")
	if event.OwnGroup(name) {
		return event.Group{}, nil, ownGroup(name)
	}
	g, lags, err := s.GroupLag(r.Context(), name)
	if err != nil {
		return g, nil, noGroup(err)
	}
	if len(lags) == 0 {
		return g, nil, event.Errorf(event.NotFound, codeUnknownV3, "v3", "consumer group %q reads no topic and has committed in none", g.Name)
	}
	lags = slices.Clone(lags)
	slices.SortStableFunc(lags, func(a, b event.PartitionLag) int {
		return cmp.Or(cmp.Compare(b.Lag, a.Lag), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return g, lags, nil
}

// owner is the member that has a partition, an empty one where none has.
func owner(g event.Group, tp event.TopicPartition) event.GroupMember {
	for _, m := range g.List {
		if slices.Contains(m.Assigned[tp.Topic], tp.Partition) {
			return m
		}
	}
	return event.GroupMember{}
}

func seconds(s float64) any {
	if s < 0 {
		return nil
	}
	return math.Round(s*1000) / 1000
}

func lagPath(group string, tp event.TopicPartition) string {
	return fmt.Sprintf("/consumer-groups/%s/lags/%s/partitions/%d", escape(group), escape(tp.Topic), tp.Partition)
}

func lagResource(c cluster, g event.Group, l event.PartitionLag) resource {
	m := owner(g, l.TopicPartition)
	return c.resource("ConsumerLag", lagPath(g.Name, l.TopicPartition), fmt.Sprintf("/consumer-group=%s/lag=%s/partition=%d", g.Name, l.Topic, l.Partition), resource{
		"consumer_group_id": g.Name, "topic_name": l.Topic, "partition_id": l.Partition,
		"consumer_id": m.ID, "instance_id": m.Instance, "client_id": m.Client,
		"current_offset": l.Committed, "log_end_offset": l.End, "lag": l.Lag, "lag_seconds": seconds(l.Seconds),
	})
}

// listLags serves GET …/consumer-groups/{group}/lags, the largest first. A partition that the group
// is to read and has never committed in is among them, with -1 as current_offset and lag. Ends are
// last stable offsets, as with the REST Proxy: what a reader of committed records can have by now.
// GET /lag has high watermarks, and so shows what a transaction that hangs holds back. 404/40403 when
// there is nothing to tell.
func (s *Server) listLags(w http.ResponseWriter, r *http.Request, c cluster) error {
	g, lags, err := s.lags(r)
	if err != nil {
		return err
	}
	var data []resource
	for _, l := range lags {
		data = append(data, lagResource(c, g, l))
	}
	s.writeList(w, r, "ConsumerLag", c.base+"/consumer-groups/"+escape(g.Name)+"/lags", data)
	return nil
}

// getLagV3 serves GET …/consumer-groups/{group}/lags/{topic}/partitions/{partition}.
func (s *Server) getLagV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	n, err := partitionOf(r)
	if err != nil {
		return err
	}
	g, lags, err := s.lags(r)
	if err != nil {
		return err
	}
	tp := event.TopicPartition{Topic: r.PathValue("topic"), Partition: n}
	for _, l := range lags {
		if l.TopicPartition == tp {
			return s.writeResource(w, r, lagResource(c, g, l))
		}
	}
	return event.Errorf(event.NotFound, codeUnknownV3, "v3", "consumer group %q neither reads partition %d of topic %q nor has committed in it", g.Name, n, tp.Topic)
}

// getLagSummary serves GET …/consumer-groups/{group}/lag-summary: the sum of what is known, and
// where the most is.
func (s *Server) getLagSummary(w http.ResponseWriter, r *http.Request, c cluster) error {
	g, lags, err := s.lags(r)
	if err != nil {
		return err
	}
	total, oldest := int64(0), -1.0
	for _, l := range lags {
		total += max(0, l.Lag)
		oldest = max(oldest, l.Seconds)
	}
	most := lags[0]
	m := owner(g, most.TopicPartition)
	members := resource{
		"consumer_group_id": g.Name, "max_lag": max(0, most.Lag), "total_lag": total, "max_lag_seconds": seconds(oldest),
		"max_lag_consumer_id": m.ID, "max_lag_client_id": m.Client, "max_lag_instance_id": m.Instance,
		"max_lag_topic_name": most.Topic, "max_lag_partition_id": most.Partition,
		"max_lag_consumer": nil, "max_lag_partition": nil,
	}
	if m.ID != "" {
		members["max_lag_consumer"] = c.link("/consumer-groups/" + escape(g.Name) + "/consumers/" + escape(m.ID))
	}
	path, _ := partitionPath(most.Topic, most.Partition)
	members["max_lag_partition"] = c.link(path)
	return s.writeResource(w, r, c.resource("ConsumerGroupLagSummary", "/consumer-groups/"+escape(g.Name)+"/lag-summary", "/consumer-group="+g.Name+"/lag-summary", members))
}
