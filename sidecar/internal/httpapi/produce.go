package httpapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"postamt/sidecar/internal/cloudevents"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// headerPrefix marks request headers that become record headers.
const headerPrefix = "Kafka-Header-"

// produced is the answer of produceRecord.
type produced struct {
	Topic     string    `json:"topic"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	Timestamp timestamp `json:"timestamp"`
}

// timestamp is written as RFC 3339 in UTC with milliseconds, which is all that Kafka keeps.
type timestamp time.Time

func (t timestamp) MarshalJSON() ([]byte, error) {
	return time.Time(t).UTC().AppendFormat(nil, `"2006-01-02T15:04:05.000Z"`), nil
}

// produceBody serves POST /topics/{topic}/records: the Content-Type says whether the body is a
// record or holds many.
func (s *Server) produceBody(w http.ResponseWriter, r *http.Request) error {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // what cannot be read is kept as it is
	if mediaType == contentTypeNDJSON {
		return s.produceLines(w, r)
	}
	mode, err := cloudevents.ModeOf(r.Header)
	if err != nil {
		return err
	}
	if mode != cloudevents.None {
		return s.produceEvents(w, r, mode)
	}
	return s.produceRecord(w, r)
}

// produceRecord serves POST /topics/{topic}/records where the body is the record's value.
//
//	200 acknowledged by every in-sync replica: topic, partition, offset, timestamp
//	400 unreadable parameter   403 Kafka does not let us write
//	404 no such topic or partition   413 record too large
//	422 parameter not allowed  429 over a limit   503 Kafka out of reach; see Retry-After
//
// The timestamp is the one that was sent: a topic with message.timestamp.type=LogAppendTime
// keeps another, which librdkafka's reports do not tell.
func (s *Server) produceRecord(w http.ResponseWriter, r *http.Request) error {
	ctx := s.bound(r)
	defer ctx.end()
	body, release, err := s.readBody(r, s.opts.Limits.BodyBytes, "MAX_BODY_BYTES")
	defer release()
	if err != nil {
		return err
	}
	rec, err := recordFromRequest(r, body)
	if err != nil {
		return err
	}
	if err := s.checkPlace(ctx, rec.Topic, rec.Partition); err != nil {
		return err
	}
	result := s.Producer.Produce(ctx.request, ctx.until, []event.Record{rec})[0]
	if result.Err != nil {
		return result.Err
	}
	p := result.Place
	s.writeJSON(w, r, http.StatusOK, "application/json", produced{p.Topic, p.Partition, p.Offset, timestamp(p.Timestamp)})
	return nil
}

// recordFromRequest makes the record that a request to …/records describes.
func recordFromRequest(r *http.Request, body []byte) (event.Record, error) {
	const op = "produce"
	rec := event.Record{Topic: r.PathValue("topic"), Partition: event.AnyPartition, Value: body}
	params, err := query(r, "key", "partition", "timestamp", "tombstone")
	if err != nil {
		return rec, err
	}
	if params.Has("key") {
		rec.Key = []byte(params.Get("key"))
	}
	if text := params.Get("partition"); text != "" {
		n, ok := parsePartition(text)
		if !ok {
			return rec, event.Errorf(event.Invalid, 0, op, "partition is %q; it must be a number from 0 up", text)
		}
		rec.Partition = n
	}
	if text := params.Get("timestamp"); text != "" {
		if rec.Timestamp, err = restproxy.ParseTimestamp(text); err != nil {
			return rec, err
		}
	}
	switch text := params.Get("tombstone"); {
	case text == "", text == "false":
	case text != "true":
		return rec, event.Errorf(event.Invalid, 0, op, "tombstone is %q; it must be true or false", text)
	case len(body) > 0:
		return rec, event.Errorf(event.Unprocessable, 0, op, "a tombstone has no value, and the body has %d bytes; leave one of them out", len(body))
	default:
		rec.Value = nil
	}
	rec.Headers = recordHeaders(r.Header)
	return rec, nil
}

// recordHeaders picks the request headers that a record keeps. Names of HTTP headers know
// no case, so that they are kept in lower case.
func recordHeaders(h http.Header) []event.Header {
	var out []event.Header
	// What `curl -d` sends says nothing about the body: nobody posts forms here.
	if ct := h.Get("Content-Type"); ct != "" && !strings.HasPrefix(ct, "application/x-www-form-urlencoded") {
		out = append(out, event.Header{Key: "content-type", Value: []byte(ct)})
	}
	for _, name := range []string{"Traceparent", "Tracestate"} {
		if v := h.Get(name); v != "" {
			out = append(out, event.Header{Key: strings.ToLower(name), Value: []byte(v)})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		key, ok := strings.CutPrefix(name, headerPrefix)
		if !ok || key == "" {
			continue
		}
		for _, v := range h[name] {
			out = append(out, event.Header{Key: strings.ToLower(key), Value: []byte(v)})
		}
	}
	return out
}

// produceV2 serves POST /topics/{topic} and POST /topics/{topic}/partitions/{partition}, the
// REST Proxy's produce: many records, each with a result of its own.
//
//	200 a result for each record, in their order; a failed one has error_code and error
//	204 with ?async=true: Kafka has not answered yet
//	400 not JSON, or not base64   403 with results, too: Kafka does not let us write   404 no such topic or partition   413 body too large
//	415 not a format of ours      422 not what the dialect allows  429 over a limit
//	503 Kafka out of reach: not one record was acknowledged; see Retry-After
func (s *Server) produceV2(w http.ResponseWriter, r *http.Request) error {
	ctx := s.bound(r)
	defer ctx.end()
	format, err := restproxy.FormatOf(r.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return err
	}
	params, err := query(r, "async")
	if err != nil {
		return err
	}
	async := params.Get("async")
	if async != "" && async != "true" && async != "false" {
		return event.Errorf(event.Invalid, 0, "produce", "async is %q; it must be true or false", async)
	}
	topic, partition := r.PathValue("topic"), event.AnyPartition
	if r.PathValue("partition") != "" {
		if partition, err = partitionOf(r); err != nil {
			return err
		}
	}
	if err := s.checkPlace(ctx, topic, partition); err != nil {
		return err
	}
	body, release, err := s.readBody(r, s.opts.Limits.BatchBytes, "MAX_BATCH_BYTES")
	defer func() { release() }()
	if err != nil {
		return err
	}
	records, err := restproxy.DecodeProduce(body, format, s.opts.Limits.Records)
	if err != nil {
		return err
	}
	if async == "true" {
		done := release
		release = func() {} // once Kafka has acknowledged the last one
		return s.produceAsync(ctx, w, records, topic, partition, done)
	}
	results := s.produceAll(ctx, records, topic, partition)
	reuse(body) // librdkafka has its own copy, also of what is not acknowledged yet
	if err := noneStored(results); err != nil {
		return err
	}
	answer := restproxy.AppendProduced(buffer(0), results, errorItem)
	_ = s.write(w, producedStatus(results), restproxy.ContentType, answer)
	reuse(answer)
	return nil
}

// produceAsync hands the records over and answers with 204 before Kafka has acknowledged them. All
// of them must name a partition that there is, or none. What becomes of them is in the metrics
// and, where one is not stored, in the log; a shutdown waits for it. done is called when the last
// one has its result.
func (s *Server) produceAsync(ctx *bounded, w http.ResponseWriter, records []event.Record, topic string, partition int32, done func()) error {
	var open, failed atomic.Int64
	open.Store(1) // this call
	requestID := w.Header().Get(requestIDHeader)
	end := func() {
		if open.Add(-1) > 0 {
			return
		}
		done()
		if n := failed.Load(); n > 0 {
			s.log.WarnContext(ctx.request, "records that nobody waits for were not stored", "request_id", requestID, "topic", topic, "records", len(records), "failed", n)
		}
	}
	defer end()
	for i := range records {
		rec := &records[i]
		rec.Topic = topic
		if rec.Partition == event.AnyPartition {
			rec.Partition = partition
		} else if err := s.checkPlace(ctx, topic, rec.Partition); err != nil {
			return err
		}
	}
	stream, mark := s.recordStream(ctx, len(records), func(_ int, err error) {
		if err != nil {
			failed.Add(1)
		}
		end()
	})
	defer stream.Close()
	for i := range records {
		open.Add(1)
		mark(&records[i])
		if err := stream.Send(ctx, records[i]); err != nil {
			open.Add(-1)
			failed.Add(int64(len(records) - i))
			if i > 0 && asError(err).Kind == event.Unavailable {
				return &event.Error{
					Kind: event.Unavailable, Code: codeUnavailable, Op: "produce", Err: err,
					Msg: fmt.Sprintf("Kafka does not acknowledge records at present: the first %d of %d may be stored, or not, and the others are not; repeat the request later, and expect that records can come twice", i, len(records)),
				}
			}
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// produceAll produces the records that name no partition, or one that there is.
func (s *Server) produceAll(ctx *bounded, records []event.Record, topic string, partition int32) []event.Result {
	var refused map[int]error
	n := 0 // to be sent: they close up over the refused ones
	for i := range records {
		rec := &records[i]
		rec.Topic = topic
		if rec.Partition == event.AnyPartition {
			rec.Partition = partition
		} else if err := s.checkPlace(ctx, topic, rec.Partition); err != nil {
			if refused == nil {
				refused = make(map[int]error)
			}
			refused[i] = err
			continue
		}
		if n < i {
			records[n] = *rec
		}
		n++
	}
	sent := s.Producer.Produce(ctx.request, ctx.until, records[:n])
	if refused == nil {
		return sent
	}
	results := make([]event.Result, len(records))
	for i := range results {
		if err := refused[i]; err != nil {
			results[i].Err = err
		} else {
			results[i], sent = sent[0], sent[1:]
		}
	}
	return results
}

// checkPlace returns NotFound where there is no such topic, or no such partition.
func (s *Server) checkPlace(ctx context.Context, topic string, partition int32) error {
	if partition == event.AnyPartition {
		return s.Topics.CheckTopic(ctx, topic)
	}
	return s.Topics.CheckPartition(ctx, event.TopicPartition{Topic: topic, Partition: partition})
}

// noneStored returns an error when Kafka took no record at all: then the request as a whole
// can be repeated, and Retry-After says when.
func noneStored(results []event.Result) error {
	var last error
	for _, r := range results {
		var ee *event.Error
		if !errors.As(r.Err, &ee) || ee.Kind != event.Unavailable {
			return nil
		}
		last = r.Err
	}
	return last
}

// producedStatus is 403 when Kafka did not let us write a record, as the dialect has it.
func producedStatus(results []event.Result) int {
	for i := range results {
		if err := results[i].Err; err != nil && asError(err).Kind == event.Forbidden {
			return http.StatusForbidden
		}
	}
	return http.StatusOK
}

// errorItem is what a record's result says of its error: the dialect's two codes of Kafka's
// own failures, and the code that the error would have alone otherwise.
func errorItem(err error) (code int, msg string) {
	ee := asError(err)
	switch ee.Kind {
	case event.Unavailable, event.TooMany:
		return 50003, ee.Msg // may be repeated
	case event.Internal:
		return 50002, ee.Msg
	}
	return codeOf(ee), ee.Msg
}
