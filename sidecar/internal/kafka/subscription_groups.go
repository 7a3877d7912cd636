package kafka

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"postamt/sidecar/internal/event"
)

// CommitStart makes a group begin at offsets: it commits them while the group has no members.
// Conflict means that it has some, and that nothing was committed.
func (c *Cluster) CommitStart(ctx context.Context, group string, at map[event.TopicPartition]event.Commit) error {
	const op = "kafka.CommitStart"
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	err := commitOutside(ctx, c.admin, group, at)
	if membersOnly(err) {
		return &event.Error{Kind: event.Conflict, Op: op, Err: err, Msg: "the consumer group " + group + " has members already, and only they may commit"}
	}
	return wrap(op, err)
}

// DeleteGroup removes a group with what it has committed; there may be none. Conflict means that
// it has members.
func (c *Cluster) DeleteGroup(ctx context.Context, group string) error {
	const op = "kafka.DeleteGroup"
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	resp, err := c.admin.DeleteGroup(ctx, group)
	switch err = cmp.Or(err, resp.Err); {
	case errors.Is(err, kerr.GroupIDNotFound):
		return nil
	case errors.Is(err, kerr.NonEmptyGroup):
		return &event.Error{Kind: event.Conflict, Op: op, Err: err, Msg: "the consumer group " + group + " has members; they have to leave first"}
	}
	return wrap(op, err)
}

// GroupsWithPrefix lists the groups whose names begin so, Postamt's own ones, too, with their
// state and protocol, in order of their name.
func (c *Cluster) GroupsWithPrefix(ctx context.Context, prefix string) ([]event.GroupState, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	listed, err := NewAdmin(c.client).listGroups(ctx)
	if err != nil {
		return nil, err
	}
	groups := []event.GroupState{}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if strings.HasPrefix(name, prefix) {
			groups = append(groups, *listed[name])
		}
	}
	return groups, nil
}

// Members lists who is in a group, in the order of their ids, and what they are assigned. A group
// that there is not has none.
func (c *Cluster) Members(ctx context.Context, group string) ([]event.GroupMember, error) {
	const op = "kafka.Members"
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	described, err := c.admin.DescribeGroups(ctx, group)
	if err != nil {
		return nil, wrap(op, err)
	}
	d, err := described.On(group, nil)
	if err = cmp.Or(err, d.Err); errors.Is(err, kerr.GroupIDNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(op, err)
	}
	var g event.Group
	fillClassic(&g, d)
	slices.SortFunc(g.List, func(a, b event.GroupMember) int { return cmp.Compare(a.ID, b.ID) })
	return g.List, nil
}

// commitOutside commits for a group without being a member of it.
func commitOutside(ctx context.Context, admin *kadm.Client, group string, commits map[event.TopicPartition]event.Commit) error {
	offsets := make(kadm.Offsets)
	for tp, c := range commits {
		offsets.Add(kadm.Offset{Topic: tp.Topic, Partition: tp.Partition, At: c.Offset, LeaderEpoch: -1, Metadata: c.Metadata})
	}
	resp, err := admin.CommitOffsets(ctx, group, offsets)
	if err == nil {
		err = resp.Error()
	}
	return err
}

// membersOnly tells the errors with which Kafka refuses the commit of one who is no member.
func membersOnly(err error) bool {
	return errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.IllegalGeneration) || errors.Is(err, kerr.RebalanceInProgress)
}
