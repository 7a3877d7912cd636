package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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

// Whatever this version cannot read of it, one that is put again leaves out nothing.
func TestOneThatCannotBeReadGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	const again, more, elsewhere = `{"topics":["a"],"url":"http://webshop/"}`, `{"topics":["a","b"],"url":"http://webshop/"}`, `{"topics":["a"],"url":"http://webshop/","from":"earliest"}`
	const asItWas, andTheEndOfB, asNew = "a/0=2(window) a/1=0 a/2=0", "a/0=2(window) a/1=0 a/2=0 b/0=1", "a/0=4 a/1=0 a/2=0"
	for what, tc := range map[string]struct {
		old, new   string // what is changed in what is stored
		body       string
		generation int64 // 0: it is not known any more, the next one is begun
		positions  string
	}{
		"a bound that is narrower":         {`"max_in_flight":64`, `"max_in_flight":0`, again, 1, asItWas},
		"another topic, too":               {`"max_in_flight":64`, `"max_in_flight":0`, more, 2, andTheEndOfB},
		"its from again":                   {`"max_in_flight":64`, `"max_in_flight":0`, `{"topics":["a"],"url":"http://webshop/","from":"latest"}`, 1, asItWas},
		"another from":                     {`"max_in_flight":64`, `"max_in_flight":0`, elsewhere, 2, "a/0=0 a/1=0 a/2=0"},
		"a setting that is unknown":        {`"max_in_flight":64`, `"most_in_flight":64`, again, 1, asItWas},
		"a filter that is none any more":   {`"ordering"`, `"filter":"data.amount >","ordering"`, again, 1, asItWas},
		"topics that cannot be read":       {`"topics":["a"]`, `"topics":"a"`, again, 2, asItWas},
		"topics that are called otherwise": {`"topics":["a"]`, `"sources":["a"]`, more, 2, andTheEndOfB},
		"a from that cannot be read":       {`"from":"latest"`, `"from":"now"`, elsewhere, 1, asItWas},
		"no settings that could be read":   {`"settings":{`, `"settings":"none","were":{`, elsewhere, 2, asItWas},
		"no settings":                      {`"settings":{`, `"were":{`, again, 2, asItWas},
		"a later version":                  {`"version":1`, `"version":2`, again, 1, asItWas},
		"a later version of its topics": {
			`{"version":1,"generation":1,"state":"active","settings":{"topics":["a"]`,
			`{"version":2,"generation":1,"state":"active","settings":{"topics":[{"name":"a"}]`, again, 2, asItWas,
		},
		"a version that is no number":      {`"version":1`, `"version":"2"`, again, 1, asItWas},
		"a state that is unknown":          {`"active"`, `"asleep"`, again, 1, asItWas},
		"secrets that are kept otherwise":  {`"sealed":"`, `"sealed":[],"was":"`, again, 1, asItWas},
		"a redrive that cannot be":         {`"created"`, `"redrive":{"id":1,"until":{"a":[-2]}},"created"`, again, 1, asItWas},
		"what it has committed is expired": {`"max_in_flight":64`, `"max_in_flight":0`, more, 2, "b/0=1"}, // a from its first record on
		"no generation":                    {`"generation":1`, `"generation":0`, again, 2, asNew},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			cluster := clusterFor(t)
			r := registryFor(t, cluster, keyOf(1))
			before := put(t, r, "webshop", webshop)
			produce(t, cluster, "a", 0, 0, 0, 0)
			produce(t, cluster, "b", 0)
			commit(t, cluster, before.Group(), "a", 0, 2, "window")
			if what == "what it has committed is expired" {
				if err := r.kafka.DeleteGroup(t.Context(), before.Group()); err != nil {
					t.Fatal(err)
				}
			}
			store(t, r, before, tc.old, tc.new)
			s, created, err := r.Put(t.Context(), "webshop", decode(t, tc.body), anyETag)
			if err != nil || !created || s.Invalid != "" || s.State != event.Active || len(s.Secrets) != 1 {
				t.Fatalf("it is %+v, %v, %v", s, created, err)
			}
			if got := positions(t, r, s.Group()); s.Generation != tc.generation || got != tc.positions {
				t.Errorf("generation %d at %s; want %d at %s", s.Generation, got, tc.generation, tc.positions)
			}
		})
	}
}

