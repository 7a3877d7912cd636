package registry

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

func TestAllMistakesAreToldAtOnce(t *testing.T) {
	t.Parallel()
	r := registryFor(t, clusterFor(t), keyOf(1))
	for body, want := range map[string][]string{
		`{}`: {"topics is missing", "url is missing"},
		`[]`: {"the body is an array; it must be an object", "topics is missing", "url is missing"},
		`{"topics":["a","a"],"url":"ftp://x","colour":1,"name":2,"colour":3}`: {
			`topics has "a" twice`, `the url is "ftp://x"; it must be http://`, "there is no member \"colour\" here; known are dead_letters, filter,", "there is no member \"name\"", `"colour" is there twice`,
		},
		`{"topics":[],"url":""}`:                 {"topics is missing", "url is missing"},
		`{"topics":"a","url":null}`:              {`topics is "a"; it must be an array of topics' names`, "url is null; it must be a URL"},
		`{"topics":["a",null],"url":"http://x"}`: {"topics is an array; it must be an array of topics' names"},
		`{"topics":["a","nowhere","_postamt.subscriptions","c",""],"url":"http://x"}`: {
			`there is no topic "nowhere"`, `there is no topic "_postamt.subscriptions"`, `there is no topic ""`,
			`the dead letters of c would go to the topic "c.dead-letters", which there is not; declare it in compose/topics.yaml`,
		},
		`{"topics":["a","b"],"url":"http://x","dead_letters":"b"}`:                  {"the dead letters of a would go to b, which is one of the topics", "the dead letters of b would go to b"},
		`{"topics":["a"],"url":"http://x","dead_letters":"_postamt.subscriptions"}`: {`go to the topic "_postamt.subscriptions", which there is not`},
		`{"topics":["a"],"url":"http://x","dead_letters":""}`:                       {`dead_letters is ""; it must be a topic's name`},
		`{"topics":["a"],"url":"http://x","from":"yesterday","filter":"data.amount >","ordering":"keys","format":1}`: {
			`from is "yesterday"; it must be latest, earliest or a time as RFC 3339 has it`, "the filter", `ordering is "keys"; it must be key, partition, none`, "format is 1; it must be binary, structured",
		},
		`{"topics":["a"],"url":"http://x","max_in_flight":1025,"rate_limit":"50","timeout":"1h","retry":{"initial":1,"max":"1ms","max_attempts":0,"give_up_after":"1ms","x":1}}`: {
			"max_in_flight is 1025; it must be a whole number from 1 to 1024", `rate_limit is "50"; it must be a number from 1 to 1000000 with /s, /m or /h, such as 50/s`,
			`timeout is "1h"; it must be a duration from 100ms to 5m`, "retry.initial is 1; it must be a duration from 10ms to 24h", `retry.max is "1ms"`,
			"retry.max_attempts is 0; it must be a whole number from 1 to 1000", `retry.give_up_after is "1ms"; it must be a duration from 1s to 8760h`, `no member "retry.x" here; known are give_up_after,`,
		},
		`{"topics":["a"],"url":"http://x","max_in_flight":0,"rate_limit":"0/s","retry":[]}`:                 {"max_in_flight is 0", `rate_limit is "0/s"`, "retry is an array; it must be an object"},
		`{"topics":["a"],"url":"http://x","max_in_flight":1.5,"rate_limit":"1000001/s"}`:                    {"max_in_flight is 1.5", `rate_limit is "1000001/s"`},
		`{"topics":["a"],"url":"http://x","retry":{"initial":"2m","max":"1m"}}`:                             {"retry.max is 1m; it must not be below retry.initial, 2m"},
		`{"topics":["a"],"url":"http://x","headers":{"Webhook-Id":"1"}}`:                                    {"headers has Webhook-Id, which a delivery has by itself"},
		`{"topics":["a"],"url":"http://x","headers":{"X":["hidden"],"Y":null}}`:                             {`"headers.X" is no text; it must be one`, "headers.Y is null"},
		`{"topics":["a"],"url":"http://x","secret":"whsec_` + SecretText([]byte("short")) + `"}`:            {"secret is not one; it must be whsec_ and from 24 to 64 bytes in base64"},
		`{"topics":["a"],"url":"http://x","secret":"` + SecretText(slices.Repeat([]byte{1}, 65)) + `"}`:     {"secret is not one"},
		`{"topics":["a"],"url":"http://x","secret":"` + SecretText(slices.Repeat([]byte{1}, 24))[6:] + `"}`: {"secret is not one"},
	} {
		_, _, err := r.Put(t.Context(), "webshop", decode(t, body), anyETag)
		if kindOf(err) != event.Unprocessable {
			t.Errorf("%.200s: %v", body, err)
			continue
		}
		msg := messageOf(err)
		if n := strings.Count(msg, "; it must be") + strings.Count(msg, "no member"); n > len(want) {
			t.Errorf("%.200s: more than %q: %s", body, want, msg)
		}
		for _, part := range want {
			if !strings.Contains(msg, part) {
				t.Errorf("%.200s: %s\nlacks %q", body, msg, part)
			}
		}
		if strings.Contains(msg, "hidden") || len(msg) > 4000 {
			t.Errorf("%.200s: %s", body, msg)
		}
	}
	// Too many of anything.
	many := func(n int, each func(i int) string) string {
		var parts []string
		for i := range n {
			parts = append(parts, each(i))
		}
		return strings.Join(parts, ",")
	}
	name := func(i int) string { return string(rune('a'+i%26)) + strings.Repeat("a", i) }
	for body, want := range map[string]string{
		`{"topics":[` + many(maxTopics+1, func(i int) string { return `"` + name(i) + `"` }) + `],"url":"http://x"}`: "topics has 101 names; it may have 100",
	} {
		if err := decode(t, body).err(); kindOf(err) != event.Unprocessable || !strings.Contains(err.Error(), want) {
			t.Errorf("%.100s: %v; want %q", body, err, want)
		}
	}
	if err := decode(t, `{`+many(1000, func(i int) string { return `"` + name(i) + `":1` })+`}`).err(); len(messageOf(err)) > 10_000 {
		t.Errorf("a thousand mistakes make %d bytes", len(messageOf(err)))
	}
}

