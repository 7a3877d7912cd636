//go:build stack

package stacktest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"
)

// prometheus asks Prometheus' API, through Traefik.
func prometheus(t *testing.T, path string, query url.Values, v any) error {
	t.Helper()
	got := call(t, "GET", "/api/v1/"+path+"?"+query.Encode(), "", "Host: prometheus.localhost")
	var in struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal([]byte(got.body), &in); err != nil {
		return fmt.Errorf("Prometheus answers %v", got)
	}
	if in.Status != "success" {
		return fmt.Errorf("Prometheus says %s", in.Error)
	}
	return json.Unmarshal(in.Data, v)
}

func TestEveryPrometheusTargetIsUp(t *testing.T) {
	want := make(map[string]int)
	startHosts(t)
	for _, job := range []string{"kafka", "traefik", "producer", "consumer", "monitor", "prometheus", "alertmanager"} {
		want[job] = len(containers(t, job)) // jobs are named as services
	}
	want["containers"], want["node-exporter"] = 1, 1
	eventually(t, time.Minute, "every target up", func() error {
		var in struct {
			Active []struct {
				Labels                       map[string]string
				ScrapeURL, Health, LastError string
			} `json:"activeTargets"`
		}
		if err := prometheus(t, "targets", nil, &in); err != nil {
			return err
		}
		up := make(map[string]int)
		for _, target := range in.Active {
			if target.Health != "up" {
				return fmt.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
			}
			up[target.Labels["job"]]++
		}
		if fmt.Sprint(up) != fmt.Sprint(want) {
			return fmt.Errorf("targets by job: %v; want %v", up, want)
		}
		return nil
	})
}
