package deliver

import (
	"container/heap"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

// The model test lets engines run against a world that is drawn by chance: topics, keys, replicas
// that come, go and die between any two steps, an endpoint in every state, records that it cannot
// take. Time is simulated. A seed that fails prints all that happened; `go test -run Model/SEED
// ./sidecar/internal/deliver -args -seed SEED` repeats it.
var (
	seeds   = flag.Int("seeds", 300, "how many worlds the model test runs")
	oneSeed = flag.Uint64("seed", 0, "the one world to run, and to tell about")
)

func TestModel(t *testing.T) {
	t.Parallel()
	if *oneSeed != 0 {
		w := newWorld(*oneSeed)
		w.told = os.Stdout
		if err := w.run(); err != nil {
			t.Fatal(err)
		}
		return
	}
	const batch = 250
	for first := 1; first <= *seeds; first += batch {
		t.Run(fmt.Sprint("from ", first), func(t *testing.T) {
			t.Parallel()
			for seed := first; seed < first+batch && seed <= *seeds; seed++ {
				if err := newWorld(uint64(seed)).run(); err != nil { //nolint:gosec // positive
					again := newWorld(uint64(seed)) //nolint:gosec // positive
					history := &strings.Builder{}
					again.told = history
					_ = again.run()
					lines := strings.Split(history.String(), "\n")
					const shown = 400
					if len(lines) > shown {
						lines = append([]string{fmt.Sprintf("… %d lines before; all of them: -args -seed %d", len(lines)-shown, seed)}, lines[len(lines)-shown:]...)
					}
					t.Fatalf("seed %d: %v\n%s\n%s", seed, err, again.describe(), strings.Join(lines, "\n"))
				}
			}
		})
	}
}

// poison is what is the matter with a record.
type poison int

const (
	sound    poison = iota
	refused         // 400, always
	failing         // 500, always
	hanging         // no answer within the timeout
	crashing        // the endpoint resets every connection and takes a while to start again
)

// letter is a record in the log, and what has become of it.
type entry struct {
	tp       event.TopicPartition
	offset   int64
	key      string // "" is none
	poison   poison
	accepted int
	arrived  int
	letters  []event.DeadLetter
	covered  bool // a commit has said that it is decided
	open     int  // attempts in flight, of living and dead replicas
	extra    bool // of those that come to the end
	skipped  bool // by an operator
}

func (en *entry) decided() bool { return en.accepted > 0 || len(en.letters) > 0 }

// weather is how the endpoint is for a while.
type weather int

const (
	fair        weather = iota
	slow                // it takes seconds
	all500              // to everything
	all404              //
	all503              //
	unplugged           // no connection
	hangs               // takes connections and answers nothing
	brownOut            // a share fails
	brownOut404         // a share is refused
)

type phase struct {
	from, to time.Time
	weather  weather
	share    float64
}

type world struct {
	seed     uint64
	rnd      *rand.Rand
	told     interface{ Write([]byte) (int, error) }
	now      time.Time
	start    time.Time
	end      time.Time // of all troubles
	events   timeline
	count    int
	failure  error
	logs     map[event.TopicPartition][]*entry
	tps      []event.TopicPartition
	commits  map[event.TopicPartition]event.Commit
	owner    map[event.TopicPartition]*replica
	replicas []*replica
	phases   []phase
	down     time.Time // the endpoint starts again then
	active   map[*try]bool
	order    event.Ordering
	retry    event.Retry
	window   Window
	inFlight int
	rate     float64
	timeout  time.Duration
	letterOK float64
	accepts  []acceptance
	lossy    bool // replicas die
	narrow   bool
	crashes  bool
}

type acceptance struct {
	began time.Time
	at    time.Time
	en    *entry
}

type replica struct {
	w       *world
	name    int
	engine  *Engine
	read    map[event.TopicPartition]int64
	alive   bool
	woken   time.Time
	leaving map[event.TopicPartition]bool
	tries   map[*Delivery]*try
	writing map[*Delivery]bool // dead letters
}

// try is an attempt on its way.
type try struct {
	r     *replica
	d     *Delivery
	en    *entry
	began time.Time
	out   event.Outcome
	over  bool
}

type action struct {
	at  time.Time
	seq int
	do  func()
}

type timeline []action

func (l *timeline) Len() int { return len(*l) }
func (l *timeline) Less(i, j int) bool {
	a, b := (*l)[i], (*l)[j]
	if a.at.Equal(b.at) {
		return a.seq < b.seq
	}
	return a.at.Before(b.at)
}
func (l *timeline) Swap(i, j int) { (*l)[i], (*l)[j] = (*l)[j], (*l)[i] }
func (l *timeline) Push(x any)    { *l = append(*l, x.(action)) }
func (l *timeline) Pop() any {
	n := len(*l) - 1
	a := (*l)[n]
	*l = (*l)[:n]
	return a
}

func (w *world) after(d time.Duration, do func()) {
	w.count++
	heap.Push(&w.events, action{w.now.Add(d), w.count, do})
}

func (w *world) say(format string, args ...any) {
	if w.told != nil {
		fmt.Fprintf(w.told, "%12s  %s\n", w.now.Sub(w.start).Round(time.Millisecond), fmt.Sprintf(format, args...))
	}
}

func (w *world) wrong(format string, args ...any) {
	if w.failure == nil {
		w.failure = fmt.Errorf("after %v: %s", w.now.Sub(w.start), fmt.Sprintf(format, args...))
		w.say("WRONG: %v", w.failure)
	}
}

func pickOne[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func newWorld(seed uint64) *world {
	rnd := rand.New(rand.NewPCG(seed, 1))
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &world{
		seed: seed, rnd: rnd, start: start, now: start,
		logs: make(map[event.TopicPartition][]*entry), commits: make(map[event.TopicPartition]event.Commit), owner: make(map[event.TopicPartition]*replica),
		active:   make(map[*try]bool),
		order:    pickOne(rnd, event.OrderByKey, event.OrderByKey, event.OrderByKey, event.OrderByPartition, event.OrderNone),
		retry:    event.Retry{Initial: pickOne(rnd, 100*time.Millisecond, time.Second), Max: pickOne(rnd, 10*time.Second, 5*time.Minute), MaxAttempts: pickOne(rnd, 1, 3, 8), GiveUpAfter: 96 * time.Hour},
		window:   Window{Records: pickOne[int64](rnd, 8, 64, 256, 16384), Bytes: pickOne(rnd, 200, 10_000, 16<<20)},
		inFlight: pickOne(rnd, 1, 4, 16, 64), rate: pickOne(rnd, 0.0, 0, 0, 20),
		timeout:  pickOne(rnd, 5*time.Second, 15*time.Second),
		letterOK: pickOne(rnd, 1, 0.8), lossy: rnd.IntN(3) > 0,
	}
	for i := range 1 + rnd.IntN(4) {
		w.tps = append(w.tps, event.TopicPartition{Topic: pickOne(rnd, "test.voucher", "test.order"), Partition: int32(i)}) //nolint:gosec // small
	}
	for _, tp := range w.tps {
		w.commits[tp] = event.Commit{Offset: event.NoCommit}
	}
	// Where what cannot be taken keeps everything else from being read, nothing tells it from an
	// endpoint that is down: it is given up in the end.
	longest := 72 * time.Hour
	w.narrow = w.order == event.OrderByPartition || w.window.Records <= 256 || w.window.Bytes <= 10_000
	if w.narrow {
		longest, w.retry.GiveUpAfter = 5*time.Minute, time.Hour
	}
	// The troubles.
	at := start
	for range rnd.IntN(4) {
		at = at.Add(time.Duration(rnd.Int64N(int64(2 * time.Minute))))
		p := phase{from: at, weather: weather(1 + rnd.IntN(int(brownOut404))), share: 0.1 + 0.8*rnd.Float64()}
		p.to = at.Add(time.Duration(rnd.Int64N(int64(pickOne(rnd, 10*time.Second, 5*time.Minute, longest)))))
		at = p.to
		w.phases = append(w.phases, p)
	}
	w.end = at.Add(time.Minute)
	for i := range 1 + rnd.IntN(3) {
		w.replicas = append(w.replicas, &replica{w: w, name: i})
	}
	return w
}

func (w *world) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "order %s, retry %+v, window %+v, in flight %d, rate %v, timeout %v, %d replicas, partitions %v, letters %v, lossy %v\n", w.order, w.retry, w.window, w.inFlight, w.rate, w.timeout, len(w.replicas), w.tps, w.letterOK, w.lossy)
	for _, p := range w.phases {
		fmt.Fprintf(&b, "weather %d from %v to %v (share %.2f)\n", p.weather, p.from.Sub(w.start), p.to.Sub(w.start), p.share)
	}
	return b.String()
}

