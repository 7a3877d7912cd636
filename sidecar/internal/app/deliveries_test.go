package app_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/twmb/franz-go/pkg/kfake"

	"postamt/sidecar/internal/app"
)

// shop is a receiver of webhooks, that verifies and remembers them.
type shop struct {
	*httptest.Server

	mu       sync.Mutex
	secret   string
	answer   func(body string) int // the status; 200 where it is nil
	accepted []delivery
	invalid  int
	seen     int
}

type delivery struct {
	id, key, body     string
	partition, offset int64
}

func openShop(t *testing.T) *shop {
	s := &shop{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen++
		verifier, err := standardwebhooks.NewWebhook(s.secret)
		if err == nil {
			err = verifier.Verify(body, r.Header)
		}
		if err != nil {
			s.invalid++
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if s.answer != nil {
			if status := s.answer(string(body)); status != http.StatusOK {
				w.WriteHeader(status)
				return
			}
		}
		partition, _ := strconv.ParseInt(r.Header.Get("kafka-partition"), 10, 32)
		offset, _ := strconv.ParseInt(r.Header.Get("kafka-offset"), 10, 64)
		s.accepted = append(s.accepted, delivery{r.Header.Get("webhook-id"), r.Header.Get("kafka-key"), string(body), partition, offset})
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *shop) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *shop) got() []delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]delivery(nil), s.accepted...)
}

