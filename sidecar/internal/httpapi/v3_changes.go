package httpapi

import (
	"context"
	"net/http"
	"slices"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// mayChange refuses changes of topics where the configuration does.
func (s *Server) mayChange() error {
	if s.opts.AllowTopicChanges {
		return nil
	}
	return event.Errorf(event.Forbidden, 40301, "v3", "topics are declared (compose/topics.yaml) and not made over HTTP; ALLOW_TOPIC_CHANGES=true would allow it")
}

// change gives the refusal of a change v3's code: 400/40002, with Kafka's explanation.
func change(err error) error {
	ee := asError(err)
	if err == nil || ee.Kind != event.Conflict && ee.Kind != event.Unprocessable {
		return err
	}
	return &event.Error{Kind: event.Invalid, Code: 40002, Op: ee.Op, Msg: ee.Msg, Err: err}
}

// createTopicV3 serves POST /v3/clusters/{cluster}/topics: 201 with Location, or 200 when
// validate_only is true; 403/40301 unless ALLOW_TOPIC_CHANGES.
func (s *Server) createTopicV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	ctx, cancel, body, err := s.changing(r)
	defer cancel()
	if err != nil {
		return err
	}
	spec, validateOnly, err := restproxy.DecodeNewTopic(body)
	if err != nil {
		return err
	}
	if event.Own(spec.Name) {
		return event.Errorf(event.Invalid, 40002, "v3", "topics that begin with _postamt. or __ are not for clients")
	}
	create, status := s.Admin.CreateTopic, http.StatusCreated
	if validateOnly {
		create, status = s.Admin.CheckNewTopic, http.StatusOK
	}
	if err := change(create(ctx, spec)); err != nil {
		return err
	}
	t := event.Topic{Name: spec.Name, Partitions: make([]event.Partition, max(0, spec.Partitions, len(spec.Assignments)))}
	if len(spec.Assignments) > 0 {
		t.Partitions[0].Replicas = spec.Assignments[0]
	}
	if !validateOnly {
		if t, err = s.Topics.Topic(ctx, spec.Name); err != nil {
			return err
		}
		w.Header().Set("Location", c.base+"/topics/"+escape(spec.Name))
	}
	s.writeJSON(w, r, status, "application/json", topicResource(c, t))
	return nil
}

// changing begins a change: it may take REQUEST_TIMEOUT, and its body is read.
func (s *Server) changing(r *http.Request) (ctx context.Context, cancel context.CancelFunc, body []byte, err error) {
	ctx, cancel = context.WithTimeout(r.Context(), s.opts.RequestTimeout)
	if err = s.mayChange(); err == nil {
		body, err = s.v3Body(r)
	}
	return ctx, cancel, body, err
}

// v3Body reads a body that holds settings.
func (s *Server) v3Body(r *http.Request) ([]byte, error) {
	if err := checkV3Body(r); err != nil {
		return nil, err
	}
	body, release, err := s.readBody(r, s.opts.Limits.BodyBytes, "MAX_BODY_BYTES")
	release()
	return body, err
}

// patchTopicV3 serves PATCH /v3/clusters/{cluster}/topics/{topic}: {"partitions_count":n} raises
// their number; 403/40301 unless ALLOW_TOPIC_CHANGES.
func (s *Server) patchTopicV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	ctx, cancel, body, err := s.changing(r)
	defer cancel()
	if err != nil {
		return err
	}
	n, err := restproxy.DecodePartitionsCount(body)
	if err != nil {
		return err
	}
	name := r.PathValue("topic")
	if _, err := s.Topics.Topic(ctx, name); err != nil {
		return err
	}
	if err := change(s.Admin.SetPartitions(ctx, name, n)); err != nil {
		return err
	}
	t, err := s.Topics.Topic(ctx, name)
	if err != nil {
		return err
	}
	return s.writeResource(w, r, topicResource(c, t))
}

// deleteTopicV3 serves DELETE /v3/clusters/{cluster}/topics/{topic}: 204; 403/40301 unless
// ALLOW_TOPIC_CHANGES.
func (s *Server) deleteTopicV3(w http.ResponseWriter, r *http.Request, _ cluster) error {
	ctx, cancel := context.WithTimeout(r.Context(), s.opts.RequestTimeout)
	defer cancel()
	if err := s.mayChange(); err != nil {
		return err
	}
	name := r.PathValue("topic")
	if _, err := s.Topics.Topic(ctx, name); err != nil { // our own are not found, either
		return err
	}
	if err := change(s.Admin.DeleteTopic(ctx, name)); err != nil {
		return err
	}
	if _, err := s.Topics.Topics(ctx); err != nil { // so that this replica knows at once
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// alterConfigs serves POST …/topics/{topic}/configs:alter: all changes are made, or none: 204;
// 403/40301 unless ALLOW_TOPIC_CHANGES.
func (s *Server) alterConfigs(w http.ResponseWriter, r *http.Request, _ cluster) error {
	ctx, cancel, body, err := s.changing(r)
	defer cancel()
	if err != nil {
		return err
	}
	changes, validateOnly, err := restproxy.DecodeConfigChanges(body)
	if err != nil {
		return err
	}
	topic := r.PathValue("topic")
	configs, err := s.Admin.ConfigsOf(ctx, topic) // our own are not found, either
	if err != nil {
		return err
	}
	for _, c := range changes {
		if !slices.ContainsFunc(configs, func(known event.TopicConfig) bool { return known.Name == c.Name }) {
			return event.Errorf(event.NotFound, codeUnknownV3, "v3", "topic %q has no setting %q", topic, c.Name)
		}
	}
	if err := change(s.Admin.ChangeConfigs(ctx, topic, changes, validateOnly)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
