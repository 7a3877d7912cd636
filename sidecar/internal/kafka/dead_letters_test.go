package kafka_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

func letter(r event.Record) event.DeadLetter {
	at := time.UnixMilli(1_700_000_000_123)
	r.Topic, r.Partition, r.Offset, r.Timestamp = "a", 2, 41, at
	return event.DeadLetter{
		Record: &r, Origin: event.OriginOf(&r), Topic: "a.dead-letters", Subscription: "webshop",
		Reason: event.ReasonExhausted, Last: event.Outcome{Status: 500, Err: "no"}, Attempts: 8,
		FirstAttempt: at.Add(time.Second), LastAttempt: at.Add(time.Hour),
	}
}

// sameLetter compares all that a letter keeps.
func sameLetter(t *testing.T, what string, got, want event.DeadLetter) {
	t.Helper()
	for _, l := range []*event.DeadLetter{&got, &want} {
		r := *l.Record // its place and time are the letter's own
		r.Topic, r.Partition, r.Offset, r.Timestamp = "", 0, 0, time.Time{}
		l.Record = &r
		for _, at := range []*time.Time{&l.Origin.Timestamp, &l.FirstAttempt, &l.LastAttempt} {
			if !at.IsZero() {
				*at = at.UTC()
			}
		}
	}
	if !reflect.DeepEqual(*got.Record, *want.Record) {
		t.Errorf("%s: the record is %+v; want %+v", what, *got.Record, *want.Record)
	}
	if got.Record, want.Record = nil, nil; !reflect.DeepEqual(got, want) {
		t.Errorf("%s: the letter is %+v; want %+v", what, got, want)
	}
}

func TestDeadLettersKeepWhatTheRecordWas(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(3, "a.dead-letters"))
	p, _ := producerFor(t, cluster.ListenAddrs(), 5*time.Second)
	w := kafka.NewDeadLetterWriter(p, kafka.NewCluster(clientFor(t, cluster)))
	none := letter(event.Record{Key: []byte("never tried")})
	none.Reason, none.Last, none.Attempts, none.FirstAttempt, none.LastAttempt = event.ReasonFilter, event.Outcome{}, 0, time.Time{}, time.Time{}
	letters := map[string]event.DeadLetter{
		"all":   letter(event.Record{Key: []byte("k"), Value: []byte("v"), Headers: []event.Header{{Key: "h", Value: []byte("1")}, {Key: "h"}, {Key: "postamt-other", Value: []byte{}}}}),
		"null":  letter(event.Record{}),
		"empty": letter(event.Record{Key: []byte{}, Value: []byte{}}),
		"never": none,
	}
	start := time.Now().Truncate(time.Millisecond)
	for name, l := range letters {
		l.Subscription = name
		if letters[name] = l; w.Write(t.Context(), l) != nil {
			t.Fatal(w.Write(t.Context(), l))
		}
	}
	read := readAll(t, cluster, "a.dead-letters")
	for _, r := range read {
		rec := event.Record{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value, Timestamp: r.Timestamp}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, event.Header(h))
		}
		got, ok := kafka.DecodeDeadLetter(&rec)
		if !ok {
			t.Fatalf("%v is no letter", rec)
		}
		sameLetter(t, got.Subscription, got, letters[got.Subscription])
		delete(letters, got.Subscription)
		if got.Record.Offset != r.Offset || got.Record.Partition != r.Partition || r.Timestamp.Before(start) {
			t.Errorf("a letter at %d/%d of %v says it is at %d/%d", r.Partition, r.Offset, r.Timestamp, got.Record.Partition, got.Record.Offset)
		}
	}
	if len(read) != 4 || len(letters) != 0 {
		t.Errorf("%d letters were read, and not %v", len(read), slices.Collect(maps.Keys(letters)))
	}
	lost := letter(event.Record{})
	lost.Topic = "nowhere"
	wantCode(t, "a topic that there is not", w.Write(t.Context(), lost), event.NotFound, 40401)
}

func TestALetterThatFailsAgainHasOneSetOfHeaders(t *testing.T) {
	first := kafka.EncodeDeadLetter(new(letter(event.Record{Headers: []event.Header{{Key: "h", Value: []byte("1")}}})))
	var names []string
	for _, h := range first.Headers {
		names = append(names, h.Key+"="+string(h.Value))
	}
	if got, want := strings.Join(names, " "), "h=1 postamt-subscription=webshop postamt-source-topic=a postamt-source-partition=2 postamt-source-offset=41 "+
		"postamt-source-timestamp=1700000000123 postamt-reason=attempts_exhausted postamt-status=500 postamt-error=no postamt-attempts=8 "+
		"postamt-first-attempt=2023-11-14T22:13:21.123Z postamt-last-attempt=2023-11-14T23:13:20.123Z"; got != want {
		t.Errorf("the headers are\n%s; want\n%s", got, want)
	}
	again := letter(event.Record{})
	again.Record, again.Reason, again.Last = &first, event.ReasonRefused, event.Outcome{Err: strings.Repeat("ä", 200)}
	second := kafka.EncodeDeadLetter(&again)
	got, ok := kafka.DecodeDeadLetter(&second)
	if !ok || got.Reason != event.ReasonRefused || got.Last.Status != 0 || got.Last.Err != strings.Repeat("ä", 128) {
		t.Errorf("the second letter is %+v, %v", got, ok)
	}
	if len(got.Record.Headers) != 1 || got.Record.Headers[0].Key != "h" {
		t.Errorf("its record has the headers %v", got.Record.Headers)
	}
}

