package httpapi_test

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"postamt/sidecar/internal/kafka"
)

var offsetsIn = regexp.MustCompile(`"offset":(\d+)`)

// offsets lists the offsets of the records in an answer.
func offsets(a answer) (out []string) {
	for _, m := range offsetsIn.FindAllStringSubmatch(a.body, -1) {
		out = append(out, m[1])
	}
	return out
}

const records0 = "/topics/b/partitions/0/records"

func TestReadWithoutAGroup(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for _, v := range []string{`{"n":0}`, "text", `"2"`, "3", "4"} {
		s.do("POST", "/topics/b/records?key=k&timestamp=1767323045678", v, "Kafka-Header-H: x").want(t, "a record", 200, "")
	}
	const rest = `"partition":0,"offset":%d,"timestamp":1767323045678,"headers":[{"key":"h","value":"eA=="}]}`
	for _, tc := range []struct{ accept, contentType, want string }{
		{"", "binary", `[{"topic":"b","key":"aw==","value":"eyJuIjowfQ==",` + fmt.Sprintf(rest, 0)},
		{"Accept: */*", "binary", `[{"topic":"b","key":"aw==","value":"eyJuIjowfQ==",` + fmt.Sprintf(rest, 0)},
		{"Accept: application/vnd.kafka.v2+json", "binary", ``},
		{"Accept: application/vnd.kafka.json.v2+json", "json", `[{"topic":"b","key":null,"value":{"n":0},"key_base64":"aw==","error":"the key is not JSON",` + fmt.Sprintf(rest, 0)},
		{"Accept: application/vnd.kafka.text.v2+json", "text", `[{"topic":"b","key":"k","value":"{\"n\":0}",` + fmt.Sprintf(rest, 0)},
	} {
		var headers []string
		if tc.accept != "" {
			headers = []string{tc.accept}
		}
		got := s.do("GET", records0+"?offset=0&timeout=20000", "", headers...)
		if got.status != 200 || !strings.HasPrefix(got.body, tc.want) || len(offsets(got)) != 5 || got.header.Get("Content-Type") != "application/vnd.kafka."+tc.contentType+".v2+json" {
			t.Errorf("%s: %d %s %s; want %s", tc.accept, got.status, got.header.Get("Content-Type"), got.body, tc.want)
		}
	}
	for query, want := range map[string]string{
		"offset=earliest":              "[0 1 2 3 4]",
		"offset=3":                     "[3 4]",
		"offset=3&max_bytes=1":         "[3]", // one, however large it is
		"offset=1&max_bytes=8":         "[1]", // key, value and header are 7 bytes, of the next one 6
		"offset=0&max_bytes=17":        "[0 1]",
		"offset=0&max_bytes=-5":        "[0 1 2 3 4]", // as the read of a session has it
		"offset=0&timeout=1":           "[0 1 2 3 4]", // what is there is given
		"offset=latest&timeout=100":    "[]",
		"offset=5&timeout=100":         "[]",
		"offset=4&timeout=-1":          "[4]",
		"offset=5":                     "[]", // after the default, a second
		"offset=5&timeout=0":           "[]",
		"offset=0&max_bytes=999999999": "[0 1 2 3 4]",
	} {
		begun := time.Now()
		got := s.do("GET", records0+"?"+query, "")
		if fmt.Sprint(offsets(got)) != want || got.status != 200 || want == "[]" && got.body != "[]" {
			t.Errorf("%s: %d %s; want %s", query, got.status, got.body, want)
		}
		if took := time.Since(begun); took > 10*time.Second || want != "[]" && took > 5*time.Second {
			t.Errorf("%s took %v", query, took)
		}
	}
	// A read that waits is given what comes.
	late := make(chan answer)
	go func() { late <- s.do("GET", records0+"?offset=latest&timeout=20000", "") }()
	eventually(t, "the read waits", func() bool { return strings.Contains(s.metricsText(), "postamt_streams 1\n") })
	time.Sleep(200 * time.Millisecond) // it has asked for the end by then
	s.do("POST", "/topics/b/records", "5").want(t, "a record", 200, "")
	if got := <-late; fmt.Sprint(offsets(got)) != "[5]" {
		t.Errorf("a read that waits is given %s", got.body)
	}
	if groups := s.do("GET", "/lag", ""); !strings.Contains(groups.body, `"groups":[]`) {
		t.Errorf("a read without a group leaves %s", groups.body)
	}

	client, err := kafka.NewClient(s.cluster.ListenAddrs())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	before := make(kadm.Offsets)
	before.AddOffset("b", 0, 3, -1)
	if _, err := kadm.NewClient(client).DeleteRecords(t.Context(), before); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"offset=2": "has no offset 2; it has 3 to 6", "offset=7": "has no offset 7; it has 3 to 6, where the next record will be",
		"offset=9223372036854775807": "it has 3 to 6",
	} {
		if got := s.do("GET", records0+"?"+query, ""); got.status != 422 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s; want 422, %s", query, got.status, got.body, want)
		}
	}
	if got := s.do("GET", records0+"?offset=earliest", ""); fmt.Sprint(offsets(got)) != "[3 4 5]" {
		t.Errorf("after retention earliest gives %s", got.body)
	}
}

