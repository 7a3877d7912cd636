package main

import (
	"fmt"
	"io"
	"math"
	"slices"
)

// report prints the tables, and tells whether all that was measured is what it must be.
func (b *bench) report(w io.Writer) bool {
	all := true
	row := func(work, line, ours, ratio string, value, must, aim float64, less bool) {
		sign, reached := "≥", func(limit float64) bool { return value >= limit }
		if less {
			sign, reached = "≤", func(limit float64) bool { return value <= limit }
		}
		verdict := "aim"
		switch {
		case !reached(must):
			verdict, all = "**no**", false
		case !reached(aim):
			verdict = "must"
		}
		limit := func(v float64) string { return sign + " " + number(v) }
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", work, line, ours, ratio, limit(must), limit(aim), verdict)
	}
	fmt.Fprintf(w, "| Work | line | Postamt | ratio | must | aim | reached |\n|---|---|---|---|---|---|---|\n")
	for _, l := range []struct {
		name, work string
		must, aim  float64
	}{
		{"P1", "64 connections × 1 record: records/s", 0.48, 0.60},
		{"P2", "16 × 100 records: records/s", 0.50, 0.70},
		{"P3", "16 × 1,000 records: records/s", 0.65, 0.85},
	} {
		line, ours := b.loads[l.name+"line"], b.loads[l.name+"postamt"]
		if ours == nil {
			continue
		}
		r := ratios(ours.records, line.records)
		row(l.name+", "+l.work, spread(line.records), spread(ours.records), spread(r), median(r), l.must, l.aim, false)
		fmt.Fprintf(w, "| %s p50; p99, ms | %s; %s | %s; %s | | | | |\n", l.name, spread(line.p50), spread(line.p99), spread(ours.p50), spread(ours.p99))
		fmt.Fprintf(w, "| %s CPU s per million records | %s | %s | | | | |\n", l.name, spread(line.cpu), spread(ours.cpu))
	}
	if ours := b.loads["P4postamt"]; ours != nil {
		line := b.loads["P4line"]
		r := ratios(ours.p50, line.p50)
		row("P4, 1 connection × 1 record: p50, ms", spread(line.p50), spread(ours.p50), spread(r), median(r), 8, 5.6, true)
	}
	if ours := b.loads["P2postamt"]; ours != nil {
		row("P2, memory (peak RSS of the process), MiB", spread(b.loads["P2line"].peak), spread(ours.peak), "", median(ours.peak), 96, 64, true)
		fmt.Fprintf(w, "| P2, RssAnon at the end, MiB | %s | %s | | | | |\n", spread(b.loads["P2line"].anon), spread(ours.anon))
	}
	if rates := b.drains["json"]; rates != nil {
		row(fmt.Sprintf("C1, %s records by one session, json: records/s", number(float64(b.drain))), "", spread(rates), "", median(rates), 0.7e6, 1e6, false)
		fmt.Fprintf(w, "| C1, binary: records/s | | %s | | | | |\n", spread(b.drains["binary"]))
		fmt.Fprintf(w, "| C1, json: memory (peak RSS), MiB | | %s | | | | |\n", spread(b.drainMem))
	}
	b.reportDeliveries(w, row)
	if len(b.idleAt) > 0 {
		most := b.idleAt[len(b.idleAt)-1]
		idle := fmt.Sprintf("%s idle sessions and %s idle streams: ", number(float64(most.n)), number(float64(most.n)))
		row(idle+"memory (peak RSS), MiB", "", number(most.peak), "", most.peak, 512, 512, true)
		row(idle+"threads", "", number(most.threads), "", most.threads, 150, 150, true)
	}
	if len(b.subscribedAt) > 0 {
		most := b.subscribedAt[len(b.subscribedAt)-1]
		idle := number(float64(most.n)) + " idle subscriptions: "
		row(idle+"memory (peak RSS), MiB", "", number(most.peak), "", most.peak, 256, 256, true)
		row(idle+"threads", "", number(most.threads), "", most.threads, 100, 100, true)
		row(idle+"connections", "", number(most.sockets), "", most.sockets, 2500, 2500, true)
		row(idle+"processor, cores", "", number(most.cpu), "", most.cpu, 0.15, 0.15, true)
	}
	reportIdle(w, "Idle sessions, and as many streams", "pair", b.idleAt)
	reportIdle(w, "Idle subscriptions", "subscription", b.subscribedAt)
	return all
}

