package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// codeUnknownV3 is what v3 calls whatever is not there: a cluster, a topic, a group.
const codeUnknownV3 = 40403

// cluster is the one that v3 shows.
type cluster struct {
	id   string
	base string // its URL as the client sees it
}

// inCluster serves a v3 route below /v3/clusters/{cluster}. An id that is not this cluster's is
// refused for writing, too: it is how a client finds that it is at the wrong place.
func (s *Server) inCluster(h func(http.ResponseWriter, *http.Request, cluster) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c, err := s.cluster(r)
		if err != nil {
			return err
		}
		if asked := r.PathValue("cluster"); asked != c.id {
			return event.Errorf(event.NotFound, codeUnknownV3, "v3", "there is no cluster %q; GET /v3/clusters has the id of the one that there is", asked)
		}
		return asV3(h(w, r, c))
	}
}

func (s *Server) cluster(r *http.Request) (cluster, error) {
	id, err := s.Topics.ID(r.Context())
	return cluster{id, s.baseURL(r) + "/v3/clusters/" + url.PathEscape(id)}, err
}

// asV3 gives an unknown topic v3's code.
func asV3(err error) error {
	if err == nil {
		return nil
	}
	ee := *asError(err)
	if ee.Kind == event.NotFound && ee.Code == codeTopicNotFound {
		ee.Code = codeUnknownV3
	}
	return &ee
}

// errorOfV3 is what one record's report says of its error.
func errorOfV3(err error) (code int, msg string) { return errorOf(asV3(err)) }

// checkV3Body refuses what is not JSON, such as what curl -d says by itself.
func checkV3Body(r *http.Request) error {
	ct := r.Header.Get("Content-Type")
	if mediaType, _, _ := mime.ParseMediaType(ct); mediaType != "application/json" && ct != "" {
		return event.Errorf(event.Unsupported, 0, "content type", "the Content-Type is %s; v3 takes application/json", ct)
	}
	return nil
}

// v3Kept is what is kept of a record for its report, in 16 bytes.
type v3Kept struct {
	milliseconds int64
	key, value   v3Part
}

// v3Part is a restproxy.V3Part: the type in the two lowest bits, the size above.
type v3Part uint32

var v3Types = []string{"", "BINARY", "JSON", "STRING"}

func packV3(p restproxy.V3Part) v3Part {
	for i, name := range v3Types {
		if name == p.Type {
			return v3Part(p.Size<<2 | i) //nolint:gosec // a size is below MAX_BODY_BYTES
		}
	}
	return 0
}

func (p v3Part) unpack() restproxy.V3Part {
	return restproxy.V3Part{Type: v3Types[p&3], Size: int(p >> 2)}
}

// produceV3 serves POST /v3/clusters/{cluster}/topics/{topic}/records: JSON objects, one after the
// other with or without space between, read and produced while the body arrives. The answer
// begins after the end of the body and has one report for each record, in their order, each with
// CRLF after it: {"error_code":200,…}, or {"error_code","message"} of one that is not stored. A
// body that cannot be read on ends with one more such report, after which nothing was read.
//
//	200 each record has its report      404 no such cluster or topic (40403)
//	415 not application/json            422 an empty body ("Error: 42206 : …")
//	429 over a limit                    503 Kafka out of reach: not one record was acknowledged
//
// Where there is no report to give, what ended the body is an answer of its own: 408, 413, and 400
// where it is not packed as its header says.
func (s *Server) produceV3(w http.ResponseWriter, r *http.Request, c cluster) error {
	if _, err := query(r); err != nil {
		return err
	}
	if err := checkV3Body(r); err != nil {
		return err
	}
	topic := r.PathValue("topic")
	if err := s.checkPlace(r.Context(), topic, event.AnyPartition); err != nil {
		return err
	}
	records := &v3Records{}
	return s.receive(w, r, topic, resultBytes+16, func(body io.Reader) recordReader {
		records.pieces = pieceReader{src: body, max: int(s.opts.Limits.BodyBytes), end: new(objectEnd).find, what: "record"}
		return records
	}, func(u *upload) {
		if u.received == 0 {
			s.fail(w, r, restproxy.V3EmptyBody())
			return
		}
		s.answerV3(w, u, c, topic, records.kept, records.broken != nil)
	})
}

// answerV3 writes the reports. broken says that the last of them is of what ended the body.
func (s *Server) answerV3(w http.ResponseWriter, u *upload, c cluster, topic string, kept []v3Kept, broken bool) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	b := make([]byte, 0, sendStep)
	for i, result := range u.stream.Results() {
		if result.Err != nil {
			code, msg := errorOfV3(result.Err)
			b = restproxy.AppendError(b, code, msg)
		} else {
			b = restproxy.AppendV3Report(append(b, `{"error_code":200,`...), restproxy.V3Place{
				Cluster: c.id, Topic: topic, Partition: result.Place.Partition, Offset: result.Place.Offset,
				Timestamp: time.UnixMilli(kept[i].milliseconds),
			}, kept[i].key.unpack(), kept[i].value.unpack())
		}
		b = append(b, "\r\n"...)
		if len(b) >= sendStep/2 {
			if s.send(w, b) != nil {
				return // nobody reads it
			}
			b = b[:0]
		}
	}
	if u.ended != nil && !broken {
		code, msg := errorOfV3(u.ended)
		b = append(restproxy.AppendError(b, code, msg), "\r\n"...)
	}
	_ = s.send(w, b)
}

