// Command grafana writes the dashboards below dashboards/, which Grafana reads as files:
//
//	go generate ./grafana
//
// A dashboard says what it asks and in which unit it answers; what is the same in all of them (the
// source, the grid, the colours, the links, what marks an alert) is written once, in board.go and
// panel.go. The JSON is committed, so that nobody who runs the stack needs Go, and a test holds it
// to what this command writes. A new dashboard is a file here and a word in boards.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

//go:generate go run . dashboards

// boards are all of them, in the order of the menu.
var boards = []board{overview, consumerLag, kafkaBrokers, kraft, topics, traefik, sidecars, hosts, monitoring}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: grafana FOLDER")
		os.Exit(2)
	}
	for _, b := range boards {
		text, err := b.json()
		if err == nil {
			err = os.WriteFile(filepath.Join(os.Args[1], b.uid+".json"), text, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "dashboard %s: %v\n", b.uid, err)
			os.Exit(1)
		}
	}
}