// store replaces a part of what is stored of a subscription, so that it cannot be read.
func store(t testing.TB, r *Registry, s Stored, old, replacement string) {
	t.Helper()
	err := r.table.Update(t.Context(), s.Name, func(text []byte) ([]byte, error) {
		if !strings.Contains(string(text), old) {
			t.Errorf("%s is not in %s", old, text)
		}
		return []byte(strings.Replace(string(text), old, replacement, 1)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := get(t, r, s.Name); got.Invalid == "" {
		t.Errorf("it can be read: %+v", got)
	}
}

func TestOneThatCannotBeReadKeepsItsPlace(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	put(t, r, "webshop", webshop)
	if _, err := r.Replay(t.Context(), "webshop", "earliest"); err != nil {
		t.Fatal(err)
	}
	before, err := r.SetState(t.Context(), "webshop", event.Paused)
	if err != nil {
		t.Fatal(err)
	}
	produce(t, cluster, "a", 0, 0)
	store(t, r, before, `"max_in_flight":64`, `"max_in_flight":0`)
	var told atomic.Bool
	r.Subscribe(func(_ string, sub *event.Subscription) {
		if sub != nil {
			told.Store(true)
		}
	})
	store(t, r, before, `"timeout":"15s"`, `"timeout":"15 s"`) // once more

	// Nobody delivers it, though its generation is known.
	if told.Load() {
		t.Error("it is told as a subscription")
	}
	if s := get(t, r, "webshop"); s.Generation != 2 || s.State != event.Paused || len(s.Settings.Topics) != 0 {
		t.Errorf("it is %+v", s)
	}
	if _, err := r.Replay(t.Context(), "webshop", "latest"); kindOf(err) != event.Conflict {
		t.Errorf("replayed while it cannot be read: %v", err)
	}

	// The sweeper leaves all its groups, also one of a PUT that ended before it was written.
	commit(t, cluster, "postamt.webshop.redrive", "a.dead-letters", 0, 0, "")
	if n, err := r.draw(t.Context(), "webshop", 0); err != nil || n != 3 {
		t.Fatalf("the generation that is drawn is %d, %v", n, err)
	}
	commit(t, cluster, "postamt.webshop.3", "a", 0, 2, "")
	now := time.Now()
	groups := func() (out []string) {
		t.Helper()
		for range 2 {
			if err := r.sweep(t.Context(), now); err != nil {
				t.Error(err)
			}
			now = now.Add(sweepAfter)
		}
		all, err := r.kafka.GroupsWithPrefix(t.Context(), groupPrefix)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range all {
			out = append(out, strings.TrimPrefix(g.Name, "postamt.webshop."))
		}
		return out
	}
	if got := groups(); !slices.Equal(got, []string{"1", "2", "3", "redrive"}) {
		t.Errorf("swept while it cannot be read, there are %v", got)
	}

	// Of several who put it again at once one makes it, and the others find what it made.
	var mu sync.Mutex
	var writers sync.WaitGroup
	made := 0
	for i := range 4 {
		writers.Go(func() {
			_, created, err := r.Put(t.Context(), "webshop", decode(t, fmt.Sprintf(`{"topics":["a","b"],"url":"http://webshop/%d"}`, i)), anyETag)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && kindOf(err) != event.Conflict {
				t.Errorf("writer %d: %v", i, err)
			}
			if created {
				made++
			}
		})
	}
	writers.Wait()
	s := get(t, r, "webshop")
	if got := positions(t, r, s.Group()); made != 1 || s.Generation < 4 || s.State != event.Paused || !s.Created.Equal(before.Created) || got != "a/0=0 a/1=0 a/2=0 b/0=0" {
		t.Errorf("%d have made it: %+v at %s", made, s, got)
	}
	if got := groups(); !slices.Equal(got, []string{fmt.Sprint(s.Generation), "redrive"}) {
		t.Errorf("swept since, there are %v of generation %d", got, s.Generation)
	}

	store(t, r, s, `"max_in_flight":64`, `"max_in_flight":0`)
	if err := r.Delete(t.Context(), "webshop", anyETag); err != nil {
		t.Errorf("deleted while it cannot be read: %v", err)
	}
	if got := groups(); len(got) != 0 {
		t.Errorf("deleted, there are the groups %v", got)
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
