package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	_ "embed"
)

// load is so many connections, each of which sends so many records a request, again and again.
type load struct {
	name                 string
	connections, records int
}

var loads = []load{{"P1", 64, 1}, {"P2", 16, 100}, {"P3", 16, 1000}, {"P4", 1, 1}}

//go:embed load.lua
var script []byte

const contentType = "application/vnd.kafka.json.v2+json"

// valueBytes is the size of each record's value.
const valueBytes = 200

// requestBody is a produce request of n records, each with a value of valueBytes.
func requestBody(n, first int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"records":[`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`{"value":`)
		b.Write(recordValue(first + i))
		b.WriteByte('}')
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

// recordValue is a value of valueBytes.
func recordValue(i int) []byte {
	value := fmt.Appendf(nil, `{"code":"V-%08d","amount":49.95,"currency":"EUR","store":{"id":%d,"city":"Köln"},"items":[{"sku":"4006381333931","qty":1}],"sold_at":"2026-01-02T03:04:05Z","note":"`, i, i%100)
	return append(append(value, strings.Repeat("x", valueBytes-len(value)-2)...), `"}`...)
}

// load measures one row of one side, with a process of its own, and adds to the samples.
func (b *bench) load(ctx context.Context, l load, side string) error {
	into := b.loads[l.name+side]
	if into == nil {
		into = &samples{}
		b.loads[l.name+side] = into
	}
	role := side
	if side == "postamt" {
		role = "producer"
	}
	p, err := b.startSide(ctx, role)
	if err != nil {
		return err
	}
	defer p.stop()
	if _, err := b.wrk(ctx, p, l.connections, l.records, b.warmUp.Seconds()); err != nil {
		return err
	}
	cpu := p.cpu()
	before := 0.0
	if role == "producer" {
		if before, err = p.counter(ctx, "postamt_produce_records_total"); err != nil {
			return err
		}
	}
	got, err := b.wrk(ctx, p, l.connections, l.records, b.duration.Seconds())
	if err != nil {
		return err
	}
	records := got.Requests * float64(l.records)
	into.records = append(into.records, records/got.Seconds)
	into.p50, into.p99 = append(into.p50, got.P50/1000), append(into.p99, got.P99/1000)
	into.cpu = append(into.cpu, (p.cpu()-cpu)/records*1e6)
	into.peak, into.anon = append(into.peak, p.status("VmHWM")), append(into.anon, p.status("RssAnon"))
	if role != "producer" {
		return nil
	}
	// Each answer was a 200; that no record in one had an error, only the metrics say. What
	// was in flight when the load ended may be stored besides, or not.
	all, err := p.counter(ctx, "postamt_produce_records_total")
	if err != nil {
		return err
	}
	ok, err := p.counter(ctx, `postamt_produce_records_total{result="stored"`)
	switch {
	case err != nil:
		return err
	case all-before < records:
		return fmt.Errorf("%.0f records were answered and %.0f are counted", records, all-before)
	case all-ok > float64(l.connections*l.records)*2:
		return fmt.Errorf("%.0f records failed", all-ok)
	}
	return nil
}

// wrkResult is what load.lua prints; the percentiles are in microseconds.
type wrkResult struct {
	Requests, Seconds, P50, P99, Errors float64
}

// wrk sends requests of n records for some seconds. An answer other than 200 is an error.
func (b *bench) wrk(ctx context.Context, p *process, connections, n int, seconds float64) (r wrkResult, err error) {
	lua, body := filepath.Join(b.dir, "load.lua"), filepath.Join(b.dir, "body.json")
	if err := os.WriteFile(lua, script, 0o600); err != nil {
		return r, err
	}
	if err := os.WriteFile(body, requestBody(n, 0), 0o600); err != nil {
		return r, err
	}
	cmd := exec.CommandContext(ctx, "wrk", "-t1", "-c"+strconv.Itoa(connections),
		fmt.Sprintf("-d%.0fs", max(1, seconds)), "--timeout", "30s", "-s", lua, p.http+"/topics/bench.load")
	cmd.Env = append(os.Environ(), "BODY="+body, "CONTENT_TYPE="+contentType)
	out, err := cmd.Output()
	if err != nil {
		return r, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	_, text, _ := bytes.Cut(out, []byte("RESULT "))
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("wrk: %w\n%s", err, out)
	}
	if r.Errors > 0 || r.Requests == 0 {
		return r, fmt.Errorf("%.0f requests failed of %.0f", r.Errors, r.Requests)
	}
	return r, nil
}

// fill writes the records that C1 reads.
func (b *bench) fill(ctx context.Context) error {
	p, err := b.startSide(ctx, "producer")
	if err != nil {
		return err
	}
	defer p.stop()
	for at := 0; at < b.drain; at += 1000 {
		answer, err := send(ctx, http.MethodPost, p.http+"/topics/bench.drain", contentType, requestBody(min(1000, b.drain-at), at))
		if err != nil {
			return err
		}
		if bytes.Contains(answer, []byte(`"partition":null`)) {
			return fmt.Errorf("a record was not stored: %s", answer)
		}
	}
	return nil
}

func get(ctx context.Context, url string) ([]byte, error) {
	return send(ctx, http.MethodGet, url, "", nil)
}

// send gives the body of a 2xx answer.
func send(ctx context.Context, method, url, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
	return answer, err
}
