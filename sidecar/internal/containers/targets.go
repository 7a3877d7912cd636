package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// scrapeLabel has the port of a service's metrics, where Prometheus learns of it from here.
const scrapeLabel = "postamt.metrics.port"

// writeTargets tells Prometheus (file_sd_configs) which services with metrics there are that not every
// stack has: a name that DNS does not know is twenty seconds of waiting and two lines in the log each
// time, and a static target that is not there an alert. The file is written when it changes. A
// service that has crashed stays in it, one that was removed does not.
func (c *Collector) writeTargets(list []listed) error {
	if c.Targets == "" {
		return nil
	}
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for _, l := range list {
		service, port := l.Labels[serviceLabel], l.Labels[scrapeLabel]
		if port == "" {
			continue
		}
		g := group{[]string{service + ":" + port}, map[string]string{"job": service}}
		if !slices.ContainsFunc(groups, func(other group) bool { return other.Targets[0] == g.Targets[0] }) {
			groups = append(groups, g)
		}
	}
	text, err := json.MarshalIndent(groups, "", "  ")
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(c.Targets); err == nil && bytes.Equal(old, text) {
		return nil
	}
	// In one step: Prometheus must not read half of it.
	next := filepath.Join(filepath.Dir(c.Targets), ".next")
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return fmt.Errorf("CONTAINERS_TARGETS_FILE: %w", err)
	}
	if err := os.Rename(next, c.Targets); err != nil {
		return fmt.Errorf("CONTAINERS_TARGETS_FILE: %w", err)
	}
	return nil
}

// removeTargets ends the scrapes: who stops this on purpose wants no alert.
func (c *Collector) removeTargets() {
	if c.Targets == "" {
		return
	}
	if err := os.Remove(c.Targets); err != nil && !os.IsNotExist(err) {
		c.Log.Warn("remove CONTAINERS_TARGETS_FILE", "error", err)
	}
}
