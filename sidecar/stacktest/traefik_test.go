//go:build stack

package stacktest

import (
	"encoding/json"
	"strings"
	"testing"

	"postamt/sidecar/internal/contract"
)

func TestTraefikHasEveryRouteAndEveryServerUp(t *testing.T) {
	var routers []struct {
		Name   string   `json:"name"`
		Status string   `json:"status"`
		Error  []string `json:"error"`
	}
	expect(t, 200, "GET", project.dashboard+"/api/http/routers", "").decode(t, &routers)
	status := make(map[string]string)
	for _, r := range routers {
		status[r.Name] = r.Status
		if r.Status != "enabled" || len(r.Error) > 0 {
			t.Errorf("router %s is %s: %s", r.Name, r.Status, strings.Join(r.Error, "; "))
		}
	}
	for _, name := range []string{"producer", "fallback", "consumer", "monitor", "prometheus", "alertmanager"} {
		if status[name+"@docker"] == "" {
			t.Errorf("Traefik has no router %s; it has %v", name, status)
		}
	}

	var services []service
	expect(t, 200, "GET", project.dashboard+"/api/http/services", "").decode(t, &services)
	for _, s := range services {
		if s.Status != "enabled" {
			t.Errorf("service %s is %s", s.Name, s.Status)
		}
		for url, status := range s.ServerStatus {
			if status != "UP" || url == "" {
				t.Errorf("server %q of %s is %s; want an address that is UP", url, s.Name, status)
			}
		}
	}
	var overview struct {
		HTTP map[string]struct{ Warnings, Errors int } `json:"http"`
	}
	expect(t, 200, "GET", project.dashboard+"/api/overview", "").decode(t, &overview)
	for what, n := range overview.HTTP {
		if n.Warnings > 0 || n.Errors > 0 {
			t.Errorf("Traefik counts %d warnings and %d errors of %s", n.Warnings, n.Errors, what)
		}
	}
}

func TestRoundRobinOverTwoProducers(t *testing.T) {
	const n, route = 40, "/topics/{topic}/records"
	topic := newTopic(t, 1)
	replicas := scale(t, "producer", 2)
	var before [2]float64
	for i, replica := range replicas {
		before[i] = requests(t, replica, route)
	}
	for range n {
		produce(t, topic, "k", "v")
	}
	for i, replica := range replicas {
		// One off, since the other router of this service may have had a request in between.
		if got := requests(t, replica, route) - before[i]; got < n/2-1 || got > n/2+1 {
			t.Errorf("of %d requests replica %d got %v; want half", n, i+1, got)
		}
	}
}

func TestErrorsThroughTraefikHaveOneForm(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status, code int
		allow        string
	}{
		{"POST", "/topics/no-such-topic/records", 404, 40401, ""},
		{"POST", "/topics/no-such-topic", 404, 40401, ""},
		{"GET", "/topics/no-such-topic", 404, 40401, ""},
		{"GET", "/streams/no-such-topic", 404, 40401, ""},
		{"GET", "/consumers/g/instances/nobody/records", 404, 40403, ""},
		{"GET", "/lag?group=no-such-group", 404, 404, ""},
		{"GET", "/subscriptions/nobody", 404, 404, ""},
		{"POST", "/subscriptions/nobody/pause", 404, 404, ""},
		{"GET", "/nowhere", 404, 404, ""},
		{"GET", "/subscriptionsx", 404, 404, ""},
		{"POST", "/lagging", 404, 404, ""},
		{"GET", "/topics/my-topic/nothing", 404, 404, ""},
		{"DELETE", "/topics/my-topic", 405, 405, "GET, HEAD, POST"},
		{"GET", "/topics/my-topic/records", 405, 405, "POST"},
		{"POST", "/streams/my-topic", 405, 405, "GET"},
		{"PUT", "/consumers/g", 405, 405, "POST"},
		{"POST", "/lag", 405, 405, "GET, HEAD"},
		{"POST", "/subscriptions", 405, 405, "GET, HEAD"},
		{"POST", "/subscriptions/nobody", 405, 405, "DELETE, GET, HEAD, PUT"},
	} {
		body := ""
		if c.method == "POST" {
			body = `{"records":[{"value":1}]}`
		}
		got := call(t, c.method, c.path, body, "Content-Type: application/vnd.kafka.json.v2+json")
		var in struct {
			Code    int    `json:"error_code"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal([]byte(got.body), &in); err != nil || in.Message == "" {
			t.Errorf("%s %s: got %v; want error_code and message", c.method, c.path, got)
			continue
		}
		if got.status != c.status || in.Code != c.code || got.header.Get("Allow") != c.allow {
			t.Errorf("%s %s: got %v, Allow %q; want %d with code %d, Allow %q", c.method, c.path, got, got.header.Get("Allow"), c.status, c.code, c.allow)
		}
	}
}

// Traefik's catch-all leads to the document, and it is the one of this tree.
func TestTheContractIsServed(t *testing.T) {
	want, err := contract.Text()
	if err != nil {
		t.Fatal(err)
	}
	if got := expect(t, 200, "GET", "/openapi.yaml", ""); got.body != string(want) {
		t.Errorf("/openapi.yaml has %d bytes; want the %d of sidecar/openapi.yaml", len(got.body), len(want))
	}
}

// What a client claims to have been forwarded from is not believed.
func TestBaseURIIsWhatTheClientAsked(t *testing.T) {
	group := unique("group")
	_, port, _ := strings.Cut(strings.TrimPrefix(project.api, "http://"), ":")
	for _, host := range []string{"127.0.0.1:" + port, "localhost:" + port} {
		var in struct {
			ID      string `json:"instance_id"`
			BaseURI string `json:"base_uri"`
		}
		created := expect(t, 200, "POST", "/consumers/"+group, "{}", "Content-Type: "+v2, "Host: "+host,
			"X-Forwarded-Host: elsewhere.example", "X-Forwarded-Proto: https", "X-Forwarded-Port: 444", "X-Forwarded-Prefix: /x")
		created.decode(t, &in)
		if want := "http://" + host + "/consumers/" + group + "/instances/" + in.ID; in.BaseURI != want {
			t.Errorf("a session that was asked for at %s has the base_uri %s; want %s", host, in.BaseURI, want)
		}
		cookie, _, _ := strings.Cut(created.header.Get("Set-Cookie"), ";")
		if !strings.HasPrefix(cookie, "postamt_consumer=") {
			t.Errorf("the cookie is %q; want postamt_consumer, which leads back to the session's replica", cookie)
		}
		expect(t, 204, "DELETE", in.BaseURI, "", "Cookie: "+cookie)
	}
}
