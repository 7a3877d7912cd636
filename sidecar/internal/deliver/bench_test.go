package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postamt/sidecar/internal/event"
)

// endless is a source of so many records, in 16 partitions and of 10,000 keys.
type endless struct {
	assigned   chan struct{} // closed once the partitions are
	left, next int
	keys       [][]byte
}

func (s *endless) Poll(ctx context.Context, most int) ([]event.Record, error) {
	<-s.assigned
	n := min(s.left, most)
	if n == 0 {
		<-ctx.Done()
		return nil, nil
	}
	records := make([]event.Record, n)
	for i := range records {
		at := s.next + i
		records[i] = event.Record{Topic: "test.voucher", Partition: int32(at % 16), Offset: int64(at / 16), Key: s.keys[at%len(s.keys)], Value: []byte("{}"), Timestamp: time.Now()}
	}
	s.left, s.next = s.left-n, s.next+n
	return records, nil
}

func (s *endless) Pause([]event.TopicPartition)  {}
func (s *endless) Resume([]event.TopicPartition) {}
func (s *endless) Close(context.Context)         {}
func (s *endless) Commit(context.Context, map[event.TopicPartition]event.Commit) error {
	return nil
}

// countdown is an endpoint that takes all at once, with as much stack as a request needs.
type countdown struct {
	left atomic.Int64
	done chan struct{}
}

func (c *countdown) Send(_ context.Context, _ *event.Subscription, a event.Attempt) event.Outcome {
	deep(40, a.Record)
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
	return event.Outcome{Verdict: event.Delivered, Status: 204}
}

func deep(n int, r *event.Record) (sum int) {
	var frame [64]byte
	frame[n%64] = byte(n)
	if n > 0 {
		sum = deep(n-1, r)
	}
	return sum + int(frame[n%64])
}

// BenchmarkWorker is what a delivery costs without Kafka and HTTP:
//
//	go test -bench Worker -benchmem -run NONE ./sidecar/internal/deliver
func BenchmarkWorker(b *testing.B) {
	b.ReportAllocs()
	src := &endless{left: b.N, assigned: make(chan struct{})}
	for i := range 10_000 {
		src.keys = append(src.keys, fmt.Append(nil, "key-", strconv.Itoa(i)))
	}
	end := &countdown{done: make(chan struct{})}
	end.left.Store(int64(b.N))
	sub := subscriptionForTest()
	parts := Parts{
		Send: end, Window: Window{Records: event.MaxWindowRecords, Bytes: 16 << 20}, StopTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
		Partitions: func(context.Context, string) (int, error) { return 16, nil },
		Open: func(o SourceOptions) (Source, error) {
			commits := make(map[event.TopicPartition]event.Commit)
			for p := range int32(16) {
				commits[event.TopicPartition{Topic: "test.voucher", Partition: p}] = event.Commit{Offset: event.NoCommit}
			}
			go func() { o.Assigned(commits); close(src.assigned) }()
			return src, nil
		},
	}
	w := newWorker(parts, &sub, newMetrics(prometheus.NewRegistry()).of(sub.Name))
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- w.run(ctx) }()
	<-end.done
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
}
