package restproxy

import (
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

func BenchmarkAppendProduced(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			results := make([]event.Result, n)
			for i := range results {
				results[i].Place = event.Place{Topic: "t", Partition: int32(i % 6), Offset: int64(1_000_000 + i)}
			}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = AppendProduced(buf[:0], results, func(error) (int, string) { return 0, "" })
			}
		})
	}
}

func BenchmarkAppendRecord(b *testing.B) {
	for _, format := range []Format{JSON, Binary, Text} {
		b.Run(string(format), func(b *testing.B) {
			records := make([]event.Record, 1000)
			for i := range records {
				records[i] = event.Record{Topic: "bench.drain", Partition: 3, Offset: int64(i), Value: []byte(voucher), Timestamp: time.UnixMilli(1_700_000_000_000)}
			}
			var buf []byte
			b.ReportAllocs()
			b.SetBytes(int64(len(records) * base64.StdEncoding.EncodedLen(len(voucher)) * 3 / 4))
			for b.Loop() {
				buf = buf[:0]
				for i := range records {
					buf = AppendRecord(buf, &records[i], format)
				}
			}
		})
	}
}