func (w *world) run() error {
	poisons := pickOne(w.rnd, 0.0, 0, 0.02, 0.1)
	kinds := pickOne(w.rnd, []poison{refused}, []poison{failing}, []poison{hanging}, []poison{crashing}, []poison{refused, failing, hanging, crashing})
	if w.narrow {
		kinds = []poison{refused, failing} // only what the endpoint has judged is given up
	}
	if slices.Contains(kinds, crashing) {
		poisons = min(poisons, 0.02)
	}
	w.crashes = poisons > 0 && slices.Contains(kinds, crashing)
	total := pickOne(w.rnd, 20, 100, 300)
	keys := pickOne(w.rnd, 1, 5, 50)
	produce := func() {
		tp := w.tps[w.rnd.IntN(len(w.tps))]
		log := w.logs[tp]
		offset := int64(0)
		if len(log) > 0 {
			offset = log[len(log)-1].offset + 1
		}
		if w.rnd.IntN(10) == 0 { // a marker, or what compaction took
			offset += w.rnd.Int64N(5)
		}
		en := &entry{tp: tp, offset: offset}
		if w.rnd.IntN(5) > 0 {
			en.key = fmt.Sprint("k", w.rnd.IntN(keys))
		}
		if w.rnd.Float64() < poisons {
			en.poison = pickOne(w.rnd, kinds...)
		}
		w.logs[tp] = append(log, en)
	}
	// Some are there before, the others come while the troubles last.
	for range total / 2 {
		produce()
	}
	for range total / 2 {
		w.after(time.Duration(w.rnd.Int64N(int64(w.end.Sub(w.start)))), produce)
	}
	for _, r := range w.replicas {
		r.begin()
	}
	w.rebalance(false)
	w.after(0, w.fetch)
	w.after(0, w.commit)
	// Without other records that are accepted nothing is set aside: so some go on coming.
	extra := 0
	var more func()
	more = func() {
		tp := w.tps[w.rnd.IntN(len(w.tps))]
		extra++
		next := int64(0)
		if log := w.logs[tp]; len(log) > 0 {
			next = log[len(log)-1].offset + 1
		}
		w.logs[tp] = append(w.logs[tp], &entry{tp: tp, offset: next, key: fmt.Sprint("extra", extra), extra: true})
		if extra < 3000 {
			w.after(time.Duration(w.rnd.Int64N(int64(time.Minute))), more)
		}
	}
	w.after(w.end.Sub(w.start), more)
	for range w.rnd.IntN(6) { // changes of who has what, and deaths
		w.after(time.Duration(w.rnd.Int64N(int64(min(w.end.Sub(w.start), time.Hour)))), func() {
			if w.lossy && w.rnd.IntN(2) == 0 {
				w.kill(w.replicas[w.rnd.IntN(len(w.replicas))])
			} else {
				w.rebalance(true)
			}
		})
	}
	if w.rnd.IntN(3) == 0 { // an operator
		for range w.rnd.IntN(10) {
			w.after(time.Duration(w.rnd.Int64N(int64(w.end.Sub(w.start)))), w.skip)
		}
	}
	limit := w.end.Add(240 * time.Hour)
	for steps := 0; w.failure == nil; steps++ {
		if len(w.events) == 0 || steps > 3_000_000 {
			return fmt.Errorf("nothing happens any more, or too much: %d steps", steps)
		}
		a := heap.Pop(&w.events).(action)
		w.now = a.at
		a.do()
		if w.now.After(w.end) {
			if w.finished() {
				return w.judge()
			}
			if w.now.After(limit) {
				return fmt.Errorf("stuck: after ten days in fair weather there are records that are neither accepted nor set aside: %s", w.left())
			}
		}
	}
	return w.failure
}

