package registry

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
)

func TestASubscriptionBeginsWhereItSays(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	produce(t, cluster, "a", 0, 0, 1)
	time.Sleep(5 * time.Millisecond) // Kafka's times are of milliseconds
	between := time.Now().UTC()
	produce(t, cluster, "a", 0)
	for from, want := range map[string]string{
		`"latest"`:   "a/0=3 a/1=1 a/2=0",
		`"earliest"`: "a/0=0 a/1=0 a/2=0",
		`"` + between.Format(time.RFC3339Nano) + `"`: "a/0=2 a/1=1 a/2=0",
		`"1969-12-31T23:59:59.999Z"`:                 "a/0=0 a/1=0 a/2=0", // -1 would be Kafka's word for the end
	} {
		s := put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","from":`+from+`}`)
		if got := positions(t, r, s.Group()); got != want {
			t.Errorf("from %s it begins at %s; want %s", from, got, want)
		}
		if err := r.Delete(t.Context(), "webshop", anyETag); err != nil {
			t.Fatal(err)
		}
	}
}

// Who is made again does not go on where one of its name was.
func TestNumbersOfGenerationsAreNotUsedTwice(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	one, two := registryFor(t, cluster, keyOf(1)), registryFor(t, cluster, keyOf(1))
	var got []int64
	for _, r := range []*Registry{one, two, one} {
		got = append(got, put(t, r, "webshop", webshop).Generation)
		if err := r.Delete(t.Context(), "webshop", anyETag); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("generations are %v", got)
	}
	if all, err := two.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("what is kept of numbers is listed: %+v, %v", all, err)
	}
}

func TestOnlyWhatMovesASubscriptionBeginsAGeneration(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	produce(t, cluster, "a", 0, 0, 0, 0)
	produce(t, cluster, "b", 0, 0)
	s := put(t, r, "webshop", webshop)
	commit(t, cluster, s.Group(), "a", 0, 3, "window")
	commit(t, cluster, s.Group(), "a", 2, 0, "")

	for _, tc := range []struct {
		what, body string
		generation int64
		positions  string
	}{
		{"another URL", `{"topics":["a"],"url":"http://other/"}`, 1, "a/0=3(window) a/1=0 a/2=0"},
		{"the same from", `{"topics":["a"],"url":"http://other/","from":"latest"}`, 1, "a/0=3(window) a/1=0 a/2=0"},
		{"one topic more", `{"topics":["b","a"],"url":"http://other/"}`, 2, "a/0=3(window) a/1=0 a/2=0 b/0=2"},
		{"another order of topics", `{"topics":["a","b"],"url":"http://other/"}`, 2, "a/0=3(window) a/1=0 a/2=0 b/0=2"},
		{"another from", `{"topics":["a","b"],"url":"http://other/","from":"earliest"}`, 3, "a/0=0 a/1=0 a/2=0 b/0=0"},
		{"no from", `{"topics":["a","b"],"url":"http://third/"}`, 3, "a/0=0 a/1=0 a/2=0 b/0=0"},
		{"one topic less", `{"topics":["b"],"url":"http://third/"}`, 4, "b/0=0"},
		{"a topic again", `{"topics":["b","a"],"url":"http://third/"}`, 5, "a/0=0 a/1=0 a/2=0 b/0=0"}, // from is earliest by now
	} {
		s := put(t, r, "webshop", tc.body)
		if got := positions(t, r, s.Group()); s.Generation != tc.generation || got != tc.positions {
			t.Errorf("%s: generation %d at %s; want %d at %s", tc.what, s.Generation, got, tc.generation, tc.positions)
		}
	}

	// A replay moves it, whatever its from is, and stays when the same is put again.
	s, err := r.Replay(t.Context(), "webshop", "latest")
	if got := positions(t, r, s.Group()); err != nil || s.Generation != 6 || got != "a/0=4 a/1=0 a/2=0 b/0=2" {
		t.Errorf("replayed: generation %d at %s, %v", s.Generation, got, err)
	}
	if s := put(t, r, "webshop", `{"topics":["b","a"],"url":"http://third/","from":"earliest"}`); s.Generation != 6 {
		t.Errorf("put again after a replay it has generation %d", s.Generation)
	}
	if _, err := r.Replay(t.Context(), "nothing", "latest"); kindOf(err) != event.NotFound {
		t.Errorf("replay of nothing: %v", err)
	}
}