// v3Records reads records from JSON objects.
type v3Records struct {
	pieces pieceReader
	kept   []v3Kept
	broken *event.Error // where it is no JSON, if that has been met
}

func (v *v3Records) next() (event.Record, *event.Error, error) {
	for {
		if v.broken != nil {
			return event.Record{}, nil, v.broken
		}
		text, err := v.pieces.next()
		if ee, ok := errors.AsType[*event.Error](err); ok && ee.Kind == event.Invalid {
			return v.breakOff(ee)
		}
		if err != nil {
			return event.Record{}, nil, err
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue // after the last one
		}
		if !json.Valid(text) {
			return v.breakOff(event.Errorf(event.Invalid, 0, "read body", "record %d is not JSON: %v; nothing after it was read", len(v.kept)+1, json.Unmarshal(text, new(any))))
		}
		rec, bad := restproxy.DecodeV3(text)
		v.kept = append(v.kept, v3Kept{rec.Timestamp.UnixMilli(), packV3(rec.KeyPart), packV3(rec.ValuePart)})
		return rec.Record, bad, nil
	}
}

// breakOff makes a record, which fails, of what is no JSON, so that it has its report also where
// it is the first. The next call ends the body.
func (v *v3Records) breakOff(err *event.Error) (event.Record, *event.Error, error) {
	v.broken = err
	v.kept = append(v.kept, v3Kept{})
	return event.Record{}, err, nil
}

func (v *v3Records) ahead() int { return v.pieces.ahead() }

// objectEnd finds the end of a JSON object, whatever is in it: what is between its braces is for
// the decoder to judge.
type objectEnd struct {
	depth             int
	inString, escaped bool
}

func (o *objectEnd) find(b []byte) (int, error) {
	for i, c := range b {
		switch {
		case o.escaped:
			o.escaped = false
		case o.inString:
			o.escaped = c == '\\'
			o.inString = c != '"'
		case c == '{':
			o.depth++
		case o.depth == 0:
			if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
				return 0, event.Errorf(event.Invalid, 0, "read body", "a record must be a JSON object, and what follows begins with %q; nothing from there on was read", c)
			}
		case c == '"':
			o.inString = true
		case c == '}':
			if o.depth--; o.depth == 0 {
				return i + 1, nil
			}
		}
	}
	return 0, nil
}

// produceV3Batch serves POST /v3/clusters/{cluster}/topics/{topic}/records:batch: {"entries":[{"id":
// "1", …}]}, answered with 207 and the entries' ids: {"successes":[…],"failures":[…]}. Statuses
// are those of produceV3; a batch that is not allowed is a 422 ("Error: 42208 : …").
func (s *Server) produceV3Batch(w http.ResponseWriter, r *http.Request, c cluster) error {
	ctx := s.bound(r)
	defer ctx.end()
	if _, err := query(r); err != nil {
		return err
	}
	if err := checkV3Body(r); err != nil {
		return err
	}
	topic := r.PathValue("topic")
	if err := s.checkPlace(ctx, topic, event.AnyPartition); err != nil {
		return err
	}
	body, release, err := s.readBody(r, s.opts.Limits.BatchBytes, "MAX_BATCH_BYTES")
	defer release()
	if err != nil {
		return err
	}
	entries, err := restproxy.DecodeV3Batch(body, s.opts.Limits.BatchEntries)
	if err != nil {
		return err
	}
	var send []event.Record
	var index []int
	for i := range entries {
		if entries[i].Err == nil {
			send, index = append(send, entries[i].Record), append(index, i)
		}
	}
	places := make([]restproxy.V3Place, len(entries))
	results := s.produceAll(ctx, send, topic, event.AnyPartition)
	if err := noneStored(results); err != nil && len(send) == len(entries) {
		return err
	}
	for j, result := range results {
		i := index[j]
		if result.Err != nil {
			entries[i].Err = asError(result.Err)
			continue
		}
		p := result.Place
		places[i] = restproxy.V3Place{Cluster: c.id, Topic: topic, Partition: p.Partition, Offset: p.Offset, Timestamp: p.Timestamp}
	}
	_ = s.write(w, http.StatusMultiStatus, "application/json", append(restproxy.AppendV3Batch(nil, entries, places, errorOfV3), '\n'))
	return nil
}

// getBrokers serves GET /brokers: the ids of the brokers that are up.
func (s *Server) getBrokers(w http.ResponseWriter, r *http.Request) error {
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return err
	}
	ids, err := s.Topics.Brokers(r.Context())
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, map[string][]int32{"brokers": ids})
	return nil
}

// getRoot serves GET and POST /, which clients of the REST Proxy ask to see that it is there.
func (s *Server) getRoot(w http.ResponseWriter, r *http.Request) error {
	if err := restproxy.CheckAccept(r.Header.Values("Accept")); err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, struct{}{})
	return nil
}