// skip has an operator give a record up.
func (w *world) skip() {
	tp := w.tps[w.rnd.IntN(len(w.tps))]
	r := w.owner[tp]
	if r == nil || !r.alive || r.leaving[tp] {
		return
	}
	p := r.engine.partitions[tp]
	if len(p.records) == 0 {
		return
	}
	offset := p.records[w.rnd.IntN(len(p.records))].Record.Offset
	if r.engine.Skip(tp, offset) == nil {
		w.say("%v/%d is skipped", tp, offset)
		w.find(tp, offset).skipped = true
	}
	r.pump()
}

func (w *world) finished() bool {
	for _, tp := range w.tps {
		for _, en := range w.logs[tp] {
			// And committed.
			if !en.extra && (!en.decided() || w.commits[tp].Offset <= en.offset) {
				return false
			}
		}
	}
	return true
}

func (w *world) left() string {
	var out []string
	for _, tp := range w.tps {
		for _, en := range w.logs[tp] {
			if !en.decided() {
				out = append(out, fmt.Sprintf("%v/%d (poison %d, arrived %d)", en.tp, en.offset, en.poison, en.arrived))
			}
		}
		out = append(out, fmt.Sprintf("%v committed %d", tp, w.commits[tp].Offset))
	}
	return strings.Join(out, ", ")
}

