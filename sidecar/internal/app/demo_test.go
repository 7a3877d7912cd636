package app_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/app"
)

// demoState is what the web shop says.
type demoState struct {
	Sold, Distinct, Missing, Repeated, Rate float64
	OutOfOrder                              float64 `json:"out_of_order"`
	SetAside                                float64 `json:"set_aside"`
	AfterDead                               float64 `json:"out_of_dead"`
	Invalid                                 float64 `json:"invalid_signatures"`
	Struck                                  float64
	Subscription                            string
	DeadLetters                             map[string]float64 `json:"dead_letters"`
}

type demoPage struct {
	t    *testing.T
	base string
}

func (d *demoPage) ask(method, path, body string) string {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.base+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		d.t.Fatalf("%s %s: %d %s, %v", method, path, resp.StatusCode, text, err)
	}
	return string(text)
}

func (d *demoPage) state() (s demoState) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(d.ask("GET", "/state", "")), &s); err != nil {
		d.t.Fatal(err)
	}
	return s
}

// rest stops the register and waits until all that it sold has come.
func (d *demoPage) rest(what string) demoState {
	d.t.Helper()
	d.ask("POST", "/rate", `{"rate":0}`)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		s := d.state()
		if s.Missing == 0 && s.Sold > 0 && s.Sold == s.Distinct {
			return s
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("not within a minute: %s; the web shop says %+v", what, s)
		}
	}
}

func TestTheDemoLosesNothing(t *testing.T) {
	cfg := configOf(t, map[string]string{"DEMO_ADDRESS": "127.0.0.1:0", "DEMO_RATE": "200", "WEBHOOK_ALLOW": "127.0.0.0/8"})
	pages := make(chan net.Addr, 1)
	start(t, func(ctx context.Context, ready func(api, metrics net.Addr)) error {
		return app.RunDevWithDemo(ctx, cfg, "", "", slog.New(slog.DiscardHandler), func(api, page net.Addr) {
			pages <- page
			ready(api, page)
		})
	})
	d := &demoPage{t, "http://" + (<-pages).String()}
	eventually(t, "vouchers arrive", func() bool { return d.state().Distinct > 100 })

	d.ask("POST", "/faults", `{"mode":"down"}`)
	eventually(t, "Postamt knows that it is down", func() bool { return d.state().Subscription == "down" })
	eventually(t, "vouchers are missing", func() bool { return d.state().Missing > 100 })
	d.ask("POST", "/faults", `{"mode":"up"}`)
	s := d.rest("all have come after the outage")
	if len(s.DeadLetters) > 0 || s.OutOfOrder > 0 || s.Invalid > 0 || s.Struck == 0 {
		t.Errorf("after an outage the web shop says %+v; want no dead letter, and all in order", s)
	}

	// Some are refused, and become dead letters while the others pass.
	d.ask("DELETE", "/state", "")
	d.ask("POST", "/faults", `{"mode":"refuse","share":0.1}`)
	d.ask("POST", "/rate", `{"rate":200}`)
	eventually(t, "there are dead letters", func() bool { return d.state().SetAside > 5 })
	d.ask("POST", "/rate", `{"rate":0}`)
	d.ask("POST", "/faults", `{"mode":"up"}`)
	eventually(t, "all that is missing is a dead letter", func() bool {
		s := d.state()
		return s.Missing == s.SetAside
	})
	aside := d.state().SetAside
	d.ask("POST", "/redrive", "")
	s = d.rest("the dead letters have come")
	if s.DeadLetters["refused"] < aside || len(s.DeadLetters) != 1 || s.OutOfOrder > 0 || s.SetAside != 0 {
		t.Errorf("after the redrive of %v the web shop says %+v", aside, s)
	}
	if got := d.ask("GET", "/", ""); !strings.Contains(got, "page.js") {
		t.Errorf("the page is %.200s", got)
	}
}