func TestBodiesThatAreNotJSON(t *testing.T) {
	for body, want := range map[string]string{
		"":             "it ends too soon",
		`{"topics":`:   "it ends too soon",
		`{"topics"}`:   "not JSON at byte 10",
		`{} {}`:        "there is more in the body after its JSON",
		"{\"\xff\":1}": "not UTF-8",
	} {
		if _, err := DecodeSettings([]byte(body)); kindOf(err) != event.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", body, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, right := range map[string]bool{
		"a": true, "0": true, "web-shop-2": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "A": false, "a.b": false, "a/b": false, "ä": false, "a\n": false, strings.Repeat("a", 64): false,
	} {
		if err := CheckName(name); (err == nil) != right || err != nil && kindOf(err) != event.Unprocessable {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSmallBodies(t *testing.T) {
	if to, err := DecodeReplay([]byte(`{"to":"2026-11-22T10:00:00Z"}`)); err != nil || to != "2026-11-22T10:00:00Z" {
		t.Errorf("replay to %q, %v", to, err)
	}
	for _, body := range []string{`{}`, `{"to":"x"}`, `{"from":"latest"}`, `{"to":1}`, `[]`} {
		if _, err := DecodeReplay([]byte(body)); kindOf(err) != event.Unprocessable {
			t.Errorf("replay %s: %v", body, err)
		}
	}
	at, err := DecodePlace([]byte(`{"topic":"a","partition":2,"offset":9007199254740993}`))
	if want := (event.Position{TopicPartition: event.TopicPartition{Topic: "a", Partition: 2}, Offset: 9007199254740993}); err != nil || at != want {
		t.Errorf("the place is %v, %v", at, err)
	}
	for _, body := range []string{`{}`, `{"topic":"a","partition":2}`, `{"topic":"a","offset":2}`, `{"partition":1,"offset":2}`, `{"topic":"a","partition":-1,"offset":2}`, `{"topic":"a","partition":0,"offset":-1}`, `{"topic":"a","partition":0,"offset":1.5}`, `{"topic":"a","partition":0,"offset":null}`, `{"topic":"a","partition":2147483648,"offset":2}`} {
		if _, err := DecodePlace([]byte(body)); kindOf(err) != event.Unprocessable {
			t.Errorf("skip %s: %v", body, err)
		}
	}
	key := slices.Repeat([]byte{1}, 40)
	if got, err := DecodeSecret([]byte(`{"secret":"` + SecretText(key) + `"}`)); err != nil || string(got) != string(key) {
		t.Errorf("the secret is %q, %v", got, err)
	}
	for _, body := range []string{"", "{}"} {
		if got, err := DecodeSecret([]byte(body)); err != nil || got != nil {
			t.Errorf("of %q the secret is %q, %v", body, got, err)
		}
	}
	if _, err := DecodeSecret([]byte(`{"secret":null}`)); kindOf(err) != event.Unprocessable {
		t.Errorf("a secret that is null: %v", err)
	}
}

func TestDurationsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 15 * time.Second: "15s", 5 * time.Minute: "5m", 96 * time.Hour: "96h", 90 * time.Minute: "1h30m", 100 * time.Millisecond: "100ms", 1500 * time.Millisecond: "1500ms", 8760*time.Hour - time.Millisecond: "31535999999ms", time.Hour + time.Second: "1h0m1s",
	} {
		if got := durationText(d); got != want {
			t.Errorf("%v is written %s; want %s", d, got, want)
		}
		if back, err := time.ParseDuration(durationText(d)); err != nil || back != d || !durations.MatchString(durationText(d)) {
			t.Errorf("%v is read back as %v, %v", d, back, err)
		}
	}
}

// What is read without a mistake is within its bounds, and is read the same from what is written.
func FuzzDecodeSettings(f *testing.F) {
	for _, body := range []string{
		webshop, `{}`, `[]`, `{"topics":["a",null],"retry":{"initial":"1s","initial":"2s"},"headers":{"":"","a":null}}`,
		`{"topics":["a"],"url":"http://x","from":"2026-11-22T10:00:00+01:00","filter":"data.amount > 50","ordering":"none","max_in_flight":1e2,"rate_limit":"50/m","timeout":"1m1500ms","format":"structured","headers":{"X":"\u0000"},"retry":{"initial":"1s","max":"1h","max_attempts":1,"give_up_after":"0s"},"dead_letters":"d","secret":"whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := DecodeSettings(body)
		if err != nil {
			if kindOf(err) != event.Invalid {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if !json.Valid(body) {
			t.Fatalf("%q is no JSON, and was read", body)
		}
		if err := s.err(); err != nil {
			ee := (*event.Error)(nil)
			if !errors.As(err, &ee) || ee.Kind != event.Unprocessable || ee.Msg == "" {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if len(s.Topics) == 0 || s.URL == "" || s.MaxInFlight < 1 || s.MaxInFlight > maxInFlight || s.Timeout < minTimeout || s.Timeout > maxTimeout ||
			s.Retry.Initial < minRetry || s.Retry.Max < s.Retry.Initial || s.Retry.MaxAttempts < 1 || s.Retry.GiveUpAfter < 0 {
			t.Fatalf("%q was read as %+v", body, s)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeSettings(text)
		if s.From == "" && err == nil { // what is stored has one
			return
		}
		if err != nil || again.err() != nil {
			t.Fatalf("%q was written as %s: %v, %v", body, text, err, again.err())
		}
		if twice, _ := json.Marshal(again); string(twice) != string(text) {
			t.Fatalf("%s was written again as %s", text, twice)
		}
	})
}
