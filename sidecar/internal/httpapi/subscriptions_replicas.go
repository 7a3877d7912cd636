package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"postamt/sidecar/internal/event"
)

// OwnDeliveries is what this replica alone knows of subscriptions, for the others that ask.
type OwnDeliveries interface {
	// OwnStatus is false of a subscription that this replica does not deliver.
	OwnStatus(name string) (event.DeliveryStatus, bool)
	OwnAttempts(name string) []event.AttemptRecord
	// OwnSkip is NotFound of a record that is not this replica's to decide.
	OwnSkip(ctx context.Context, name string, tp event.TopicPartition, offset int64) error
}

// replicaSubscriptions begins the paths at which a replica tells the others what it knows.
const replicaSubscriptions = "/replica/subscriptions/"

// replicaRoutes are between replicas only, and so not in the contract: without a body, so that the
// signature over the path and its query is over all that is asked.
func (s *Server) replicaRoutes(mux *http.ServeMux) {
	if s.Sessions != nil {
		mux.HandleFunc(batchPath+"{batch}", s.answer(s.serveBatch))
	}
	if s.OwnDeliveries == nil {
		return
	}
	for path, h := range map[string]handler{
		"GET " + replicaSubscriptions + "{name}/status":   s.serveOwnStatus,
		"GET " + replicaSubscriptions + "{name}/attempts": s.serveOwnAttempts,
		"POST " + replicaSubscriptions + "{name}/skip":    s.serveOwnSkip,
	} {
		mux.HandleFunc(path, s.answer(func(w http.ResponseWriter, r *http.Request) error {
			if err := s.prove(w, r); err != nil {
				return err
			}
			return h(w, r)
		}))
	}
}

func (s *Server) serveOwnStatus(w http.ResponseWriter, r *http.Request) error {
	status, ok := s.OwnDeliveries.OwnStatus(r.PathValue("name"))
	if !ok {
		return event.Errorf(event.NotFound, 0, "status", "this replica does not deliver the subscription")
	}
	s.writeJSON(w, r, http.StatusOK, "application/json", status)
	return nil
}

func (s *Server) serveOwnAttempts(w http.ResponseWriter, r *http.Request) error {
	s.writeJSON(w, r, http.StatusOK, "application/json", s.OwnDeliveries.OwnAttempts(r.PathValue("name")))
	return nil
}

func (s *Server) serveOwnSkip(w http.ResponseWriter, r *http.Request) error {
	params := r.URL.Query()
	partition, ok := parsePartition(params.Get("partition"))
	offset, err := strconv.ParseInt(params.Get("offset"), 10, 64)
	if !ok || err != nil {
		return event.Errorf(event.Invalid, 0, "skip", "the place is not one")
	}
	tp := event.TopicPartition{Topic: params.Get("topic"), Partition: partition}
	if err := s.OwnDeliveries.OwnSkip(r.Context(), r.PathValue("name"), tp, offset); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// Replicas asks other replicas what they know. Each question is signed for the process that is
// meant, which its boot id names: another one at its address is Misdirected.
type Replicas struct {
	sign   func(ctx context.Context, text string) ([]byte, error)
	client *http.Client
}

// NewReplicas makes a client whose questions sign signs, as session.Manager does.
func NewReplicas(sign func(ctx context.Context, text string) ([]byte, error)) *Replicas {
	return &Replicas{sign, replicaClient()}
}

// Close ends connections that nothing is asked over.
func (a *Replicas) Close() { a.client.CloseIdleConnections() }

// Ask sends a question to the replica at an address, and returns its answer. An error of its own
// is an event.Error of the same kind; one that does not answer within ctx is Unavailable.
func (a *Replicas) Ask(ctx context.Context, method, address, boot, uri string) ([]byte, error) {
	const op = "ask replica"
	signature, err := a.sign(ctx, forwardText(method, uri, boot))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+uri, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	req.Header.Set(forwardHeader, hex.EncodeToString(signature))
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: op, Msg: "the replica " + address + " does not answer; repeat the request", Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReplicaAnswer))
	if err != nil {
		return nil, &event.Error{Kind: event.Unavailable, Code: codeUnavailable, Op: op, Msg: "the answer of the replica " + address + " broke off; repeat the request", Err: err}
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return body, nil
	}
	var told errorBody
	if err := json.Unmarshal(body, &told); err != nil {
		return nil, fmt.Errorf("%s: %s answered with %s: %w", op, address, resp.Status, err)
	}
	for kind, status := range statusOf {
		if status == resp.StatusCode {
			return nil, event.Errorf(kind, told.ErrorCode, op, "%s", told.Message)
		}
	}
	return nil, fmt.Errorf("%s: %s answered with %s: %s", op, address, resp.Status, told.Message)
}

// Status asks a replica how far its own partitions are; NotFound means that it has none.
func (a *Replicas) Status(ctx context.Context, address, boot, name string) (event.DeliveryStatus, error) {
	var status event.DeliveryStatus
	body, err := a.Ask(ctx, http.MethodGet, address, boot, replicaSubscriptions+url.PathEscape(name)+"/status")
	if err == nil {
		err = json.Unmarshal(body, &status)
	}
	return status, err
}

// Attempts asks a replica for the newest attempts that it has made.
func (a *Replicas) Attempts(ctx context.Context, address, boot, name string) ([]event.AttemptRecord, error) {
	var attempts []event.AttemptRecord
	body, err := a.Ask(ctx, http.MethodGet, address, boot, replicaSubscriptions+url.PathEscape(name)+"/attempts")
	if err == nil {
		err = json.Unmarshal(body, &attempts)
	}
	return attempts, err
}

// Skip asks a replica to make a dead letter of a record; NotFound means that it is not its to
// decide.
func (a *Replicas) Skip(ctx context.Context, address, boot, name string, tp event.TopicPartition, offset int64) error {
	place := url.Values{"topic": {tp.Topic}, "partition": {strconv.Itoa(int(tp.Partition))}, "offset": {strconv.FormatInt(offset, 10)}}
	_, err := a.Ask(ctx, http.MethodPost, address, boot, replicaSubscriptions+url.PathEscape(name)+"/skip?"+place.Encode())
	return err
}
