package restproxy

import (
	"encoding/json"
	"math"
	"regexp"

	"postamt/sidecar/internal/event"
)

// topicName is what Kafka takes as the name of a topic.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// DecodeNewTopic reads the body of POST /v3/clusters/{id}/topics: {"topic_name","partitions_count",
// "replication_factor","replicas_assignments","configs":[{"name","value"}],"validate_only"}. What is
// left out is Kafka's default (-1 partitions, or replicas).
func DecodeNewTopic(body []byte) (spec event.TopicSpec, validateOnly bool, err error) {
	var req struct {
		Name        string `json:"topic_name"`
		Partitions  *int32 `json:"partitions_count"`
		Replication *int16 `json:"replication_factor"`
		Configs     []struct {
			Name  string  `json:"name"`
			Value *string `json:"value"`
		} `json:"configs"`
		Assignments  json.RawMessage `json:"replicas_assignments"`
		ValidateOnly bool            `json:"validate_only"`
	}
	if err := unmarshal(body, &req); err != nil {
		return spec, false, err
	}
	spec = event.TopicSpec{Name: req.Name, Partitions: -1, Replication: -1, Configs: make(map[string]string)}
	switch {
	case req.Name == "":
		return spec, false, event.Errorf(event.Unprocessable, 0, op, "topic_name is missing")
	case !topicName.MatchString(req.Name) || req.Name == "." || req.Name == "..":
		return spec, false, event.Errorf(event.Invalid, 40002, op, "topic_name is %q; it must have 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'", req.Name)
	}
	if spec.Assignments, err = decodeAssignments(req.Assignments); err != nil {
		return spec, false, err
	}
	if spec.Assignments != nil && (req.Partitions != nil || req.Replication != nil) {
		return spec, false, event.Errorf(event.Unprocessable, 0, op, "replicas_assignments says how many partitions and replicas there are; leave partitions_count and replication_factor out")
	}
	if req.Partitions != nil {
		if *req.Partitions < 1 {
			return spec, false, event.Errorf(event.Unprocessable, 0, op, "partitions_count is %d; it must be at least 1", *req.Partitions)
		}
		spec.Partitions = int(*req.Partitions)
	}
	if req.Replication != nil {
		if *req.Replication < 1 {
			return spec, false, event.Errorf(event.Unprocessable, 0, op, "replication_factor is %d; it must be at least 1", *req.Replication)
		}
		spec.Replication = int(*req.Replication)
	}
	for i, c := range req.Configs {
		if c.Name == "" || c.Value == nil {
			return spec, false, event.Errorf(event.Unprocessable, 0, op, `configs[%d] must be {"name":"…","value":"…"}`, i)
		}
		spec.Configs[c.Name] = *c.Value
	}
	return spec, req.ValidateOnly, nil
}

// decodeAssignments reads replicas_assignments in both forms that clients send: {"0":[1,2]}, and
// [{"partition_id":0,"broker_ids":[1,2]}]. Without any it gives nil.
func decodeAssignments(raw json.RawMessage) ([][]int32, error) {
	if null(raw) {
		return nil, nil
	}
	byPartition := make(map[int32][]int32)
	switch {
	case raw[0] == '{' && json.Unmarshal(raw, &byPartition) == nil:
	case raw[0] == '[':
		var list []struct {
			Partition *int32  `json:"partition_id"`
			Brokers   []int32 `json:"broker_ids"`
		}
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, errAssignments
		}
		for _, a := range list {
			if a.Partition == nil || byPartition[*a.Partition] != nil {
				return nil, errAssignments
			}
			byPartition[*a.Partition] = a.Brokers
		}
	default:
		return nil, errAssignments
	}
	if len(byPartition) == 0 {
		return nil, nil
	}
	out := make([][]int32, len(byPartition))
	for p, brokers := range byPartition {
		if p < 0 || int(p) >= len(out) || len(brokers) == 0 {
			return nil, errAssignments
		}
		out[p] = brokers
	}
	return out, nil
}

var errAssignments = event.Errorf(event.Unprocessable, 0, op, `replicas_assignments must have the ids of its brokers for each partition from 0 up: {"0":[1,2],"1":[2,1]}, or [{"partition_id":0,"broker_ids":[1,2]}]`)

// DecodeConfigChanges reads the body of POST …/topics/{topic}/configs:alter:
// {"data":[{"name","value","operation"}],"validate_only"}. An operation is SET, which it is without
// one, or DELETE.
func DecodeConfigChanges(body []byte) (changes []event.ConfigChange, validateOnly bool, err error) {
	var req struct {
		Data []struct {
			Name      string  `json:"name"`
			Value     *string `json:"value"`
			Operation *string `json:"operation"`
		} `json:"data"`
		ValidateOnly bool `json:"validate_only"`
	}
	if err := unmarshal(body, &req); err != nil {
		return nil, false, err
	}
	if len(req.Data) == 0 {
		return nil, false, event.Errorf(event.Unprocessable, 0, op, `data is empty; it must have settings to change, as {"name":"…","value":"…"}`)
	}
	named := make(map[string]bool)
	for i, c := range req.Data {
		operation := "SET"
		if c.Operation != nil {
			operation = *c.Operation
		}
		switch {
		case c.Name == "":
			return nil, false, event.Errorf(event.Unprocessable, 0, op, "data[%d].name is missing", i)
		case named[c.Name]:
			return nil, false, event.Errorf(event.Unprocessable, 0, op, "data[%d].name is %q, which is there twice", i, c.Name)
		case operation == "SET" && c.Value == nil:
			return nil, false, event.Errorf(event.Unprocessable, 0, op, `data[%d].value is missing; "operation":"DELETE" takes a setting back to its default`, i)
		case operation == "DELETE":
			c.Value = nil
		case operation != "SET":
			return nil, false, event.Errorf(event.Unprocessable, 0, op, "data[%d].operation is %q; it must be SET or DELETE", i, operation)
		}
		named[c.Name] = true
		changes = append(changes, event.ConfigChange{Name: c.Name, Value: c.Value})
	}
	return changes, req.ValidateOnly, nil
}

// DecodePartitionsCount reads the body of PATCH /v3/clusters/{id}/topics/{topic}:
// {"partitions_count":n}.
func DecodePartitionsCount(body []byte) (int, error) {
	var req struct {
		Partitions *int32 `json:"partitions_count"`
	}
	if err := unmarshal(body, &req); err != nil {
		return 0, err
	}
	if req.Partitions == nil || *req.Partitions < 1 || *req.Partitions == math.MaxInt32 {
		return 0, event.Errorf(event.Unprocessable, 0, op, "partitions_count must be a number from 1 up")
	}
	return int(*req.Partitions), nil
}
