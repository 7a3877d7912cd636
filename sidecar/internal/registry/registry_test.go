package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/webhook"
)

const tableTopic = "_postamt.subscriptions"

// clusterFor has the topics a (3 partitions) and b, with dead letters, and c without.
func clusterFor(t testing.TB) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "a", "a.dead-letters"), kfake.SeedTopics(1, "b", "b.dead-letters", "c", tableTopic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func clientFor(t testing.TB, cluster *kfake.Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kafka.NewClient(cluster.ListenAddrs(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// keyOf is a key whose bytes are all the same.
func keyOf(b byte) []byte { return slices.Repeat([]byte{b}, KeyBytes) }

// registryFor is a replica's, with its table running until the test ends.
func registryFor(t testing.TB, cluster *kfake.Cluster, keys ...[]byte) *Registry {
	t.Helper()
	seals, err := NewSeals(keys...)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	r := New(kafka.NewCluster(clientFor(t, cluster)), Options{
		Seals: seals, MaxSubscriptions: 3, Log: log,
		CheckURL: webhook.CheckURL, CheckHeaders: webhook.CheckHeaders,
	})
	table, err := kafka.OpenTable(cluster.ListenAddrs(), tableTopic, r.Changed, log)
	if err != nil {
		t.Fatal(err)
	}
	r.UseTable(table)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the table ended with %v", err)
		}
		table.Close()
	})
	return r
}

func anyETag(string) bool { return true }

func isNew(etag string) bool { return etag == "" }

func kindOf(err error) event.Kind {
	if ee, ok := errors.AsType[*event.Error](err); ok {
		return ee.Kind
	}
	return ""
}

func decode(t testing.TB, body string) Settings {
	t.Helper()
	s, err := DecodeSettings([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put is a PUT that succeeds.
func put(t testing.TB, r *Registry, name, body string) Stored {
	t.Helper()
	s, _, err := r.Put(t.Context(), name, decode(t, body), anyETag)
	if err != nil {
		t.Fatalf("put %s: %v", body, err)
	}
	return s
}

func get(t testing.TB, r *Registry, name string) Stored {
	t.Helper()
	s, err := r.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// produce writes a record to each partition of a.
func produce(t testing.TB, cluster *kfake.Cluster, topic string, partitions ...int32) {
	t.Helper()
	client := clientFor(t, cluster, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for _, p := range partitions {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: p, Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// positions are what a group has committed, as "a/0=1 a/1=0".
func positions(t testing.TB, r *Registry, group string) string {
	t.Helper()
	committed, err := r.kafka.Committed(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, tp := range slices.SortedFunc(maps.Keys(committed), event.TopicPartition.Compare) {
		text := fmt.Sprintf("%s/%d=%d", tp.Topic, tp.Partition, committed[tp].Offset)
		if committed[tp].Metadata != "" {
			text += "(" + committed[tp].Metadata + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func commit(t testing.TB, cluster *kfake.Cluster, group, topic string, partition int32, offset int64, metadata string) {
	t.Helper()
	offsets := make(kadm.Offsets)
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: offset, LeaderEpoch: -1, Metadata: metadata})
	resp, err := kadm.NewClient(clientFor(t, cluster)).CommitOffsets(t.Context(), group, offsets)
	if err = errors.Join(err, resp.Error()); err != nil {
		t.Fatal(err)
	}
}

const webshop = `{"topics":["a"],"url":"http://webshop/"}`

func TestEveryReplicaKnowsASubscriptionAtOnce(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	one, two := registryFor(t, cluster, keyOf(1)), registryFor(t, cluster, keyOf(1))
	if _, err := one.Get(t.Context(), "webshop"); kindOf(err) != event.NotFound {
		t.Errorf("before it is made: %v", err)
	}
	s, created, err := one.Put(t.Context(), "webshop", decode(t, `{"topics":["a"],"url":"http://webshop/","headers":{"X-Api-Key":"open sesame"},
		"filter":"data.amount > 50","ordering":"partition","max_in_flight":7,"rate_limit":"600/m","timeout":"2s","format":"structured",
		"retry":{"initial":"100ms","max":"1m","max_attempts":3,"give_up_after":"0s"},"dead_letters":"b.dead-letters"}`), isNew)
	if err != nil || !created || s.Generation != 1 || len(s.Secrets) != 1 || len(s.Secrets[0].Key) != secretBytes || s.State != event.Active {
		t.Fatalf("it is %+v, %v, %v", s, created, err)
	}
	other := get(t, two, "webshop")
	want := event.Subscription{
		Name: "webshop", Generation: 1, Topics: []string{"a"}, URL: "http://webshop/", Filter: "data.amount > 50", Ordering: event.OrderByPartition,
		MaxInFlight: 7, RateLimit: 10, Timeout: 2 * time.Second, Structured: true, Headers: map[string]string{"X-Api-Key": "open sesame"},
		Retry:       event.Retry{Initial: 100 * time.Millisecond, Max: time.Minute, MaxAttempts: 3},
		DeadLetters: "b.dead-letters", Secrets: s.Secrets, State: event.Active, Created: s.Created, Changed: s.Changed,
	}
	if got, want := fmt.Sprintf("%+v", other.Subscription), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("the other replica has\n%s; want\n%s", got, want)
	}
	if other.ETag != s.ETag || other.ETag == "" || other.Settings.From != "latest" {
		t.Errorf("the ETag is %q and %q, from %q", other.ETag, s.ETag, other.Settings.From)
	}
	// What it shows is what makes it again, but for what is not shown.
	shown, err := other.Settings.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	again, created, err := two.Put(t.Context(), "webshop", decode(t, string(shown)), anyETag)
	if err != nil || created || again.ETag != s.ETag {
		t.Errorf("what it shows, put again: %+v, %v, %v; want it unchanged\n%s", again, created, err, shown)
	}
	if all, err := two.List(t.Context()); err != nil || len(all) != 1 || all[0].Name != "webshop" {
		t.Errorf("the list is %+v, %v", all, err)
	}
	if err := two.Delete(t.Context(), "webshop", anyETag); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Get(t.Context(), "webshop"); kindOf(err) != event.NotFound {
		t.Errorf("after it was deleted: %v", err)
	}
	if err := one.Delete(t.Context(), "webshop", anyETag); kindOf(err) != event.NotFound {
		t.Errorf("deleted again: %v", err)
	}
}

func TestNothingSecretIsInTheTopic(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	given := slices.Repeat([]byte("s"), 24)
	s := put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","headers":{"X-Api-Key":"open sesame"},"secret":"`+SecretText(given)+`"}`)
	if string(s.Secrets[0].Key) != string(given) {
		t.Errorf("the secret is %q", s.Secrets[0].Key)
	}
	key, _, err := r.Rotate(t.Context(), "webshop", nil)
	if err != nil {
		t.Fatal(err)
	}
	client := clientFor(t, cluster, kgo.ConsumeTopics(tableTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	found := 0
	for found < 2 { // the PUT's and the rotation's
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d records were found", found)
		}
		for _, rec := range fetches.Records() {
			if string(rec.Key) == "webshop" {
				found++
			}
			for _, secret := range []string{"sesame", string(given), string(key), base64.StdEncoding.EncodeToString(given), base64.StdEncoding.EncodeToString(key)} {
				if strings.Contains(string(rec.Value), secret) {
					t.Errorf("the topic has %q: %s", secret, rec.Value)
				}
			}
		}
	}
}

func TestOfConcurrentWritersOneWins(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	registries := []*Registry{registryFor(t, cluster, keyOf(1)), registryFor(t, cluster, keyOf(1))}
	var mu sync.Mutex
	var won []Stored
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			s, created, err := registries[i%2].Put(t.Context(), "webshop", decode(t, fmt.Sprintf(`{"topics":["a"],"url":"http://webshop/%d"}`, i)), isNew)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && created {
				won = append(won, s)
			} else if kindOf(err) != event.Precondition && kindOf(err) != event.Conflict {
				t.Errorf("writer %d: %v, %v", i, created, err)
			}
		})
	}
	writers.Wait()
	if len(won) != 1 {
		t.Fatalf("%d have made it", len(won))
	}
	for i, r := range registries {
		if s := get(t, r, "webshop"); s.URL != won[0].URL || s.ETag != won[0].ETag {
			t.Errorf("replica %d has %s; want %s", i, s.URL, won[0].URL)
		}
	}
	if got := positions(t, registries[0], won[0].Group()); got != "a/0=0 a/1=0 a/2=0" {
		t.Errorf("its group begins at %s", got)
	}

	// An ETag is of one state.
	s := won[0]
	match := func(etag string) bool { return etag == s.ETag }
	changed, _, err := registries[1].Put(t.Context(), "webshop", decode(t, `{"topics":["a"],"url":"http://other/"}`), match)
	if err != nil || changed.ETag == s.ETag || changed.Generation != s.Generation {
		t.Errorf("with its ETag: %+v, %v", changed, err)
	}
	if _, _, err := registries[0].Put(t.Context(), "webshop", decode(t, webshop), match); kindOf(err) != event.Precondition {
		t.Errorf("with an ETag that is over: %v", err)
	}
	if err := registries[0].Delete(t.Context(), "webshop", match); kindOf(err) != event.Precondition {
		t.Errorf("deleted with an ETag that is over: %v", err)
	}
}

func TestHeadersThatAreNullStayAsTheyAre(t *testing.T) {
	t.Parallel()
	r := registryFor(t, clusterFor(t), keyOf(1))
	put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","headers":{"X-One":"1","X-Two":"2"}}`)
	put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","headers":{"X-One":null,"X-Two":"22"}}`)
	if s := get(t, r, "webshop"); s.Headers["X-One"] != "1" || s.Headers["X-Two"] != "22" {
		t.Errorf("headers are %v", s.Headers)
	}
	_, _, err := r.Put(t.Context(), "webshop", decode(t, `{"topics":["a"],"url":"http://webshop/","headers":{"X-Three":null}}`), anyETag)
	if kindOf(err) != event.Unprocessable || !strings.Contains(err.Error(), "headers.X-Three is null") {
		t.Errorf("null for a header that there is not: %v", err)
	}
	put(t, r, "webshop", webshop)
	if s := get(t, r, "webshop"); len(s.Headers) != 0 {
		t.Errorf("left out, headers are %v", s.Headers)
	}
}

func TestSecretsRotate(t *testing.T) {
	t.Parallel()
	r := registryFor(t, clusterFor(t), keyOf(1))
	first := put(t, r, "webshop", webshop).Secrets[0]
	second, until, err := r.Rotate(t.Context(), "webshop", nil)
	if err != nil || time.Until(until) < overlap-time.Minute || time.Until(until) > overlap {
		t.Fatalf("rotated until %v, %v", until, err)
	}
	s := get(t, r, "webshop")
	if len(s.Secrets) != 2 || string(s.Secrets[0].Key) != string(second) || !s.Secrets[0].Until.IsZero() || string(s.Secrets[1].Key) != string(first.Key) || !s.Secrets[1].Until.Equal(until) {
		t.Errorf("secrets are %+v", s.Secrets)
	}
	// A PUT with the secret that it has changes nothing; with another one it rotates, too.
	if again := put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","secret":"`+SecretText(second)+`"}`); again.ETag != s.ETag {
		t.Error("the same secret was another state")
	}
	put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","secret":"`+SecretText(slices.Repeat([]byte("x"), 64))+`"}`)
	if s = get(t, r, "webshop"); len(s.Secrets) != 3 || len(s.Secrets[0].Key) != 64 {
		t.Errorf("secrets are %+v", s.Secrets)
	}
	for range maxSecrets - 3 {
		if _, _, err := r.Rotate(t.Context(), "webshop", nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Rotate(t.Context(), "webshop", nil); kindOf(err) != event.Conflict || !strings.Contains(err.Error(), "as many secrets that sign as it may, 4") {
		t.Errorf("one too many: %v", err)
	}
	// Those that are over make room.
	s = get(t, r, "webshop")
	if changed, err := s.rotate(keyOf(9), time.Now().Add(overlap+time.Minute)); err != nil || !changed || len(s.Secrets) != 2 {
		t.Errorf("a day later: %v, %v, %+v", changed, err, s.Secrets)
	}
}

func TestKeysOfSealsRotate(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	old := registryFor(t, cluster, keyOf(1))
	before := put(t, old, "webshop", `{"topics":["a"],"url":"http://webshop/","headers":{"X-Api-Key":"1"}}`)
	produce(t, cluster, "a", 0)
	both, alone := registryFor(t, cluster, keyOf(2), keyOf(1)), registryFor(t, cluster, keyOf(2))
	if s := get(t, both, "webshop"); s.Invalid != "" || string(s.Secrets[0].Key) != string(before.Secrets[0].Key) {
		t.Errorf("with both keys it is %+v", s)
	}
	var heard []string
	alone.Subscribe(func(name string, sub *event.Subscription) { heard = append(heard, fmt.Sprint(name, sub != nil)) })
	s := get(t, alone, "webshop")
	if !strings.Contains(s.Invalid, "POSTAMT_SECRET_KEY") || s.ETag == "" || s.Generation != 1 {
		t.Errorf("with the new key alone it is %+v", s)
	}
	if slices.Contains(heard, "webshoptrue") {
		t.Errorf("what cannot be read is told as a subscription: %v", heard)
	}
	if _, err := alone.SetState(t.Context(), "webshop", event.Paused); kindOf(err) != event.Conflict {
		t.Errorf("paused while it cannot be read: %v", err)
	}
	if all, err := alone.List(t.Context()); err != nil || len(all) != 1 || all[0].Invalid == "" {
		t.Errorf("the list is %+v, %v", all, err)
	}
	// It can be replaced, goes on where it was, and has a new secret.
	s, created, err := alone.Put(t.Context(), "webshop", decode(t, webshop), anyETag)
	if err != nil || !created || s.Generation != 1 || len(s.Secrets) != 1 || string(s.Secrets[0].Key) == string(before.Secrets[0].Key) {
		t.Errorf("replaced it is %+v, %v, %v", s, created, err)
	}
	if got := positions(t, alone, s.Group()); got != "a/0=0 a/1=0 a/2=0" {
		t.Errorf("replaced it begins at %s", got)
	}
	if s := get(t, both, "webshop"); s.Invalid != "" {
		t.Errorf("sealed with the new key it is %+v", s)
	}

	none := registryFor(t, cluster)
	if _, _, err := none.Put(t.Context(), "other", decode(t, webshop), anyETag); kindOf(err) != event.Forbidden || !strings.Contains(err.Error(), "POSTAMT_SECRET_KEY") {
		t.Errorf("without a key: %v", err)
	}
	if err := none.Delete(t.Context(), "webshop", anyETag); err != nil {
		t.Errorf("without a key it cannot be deleted: %v", err)
	}
}

func TestWhatCannotBeReadIsShownAndCanBeReplaced(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	r := registryFor(t, cluster, keyOf(1))
	valid := put(t, r, "valid", webshop)
	text, _, err := r.encode(valid)
	if err != nil {
		t.Fatal(err)
	}
	for name, stored := range map[string]string{
		"text":      "hello",
		"null":      "null",
		"version":   strings.Replace(string(text), `"version":1`, `"version":2`, 1),
		"settings":  strings.Replace(string(text), `"max_in_flight":64`, `"max_in_flight":0`, 1),
		"unknown":   strings.Replace(string(text), `"max_in_flight":64`, `"max_in_fright":64`, 1),
		"state":     strings.Replace(string(text), `"active"`, `"asleep"`, 1),
		"anothers":  string(text), // sealed for the name valid
		"no-sealed": strings.Replace(string(text), `"sealed":"`, `"shield":"`, 1),
		"redrive":   strings.Replace(string(text), `"created"`, `"redrive":{"id":1,"until":{"a":[-2]}},"created"`, 1),
	} {
		if name != "anothers" && stored == string(text) {
			t.Errorf("%s is as it was", name)
		}
		if s := r.decode(name, []byte(stored)); s.Invalid == "" || s.Name != name || s.ETag == "" {
			t.Errorf("%s is %+v", name, s)
		}
	}
	if err := r.table.Update(t.Context(), "broken", func([]byte) ([]byte, error) { return []byte("hello"), nil }); err != nil {
		t.Fatal(err)
	}
	broken := get(t, r, "broken")
	if broken.Invalid == "" || broken.Generation != 0 {
		t.Errorf("it is %+v", broken)
	}
	s, created, err := r.Put(t.Context(), "broken", decode(t, webshop), func(etag string) bool { return etag == broken.ETag })
	if err != nil || !created || s.Invalid != "" || s.Generation != 1 {
		t.Errorf("replaced it is %+v, %v, %v", s, created, err)
	}
}

func TestChangesAreToldInOrder(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t)
	one, two := registryFor(t, cluster, keyOf(1)), registryFor(t, cluster, keyOf(1))
	put(t, one, "before", webshop)
	get(t, two, "before")
	var mu sync.Mutex
	var heard []string
	two.Subscribe(func(name string, sub *event.Subscription) {
		mu.Lock()
		defer mu.Unlock()
		if sub == nil {
			heard = append(heard, name+" gone")
		} else {
			heard = append(heard, name+" "+string(sub.State))
		}
	})
	put(t, one, "webshop", webshop)
	for _, state := range []event.State{event.Paused, event.Paused, event.Active} { // the second is no change
		if _, err := one.SetState(t.Context(), "webshop", state); err != nil {
			t.Fatal(err)
		}
	}
	if err := one.Delete(t.Context(), "webshop", anyETag); err != nil {
		t.Fatal(err)
	}
	if _, err := two.List(t.Context()); err != nil { // catches up
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"before active", "webshop active", "webshop paused", "webshop active", "webshop gone"}; !slices.Equal(heard, want) {
		t.Errorf("it was told %q; want %q", heard, want)
	}
}

func TestAnEndpointWithdrawsWhatItWasSent(t *testing.T) {
	t.Parallel()
	r := registryFor(t, clusterFor(t), keyOf(1))
	state := func() event.State { return get(t, r, "webshop").State }
	s := put(t, r, "webshop", webshop)
	if err := r.Withdraw(t.Context(), "webshop", s.Generation+1, s.URL); err != nil || state() != event.Active {
		t.Errorf("of another generation: %v, %s", err, state())
	}
	if err := r.Withdraw(t.Context(), "webshop", s.Generation, "http://before/"); err != nil || state() != event.Active {
		t.Errorf("of another endpoint: %v, %s", err, state())
	}
	if err := r.Withdraw(t.Context(), "webshop", s.Generation, s.URL); err != nil || state() != event.GoneAt {
		t.Errorf("withdrawn: %v, %s", err, state())
	}
	put(t, r, "webshop", `{"topics":["a"],"url":"http://webshop/","max_in_flight":1}`)
	if state() != event.GoneAt {
		t.Errorf("after a change that leaves its URL it is %s", state())
	}
	put(t, r, "webshop", `{"topics":["a"],"url":"http://elsewhere/"}`)
	if state() != event.Active {
		t.Errorf("with another URL it is %s", state())
	}
	if _, err := r.SetState(t.Context(), "webshop", event.Paused); err != nil {
		t.Fatal(err)
	}
	if err := r.Withdraw(t.Context(), "webshop", s.Generation, "http://elsewhere/"); err != nil || state() != event.Paused {
		t.Errorf("withdrawn while paused: %v, %s", err, state())
	}
	put(t, r, "webshop", webshop)
	if state() != event.Paused {
		t.Errorf("paused, with another URL, it is %s", state())
	}
}

func TestThereAreOnlySoManySubscriptions(t *testing.T) {
	t.Parallel()
	r := registryFor(t, clusterFor(t), keyOf(1))
	for i := range 3 {
		put(t, r, fmt.Sprint("s-", i), webshop)
	}
	_, _, err := r.Put(t.Context(), "s-3", decode(t, webshop), anyETag)
	if kindOf(err) != event.TooMany || !strings.Contains(err.Error(), "MAX_SUBSCRIPTIONS") {
		t.Errorf("one too many: %v", err)
	}
	put(t, r, "s-0", `{"topics":["a"],"url":"http://other/"}`) // one that there is may change
	if err := r.Delete(t.Context(), "s-1", anyETag); err != nil {
		t.Fatal(err)
	}
	put(t, r, "s-3", webshop)
}
