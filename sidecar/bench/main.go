// Command bench measures Postamt on a real broker of its own and prints one Markdown table.
// scripts/bench fetches what it needs and runs it.
//
// Everything that is measured is a process of its own on this machine: Kafka, one `postamt
// producer` or `postamt consumer` with default settings, the line, and the load generator.
// Rounds are interleaved, so that what else the machine does falls on both sides.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "line":
			serveLine()
		case "receiver":
			serveReceiver()
		case "bare":
			if err := postBare(); err != nil {
				fmt.Fprintln(os.Stderr, "bench bare:", err)
				os.Exit(1)
			}
			return
		}
	}
	b := &bench{}
	flag.StringVar(&b.postamt, "postamt", "", "the binary that is measured")
	flag.StringVar(&b.jars, "kafka", "", "the folder with Kafka's jars")
	flag.StringVar(&b.dir, "dir", "", "a folder for what is written meanwhile, Kafka's data among it")
	rows := flag.String("rows", "P1,P2,P3,P4,C1,D1,D2,D3,D4,idle,subscriptions", "what to measure")
	flag.IntVar(&b.rounds, "rounds", 5, "how often")
	flag.DurationVar(&b.duration, "duration", 4*time.Second, "how long one measurement of P1 to P4 is")
	flag.DurationVar(&b.warmUp, "warm-up", time.Second, "load before each measurement of P1 to P4 that does not count")
	flag.IntVar(&b.drain, "drain", 500_000, "records of C1")
	flag.IntVar(&b.records, "deliveries", 200_000, "records of D1 to D3")
	flag.IntVar(&b.lowLoad, "low-load", 400, "records of D4")
	flag.IntVar(&b.idle, "idle", 1000, "idle sessions and streams")
	flag.IntVar(&b.subscriptions, "subscriptions", 500, "idle subscriptions")
	flag.Parse()
	b.rows = strings.Split(*rows, ",")

	// Children are told to end with the thread that started them: this one, which stays.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	began := time.Now()
	err := b.run(ctx)
	b.stopAll()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	progress("took %v", time.Since(began).Round(time.Second))
	if !b.report(os.Stdout) {
		os.Exit(3)
	}
}

// bench is one run.
type bench struct {
	postamt, jars, dir string
	rows               []string
	rounds             int
	duration, warmUp   time.Duration
	drain, idle        int
	records, lowLoad   int // of D1 to D3, of D4
	subscriptions      int

	started   []*process
	servers   string // Kafka's address
	receiver  *process
	secretKey string
	sample    *sample // what the bare client sends

	loads    map[string]*samples // by row and side
	drains   map[string][]float64
	drainMem []float64
	idleAt   []idleSample

	delivered    delivered
	subscribedAt []idleSample
}

// samples are the measurements of one row and side, one for each round.
type samples struct {
	records, p50, p99, cpu, peak, anon []float64
}

func (b *bench) has(row string) bool { return slices.Contains(b.rows, row) }

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "    "+format+"\n", args...)
}

func (b *bench) run(ctx context.Context) error {
	progress("Kafka")
	if err := b.startKafka(ctx); err != nil {
		return err
	}
	if err := b.makeTopics(ctx); err != nil {
		return err
	}
	if b.has("C1") {
		progress("%d records for C1", b.drain)
		if err := b.fill(ctx); err != nil {
			return err
		}
	}
	if b.delivers() || b.has("D4") || b.has("subscriptions") {
		if err := b.startReceiver(ctx); err != nil {
			return err
		}
	}
	// Kafka's code is compiled while it runs: its first thousands of requests take longer.
	progress("warm-up")
	b.forget()
	for range 2 {
		for _, l := range loads {
			if b.has(l.name) {
				if err := b.load(ctx, l, "postamt"); err != nil {
					return fmt.Errorf("warm-up, %s: %w", l.name, err)
				}
			}
		}
	}
	if b.has("C1") {
		if err := b.drainAll(ctx, -1); err != nil {
			return fmt.Errorf("warm-up, C1: %w", err)
		}
	}
	if b.delivers() {
		if err := b.warmUpDeliveries(ctx); err != nil {
			return fmt.Errorf("warm-up, deliveries: %w", err)
		}
	}
	b.forget()
	for round := range b.rounds {
		for _, l := range loads {
			if !b.has(l.name) {
				continue
			}
			sides := []string{"line", "postamt"}
			if round%2 == 1 {
				slices.Reverse(sides)
			}
			for _, side := range sides {
				if err := b.load(ctx, l, side); err != nil {
					return fmt.Errorf("%s of %s: %w", l.name, side, err)
				}
			}
			line, ours := b.loads[l.name+"line"], b.loads[l.name+"postamt"]
			progress("round %d  %s  line %.0f records/s, p50 %.3f ms  postamt %.0f records/s, p50 %.3f ms", round+1, l.name,
				last(line.records), last(line.p50), last(ours.records), last(ours.p50))
		}
		if b.has("C1") {
			if err := b.drainAll(ctx, round); err != nil {
				return fmt.Errorf("C1: %w", err)
			}
		}
		if b.delivers() {
			if err := b.deliverRound(ctx, round); err != nil {
				return fmt.Errorf("deliveries: %w", err)
			}
		}
	}
	if b.has("D4") {
		if err := b.deliverLowLoad(ctx); err != nil {
			return fmt.Errorf("D4: %w", err)
		}
	}
	if b.has("idle") {
		if err := b.measureIdle(ctx); err != nil {
			return err
		}
	}
	if b.has("subscriptions") {
		return b.measureSubscriptions(ctx)
	}
	return nil
}

// forget begins the measurements anew.
func (b *bench) forget() {
	b.loads, b.drains, b.drainMem = make(map[string]*samples), make(map[string][]float64), nil
}

func last(v []float64) float64 { return v[len(v)-1] }
