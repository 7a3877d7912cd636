package lag

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"postamt/sidecar/internal/event"
)

// GroupSource is what is asked of Kafka for one group.
type GroupSource interface {
	Source
	Group(ctx context.Context, name string) (event.Group, error)
	// StableOffsets are Offsets that end at the last stable offset.
	StableOffsets(ctx context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error)
}

const (
	// answerAge is how long an answer is good for who asks next: as many as ask together cost
	// Kafka one question a second.
	answerAge = time.Second
	// askTimeout bounds one question.
	askTimeout = 10 * time.Second
)

// Asker tells the lag of one group when it is asked, as a Collector does for all of them, but that
// its ends are last stable offsets (read_committed): what a client could read now. It remembers nothing for longer than a second, and so reads one record for each partition that is
// behind to tell the seconds. It is safe for concurrent use.
type Asker struct {
	source GroupSource
	log    *slog.Logger
	asking singleflight.Group

	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	at    time.Time
	group event.Group
	lag   []event.PartitionLag
}

// NewAsker makes an Asker.
func NewAsker(source GroupSource, log *slog.Logger) *Asker {
	return &Asker{source: source, log: log, answers: make(map[string]answer)}
}

// Lag tells who is in a group and how far it is behind in each partition that it has committed in,
// or is subscribed or assigned to, in order of topic and partition. NotFound means that there is
// no such group.
func (a *Asker) Lag(ctx context.Context, name string) (event.Group, []event.PartitionLag, error) {
	now := time.Now()
	a.mu.Lock()
	known, ok := a.answers[name]
	a.mu.Unlock()
	if ok && now.Sub(known.at) < answerAge {
		return known.group, known.lag, nil
	}
	asked := a.asking.DoChan(name, func() (any, error) {
		// The first asker may go away: the others still want the answer.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		return a.ask(bounded, name)
	})
	select {
	case <-ctx.Done():
		return event.Group{}, nil, ctx.Err()
	case r := <-asked:
		if r.Err != nil {
			return event.Group{}, nil, r.Err
		}
		got := r.Val.(answer)
		return got.group, got.lag, nil
	}
}

func (a *Asker) ask(ctx context.Context, name string) (answer, error) {
	group, err := a.source.Group(ctx, name)
	if err != nil {
		return answer{}, err
	}
	c := New(oneGroup{a.source, group.GroupState}, Options{Interval: askTimeout, Log: a.log})
	if err := c.Refresh(ctx); err != nil {
		return answer{}, err
	}
	got := answer{at: time.Now(), group: group}
	for _, t := range c.Snapshot().Groups[0].Topics {
		if event.Own(t.Topic) {
			continue
		}
		for _, p := range t.Partitions {
			seconds := p.LagSeconds
			if p.Estimated { // of one look, an estimate is next to nothing
				seconds = unknown
			}
			got.lag = append(got.lag, event.PartitionLag{
				TopicPartition: event.TopicPartition{Topic: t.Topic, Partition: p.Partition},
				Committed:      int64(p.Committed), End: int64(p.End), Lag: int64(p.Lag), Seconds: float64(seconds),
			})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, old := range a.answers {
		if got.at.Sub(old.at) >= answerAge {
			delete(a.answers, name)
		}
	}
	a.answers[name] = got
	return got, nil
}

// oneGroup is a Source that knows one group and its topics, whose ends are stable.
type oneGroup struct {
	GroupSource
	group event.GroupState
}

func (o oneGroup) Groups(context.Context) ([]event.GroupState, error) {
	return []event.GroupState{o.group}, nil
}

func (o oneGroup) Cluster(ctx context.Context) (event.ClusterState, error) {
	state, err := o.GroupSource.Cluster(ctx)
	topics := topicsOf(o.group)
	state.Topics = slices.DeleteFunc(state.Topics, func(t event.TopicState) bool { return !slices.Contains(topics, t.Name) })
	return state, err
}

func (o oneGroup) Offsets(ctx context.Context, topics []event.TopicState) (map[string][]event.OffsetRange, error) {
	return o.StableOffsets(ctx, topics)
}
