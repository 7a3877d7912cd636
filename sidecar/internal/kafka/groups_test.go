package kafka_test

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
)

func TestAdminDescribesOneGroupOfEachProtocol(t *testing.T) {
	admin, client, cluster := adminFor(t, kfake.NumBrokers(3), kfake.SeedTopics(3, "a"), kfake.SeedTopics(2, "b"))
	member(t, cluster, "classic", kgo.ConsumeTopics("a"), kgo.InstanceID("till-7"))
	member(t, cluster, "next", kgo.ConsumeTopics("b"), kgo.ServerSideBalancer(), kgo.Balancers(kgo.RangeBalancer()))
	commit(t, client, "empty", position("a", 2, 7))
	commit(t, client, "postamt.own", position("a", 2, 7))
	commit(t, client, "gone", position("a", 0, 1))
	if _, err := kadm.NewClient(client).DeleteGroup(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}

	g, err := admin.Group(t.Context(), "classic")
	if err != nil || g.Protocol != "classic" || g.State != "Stable" || g.Members != 1 || len(g.List) != 1 || g.Assignor == "" || g.Coordinator < 0 {
		t.Fatalf("classic is %+v, %v", g, err)
	}
	if m := g.List[0]; m.ID == "" || m.Instance != "till-7" || m.Client == "" || len(m.Assigned["a"]) != 3 || len(g.Assigned["a"]) != 3 || !slices.Equal(g.Subscribed, []string{"a"}) {
		t.Errorf("its member is %+v, and it %+v", m, g)
	}
	g, err = admin.Group(t.Context(), "next")
	if err != nil || g.Protocol != "consumer" || g.State == "" || g.Members != 1 || len(g.List) != 1 || g.List[0].ID == "" || g.Assignor == "" || g.Coordinator < 0 || !slices.Equal(g.Subscribed, []string{"b"}) {
		t.Errorf("next is %+v, %v", g, err)
	}
	g, err = admin.Group(t.Context(), "empty")
	if err != nil || g.State != "Empty" || g.Members != 0 || len(g.Committed["a"]) != 1 {
		t.Errorf("empty is %+v, %v", g, err)
	}
	for _, name := range []string{"gone", "nobody", ""} {
		if g, err := admin.Group(t.Context(), name); kindOf(err) != event.NotFound {
			t.Errorf("%q is %+v, %v; want not found", name, g, err)
		}
	}
	groups, err := admin.ListGroups(t.Context())
	var names []string
	for _, g := range groups {
		names = append(names, g.Name+" "+g.Protocol)
	}
	if err != nil || !slices.Equal(names, []string{"classic classic", "empty classic", "next consumer"}) {
		t.Errorf("groups are %v, %v", names, err)
	}
}

func TestSensitiveSettingsHaveNoValue(t *testing.T) {
	admin, _, _ := adminFor(t, kfake.SeedTopics(1, "a", "_postamt.own"))
	configs, err := admin.ConfigsOf(t.Context(), "a")
	if err != nil || len(configs) == 0 {
		t.Fatal(configs, err)
	}
	for i, c := range configs {
		if c.Name == "" || c.Source == "" || i > 0 && configs[i-1].Name >= c.Name {
			t.Errorf("setting %d is %+v", i, c)
		}
		if c.Sensitive && c.Value != nil {
			t.Errorf("%s is sensitive and shown", c.Name)
		}
	}
	for _, topic := range []string{"nowhere", "_postamt.own"} {
		if _, err := admin.ConfigsOf(t.Context(), topic); kindOf(err) != event.NotFound {
			t.Errorf("settings of %s: %v; want not found", topic, err)
		}
	}
}
