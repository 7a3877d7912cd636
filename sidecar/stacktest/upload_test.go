//go:build stack

package stacktest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// upload sends records as slowly as a till does, in a body of unknown length.
func upload(t *testing.T, path, contentType string, records []string) answer {
	t.Helper()
	body, sender := io.Pipe()
	go func() {
		for _, r := range records {
			time.Sleep(100 * time.Millisecond)
			if _, err := io.WriteString(sender, r); err != nil {
				return
			}
		}
		_ = sender.Close()
	}()
	req, err := http.NewRequest("POST", project.api+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// values reads a partition's values, which are JSON, without a group.
func values(t *testing.T, topic string, n int) (all []string) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("%d records of %s", n, topic), func() error {
		var records []struct{ Value json.RawMessage }
		expect(t, 200, "GET", "/topics/"+topic+"/partitions/0/records?offset=earliest", "", "Accept: application/vnd.kafka.json.v2+json").decode(t, &records)
		all = nil
		for _, r := range records {
			all = append(all, string(r.Value))
		}
		if len(all) != n {
			return fmt.Errorf("there are %v", all)
		}
		return nil
	})
	return all
}

// A proxy may drop the rest of a body once its answer has begun: every line must come through.
func TestSlowLinesAreAllStoredAndReported(t *testing.T) {
	const n = 30
	topic := newTopic(t, 1)
	var lines []string
	for i := range n {
		lines = append(lines, fmt.Sprintf(`{"key":"till-7","value":%d}`+"\n", i))
	}
	got := upload(t, "/topics/"+topic+"/records", "application/x-ndjson", lines)
	want := ""
	for i := range n {
		want += fmt.Sprintf(`{"partition":0,"offset":%d}`+"\n", i)
	}
	want += fmt.Sprintf(`{"received":%d,"stored":%d,"failed":0}`+"\n", n, n)
	if got.status != 200 || got.body != want {
		t.Errorf("%v; want 200 and\n%s", got, want)
	}
	for i, v := range values(t, topic, n) {
		if v != fmt.Sprint(i) {
			t.Errorf("record %d is %s", i, v)
		}
	}
}

func TestASlowV3StreamIsAllStoredAndReported(t *testing.T) {
	const n = 30
	topic := newTopic(t, 1)
	var records []string
	for i := range n {
		records = append(records, fmt.Sprintf(`{"key":{"type":"STRING","data":"till-7"},"value":{"type":"JSON","data":%d}}`, i))
	}
	got := upload(t, v3Cluster(t)+"/topics/"+topic+"/records", "application/json", records)
	reports := strings.Split(strings.TrimSuffix(got.body, "\r\n"), "\r\n")
	if got.status != 200 || len(reports) != n {
		t.Fatalf("%v; want 200 and %d reports", got, n)
	}
	for i, text := range reports {
		var report struct {
			Code   int `json:"error_code"`
			Offset int
		}
		if err := json.Unmarshal([]byte(text), &report); err != nil || report.Code != 200 || report.Offset != i {
			t.Errorf("report %d is %s", i, text)
		}
	}
	for i, v := range values(t, topic, n) {
		if v != fmt.Sprint(i) {
			t.Errorf("record %d is %s", i, v)
		}
	}
}

// v3Cluster is the path of the cluster, by the way that clients find it.
func v3Cluster(t *testing.T) string {
	t.Helper()
	var list struct {
		Data []struct {
			Metadata struct{ Self string }
		}
	}
	expect(t, 200, "GET", "/v3/clusters", "").decode(t, &list)
	if len(list.Data) != 1 {
		t.Fatalf("there are %d clusters; want one", len(list.Data))
	}
	path, ok := strings.CutPrefix(list.Data[0].Metadata.Self, project.api)
	if !ok {
		t.Fatalf("the cluster's link is %s; want one below %s", list.Data[0].Metadata.Self, project.api)
	}
	return path
}

func TestV3FromClustersToLags(t *testing.T) {
	topic, group := newTopic(t, 1), unique("group")
	c := v3Cluster(t)
	var found struct {
		Partitions int `json:"partitions_count"`
	}
	expect(t, 200, "GET", c+"/topics/"+topic, "").decode(t, &found)
	if found.Partitions != 1 {
		t.Errorf("the topic has %d partitions", found.Partitions)
	}
	expect(t, 200, "POST", c+"/topics/"+topic+"/records", `{"value":{"type":"JSON","data":1}}{"value":{"type":"JSON","data":2}}{"value":{"type":"JSON","data":3}}`, "Content-Type: application/json")
	expect(t, 207, "POST", c+"/topics/"+topic+"/records:batch", `{"entries":[{"id":"1","value":{"type":"STRING","data":"4"}}]}`, "Content-Type: application/json")

	s := openSession(t, group, "json", topic)
	s.read(t, 4)
	expect(t, 200, "POST", s.url+"/offsets", fmt.Sprintf(`{"offsets":[{"topic":%q,"partition":0,"offset":0}]}`, topic), "Content-Type: "+v2)
	var lags struct {
		Data []struct {
			Topic     string  `json:"topic_name"`
			Committed int64   `json:"current_offset"`
			End       int64   `json:"log_end_offset"`
			Lag       int64   `json:"lag"`
			Seconds   float64 `json:"lag_seconds"`
		}
	}
	expect(t, 200, "GET", c+"/consumer-groups/"+group+"/lags", "").decode(t, &lags)
	if len(lags.Data) != 1 || lags.Data[0].Topic != topic || lags.Data[0].Committed != 1 || lags.Data[0].End != 4 || lags.Data[0].Lag != 3 || lags.Data[0].Seconds <= 0 {
		t.Errorf("lags are %+v; want three records of one partition", lags)
	}
	expect(t, 204, "DELETE", s.url, "")
	expect(t, 200, "GET", "/brokers", "")
	expect(t, 200, "GET", "/", "")
	expect(t, 403, "DELETE", c+"/topics/"+topic, "")
}
