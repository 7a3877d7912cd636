package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// drainAll measures C1 once in each format, each with a consumer of its own.
func (b *bench) drainAll(ctx context.Context, round int) error {
	for _, format := range []string{"json", "binary"} {
		p, err := b.startSide(ctx, "consumer")
		if err != nil {
			return err
		}
		rate, err := b.drainOne(ctx, p, fmt.Sprintf("bench-%s-%d", format, round), format)
		if format == "json" {
			b.drainMem = append(b.drainMem, p.status("VmHWM"))
		}
		p.stop()
		if err != nil {
			return err
		}
		b.drains[format] = append(b.drains[format], rate)
		progress("round %d  C1  %s %.0f records/s", round+1, format, rate)
	}
	return nil
}

// drainOne reads all records by one session, from the first read of one that has joined its
// group, as fast as one client can that asks again when it has an answer; it gives records a
// second. It then commits, and asks Kafka whether all have been given.
func (b *bench) drainOne(ctx context.Context, p *process, group, format string) (float64, error) {
	session, err := newSession(ctx, p, group, format, "bench.drain")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	buf := make([]byte, 256<<10)
	for n := 0; n < b.drain; {
		got, err := readRecords(ctx, session, format, buf)
		if err != nil {
			return 0, err
		}
		if n += got; time.Since(began) > time.Minute {
			return 0, fmt.Errorf("%d of %d records in a minute", n, b.drain)
		}
	}
	rate := float64(b.drain) / time.Since(began).Seconds()
	if _, err := send(ctx, http.MethodPost, session+"/offsets", "", nil); err != nil {
		return 0, err
	}
	committed, err := get(ctx, session+"/offsets?topic=bench.drain&partition=0&topic=bench.drain&partition=1&topic=bench.drain&partition=2"+
		"&topic=bench.drain&partition=3&topic=bench.drain&partition=4&topic=bench.drain&partition=5")
	if err != nil {
		return 0, err
	}
	var answer struct {
		Offsets []struct{ Offset int }
	}
	if err := json.Unmarshal(committed, &answer); err != nil {
		return 0, err
	}
	sum := 0
	for _, o := range answer.Offsets {
		sum += o.Offset
	}
	if sum != b.drain {
		return 0, fmt.Errorf("%d records are committed, of %d", sum, b.drain)
	}
	return rate, nil
}

// newSession makes a session and waits until it has partitions; it returns its address.
func newSession(ctx context.Context, p *process, group, format, topic string) (string, error) {
	settings := fmt.Sprintf(`{"name":"bench","format":%q,"auto.offset.reset":"earliest","auto.commit.enable":"false"}`, format)
	if err := create(ctx, p.http+"/consumers/"+group, settings); err != nil {
		return "", err
	}
	session := p.http + "/consumers/" + group + "/instances/bench"
	if _, err := send(ctx, http.MethodPost, session+"/subscription", "application/vnd.kafka.v2+json", fmt.Appendf(nil, `{"topics":[%q]}`, topic)); err != nil {
		return "", err
	}
	for ctx.Err() == nil {
		assigned, err := get(ctx, session+"/assignments")
		if err != nil {
			return "", err
		}
		if bytes.Contains(assigned, []byte(`"partition":`)) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return session, ctx.Err()
}

// create makes a session.
func create(ctx context.Context, url, settings string) error {
	return again(func() error {
		_, err := send(ctx, http.MethodPost, url, "application/vnd.kafka.v2+json", []byte(settings))
		return err
	})
}

// again repeats what was answered with 503, as that answer asks for: a replica that has just
// started does not know the sessions of the others yet, and Kafka may be slow to answer.
func again(do func() error) error {
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		err := do()
		if err == nil || !strings.Contains(err.Error(), "503 Service Unavailable") || time.Since(began) > 20*time.Second {
			return err
		}
	}
}

// readRecords reads once and counts the records. Counting is all that it does with them, so
// that it takes little from what it measures.
func readRecords(ctx context.Context, session, format string, buf []byte) (n int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, session+"/records?timeout=10000", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept", "application/vnd.kafka."+format+".v2+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET …/records: %s", resp.Status)
	}
	mark := []byte(`{"topic":`)
	kept := 0
	for {
		more, err := resp.Body.Read(buf[kept:])
		n += bytes.Count(buf[:kept+more], mark)
		// A mark may lie across the end of the buffer; a whole one is counted already.
		tail := buf[:kept+more]
		tail = tail[max(0, len(tail)-len(mark)+1):]
		kept = copy(buf, tail)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
