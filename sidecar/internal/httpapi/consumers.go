package httpapi

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
	"postamt/sidecar/internal/session"
)

const (
	// defaultWait is how long a read waits for records when nothing else is said.
	defaultWait = time.Second
	// maxNameBytes bounds the names of groups and consumer instances.
	maxNameBytes = 249
)

// createSession serves POST /consumers/{group}: a pull session of a name of the client's, or
// of a new one.
//
//	200 instance_id and base_uri    400 not JSON      409 the name is taken
//	422 a setting is not possible   429 too many sessions
func (s *Server) createSession(w http.ResponseWriter, r *http.Request) error {
	group := r.PathValue("group")
	if err := checkName("consumer group", group); err != nil {
		return err
	}
	if event.OwnGroup(group) {
		return event.Errorf(event.Unprocessable, 0, "create session", "groups that begin with %q are Postamt's own; take another name", "postamt.")
	}
	body, err := s.settings(r)
	if err != nil {
		return err
	}
	c, err := restproxy.DecodeCreateConsumer(body)
	if err != nil {
		return err
	}
	if c.Name == "" {
		c.Name = "rest-consumer-" + uuid.NewString()
	}
	if err := checkName("consumer instance", c.Name); err != nil {
		return err
	}
	if c.Wait == 0 {
		c.Wait = defaultWait
	}
	_, err = s.Sessions.Create(r.Context(), session.Settings{
		Group: group, Name: c.Name, Format: c.Format, FromEarliest: c.FromEarliest, AutoCommit: c.AutoCommit,
		ReadCommitted: c.ReadCommitted, MinBytes: c.MinBytes, Wait: min(c.Wait, s.opts.Session.MaxWait),
	})
	if err != nil {
		return err
	}
	path := "/consumers/" + url.PathEscape(group) + "/instances/" + url.PathEscape(c.Name)
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, struct {
		InstanceID string `json:"instance_id"`
		BaseURI    string `json:"base_uri"`
	}{c.Name, s.baseURL(r) + path})
	return nil
}

// joined makes sure that a session, which may have been taken over, reads what it is to read. What
// ends or replaces that does without: the topic may be gone.
func joined(h func(http.ResponseWriter, *http.Request, *session.Session) error) func(http.ResponseWriter, *http.Request, *session.Session) error {
	return func(w http.ResponseWriter, r *http.Request, in *session.Session) error {
		if err := in.Resume(r.Context()); err != nil {
			return err
		}
		return h(w, r, in)
	}
}

