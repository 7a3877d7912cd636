package httpapi

import (
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
	"postamt/sidecar/internal/session"
	"postamt/sidecar/internal/trace"
)

// Any replica answers for any session: one that does not have it forwards the request to the
// one that does, or takes the session over when that one is gone. docs/decisions/0003 says why
// it is done this way.

const (
	// forwardHeader marks a request of another replica. It is a signature over the method, the
	// path with its query, and the boot id of the replica that is meant.
	forwardHeader = "Postamt-Forwarded"
	// batchHeader names what a forwarded request gets. Where the answer has it, too, the answer is
	// records, and goes on after its last byte until the forwarder has said that the client was
	// sent all of it.
	batchHeader = "Postamt-Batch"
	// lengthHeader is how many bytes of records there are.
	lengthHeader = "Postamt-Length"
	// batchPath is what a forwarder asks about a batch: GET says that it is still there, and asks
	// whether the owner is; POST that the client was sent all.
	batchPath = "/replica/batches/"

	// A replica that is gone is to be noticed soon; the others are on the same network.
	replicaDialTimeout = 750 * time.Millisecond
	// replicaGrace is how much longer than what was asked for a replica may take to answer before
	// it is asked whether it is alive, and how often it is asked then.
	replicaGrace = 5 * time.Second
	// pingTimeout is how soon it must say so.
	pingTimeout = time.Second
	// maxMissed is how often in a row it may fail to while it answers.
	maxMissed = 3
	// maxReplicaAnswer bounds answers that are not records, in bytes.
	maxReplicaAnswer = 8 << 20
	// maxMoves is how often a request looks for its session anew.
	maxMoves = 8
)

func replicaClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: replicaDialTimeout, KeepAlive: 5 * time.Second}).DialContext,
			MaxIdleConnsPerHost: 256,
			IdleConnTimeout:     time.Minute, // before the other side would close them
			DisableCompression:  true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Outcomes of forwarding, but for nil, which is an answer. Nothing has been answered then.
var (
	errUnreachable = errors.New("the replica does not answer")
	errElsewhere   = errors.New("the replica does not have the session")
	errBrokeOff    = errors.New("the connection broke off") // which may be of the connection only
	errBusy        = event.Errorf(event.Unavailable, codeUnavailable, "forward", "the replica that has the session is alive, and has not answered in time: the session may be busy with other requests; repeat the request")
	errStopping    = event.Errorf(event.Unavailable, codeUnavailable, "forward", "this replica is about to stop; repeat the request")
)

// withSession serves a request of a session wherever that is.
func (s *Server) withSession(h func(http.ResponseWriter, *http.Request, *session.Session) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if isForwarded(r) {
			return s.serveForwarded(w, r, h)
		}
		body, err := s.repeatable(r)
		if err != nil {
			return err
		}
		var before session.Place
		for move := 1; ; move++ {
			p, err := s.Sessions.Find(r.Context(), r.PathValue("group"), r.PathValue("instance"))
			switch {
			case p.Session != nil:
				if err == nil {
					r.Body = io.NopCloser(bytes.NewReader(body))
					err = h(w, r, p.Session)
				}
				p.Done()
				if !errors.Is(err, session.ErrMoved) {
					return err
				}
			case err != nil:
				return err
			case p.Owner.Boot == "", p.Owner == before.Owner && p.Epoch == before.Epoch:
				// Nobody has it, or it was not where it is said to be.
				err = s.takeOver(r.Context(), p)
			default:
				if err = s.forward(w, r, p, body); err == nil {
					return nil
				}
				if errors.Is(err, errUnreachable) {
					s.log.WarnContext(r.Context(), "a replica does not answer: its session is taken over", "address", p.Owner.Address, "path", r.URL.Path, "error", err)
					err = s.takeOver(r.Context(), p)
				}
				if errors.Is(err, errElsewhere) {
					before = p
				}
			}
			switch {
			case err == nil: // it is ours now
				continue
			case !errors.Is(err, session.ErrMoved) && !errors.Is(err, errElsewhere):
				return err
			case move >= maxMoves:
				return session.ErrMoved
			}
			if err := s.Sessions.Refresh(r.Context()); err != nil {
				return err
			}
		}
	}
}

