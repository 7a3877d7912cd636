package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// However a body comes, its pieces are the same; together they are the body.
func FuzzPieces(f *testing.F) {
	for _, seed := range []string{"", "\n", "a\nb", "a\r\n\n\nb\n", `{}{"a":"}\""} {"b":{"c":[1,2]}}`, `{"a":1}]`, `{"a":`, `"{"`, " \t{}", `{"\\"} } }`} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, body []byte, lines bool) {
		read := func(src io.Reader) (pieces [][]byte, err error) {
			p := pieceReader{src: src, max: 1000, what: "piece", end: lineEnd}
			if !lines {
				p.end = new(objectEnd).find
			}
			for {
				piece, err := p.next()
				if err != nil {
					return pieces, err
				}
				pieces = append(pieces, bytes.Clone(piece))
			}
		}
		whole, err := read(bytes.NewReader(body))
		slow, slowErr := read(iotest.OneByteReader(bytes.NewReader(body)))
		if len(whole) != len(slow) || (errors.Is(err, io.EOF)) != (errors.Is(slowErr, io.EOF)) {
			t.Fatalf("%q: at once %q, %v; byte by byte %q, %v", body, whole, err, slow, slowErr)
		}
		joined := bytes.Join(whole, nil)
		if !bytes.HasPrefix(body, joined) || errors.Is(err, io.EOF) && len(joined) != len(body) {
			t.Errorf("%q has the pieces %q", body, whole)
		}
		for i, piece := range whole {
			if !bytes.Equal(piece, slow[i]) || len(piece) > 1001 {
				t.Errorf("piece %d of %q is %q, and byte by byte %q", i, body, piece, slow[i])
			}
		}
		// JSON objects that the standard decoder finds are found here.
		if !lines {
			d := json.NewDecoder(bytes.NewReader(body))
			for i := range whole {
				var object map[string]json.RawMessage
				if d.Decode(&object) != nil || object == nil {
					break
				}
				var again map[string]json.RawMessage
				if json.Unmarshal(whole[i], &again) != nil || len(again) != len(object) {
					t.Fatalf("object %d of %q is %q here", i, body, whole[i])
				}
			}
		}
	})
}
