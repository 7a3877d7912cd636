package deliver

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"postamt/sidecar/internal/event"
)

// An endpoint that is down takes its windows' room, and no more than that; others go on beside it.
func TestMemoryOfAllWindowsIsBounded(t *testing.T) {
	const maxBytes = 100 << 10
	memory := NewMemory(maxBytes)
	now := time.Now()
	engine := func() *Engine {
		window := Window{Records: event.MaxWindowRecords, Bytes: 16 << 20, Memory: memory}
		e := New(optionsOf(new(subscriptionForTest()), window), rand.New(rand.NewPCG(1, 1)))
		e.SetLimits(1000, 0)
		return e
	}
	down, up := engine(), engine()
	var tps []event.TopicPartition
	for p := range int32(4) {
		tps = append(tps, event.TopicPartition{Topic: "a", Partition: p})
		down.Assign(tps[p], event.Commit{}, now)
	}
	up.Assign(voucher0, event.Commit{}, now)
	next := int64(0)
	for reading := true; reading; { // all that there is to be had
		reading = false
		for _, tp := range tps {
			if !down.Resting(tp) {
				down.Offer(recordsOf(tp, next, 10))
				reading = true
			}
		}
		next += 10
	}
	if held := memory.held.Load(); held < maxBytes || held > 2*maxBytes {
		t.Errorf("%d bytes are held; want from %d to twice that", held, maxBytes)
	}
	at := int64(0)
	for range 50 { // the other one gets its share, again and again
		n := int64(0)
		for ; !up.Resting(voucher0); n++ {
			up.Offer(recordsOf(voucher0, at, 1))
			at++
		}
		if n == 0 {
			t.Fatal("the other subscription is stuck")
		}
		for {
			all := startAll(up, now)
			for _, d := range all {
				up.Done(d, event.Outcome{Verdict: event.Delivered, Status: 200}, now)
			}
			if len(all) == 0 {
				break
			}
		}
	}
	if full, _ := down.load(now); full != 1 || !down.Crowded() {
		t.Errorf("the windows of the one that is down show as %v full", full)
	}
	for _, tp := range tps {
		down.Drop(tp)
	}
	if up.Resting(voucher0) || up.Crowded() {
		t.Error("it rests for the sake of what is gone")
	}
	up.Drop(voucher0)
	if memory.held.Load() != 0 || memory.partitions.Load() != 0 {
		t.Errorf("%d bytes in %d partitions are left of nothing", memory.held.Load(), memory.partitions.Load())
	}
}

// What rests for the others' sake goes on when they hold less, though nothing happens to it itself.
func TestACrowdedPartitionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := NewMemory(4 << 10)
		o := open(t, func(o *office, p *Parts) {
			p.Window.Memory = memory
			o.sub.Retry.Initial, o.sub.Retry.Max = 24*time.Hour, 24*time.Hour
		})
		defer o.stop()
		memory.hold(1 << 20) // by others
		o.end.set(poisoned(0, event.Unreachable))
		o.source.give(voucher0)
		o.source.add(recordsOf(voucher0, 0, 10)...)
		time.Sleep(time.Second)
		o.source.add(recordsOf(voucher0, 10, 10)...)
		time.Sleep(time.Minute)
		if n := len(o.end.got()); n != 6 || !o.source.isPaused(voucher0) {
			t.Errorf("%d were accepted, want the 6 of the first ten that have other keys", n)
		}
		memory.hold(-1 << 20)
		time.Sleep(2 * crowdInterval)
		if n := len(o.end.got()); n != 13 {
			t.Errorf("%d were accepted, want 13", n)
		}
	})
}
