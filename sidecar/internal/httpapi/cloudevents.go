package httpapi

import (
	"net/http"
	"strings"

	"postamt/sidecar/internal/cloudevents"
	"postamt/sidecar/internal/event"
)

// producedEvent is what an answer says of one event of a batch.
type producedEvent struct {
	ID string `json:"id"`
	*produced
	*errorBody
}

// produceEvents serves POST /topics/{topic}/records where the request holds one CloudEvent, in
// binary or structured mode, or a batch. One event is answered like any other record, a batch with
// an array that has, in their order, {"id","topic","partition","offset","timestamp"} for each, or
// {"id","error_code","message"} of one that is not stored.
//
//	Statuses are those of produceRecord; 422 what is no CloudEvent 1.0; of a batch 503 when Kafka
//	took none of its events.
func (s *Server) produceEvents(w http.ResponseWriter, r *http.Request, mode cloudevents.Mode) error {
	ctx := s.bound(r)
	defer ctx.end()
	params, err := query(r, "partition")
	if err != nil {
		return err
	}
	partition := event.AnyPartition
	if params.Has("partition") {
		n, ok := parsePartition(params.Get("partition"))
		if !ok {
			return event.Errorf(event.Invalid, 0, "produce", "partition is %q; it must be a number from 0 up", params.Get("partition"))
		}
		partition = n
	}
	topic := r.PathValue("topic")
	if err := s.checkPlace(ctx, topic, partition); err != nil {
		return err
	}
	if err := checkEventHeaders(r.Header); err != nil {
		return err
	}
	limit, variable := s.opts.Limits.BodyBytes, "MAX_BODY_BYTES"
	if mode == cloudevents.Batch {
		limit, variable = s.opts.Limits.BatchBytes, "MAX_BATCH_BYTES"
	}
	body, release, err := s.readBody(r, limit, variable)
	defer release()
	if err != nil {
		return err
	}
	var events []cloudevents.Result
	if mode == cloudevents.Batch {
		var bad *event.Error
		if events, bad = cloudevents.FromBatch(body, s.opts.Limits.Records); bad != nil {
			return bad
		}
	} else {
		one := cloudevents.Result{}
		if mode == cloudevents.Binary {
			one.Record, one.Err = cloudevents.FromHeaders(r.Header, body)
		} else {
			one.Record, one.Err = cloudevents.FromJSON(body)
		}
		if one.Err != nil {
			return one.Err
		}
		events = []cloudevents.Result{one}
	}
	results := s.sendEvents(ctx, r, events, topic, partition)
	if err := noneStored(results); err != nil {
		return err
	}
	if mode != cloudevents.Batch {
		if results[0].Err != nil {
			return results[0].Err
		}
		s.writeJSON(w, r, http.StatusOK, "application/json", placed(results[0].Place))
		return nil
	}
	answer := make([]producedEvent, len(events))
	for i, result := range results {
		answer[i].ID = events[i].ID
		if result.Err != nil {
			code, msg := errorOf(result.Err)
			answer[i].errorBody = &errorBody{code, msg}
		} else {
			answer[i].produced = placed(result.Place)
		}
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", answer)
	return nil
}

// checkEventHeaders refuses record headers that would say something else than the event does.
func checkEventHeaders(h http.Header) error {
	for name := range h {
		key, ok := strings.CutPrefix(strings.ToLower(name), strings.ToLower(headerPrefix))
		if ok && (key == "content-type" || strings.HasPrefix(key, "ce_")) {
			return event.Errorf(event.Unprocessable, 0, "produce", "there is a header %s, and %s is the CloudEvent's own; leave it out", name, key)
		}
	}
	return nil
}

// sendEvents produces those that are events, and gives each its result.
func (s *Server) sendEvents(ctx *bounded, r *http.Request, events []cloudevents.Result, topic string, partition int32) []event.Result {
	results := make([]event.Result, len(events))
	var send []event.Record
	var index []int
	for i, e := range events {
		if e.Err != nil {
			results[i].Err = e.Err
			continue
		}
		rec := e.Record
		rec.Partition = partition
		for _, h := range recordHeaders(r.Header) {
			if h.Key != "content-type" { // the event has its own
				rec.Headers = append(rec.Headers, h)
			}
		}
		send, index = append(send, rec), append(index, i)
	}
	if len(send) > 0 {
		for j, result := range s.produceAll(ctx, send, topic, partition) {
			results[index[j]] = result
		}
	}
	return results
}

func placed(p event.Place) *produced {
	return &produced{p.Topic, p.Partition, p.Offset, timestamp(p.Timestamp)}
}