func (s *Server) takeOver(ctx context.Context, p session.Place) error {
	err := s.Sessions.TakeOver(ctx, p)
	switch {
	case err == nil:
		s.metrics.takenOver.WithLabelValues("taken").Inc()
	case errors.Is(err, session.ErrMoved):
		s.metrics.takenOver.WithLabelValues("lost").Inc()
	default:
		s.metrics.takenOver.WithLabelValues("failed").Inc()
	}
	return err
}

// repeatable reads a request's body whole, so that it can be sent, or read, again.
func (s *Server) repeatable(r *http.Request) ([]byte, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	limit := s.opts.Limits.BodyBytes
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	switch {
	case int64(len(body)) > limit:
		return nil, event.Errorf(event.TooLarge, 0, "read body", "the body is larger than %d bytes (MAX_BODY_BYTES)", limit)
	case err != nil:
		return nil, bodyError(err)
	}
	return body, nil
}

func isForwarded(r *http.Request) bool { return r.Header.Get(forwardHeader) != "" }

var errMisdirected = event.Errorf(event.Misdirected, 0, "forwarded", "this replica does not have the session")

// prove checks that a request comes from a replica that means this one. Nothing that it says in
// its headers is heeded before.
func (s *Server) prove(w http.ResponseWriter, r *http.Request) error {
	want, err := s.Sessions.Sign(r.Context(), forwardText(r.Method, r.URL.RequestURI(), s.Sessions.Boot()))
	if err != nil {
		return err
	}
	if got, err := hex.DecodeString(r.Header.Get(forwardHeader)); err != nil || !hmac.Equal(got, want) {
		return errMisdirected
	}
	if rec, ok := w.(*recorder); ok {
		rec.forwarded = true
	}
	return nil
}

func forwardText(method, uri, boot string) string { return method + " " + uri + " " + boot }

// serveForwarded serves what another replica has sent here. It is never sent on.
func (s *Server) serveForwarded(w http.ResponseWriter, r *http.Request, h func(http.ResponseWriter, *http.Request, *session.Session) error) error {
	if err := s.prove(w, r); err != nil {
		return err
	}
	p, err := s.Sessions.Here(r.Context(), r.PathValue("group"), r.PathValue("instance"))
	if p.Session != nil {
		defer p.Done()
	}
	if err == nil {
		err = h(w, r, p.Session)
	}
	if errors.Is(err, session.ErrMoved) {
		return errMisdirected
	}
	return err
}

// outgoing is a batch that another replica gives to its client.
type outgoing struct {
	arrived chan struct{} // gets a token when the client was sent all of it
	silence *time.Timer   // ends it when the other replica says nothing any more
}

// giveThrough gives a batch to another replica, which gives it to its client. Without an error
// the client was sent all of it.
//
// Nothing but the other replica knows how long its client takes, so it is not the time that a
// write takes which ends this, but silence.
func (s *Server) giveThrough(w http.ResponseWriter, r *http.Request, batch *session.Batch, format restproxy.Format) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	defer context.AfterFunc(ctx, func() { _ = rc.SetWriteDeadline(time.Now()) })()
	out := &outgoing{make(chan struct{}, 1), time.AfterFunc(maxMissed*s.opts.ReplicaGrace, cancel)}
	defer out.silence.Stop()
	// Others cannot ask us any more then.
	defer context.AfterFunc(s.stopping, func() { out.silence.Reset(s.opts.ReplicaGrace) })()
	id := r.Header.Get(batchHeader)
	s.outgoing.Store(id, out)
	defer s.outgoing.CompareAndDelete(id, out)
	w.Header().Set(batchHeader, id)
	if err := s.writeRecords(patient{w}, batch.Records, format, lengthHeader); err != nil {
		return err
	}
	select {
	case <-out.arrived:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-out.arrived: // both
		return nil
	default:
		return ctx.Err()
	}
}

// patient is an answer whose writes may take long.
type patient struct{ http.ResponseWriter }

func (patient) SetWriteDeadline(time.Time) error { return nil }

