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
// "replication_factor","configs":[{"name","value"}],"validate_only"}. What is left out is Kafka's
// default (-1 partitions, or replicas).
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
	case !null(req.Assignments) && string(req.Assignments) != "[]":
		return spec, false, event.Errorf(event.Unprocessable, 0, op, "replicas_assignments is not possible here; leave it out, and Kafka places the replicas")
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
