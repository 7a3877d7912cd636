//go:build stack

package stacktest

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"
)

// demo is the register and the web shop of the stack, and what the web shop says of the vouchers:
// it compares what was acknowledged to the register with what it received itself.
type demo struct {
	t *testing.T
	// clocks: some have been off, so that signatures of another time were refused.
	clocks bool
}

// demoState is what GET /state of the web shop answers.
type demoState struct {
	Run            int64
	Sold, Unknown  int
	Failed         int    // tries to sell without an acknowledgement
	Register       string `json:"register_error"`
	Received       int
	Distinct       int
	Repeated       int
	StoredTwice    int `json:"stored_twice"`
	OutOfOrder     int `json:"out_of_order"`
	AfterDead      int `json:"out_of_dead"`
	Missing        int
	MissingNumbers []int   `json:"missing_numbers"`
	SetAside       int     `json:"set_aside"`
	LongestWait    float64 `json:"longest_wait_seconds"`
	Busiest        int     `json:"busiest_second"`
	Invalid        int     `json:"invalid_signatures"`
	Struck         int
	Joined         bool
	Subscription   string
	DeadLetters    map[string]int `json:"dead_letters"`
}

const (
	demoSubscription = "/subscriptions/demo"
	// inFlight is the subscription's max_in_flight, of all replicas together.
	inFlight = 64
)

// startDemo begins to count vouchers anew, with a web shop that works and a register that rests.
func startDemo(t *testing.T) *demo {
	t.Helper()
	compose(t, "--profile", "demo", "up", "-d", "--wait", "--no-deps", "register", "webshop")
	awaitServers(t, "register", 1)
	awaitServers(t, "webshop", 1)
	d := &demo{t: t}
	d.rate(0)
	d.fault(`{"mode":"up"}`)
	d.shop("DELETE", "/state", "")
	d.await(time.Minute, "the web shop has subscribed, and Postamt delivers", func(s demoState) bool {
		return s.Joined && s.Subscription == "active"
	})
	t.Cleanup(func() { // whatever happened
		for _, body := range []string{"/rate {\"rate\":0}", "/faults {\"mode\":\"up\"}"} {
			var path, json string
			_, _ = fmt.Sscan(body, &path, &json)
			_, _ = request("POST", project.api+path, json, "Host: webshop.localhost")
		}
	})
	return d
}

// shop asks the web shop, through Traefik as a browser does.
func (d *demo) shop(method, path, body string) answer {
	d.t.Helper()
	return expect(d.t, 200, method, project.api+path, body, "Host: webshop.localhost")
}

func (d *demo) fault(body string) {
	d.t.Helper()
	d.shop("POST", "/faults", body)
}

func (d *demo) rate(perSecond int) {
	d.t.Helper()
	expect(d.t, 200, "POST", project.api+"/rate", fmt.Sprintf(`{"rate":%d}`, perSecond), "Host: register.localhost")
}

func (d *demo) state() (s demoState) {
	d.t.Helper()
	d.shop("GET", "/state", "").decode(d.t, &s)
	return s
}

// await waits until the web shop says what ok wants; while it is away, too.
func (d *demo) await(within time.Duration, what string, ok func(demoState) bool) (s demoState) {
	d.t.Helper()
	eventually(d.t, within, what, func() error {
		got, err := request("GET", project.api+"/state", "", "Host: webshop.localhost")
		if err != nil || got.status != 200 {
			return fmt.Errorf("the web shop says %v %w", got, err)
		}
		s = demoState{}
		got.decode(d.t, &s)
		if !ok(s) {
			return fmt.Errorf("the web shop says %+v", s)
		}
		return nil
	})
	return s
}

// sold waits until the register has sold n vouchers more.
func (d *demo) sold(n int) demoState {
	d.t.Helper()
	before := d.state().Sold
	return d.await(2*time.Minute, fmt.Sprintf("%d vouchers more are sold", n), func(s demoState) bool { return s.Sold >= before+n })
}

// settle stops the register and waits until all that it sold has come, or is a dead letter. Then it
// holds what must hold after any fault.
func (d *demo) settle(within time.Duration) demoState {
	d.t.Helper()
	d.rate(0)
	s := d.await(within, "all that was sold has come, or is a dead letter", func(s demoState) bool {
		return s.Register == "" && s.Unknown == 0 && s.Missing == s.SetAside
	})
	if s.OutOfOrder > 0 || s.Invalid > 0 && !d.clocks {
		d.t.Errorf("%d vouchers came out of order, %d signatures were not valid; want none: %+v", s.OutOfOrder, s.Invalid, s)
	}
	if s.Distinct+s.Missing < s.Sold {
		d.t.Errorf("%d sold, %d different ones received, %d missing: %+v", s.Sold, s.Distinct, s.Missing, s)
	}
	return s
}

func (d *demo) wantNoDeadLetters(s demoState) {
	d.t.Helper()
	if len(s.DeadLetters) > 0 {
		d.t.Errorf("there are dead letters, %v; want none", s.DeadLetters)
	}
}

// deliverer is the container that has most partitions of the demo's subscription, of those given.
func (d *demo) deliverer(among []string) string {
	d.t.Helper()
	at := make(map[string]string)
	for _, id := range among {
		at[docker(d.t, "inspect", "--format", `{{(index .NetworkSettings.Networks "`+project.name+`-kafka").IPAddress}}`, id)] = id
	}
	most := ""
	eventually(d.t, time.Minute, "a replica delivers all partitions' share", func() error {
		var in struct {
			Partitions []struct{ Replica string }
		}
		expect(d.t, 200, "GET", demoSubscription, "").decode(d.t, &in)
		has := make(map[string]int)
		for _, p := range in.Partitions {
			if host, _, err := net.SplitHostPort(p.Replica); err == nil && at[host] != "" {
				has[at[host]]++
			}
		}
		for id, n := range has {
			if n > has[most] {
				most = id
			}
		}
		if len(has) != len(among) {
			return fmt.Errorf("of %d replicas %d have partitions", len(among), len(has))
		}
		return nil
	})
	return most
}

// deadLetter is one as the API lists it.
type deadLetter struct {
	Key      string
	Reason   string
	Status   int
	Attempts int
	Redriven bool
}

// deadLetters are those of a card.
func (d *demo) deadLetters(card string) (all []deadLetter) {
	d.t.Helper()
	for cursor := ""; ; {
		var in struct {
			Letters []deadLetter `json:"dead_letters"`
			Next    *string
		}
		expect(d.t, 200, "GET", demoSubscription+"/dead-letters?limit=1000"+cursor, "").decode(d.t, &in)
		all = append(all, in.Letters...)
		if in.Next == nil {
			return slices.DeleteFunc(all, func(l deadLetter) bool { return l.Key != card })
		}
		cursor = "&cursor=" + *in.Next
	}
}
