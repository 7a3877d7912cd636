package kafka

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
)

// What is read of dead letters for one answer, however few of them are wanted.
const (
	maxScannedLetters = 10_000
	maxScannedBytes   = 8 << 20
	maxScanTime       = 5 * time.Second
)

// DeadLetterWriter puts what was given up into dead-letter topics. It is safe for concurrent use.
type DeadLetterWriter struct {
	producer *Producer
	cluster  *Cluster
}

// NewDeadLetterWriter uses a producer and a cluster, which stay their caller's to close.
func NewDeadLetterWriter(producer *Producer, cluster *Cluster) *DeadLetterWriter {
	return &DeadLetterWriter{producer: producer, cluster: cluster}
}

// Write returns nil once every in-sync replica has the letter. NotFound means that there is no
// such topic. After Unavailable the letter may be there all the same.
//
// Letters of one key share a partition, whichever it was in the source topic. Their time is that
// of the writing: retention counts from it, and topics may refuse old ones.
func (w *DeadLetterWriter) Write(ctx context.Context, l event.DeadLetter) error {
	// librdkafka would wait for a topic that there is not.
	if err := w.cluster.CheckTopic(ctx, l.Topic); err != nil {
		return err
	}
	return w.producer.Produce(ctx, time.Time{}, []event.Record{EncodeDeadLetter(&l)})[0].Err
}

// BrowseDeadLetters reads the letters of topics that want accepts: up to limit of them, those of a
// partition in order, from an offset on or, where after has none, from the first one. Records that
// are no letters, and topics that there are not, are passed over. next is what after is to be for
// those that follow, and nil when there were no more. There may be fewer than limit, or none,
// before that: a call reads at most maxScannedLetters records.
func (c *Cluster) BrowseDeadLetters(ctx context.Context, topics []string, want func(*event.DeadLetter) bool, after map[event.TopicPartition]int64, limit int) (letters []event.StoredLetter, next map[event.TopicPartition]int64, err error) {
	const op = "kafka.BrowseDeadLetters"
	from, ends, err := c.unread(ctx, topics, after)
	if err != nil || len(ends) == 0 {
		return nil, nil, wrap(op, err)
	}
	consume := make(map[string]map[int32]kgo.Offset)
	for tp := range ends {
		if consume[tp.Topic] == nil {
			consume[tp.Topic] = make(map[int32]kgo.Offset)
		}
		consume[tp.Topic][tp.Partition] = kgo.NewOffset().At(from[tp])
	}
	client, err := kgo.NewClient(append(slices.Clone(c.client.Opts()),
		kgo.ConsumePartitions(consume),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), // retention takes letters meanwhile
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // a log may end with the mark of a transaction
		kgo.FetchMaxBytes(fetchMaxBytes),
		kgo.FetchMaxPartitionBytes(fetchMaxPartitionBytes),
		kgo.FetchMaxWait(500*time.Millisecond),
	)...)
	if err != nil {
		return nil, nil, wrap(op, err)
	}
	defer client.Close()
	bounded, cancel := context.WithTimeout(ctx, maxScanTime)
	defer cancel()
	records, bytes := 0, 0
	for len(ends) > 0 && len(letters) < limit && records < maxScannedLetters && bytes < maxScannedBytes {
		fetches := client.PollRecords(bounded, maxScannedLetters-records)
		if err := ctx.Err(); err != nil {
			return nil, nil, wrap(op, err)
		}
		if err := bounded.Err(); err != nil {
			if records == 0 { // else the next call would be like this one
				return nil, nil, wrap(op, err)
			}
			break
		}
		for _, fe := range fetches.Errors() {
			if !passes(fe.Err) {
				return nil, nil, wrap(op, fe.Err)
			}
		}
		done := make(map[string][]int32)
		for r := range fetches.RecordsAll() {
			tp := event.TopicPartition{Topic: r.Topic, Partition: r.Partition}
			end, open := ends[tp]
			if !open || len(letters) >= limit || bytes >= maxScannedBytes {
				continue // next says that it is still to be read
			}
			from[tp] = min(r.Offset+1, end)
			if rec := recordOf(r); r.Offset < end {
				records, bytes = records+1, bytes+rec.Size()
				if l, ok := DecodeDeadLetter(&rec); ok && !r.Attrs.IsControl() && want(&l) {
					letters = append(letters, event.StoredLetter{DeadLetter: l, Place: event.Place{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp}})
				}
			}
			if from[tp] == end {
				delete(ends, tp)
				done[tp.Topic] = append(done[tp.Topic], tp.Partition)
			}
		}
		if len(done) > 0 { // of none it would tell what is paused
			client.PauseFetchPartitions(done)
		}
	}
	if len(ends) == 0 {
		return letters, nil, nil
	}
	return letters, from, nil
}

// unread tells where partitions are to be read from, and where those of them end that have
// something to read.
func (c *Cluster) unread(ctx context.Context, topics []string, after map[event.TopicPartition]int64) (from, ends map[event.TopicPartition]int64, err error) {
	if len(topics) == 0 {
		return nil, nil, nil // of none Kafka would tell all
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	first, err := c.admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, nil, err
	}
	last, err := c.admin.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return nil, nil, err
	}
	from, ends = make(map[event.TopicPartition]int64), make(map[event.TopicPartition]int64)
	for _, listed := range []kadm.ListedOffsets{first, last} {
		listed.Each(func(o kadm.ListedOffset) {
			if o.Err != nil && !errors.Is(o.Err, kerr.UnknownTopicOrPartition) && err == nil {
				err = o.Err
			}
		})
	}
	if err != nil {
		return nil, nil, err
	}
	first.Each(func(o kadm.ListedOffset) {
		tp := event.TopicPartition{Topic: o.Topic, Partition: o.Partition}
		end, ok := last.Lookup(o.Topic, o.Partition)
		if o.Err != nil || !ok || end.Err != nil {
			return
		}
		if from[tp] = max(o.Offset, after[tp]); from[tp] < end.Offset {
			ends[tp] = end.Offset
		}
	})
	return from, ends, nil
}