func TestSweeperRemovesTheGroupsThatAreOver(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	one, two := registryFor(t, cluster, keyOf(1)), registryFor(t, cluster, keyOf(1))
	groups := func() (out []string) {
		t.Helper()
		all, err := one.kafka.GroupsWithPrefix(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range all {
			out = append(out, g.Name)
		}
		return out
	}
	sweep := func(at time.Time) {
		t.Helper()
		for _, r := range []*Registry{one, two} {
			if err := r.sweep(t.Context(), at); err != nil {
				t.Error(err)
			}
		}
	}
	put(t, one, "webshop", webshop)
	for range 2 {
		if _, err := one.Replay(t.Context(), "webshop", "latest"); err != nil {
			t.Fatal(err)
		}
	}
	put(t, one, "other", webshop)
	if err := one.Delete(t.Context(), "other", anyETag); err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"postamt.webshop.4", "postamt.webshop.redrive", "postamt.other.redrive", "postamt.Other.1", "postamt.other.x", "shop"} {
		commit(t, cluster, group, "a", 0, 0, "")
	}
	// A member of the second generation, which has not heard of the third yet.
	member := clientFor(t, cluster, kgo.ConsumerGroup("postamt.webshop.2"), kgo.ConsumeTopics("a"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	produce(t, cluster, "a", 0)
	if len(member.PollFetches(ctx).Records()) == 0 {
		t.Fatal("the member has read nothing")
	}

	now := time.Now()
	all := []string{
		"postamt.Other.1", "postamt.other.1", "postamt.other.redrive", "postamt.other.x",
		"postamt.webshop.1", "postamt.webshop.2", "postamt.webshop.3", "postamt.webshop.4", "postamt.webshop.redrive", "shop",
	}
	sweep(now)
	sweep(now.Add(sweepAfter - time.Second)) // they may be of subscriptions that are being made
	if got := groups(); !slices.Equal(got, all) {
		t.Fatalf("at first there are %v; want %v", got, all)
	}
	sweep(now.Add(sweepAfter))
	left := []string{"postamt.Other.1", "postamt.other.x", "postamt.webshop.2", "postamt.webshop.3", "postamt.webshop.4", "postamt.webshop.redrive", "shop"}
	if got := groups(); !slices.Equal(got, left) {
		t.Errorf("swept, there are %v; want %v", got, left)
	}
	member.Close()
	sweep(now.Add(sweepAfter + sweepInterval))
	if got := groups(); slices.Contains(got, "postamt.webshop.2") {
		t.Errorf("after its member has left, there are %v", got)
	}
	sweep(now.Add(sweepAfter + 2*sweepInterval))
	if len(one.superfluous) != 0 {
		t.Errorf("it remembers groups that there are not: %v", one.superfluous)
	}
}

func TestRedriveIsUpToTheEndAsItIs(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	busy := false
	redrive := func() (int64, error) {
		return r.Redrive(t.Context(), "webshop", func(*event.Subscription) (bool, error) { return busy, nil })
	}
	if _, err := redrive(); kindOf(err) != event.NotFound {
		t.Errorf("of nothing: %v", err)
	}
	s := put(t, r, "webshop", `{"topics":["a","b"],"url":"http://webshop/"}`)
	if n, err := redrive(); err != nil || n != 0 || get(t, r, "webshop").Redrive.ID != 0 {
		t.Errorf("without letters: %d, %v", n, err)
	}
	produce(t, cluster, "a.dead-letters", 0, 2, 2)
	produce(t, cluster, "b.dead-letters", 0)
	if n, err := redrive(); err != nil || n != 4 {
		t.Errorf("of 4 letters: %d, %v", n, err)
	}
	want := "map[{a.dead-letters 0}:1 {a.dead-letters 1}:0 {a.dead-letters 2}:2 {b.dead-letters 0}:1]"
	got := get(t, r, "webshop")
	if got.Redrive.ID != 1 || fmt.Sprint(got.Redrive.Until) != want || got.Generation != s.Generation {
		t.Errorf("the redrive is %+v; want %s", got.Redrive, want)
	}
	busy = true
	if _, err := redrive(); kindOf(err) != event.Conflict {
		t.Errorf("while one runs: %v", err)
	}
	busy = false
	commit(t, cluster, s.RedriveGroup(), "a.dead-letters", 2, 2, "")
	if n, err := redrive(); err != nil || n != 2 || get(t, r, "webshop").Redrive.ID != 2 {
		t.Errorf("of what is left: %d, %v", n, err)
	}
}
