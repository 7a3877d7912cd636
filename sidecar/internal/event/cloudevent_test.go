package event

import (
	"testing"
	"time"
)

func TestARecordAsACloudEvent(t *testing.T) {
	at := time.UnixMilli(1767323045678)
	plain := Record{Topic: "test.voucher.sold", Partition: 2, Offset: 7, Key: []byte("shop-1"), Timestamp: at}
	own := plain
	own.Headers = []Header{
		{Key: "ce_id", Value: []byte("first")}, {Key: "ce_id", Value: []byte("4711")}, {Key: "ce_source", Value: []byte("/till")},
		{Key: "ce_type", Value: []byte("sold\xff")}, {Key: "ce_subject", Value: []byte("s")}, {Key: "ce_time", Value: []byte("2026-01-02T03:04:05.5+01:00")},
	}
	// What is empty, null or no time is as if it were not there.
	empty := plain
	empty.Topic, empty.Key = "voucher", []byte{0xff}
	empty.Headers = []Header{{Key: "ce_id"}, {Key: "ce_type", Value: []byte{}}, {Key: "ce_time", Value: []byte("noon")}, {Key: "id", Value: []byte("x")}}

	type attributes struct {
		id, source, kind, subject string
		time                      time.Time
	}
	for name, c := range map[string]struct {
		record Record
		want   attributes
	}{
		"any record":     {plain, attributes{"test.voucher.sold/2/7/1767323045678", "/topics/test.voucher.sold", "voucher.sold", "shop-1", at}},
		"a CloudEvent":   {own, attributes{"4711", "/till", "sold\uFFFD", "s", time.Date(2026, 1, 2, 2, 4, 5, 5e8, time.UTC)}},
		"a spoiled one":  {empty, attributes{"voucher/2/7/1767323045678", "/topics/voucher", "voucher", "", at}},
		"an empty topic": {Record{Topic: "x.", Timestamp: at}, attributes{"x./0/0/1767323045678", "/topics/x.", "x.", "", at}},
	} {
		e := CloudEvent{&c.record, OriginOf(&c.record)}
		subject, _ := e.Subject()
		got := attributes{e.ID(), e.Source(), e.Type(), subject, e.Time()}
		if !got.time.Equal(c.want.time) {
			t.Errorf("%s: the time is %v; want %v", name, got.time, c.want.time)
		}
		got.time = c.want.time
		if got != c.want {
			t.Errorf("%s: %+v; want %+v", name, got, c.want)
		}
	}

	letter := plain
	letter.Topic, letter.Offset, letter.Timestamp = "test.voucher.sold.dead-letters", 99, at.Add(time.Hour)
	if got := (CloudEvent{&letter, OriginOf(&plain)}).ID(); got != "test.voucher.sold/2/7/1767323045678" {
		t.Errorf("the id of a dead letter is %q; want its source's", got)
	}
	if s, ok := (CloudEvent{&Record{}, Origin{}}).Subject(); ok {
		t.Errorf("without a key the subject is %q", s)
	}
	if s, ok := (CloudEvent{&Record{Key: []byte{}}, Origin{}}).Subject(); !ok || s != "" {
		t.Errorf("of an empty key the subject is %q, %v", s, ok)
	}
}
