package httpapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/contract"
	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/httpapi"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/registry"
	"postamt/sidecar/internal/session"
	"postamt/sidecar/internal/webhook"
)

// told is what the engine would say, and what it was asked.
type told struct {
	status   event.DeliveryStatus
	attempts []event.AttemptRecord
	outcome  event.Outcome
	letters  []event.StoredLetter
	next     map[event.TopicPartition]int64
	err      error

	asked []string
}

func (d *told) ask(format string, args ...any) {
	d.asked = append(d.asked, fmt.Sprintf(format, args...))
}

func (d *told) Status(_ context.Context, sub *event.Subscription) (event.DeliveryStatus, error) {
	d.ask("status %s", sub.Name)
	return d.status, d.err
}

func (d *told) Attempts(_ context.Context, sub *event.Subscription) ([]event.AttemptRecord, error) {
	d.ask("attempts %s", sub.Name)
	return d.attempts, d.err
}

func (d *told) Skip(_ context.Context, sub *event.Subscription, tp event.TopicPartition, offset int64) error {
	d.ask("skip %s %s/%d/%d", sub.Name, tp.Topic, tp.Partition, offset)
	return d.err
}

func (d *told) Test(_ context.Context, sub *event.Subscription) event.Outcome {
	d.ask("test %s", sub.URL)
	return d.outcome
}

func (d *told) DeadLetters(_ context.Context, sub *event.Subscription, after map[event.TopicPartition]int64, limit int) ([]event.StoredLetter, map[event.TopicPartition]int64, error) {
	d.ask("letters %s %v %d", sub.Name, after, limit)
	return d.letters, d.next, d.err
}

func (d *told) OwnStatus(name string) (event.DeliveryStatus, bool) {
	return d.status, name == "webshop"
}

func (d *told) OwnAttempts(name string) []event.AttemptRecord {
	d.ask("own attempts %s", name)
	return d.attempts
}

func (d *told) OwnSkip(_ context.Context, name string, tp event.TopicPartition, offset int64) error {
	d.ask("skip %s %s/%d/%d", name, tp.Topic, tp.Partition, offset)
	return d.err
}

// boots of the replicas of these tests; the second one is served nowhere.
const ourBoot, otherBoot = "boot-1", "boot-2"

