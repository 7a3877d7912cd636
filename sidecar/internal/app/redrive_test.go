package app_test

import (
	"net/http"
	"strings"
	"testing"

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
