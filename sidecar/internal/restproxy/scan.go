package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"strings"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// scanProduce is DecodeProduce for the bodies that nearly all clients send, in one pass and
// without copying: keys and values in format JSON are parts of body. It is not ok for
// anything that is out of the ordinary or wrong; encoding/json then decides what that means.
// docs/decisions/0004-produce-speed.md says why it is there.
func scanProduce(body []byte, format Format, maxRecords int) (records []event.Record, ok bool) {
	s := scanner{b: body, format: format}
	seen := false
	s.object(func(name []byte) bool {
		if string(name) != "records" {
			return !foldsTo(name, "records") && s.skip(0)
		}
		if seen {
			return false
		}
		seen = true
		return s.array(func() bool {
			if len(records) == maxRecords {
				return false
			}
			start := s.i
			var r event.Record
			if !s.record(&r) {
				return false
			}
			if records == nil { // the others are likely to be as long
				records = make([]event.Record, 0, min(maxRecords, (len(body)-start)/(s.i-start)+1))
			}
			records = append(records, r)
			return true
		})
	})
	s.space()
	return records, !s.failed && s.i == len(body) && len(records) > 0
}

// scanner goes once over JSON text, and checks it on the way: once it has failed, nothing
// that it says counts.
type scanner struct {
	b       []byte
	i       int // of the next byte
	failed  bool
	spaced  bool // space has been met outside strings since this was reset
	format  Format
	decoded []byte // room for what is not text of body as it is
}

// record reads one element of "records".
func (s *scanner) record(r *event.Record) bool {
	r.Partition = event.AnyPartition
	var seen [5]bool
	once := func(n int) bool {
		first := !seen[n]
		seen[n] = true
		return first
	}
	s.object(func(name []byte) bool {
		switch string(name) {
		case "key":
			return once(0) && s.embedded(&r.Key)
		case "value":
			return once(1) && s.embedded(&r.Value)
		case "partition":
			return once(2) && s.partition(&r.Partition)
		case "timestamp":
			raw, ok := s.raw()
			if !ok || !once(3) {
				return false
			}
			if null(raw) {
				return true
			}
			t, err := ParseTimestamp(strings.Trim(string(raw), `"`))
			r.Timestamp = t
			return err == nil
		case "headers":
			raw, ok := s.raw()
			return ok && once(4) && decodeHeaders(raw, &r.Headers)
		}
		for _, known := range []string{"key", "value", "partition", "timestamp", "headers"} {
			if foldsTo(name, known) {
				return false
			}
		}
		return s.skip(0)
	})
	return !s.failed
}

// foldsTo tells whether encoding/json would take a name for another one.
func foldsTo(name []byte, known string) bool { return strings.EqualFold(string(name), known) }

func decodeHeaders(raw []byte, into *[]event.Header) bool {
	var r produceRecord
	var record event.Record
	if json.Unmarshal(raw, &r.Headers) != nil || checkRepeated(raw, &r.Headers) != nil || r.decode(JSON, &record) != nil {
		return false
	}
	*into = record.Headers
	return true
}

func (s *scanner) partition(into *int32) bool {
	raw, ok := s.raw()
	if !ok || len(raw) > 9 { // fewer digits than the largest number has
		return false
	}
	if null(raw) {
		return true
	}
	*into = 0
	for _, c := range raw {
		if c < '0' || c > '9' {
			return false
		}
		*into = *into*10 + int32(c-'0')
	}
	return true
}

// embedded reads a key or value of the format into what Kafka gets.
func (s *scanner) embedded(into *[]byte) bool {
	s.space()
	s.spaced = false
	raw, ok := s.raw()
	switch {
	case !ok:
		return false
	case null(raw):
		return true
	case s.format == JSON && !s.spaced:
		*into = raw
		return true
	case s.format == JSON, raw[0] != '"', bytes.IndexByte(raw, '\\') >= 0:
		b, err := embedded(raw, s.format, "")
		*into = b
		return err == nil
	case s.format == Text:
		*into = raw[1 : len(raw)-1 : len(raw)-1]
		return true
	}
	if s.decoded == nil {
		s.decoded = make([]byte, 0, base64.StdEncoding.DecodedLen(len(s.b)))
	}
	from := len(s.decoded)
	b, err := base64.StdEncoding.AppendDecode(s.decoded, raw[1:len(raw)-1])
	s.decoded = b
	*into = b[from:len(b):len(b)]
	return err == nil
}

// isJSON tells whether v is one JSON value, and whether there is space around its tokens.
func isJSON(v []byte) (valid, spaced bool) {
	s := scanner{b: v}
	s.skip(0)
	s.space()
	if !s.failed && s.i == len(v) {
		return true, s.spaced
	}
	return utf8.Valid(v) && json.Valid(v), true // as it may be nested too deep for the scanner
}

