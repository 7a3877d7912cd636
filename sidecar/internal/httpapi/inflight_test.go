package httpapi_test

import (
	"io"
	"strings"
	"testing"
)

// A body of unknown length takes no more of the limit than it may have.
func TestAChunkedBodyFitsASmallLimit(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_BODY_BYTES": "30000", "MAX_BATCH_BYTES": "30000", "MAX_IN_FLIGHT_BYTES": "40000"})
	for _, n := range []int{1, 29_999, 30_000} {
		body := io.MultiReader(strings.NewReader(repeat('x', n)))
		s.send("POST", "/topics/a/records", body).want(t, "a body of unknown length", 200, "")
	}
	s.do("POST", "/topics/a/records", packed("gzip", repeat('x', 30_000)), "Content-Encoding: gzip").want(t, "a packed body", 200, "")
}