// judge holds the end against the rules.
func (w *world) judge() error {
	// A record that is in flight whenever the endpoint is crashed may be taken for the cause, if few
	// failures are enough.
	browned, outages := w.crashes && w.retry.MaxAttempts < 8, 0
	for _, p := range w.phases {
		switch p.weather {
		case brownOut, brownOut404:
			browned = true
		case all500, all404, all503, unplugged, hangs:
			outages++
		}
	}
	for _, tp := range w.tps {
		for _, en := range w.logs[tp] {
			if len(en.letters) > 0 && en.poison == sound && !en.skipped && !browned && outages <= 1 {
				return fmt.Errorf("the record %v/%d is sound and became a dead letter: %+v", tp, en.offset, en.letters[0])
			}
		}
	}
	return nil
}

func (w *world) weather() phase {
	if w.now.Before(w.down) {
		return phase{weather: unplugged}
	}
	for _, p := range w.phases {
		if !w.now.Before(p.from) && w.now.Before(p.to) {
			return p
		}
	}
	return phase{}
}

func (r *replica) begin() {
	w := r.w
	r.alive = true
	r.engine = New(Options{
		Ordering: w.order, Retry: w.retry, Window: w.window, Subscription: "s",
		DeadLetterFor: func(source string) string { return source + event.DeadLettersSuffix },
	}, rand.New(rand.NewPCG(w.rnd.Uint64(), 2)))
	r.engine.SetLimits(w.inFlight, w.rate)
	r.read = make(map[event.TopicPartition]int64)
	r.leaving = make(map[event.TopicPartition]bool)
	r.tries, r.writing = make(map[*Delivery]*try), make(map[*Delivery]bool)
}

// kill ends a replica without a word. What it has on its way may arrive all the same. Its partitions
// are given to others when the group has missed it; then it comes back.
func (w *world) kill(r *replica) {
	if !r.alive {
		return
	}
	w.say("replica %d dies", r.name)
	r.alive = false
	for _, tr := range r.tries {
		tr.r = nil
	}
	dead := r.engine
	w.after(10*time.Second, func() {
		if r.engine != dead {
			return
		}
		for _, tp := range w.tps {
			if w.owner[tp] == r {
				w.owner[tp] = nil
			}
		}
		r.begin()
		w.say("replica %d begins anew", r.name)
		w.rebalance(true)
	})
}

// rebalance gives partitions to living replicas, by chance.
func (w *world) rebalance(again bool) {
	for _, tp := range w.tps {
		old := w.owner[tp]
		if old != nil && (!old.alive || old.leaving[tp]) {
			continue // its death is not known yet, or it is going
		}
		if old != nil && again && w.rnd.IntN(2) == 0 {
			continue
		}
		to := w.replicas[w.rnd.IntN(len(w.replicas))]
		if !to.alive {
			continue
		}
		if old == nil {
			w.give(tp, to)
		} else {
			old.revoke(tp, func() { w.give(tp, to) })
		}
	}
}

