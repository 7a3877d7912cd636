package stream

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	"postamt/sidecar/internal/event"
)

// maxCursorBytes keeps a cursor within what proxies take as a header.
const maxCursorBytes = 8 << 10

// cursorPrefix tells a cursor from the other values of ?from=, and its form from later ones.
const cursorPrefix = "c1."

// encodeCursor writes the positions in a topic's partitions as text: the prefix, and in
// base64url a checksum, then each partition and offset as uvarints.
func encodeCursor(topic string, positions map[int32]int64) string {
	b := make([]byte, checksumBytes)
	for _, p := range slices.Sorted(maps.Keys(positions)) {
		b = binary.AppendUvarint(b, uint64(p))
		b = binary.AppendUvarint(b, uint64(positions[p]))
	}
	binary.BigEndian.PutUint32(b, checksum(topic, b[checksumBytes:]))
	return cursorPrefix + base64.RawURLEncoding.EncodeToString(b)
}

const checksumBytes = 4

// checksum tells a cursor that was changed, cut off or taken from another topic.
func checksum(topic string, positions []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(topic)), crc32.IEEETable, positions)
}

// decodeCursor reads what encodeCursor wrote for the same topic.
func decodeCursor(topic, text string) (map[int32]int64, error) {
	const op = "cursor"
	if len(text) > maxCursorBytes {
		return nil, event.Errorf(event.Unprocessable, 0, op, "the cursor has %d bytes; it has at most %d", len(text), maxCursorBytes)
	}
	damaged := event.Errorf(event.Unprocessable, 0, op, "the cursor is damaged, or of another topic than %q; it must be the id of an event of this stream, unchanged", topic)
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, cursorPrefix))
	if err != nil || len(b) < checksumBytes || binary.BigEndian.Uint32(b) != checksum(topic, b[checksumBytes:]) {
		return nil, damaged
	}
	positions := make(map[int32]int64)
	for b = b[checksumBytes:]; len(b) > 0; {
		var values [2]uint64
		for i := range values {
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return nil, damaged
			}
			values[i], b = v, b[n:]
		}
		p, o := int32(values[0]), int64(values[1]) //nolint:gosec // checked in the next line
		if p < 0 || uint64(p) != values[0] || o < 0 {
			return nil, damaged
		}
		positions[p] = o
	}
	return positions, nil
}
