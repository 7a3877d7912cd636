package httpapi_test

import (
	"fmt"
	"strings"
	"testing"
)

// What a record says is no answer of ours, wherever it is cut for the connection.
func TestARecordThatLooksLikeAnAnswerIsGivenAsItIs(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	texts := []string{
		"HTTP/1.1 417 ", "HTTP/1.1 417 Expectation Failed\\r\\nConnection: close\\r\\n",
		"HTTP/1.1 400 Bad Request\\r\\nContent-Type: text/plain; charset=utf-8\\r\\nConnection: close\\r\\n\\r\\n",
	}
	for i, text := range texts {
		value := `"` + strings.Repeat(text, 140_000/len(text)) + `"`
		s.do("POST", "/topics/a/records?partition="+fmt.Sprint(i), value, plainJSON).want(t, text, 200, "")
		for shift := range len(text) { // each byte of it is at a cut once
			got := s.do("GET", fmt.Sprintf("/topics/a/partitions/%d/records?offset=0", i), "", "Accept: "+jsonV2[len("Content-Type: "):], "X-Request-Id: "+repeat('x', shift+1))
			if got.status != 200 || !strings.Contains(got.body, value) {
				t.Fatalf("%.40s, %d: %d, %d bytes, %.200s", text, shift, got.status, len(got.body), got.body)
			}
		}
	}
}

func TestAnExpectationThatIsNotKnown(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for _, version := range []string{"1.1", "1.0"} {
		reply := s.raw("POST /topics/a/records HTTP/" + version + "\r\nHost: x\r\nExpect: 200-ok\r\nContent-Length: 0\r\n\r\n")
		if _, body, _ := strings.Cut(reply, "\r\n\r\n"); !strings.HasPrefix(reply, "HTTP/1.1 417 ") || strings.TrimSpace(body) != `{"error_code":417,"message":"the request's Expect is not known; known is 100-continue"}` {
			t.Errorf("HTTP/%s: %q", version, reply)
		}
	}
}
