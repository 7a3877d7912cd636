package webhook

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"postamt/sidecar/internal/cloudevents"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/trace"
)

// Limits of what a record adds to the headers of a request: servers take 8 to 16 KiB in all. What
// is over is left out, and postamt-omitted says so.
const (
	maxKeyHeaderBytes    = 2 << 10 // of kafka-key, and of ce-subject where it is the key
	maxRecordHeaderBytes = 8 << 10 // of extensions of CloudEvents and kafka-header-…, names and values
)

const tombstoneHeader = "Kafka-Tombstone"

// request makes the request of an attempt. It says the same whether a record is delivered the first
// time or as a dead letter again, but for the number of the attempt and its time.
func (s *Sender) request(ctx context.Context, sub *event.Subscription, a event.Attempt) (*http.Request, error) {
	e := event.CloudEvent{Record: a.Record, Origin: a.Origin}
	contentType := cloudevents.ContentType(a.Record)
	body := a.Record.Value
	complete := cloudevents.Complete(contentType) // the record says its attributes itself
	switch {
	case complete && body == nil:
		contentType = "" // there is no event in it
	case sub.Structured && !complete:
		body, contentType = cloudevents.JSON(e), "application/cloudevents+json"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, sub.URL, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if s.rules.requireHTTPS || s.rules.proxied { // the dialer does not see the URL
		if err := s.rules.checkURL(req.URL); err != nil {
			return nil, err
		}
	}
	h := newHeaders(len(a.Record.Headers) + len(sub.Headers))
	for name, value := range sub.Headers {
		h.set(http.CanonicalHeaderKey(name), value)
	}
	if contentType != "" {
		h.set("Content-Type", contentType)
	}
	h.set("User-Agent", s.agent)
	id := cloudevents.Encode(a.Origin.ID())
	if err := h.sign(sub, a, id, body); err != nil {
		return nil, err
	}
	h.set("Kafka-Topic", cloudevents.Encode(a.Origin.Topic))
	h.set("Kafka-Partition", strconv.Itoa(int(a.Origin.Partition)))
	h.set("Kafka-Offset", strconv.FormatInt(a.Origin.Offset, 10))
	h.set("Postamt-Attempt", strconv.Itoa(a.Number))
	if a.Record.Value == nil {
		h.set(tombstoneHeader, "true")
	}
	keyFits := true
	if a.Record.Key != nil {
		key := cloudevents.Encode(a.Record.Key)
		if keyFits = len(key) <= maxKeyHeaderBytes; keyFits {
			h.set("Kafka-Key", key)
		}
	}
	if s.tracer != nil {
		h.span(ctx)
	} else {
		h.trace(a.Record)
	}
	if !sub.Structured && !complete {
		h.attributes(e, keyFits)
	}
	h.record(a)
	switch {
	case h.omitted && !keyFits:
		h.set("Postamt-Omitted", "key, headers")
	case h.omitted:
		h.set("Postamt-Omitted", "headers")
	case !keyFits:
		h.set("Postamt-Omitted", "key")
	}
	req.Header = h.all
	return req, nil
}

// headers are those of a request. The values share one array.
type headers struct {
	all     http.Header
	values  []string
	room    int  // for what a record adds
	omitted bool // not all of it had room
}

func newHeaders(more int) *headers {
	const common = 20
	return &headers{all: make(http.Header, common+more), values: make([]string, 0, common+more), room: maxRecordHeaderBytes}
}

// set sets a header; its name must be in the canonical form.
func (h *headers) set(name, value string) {
	h.values = append(h.values, value)
	n := len(h.values)
	h.all[name] = h.values[n-1 : n : n]
}

// add adds a header of the record's, if there is room for it.
func (h *headers) add(name, value string) {
	if len(name)+len(value) > h.room {
		h.omitted = true
		return
	}
	h.room -= len(name) + len(value)
	if values, again := h.all[name]; again {
		h.all[name] = append(values, value)
		return
	}
	h.set(name, value)
}

// sign names the record and signs the body with every secret that is valid. The id is the record's
// place and never the event's own: that would be its sender's to choose, and receivers that take
// every id once would lose a record by a second sender's.
func (h *headers) sign(sub *event.Subscription, a event.Attempt, id string, body []byte) error {
	at := a.Started
	if at.IsZero() {
		at = time.Now()
	}
	var signatures strings.Builder
	for _, secret := range sub.Secrets {
		if len(secret.Key) == 0 || !secret.Until.IsZero() && !at.Before(secret.Until) {
			continue
		}
		signer, err := standardwebhooks.NewWebhookRaw(secret.Key)
		if err != nil {
			return err
		}
		signature, err := signer.Sign(id, at, body)
		if err != nil {
			return err
		}
		if signatures.Len() > 0 {
			signatures.WriteByte(' ')
		}
		signatures.WriteString(signature)
	}
	if signatures.Len() == 0 {
		return errors.New("the subscription has no secret that is valid, and nothing is sent unsigned; POST /subscriptions/" + sub.Name + "/secret makes one")
	}
	h.set("Webhook-Id", id)
	h.set("Webhook-Timestamp", strconv.FormatInt(at.Unix(), 10))
	h.set("Webhook-Signature", signatures.String())
	return nil
}

// attributes sets those of CloudEvents in binary mode.
func (h *headers) attributes(e event.CloudEvent, keyFits bool) {
	for name, value := range cloudevents.Attributes(e) {
		value = cloudevents.Encode(value)
		switch name {
		case "specversion":
			h.set("Ce-Specversion", value)
		case "id":
			h.set("Ce-Id", value)
		case "source":
			h.set("Ce-Source", value)
		case "type":
			h.set("Ce-Type", value)
		case "time":
			h.set("Ce-Time", value)
		case "subject":
			if _, own := e.Attribute("subject"); own || keyFits {
				h.set("Ce-Subject", value)
			}
		default:
			h.add(http.CanonicalHeaderKey("Ce-"+name), value)
		}
	}
}

// record passes the record's other headers on, as they would have come in: Kafka-Header-NAME.
func (h *headers) record(a event.Attempt) {
	redriven := a.Origin.TopicPartition != event.TopicPartition{Topic: a.Record.Topic, Partition: a.Record.Partition} || a.Origin.Offset != a.Record.Offset
	for _, r := range a.Record.Headers {
		switch {
		case r.Key == "content-type", r.Key == "traceparent", r.Key == "tracestate", cloudevents.IsAttribute(r.Key):
			continue // they have a place of their own
		case redriven && strings.HasPrefix(r.Key, "postamt-"):
			continue // why it had become a dead letter
		case !isToken(r.Key):
			h.omitted = true // no name of a header in HTTP
			continue
		}
		h.add(http.CanonicalHeaderKey("Kafka-Header-"+r.Key), cloudevents.Encode(r.Value))
	}
}

// span goes on with the trace of the attempt's span.
func (h *headers) span(ctx context.Context) {
	parent, state := trace.Headers(ctx)
	h.set("Traceparent", parent)
	if state != "" {
		h.set("Tracestate", state)
	}
}

// trace goes on with the record's trace, or begins one.
func (h *headers) trace(r *event.Record) {
	var parent, state string
	for _, header := range r.Headers {
		switch header.Key {
		case "traceparent":
			parent = string(header.Value)
		case "tracestate":
			state = string(header.Value)
		}
	}
	if isTraceparent(parent) {
		h.set("Traceparent", parent)
		if state != "" && isPrintable(state) && len(state) <= maxTracestateBytes {
			h.set("Tracestate", state)
		}
		return
	}
	// 00-TRACE-SPAN-01: whoever samples by the flag of the parent shall see deliveries.
	var id [24]byte
	for i := 0; i < len(id); i += 8 {
		n := rand.Uint64() | 1 // none may be all zero
		for k := range 8 {
			id[i+k] = byte(n >> (8 * k))
		}
	}
	var b [55]byte
	copy(b[:], "00-")
	hex.Encode(b[3:], id[:16])
	b[35] = '-'
	hex.Encode(b[36:], id[16:])
	copy(b[52:], "-01")
	h.set("Traceparent", string(b[:]))
}

// maxTracestateBytes is what W3C asks to pass on at least.
const maxTracestateBytes = 512

// isTraceparent tells whether a text is version 00 of W3C's header, or a later one.
func isTraceparent(s string) bool {
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || len(s) > maxTracestateBytes {
		return false
	}
	version, rest := s[:2], s[55:]
	if version == "ff" || version == "00" && rest != "" || rest != "" && rest[0] != '-' || !isPrintable(rest) {
		return false
	}
	for _, part := range []string{version, s[3:35], s[36:52], s[53:55]} {
		if strings.Trim(part, "0123456789abcdef") != "" {
			return false
		}
	}
	return strings.Trim(s[3:35], "0") != "" && strings.Trim(s[36:52], "0") != ""
}

// isPrintable tells what can be the value of a header as it is.
func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