func (w *world) give(tp event.TopicPartition, to *replica) {
	if !to.alive {
		w.owner[tp] = nil
		w.after(time.Second, func() {
			if w.owner[tp] == nil {
				w.give(tp, w.replicas[w.rnd.IntN(len(w.replicas))])
			}
		})
		return
	}
	c := w.commits[tp]
	w.say("%v goes to replica %d at %d %s", tp, to.name, c.Offset, c.Metadata)
	w.owner[tp] = to
	to.engine.Assign(tp, c, w.now)
	to.read[tp] = max(0, c.Offset)
	to.pump()
}

// revoke lets a partition go as a worker does.
func (r *replica) revoke(tp event.TopicPartition, then func()) {
	w := r.w
	e := r.engine
	w.say("%v is taken from replica %d", tp, r.name)
	r.leaving[tp] = true
	e.Seal(tp)
	until := w.now.Add(5 * time.Second)
	var look func()
	look = func() {
		if r.engine != e || !r.alive {
			return // it died meanwhile
		}
		if e.InFlight(tp) > 0 && w.now.Before(until) {
			w.after(100*time.Millisecond, look)
			return
		}
		var cut []*try
		for _, tr := range r.tries {
			if tr.en.tp == tp {
				cut = append(cut, tr)
			}
		}
		slices.SortFunc(cut, func(a, b *try) int { return int(a.en.offset - b.en.offset) })
		for _, tr := range cut {
			w.say("the attempt of %v/%d is broken off", tp, tr.en.offset)
			tr.r = nil // it may arrive all the same
			delete(r.tries, tr.d)
			e.Cancel(tr.d)
		}
		r.commit(tp)
		e.Drop(tp)
		delete(r.leaving, tp)
		w.owner[tp] = nil
		then()
		r.pump()
	}
	look()
}

func (w *world) fetch() {
	for _, tp := range w.tps {
		r := w.owner[tp]
		if r == nil || !r.alive || r.leaving[tp] || r.engine.Resting(tp) || w.rnd.IntN(3) == 0 {
			continue
		}
		var batch []event.Record
		most := 1 + w.rnd.IntN(40)
		for _, en := range w.logs[tp] {
			if en.offset >= r.read[tp] && len(batch) < most {
				rec := event.Record{Topic: tp.Topic, Partition: tp.Partition, Offset: en.offset, Value: make([]byte, 10), Timestamp: w.start}
				if en.key != "" {
					rec.Key = []byte(en.key)
				}
				batch = append(batch, rec)
			}
		}
		if len(batch) > 0 {
			r.read[tp] = batch[len(batch)-1].Offset + 1
			r.engine.Offer(batch)
			r.pump()
		}
		r.checkWindow(tp, most)
	}
	every := 200 * time.Millisecond
	if w.now.Sub(w.start) > time.Hour { // days of nothing are not worth the time
		every = time.Duration(w.rnd.Int64N(int64(2 * time.Minute)))
	}
	w.after(every, w.fetch)
}

// checkWindow holds what a replica has of a partition against its bounds.
func (r *replica) checkWindow(tp event.TopicPartition, overshoot int) {
	p := r.engine.partitions[tp]
	if p == nil {
		return
	}
	if span := p.next - p.base(); span > r.w.window.Records+int64(overshoot*6) && len(p.records) > 1 && p.records[1].Record.Offset-p.base() < r.w.window.Records {
		r.w.wrong("the window of %v holds %d offsets", tp, span)
	}
	for _, d := range p.records {
		if d.state == inFlight && d.Record.Offset >= p.end() {
			r.w.wrong("%v/%d is beyond the window, and being attempted", tp, d.Record.Offset)
		}
	}
}

