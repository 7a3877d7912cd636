//go:build stack

package stacktest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// Every query of every dashboard, variable and rule runs, and none is without a result under a
// little traffic but those that prometheus/tests/allowed-empty.yml lists. An alert is empty on a
// healthy stack; there the metrics that it names must exist.
func TestEveryQueryOfDashboardsAndRulesHasData(t *testing.T) {
	var allowed []allowedEmpty
	decodeFile(t, filepath.Join(project.root, "prometheus/tests/allowed-empty.yml"), yaml.Unmarshal, &allowed)
	startHosts(t)
	keepBusy(t)

	all := asks(allQueries(t, project.root))
	mayBeEmpty := func(a ask) bool {
		for _, entry := range allowed {
			if strings.Contains(a.text, entry.Contains) {
				return true
			}
		}
		return false
	}
	left := all
	eventually(t, 3*time.Minute, fmt.Sprintf("a result for each of %d queries", len(all)), func() error {
		var missing []ask
		var why strings.Builder
		for _, a := range left {
			found, err := hasData(t, a)
			if err != nil {
				t.Fatalf("%s: %s: %v", a.from, a.expr, err)
			}
			if !found && !mayBeEmpty(a) {
				missing = append(missing, a)
				fmt.Fprintf(&why, "\n%s: no result: %s", a.from, a.expr)
			}
		}
		if left = missing; len(left) > 0 {
			return fmt.Errorf("%d left:%s", len(left), why.String())
		}
		return nil
	})
	t.Logf("%d queries", len(all))

	for _, entry := range allowed {
		with, of := 0, 0
		for _, a := range all {
			if !strings.Contains(a.text, entry.Contains) {
				continue
			}
			found, err := hasData(t, a)
			if err != nil {
				t.Fatalf("%s: %s: %v", a.from, a.expr, err)
			}
			if of++; found {
				with++
			}
			if found && entry.Always && !a.alert { // of an alert it is a metric, which may be there
				t.Errorf("prometheus/tests/allowed-empty.yml: %q is to be empty always (%s), but %s has data: %s", entry.Contains, entry.Reason, a.from, a.expr)
			}
		}
		if with == of { // so it was today; a fault of another test may be what it is for
			t.Logf("not needed today: %q (%s)", entry.Contains, entry.Reason)
		}
	}
}

// hasData asks Prometheus. A result of nothing but NaN is none: so a percentile of nothing looks.
func hasData(t *testing.T, a ask) (bool, error) {
	t.Helper()
	var result struct {
		ResultType string
		Result     json.RawMessage
	}
	if err := prometheus(t, "query", url.Values{"query": {a.expr}}, &result); err != nil {
		return false, err
	}
	if result.ResultType != "vector" {
		return true, nil // a scalar always is
	}
	var series []struct {
		Metric map[string]string
		Value  [2]any
	}
	if err := json.Unmarshal(result.Result, &series); err != nil {
		return false, err
	}
	for _, s := range series {
		if s.Value[1] != "NaN" && (a.label == "" || s.Metric[a.label] != "") {
			return true, nil
		}
	}
	return false, nil
}

// keepBusy writes, reads, commits and streams a little until the test ends.
func keepBusy(t *testing.T) {
	t.Helper()
	startDemo(t).rate(5) // a subscription that is delivered
	const topic = "my-topic"
	group := unique("busy")
	produce(t, topic, "k", "v")
	s := openSession(t, group, "binary", topic)
	openStream(t, topic, "from=latest&format=binary", "")
	openStream(t, topic, "from=latest&format=binary&filter="+url.QueryEscape("partition < 0"), "") // keeps all back
	done, stop := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			// What does not work shows as a query without data.
			_, _ = request("POST", "/topics/"+topic+"/records", "busy")
			_, _ = request("POST", "/topics/"+topic, `{"records":[{"value":1},{"value":2}]}`, "Content-Type: application/vnd.kafka.json.v2+json")
			_, _ = request("GET", s.url+"/records?timeout=100", "")
			_, _ = request("POST", s.url+"/offsets", "", "Content-Type: "+v2)
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		_, _ = request("DELETE", s.url, "")
	})
}
