package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"time"
)

// Of the topic that D1 to D3 deliver. A partition must have fewer records than a window: one that
// is stuck would stop what is read of it.
const (
	deliveryTopic      = "bench.deliveries"
	deliveryPartitions = 16
	deliveryKeys       = 10_000
	stuckKeys          = 1000 // one in so many is stuck
	lowLoadTopic       = "bench.low"
	lowLoadInterval    = 50 * time.Millisecond
	slowFor            = 5 * time.Second // what is measured of D2
	// A measurement that gets nowhere for so long has failed.
	patience = 30 * time.Second
)

// delivered are the measurements of D1 to D4, one for each round but those of D4.
type delivered struct {
	bare, atOnce, slow, stuck []float64 // records a second
	bareCPU, cpu, stuckCPU    []float64 // seconds for a million records
	peak                      []float64 // MiB
	fromAck, fromRequest      []float64 // of D4, for each record, in ms
}

// deliveryBody is a produce request of n records with keys.
func deliveryBody(n, first int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"records":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"key":%q,"value":%s}`, deliveryKey(first+i), recordValue(first+i))
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

func deliveryKey(i int) string {
	if i %= deliveryKeys; i%stuckKeys == 0 {
		return fmt.Sprintf("%s-%05d", stuckKey, i)
	}
	return fmt.Sprintf("key-%05d", i)
}

// stuckRecords is how many of n records have keys that are stuck.
func stuckRecords(n int) int { return (n + stuckKeys - 1) / stuckKeys }

// startReceiver starts the endpoint of all deliveries, and writes what D1 to D3 deliver.
func (b *bench) startReceiver(ctx context.Context) (err error) {
	if b.receiver, err = b.startSide(ctx, "receiver"); err != nil {
		return err
	}
	if !b.delivers() {
		return nil
	}
	progress("%d records for D1 to D3", b.records)
	p, err := b.startSide(ctx, "producer")
	if err != nil {
		return err
	}
	defer p.stop()
	for at := 0; at < b.records; at += 1000 {
		answer, err := send(ctx, http.MethodPost, p.http+"/topics/"+deliveryTopic, contentType, deliveryBody(min(1000, b.records-at), at))
		if err != nil {
			return err
		}
		if bytes.Contains(answer, []byte(`"partition":null`)) {
			return fmt.Errorf("a record was not stored: %s", answer)
		}
	}
	return nil
}

// delivers tells whether a row is measured for which the topic is needed.
func (b *bench) delivers() bool { return b.has("D1") || b.has("D2") || b.has("D3") }

// startDeliverer starts a consumer that may deliver to this machine.
func (b *bench) startDeliverer(ctx context.Context) (*process, error) {
	if b.secretKey == "" {
		key := make([]byte, 32)
		_, _ = rand.Read(key)
		b.secretKey = base64.StdEncoding.EncodeToString(key)
	}
	return b.startSide(ctx, "consumer", "POSTAMT_SECRET_KEY="+b.secretKey, "WEBHOOK_ALLOW=127.0.0.0/8")
}

// subscribe makes a subscription.
func (b *bench) subscribe(ctx context.Context, p *process, name, topic, path, from string) error {
	settings := fmt.Sprintf(`{"topics":[%q],"url":%q,"from":%q,"max_in_flight":%d,"dead_letters":"bench.dead-letters"}`, topic, b.receiver.http+path, from, inFlight)
	return again(func() error {
		_, err := send(ctx, http.MethodPut, p.http+"/subscriptions/"+name, "application/json", []byte(settings))
		return err
	})
}

func unsubscribe(ctx context.Context, p *process, name string) error {
	return again(func() error {
		_, err := send(ctx, http.MethodDelete, p.http+"/subscriptions/"+name, "", nil)
		return err
	})
}

// received asks the receiver.
func (b *bench) received(ctx context.Context) (s receiverState, err error) {
	text, err := get(ctx, b.receiver.http+"/state")
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

func (b *bench) forgetReceived(ctx context.Context) error {
	_, err := send(ctx, http.MethodPost, b.receiver.http+"/forget", "", nil)
	return err
}

// receivedAll waits until the receiver has so many different records.
func (b *bench) receivedAll(ctx context.Context, n int) (receiverState, error) {
	moved, had := time.Now(), 0
	for {
		s, err := b.received(ctx)
		if err != nil || s.Distinct >= n {
			return s, err
		}
		if s.Distinct > had {
			moved, had = time.Now(), s.Distinct
		}
		if time.Since(moved) > patience {
			return s, fmt.Errorf("nothing is delivered any more; %d of %d records are", s.Distinct, n)
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return s, err
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// delivering runs a consumer with one subscription while it is looked at.
func (b *bench) delivering(ctx context.Context, name, topic, path, from string, look func(p *process) error) error {
	p, err := b.startDeliverer(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := b.forgetReceived(ctx); err != nil {
		return err
	}
	if err := b.subscribe(ctx, p, name, topic, path, from); err != nil {
		return err
	}
	return errors.Join(look(p), unsubscribe(ctx, p, name))
}

// deliveryRun is one measurement of deliverAll.
type deliveryRun struct {
	rate, cpu, peak float64 // deliveries a second, seconds for a million, MiB
	state           receiverState
}

// deliverAll measures how fast the records of the topic are delivered, from the first to the last
// that can be, and what that takes.
func (b *bench) deliverAll(ctx context.Context, name, path string, n int) (r deliveryRun, err error) {
	err = b.delivering(ctx, name, deliveryTopic, path, "earliest", func(p *process) error {
		before, others := p.cpu(), b.othersCPU()
		s, err := b.receivedAll(ctx, n)
		if err != nil {
			return errors.Join(err, p.failed("may have failed"))
		}
		r = deliveryRun{float64(s.Distinct-1) / (float64(s.Last-s.First) / 1e9), (p.cpu() - before) / float64(n) * 1e6, p.status("VmHWM"), s}
		progress("%s: %.0f deliveries/s, CPU s/million: %.1f, and %.1f of Kafka and the receiver", name, r.rate, r.cpu, (b.othersCPU()-others)/float64(n)*1e6)
		if s.Accepted != s.Distinct {
			return fmt.Errorf("%d records were delivered twice", s.Accepted-s.Distinct)
		}
		return nil
	})
	return r, err
}

// warmUpDeliveries delivers all once, and takes the sample that the bare client sends.
func (b *bench) warmUpDeliveries(ctx context.Context) error {
	r, err := b.deliverAll(ctx, "bench-warm-up", pathAtOnce, b.records)
	if err != nil {
		return err
	}
	b.sample = r.state.Sample
	if len(b.sample.Header["Webhook-Signature"]) == 0 {
		return fmt.Errorf("a delivery is not signed: %v", b.sample.Header)
	}
	return nil
}

// deliverRound measures D1 to D3 once.
func (b *bench) deliverRound(ctx context.Context, round int) error {
	d := &b.delivered
	steps := []func() error{
		func() error { return b.bareOnce(ctx) },
		func() error {
			r, err := b.deliverAll(ctx, fmt.Sprintf("bench-at-once-%d", round), pathAtOnce, b.records)
			d.atOnce, d.cpu, d.peak = append(d.atOnce, r.rate), append(d.cpu, r.cpu), append(d.peak, r.peak)
			return err
		},
	}
	if b.has("D3") {
		steps = append(steps, func() error {
			r, err := b.deliverAll(ctx, fmt.Sprintf("bench-stuck-%d", round), pathStuck, b.records-stuckRecords(b.records))
			d.stuck, d.stuckCPU = append(d.stuck, r.rate), append(d.stuckCPU, r.cpu)
			if err == nil && r.state.Refused == 0 {
				err = errors.New("no record was stuck")
			}
			return err
		})
	}
	if round%2 == 1 {
		slices.Reverse(steps)
	}
	if !b.has("D1") && !b.has("D3") {
		steps = nil
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	if steps != nil {
		progress("round %d  D1  bare %.0f deliveries/s, %.1f s CPU/million  postamt %.0f, %.1f", round+1, last(d.bare), last(d.bareCPU), last(d.atOnce), last(d.cpu))
	}
	if b.has("D3") {
		progress("round %d  D3  %.0f deliveries/s, %.1f s CPU/million", round+1, last(d.stuck), last(d.stuckCPU))
	}
	if !b.has("D2") {
		return nil
	}
	if err := b.deliverSlowly(ctx, fmt.Sprintf("bench-slow-%d", round)); err != nil {
		return err
	}
	progress("round %d  D2  %.0f deliveries/s", round+1, last(d.slow))
	return nil
}

// deliverSlowly measures D2, of as many records as there are in slowFor.
func (b *bench) deliverSlowly(ctx context.Context, name string) error {
	return b.delivering(ctx, name, deliveryTopic, pathSlow, "earliest", func(*process) error {
		const underWay = 10 * inFlight
		from, err := b.receivedAll(ctx, underWay)
		if err != nil {
			return err
		}
		if err := wait(ctx, slowFor); err != nil {
			return err
		}
		to, err := b.received(ctx)
		if err == nil && to.Distinct >= b.records {
			err = fmt.Errorf("%d records are too few: all are delivered", b.records)
		}
		b.delivered.slow = append(b.delivered.slow, float64(to.Distinct-from.Distinct)/(float64(to.Now-from.Now)/1e9))
		return err
	})
}

// othersCPU is the processor time of Kafka and the receiver, in seconds.
func (b *bench) othersCPU() float64 { return b.started[0].cpu() + b.receiver.cpu() }

// bareOnce measures the bare client.
func (b *bench) bareOnce(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	request, err := json.Marshal(map[string]any{"URL": b.receiver.http + pathAtOnce, "Times": b.records, "Header": b.sample.Header, "Body": b.sample.Body})
	if err != nil {
		return err
	}
	others := b.othersCPU()
	cmd := exec.CommandContext(ctx, self, "bare")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("bare client: %w", err)
	}
	var result bareResult
	if err := json.Unmarshal(out, &result); err != nil {
		return err
	}
	used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	b.delivered.bare = append(b.delivered.bare, float64(b.records)/result.Seconds)
	b.delivered.bareCPU = append(b.delivered.bareCPU, used.Seconds()/float64(b.records)*1e6)
	progress("bare: %.0f deliveries/s, CPU s/million: %.1f, and %.1f of Kafka and the receiver", last(b.delivered.bare), last(b.delivered.bareCPU), (b.othersCPU()-others)/float64(b.records)*1e6)
	return nil
}

// deliverLowLoad measures D4: records that are produced one after the other, with time between.
func (b *bench) deliverLowLoad(ctx context.Context) error {
	producer, err := b.startSide(ctx, "producer")
	if err != nil {
		return err
	}
	defer producer.stop()
	return b.delivering(ctx, "bench-low", lowLoadTopic, pathStamp, "latest", func(*process) error {
		const before = 20 // records that do not count: until connections are there, and all has joined
		asked, acknowledged := make(map[string]int64), make(map[string]int64)
		for i := range before + b.lowLoad {
			key := fmt.Sprintf("%d", i)
			from := time.Now()
			if _, err := send(ctx, http.MethodPost, producer.http+"/topics/"+lowLoadTopic+"/records?key="+key, "application/json", recordValue(i)); err != nil {
				return err
			}
			if i >= before {
				asked[key], acknowledged[key] = from.UnixNano(), time.Now().UnixNano()
			} else if _, err := b.receivedAll(ctx, i+1); err != nil {
				return err
			}
			if err := wait(ctx, lowLoadInterval-time.Since(from)); err != nil {
				return err
			}
		}
		s, err := b.receivedAll(ctx, before+b.lowLoad)
		if err != nil {
			return err
		}
		for key, at := range acknowledged {
			got := s.Stamps[key]
			if got == 0 {
				return fmt.Errorf("the record with key %s was not delivered", key)
			}
			b.delivered.fromAck = append(b.delivered.fromAck, float64(got-at)/1e6)
			b.delivered.fromRequest = append(b.delivered.fromRequest, float64(got-asked[key])/1e6)
		}
		progress("D4  p50 %.2f ms, p99 %.2f ms from the acknowledgement", percentile(b.delivered.fromAck, 50), percentile(b.delivered.fromAck, 99))
		return nil
	})
}

// percentile is the value below or at which p of a hundred are.
func percentile(v []float64, p int) float64 {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}
