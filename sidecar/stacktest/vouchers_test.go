//go:build stack

package stacktest

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// The promise that Postamt exists for, under each fault: no voucher that was acknowledged is missing,
// those of a card come in order, and nothing becomes a dead letter but by the rule.
//
// The short form sells a few thousand vouchers and breaks things for seconds. STACK_LONG=1 sells
// 20,000 at least, and breaks for minutes. STACK_REPORT names a file for the table of what came of it.

const vouchersRate = 300 // a second

type sizes struct {
	vouchers int           // sold at least, in each scenario
	holds    time.Duration // how long something is broken
	turns    int           // how often something is done again and again
}

func sizesOf() sizes {
	if os.Getenv("STACK_LONG") != "" {
		return sizes{20_000, 2 * time.Minute, 12}
	}
	return sizes{3_000, 5 * time.Second, 1}
}

// scenario is a fault. What it does begins while vouchers are sold, and ends with everything mended.
type scenario struct {
	fault   string
	do      func(d *demo, s sizes)
	letters []string // the reasons that dead letters may have
	// What may come again, and why. ended: how often attempts that were being made may have lost their
	// answers. cut: how often, besides, what had been delivered may not have been committed. Commits
	// follow 200 ms behind, on a machine that is busy a second; and after a fault deliveries come as
	// fast as they can.
	ended, cut func(sizes) int
	why        string
}

func once(sizes) int     { return 1 }
func rounds(s sizes) int { return max(1, s.turns/4) }

func times(n int, f func(sizes) int) func(sizes) int {
	return func(s sizes) int { return n * f(s) }
}

// repeats bounds what may come again.
func (sc scenario) repeats(size sizes, s demoState) (n int) {
	if sc.ended != nil {
		n += sc.ended(size) * inFlight
	}
	if sc.cut != nil {
		n += sc.cut(size) * (inFlight + s.Busiest)
	}
	return n
}

var scenarios = []scenario{
	{
		fault: "web shop stopped and started", ended: once, why: "in flight when it stopped",
		do: func(d *demo, s sizes) {
			shop := containers(d.t, "webshop")[0]
			docker(d.t, "stop", "--time", "5", shop)
			time.Sleep(s.holds)
			d.comesBack(shop)
		},
	},
	{
		fault: "web shop killed", ended: once, why: "taken when it was killed, and not answered",
		do: func(d *demo, s sizes) {
			shop := containers(d.t, "webshop")[0]
			docker(d.t, "kill", "--signal", "KILL", shop)
			d.comesBack(shop)
		},
	},
	{
		fault: "500 to everything",
		do: func(d *demo, s sizes) {
			d.fault(`{"mode":"fail"}`)
			time.Sleep(s.holds)
			d.fault(`{"mode":"up"}`)
		},
	},
	{fault: "one voucher is answered with 500", letters: []string{"attempts_exhausted"}, do: poison("fail")},
	{fault: "one voucher hangs the web shop", letters: []string{"attempts_exhausted"}, do: poison("hang")},
	{fault: "one voucher has the connection closed", letters: []string{"attempts_exhausted"}, do: poison("down")},
	{
		fault: "consumers killed one after the other", cut: times(2, rounds), why: "not committed when they were killed",
		do: func(d *demo, s sizes) {
			for range rounds(s) {
				killEachConsumer(d)
			}
		},
	},
	{
		fault: "Kafka stopped and started", cut: once, why: "not committed when it stopped",
		do: func(d *demo, s sizes) {
			compose(d.t, "stop", "kafka")
			time.Sleep(s.holds)
			compose(d.t, "up", "-d", "--wait", "--no-deps", "--no-recreate", "kafka")
		},
	},
	{
		fault: "a rebalance every ten seconds", ended: func(s sizes) int { return 2 * s.turns }, why: "in flight when partitions moved",
		do: func(d *demo, s sizes) {
			for range s.turns {
				scale(d.t, "consumer", 3)
				scale(d.t, "consumer", 2)
			}
		},
	},
	{
		fault: "clock of one container two hours ahead", cut: once, why: "not committed when Kafka closed connections that had been idle by its clock",
		do: wrongClocks,
	},
	{
		fault: "all at once", letters: []string{"refused", "attempts_exhausted"}, ended: times(3, rounds), cut: times(3, rounds), why: "all of these",
		do: func(d *demo, s sizes) {
			for range rounds(s) {
				d.fault(`{"mode":"refuse","share":0.01}`)
				killEachConsumer(d)
				d.fault(`{"mode":"fail","share":0.3}`)
				scale(d.t, "consumer", 3)
				compose(d.t, "restart", "kafka")
				compose(d.t, "up", "-d", "--wait", "--no-deps", "--no-recreate", "kafka")
				shop := containers(d.t, "webshop")[0]
				docker(d.t, "kill", "--signal", "KILL", shop)
				scale(d.t, "consumer", 2)
				d.comesBack(shop)
			}
			d.fault(`{"mode":"up"}`)
		},
	},
}

