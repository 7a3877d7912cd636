package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"postamt/sidecar/internal/event"
)

// Its seeds are files below testdata/fuzz.
func FuzzQuery(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw string) {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/", RawQuery: raw}, Header: http.Header{}}
		kindOf := func(err error) {
			t.Helper()
			var ee *event.Error
			if !errors.As(err, &ee) || ee.Msg == "" || ee.Kind != event.Invalid && ee.Kind != event.Unprocessable {
				t.Errorf("%q: %v", raw, err)
			}
		}
		known := []string{"key", "partition", "timestamp", "timeout", "max_bytes", "topic", "from", "filter", "format", "tombstone"}
		params, err := query(r, known...)
		if err != nil {
			kindOf(err)
			return
		}
		for name, values := range params {
			if !slices.Contains(known, name) || len(values) != 1 {
				t.Errorf("%q has %q: %q", raw, name, values)
			}
		}
		if n, err := positive(params, "timeout", 1000, 7); err != nil {
			kindOf(err)
		} else if n < 1 || n > 1000 {
			t.Errorf("%q waits for %d", raw, n)
		}
		s := &Server{}
		if req, format, err := s.streamRequest(r); err != nil {
			kindOf(err)
		} else if req.Partition < event.AnyPartition || format == "" {
			t.Errorf("%q is a stream of %+v as %q", raw, req, format)
		}
	})
}
