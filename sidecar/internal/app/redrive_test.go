package app_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/app"
)

// A topic of dead letters that is deleted while they are delivered again takes the redrive with it:
// nothing is left of it, and the next one can begin.
func TestARedriveEndsWithItsTopic(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	consumer := deliverers(t, cluster, 1)[0]
	s := openShop(t)
	made := consumer.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","retry":{"initial":"20ms","max":"50ms","max_attempts":2}}`, 201)
	s.set(func() {
		s.secret = made["secret"].(string)
		s.answer = func(body string) int {
			if strings.Contains(body, `"number":0}`) {
				return http.StatusUnprocessableEntity
			}
			return http.StatusOK
		}
	})
	letters := func() []any {
		return consumer.ask("GET", "/subscriptions/webshop/dead-letters", "", 200)["dead_letters"].([]any)
	}
	sell(t, producer, 0, 1)
	eventually(t, "there is a dead letter", func() bool {
		sell(t, producer, 1, 1)
		return len(letters()) > 0
	})
	s.set(func() { s.answer = func(string) int { return http.StatusInternalServerError } })
	if got := consumer.ask("POST", "/subscriptions/webshop/redrive", "", 200); got["letters"] != 1.0 {
		t.Fatalf("redrive says %v", got)
	}
	redrive := func() any {
		return consumer.ask("GET", "/subscriptions/webshop", "", 200)["redrive"].(map[string]any)["state"]
	}
	if got := redrive(); got != "running" {
		t.Errorf("the redrive is %v", got)
	}

	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.DeleteTopic(t.Context(), "test.voucher.dead-letters"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the redrive is over", func() bool { return redrive() == "done" })
	if _, err := admin.CreateTopic(t.Context(), 3, 1, nil, "test.voucher.dead-letters"); err != nil {
		t.Fatal(err)
	}
	if got := redrive(); got != "done" {
		t.Errorf("with an empty topic, the redrive is %v", got)
	}
}

// A redrive is the subscription's, not a process's: when the replica that delivers it is gone,
// another one goes on where it was.
func TestARedriveSurvivesItsReplica(t *testing.T) {
	cluster := deliveryCluster(t)
	producer := startRole(t, app.Producer, cluster, nil)
	first := deliverers(t, cluster, 1)[0]
	s := openShop(t)
	made := first.ask("PUT", "/subscriptions/webshop", `{"topics":["test.voucher"],"url":"`+s.URL+`","retry":{"initial":"20ms","max":"100ms","max_attempts":2},"max_in_flight":3}`, 201)
	const letters, keys = 30, 17 // those of one key are refused: the others are the evidence
	refused := func(body string) bool {
		var v struct{ Number int }
		return json.Unmarshal([]byte(body), &v) == nil && v.Number%keys == 0 && v.Number < letters*keys
	}
	s.set(func() {
		s.secret = made["secret"].(string)
		s.answer = func(body string) int {
			if refused(body) {
				return http.StatusUnprocessableEntity
			}
			return http.StatusOK
		}
	})
	sell(t, producer, 0, letters*keys)
	next := letters * keys
	eventually(t, "all that are refused are dead letters", func() bool {
		sell(t, producer, next, 10)
		next += 10
		return len(first.ask("GET", "/subscriptions/webshop/dead-letters?limit=100", "", 200)["dead_letters"].([]any)) == letters
	})
	eventually(t, "nothing is left", func() bool { return lagOf(first, "webshop") == 0 })

	before := len(s.got())
	redriven := func() int {
		n := 0
		for _, d := range s.got()[before:] {
			if refused(d.body) {
				n++
			}
		}
		return n
	}
	s.set(func() {
		s.answer = func(string) int {
			time.Sleep(20 * time.Millisecond) // so that it lasts
			return http.StatusOK
		}
	})
	first.ask("POST", "/subscriptions/webshop/redrive", "", 200)
	eventually(t, "the redrive has begun", func() bool { return redriven() > 0 })
	first.stop()
	if n := redriven(); n >= letters {
		t.Fatalf("all %d letters were delivered before the replica stopped: nothing is shown", n)
	}
	second := deliverers(t, cluster, 1)[0]
	eventually(t, "the redrive is done", func() bool {
		return second.ask("GET", "/subscriptions/webshop", "", 200)["redrive"].(map[string]any)["state"] == "done"
	})
	if n := redriven(); n < letters || n > letters+3 {
		t.Errorf("%d letters were delivered, want %d, and those in flight once more at the most", n, letters)
	}
}
