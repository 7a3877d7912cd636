package backoff_test

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"postamt/sidecar/internal/backoff"
)

const forever = time.Duration(math.MaxInt64)

func TestBoundDoublesUpToMax(t *testing.T) {
	p := backoff.Policy{Initial: time.Second, Max: 5 * time.Minute}
	for _, c := range []struct {
		policy backoff.Policy
		n      int
		want   time.Duration
	}{
		{p, -1, time.Second}, {p, 0, time.Second}, {p, 1, time.Second}, {p, 2, 2 * time.Second},
		{p, 3, 4 * time.Second}, {p, 9, 256 * time.Second}, {p, 10, 5 * time.Minute},
		{p, 11, 5 * time.Minute}, {p, 63, 5 * time.Minute}, {p, 64, 5 * time.Minute},
		{p, 65, 5 * time.Minute}, {p, math.MaxInt, 5 * time.Minute},
		{backoff.Policy{Initial: time.Hour, Max: time.Second}, 1, time.Second},
		{backoff.Policy{Initial: 0, Max: time.Hour}, 50, 0},
		{backoff.Policy{Initial: time.Second, Max: 0}, 3, 0},
		{backoff.Policy{Initial: 1, Max: forever}, 63, 1 << 62},
		{backoff.Policy{Initial: 1, Max: forever}, 64, forever},
		{backoff.Policy{Initial: 3, Max: forever}, 62, 3 << 61},
		{backoff.Policy{Initial: 3, Max: forever}, 63, forever}, // 3·2⁶² is more than there is
		{backoff.Policy{Initial: forever, Max: forever}, 2, forever},
	} {
		if got := c.policy.Bound(c.n); got != c.want {
			t.Errorf("%+v.Bound(%d) is %v; want %v", c.policy, c.n, got, c.want)
		}
	}
}

func TestDelayIsUniformBetweenNothingAndTheBound(t *testing.T) {
	p, r := backoff.Policy{Initial: 5, Max: time.Minute}, rand.New(rand.NewPCG(1, 2))
	const draws = 60_000
	var seen [6]int
	for range draws {
		d := p.Delay(1, r)
		if d < 0 || d > 5 {
			t.Fatalf("a delay of %d ns; want 0 to 5", d)
		}
		seen[d]++
	}
	for d, n := range seen { // 10,000 ± 4.4 standard deviations
		if n < draws/6-400 || n > draws/6+400 {
			t.Errorf("%d ns came %d times of %d; want a sixth", d, n, draws)
		}
	}
}

func TestDelayStaysInRangeAtTheEdges(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, initial := range []time.Duration{0, 1, 3, time.Second, forever - 1, forever} {
		for _, most := range []time.Duration{0, 1, time.Minute, forever - 1, forever} {
			p := backoff.Policy{Initial: initial, Max: most}
			for n := -2; n < 130; n++ {
				if d := p.Delay(n, r); d < 0 || d > p.Bound(n) {
					t.Fatalf("%+v.Delay(%d) is %v; the bound is %v", p, n, d, p.Bound(n))
				}
			}
		}
	}
}

func TestDelayIsTheSourcesAlone(t *testing.T) {
	p := backoff.Policy{Initial: time.Second, Max: time.Hour}
	a, b := rand.New(rand.NewPCG(5, 6)), rand.New(rand.NewPCG(5, 6))
	for n := range 20 {
		if x, y := p.Delay(n, a), p.Delay(n, b); x != y {
			t.Errorf("Delay(%d) from equal sources is %v and %v", n, x, y)
		}
	}
	if x, y := p.Delay(12, nil), p.Delay(12, nil); x == y { // one in 2·10¹² by chance
		t.Errorf("without a source two delays are %v", x)
	}
}