// poison makes one voucher fare as a mode says until it is a dead letter. All cards but its own go on,
// until the last attempt: what gets no answer is tried once more with nothing else in flight.
func poison(mode string) func(*demo, sizes) {
	return func(d *demo, _ sizes) {
		const (
			cards   = 50
			alone   = 3 // seconds: the subscription's timeout
			anyways = 3 // seconds: on their way
		)
		number := d.state().Sold + vouchersRate
		d.fault(fmt.Sprintf(`{"mode":%q,"poison":[%d]}`, mode, number))
		begun := time.Now()
		s := d.await(2*time.Minute, fmt.Sprintf("voucher %d is a dead letter", number), func(s demoState) bool {
			held := int(time.Since(begun).Seconds()*vouchersRate/cards) + (alone+anyways)*vouchersRate
			if s.Missing > held {
				d.t.Errorf("%d vouchers wait while one is poisonous; want those of its card, %d at most", s.Missing, held)
			}
			return s.SetAside > 0
		})
		if s.SetAside != 1 {
			d.t.Errorf("%d are dead letters, %v; want one, number %d", s.SetAside, s.DeadLetters, number)
		}
		d.fault(`{"mode":"up"}`)
	}
}

func killEachConsumer(d *demo) {
	for _, replica := range containers(d.t, "consumer") {
		docker(d.t, "kill", "--signal", "KILL", replica)
		time.Sleep(2 * time.Second)
		docker(d.t, "start", replica)
		awaitServers(d.t, "consumer", len(containers(d.t, "consumer")))
	}
}

// wrongClocks puts the clocks of containers off, one after the other. A receiver refuses signatures of
// another time, and Kafka records of one: what they are to show is that nobody gives them up for it.
func wrongClocks(d *demo, s sizes) {
	d.clocks = true
	refused := func(s demoState) int { return s.Invalid }
	unsold := func(s demoState) int { return s.Failed }
	for _, c := range []struct {
		name, container string
		shows           func(demoState) int
	}{
		{"consumer", d.deliverer(containers(d.t, "consumer")), refused},
		{"web shop", containers(d.t, "webshop")[0], refused},
		{"producer", containers(d.t, "producer")[0], unsold},
		{"Kafka", containers(d.t, "kafka")[0], nil},
	} {
		before := d.state()
		setRight := shiftClock(d.t, c.container, 2*time.Hour)
		time.Sleep(max(5*time.Second, s.holds/2))
		if after := d.state(); c.shows != nil && c.shows(after) == c.shows(before) {
			d.t.Errorf("nothing shows that the clock of the %s is off: %+v, then %+v", c.name, before, after)
		}
		setRight()
		d.sold(vouchersRate)
	}
}

// comesBack starts the web shop again, and waits until it answers.
func (d *demo) comesBack(shop string) {
	d.t.Helper()
	docker(d.t, "start", shop)
	d.await(time.Minute, "the web shop is back", func(demoState) bool { return true })
}

func TestVouchersArriveWhateverFails(t *testing.T) {
	s := sizesOf()
	report := []string{
		"| fault | sold | received | missing | repeated | out of order | dead letters, delivered again | longest wait |",
		"| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
	}
	for _, sc := range scenarios {
		t.Run(strings.ReplaceAll(sc.fault, " ", "_"), func(t *testing.T) {
			got := sc.run(t, s)
			report = append(report, fmt.Sprintf("| %s | %d | %d | %d | %d | %d | %s | %.1f s |",
				sc.fault, got.Sold, got.Distinct, got.Missing, got.Repeated, got.OutOfOrder, reasons(got.DeadLetters), got.LongestWait))
		})
	}
	t.Logf("what came of it:\n%s", strings.Join(report, "\n"))
	if file := os.Getenv("STACK_REPORT"); file != "" {
		if err := os.WriteFile(file, []byte(strings.Join(report, "\n")+"\n"), 0o600); err != nil {
			t.Error(err)
		}
	}
}

func reasons(letters map[string]int) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(letters)) {
		all = append(all, fmt.Sprintf("%d %s", letters[reason], reason))
	}
	return cmp.Or(strings.Join(all, ", "), "none")
}

// run breaks what the scenario says, and compares what was acknowledged with what arrived.
func (sc scenario) run(t *testing.T, size sizes) (s demoState) {
	scale(t, "consumer", 2)
	d := startDemo(t)
	t.Cleanup(func() { // whatever happened, the next one finds all of them
		for _, name := range []string{"kafka", "consumer", "webshop"} {
			docker(t, append([]string{"start"}, containers(t, name)...)...)
		}
		awaitServers(t, "consumer", len(containers(t, "consumer")))
	})
	d.rate(vouchersRate)
	d.sold(vouchersRate)
	sc.do(d, size)
	d.sold(vouchersRate) // it goes on
	d.await(5*time.Minute, fmt.Sprintf("%d vouchers are sold", size.vouchers), func(s demoState) bool { return s.Sold >= size.vouchers })
	if s = d.settle(3 * time.Minute); s.SetAside > 0 {
		expect(t, 200, "POST", demoSubscription+"/redrive", "")
		s = d.await(2*time.Minute, "the dead letters have come", func(s demoState) bool { return s.Missing == 0 })
	}
	for reason, n := range s.DeadLetters {
		if !slices.Contains(sc.letters, reason) {
			t.Errorf("%d dead letters have the reason %s; want none but %v", n, reason, sc.letters)
		}
	}
	if s.Missing > 0 || s.Distinct < s.Sold || s.OutOfOrder > 0 {
		t.Errorf("%d sold, %d received, %d missing, %d out of order: %+v", s.Sold, s.Distinct, s.Missing, s.OutOfOrder, s)
	}
	if bound := sc.repeats(size, s); s.Repeated > bound {
		t.Errorf("%d came again; want %d at most, %s", s.Repeated, bound, cmp.Or(sc.why, "as nothing was cut off"))
	}
	return s
}
