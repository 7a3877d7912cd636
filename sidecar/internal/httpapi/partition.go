package httpapi

import (
	"net/http"
	"time"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/restproxy"
)

// readBytes is how much one read without a group gives when nothing else is said.
const readBytes = 1 << 20

// readPartition serves GET /topics/{topic}/partitions/{partition}/records?offset=&timeout=&max_bytes=:
// the records from an offset on, without a group: nothing is kept of the reader. It waits for
// the first of them up to the timeout in milliseconds, and gives those that there are, at least
// one however large it is. Records of aborted and open transactions are left out, as in streams.
//
//	200 an array of records, empty after the timeout   400 unreadable parameter
//	404 no such topic or partition   406 none of the formats
//	422 the partition does not hold the offset: the error says which it does   429 over a limit
func (s *Server) readPartition(w http.ResponseWriter, r *http.Request) error {
	format, err := restproxy.RecordsFormat(r.Header.Values("Accept"))
	if err != nil {
		return err
	}
	params, err := query(r, "offset", "timeout", "max_bytes")
	if err != nil {
		return err
	}
	number, err := partitionOf(r)
	if err != nil {
		return err
	}
	wait, err := positive(params, "timeout", int64(s.opts.Session.MaxWait/time.Millisecond), int64(min(defaultWait, s.opts.Session.MaxWait)/time.Millisecond))
	if err != nil {
		return err
	}
	maxBytes, err := positive(params, "max_bytes", s.opts.Session.MaxBytes, min(readBytes, s.opts.Session.MaxBytes))
	if err != nil {
		return err
	}
	release, err := s.openStream()
	if err != nil {
		return err
	}
	defer release()
	var held int64
	defer func() { s.inFlight.Release(held) }()
	full := event.Errorf(event.TooMany, 0, "read", "this replica works on as many bytes as it may (MAX_IN_FLIGHT_BYTES=%d); repeat the request later", s.opts.Limits.InFlightBytes)
	room := func(bytes int64) error {
		if held > 0 && bytes > maxBytes || !s.inFlight.TryAcquire(bytes-held) {
			return full
		}
		held = bytes
		return nil
	}
	tp := event.TopicPartition{Topic: r.PathValue("topic"), Partition: number}
	records, err := s.Streams.Read(r.Context(), s.stopping, tp, params.Get("offset"), time.Duration(wait)*time.Millisecond, room)
	switch {
	case r.Context().Err() != nil:
		return event.Errorf(event.Gone, 0, "read", "the client went away")
	case err != nil:
		return err
	}
	if s.writeRecords(w, records, format, "") != nil {
		return event.Errorf(event.Gone, 0, "read", "the client went away")
	}
	s.metrics.streamed.out(records, time.Now())
	s.link(r.Context(), records)
	return nil
}
