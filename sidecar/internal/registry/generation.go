package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"postamt/sidecar/internal/event"
)

// begin writes a subscription with a generation of its own, whose group begins where it should
// before any replica can join it: the topics of kept go on where the generation before is, all
// others begin at from. Repeats are possible, since that one is read until replicas have heard of
// this one; nothing is left out.
func (r *Registry) begin(ctx context.Context, s Stored, kept []string, from string, text []byte) (Stored, error) {
	before := s.Group()
	generation, err := r.draw(ctx, s.Name, s.Generation)
	if err != nil {
		return s, err
	}
	starts, err := r.starts(ctx, s.Topics, kept, before, from)
	if err != nil {
		return s, err
	}
	s.Generation = generation
	if err := r.kafka.CommitStart(ctx, s.Group(), starts); err != nil {
		return s, err
	}
	out, err := r.swap(ctx, s, text)
	if err != nil {
		r.drop(ctx, s.Group(), err)
	}
	return out, err
}

// drop removes the group of a generation that has not come to be. One whose write may have
// succeeded is left, as it may be in use.
func (r *Registry) drop(ctx context.Context, group string, why error) {
	if ee, ok := errors.AsType[*event.Error](why); !ok || ee.Kind == event.Unavailable {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
	defer cancel()
	if err := r.kafka.DeleteGroup(ctx, group); err != nil { // the sweeper has it, later
		r.log.Debug("the group of a generation that has not come to be is left", "group", group, "error", err)
	}
}

const dropTimeout = 5 * time.Second

// starts tells where the group of a new generation begins, for every partition that there is. Of a
// kept topic, a partition that the generation before has not committed is one that has been added:
// without a commit it is read from its first record on.
func (r *Registry) starts(ctx context.Context, topics, kept []string, before, from string) (map[event.TopicPartition]event.Commit, error) {
	starts := make(map[event.TopicPartition]event.Commit)
	for _, topic := range topics {
		if slices.Contains(kept, topic) {
			continue
		}
		offsets, err := r.offsets(ctx, topic, from)
		if err != nil {
			return nil, err
		}
		for p, offset := range offsets {
			starts[event.TopicPartition{Topic: topic, Partition: p}] = event.Commit{Offset: offset}
		}
	}
	if len(kept) == 0 {
		return starts, nil
	}
	committed, err := r.kafka.Committed(ctx, before)
	if err != nil {
		return nil, err
	}
	for tp, commit := range committed {
		if slices.Contains(kept, tp.Topic) && slices.Contains(topics, tp.Topic) {
			starts[tp] = commit
		}
	}
	return starts, nil
}

// kept are the topics that go on where a subscription is: those that it has. Of one that cannot be
// read these may not be known; then they are those that its group has read, too.
func (r *Registry) kept(ctx context.Context, old Stored) ([]string, error) {
	kept := slices.Clone(old.Topics)
	if old.Invalid == "" {
		return kept, nil
	}
	committed, err := r.kafka.Committed(ctx, old.Group())
	for tp := range committed {
		kept = append(kept, tp.Topic)
	}
	return kept, err
}

// offsets tells where a topic is at latest, earliest or a time.
func (r *Registry) offsets(ctx context.Context, topic, from string) (map[int32]int64, error) {
	if from != fromLatest && from != fromEarliest {
		t, err := time.Parse(time.RFC3339, from)
		if err != nil {
			return nil, event.Errorf(event.Unprocessable, 0, "subscription", "%s is no place to begin; it must be latest, earliest or a time as RFC 3339 has it", quoted(from))
		}
		// Kafka has other meanings for times before its own.
		return r.kafka.OffsetsAt(ctx, topic, time.UnixMilli(max(0, t.UnixMilli())))
	}
	bounds, err := r.kafka.Bounds(ctx, topic)
	if err != nil {
		return nil, err
	}
	out := make(map[int32]int64, len(bounds))
	for p, b := range bounds {
		out[p] = b.End
		if from == fromEarliest {
			out[p] = b.Beginning
		}
	}
	return out, nil
}

// draw gives the number of a new generation, above least, that nobody else has had or will have:
// what two requests at once do to their groups is of no matter to each other, and a subscription
// that is made again does not go on where one of its name had been. The last number that was
// drawn is kept for as long as the table is, some bytes for each name.
func (r *Registry) draw(ctx context.Context, name string, least int64) (n int64, err error) {
	err = r.table.Update(ctx, drawnKey(name), func(old []byte) ([]byte, error) {
		text, _, _ := strings.Cut(string(old), " ")
		last, _ := strconv.ParseInt(text, 10, 64)
		n = max(last, least) + 1
		// A write whose answer was lost knows its own by the text: two must not write the same.
		return fmt.Appendf(nil, "%d %s", n, rand.Text()), nil
	})
	return n, err
}

// drawnKey is the table's key of the last number that was drawn. It is no subscription's name.
func drawnKey(name string) string { return name + "/generation" }

const (
	// sweepInterval is how often groups that nobody needs any more are looked for.
	sweepInterval = time.Minute
	// sweepAfter is for how long such a group is left: a subscription that is being made has a
	// group before it is there itself.
	sweepAfter = 5 * time.Minute
)

// Run removes the groups of generations that are over, once nobody is in them, until ctx ends; then
// it returns nil. Several replicas may do so at once.
func (r *Registry) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
				r.log.Warn("groups of earlier generations could not be removed; they will be tried again", "error", err)
			}
		}
	}
}

func (r *Registry) sweep(ctx context.Context, now time.Time) error {
	groups, err := r.kafka.GroupsWithPrefix(ctx, groupPrefix)
	if err != nil {
		return err
	}
	if err := r.table.CatchUp(ctx); err != nil {
		return err
	}
	var errs []error
	needless := make(map[string]bool)
	for _, g := range groups {
		group := g.Name
		if r.needed(group) {
			continue
		}
		needless[group] = true
		since, seen := r.superfluous[group]
		if !seen {
			r.superfluous[group] = now
			continue
		}
		if now.Sub(since) < sweepAfter {
			continue
		}
		err := r.kafka.DeleteGroup(ctx, group)
		if ee, ok := errors.AsType[*event.Error](err); ok && ee.Kind == event.Conflict {
			continue // somebody is in it still
		}
		errs = append(errs, err)
	}
	maps.DeleteFunc(r.superfluous, func(group string, _ time.Time) bool { return !needless[group] })
	return errors.Join(errs...)
}

// groupPrefix begins the names of all groups of subscriptions.
const groupPrefix = "postamt."

// needed tells whether a group is one that a subscription has, or will have, or none of ours. Of one
// that cannot be read here all are: what its generation says may not be what it says to its writer.
func (r *Registry) needed(group string) bool {
	name, generation, ok := strings.Cut(strings.TrimPrefix(group, groupPrefix), ".")
	if !ok || !validName(name) {
		return true
	}
	r.mu.RLock()
	s, there := r.all[name]
	r.mu.RUnlock()
	if generation == "redrive" {
		return there
	}
	n, err := strconv.ParseInt(generation, 10, 64)
	return err != nil || there && (n >= s.Generation || s.Invalid != "")
}
