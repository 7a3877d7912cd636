//go:build stack

package stacktest

import (
	"strings"
	"testing"
)

func TestTraefikHasEveryRouteAndEveryServerUp(t *testing.T) {
	var routers []struct {
		Name   string   `json:"name"`
		Status string   `json:"status"`
		Error  []string `json:"error"`
	}
	expect(t, 200, "GET", project.dashboard+"/api/http/routers", "").decode(t, &routers)
	status := make(map[string]string)
	for _, r := range routers {
		status[r.Name] = r.Status
		if r.Status != "enabled" || len(r.Error) > 0 {
			t.Errorf("router %s is %s: %s", r.Name, r.Status, strings.Join(r.Error, "; "))
		}
	}
	for _, name := range []string{"producer", "fallback", "consumer", "monitor", "prometheus", "alertmanager"} {
		if status[name+"@docker"] == "" {
			t.Errorf("Traefik has no router %s; it has %v", name, status)
		}
	}

	var services []service
	expect(t, 200, "GET", project.dashboard+"/api/http/services", "").decode(t, &services)
	for _, s := range services {
		if s.Status != "enabled" {
			t.Errorf("service %s is %s", s.Name, s.Status)
		}
		for url, status := range s.ServerStatus {
			if status != "UP" {
				t.Errorf("server %s of %s is %s", url, s.Name, status)
			}
		}
	}
	var overview struct {
		HTTP map[string]struct{ Warnings, Errors int } `json:"http"`
	}
	expect(t, 200, "GET", project.dashboard+"/api/overview", "").decode(t, &overview)
	for what, n := range overview.HTTP {
		if n.Warnings > 0 || n.Errors > 0 {
			t.Errorf("Traefik counts %d warnings and %d errors of %s", n.Warnings, n.Errors, what)
		}
	}
}
