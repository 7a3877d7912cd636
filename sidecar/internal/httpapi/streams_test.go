package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

const example = "type == 'voucher.sold' && data.amount > 50"

// sold makes the topic test.voucher.sold have records of these values, in one partition.
func (s *service) sold(values ...string) {
	s.t.Helper()
	for _, v := range values {
		s.do("POST", "/topics/test.voucher.sold/records?key=k&timestamp=1767323045678", v).want(s.t, "a record", 200, "")
	}
}

func TestAStreamWithAFilter(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"STREAM_HEARTBEAT": "100ms"})
	s.topic("test.voucher.sold", 1)
	s.sold(`{"amount":50}`, `{"amount":50.01}`, `{"price":70}`, "not json", `{"amount":"60"}`, `{"amount":99}`, `{"amount":7}`)
	st := s.stream("/streams/test.voucher.sold?from=earliest&filter=" + url.QueryEscape(example))
	defer st.close()
	for _, offset := range []int{1, 5} {
		if e := st.event(); !strings.Contains(e["data"], fmt.Sprintf(`"offset":%d,`, offset)) {
			t.Errorf("the stream gives %v; want offset %d", e, offset)
		}
	}
	metrics := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return strings.Contains(s.metricsText(), want) })
	}
	metrics(`postamt_stream_filtered_records_total{reason="no",topic="test.voucher.sold"} 2`)
	metrics(`postamt_stream_filtered_records_total{reason="missing",topic="test.voucher.sold"} 2`)
	metrics(`postamt_stream_filtered_records_total{reason="failed",topic="test.voucher.sold"} 1`)

	// Records that do not match move the cursor: it goes on behind the last of them, without an
	// event having been sent since.
	var cursor, comment string
	eventually(t, "a heartbeat tells of the records that could not be decided on", func() bool {
		b := st.block()
		cursor, comment = b["id"], b[""]
		return b["data"] == "" && comment != ""
	})
	if want := "filter: 2 records lack what it asks for, 1 failed; partition 0, offset 4: the filter uses a value as another type than it has in this record"; comment != want {
		t.Errorf("the comment is %q; want %q", comment, want)
	}
	s.sold("1", "2", "3")
	metrics(`postamt_stream_filtered_records_total{reason="missing",topic="test.voucher.sold"} 5`)
	before := cursor
	// The first heartbeats may be of a moment when some of the three had not come yet.
	for all := time.Now(); cursor == before || time.Since(all) < time.Second; {
		cursor = st.block()["id"]
	}
	again := s.stream("/streams/test.voucher.sold", "Last-Event-ID: "+cursor)
	defer again.close()
	s.sold(`{"amount":51}`)
	if e := again.event(); !strings.Contains(e["data"], `"offset":10,`) {
		t.Errorf("without the filter, from the cursor of a heartbeat: %v; want offset 10", e)
	}
	if e := st.event(); !strings.Contains(e["data"], `"offset":10,`) {
		t.Errorf("the filter goes on with %v; want offset 10", e)
	}

	lines := s.stream("/streams/test.voucher.sold?from=earliest&filter="+url.QueryEscape(example), "Accept: application/x-ndjson")
	defer lines.close()
	var offsets []int64
	var missing, failed int
	for (len(offsets) < 3 || missing+failed < 6) && lines.lines.Scan() {
		var line struct {
			Offset  int64
			Value   json.RawMessage
			Cursor  string
			Missing int `json:"filter_missing"`
			Failed  int `json:"filter_failed"`
		}
		if err := json.Unmarshal(lines.lines.Bytes(), &line); err != nil || line.Cursor == "" && line.Value == nil {
			t.Fatalf("%q: %v", lines.lines.Text(), err)
		}
		if line.Value != nil {
			offsets = append(offsets, line.Offset)
		}
		missing, failed = missing+line.Missing, failed+line.Failed
	}
	if !slices.Equal(offsets, []int64{1, 5, 10}) || missing != 5 || failed != 1 {
		t.Errorf("the lines have the offsets %v, %d missing, %d failed", offsets, missing, failed)
	}
}

// Filters that cost as much as they may leave processor time for everything else, and end
// with their clients.
func TestCostlyFiltersLeaveTheOthersTheirTime(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"STREAM_HEARTBEAT": "200ms"})
	list := "[" + strings.TrimSuffix(strings.Repeat("1,", 3000), ",") + "]"
	for range 20 {
		s.do("POST", "/topics/b/records", `{"list":`+list+`}`).want(t, "a record", 200, "")
	}
	costly := url.QueryEscape("data.list.all(a, data.list.all(b, data.list.all(c, a + b + c > 0.0)))")
	for range 20 {
		st := s.stream("/streams/b?from=earliest&filter=" + costly)
		defer st.close()
	}
	eventually(t, "the filters are at work", func() bool {
		return strings.Contains(s.metricsText(), `postamt_stream_filtered_records_total{reason="failed",topic="b"}`)
	})
	plain := s.stream("/streams/a")
	defer plain.close()
	var slowest time.Duration
	for i := range 20 {
		begun := time.Now()
		s.do("POST", "/topics/a/records", fmt.Sprint(i)).want(t, "a record", 200, "")
		plain.event()
		slowest = max(slowest, time.Since(begun))
	}
	t.Logf("the slowest of 20 records took %v", slowest)
	if slowest > 5*time.Second {
		t.Errorf("beside costly filters a record takes %v", slowest)
	}
}