func (w *world) commit() {
	for _, tp := range w.tps {
		if r := w.owner[tp]; r != nil && r.alive && !r.leaving[tp] && w.rnd.IntN(10) > 0 {
			r.commit(tp)
		}
	}
	every := 200 * time.Millisecond
	if w.now.Sub(w.start) > time.Hour {
		every = time.Duration(w.rnd.Int64N(int64(time.Minute)))
	}
	w.after(every, w.commit)
}

func (r *replica) commit(tp event.TopicPartition) {
	w := r.w
	c, changed := r.engine.Progress(tp)
	if !changed {
		return
	}
	if len(c.Metadata) > 4000 {
		w.wrong("the metadata of a commit has %d bytes", len(c.Metadata))
	}
	done := make(map[int64]bool)
	for _, offset := range decodeProgress(c).decided {
		done[offset] = true
	}
	for _, en := range w.logs[tp] {
		if (en.offset < c.Offset || done[en.offset]) && !en.decided() {
			w.wrong("%v/%d is committed (%d %s) and neither accepted nor set aside", tp, en.offset, c.Offset, c.Metadata)
		}
		if en.offset < c.Offset || done[en.offset] {
			en.covered = true
		}
	}
	if old := w.commits[tp].Offset; c.Offset < old {
		w.wrong("the commit of %v goes back from %d to %d", tp, old, c.Offset)
	}
	w.commits[tp] = c
	r.engine.Committed(tp)
}

// pump starts what may start, and sees to it that it is woken for the rest.
func (r *replica) pump() {
	w, e := r.w, r.engine
	if !r.alive || w.failure != nil {
		return
	}
	for {
		d, ok := e.Next(w.now)
		if !ok {
			break
		}
		r.try(d)
	}
	for {
		d, ok := e.NextLetter(w.now)
		if !ok {
			break
		}
		l := e.Letter(d)
		r.writing[d] = true
		w.after(time.Duration(w.rnd.Int64N(int64(500*time.Millisecond))), func() {
			stored := w.rnd.Float64() < w.letterOK
			if stored { // even if the replica has died meanwhile
				en := w.find(l.Origin.TopicPartition, l.Origin.Offset)
				en.letters = append(en.letters, l)
				w.say("dead letter of %v/%d: %s, %d attempts", en.tp, en.offset, l.Reason, l.Attempts)
				w.allowed(en, l)
			}
			if !r.alive || r.engine != e {
				return
			}
			delete(r.writing, d)
			var err error
			if !stored {
				err = fmt.Errorf("not stored")
			}
			e.LetterDone(d, err, w.now)
			r.pump()
		})
	}
	if at := e.Wake(w.now); !at.IsZero() && !at.Equal(r.woken) {
		r.woken = at
		w.after(max(0, at.Sub(w.now)), func() {
			if r.engine == e {
				r.woken = time.Time{}
				r.pump()
			}
		})
	}
}

func (w *world) find(tp event.TopicPartition, offset int64) *entry {
	for _, en := range w.logs[tp] {
		if en.offset == offset {
			return en
		}
	}
	return nil
}

// allowed holds a dead letter against the rule: the endpoint must have accepted another record in an
// attempt that was begun after this one had failed.
func (w *world) allowed(en *entry, l event.DeadLetter) {
	for _, a := range w.accepts {
		if a.en != en && a.began.After(l.FirstAttempt) {
			return
		}
	}
	if l.Reason == event.ReasonSkipped {
		if !en.skipped {
			w.wrong("%v/%d was not skipped", en.tp, en.offset)
		}
		return
	}
	if l.Reason == event.ReasonGaveUp && w.retry.GiveUpAfter > 0 && (len(w.accepts) == 0 || w.now.Sub(w.accepts[len(w.accepts)-1].at) >= w.retry.GiveUpAfter) {
		return
	}
	w.wrong("%v/%d became a dead letter (%s) although nothing was accepted since it first failed", en.tp, en.offset, l.Reason)
}

