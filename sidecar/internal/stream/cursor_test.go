package stream

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"strings"
	"testing"

	"postamt/sidecar/internal/event"
)

func TestCursorRoundTrip(t *testing.T) {
	many := make(map[int32]int64)
	for p := range int32(500) {
		many[p] = 1 << 40
	}
	for _, positions := range []map[int32]int64{
		{}, {0: 0}, {0: 1, 1: 127, 2: 128, 7: math.MaxInt64}, {math.MaxInt32: 5}, many,
	} {
		cursor := encodeCursor("test.voucher", positions)
		got, err := decodeCursor("test.voucher", cursor)
		if err != nil || !maps.Equal(got, positions) {
			t.Errorf("%v came back as %v, %v", positions, got, err)
		}
		if len(cursor) > maxCursorBytes || strings.ContainsAny(cursor, "\r\n\x00+/= ") {
			t.Errorf("the cursor of %d partitions has %d bytes: %.40s", len(positions), len(cursor), cursor)
		}
	}
	if a, b := encodeCursor("a", map[int32]int64{0: 1, 1: 2, 2: 3}), encodeCursor("a", map[int32]int64{2: 3, 1: 2, 0: 1}); a != b {
		t.Errorf("the same positions are %s and %s", a, b)
	}
}

func TestDamagedCursorIsRefused(t *testing.T) {
	raw := func(values ...uint64) string {
		b := make([]byte, checksumBytes)
		for _, v := range values {
			b = binary.AppendUvarint(b, v)
		}
		binary.BigEndian.PutUint32(b, checksum("a", b[checksumBytes:]))
		return cursorPrefix + base64.RawURLEncoding.EncodeToString(b)
	}
	good := raw(0, 5)
	if _, err := decodeCursor("a", good); err != nil {
		t.Fatal(err)
	}
	for what, cursor := range map[string]string{
		"nothing after the prefix":     cursorPrefix,
		"not base64":                   cursorPrefix + "!!!",
		"shorter than the checksum":    cursorPrefix + "AAA",
		"of another topic":             encodeCursor("b", map[int32]int64{0: 5}),
		"cut off":                      good[:len(good)-2],
		"a partition without offset":   raw(0, 5, 1),
		"a partition over 31 bits":     raw(1<<31, 5),
		"a partition over 32 bits":     raw(1<<32, 5),
		"an offset over 63 bits":       raw(0, 1<<63),
		"a number without its end":     raw(0, 5) + "gICA",
		"longer than a header can be":  raw(make([]uint64, 3*maxCursorBytes)...),
		"base64 of the other alphabet": strings.Replace(encodeCursor("a", map[int32]int64{0: 62<<1 | 1<<20}), "_", "/", 1) + "=",
	} {
		got, err := decodeCursor("a", cursor)
		if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != event.Unprocessable {
			t.Errorf("%s is %v, %v; want unprocessable", what, got, err)
		}
	}
}

// No character can change without it being noticed: a place that is a little off would lose
// records in silence.
func TestAnyChangeOfACursorIsNoticed(t *testing.T) {
	positions := map[int32]int64{0: 300, 1: 5, 2: 1 << 40}
	good := encodeCursor("a", positions)
	for i := len(cursorPrefix); i < len(good); i++ {
		for _, c := range []byte("ABCxyz019-_") {
			changed := []byte(good)
			changed[i] = c
			if got, err := decodeCursor("a", string(changed)); err == nil && !maps.Equal(got, positions) {
				t.Errorf("%s is taken for %v", changed, got)
			}
		}
		if got, err := decodeCursor("a", good[:i]); err == nil {
			t.Errorf("cut off, %s is taken for %v", good[:i], got)
		}
	}
}

func FuzzDecodeCursor(f *testing.F) {
	for _, positions := range []map[int32]int64{{}, {0: 0}, {0: 1, 5: 1 << 40}, {math.MaxInt32: math.MaxInt64}} {
		f.Add("a", encodeCursor("a", positions))
	}
	f.Add("a", "c1.")
	f.Add("b", "c1.AAAAAAAA")
	f.Fuzz(func(t *testing.T, topic, text string) {
		positions, err := decodeCursor(topic, text)
		if err != nil {
			if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != event.Unprocessable {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		for p, o := range positions {
			if p < 0 || o < 0 {
				t.Errorf("%q has partition %d at %d", text, p, o)
			}
		}
		if again, err := decodeCursor(topic, encodeCursor(topic, positions)); err != nil || !maps.Equal(again, positions) {
			t.Errorf("%v came back as %v, %v", positions, again, err)
		}
	})
}