// Records of the size of a topic's limit, more than one poll gives.
func TestReadWithoutAGroupGivesWhatThereIs(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_IN_FLIGHT_BYTES": "16777216"})
	const n, size = 24, 900_000
	for range n {
		s.do("POST", "/topics/b/records", repeat('x', size)).want(t, "a record", 200, "")
	}
	for query, want := range map[string]int{
		"offset=0": 1, "offset=0&max_bytes=4500000": 5, "offset=20&max_bytes=60000000": 4,
		"offset=0&max_bytes=60000000": 16777216 / size, // MAX_IN_FLIGHT_BYTES
	} {
		// Fewer than there are is what a read gives that Kafka keeps waiting for half a second; more is never right.
		eventually(t, fmt.Sprintf("%s gives %d records", query, want), func() bool {
			n := len(offsets(s.do("GET", records0+"?"+query, "")))
			if n < 1 || n > want {
				t.Errorf("%s gives %d records; want %d", query, n, want)
			}
			return n >= want
		})
	}
	s.do("POST", "/topics/b/records", "after").want(t, "nothing is held any more", 200, "")
	var small strings.Builder
	for range 1200 {
		small.WriteString(`{"value":"eA=="},`)
	}
	s.do("POST", "/topics/a/partitions/2", `{"records":[`+strings.TrimSuffix(small.String(), ",")+`]}`, binaryV2).want(t, "1,200 records", 200, "")
	eventually(t, "a read gives all 1,200 records that there are", func() bool {
		return len(offsets(s.do("GET", "/topics/a/partitions/2/records?offset=0", ""))) == 1200
	})
}

// Reads without a group count as streams, and end with their clients and with the replica.
func TestReadsWithoutAGroupAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, map[string]string{"MAX_STREAMS": "2"})
	var waiting sync.WaitGroup
	for range 2 {
		waiting.Go(func() {
			if got := s.do("GET", records0+"?offset=0&timeout=3000", ""); got.status != 200 || got.body != "[]" {
				t.Errorf("a read that waits: %d %s", got.status, got.body)
			}
		})
	}
	eventually(t, "both reads wait", func() bool { return strings.Contains(s.metricsText(), "postamt_streams 2\n") })
	if got := s.do("GET", records0+"?offset=0", ""); got.status != 429 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, "MAX_STREAMS=2") {
		t.Errorf("a third read: %d %s", got.status, got.body)
	}
	waiting.Wait()
	s.do("GET", records0+"?offset=0&timeout=10", "").want(t, "after them", 200, "[]")
}
