//go:build stack

package stacktest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// sse is an open stream of Server-Sent Events.
type sse struct {
	events chan streamEvent
	close  context.CancelFunc
}

// streamEvent is one block of a stream: a record with its id, or an id alone.
type streamEvent struct {
	id, name string
	record   record
	err      error
}

// openStream opens a stream, as a browser's EventSource does again with lastID.
func openStream(t *testing.T, topic, query, lastID string) *sse {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", project.api+"/streams/"+topic+"?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := (&http.Client{Transport: checked}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || kind != "text/event-stream" {
		t.Fatalf("the stream of %s: status %d, %s; want 200, text/event-stream", topic, resp.StatusCode, kind)
	}
	s := &sse{make(chan streamEvent, 1), cancel}
	go func() {
		defer resp.Body.Close()
		defer close(s.events)
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		var e streamEvent
		for lines.Scan() {
			name, value, _ := strings.Cut(lines.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case lines.Text() == "" && e != streamEvent{}:
				select {
				case s.events <- e:
				case <-ctx.Done():
					return
				}
				e = streamEvent{}
			case name == "id":
				e.id = value
			case name == "event":
				e.name = value
			case name == "data":
				e.err = json.Unmarshal([]byte(value), &e.record)
			}
		}
	}()
	return s
}

// next is the next event with a record.
func (s *sse) next(t *testing.T) streamEvent {
	t.Helper()
	for {
		if e := s.nextBlock(t); e.record.Topic != "" {
			return e
		}
	}
}

// nextBlock is the next block of any kind that is no error.
func (s *sse) nextBlock(t *testing.T) streamEvent {
	t.Helper()
	select {
	case e, ok := <-s.events:
		if !ok {
			t.Fatal("the stream ended; want it to go on")
		}
		if e.err != nil || e.name != "" {
			t.Fatalf("the stream sent event %q, %+v, %v; want a record", e.name, e.record, e.err)
		}
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("the stream sent nothing for 30 s; want a record, or a comment every 15 s")
	}
	panic("not reached")
}

func TestStreamGivesWhatComesAfterItOpened(t *testing.T) {
	topic := newTopic(t, 1)
	produce(t, topic, "k", "before")
	s := openStream(t, topic, "from=latest&format=text", "")
	if first := s.nextBlock(t); first.id == "" || first.record.Topic != "" {
		t.Errorf("the first block is %+v; want an id alone", first)
	}
	produce(t, topic, "k", "after")
	begun := time.Now()
	e := s.next(t)
	if got := e.record; got.Value != "after" || got.Offset != 1 {
		t.Errorf("the stream gave %+v; want the value after at offset 1", got)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the record came %v after it was stored; want it at once", took)
	}
}

func TestStreamReconnectsWithoutLossOrRepetition(t *testing.T) {
	const n = 200
	topic := newTopic(t, 3)
	s := openStream(t, topic, "from=latest&format=text", "")
	lastID := s.nextBlock(t).id
	go func() {
		for i := range n {
			_, _ = request("POST", fmt.Sprintf("/topics/%s/records?key=%d", topic, i), fmt.Sprint(i))
		}
	}()
	var got, want []int
	for i := range n {
		if i%17 == 0 {
			s.close()
			s = openStream(t, topic, "from=latest&format=text", lastID)
		}
		e := s.next(t)
		lastID = e.id
		var number int
		if _, err := fmt.Sscan(e.record.Value.(string), &number); err != nil {
			t.Fatal(err)
		}
		got, want = append(got, number), append(want, i)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("over %d connections the stream gave %v; want each of 0 to %d once", n/17+1, got, n-1)
	}
}
