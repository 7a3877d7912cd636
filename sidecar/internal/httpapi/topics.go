package httpapi

import (
	"net/http"
	"slices"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// listTopics serves GET /topics: the names of all topics but our own.
func (s *Server) listTopics(w http.ResponseWriter, r *http.Request) error {
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return err
	}
	names, err := s.Topics.Topics(r.Context())
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, names)
	return nil
}

type topicBody struct {
	Name       string            `json:"name"`
	Configs    map[string]string `json:"configs"`
	Partitions []partitionBody   `json:"partitions"`
}

type partitionBody struct {
	Partition int32         `json:"partition"`
	Leader    int32         `json:"leader"`
	Replicas  []replicaBody `json:"replicas"`
}

type replicaBody struct {
	Broker int32 `json:"broker"`
	Leader bool  `json:"leader"`
	InSync bool  `json:"in_sync"`
}

type offsetsBody struct {
	Beginning int64 `json:"beginning_offset"`
	End       int64 `json:"end_offset"`
}

// topic reads the topic of the path and answers the checks that all metadata requests share.
func (s *Server) topic(r *http.Request) (event.Topic, error) {
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return event.Topic{}, err
	}
	return s.Topics.Topic(r.Context(), r.PathValue("topic"))
}

func partitionsOf(t event.Topic) []partitionBody {
	out := make([]partitionBody, len(t.Partitions))
	for i, p := range t.Partitions {
		out[i] = partitionBody{Partition: p.Number, Leader: p.Leader, Replicas: []replicaBody{}}
		for _, broker := range p.Replicas {
			out[i].Replicas = append(out[i].Replicas, replicaBody{broker, broker == p.Leader, slices.Contains(p.InSync, broker)})
		}
	}
	return out
}

// getTopic serves GET /topics/{topic}: name, configuration and partitions; 404 when there is
// no such topic.
func (s *Server) getTopic(w http.ResponseWriter, r *http.Request) error {
	t, err := s.topic(r)
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, topicBody{t.Name, t.Configs, partitionsOf(t)})
	return nil
}

// listPartitions serves GET /topics/{topic}/partitions.
func (s *Server) listPartitions(w http.ResponseWriter, r *http.Request) error {
	t, err := s.topic(r)
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, partitionsOf(t))
	return nil
}

// getPartition serves GET /topics/{topic}/partitions/{partition}.
func (s *Server) getPartition(w http.ResponseWriter, r *http.Request) error {
	number, err := partitionOf(r)
	if err != nil {
		return err
	}
	t, err := s.topic(r)
	if err != nil {
		return err
	}
	for _, p := range partitionsOf(t) {
		if p.Partition == number {
			s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, p)
			return nil
		}
	}
	return s.Topics.CheckPartition(r.Context(), event.TopicPartition{Topic: t.Name, Partition: number})
}

// getOffsets serves GET /topics/{topic}/partitions/{partition}/offsets: the first offset
// that there is, and the one that the next record will have.
func (s *Server) getOffsets(w http.ResponseWriter, r *http.Request) error {
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return err
	}
	number, err := partitionOf(r)
	if err != nil {
		return err
	}
	b, err := s.Topics.Offsets(r.Context(), event.TopicPartition{Topic: r.PathValue("topic"), Partition: number})
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, offsetsBody{b.Beginning, b.End})
	return nil
}