func deliveryCluster(t *testing.T) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1),
		kfake.SeedTopics(3, "test.voucher", "test.voucher.dead-letters"), kfake.SeedTopics(1, "_postamt.sessions", "_postamt.subscriptions"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// deliverers are roles that deliver to this machine.
func deliverers(t *testing.T, cluster *kfake.Cluster, n int) []*process {
	var all []*process
	for range n {
		all = append(all, startRole(t, app.Consumer, cluster, map[string]string{
			"POSTAMT_SECRET_KEY": base64.StdEncoding.EncodeToString(make([]byte, 32)), "WEBHOOK_ALLOW": "127.0.0.0/8",
		}))
	}
	return all
}

// ask sends JSON and decodes the answer, which must have a status.
func (p *process) ask(method, path, body string, status int) map[string]any {
	p.t.Helper()
	var answer map[string]any
	eventually(p.t, method+" "+path, func() bool {
		got, text, err := p.tryJSON(method, p.api+path, body)
		if err != nil || got == http.StatusServiceUnavailable { // it is just starting
			return false
		}
		if got != status {
			p.t.Fatalf("%s %s: %d %s, want %d", method, path, got, text, status)
		}
		answer = nil
		_ = json.Unmarshal([]byte(text), &answer)
		return true
	})
	return answer
}

func (p *process) tryJSON(method, url, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(p.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// sell produces vouchers of a few keys.
func sell(t *testing.T, producer *process, from, n int) {
	t.Helper()
	for i := from; i < from+n; {
		var records []string
		for ; i < from+n && len(records) < 100; i++ {
			records = append(records, fmt.Sprintf(`{"key":"k%d","value":{"number":%d}}`, i%17, i))
		}
		producer.want("POST", "/topics/test.voucher", `{"records":[`+strings.Join(records, ",")+`]}`, 200)
	}
}

// wantInOrder holds that the shop has every number from 0 up to n, and of each key the first
// deliveries in order.
func wantInOrder(t *testing.T, s *shop, n int, but ...int) {
	t.Helper()
	seen := make(map[string]bool)
	last := make(map[string]int)
	for _, d := range s.got() {
		if seen[d.id] {
			continue // it came again
		}
		seen[d.id] = true
		var v struct{ Number int }
		if err := json.Unmarshal([]byte(d.body), &v); err != nil {
			t.Fatal(err)
		}
		if before, ok := last[d.key]; ok && v.Number < before {
			t.Errorf("of key %s %d came after %d", d.key, v.Number, before)
		}
		last[d.key] = v.Number
	}
	if len(seen) != n-len(but) {
		t.Errorf("%d different records were accepted, want %d", len(seen), n-len(but))
	}
}

func TestSubscriptionFromPutToRedrive(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	consumers := deliverers(t, cluster, 2)
	one, other := consumers[0], consumers[1]
	s := openShop(t)

	sell(t, producer, 0, 10) // before: not delivered
	made := one.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","retry":{"initial":"50ms","max":"200ms","max_attempts":3}}`, 201)
	s.set(func() { s.secret = made["secret"].(string) })
	if got := other.ask("GET", "/subscriptions/webshop", "", 200); got["settings"].(map[string]any)["url"] != s.URL || got["secret"] != nil {
		t.Errorf("the other replica says %v", got)
	}
	sell(t, producer, 10, 500)
	eventually(t, "500 are accepted", func() bool { return len(s.got()) >= 500 })
	wantInOrder(t, s, 500)
	if s.invalid > 0 {
		t.Errorf("%d signatures were not valid", s.invalid)
	}

	// One that is refused becomes a dead letter, and holds up nobody but its key.
	s.set(func() {
		s.answer = func(body string) int {
			if strings.Contains(body, `"number":600}`) {
				return http.StatusUnprocessableEntity
			}
			return http.StatusOK
		}
	})
	sell(t, producer, 510, 200)
	letters := func() []any {
		return one.ask("GET", "/subscriptions/webshop/dead-letters", "", 200)["dead_letters"].([]any)
	}
	eventually(t, "there is a dead letter", func() bool {
		sell(t, producer, 710, 1) // what comes after it is the evidence
		return len(letters()) == 1
	})
	if l := letters()[0].(map[string]any); l["reason"] != "refused" || l["redriven"] != false {
		t.Errorf("the dead letter is %v", l)
	}
	eventually(t, "nothing is left", func() bool { return lagOf(other, "webshop") == 0 })

	// The shop is mended: redrive brings it.
	before := len(s.got())
	s.set(func() { s.answer = nil })
	if got := other.ask("POST", "/subscriptions/webshop/redrive", "", 200); got["state"] != "running" || got["letters"] != 1.0 {
		t.Errorf("redrive says %v", got)
	}
	eventually(t, "the dead letter is delivered", func() bool {
		for _, d := range s.got()[before:] {
			if strings.Contains(d.body, `"number":600}`) {
				return strings.HasPrefix(d.id, "test.voucher/") && !strings.HasPrefix(d.id, "test.voucher.dead-letters")
			}
		}
		return false
	})
	eventually(t, "the redrive is done", func() bool {
		return one.ask("GET", "/subscriptions/webshop", "", 200)["redrive"].(map[string]any)["state"] == "done" && letters()[0].(map[string]any)["redriven"] == true
	})

	// Both replicas deliver, and say so.
	status := one.ask("GET", "/subscriptions/webshop", "", 200)
	if status["state"] != "active" || len(status["replicas"].([]any)) != 2 || len(status["missing"].([]any)) != 0 {
		t.Errorf("the status is %v", status)
	}
	if a := other.ask("GET", "/subscriptions/webshop/attempts", "", 200)["attempts"].([]any); len(a) < 20 {
		t.Errorf("%d attempts are remembered", len(a))
	}
	if got := one.ask("POST", "/subscriptions/webshop/test", "", 200); got["verdict"] != "delivered" {
		t.Errorf("the test says %v", got)
	}

	// Replay brings all again, with the same ids.
	before = len(s.got())
	one.ask("POST", "/subscriptions/webshop/replay", `{"to":"earliest"}`, 200)
	eventually(t, "all are delivered again", func() bool { return len(s.got())-before >= 710 })
	one.ask("DELETE", "/subscriptions/webshop", "", 204)
	other.ask("GET", "/subscriptions/webshop", "", 404)
}

func lagOf(p *process, name string) float64 {
	total := 0.0
	for _, partition := range p.ask("GET", "/subscriptions/"+name, "", 200)["partitions"].([]any) {
		lag, ok := partition.(map[string]any)["lag"].(float64)
		if !ok {
			return -1
		}
		total += lag
	}
	return total
}

func TestAnOutageIsWaitedForAndSaidSo(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	consumers := deliverers(t, cluster, 2)
	s := openShop(t)
	made := consumers[0].ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","retry":{"initial":"50ms","max":"500ms"}}`, 201)
	s.set(func() {
		s.secret = made["secret"].(string)
		s.answer = func(string) int { return http.StatusNotFound }
	})
	sell(t, producer, 0, 300)
	var stuck map[string]any
	eventually(t, "it is down, and says why", func() bool {
		status := consumers[1].ask("GET", "/subscriptions/webshop", "", 200)
		for _, p := range status["partitions"].([]any) {
			if st, ok := p.(map[string]any)["stuck"].(map[string]any); ok {
				stuck = st
			}
		}
		return status["state"] == "down" && stuck != nil
	})
	if stuck["status"] != 404.0 || stuck["verdict"] != "refused" {
		t.Errorf("what holds it up is %v", stuck)
	}
	time.Sleep(2 * time.Second) // of an outage
	s.set(func() { s.answer = nil })
	eventually(t, "all are accepted", func() bool { return len(s.got()) >= 300 })
	wantInOrder(t, s, 300)
	if got := consumers[0].ask("GET", "/subscriptions/webshop/dead-letters", "", 200)["dead_letters"].([]any); len(got) != 0 {
		t.Errorf("the outage has made dead letters: %v", got)
	}
}

func TestReplicasComeAndGoWithoutARecordLost(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	first := deliverers(t, cluster, 1)[0]
	s := openShop(t)
	s.set(func() {
		s.answer = func(string) int {
			time.Sleep(time.Millisecond)
			return http.StatusOK
		}
	})
	made := first.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","from":"earliest"}`, 201)
	s.set(func() { s.secret = made["secret"].(string) })
	const n = 3000
	sell(t, producer, 0, n/3)
	eventually(t, "it has begun", func() bool { return len(s.got()) > 10 })
	second := deliverers(t, cluster, 1)[0]
	sell(t, producer, n/3, n/3)
	eventually(t, "both deliver", func() bool {
		return len(second.ask("GET", "/subscriptions/webshop", "", 200)["replicas"].([]any)) == 2
	})
	first.stop()
	sell(t, producer, 2*n/3, n/3)
	eventually(t, "all are accepted", func() bool { return len(s.got()) >= n })
	eventually(t, "and committed", func() bool { return lagOf(second, "webshop") == 0 })
	wantInOrder(t, s, n)
	if again := len(s.got()) - n; again > 64 {
		t.Errorf("%d came again; more than was in flight", again)
	}
}

// Whichever replica is asked, the one that has the partition gives its record up.
func TestSkipAndPauseReachEveryReplica(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	consumers := deliverers(t, cluster, 2)
	s := openShop(t)
	made := consumers[0].ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","retry":{"initial":"50ms","max":"200ms"}}`, 201)
	s.set(func() {
		s.secret = made["secret"].(string)
		s.answer = func(body string) int {
			if strings.Contains(body, `"number":0}`) {
				return http.StatusInternalServerError
			}
			return http.StatusOK
		}
	})
	sell(t, producer, 0, 1)
	var at map[string]any
	eventually(t, "it says what holds it up", func() bool {
		for _, p := range consumers[0].ask("GET", "/subscriptions/webshop", "", 200)["partitions"].([]any) {
			if p := p.(map[string]any); p["stuck"] != nil && p["replica"] != nil {
				at = p
			}
		}
		return at != nil
	})
	other := consumers[0] // that does not have the partition
	if strings.HasSuffix(other.api, at["replica"].(string)) {
		other = consumers[1]
	}
	other.ask("POST", "/subscriptions/webshop/skip", fmt.Sprintf(`{"topic":"test.voucher","partition":%v,"offset":0}`, at["partition"]), 204)
	eventually(t, "it is a dead letter", func() bool {
		letters := other.ask("GET", "/subscriptions/webshop/dead-letters", "", 200)["dead_letters"].([]any)
		return len(letters) == 1 && letters[0].(map[string]any)["reason"] == "skipped"
	})

	other.ask("POST", "/subscriptions/webshop/pause", "", 200)
	for _, p := range consumers {
		eventually(t, "it is paused", func() bool { return p.ask("GET", "/subscriptions/webshop", "", 200)["state"] == "paused" })
	}
	time.Sleep(500 * time.Millisecond) // both have heard of it
	before := len(s.got())
	sell(t, producer, 1, 30)
	time.Sleep(time.Second)
	if n := len(s.got()) - before; n > 0 {
		t.Errorf("%d were delivered while it was paused", n)
	}
	consumers[0].ask("POST", "/subscriptions/webshop/resume", "", 200)
	eventually(t, "what waited is delivered", func() bool { return len(s.got())-before == 30 })
}