// subscriptions serves a consumer whose deliveries are told. Sessions sign for replicas.
func subscriptions(t *testing.T, d *told, environ map[string]string) (*service, *session.Manager) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(3, "a", "a.dead-letters"), kfake.SeedTopics(1, "b", "_postamt.sessions", "_postamt.subscriptions"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	cfg, err := config.Load(environ)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kafka.NewClient(cluster.ListenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	seals, err := registry.NewSeals(slices.Repeat([]byte{1}, registry.KeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	k := kafka.NewCluster(client)
	subs := registry.New(k, registry.Options{Seals: seals, MaxSubscriptions: 2, CheckURL: webhook.CheckURL, CheckHeaders: webhook.CheckHeaders, Log: log})
	sessions := session.NewManager(nil, session.Options{Boot: ourBoot, Log: log})
	table := func(topic string, changed func(string, []byte)) *kafka.Table {
		table, err := kafka.OpenTable(cluster.ListenAddrs(), topic, changed, log)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- table.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			table.Close()
		})
		return table
	}
	subs.UseTable(table("_postamt.subscriptions", subs.Changed))
	sessions.UseTable(table("_postamt.sessions", sessions.Changed))
	handler := httpapi.New(context.Background(), httpapi.Parts{Topics: k, Sessions: sessions, Subscriptions: subs, Deliveries: d, OwnDeliveries: d},
		httpapi.Options{Limits: cfg.Limits, RequestTimeout: cfg.RequestTimeout, ReadTimeout: cfg.ReadTimeout, Session: cfg.Session}, log, prometheus.NewRegistry())
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &service{t: t, api: server.URL, cluster: cluster, http: &contract.Transport{Base: http.DefaultTransport, Fail: func(err error) { t.Error(err) }}}, sessions
}

// members reads an answer's JSON.
func (a answer) members(t *testing.T) map[string]any {
	t.Helper()
	out := make(map[string]any)
	if err := json.Unmarshal([]byte(a.body), &out); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return out
}

func kindOf(err error) event.Kind {
	if ee, ok := errors.AsType[*event.Error](err); ok {
		return ee.Kind
	}
	return ""
}

const hook = `{"topics":["a"],"url":"http://webshop/"}`

func TestSubscriptionsAreMadeChangedAndRemoved(t *testing.T) {
	t.Parallel()
	d := &told{status: event.DeliveryStatus{State: event.DeliveryIdle}}
	s, _ := subscriptions(t, d, nil)
	s.do("GET", "/subscriptions", "").want(t, "an empty list", 200, `{"subscriptions":[]}`)
	s.do("GET", "/subscriptions/webshop", "").want(t, "before it is made", 404, "")
	made := s.do("PUT", "/subscriptions/webshop", `{"topics":["a"],"url":"http://webshop/","headers":{"X-Api-Key":"open sesame"},"filter":"data.amount > 50"}`, "If-None-Match: *")
	made.want(t, "made", 201, "")
	secret, _ := made.members(t)["secret"].(string)
	if !strings.HasPrefix(secret, "whsec_") || strings.Contains(made.body, "sesame") || made.header.Get("Cache-Control") != "no-store" {
		t.Errorf("made it is %s", made.body)
	}
	s.do("PUT", "/subscriptions/webshop", hook, "If-None-Match: *").want(t, "made twice", 412, "")
	got := s.do("GET", "/subscriptions/webshop", "")
	if etag := made.header.Get("ETag"); etag == "" || got.header.Get("ETag") != etag {
		t.Errorf("the ETag is %q, then %q", etag, got.header.Get("ETag"))
	}
	if strings.Contains(got.body, "sesame") || strings.Contains(got.body, secret) || got.members(t)["state"] != "idle" {
		t.Errorf("it is %s", got.body)
	}
	settings, err := json.Marshal(got.members(t)["settings"])
	if err != nil {
		t.Fatal(err)
	}
	again := s.do("PUT", "/subscriptions/webshop", string(settings), "If-Match: "+got.header.Get("ETag"))
	if again.want(t, "what was read, put again", 200, ""); again.header.Get("ETag") != got.header.Get("ETag") || again.members(t)["secret"] != nil {
		t.Errorf("it has changed: %s", again.body)
	}
	// As curl -d says it.
	changed := s.do("PUT", "/subscriptions/webshop", `{"topics":["a"],"url":"http://other/"}`, "Content-Type: application/x-www-form-urlencoded")
	if changed.want(t, "changed", 200, ""); changed.header.Get("ETag") == got.header.Get("ETag") {
		t.Error("its ETag has not changed")
	}
	s.do("PUT", "/subscriptions/webshop", hook, "If-Match: "+got.header.Get("ETag")).want(t, "with the old ETag", 412, "")
	s.do("DELETE", "/subscriptions/webshop", "", "If-Match: "+got.header.Get("ETag")).want(t, "deleted with the old ETag", 412, "")

	paused := s.do("POST", "/subscriptions/webshop/pause", "")
	if paused.want(t, "paused", 200, ""); paused.members(t)["state"] != "paused" {
		t.Errorf("paused it is %s", paused.body)
	}
	if resumed := s.do("POST", "/subscriptions/webshop/resume", ""); resumed.status != 200 || resumed.members(t)["state"] != "active" {
		t.Errorf("resumed it is %d %s", resumed.status, resumed.body)
	}
	if replayed := s.do("POST", "/subscriptions/webshop/replay", `{"to":"earliest"}`); replayed.status != 200 || replayed.members(t)["generation"] != 2.0 || replayed.members(t)["group"] != "postamt.webshop.2" {
		t.Errorf("replayed it is %d %s", replayed.status, replayed.body)
	}
	rotated := s.do("POST", "/subscriptions/webshop/secret", "")
	if rotated.want(t, "rotated", 200, ""); rotated.members(t)["secret"] == secret || rotated.members(t)["old_secret_until"] == nil {
		t.Errorf("rotated: %s", rotated.body)
	}
	given := "whsec_" + strings.Repeat("QUJD", 8)
	if rotated = s.do("POST", "/subscriptions/webshop/secret", `{"secret":"`+given+`"}`); rotated.members(t)["secret"] != given {
		t.Errorf("rotated to a given one: %s", rotated.body)
	}
	s.do("PUT", "/subscriptions/second", hook).want(t, "a second one", 201, "")
	s.do("PUT", "/subscriptions/third", hook).want(t, "one too many", 429, "")
	list := s.do("GET", "/subscriptions", "")
	if list.want(t, "the list", 200, ""); strings.Count(list.body, `"name"`) != 2 || strings.Contains(list.body, "whsec_") {
		t.Errorf("the list is %s", list.body)
	}
	s.do("DELETE", "/subscriptions/webshop", "").want(t, "deleted", 204, "")
	s.do("GET", "/subscriptions/webshop", "").want(t, "after it was deleted", 404, "")
}

func TestSubscriptionsErrors(t *testing.T) {
	t.Parallel()
	s, _ := subscriptions(t, &told{}, map[string]string{"MAX_BODY_BYTES": "1000"})
	s.do("PUT", "/subscriptions/webshop", hook).want(t, "made", 201, "")
	for _, tc := range []struct {
		method, path, body string
		headers            []string
		status             int
		says               string
	}{
		{"PUT", "/subscriptions/Web-Shop", hook, nil, 422, "1 to 63 of a to z"},
		{"PUT", "/subscriptions/x", `{`, nil, 400, "not JSON"},
		{"PUT", "/subscriptions/x", ``, nil, 400, "not JSON"},
		{"PUT", "/subscriptions/x", hook, []string{"Content-Type: text/plain"}, 415, "must be application/json"},
		{"PUT", "/subscriptions/x", `{"x":"` + repeat('x', 1000) + `"}`, nil, 413, "MAX_BODY_BYTES"},
		{"PUT", "/subscriptions/x", `{"topics":["nowhere"],"url":"http://webshop/","filter":"data.amount >\n tpye","uri":1}`, nil, 422, `there is no member \"uri\" here`},
		{"PUT", "/subscriptions/x", `{"topics":["nowhere"],"url":"x","filter":"topic ==\n tpye"}`, nil, 422, "line 2, column 2: undeclared reference to 'tpye'"},
		{"PUT", "/subscriptions/x", `{"topics":["nowhere"],"url":"http://webshop/"}`, nil, 422, `there is no topic \"nowhere\"`},
		{"PUT", "/subscriptions/x", `{"topics":["b"],"url":"http://webshop/"}`, nil, 422, "declare it in compose/topics.yaml"},
		{"PUT", "/subscriptions/x", `{"topics":["a"],"url":"webshop"}`, nil, 422, "it must be http://HOST/PATH or https://HOST/PATH"},
		{"PUT", "/subscriptions/x", `{"topics":["a"],"url":"http://webshop/","headers":{"ce-id":"1"}}`, nil, 422, "headers has ce-id"},
		{"PUT", "/subscriptions/webshop", hook, []string{"If-Match: abc"}, 400, `If-Match is \"abc\"; it must be * or ETags in quotes`},
		{"PUT", "/subscriptions/webshop", hook, []string{"If-Match: ,"}, 400, "in quotes"},
		{"PUT", "/subscriptions/webshop", hook, []string{`If-Match: "a" "b"`}, 400, "in quotes"},
		{"PUT", "/subscriptions/webshop", hook, []string{`If-Match: W/"abc", "d,e"`}, 412, "its ETag is now"},
		{"PUT", "/subscriptions/x", hook, []string{"If-Match: *"}, 412, "there is none"},
		{"DELETE", "/subscriptions/webshop", "", []string{`If-Match: "abc`}, 400, "in quotes"},
		{"DELETE", "/subscriptions/x", "", nil, 404, "GET /subscriptions lists"},
		{"GET", "/subscriptions/WEBSHOP", "", nil, 404, "GET /subscriptions lists"},
		{"POST", "/subscriptions/x/pause", "", nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/resume", "", nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/test", "", nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/skip", `{"topic":"a","partition":0,"offset":1}`, nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/redrive", "", nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/replay", `{"to":"latest"}`, nil, 404, "no subscription"},
		{"POST", "/subscriptions/x/secret", "", nil, 404, "no subscription"},
		{"GET", "/subscriptions/x/dead-letters", "", nil, 404, "no subscription"},
		{"GET", "/subscriptions/x/attempts", "", nil, 404, "no subscription"},
		{"POST", "/subscriptions/webshop/skip", `{"topic":"a","partition":0}`, nil, 422, "topic, partition and offset must all be there"},
		{"POST", "/subscriptions/webshop/replay", `{"to":"yesterday"}`, nil, 422, "latest, earliest or a time"},
		{"POST", "/subscriptions/webshop/replay", ``, nil, 400, "not JSON"},
		{"POST", "/subscriptions/webshop/secret", `{"secret":"hunter2"}`, nil, 422, "whsec_ and from 24 to 64 bytes"},
		{"GET", "/subscriptions/webshop/dead-letters?limit=0", "", nil, 422, "from 1 to 1000"},
		{"GET", "/subscriptions/webshop/dead-letters?limit=many", "", nil, 400, "must be a number"},
		{"GET", "/subscriptions/webshop/dead-letters?cursor=x", "", nil, 422, "the cursor is damaged"},
		{"GET", "/subscriptions/webshop/dead-letters?curser=x", "", nil, 422, "known are cursor, limit"},
	} {
		got := s.do(tc.method, tc.path, tc.body, tc.headers...)
		if got.status != tc.status || got.code(t) != tc.status || !strings.Contains(got.body, tc.says) || strings.Contains(got.body, "hunter2") {
			t.Errorf("%s %s %.100s %q: %d %s; want %d, %q", tc.method, tc.path, tc.body, tc.headers, got.status, got.body, tc.status, tc.says)
		}
	}
}

func TestAnUnreadableSubscriptionIsShownAndReplaced(t *testing.T) {
	t.Parallel()
	s, _ := subscriptions(t, &told{status: event.DeliveryStatus{State: event.DeliveryActive}}, nil)
	table, err := kafka.OpenTable(s.cluster.ListenAddrs(), "_postamt.subscriptions", nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	err = table.Update(t.Context(), "broken", func([]byte) ([]byte, error) { return []byte(`{"version":2}`), nil })
	refused := table.Update(t.Context(), "refused", func([]byte) ([]byte, error) {
		return []byte(`{"version":1,"generation":7,"state":"paused","settings":{"topics":["orders"],"url":"http://webshop/","max_in_flight":0}}`), nil
	})
	cancel()
	if err := errors.Join(err, refused, <-done); err != nil {
		t.Fatal(err)
	}
	table.Close()
	got := s.do("GET", "/subscriptions/broken", "")
	if got.want(t, "unreadable", 200, ""); got.members(t)["state"] != "invalid" || !strings.Contains(got.body, "its version is 2") {
		t.Errorf("it is %s", got.body)
	}
	if list := s.do("GET", "/subscriptions", ""); !strings.Contains(list.body, `"state":"invalid"`) {
		t.Errorf("the list is %s", list.body)
	}
	// Where it is, is shown; settings that are not all there are not.
	refusedOne := s.do("GET", "/subscriptions/refused", "")
	refusedOne.want(t, "refused", 200, `{"name":"refused","state":"invalid","reason":"max_in_flight is 0; it must be a whole number from 1 to 1024","generation":7,"group":"postamt.refused.7"}`)
	s.do("DELETE", "/subscriptions/refused", "", "If-Match: "+refusedOne.header.Get("ETag")).want(t, "deleted while it cannot be read", 204, "")
	for _, path := range []string{"/pause", "/test", "/redrive", "/secret"} {
		s.do("POST", "/subscriptions/broken"+path, "").want(t, path, 409, "")
	}
	s.do("GET", "/subscriptions/broken/dead-letters", "").want(t, "letters", 409, "")
	s.do("GET", "/subscriptions/broken/attempts", "").want(t, "attempts", 200, `{"attempts":[]}`)
	s.do("PUT", "/subscriptions/broken", hook, "If-Match: "+got.header.Get("ETag")).want(t, "replaced", 201, "")
	s.do("POST", "/subscriptions/broken/pause", "").want(t, "paused", 200, "")
	s.do("DELETE", "/subscriptions/broken", "").want(t, "deleted", 204, "")
}

func TestWhatTheReplicasSayIsShown(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.FixedZone("", 3600))
	first, second, third := event.TopicPartition{Topic: "a", Partition: 0}, event.TopicPartition{Topic: "a", Partition: 1}, event.TopicPartition{Topic: "a", Partition: 2}
	failed := event.Outcome{Verdict: event.Failed, Status: 500, Err: "500 Internal Server Error", Duration: 12500 * time.Microsecond, Body: "out of paper"}
	d := &told{
		status: event.DeliveryStatus{
			State: event.DeliveryDown, InFlight: 2, Replicas: []string{"127.0.0.1:1"}, Missing: []string{"127.0.0.1:2"}, Redrive: &event.RedriveStatus{ID: 3, Running: true, Left: 7},
			Partitions: []event.PartitionStatus{
				{TopicPartition: first, Committed: 4, End: 9, Lag: 5, LagSeconds: 1.5, WindowRecords: 5, WindowBytes: 50, Replica: "127.0.0.1:1", Stuck: &event.StuckRecord{
					Offset: 4, Key: []byte("\xff"), Verdict: event.Unreachable, Err: "no route", Booked: 1, Attempts: 2, FirstAttempt: at,
				}},
				{TopicPartition: second, Committed: event.NoCommit, End: -1, Lag: -1, LagSeconds: -1, Stuck: &event.StuckRecord{Offset: 4, Key: []byte("k"), Verdict: event.Failed, Status: 500, NextAttempt: at}},
				{TopicPartition: third, Stuck: &event.StuckRecord{Booked: 2, Attempts: 3}}, // its new owner has not tried it yet
			},
		},
		attempts: []event.AttemptRecord{{TopicPartition: first, Offset: 4, Number: 2, Started: at, Outcome: failed, Replica: "127.0.0.1:1"}},
		outcome:  event.Outcome{Verdict: event.Unreachable, Err: "no route"},
		letters: []event.StoredLetter{{
			DeadLetter: event.DeadLetter{
				Record: &event.Record{Key: []byte{}, Value: []byte("v")}, Origin: event.Origin{TopicPartition: first, Offset: 3, Timestamp: at}, Topic: "a.dead-letters", Subscription: "webshop",
				Reason: event.ReasonSkipped, Last: failed, Attempts: 2, FirstAttempt: at, LastAttempt: at,
			},
			Place: event.Place{Topic: "a.dead-letters", Partition: 2, Offset: 8, Timestamp: at}, Redriven: true,
		}},
		next: map[event.TopicPartition]int64{{Topic: "a.dead-letters", Partition: 2}: 9, {Topic: "x", Partition: 0}: 0},
	}
	s, _ := subscriptions(t, d, nil)
	s.do("PUT", "/subscriptions/webshop", hook).want(t, "made", 201, "")
	got := s.do("GET", "/subscriptions/webshop", "")
	_, live, _ := strings.Cut(got.body, `"in_flight"`)
	if want := `:2,"partitions":[` +
		`{"topic":"a","partition":0,"committed":4,"end":9,"lag":5,"lag_seconds":1.5,"window_records":5,"window_bytes":50,"replica":"127.0.0.1:1","stuck":{"offset":4,"key":null,"key_base64":"/w==","verdict":"unreachable","status":null,"error":"no route","booked":1,"attempts":2,"first_attempt":"2026-11-22T09:00:00Z","next_attempt":null}},` +
		`{"topic":"a","partition":1,"committed":null,"end":null,"lag":null,"lag_seconds":null,"window_records":0,"window_bytes":0,"replica":null,"stuck":{"offset":4,"key":"k","verdict":"failed","status":500,"error":"","booked":0,"attempts":0,"first_attempt":null,"next_attempt":"2026-11-22T09:00:00Z"}},` +
		`{"topic":"a","partition":2,"committed":0,"end":0,"lag":0,"lag_seconds":0,"window_records":0,"window_bytes":0,"replica":null,"stuck":{"offset":0,"key":null,"verdict":null,"status":null,"error":"","booked":2,"attempts":3,"first_attempt":null,"next_attempt":null}}],` +
		`"replicas":["127.0.0.1:1"],"missing":["127.0.0.1:2"],"redrive":{"id":3,"state":"running","left":7}}`; strings.TrimSpace(live) != want {
		t.Errorf("it is\n%s; want\n%s", live, want)
	}
	if got.members(t)["state"] != "down" {
		t.Errorf("its state is %v", got.members(t)["state"])
	}
	s.do("GET", "/subscriptions/webshop/attempts", "").want(t, "attempts", 200,
		`{"attempts":[{"time":"2026-11-22T09:00:00Z","topic":"a","partition":0,"offset":4,"attempt":2,"verdict":"failed","status":500,"error":"500 Internal Server Error","duration_ms":12.5,"body":"out of paper","replica":"127.0.0.1:1"}]}`)
	s.do("POST", "/subscriptions/webshop/test", "").want(t, "test", 200, `{"verdict":"unreachable","status":null,"error":"no route","duration_ms":0,"body":""}`)
	s.do("POST", "/subscriptions/webshop/skip", `{"topic":"a","partition":0,"offset":4}`).want(t, "skip", 204, "")
	letters := s.do("GET", "/subscriptions/webshop/dead-letters?limit=5", "")
	cursor, _ := letters.members(t)["next"].(string)
	letters.want(t, "letters", 200, `{"dead_letters":[{"topic":"a.dead-letters","partition":2,"offset":8,"key":"","source_topic":"a","source_partition":0,"source_offset":3,"source_timestamp":"2026-11-22T09:00:00Z","reason":"skipped","status":500,"error":"500 Internal Server Error","attempts":2,"first_attempt":"2026-11-22T09:00:00Z","last_attempt":"2026-11-22T09:00:00Z","redriven":true}],"next":"`+cursor+`"}`)
	d.letters, d.next, d.asked = nil, nil, nil
	s.do("GET", "/subscriptions/webshop/dead-letters?cursor="+cursor, "").want(t, "the last letters", 200, `{"dead_letters":[],"next":null}`)
	if want := []string{"letters webshop map[{a.dead-letters 2}:9 {x 0}:0] 100"}; !slices.Equal(d.asked, want) {
		t.Errorf("it was asked %q; want %q", d.asked, want)
	}

	// A redrive, of which there is none without letters, and none beside another.
	s.do("POST", "/subscriptions/webshop/redrive", "").want(t, "without letters", 200, `{"state":"done","letters":0}`)
	s.do("POST", "/topics/a.dead-letters/records", "x").want(t, "of another role", 404, "")
	d.err = event.Errorf(event.NotFound, 0, "skip", "it is decided")
	s.do("POST", "/subscriptions/webshop/skip", `{"topic":"a","partition":0,"offset":4}`).want(t, "skip what is decided", 404, `{"error_code":404,"message":"it is decided"}`)
	d.err = event.Errorf(event.Unavailable, 50302, "status", "Kafka is away")
	s.do("GET", "/subscriptions/webshop", "").want(t, "without Kafka", 503, "")
}

func TestReplicasAskEachOther(t *testing.T) {
	t.Parallel()
	at := event.TopicPartition{Topic: "a/b c", Partition: 1}
	d := &told{
		status:   event.DeliveryStatus{State: event.DeliveryActive, InFlight: 3, Partitions: []event.PartitionStatus{{TopicPartition: at, Stuck: &event.StuckRecord{Key: []byte{0xff}, NextAttempt: time.Unix(1, 2).UTC()}}}},
		attempts: []event.AttemptRecord{{TopicPartition: at, Offset: 4, Outcome: event.Outcome{Verdict: event.Refused, Duration: time.Second}}},
	}
	s, sessions := subscriptions(t, d, nil)
	address := strings.TrimPrefix(s.api, "http://")
	ask := httpapi.NewReplicas(sessions.Sign)
	defer ask.Close()
	ctx := t.Context()
	if got, err := ask.Status(ctx, address, ourBoot, "webshop"); err != nil || fmt.Sprint(got.Partitions[0].Stuck) != fmt.Sprint(d.status.Partitions[0].Stuck) || got.InFlight != 3 {
		t.Errorf("its status is %+v, %v", got, err)
	}
	if _, err := ask.Status(ctx, address, ourBoot, "other"); kindOf(err) != event.NotFound {
		t.Errorf("of one that it does not deliver: %v", err)
	}
	if got, err := ask.Attempts(ctx, address, ourBoot, "webshop"); err != nil || !slices.Equal(got, d.attempts) {
		t.Errorf("its attempts are %+v, %v", got, err)
	}
	d.asked = nil
	if err := ask.Skip(ctx, address, ourBoot, "webshop", at, 42); err != nil || !slices.Equal(d.asked, []string{"skip webshop a/b c/1/42"}) {
		t.Errorf("asked to skip, it did %q, %v", d.asked, err)
	}
	d.err = event.Errorf(event.Conflict, 0, "skip", "it is under way")
	if err := ask.Skip(ctx, address, ourBoot, "webshop", at, 42); kindOf(err) != event.Conflict || !strings.Contains(err.Error(), "it is under way") {
		t.Errorf("an error of its own comes as %v", err)
	}

	// Nobody else is told anything, nor does anything.
	d.asked = nil
	if err := ask.Skip(ctx, address, otherBoot, "webshop", at, 42); kindOf(err) != event.Misdirected {
		t.Errorf("meant for another process: %v", err)
	}
	stranger := httpapi.NewReplicas(func(context.Context, string) ([]byte, error) { return make([]byte, 32), nil })
	defer stranger.Close()
	if _, err := stranger.Attempts(ctx, address, ourBoot, "webshop"); kindOf(err) != event.Misdirected {
		t.Errorf("with another's signature: %v", err)
	}
	moved := httpapi.NewReplicas(func(ctx context.Context, text string) ([]byte, error) {
		return sessions.Sign(ctx, strings.Replace(text, "offset=42", "offset=41", 1))
	})
	defer moved.Close()
	if err := moved.Skip(ctx, address, ourBoot, "webshop", at, 42); kindOf(err) != event.Misdirected {
		t.Errorf("signed for another offset: %v", err)
	}
	if len(d.asked) != 0 {
		t.Errorf("it was asked %q", d.asked)
	}
	if _, err := ask.Status(ctx, "127.0.0.1:1", ourBoot, "webshop"); kindOf(err) != event.Unavailable {
		t.Errorf("of a replica that is gone: %v", err)
	}
}
