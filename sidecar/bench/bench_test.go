package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRequestBodyHasValuesOfTheSize(t *testing.T) {
	var body struct {
		Records []struct{ Value json.RawMessage }
	}
	if err := json.Unmarshal(requestBody(1000, 499_000), &body); err != nil {
		t.Fatal(err)
	}
	if len(body.Records) != 1000 {
		t.Fatalf("there are %d records", len(body.Records))
	}
	for i, r := range body.Records {
		if len(r.Value) != valueBytes {
			t.Errorf("value %d has %d bytes: %s", i, len(r.Value), r.Value)
		}
	}
}

func TestReadRecordsCountsAcrossReads(t *testing.T) {
	const records = 1000
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("[" + strings.Repeat(`{"topic":"t","value":{}},`, records-1) + `{"topic":"t"}]`))
	}))
	defer server.Close()
	for _, size := range []int{9, 10, 31, 4096, 1 << 20} {
		if n, err := readRecords(t.Context(), server.URL, "json", make([]byte, size)); n != records || err != nil {
			t.Errorf("with a buffer of %d bytes: %d records, %v", size, n, err)
		}
	}
}

func TestReportTellsWhatIsReached(t *testing.T) {
	measured := func(line, ours float64) *bench {
		return &bench{loads: map[string]*samples{
			"P1line":    {records: []float64{100, 200}, p50: []float64{1}, p99: []float64{1}, cpu: []float64{1}},
			"P1postamt": {records: []float64{line, ours}, p50: []float64{1}, p99: []float64{1}, cpu: []float64{1}},
		}}
	}
	for _, c := range []struct {
		b       *bench
		reached bool
		word    string
	}{
		{measured(60, 120), true, "| aim |"},
		{measured(50, 100), true, "| must |"},
		{measured(47, 94), false, "| **no** |"},
		{&bench{drains: map[string][]float64{"json": {0.9e6, 0.6e6, 0.8e6}, "binary": {1}}, drainMem: []float64{1}}, true, "| must |"},
		{&bench{idleAt: []idleSample{{n: 1000, peak: 400, threads: 151}}}, false, "| **no** |"},
		{&bench{delivered: delivered{atOnce: []float64{7}, bare: []float64{10}, cpu: []float64{1}, peak: []float64{1}, bareCPU: []float64{1}}}, true, "| must |"},
		{&bench{delivered: delivered{slow: []float64{1215}}}, false, "| **no** |"},
		{&bench{delivered: delivered{atOnce: []float64{9}, bare: []float64{10}, stuck: []float64{8}, cpu: []float64{1}, peak: []float64{1}, bareCPU: []float64{1}, stuckCPU: []float64{1}}}, false, "0.889 | ≥ 0.950"},
		{&bench{delivered: delivered{fromAck: []float64{1, 9, 99}, fromRequest: []float64{1}}}, true, "| 9 |"},
		{&bench{subscribedAt: []idleSample{{n: 500, peak: 256, threads: 100, sockets: 2501, cpu: 0.15}}}, false, "connections |  | 2,501 |"},
	} {
		var out strings.Builder
		if reached := c.b.report(&out); reached != c.reached || !strings.Contains(out.String(), c.word) {
			t.Errorf("reached is %v; want %v and %q in:\n%s", reached, c.reached, c.word, out.String())
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 50: "50", 0.0512: "0.051", 0.48: "0.480", 5.6: "5.60", 18.84: "18.8", 151: "151", 1047567.6: "1,047,568"} {
		if got := number(v); got != want {
			t.Errorf("%v is %q; want %q", v, got, want)
		}
	}
}
