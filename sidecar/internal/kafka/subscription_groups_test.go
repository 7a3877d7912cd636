package kafka_test

import (
	"maps"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

func TestAGroupBeginsWhereItIsToldBeforeItHasMembers(t *testing.T) {
	cluster := clusterFor(t, kfake.NumBrokers(3), kfake.SeedTopics(2, "a", "b"))
	c := kafka.NewCluster(clientFor(t, cluster))
	start := map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 0}, tp("a", 1): {Offset: 7, Metadata: "m"}, tp("b", 0): {Offset: 3}, tp("b", 1): {Offset: 0}}
	if err := c.CommitStart(t.Context(), "postamt.s.1", start); err != nil {
		t.Fatal(err)
	}
	if err := c.CommitStart(t.Context(), "postamt.s.2", map[event.TopicPartition]event.Commit{tp("a", 0): {Offset: 1}}); err != nil {
		t.Fatal(err)
	}
	commit(t, clientFor(t, cluster), "postamt.s", position("a", 0, 1))
	if got, err := c.Committed(t.Context(), "postamt.s.1"); err != nil || !maps.Equal(got, start) {
		t.Errorf("committed is %v, %v; want %v", got, err, start)
	}
	if got, err := c.Members(t.Context(), "postamt.s.1"); err != nil || len(got) != 0 {
		t.Errorf("its members are %v, %v", got, err)
	}

	m := member(t, cluster, "postamt.s.1", kgo.ConsumeTopics("a", "b"), kgo.ClientID("postamt-deliver@replica:8080@1"), kgo.DisableAutoCommit())
	wantCode(t, "a start with members", c.CommitStart(t.Context(), "postamt.s.1", start), event.Conflict, 0)
	wantCode(t, "deleting with members", c.DeleteGroup(t.Context(), "postamt.s.1"), event.Conflict, 0)
	members, err := c.Members(t.Context(), "postamt.s.1")
	if err != nil || len(members) != 1 || members[0].Client != "postamt-deliver@replica:8080@1" || len(members[0].Assigned["a"]) != 2 || len(members[0].Assigned["b"]) != 2 {
		t.Errorf("the members are %+v, %v", members, err)
	}
	groups, err := c.GroupsWithPrefix(t.Context(), "postamt.s.")
	if err != nil || len(groups) != 2 || groups[0].Name != "postamt.s.1" || groups[0].State != "Stable" || groups[1].Name != "postamt.s.2" || groups[1].State != "Empty" {
		t.Errorf("the groups are %+v, %v", groups, err)
	}

	m.Close()
	for _, group := range []string{"postamt.s.1", "postamt.s.1", "postamt.never"} {
		if err := c.DeleteGroup(t.Context(), group); err != nil {
			t.Errorf("delete %s: %v", group, err)
		}
	}
	if groups, err := c.GroupsWithPrefix(t.Context(), "postamt.s."); err != nil || len(groups) != 1 {
		t.Errorf("the groups are %+v, %v", groups, err)
	}
	if got, err := c.Committed(t.Context(), "postamt.s.1"); err != nil || len(got) != 0 {
		t.Errorf("committed is %v, %v", got, err)
	}
	if got, err := c.Members(t.Context(), "postamt.never"); err != nil || len(got) != 0 {
		t.Errorf("the members of no group are %v, %v", got, err)
	}
	cluster.Close()
	for what, err := range map[string]error{
		"start":  c.CommitStart(t.Context(), "postamt.s.1", start),
		"delete": c.DeleteGroup(t.Context(), "postamt.s.1"),
	} {
		if kindOf(err) != event.Unavailable {
			t.Errorf("%s without Kafka: %v; want unavailable", what, err)
		}
	}
}