func (p patient) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// serveBatch serves what other replicas say of a batch: 204, or 404 when it is given again.
func (s *Server) serveBatch(w http.ResponseWriter, r *http.Request) error {
	if err := s.prove(w, r); err != nil {
		return err
	}
	var out *outgoing
	if v, ok := s.outgoing.Load(r.PathValue("batch")); ok {
		out, _ = v.(*outgoing)
	}
	switch {
	case r.Method == http.MethodPost && out == nil:
		return event.Errorf(event.NotFound, 0, "batch", "this batch is not on its way any more")
	case r.Method == http.MethodPost:
		select {
		case out.arrived <- struct{}{}:
		default: // it has been said before
		}
	case out != nil && s.stopping.Err() == nil:
		out.silence.Reset(maxMissed * s.opts.ReplicaGrace)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// tell asks another replica about a batch, or tells it.
func (s *Server) tell(ctx context.Context, method string, to session.Owner, batch string) error {
	path := batchPath + batch
	signature, err := s.Sessions.Sign(ctx, forwardText(method, path, to.Boot))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+to.Address+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set(forwardHeader, hex.EncodeToString(signature))
	// So that net/http sends it again where a connection that was kept has just been closed.
	req.Header.Set("Idempotency-Key", batch)
	resp, err := s.replicas.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}

// alive asks whether a replica answers at all.
func (s *Server) alive(ctx context.Context, owner session.Owner, batch string) bool {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return s.tell(ctx, http.MethodGet, owner, batch) == nil
}

// forward sends a request to the replica that has its session, and its answer to the client.
// With errUnreachable and errElsewhere nothing has been answered.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, p session.Place, body []byte) error {
	batch := uuid.NewString()
	err := s.ask(w, r, p.Owner, batch, body)
	if errors.Is(err, errBrokeOff) { // a connection that was kept may just have been closed
		err = s.ask(w, r, p.Owner, batch, body)
	}
	if errors.Is(err, errBrokeOff) {
		err = errors.Join(errUnreachable, err)
	}
	result := "broken"
	switch {
	case err == nil:
		result = "served"
	case r.Context().Err() != nil:
		err = event.Errorf(event.Gone, 0, "forward", "the client went away")
	case errors.Is(err, errUnreachable):
		result = "unreachable"
	case errors.Is(err, errElsewhere):
		result = "moved"
	case errors.Is(err, errBusy):
		result = "busy"
	}
	s.metrics.forwarded.WithLabelValues(result).Inc()
	return err
}

// reads tells whether a request is one for records.
func reads(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Pattern == "/consumers/{group}/instances/{instance}/records"
}

// patience is how long a request may take before its owner is asked whether it is alive, and how
// long when it is.
func (s *Server) patience(r *http.Request) (first, all time.Duration) {
	if !reads(r) {
		return s.opts.ReplicaGrace, s.opts.RequestTimeout
	}
	longest := s.opts.Session.MaxWait // the owner knows what the session's own is
	wait := longest
	if asked, err := positive(r.URL.Query(), "timeout", int64(wait/time.Millisecond), int64(wait/time.Millisecond)); err == nil {
		wait = time.Duration(asked) * time.Millisecond
	}
	return wait + s.opts.ReplicaGrace, longest + wait + s.opts.RequestTimeout // another read may be before it
}

// ask forwards a request once.
func (s *Server) ask(w http.ResponseWriter, r *http.Request, owner session.Owner, batch string, body []byte) error {
	signature, err := s.Sessions.Sign(r.Context(), forwardText(r.Method, r.URL.RequestURI(), owner.Boot))
	if err != nil {
		return err
	}
	// Not the client's context: that ends when the client has all and goes, too.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	clientLeaves := context.AfterFunc(r.Context(), func() { cancel(r.Context().Err()) })
	defer clientLeaves()
	weStop := func() bool { return true }
	if reads(r) {
		weStop = context.AfterFunc(s.stopping, func() { cancel(errStopping) })
		defer weStop()
	}
	var answers atomic.Bool
	var watching sync.WaitGroup
	watching.Go(func() { cancel(s.watch(ctx, r, owner, batch, &answers)) })
	defer watching.Wait()
	defer cancel(nil)

	req, err := http.NewRequestWithContext(ctx, r.Method, "http://"+owner.Address+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = r.Header.Clone()
	// What is of the connection, and what is nobody's business who may have the address by now.
	for _, name := range []string{"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length", "Authorization", "Cookie"} {
		req.Header.Del(name)
	}
	req.Header.Set(forwardHeader, hex.EncodeToString(signature))
	req.Header.Set(batchHeader, batch)
	req.Header.Set(requestIDHeader, w.Header().Get(requestIDHeader))
	if s.Tracer != nil {
		trace.Pass(r.Context(), req.Header)
	}
	resp, err := s.replicas.Do(req)
	answers.Store(err == nil)
	if !weStop() && err == nil {
		_ = resp.Body.Close()
		return errStopping
	}
	if err != nil {
		return s.whyNot(ctx, owner, batch, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Header.Get(batchHeader) != "" {
		given, err := s.passRecords(w, resp, clientLeaves)
		switch {
		case err == nil:
			s.confirm(ctx, owner, batch, resp.Body)
			return nil
		case given: // it cannot be mended: the client is not to take it for whole
			return &event.Error{Kind: event.Gone, Op: "forward", Msg: "the answer broke off", Err: err}
		}
		return s.whyNot(ctx, owner, batch, err)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxReplicaAnswer))
	switch {
	case err != nil:
		return s.whyNot(ctx, owner, batch, err)
	case resp.StatusCode == http.StatusMisdirectedRequest:
		return errElsewhere
	}
	s.pass(w, resp, answer)
	return nil
}

// whyNot says what an error means that came instead of an answer. That a replica takes long does
// not mean that it is gone.
func (s *Server) whyNot(ctx context.Context, owner session.Owner, batch string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	op, ok := errors.AsType[*net.OpError](err)
	switch dial := ok && op.Op == "dial"; {
	case dial && !op.Timeout(), dial && !s.alive(ctx, owner, batch):
		return errors.Join(errUnreachable, err)
	}
	return errors.Join(errBrokeOff, err)
}

// watch returns why a request is not to be waited for any longer: its owner is silent, or takes
// longer than it may.
func (s *Server) watch(ctx context.Context, r *http.Request, owner session.Owner, batch string, answers *atomic.Bool) error {
	first, all := s.patience(r)
	soonest, tick := time.NewTimer(first), time.NewTicker(s.opts.ReplicaGrace)
	defer soonest.Stop()
	defer tick.Stop()
	missed := 0
	for start := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-soonest.C:
		case <-tick.C:
		}
		took := time.Since(start)
		if took < first && !answers.Load() {
			continue
		}
		if s.alive(ctx, owner, batch) {
			missed = 0
		} else {
			missed++
		}
		switch answered := answers.Load(); {
		case missed == maxMissed, missed > 0 && !answered:
			return errUnreachable
		case took > all && !answered:
			return errBusy
		}
	}
}

// pass answers as another replica has.
func (s *Server) pass(w http.ResponseWriter, resp *http.Response, body []byte) {
	for _, name := range []string{"Retry-After", "Allow"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	if resp.StatusCode == http.StatusNoContent {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_ = s.write(w, resp.StatusCode, resp.Header.Get("Content-Type"), body)
}

// passRecords gives the client what another replica gives. It calls whole when it has all of it:
// whether the client is still there shows in writing the rest. given says that the client has
// been answered, error or not.
func (s *Server) passRecords(w http.ResponseWriter, resp *http.Response, whole func() bool) (given bool, err error) {
	length, err := strconv.ParseInt(resp.Header.Get(lengthHeader), 10, 64)
	if err != nil {
		return false, err
	}
	buf := make([]byte, min(length, sendStep))
	for left := length; left > 0; {
		piece := buf[:min(left, sendStep)]
		if _, err := io.ReadFull(resp.Body, piece); err != nil {
			return given, err
		}
		if left -= int64(len(piece)); left == 0 {
			whole()
		}
		if !given {
			given = true
			w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
			w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
			w.WriteHeader(resp.StatusCode)
		}
		if err := s.push(w, piece); err != nil {
			return given, err
		}
	}
	return given, s.send(w, nil)
}

// confirm tells the owner that the client was sent a batch. Where that fails the owner gives it
// again: that is no reason to ask twice.
func (s *Server) confirm(ctx context.Context, owner session.Owner, batch string, rest io.Reader) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ReplicaGrace)
	defer cancel()
	if err := s.tell(ctx, http.MethodPost, owner, batch); err != nil {
		s.log.InfoContext(ctx, "the owner of a session could not be told that its records have arrived; they will come again", "address", owner.Address, "error", err)
		return
	}
	_, _ = io.Copy(io.Discard, rest) // its end: the connection can be kept then
}