// raw gives the text of the next value.
func (s *scanner) raw() ([]byte, bool) {
	s.space()
	start := s.i
	if !s.skip(0) {
		return nil, false
	}
	return s.b[start:s.i:s.i], true
}

// object reads an object and calls member with each name, to read the value.
func (s *scanner) object(member func(name []byte) bool) {
	if !s.byte('{') {
		return
	}
	for n := 0; ; n++ {
		s.space()
		if s.next('}') || n > 0 && !s.byte(',') {
			return
		}
		s.space()
		start := s.i + 1
		if !s.string() {
			return
		}
		name := s.b[start : s.i-1]
		// With a backslash it may be another way to write a name that is known.
		if bytes.IndexByte(name, '\\') >= 0 || !s.byte(':') || !member(name) {
			s.failed = true
			return
		}
	}
}

// array reads an array and calls element to read each element.
func (s *scanner) array(element func() bool) bool {
	if !s.byte('[') {
		return false
	}
	for n := 0; ; n++ {
		s.space()
		switch {
		case s.next(']'):
			return true
		case n > 0 && !s.byte(','):
			return false
		case !element():
			s.failed = true
			return false
		}
	}
}

func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\n', '\r', '\t':
			s.spaced = true
			s.i++
		default:
			return
		}
	}
}

// next passes a byte if it is the one that comes.
func (s *scanner) next(c byte) bool {
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// byte passes space and a byte that must come.
func (s *scanner) byte(c byte) bool {
	s.space()
	if !s.next(c) {
		s.failed = true
	}
	return !s.failed
}

// scanDepth is how deep values may be nested here; encoding/json takes ten thousand.
const scanDepth = 100

// skip passes space and a value.
func (s *scanner) skip(depth int) bool {
	s.space()
	if s.i == len(s.b) || depth > scanDepth {
		s.failed = true
		return false
	}
	switch s.b[s.i] {
	case '"':
		return s.string()
	case '{':
		s.i++
		for n := 0; ; n++ {
			s.space()
			if s.next('}') {
				return true
			}
			if n > 0 && !s.byte(',') {
				return false
			}
			s.space()
			if !s.string() || !s.byte(':') || !s.skip(depth+1) {
				return false
			}
		}
	case '[':
		s.i++
		for n := 0; ; n++ {
			s.space()
			if s.next(']') {
				return true
			}
			if n > 0 && !s.byte(',') || !s.skip(depth+1) {
				return false
			}
		}
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	return s.number()
}

func (s *scanner) literal(text string) bool {
	if s.i+len(text) > len(s.b) || string(s.b[s.i:s.i+len(text)]) != text {
		s.failed = true
		return false
	}
	s.i += len(text)
	return true
}

func (s *scanner) number() bool {
	s.next('-')
	switch {
	case s.next('0'):
	case !s.digits():
		return false
	}
	if s.next('.') && !s.digits() {
		return false
	}
	if s.next('e') || s.next('E') {
		_ = s.next('+') || s.next('-')
		return s.digits()
	}
	return true
}

// digits passes at least one.
func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && s.b[s.i]-'0' <= 9 {
		s.i++
	}
	s.failed = s.failed || s.i == start
	return !s.failed
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// string passes a string, from quote to quote, of valid UTF-8 and valid escapes.
func (s *scanner) string() bool {
	if !s.next('"') {
		s.failed = true
		return false
	}
	b, i := s.b, s.i
	for {
		// Eight bytes at a time: a high bit is set for a quote, a backslash, a control character
		// and what is not ASCII. Above the lowest one there may be more than there should be.
		for i+8 <= len(b) {
			x := binary.LittleEndian.Uint64(b[i:])
			quote, slash := x^(ones*'"'), x^(ones*'\\')
			special := ((quote-ones)&^quote | (slash-ones)&^slash | (x-ones*' ')&^x | x) & highs
			if special != 0 {
				i += bits.TrailingZeros64(special) / 8
				break
			}
			i += 8
		}
		if i >= len(b) {
			s.failed = true
			return false
		}
		switch c := b[i]; {
		case c == '"':
			s.i = i + 1
			return true
		case c == '\\':
			n := escape(b[i:])
			if n == 0 {
				s.failed = true
				return false
			}
			i += n
		case c < ' ':
			s.failed = true
			return false
		case c < utf8.RuneSelf: // among the last bytes
			i++
		default:
			r, n := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && n == 1 {
				s.failed = true
				return false
			}
			i += n
		}
	}
}

// escape gives the length of the escape that b begins with, 0 if it is none.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		for _, c := range b[2:6] {
			if c-'0' > 9 && (c|0x20)-'a' > 5 {
				return 0
			}
		}
		return 6
	}
	return 0
}
