package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// posted are deliveries to a receiver, as the bare client makes them.
func posted(t *testing.T, url string, deliveries ...[3]string) (failed int) {
	t.Helper()
	for _, d := range deliveries {
		header := http.Header{"Kafka-Partition": {d[0]}, "Kafka-Offset": {d[1]}, "Kafka-Key": {d[2]}}
		if err := postOnce(http.DefaultClient, url, sample{header, []byte("body")}); err != nil {
			if !strings.Contains(err.Error(), "500") {
				t.Fatal(err)
			}
			failed++
		}
	}
	return failed
}

func TestReceiverTellsRepeatsApart(t *testing.T) {
	r := &receiver{}
	r.forget()
	server := httptest.NewServer(r.handler())
	defer server.Close()
	posted(t, server.URL+pathAtOnce, [3]string{"0", "0"}, [3]string{"0", "64"}, [3]string{"1", "0"}, [3]string{"0", "64"})
	s := r.state()
	if s.Accepted != 4 || s.Distinct != 3 || s.First == 0 || s.Last <= s.First || s.Now < s.Last {
		t.Errorf("it has %+v; want 4 accepted, 3 of them distinct, and times in order", s)
	}
	if s.Sample == nil || s.Sample.Header.Get("kafka-offset") != "0" || string(s.Sample.Body) != "body" {
		t.Errorf("the sample is %+v; want the first delivery", s.Sample)
	}
	r.forget()
	if s := r.state(); s.Accepted != 0 || s.Distinct != 0 || s.Sample != nil {
		t.Errorf("it has %+v after it was told to forget", s)
	}
}

func TestReceiverRefusesStuckKeys(t *testing.T) {
	r := &receiver{}
	r.forget()
	server := httptest.NewServer(r.handler())
	defer server.Close()
	deliveries := [][3]string{{"0", "0", deliveryKey(0)}, {"0", "1", deliveryKey(1)}, {"0", "2", deliveryKey(stuckKeys)}}
	if failed := posted(t, server.URL+pathStuck, deliveries...); failed != 2 {
		t.Errorf("%d of 3 failed; want the two with stuck keys", failed)
	}
	if failed := posted(t, server.URL+pathStamp, deliveries...); failed != 0 {
		t.Errorf("%d failed where no key is stuck", failed)
	}
	s := r.state()
	if s.Accepted != 4 || s.Distinct != 3 || s.Refused != 2 || len(s.Stamps) != 3 || s.Stamps[deliveryKey(1)] == 0 {
		t.Errorf("it has %+v; want 4 accepted, 3 distinct, 2 refused, 3 stamps", s)
	}
}

func TestDeliveryBodyHasStuckKeys(t *testing.T) {
	for _, n := range []int{1, 999, 1000, 1001, 25_000} {
		var body struct {
			Records []struct {
				Key   string
				Value json.RawMessage
			}
		}
		if err := json.Unmarshal(deliveryBody(n, 0), &body); err != nil {
			t.Fatal(err)
		}
		stuck := 0
		for _, r := range body.Records {
			if strings.Contains(r.Key, stuckKey) {
				stuck++
			}
			if len(r.Value) != valueBytes {
				t.Fatalf("a value has %d bytes", len(r.Value))
			}
		}
		if len(body.Records) != n || stuck != stuckRecords(n) {
			t.Errorf("of %d records %d are stuck; want %d of %d", len(body.Records), stuck, stuckRecords(n), n)
		}
	}
}

func TestPercentile(t *testing.T) {
	v := make([]float64, 200)
	for i := range v {
		v[i] = float64(200 - i)
	}
	for p, want := range map[int]float64{1: 2, 50: 100, 99: 198, 100: 200} {
		if got := percentile(v, p); got != want {
			t.Errorf("percentile %d of 1 to 200 is %v, want %v", p, got, want)
		}
	}
	if got := percentile([]float64{7}, 1); got != 7 {
		t.Errorf("percentile 1 of one is %v", got)
	}
}