func TestWhatIsNoLetterIsSaidSo(t *testing.T) {
	whole := kafka.EncodeDeadLetter(new(letter(event.Record{})))
	if _, ok := kafka.DecodeDeadLetter(&whole); !ok {
		t.Fatal("a letter is one")
	}
	if _, ok := kafka.DecodeDeadLetter(&event.Record{Headers: []event.Header{{Key: "h"}}}); ok {
		t.Error("a record without a letter's headers is one")
	}
	optional := []string{"postamt-status", "postamt-error", "postamt-first-attempt", "postamt-last-attempt"}
	text := []string{"postamt-subscription", "postamt-source-topic", "postamt-reason", "postamt-error"}
	for i, h := range whole.Headers {
		with := func(values ...[]byte) event.Record {
			r := event.Record{Headers: slices.Delete(slices.Clone(whole.Headers), i, i+1)}
			for _, v := range values {
				r.Headers = append(r.Headers, event.Header{Key: h.Key, Value: v})
			}
			return r
		}
		for name, c := range map[string]struct {
			record event.Record
			want   bool
		}{
			"missing": {with(), slices.Contains(optional, h.Key)},
			"twice":   {with(h.Value, h.Value), false},
			"null":    {with(nil), false},
			"other":   {with([]byte("x")), slices.Contains(text, h.Key)},
			"too big": {with([]byte("99999999999999999999")), slices.Contains(text, h.Key)},
		} {
			if _, ok := kafka.DecodeDeadLetter(&c.record); ok != c.want {
				t.Errorf("%s %s: it is a letter: %v; want %v", h.Key, name, ok, c.want)
			}
		}
	}
}

func FuzzDecodeDeadLetter(f *testing.F) {
	f.Add("webshop", "a", "2", "41", "-1", "refused", "500", "no", "8", "2023-11-14T22:13:21.123Z")
	f.Fuzz(func(t *testing.T, sub, topic, partition, offset, at, reason, status, text, attempts, first string) {
		r := event.Record{Topic: "l"}
		for key, value := range map[string]string{
			"subscription": sub, "source-topic": topic, "source-partition": partition, "source-offset": offset, "source-timestamp": at,
			"reason": reason, "status": status, "error": text, "attempts": attempts, "first-attempt": first,
		} {
			r.Headers = append(r.Headers, event.Header{Key: "postamt-" + key, Value: []byte(value)})
		}
		l, ok := kafka.DecodeDeadLetter(&r)
		if !ok {
			return
		}
		once := kafka.EncodeDeadLetter(&l)
		again, ok := kafka.DecodeDeadLetter(&once)
		if !ok {
			t.Fatalf("%+v is written as %v, which is no letter", l, once.Headers)
		}
		if twice := kafka.EncodeDeadLetter(&again); !reflect.DeepEqual(once, twice) {
			t.Errorf("it is written as %v, then as %v", once.Headers, twice.Headers)
		}
	})
}

func TestBrowsingLettersGoesThroughAllOfThemInPages(t *testing.T) {
	cluster := clusterFor(t, kfake.SeedTopics(2, "a.dead-letters", "b.dead-letters"))
	client := clientFor(t, cluster)
	for i := range 40 {
		l := letter(event.Record{Value: fmt.Append(nil, i)})
		l.Subscription = []string{"mine", "other"}[i%2]
		rec := kafka.EncodeDeadLetter(&l)
		out := &kgo.Record{Topic: []string{"a", "b"}[i/2%2] + ".dead-letters", Partition: int32(i / 4 % 2), Value: rec.Value}
		for _, h := range rec.Headers {
			out.Headers = append(out.Headers, kgo.RecordHeader(h))
		}
		if err := client.ProduceSync(t.Context(), out, &kgo.Record{Topic: out.Topic, Partition: out.Partition, Value: []byte("no letter")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	// A log that ends with the mark of a transaction has an end, too.
	txn := clientFor(t, cluster, kgo.TransactionalID("t"))
	if err := txn.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := txn.ProduceSync(t.Context(), &kgo.Record{Topic: "a.dead-letters", Value: []byte("aborted")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := txn.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	c := kafka.NewCluster(client)
	topics := []string{"a.dead-letters", "b.dead-letters", "none.dead-letters"}
	seen := make(map[event.Place]bool)
	last := make(map[event.TopicPartition]int64)
	var next map[event.TopicPartition]int64
	pages := 0
	for more := true; more; more = next != nil {
		letters, after, err := c.BrowseDeadLetters(t.Context(), topics, func(l *event.DeadLetter) bool { return l.Subscription == "mine" }, next, 7)
		if err != nil || len(letters) > 7 {
			t.Fatalf("a page has %d letters, %v", len(letters), err)
		}
		for _, l := range letters {
			tp := event.TopicPartition{Topic: l.Place.Topic, Partition: l.Place.Partition}
			place := event.Place{Topic: tp.Topic, Partition: tp.Partition, Offset: l.Place.Offset}
			if l.Subscription != "mine" || seen[place] || l.Place.Offset < last[tp] || l.Place.Timestamp.IsZero() {
				t.Errorf("page %d has %+v of %s, seen %v", pages, l.Place, l.Subscription, seen[place])
			}
			seen[place], last[tp] = true, l.Place.Offset
		}
		next = after
		if pages++; pages > 10 {
			t.Fatal("it does not end")
		}
	}
	if len(seen) != 20 || pages < 3 {
		t.Errorf("%d letters in %d pages; want 20 in 3 or 4", len(seen), pages)
	}
	start := time.Now()
	if letters, next, err := c.BrowseDeadLetters(t.Context(), []string{"none.dead-letters"}, nil, nil, 7); len(letters) != 0 || next != nil || err != nil || time.Since(start) > 4*time.Second {
		t.Errorf("of no topic: %v, %v, %v", letters, next, err)
	}
}