// reportDeliveries prints the rows of D1 to D4, each by row.
func (b *bench) reportDeliveries(w io.Writer, row func(work, line, ours, ratio string, value, must, aim float64, less bool)) {
	d := &b.delivered
	if d.atOnce != nil {
		r := ratios(d.atOnce, d.bare)
		row(fmt.Sprintf("D1, %d deliveries in flight, answered at once: deliveries/s", inFlight), spread(d.bare), spread(d.atOnce), spread(r), median(r), 0.6, 0.8, false)
		fmt.Fprintf(w, "| D1 CPU s per million deliveries | %s | %s | | | | |\n", spread(d.bareCPU), spread(d.cpu))
		fmt.Fprintf(w, "| D1, memory (peak RSS), MiB | | %s | | | | |\n", spread(d.peak))
	}
	if d.slow != nil {
		limit := inFlight / slowAnswer.Seconds()
		r := make([]float64, len(d.slow))
		for i, rate := range d.slow {
			r[i] = rate / limit
		}
		row(fmt.Sprintf("D2, %d in flight, answered after %v: deliveries/s, of what is possible", inFlight, slowAnswer), number(limit), spread(d.slow), spread(r), median(r), 0.95, 0.95, false)
	}
	if d.stuck != nil {
		r := ratios(d.stuck, d.atOnce)
		row(fmt.Sprintf("D3, as D1, one key in %s stuck: deliveries/s, of D1", number(stuckKeys)), spread(d.atOnce), spread(d.stuck), spread(r), median(r), 0.95, 0.95, false)
		fmt.Fprintf(w, "| D3 CPU s per million deliveries | | %s | | | | |\n", spread(d.stuckCPU))
	}
	if d.fromAck != nil {
		p50 := percentile(d.fromAck, 50)
		row("D4, 20 records/s: p50 from acknowledgement to delivery, ms", "", number(p50), "", p50, 10, 10, true)
		fmt.Fprintf(w, "| D4 p99; from the request, p50; p99, ms | | %s; %s; %s | | | | |\n", number(percentile(d.fromAck, 99)),
			number(percentile(d.fromRequest, 50)), number(percentile(d.fromRequest, 99)))
	}
}

// reportIdle prints what a consumer needs for idle ones of something, and for one more.
func reportIdle(w io.Writer, what, one string, all []idleSample) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(w, "\n| %s | RSS, MiB | peak, MiB | Go heap, MiB | threads | goroutines | handles | connections | CPU, cores | opened in, s |\n|---|---|---|---|---|---|---|---|---|---|\n", what)
	line := func(name string, s idleSample) {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s | %.3f | %s |\n", name, number(s.rss), number(s.peak), number(s.heap),
			number(s.threads), number(s.goroutines), number(s.handles), number(s.sockets), s.cpu, number(s.opening))
	}
	for _, s := range all {
		line(number(float64(s.n)), s)
	}
	if len(all) < 2 {
		return
	}
	few, most := all[len(all)-2], all[len(all)-1]
	if more := float64(most.n - few.n); more > 0 {
		fmt.Fprintf(w, "| each %s more, of %d to %d | %.3f | %.3f | %.3f | %.3f | %.1f | %.1f | %.1f | %.6f | |\n", one, few.n, most.n,
			(most.rss-few.rss)/more, (most.peak-few.peak)/more, (most.heap-few.heap)/more, (most.threads-few.threads)/more,
			(most.goroutines-few.goroutines)/more, (most.handles-few.handles)/more, (most.sockets-few.sockets)/more, (most.cpu-few.cpu)/more)
	}
}

// ratios are of the same round: what else the machine did then falls on both.
func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(v []float64) float64 {
	sorted := slices.Sorted(slices.Values(v))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// spread is the median, and the least and the most.
func spread(v []float64) string {
	if len(v) == 1 {
		return number(v[0])
	}
	return fmt.Sprintf("%s (%s–%s)", number(median(v)), number(slices.Min(v)), number(slices.Max(v)))
}

// number writes three digits that count, whole numbers as they are, and thousands with commas.
func number(v float64) string {
	if v < 100 && v != math.Trunc(v) {
		return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(max(v, 0.1))))), v)
	}
	text := fmt.Sprintf("%.0f", v)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