// removeSession serves DELETE …/instances/{instance}: 204, or 404/40403. It needs no replica that
// could read what is stored.
func (s *Server) removeSession(w http.ResponseWriter, r *http.Request) error {
	err := s.withSession(s.deleteSession)(w, r)
	if !errors.Is(err, session.ErrUnreadable) {
		return err
	}
	if err := s.Sessions.Delete(r.Context(), r.PathValue("group"), r.PathValue("instance")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// deleteSession removes a session that is here.
func (s *Server) deleteSession(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	if err := s.Sessions.Delete(r.Context(), in.Group, in.Name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// subscribe serves POST …/subscription: 204; what was subscribed before is replaced.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	body, err := s.settings(r)
	if err != nil {
		return err
	}
	sub, err := restproxy.DecodeSubscription(body)
	if err != nil {
		return err
	}
	for _, topic := range sub.Topics {
		if event.Own(topic) {
			return event.Errorf(event.NotFound, 40401, "subscribe", "there is no topic %q", topic)
		}
	}
	if err := in.Subscribe(r.Context(), slices.Compact(slices.Sorted(slices.Values(sub.Topics))), sub.Pattern); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// getSubscription serves GET …/subscription; of a pattern, the topics that the session has.
func (s *Server) getSubscription(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	topics := in.Subscription()
	if topics == nil {
		topics = []string{}
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, map[string][]string{"topics": topics})
	return nil
}

// unsubscribe serves DELETE …/subscription: 204.
func (s *Server) unsubscribe(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	if err := in.Unsubscribe(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

type topicPartition struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
}

// getAssignments serves GET …/assignments: empty until the group has let the session join.
func (s *Server) getAssignments(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	out := []topicPartition{}
	for _, tp := range in.Assignments() {
		out = append(out, topicPartition(tp))
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, map[string][]topicPartition{"partitions": out})
	return nil
}

// assign serves POST …/assignments: 204; the session reads these partitions without joining
// its group. None ends that. 409/40903 while it is subscribed.
func (s *Server) assign(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	tps, err := s.namedPartitions(r)
	if err != nil {
		return err
	}
	for _, tp := range tps {
		if err := s.Topics.CheckPartition(r.Context(), tp); err != nil {
			return err
		}
	}
	slices.SortFunc(tps, event.TopicPartition.Compare)
	if err := in.Assign(r.Context(), slices.Compact(tps)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// namedPartitions reads a body that lists partitions.
func (s *Server) namedPartitions(r *http.Request) ([]event.TopicPartition, error) {
	body, err := s.settings(r)
	if err != nil {
		return nil, err
	}
	return restproxy.DecodePartitions(body)
}

// seek serves POST …/positions: 204; the next read of a partition starts at the offset, or
// the time, that the body says. 409/40903 for one that the session does not have.
func (s *Server) seek(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	body, err := s.settings(r)
	if err != nil {
		return err
	}
	asked, err := restproxy.DecodePositions(body)
	if err != nil {
		return err
	}
	positions := make([]session.Position, len(asked))
	for i, p := range asked {
		positions[i] = session.Position{TopicPartition: p.TopicPartition, At: session.AtOffset, Offset: p.Offset}
		if !p.Time.IsZero() {
			positions[i].At, positions[i].Time = session.AtTime, p.Time
		}
	}
	if err := in.Seek(r.Context(), positions); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// seekTo serves POST …/positions/beginning and …/positions/end: 204.
func (s *Server) seekTo(where session.Where) func(http.ResponseWriter, *http.Request, *session.Session) error {
	return func(w http.ResponseWriter, r *http.Request, in *session.Session) error {
		tps, err := s.namedPartitions(r)
		if err != nil {
			return err
		}
		positions := make([]session.Position, len(tps))
		for i, tp := range tps {
			positions[i] = session.Position{TopicPartition: tp, At: where}
		}
		if err := in.Seek(r.Context(), positions); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

// readSession serves GET …/records?timeout=&max_bytes=: as soon as there are records, those
// that there are; after the timeout, none. At least one record is given however large it is.
//
//	200 an array of records   404 no such session   406 another format   409 not subscribed
func (s *Server) readSession(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	params, err := query(r, "timeout", "max_bytes")
	if err != nil {
		return err
	}
	if err := restproxy.CheckRecordsAccept(r.Header.Values("Accept"), in.Format); err != nil {
		return err
	}
	wait, err := positive(params, "timeout", int64(s.opts.Session.MaxWait/time.Millisecond), int64(in.Wait/time.Millisecond))
	if err != nil {
		return err
	}
	maxBytes, err := positive(params, "max_bytes", s.opts.Session.MaxBytes, s.opts.Session.MaxBytes)
	if err != nil {
		return err
	}
	// A shutdown ends the wait: the answer is what has come so far.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	batch, err := in.Read(ctx, time.Duration(wait)*time.Millisecond, maxBytes)
	if s.stopping.Err() != nil && r.Context().Err() == nil && (err != nil || isForwarded(r)) {
		if err == nil { // the other replica could not tell us any more that it has arrived
			batch.Failed()
		}
		if isForwarded(r) {
			return session.ErrMoved
		}
		return event.Errorf(event.Unavailable, codeUnavailable, "read", "this replica is about to stop; repeat the request")
	}
	if err != nil {
		return err
	}
	err, failed := r.Context().Err(), batch.Failed
	switch {
	case err != nil:
	case isForwarded(r) && len(batch.Records) > 0:
		failed = batch.Unknown
		err = s.giveThrough(w, r, batch, in.Format)
	default:
		err = s.writeRecords(w, batch.Records, in.Format, "")
	}
	if err != nil { // the next read gives these again
		failed()
		return event.Errorf(event.Gone, 0, "read", "the client went away")
	}
	batch.Delivered()
	s.metrics.read.out(batch.Records, time.Now())
	s.link(r.Context(), batch.Records)
	return nil
}

// positive reads a query parameter that is a number: at most limit, and otherwise where it
// is not there or not positive, as the dialect has it.
func positive(params url.Values, name string, limit, otherwise int64) (int64, error) {
	text := params.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, event.Errorf(event.Invalid, 0, "query", "%s is %q; it must be a whole number", name, text)
	}
	if n <= 0 {
		return otherwise, nil
	}
	return min(n, limit), nil
}

// commitOffsets serves POST …/offsets: without a body everything that the client was given,
// else what it names. The answer comes after Kafka's.
func (s *Server) commitOffsets(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	body, err := s.settings(r)
	if err != nil {
		return err
	}
	commits, err := restproxy.DecodeCommit(body)
	if err != nil {
		return err
	}
	if commits == nil {
		err = in.Commit(r.Context())
	} else {
		err = in.CommitOffsets(r.Context(), commits)
	}
	if err != nil {
		return err
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, []struct{}{})
	return nil
}

type committedOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  string `json:"metadata"`
}

// getCommitted serves GET …/offsets: what the group has committed, which is the offset after
// the one that the client sent. The partitions come in the body, or where a proxy drops
// that, as ?topic=&partition= once for each. Partitions without a commit are left out.
func (s *Server) getCommitted(w http.ResponseWriter, r *http.Request, in *session.Session) error {
	asked, err := s.askedPartitions(r)
	if err != nil {
		return err
	}
	committed, err := s.Topics.Committed(r.Context(), in.Group)
	if err != nil {
		return err
	}
	out := []committedOffset{}
	for _, tp := range asked {
		if err := s.Topics.CheckPartition(r.Context(), tp); err != nil {
			return err
		}
		if c, ok := committed[tp]; ok {
			out = append(out, committedOffset{tp.Topic, tp.Partition, c.Offset, c.Metadata})
		}
	}
	s.writeJSON(w, r, http.StatusOK, restproxy.ContentType, map[string][]committedOffset{"offsets": out})
	return nil
}

func (s *Server) askedPartitions(r *http.Request) ([]event.TopicPartition, error) {
	params, err := queryOfLists(r, "topic", "partition")
	if err != nil {
		return nil, err
	}
	body, err := s.settings(r)
	if err != nil {
		return nil, err
	}
	if len(body) > 0 {
		return restproxy.DecodePartitions(body)
	}
	topics, partitions := params["topic"], params["partition"]
	if len(topics) == 0 || len(topics) != len(partitions) {
		return nil, event.Errorf(event.NotFound, codePartitionNotFound, "offsets", `no partitions are named; they go into the body, {"partitions":[{"topic":"…","partition":0}]}, or into the query, ?topic=…&partition=0`)
	}
	out := make([]event.TopicPartition, len(topics))
	for i := range topics {
		n, ok := parsePartition(partitions[i])
		if !ok {
			return nil, event.Errorf(event.Invalid, 0, "query", "partition is %q; it must be a number from 0 up", partitions[i])
		}
		out[i] = event.TopicPartition{Topic: topics[i], Partition: n}
	}
	return out, nil
}

// settings reads the body of a request to /consumers, in any of the dialect's types.
func (s *Server) settings(r *http.Request) ([]byte, error) {
	body, release, err := s.readBody(r, s.opts.Limits.BodyBytes, "MAX_BODY_BYTES")
	defer release()
	if err != nil || len(body) == 0 {
		return nil, err
	}
	if err := restproxy.CheckContentType(r.Header.Get("Content-Type")); err != nil {
		return nil, err
	}
	return body, nil
}

// checkName refuses names that could not be written into a path or a log line as they are.
func checkName(what, name string) error {
	if len(name) > maxNameBytes {
		return event.Errorf(event.Unprocessable, 0, "check name", "the %s's name has %d bytes; it may have %d", what, len(name), maxNameBytes)
	}
	if name == "" || name == "." || name == ".." || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == '/' || c == 0x7f || c == '�' }) {
		return event.Errorf(event.Unprocessable, 0, "check name", "the %s's name is %q; it must not be empty, '.' or '..', or hold spaces, slashes or control characters", what, name)
	}
	return nil
}

// baseURL is scheme, host and prefix as the client sees them: from X-Forwarded-* and, where one
// of those is not there, Forwarded (RFC 7239), if the sender is a trusted proxy, else from the
// request.
func (s *Server) baseURL(r *http.Request) string {
	scheme, host, prefix := "http", r.Host, ""
	if r.TLS != nil {
		scheme = "https"
	}
	if s.trusted(r.RemoteAddr) {
		proto, authority := forwarded(r.Header.Get("Forwarded"))
		if v := strings.ToLower(cmp.Or(first(r.Header.Get("X-Forwarded-Proto")), proto)); v == "http" || v == "https" {
			scheme = v
		}
		if v := cmp.Or(first(r.Header.Get("X-Forwarded-Host")), authority); isHost(v) {
			host = v
			port := first(r.Header.Get("X-Forwarded-Port"))
			_, err := strconv.ParseUint(port, 10, 16)
			if !strings.Contains(v, ":") && err == nil && port != map[string]string{"http": "80", "https": "443"}[scheme] {
				host += ":" + port
			}
		}
		if v := first(r.Header.Get("X-Forwarded-Prefix")); strings.HasPrefix(v, "/") {
			prefix = strings.TrimRight(v, "/")
		}
	}
	return scheme + "://" + host + prefix
}

// isHost tells whether a header's value can stand for the host in a URL, and for nothing more.
func isHost(v string) bool {
	u, err := url.Parse("http://" + v)
	return v != "" && err == nil && u.Host == v
}

// first is the first of a header's values, which the proxy nearest to the client wrote.
func first(values string) string {
	v, _, _ := strings.Cut(values, ",")
	return strings.TrimSpace(v)
}

// forwarded reads the first element of a Forwarded header: for=192.0.2.60;proto=https;host="h:8443".
func forwarded(header string) (proto, host string) {
	quoted := false
	unquoted := func(separator rune) func(rune) bool {
		return func(c rune) bool {
			quoted = quoted != (c == '"')
			return c == separator && !quoted
		}
	}
	if end := strings.IndexFunc(header, unquoted(',')); end >= 0 {
		header = header[:end]
	}
	quoted = false
	for _, pair := range strings.FieldsFunc(header, unquoted(';')) {
		name, v, _ := strings.Cut(strings.TrimSpace(pair), "=")
		v = strings.Trim(v, `"`)
		switch strings.ToLower(name) {
		case "proto":
			proto = v
		case "host":
			host = v
		}
	}
	return proto, host
}

func (s *Server) trusted(remote string) bool {
	addr, err := netip.ParseAddrPort(remote)
	return err == nil && slices.ContainsFunc(s.opts.TrustedProxies, func(p netip.Prefix) bool {
		return p.Contains(addr.Addr().Unmap())
	})
}
