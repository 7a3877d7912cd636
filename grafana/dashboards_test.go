package main

import (
	"os"
	"path/filepath"
	"testing"
)

// What Grafana reads is what the command writes: a change of one without the other fails here.
func TestDashboardsAreGenerated(t *testing.T) {
	written := make(map[string]bool)
	for _, b := range boards {
		want, err := b.json()
		if err != nil {
			t.Errorf("%s: %v", b.uid, err)
			continue
		}
		file := filepath.Join("dashboards", b.uid+".json")
		written[file] = true
		if got, err := os.ReadFile(file); err != nil || string(got) != string(want) {
			t.Errorf("%s is not what go generate ./grafana writes (%v): run it, and commit the outcome", file, err)
		}
	}
	files, err := filepath.Glob("dashboards/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !written[file] {
			t.Errorf("%s is not written by go generate ./grafana: a dashboard is a board in this package", file)
		}
	}
}

func TestAPanelThatDoesNotFitIsAnError(t *testing.T) {
	b := board{uid: "wide", rows: []row{{"?", []*panel{lines("?", "?", "none").size(columns+1, 8)}}}}
	if _, err := b.json(); err == nil {
		t.Error("a panel wider than the grid was placed")
	}
}
