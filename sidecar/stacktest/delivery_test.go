//go:build stack

package stacktest

import (
	"fmt"
	"testing"
	"time"
)

const demoRate = 400 // vouchers a second: enough to be in the middle of something at any moment

// A replica that is killed has delivered what it had not committed yet: that, and nothing else, comes
// again.
func TestSubscriptionDeliversInOrderThroughAKill(t *testing.T) {
	const n = 10_000
	replicas := scale(t, "consumer", 2)
	d := startDemo(t)
	t.Cleanup(func() {
		docker(t, append([]string{"start"}, replicas...)...)
		awaitServers(t, "consumer", 2)
	})
	d.rate(demoRate)
	d.sold(n / 4)
	victim := d.deliverer(replicas)
	before := d.state()
	docker(t, "kill", "--signal", "KILL", victim)
	d.sold(n / 4)
	docker(t, "start", victim)
	awaitServers(t, "consumer", 2)
	d.await(2*time.Minute, fmt.Sprintf("%d vouchers are sold", n), func(s demoState) bool { return s.Sold >= n })
	s := d.settle(time.Minute)
	d.wantNoDeadLetters(s)
	// Commits follow 200 ms behind what they cover; on a machine that is busy, a second.
	if again, bound := s.Repeated-before.Repeated, inFlight+demoRate; before.Repeated > 0 || again > bound {
		t.Errorf("%d came again before the kill, %d after it; want none, and %d at most", before.Repeated, again, bound)
	}
	t.Logf("%d sold, %d received, %d came again, the longest wait was %.1f s", s.Sold, s.Received, s.Repeated, s.LongestWait)
}

// One voucher that is refused is set aside while all others go on, and comes once the web shop is
// mended.
func TestSubscriptionSetsAPoisonousRecordAside(t *testing.T) {
	d := startDemo(t)
	d.rate(50)
	poisoned := d.sold(50).Sold + 50
	d.fault(fmt.Sprintf(`{"mode":"refuse","poison":[%d]}`, poisoned))
	s := d.await(time.Minute, "it is a dead letter", func(s demoState) bool { return s.SetAside == 1 })
	if s.DeadLetters["refused"] != 1 || s.LongestWait > 5 {
		t.Errorf("the dead letters are %v, and the longest wait of the others is %.1f s; want one that was refused, and that nobody waits", s.DeadLetters, s.LongestWait)
	}
	d.sold(100)
	s = d.settle(30 * time.Second)
	if s.Missing != 1 || len(s.MissingNumbers) != 1 || s.MissingNumbers[0] != poisoned {
		t.Fatalf("%d are missing, %v; want the one that was refused, %d", s.Missing, s.MissingNumbers, poisoned)
	}
	// Numbers go round the cards, one each.
	var letter *deadLetter
	for card := range 50 {
		for _, l := range d.deadLetters(fmt.Sprintf("%x-%d", s.Run, card)) {
			letter = &l
		}
	}
	if letter == nil || letter.Reason != "refused" || letter.Status != 422 || letter.Attempts < 1 || letter.Redriven {
		t.Errorf("the API lists the dead letter as %+v", letter)
	}

	d.fault(`{"mode":"up"}`)
	expect(t, 200, "POST", demoSubscription+"/redrive", "")
	d.await(time.Minute, "the dead letter has come", func(s demoState) bool { return s.Missing == 0 && s.Sold == s.Distinct })
	eventually(t, time.Minute, "it is known to have been delivered", func() error {
		if l := d.deadLetters(letter.Key); len(l) != 1 || !l[0].Redriven {
			return fmt.Errorf("it is listed as %+v", l)
		}
		return nil
	})
}

func TestSubscriptionWaitsForAnOutage(t *testing.T) {
	d := startDemo(t)
	d.rate(demoRate)
	d.sold(500)
	d.fault(`{"mode":"down"}`)
	d.await(time.Minute, "Postamt knows that it is down", func(s demoState) bool { return s.Subscription == "down" })
	time.Sleep(20 * time.Second) // the outage
	if s := d.state(); s.Missing < 20*demoRate/2 {
		t.Errorf("after 20 s %d are missing; is the web shop down?", s.Missing)
	}
	d.fault(`{"mode":"up"}`)
	s := d.settle(time.Minute)
	d.wantNoDeadLetters(s)
	t.Logf("%d sold, %d came again, the longest wait was %.1f s", s.Sold, s.Repeated, s.LongestWait)
}

func TestSubscriptionMovesBetweenReplicas(t *testing.T) {
	scale(t, "consumer", 1)
	t.Cleanup(func() { scale(t, "consumer", 2) })
	d := startDemo(t)
	d.rate(demoRate)
	d.sold(1000)
	d.deliverer(scale(t, "consumer", 3)) // all three have partitions
	d.sold(2000)
	scale(t, "consumer", 1)
	d.sold(1000)
	s := d.settle(time.Minute)
	d.wantNoDeadLetters(s)
	// Nobody was killed: what was in flight has ended first.
	if s.Repeated > inFlight {
		t.Errorf("%d came again; want at most what was in flight, %d", s.Repeated, inFlight)
	}
	t.Logf("%d sold, %d came again, the longest wait was %.1f s", s.Sold, s.Repeated, s.LongestWait)
}
