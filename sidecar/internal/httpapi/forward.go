package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
	"postamt/sidecar/internal/session"
)

// Any replica answers for any session: one that does not have it forwards the request to the
// one that does, or takes the session over when that one is gone. docs/decisions/0003 says why
// it is done this way.

const (
	// forwardHeader marks a request of another replica. It is a signature over the method, the
	// path with its query, and the boot id of the replica that is meant.
	forwardHeader = "Postamt-Forwarded"
	// forwardMethodHeader is the method of a read, which is forwarded as a POST.
	forwardMethodHeader = "Postamt-Method"
	// framedHeader marks an answer to a read: its body is parts, each after its length in four
	// bytes, big end first. After one of length 0 the owner waits for the end of the request's
	// body, which says that the client has been sent all but its answer's last byte; then comes
	// one byte more. The value is the Content-Length of the answer, if that is known.
	framedHeader = "Postamt-Framed"

	// A replica that is gone is to be noticed soon; the others are on the same network.
	replicaDialTimeout = 750 * time.Millisecond
	// replicaGrace is how much longer than what was asked for a replica may take to answer.
	replicaGrace = 5 * time.Second
	// replicaTimeout bounds the answer to what is not a read; a commit may take 10 s.
	replicaTimeout = 15 * time.Second
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

// Outcomes of forwarding, but for nil, which is an answer.
var (
	errUnreachable = errors.New("the replica does not answer")
	errElsewhere   = errors.New("the replica does not have the session")
)

// withSession serves a request of a session wherever that is.
func (s *Server) withSession(h func(http.ResponseWriter, *http.Request, *session.Session) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if claim := r.Header.Get(forwardHeader); claim != "" {
			return s.serveForwarded(w, r, claim, h)
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
					s.log.Info("a replica does not answer", "address", p.Owner.Address, "path", r.URL.Path, "error", err)
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

// serveForwarded serves what another replica has sent here. It is never sent on.
func (s *Server) serveForwarded(w http.ResponseWriter, r *http.Request, claim string, h func(http.ResponseWriter, *http.Request, *session.Session) error) error {
	misdirected := event.Errorf(event.Misdirected, 0, "forwarded", "this replica does not have the session")
	want, err := s.Sessions.Sign(r.Context(), forwardText(r, s.Sessions.Boot()))
	if err != nil {
		return err
	}
	if got, err := hex.DecodeString(claim); err != nil || !hmac.Equal(got, want) {
		return misdirected
	}
	p, err := s.Sessions.Here(r.Context(), r.PathValue("group"), r.PathValue("instance"))
	if p.Session != nil {
		defer p.Done()
	}
	if err == nil {
		err = h(w, r, p.Session)
	}
	if errors.Is(err, session.ErrMoved) {
		return misdirected
	}
	return err
}

func forwardText(r *http.Request, boot string) string {
	return r.Method + " " + r.URL.RequestURI() + " " + boot
}

// forward sends a request to the replica that has its session, and its answer to the client.
// With errUnreachable and errElsewhere nothing has been answered.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, p session.Place, body []byte) error {
	signature, err := s.Sessions.Sign(r.Context(), forwardText(r, p.Owner.Boot))
	if err != nil {
		return err
	}
	send := s.forwardPlain
	if reads(r) {
		send = s.forwardRead
	}
	// A connection that was open may just have been closed: that says nothing of the replica.
	for try := 1; ; try++ {
		err = send(w, r, p.Owner.Address, hex.EncodeToString(signature), body)
		if !errors.Is(err, errUnreachable) || try == 2 || dialFailed(err) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	switch {
	case r.Context().Err() != nil:
		return event.Errorf(event.Gone, 0, "forward", "the client went away")
	case errors.Is(err, errUnreachable):
		s.metrics.forwarded.WithLabelValues("unreachable").Inc()
	case errors.Is(err, errElsewhere):
		s.metrics.forwarded.WithLabelValues("moved").Inc()
	default:
		s.metrics.forwarded.WithLabelValues("served").Inc()
	}
	return err
}

func dialFailed(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

// reads tells whether a request is one for records.
func reads(r *http.Request) bool {
	return r.Method == http.MethodGet && r.Pattern == "/consumers/{group}/instances/{instance}/records"
}

// request makes what is sent to another replica.
func (s *Server) request(ctx context.Context, w http.ResponseWriter, r *http.Request, method, address, signature string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+r.URL.RequestURI(), body)
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	for _, hop := range []string{"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Content-Length", forwardMethodHeader} {
		req.Header.Del(hop)
	}
	req.Header.Set(forwardHeader, signature)
	req.Header.Set(requestIDHeader, w.Header().Get(requestIDHeader))
	return req, nil
}

func unreachable(err error) error { return errors.Join(errUnreachable, err) }

// forwardPlain forwards a request whose answer is short.
func (s *Server) forwardPlain(w http.ResponseWriter, r *http.Request, address, signature string, body []byte) error {
	ctx, cancel := context.WithTimeout(r.Context(), replicaTimeout)
	defer cancel()
	req, err := s.request(ctx, w, r, r.Method, address, signature, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := s.replicas.Do(req)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxReplicaAnswer))
	switch {
	case err != nil:
		return unreachable(err)
	case resp.StatusCode == http.StatusMisdirectedRequest:
		return errElsewhere
	}
	return s.pass(w, resp, answer)
}

// pass answers as another replica has.
func (s *Server) pass(w http.ResponseWriter, resp *http.Response, body []byte) error {
	for _, name := range []string{"Retry-After", "Allow"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	if resp.StatusCode == http.StatusNoContent {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	_ = s.write(w, resp.StatusCode, resp.Header.Get("Content-Type"), body)
	return nil
}

// forwardRead forwards a read. The owner must not take records for delivered that the client
// has not received: so it keeps back the last byte of its answer until it is told that all
// others have been, and so does this side towards the client.
func (s *Server) forwardRead(w http.ResponseWriter, r *http.Request, address, signature string, _ []byte) error {
	wait := s.opts.Session.MaxWait // the owner knows what the session's own is
	if asked, err := positive(r.URL.Query(), "timeout", int64(wait/time.Millisecond), int64(wait/time.Millisecond)); err == nil {
		wait = time.Duration(asked) * time.Millisecond
	}
	req, err := s.request(r.Context(), w, r, http.MethodPost, address, signature, nil)
	if err != nil {
		return err
	}
	req.Header.Set(forwardMethodHeader, http.MethodGet)
	conn, err := s.openForwarded(req)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(r.Context(), func() { _ = conn.Close() })()
	_ = conn.SetDeadline(time.Now().Add(wait + replicaGrace))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return unreachable(err)
	}
	defer func() { _ = resp.Body.Close() }()
	length, framed := resp.Header[framedHeader]
	if !framed { // an error
		answer, err := io.ReadAll(io.LimitReader(resp.Body, maxReplicaAnswer))
		switch {
		case err != nil:
			return unreachable(err)
		case resp.StatusCode == http.StatusMisdirectedRequest:
			return errElsewhere
		}
		return s.pass(w, resp, answer)
	}
	begun := false
	err = s.forwardFrames(w, conn, resp.Body, func() {
		begun = true
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		if length[0] != "" {
			w.Header().Set("Content-Length", length[0])
		}
		w.WriteHeader(resp.StatusCode)
	})
	switch {
	case err != nil && begun: // it cannot be mended: the client is not to take it for whole
		return &event.Error{Kind: event.Gone, Op: "forward", Msg: "the answer broke off", Err: err}
	case err != nil:
		return unreachable(err)
	}
	return nil
}

// forwardFrames sends the client what comes in frames; begin is called before the first byte.
func (s *Server) forwardFrames(w http.ResponseWriter, conn net.Conn, body io.Reader, begin func()) error {
	var head [4]byte
	buf := make([]byte, 1+sendStep) // the first byte is the one that is kept back
	kept := 0
	for {
		_ = conn.SetDeadline(time.Now().Add(s.opts.ReadTimeout))
		if _, err := io.ReadFull(body, head[:]); err != nil {
			return err
		}
		frame := int(binary.BigEndian.Uint32(head[:]))
		if frame == 0 {
			break
		}
		for frame > 0 {
			n := min(frame, sendStep)
			_ = conn.SetDeadline(time.Now().Add(s.opts.ReadTimeout))
			if _, err := io.ReadFull(body, buf[1:1+n]); err != nil {
				return err
			}
			if kept == 0 {
				begin()
			}
			if err := s.push(w, buf[1-kept:n]); err != nil {
				return err
			}
			buf[0], kept = buf[n], 1
			frame -= n
		}
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	_ = conn.SetDeadline(time.Now().Add(replicaGrace))
	if _, err := io.WriteString(conn, lastChunk); err != nil {
		return err
	}
	if _, err := io.ReadFull(body, head[:1]); err != nil {
		return err
	}
	return s.send(w, buf[:kept])
}

// lastChunk ends a request's body.
const lastChunk = "0\r\n\r\n"

// openForwarded sends a request's header on a connection of its own; its body has begun and is
// empty. It is not an http.Client that does this: one that waits for a body to go on does not
// notice that the other side has gone.
func (s *Server) openForwarded(req *http.Request) (net.Conn, error) {
	dialer := net.Dialer{Timeout: replicaDialTimeout, KeepAlive: 5 * time.Second}
	conn, err := dialer.DialContext(req.Context(), "tcp", req.URL.Host)
	if err != nil {
		return nil, err
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n", req.Method, req.URL.RequestURI(), req.URL.Host)
	_ = req.Header.Write(&head)
	head.WriteString("\r\n")
	_ = conn.SetDeadline(time.Now().Add(replicaGrace))
	if _, err := conn.Write(head.Bytes()); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// arrival is what a forwarder says of the answer to a read: nil for a client's own request.
type arrival struct {
	w    http.ResponseWriter
	said chan error // nil: all has arrived but the last byte
	done sync.WaitGroup
}

// arrivalOf listens to the body of a forwarded read. cancel is called when the forwarder goes
// away.
func (s *Server) arrivalOf(w http.ResponseWriter, r *http.Request, cancel func()) *arrival {
	if r.Header.Get(forwardHeader) == "" {
		return nil
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // the body ends when the answer has arrived
	a := &arrival{w: w, said: make(chan error, 1)}
	a.done.Go(func() {
		_, err := io.Copy(io.Discard, r.Body)
		a.said <- err
		if err != nil {
			cancel()
		}
	})
	return a
}

// end stops listening.
func (a *arrival) end() {
	if a == nil {
		return
	}
	_ = http.NewResponseController(a.w).SetReadDeadline(time.Now())
	a.done.Wait()
}

// lost returns why an answer cannot arrive any more.
func (a *arrival) lost() error {
	if a == nil {
		return nil
	}
	select {
	case err := <-a.said:
		a.said <- err
		if err == nil {
			err = errors.New("the forwarder ended before the answer")
		}
		return err
	default:
		return nil
	}
}

// writeToArrive answers with a batch, and marks it as delivered once the client has been sent
// all of it. An error means that it has not.
func (s *Server) writeToArrive(w http.ResponseWriter, batch *session.Batch, format restproxy.Format, a *arrival) error {
	if a == nil {
		if err := s.writeRecords(w, batch.Records, format); err != nil {
			return err
		}
		batch.Delivered()
		return nil
	}
	if err := s.writeRecords(&framer{ResponseWriter: w}, batch.Records, format); err != nil {
		return err
	}
	if err := s.send(w, []byte{0, 0, 0, 0}); err != nil {
		return err
	}
	timeout := time.NewTimer(2 * s.opts.ReadTimeout) // what is between us and a slow client
	defer timeout.Stop()
	select {
	case err := <-a.said:
		if a.said <- err; err != nil {
			return err
		}
	case <-timeout.C:
		return context.DeadlineExceeded
	}
	batch.Delivered()
	_ = s.send(w, []byte{1}) // what has arrived has
	return nil
}

// framer writes each part of an answer after its length.
type framer struct {
	http.ResponseWriter
	begun bool
}

func (f *framer) WriteHeader(status int) {
	f.begun = true
	h := f.Header()
	h.Set(framedHeader, h.Get("Content-Length"))
	h.Del("Content-Length")
	f.ResponseWriter.WriteHeader(status)
}

func (f *framer) Write(b []byte) (int, error) {
	if !f.begun {
		f.WriteHeader(http.StatusOK)
	}
	if len(b) == 0 {
		return 0, nil
	}
	if _, err := f.ResponseWriter.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b)))); err != nil { //nolint:gosec // at most sendStep
		return 0, err
	}
	return f.ResponseWriter.Write(b)
}

func (f *framer) Unwrap() http.ResponseWriter { return f.ResponseWriter }