func (r *replica) try(d *Delivery) {
	w := r.w
	en := w.find(event.TopicPartition{Topic: d.Record.Topic, Partition: d.Record.Partition}, d.Record.Offset)
	if len(r.tries) >= w.inFlight {
		w.wrong("more than %d attempts are in flight", w.inFlight)
	}
	if d.byItself && len(r.tries) > 0 {
		w.wrong("%v/%d is to be tried by itself, and %d others are in flight", en.tp, en.offset, len(r.tries))
	}
	if r.writing[d] {
		w.wrong("%v/%d is attempted while its dead letter is being written", en.tp, en.offset)
	}
	if en.covered {
		w.wrong("%v/%d is attempted although a commit said that it is decided", en.tp, en.offset)
	}
	// Whatever waits for this record has not been attempted before it was decided.
	for _, before := range w.logs[en.tp] {
		same := w.order == event.OrderByPartition || w.order == event.OrderByKey && before.key == en.key && en.key != ""
		if before.offset < en.offset && same && !before.decided() {
			w.wrong("%v/%d (%s) is attempted before %d is decided", en.tp, en.offset, en.key, before.offset)
		}
	}
	tr := &try{r: r, d: d, en: en, began: w.now}
	r.tries[d] = tr
	w.active[tr] = true
	en.open++
	took := time.Duration(1+w.rnd.Int64N(50)) * time.Millisecond
	p := w.weather()
	out := event.Outcome{Verdict: event.Delivered, Status: 200}
	answer := func(verdict event.Verdict, status int) {
		out = event.Outcome{Verdict: verdict, Status: status, Err: "no"}
	}
	reached := true
	switch {
	case p.weather == all500:
		answer(event.Failed, 500)
	case p.weather == all404:
		answer(event.Refused, 404)
	case p.weather == all503:
		answer(event.Unreachable, 503)
		out.RetryAfter = time.Duration(w.rnd.Int64N(int64(20 * time.Second)))
	case p.weather == unplugged:
		answer(event.Unreachable, 0)
		reached = false
	case p.weather == hangs:
		answer(event.Unreachable, 0)
		took, reached = w.timeout, false
	case p.weather == brownOut && w.rnd.Float64() < p.share:
		answer(event.Failed, 500)
	case p.weather == brownOut404 && w.rnd.Float64() < p.share:
		answer(event.Refused, 404)
	case en.poison == refused:
		answer(event.Refused, 400)
	case en.poison == failing:
		answer(event.Failed, 500)
	case en.poison == hanging:
		answer(event.Unreachable, 0)
		took, reached = w.timeout, false
	case en.poison == crashing:
		answer(event.Unreachable, 0)
		reached = false
		w.after(took, func() { w.crash(tr) })
	case p.weather == slow:
		took = time.Duration(w.rnd.Int64N(int64(w.timeout)))
	}
	tr.out = out
	w.say("replica %d attempts %v/%d %s (%d): %s", r.name, en.tp, en.offset, en.key, d.attempts, out.Verdict)
	w.after(took, func() {
		if reached {
			w.arrive(tr)
		} else {
			w.over(tr)
		}
	})
}

// arrive is the endpoint's answer.
func (w *world) arrive(tr *try) {
	if tr.over {
		return
	}
	tr.en.arrived++
	if tr.out.Verdict == event.Delivered {
		tr.en.accepted++
		w.accepts = append(w.accepts, acceptance{tr.began, w.now, tr.en})
	}
	w.over(tr)
}

// crash is the endpoint going down with all that it was answering.
func (w *world) crash(by *try) {
	if by.over {
		return
	}
	w.say("%v/%d crashes the endpoint", by.en.tp, by.en.offset)
	w.down = w.now.Add(time.Duration(w.rnd.Int64N(int64(10 * time.Second))))
	var all []*try
	for tr := range w.active {
		all = append(all, tr)
	}
	slices.SortFunc(all, func(a, b *try) int { return a.began.Compare(b.began)*1000 + int(a.en.offset-b.en.offset) })
	for _, tr := range all {
		tr.out = event.Outcome{Verdict: event.Unreachable, Err: "reset"}
		w.over(tr)
	}
}

func (w *world) over(tr *try) {
	if tr.over {
		return
	}
	tr.over = true
	delete(w.active, tr)
	tr.en.open--
	if r := tr.r; r != nil && r.alive {
		delete(r.tries, tr.d)
		r.engine.Done(tr.d, tr.out, w.now)
		r.pump()
	}
}
