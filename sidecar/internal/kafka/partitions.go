package kafka

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
)

// Bounds tells, for every partition of a topic, the offset of the first record that there
// is and the one that the next record will have.
func (c *Cluster) Bounds(ctx context.Context, topic string) (map[int32]event.Bounds, error) {
	const op = "kafka.Bounds"
	if _, err := c.Partitions(ctx, topic); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	out := make(map[int32]event.Bounds)
	starts, err := c.admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	ends, err := c.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	starts.Each(func(o kadm.ListedOffset) {
		if end, ok := ends.Lookup(topic, o.Partition); ok {
			out[o.Partition] = event.Bounds{Beginning: o.Offset, End: end.Offset}
		}
	})
	return out, nil
}

// OffsetsAt tells, for every partition of a topic, the offset of the first record at or
// after a time, and the partition's end where there is none. Of a partition that is being
// written to it may be that of a record a little before it, but of none after it.
func (c *Cluster) OffsetsAt(ctx context.Context, topic string, t time.Time) (map[int32]int64, error) {
	const op = "kafka.OffsetsAt"
	if _, err := c.Partitions(ctx, topic); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	// An end that is asked for after the time, as by ListOffsetsAfterMilli, may have records before
	// it that came in between: they would be left out.
	ends, err := c.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	listed, err := c.admin.ListOffsetsAfterMilli(ctx, t.UnixMilli(), topic)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	out := make(map[int32]int64)
	listed.Each(func(o kadm.ListedOffset) {
		out[o.Partition] = o.Offset
		if end, ok := ends.Lookup(topic, o.Partition); ok {
			out[o.Partition] = min(o.Offset, end.Offset)
		}
	})
	return out, nil
}

// streamMaxBytes is what one fetch of a stream brings, or one record: a thousand readers that
// have stopped hold it twice each, the one that they were being sent and the next one.
const streamMaxBytes = 256 << 10

// Partitions reads given partitions of one topic from given offsets, without a group.
// Records of transactions that were aborted or are open are left out.
type Partitions struct {
	topic   string
	client  *kgo.Client
	reading map[int32]bool // all but those that rest
}

// OpenPartitions begins to fetch in the background: Kafka need not be there yet.
func OpenPartitions(servers []string, topic string, from map[int32]int64) (*Partitions, error) {
	client, err := NewClient(servers,
		kgo.ClientID("postamt-stream"),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: offsetsOf(from)}),
		// A place that is gone is shown to the reader, not skipped.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxBytes(streamMaxBytes),
		kgo.FetchMaxPartitionBytes(streamMaxBytes),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.MetadataMaxAge(metadataMaxAge),
	)
	if err != nil {
		return nil, wrap("kafka.OpenPartitions", err)
	}
	p := &Partitions{topic: topic, client: client, reading: make(map[int32]bool)}
	for n := range from {
		p.reading[n] = true
	}
	return p, nil
}

func offsetsOf(from map[int32]int64) map[int32]kgo.Offset {
	out := make(map[int32]kgo.Offset, len(from))
	for p, o := range from {
		out[p] = kgo.NewOffset().At(o)
	}
	return out
}

// Poll waits for up to maxRecords records until ctx ends. The partitions of expired have no
// record at the offset that was to be read next; they rest until Seek. Where the topic was deleted,
// and perhaps made anew, these are all.
func (p *Partitions) Poll(ctx context.Context, maxRecords int) (records []event.Record, expired []int32, err error) {
	fetches := p.client.PollRecords(ctx, maxRecords)
	fetches.EachRecord(func(r *kgo.Record) { records = append(records, recordOf(r)) })
	failures := fetches.Errors()
	rest := func(n int32) {
		if p.reading[n] {
			expired = append(expired, n)
		}
		delete(p.reading, n)
	}
	for _, fe := range failures {
		switch {
		case errors.Is(fe.Err, kerr.OffsetOutOfRange):
			rest(fe.Partition)
		case ctx.Err() != nil, passes(fe.Err):
		case err == nil:
			err = wrap("kafka.Poll", fe.Err)
		}
	}
	if anew := topicsMadeAnew(failures); len(anew) > 0 {
		p.client.PurgeTopicsFromConsuming(anew...)
		for _, n := range keys(p.reading) {
			rest(n)
		}
	}
	return records, expired, err
}

// Seek makes partitions go on elsewhere, and begins to read those that were not read yet.
func (p *Partitions) Seek(to map[int32]int64) {
	for n := range to {
		p.reading[n] = true
	}
	p.client.RemoveConsumePartitions(map[string][]int32{p.topic: keys(to)})
	p.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{p.topic: offsetsOf(to)})
}

func keys[V any](m map[int32]V) []int32 {
	out := make([]int32, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	return out
}

// Close ends the fetching.
func (p *Partitions) Close() { p.client.Close() }
