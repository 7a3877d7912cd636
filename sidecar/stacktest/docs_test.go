//go:build stack

package stacktest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The commands that README.md and docs/ show, run as they are written, on the project under
// test. In a block
//
//	```console
//	$ curl -d 'Hello!' 'http://localhost/topics/my-topic/records' \
//	    -H 'Kafka-Header-a: b'
//	{"topic":"my-topic", …
//	$ curl -N http://localhost/streams/my-topic
//	id: …
//	^C
//	```
//
// a line after "$ " is a command, which goes on after a backslash at its end; other lines are
// what it prints, and are not compared. A command must end with 0, and a curl not be answered
// with an error; a command that is shown to be interrupted (^C) must go on, and have printed
// something. The lines of a block share a shell in the project's folder. A block after the line
//
//	<!-- not run: WHY -->
//
// is not run. The ports of the defaults become those of the project under test.
func TestCommandsOfTheDocsWork(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(project.root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	scale(t, "producer", 1) // as a reader has it
	scale(t, "consumer", 1)
	startHosts(t) // the runbook asks them
	blocks := 0
	for _, file := range append([]string{filepath.Join(project.root, "README.md")}, files...) {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range consoleBlocks(string(text)) {
			blocks++
			name, _ := filepath.Rel(project.root, file)
			t.Run(name+": "+strings.Fields(block.commands[0].text)[0], func(t *testing.T) {
				block.run(t)
			})
		}
	}
	t.Logf("%d blocks", blocks)
}

type command struct {
	text        string
	interrupted bool
}

type block struct{ commands []command }

func consoleBlocks(text string) []block {
	var blocks []block
	var b *block
	skip := false
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case b == nil && strings.TrimSpace(line) == "```console":
			b = &block{}
		case b == nil:
			if line != "" {
				skip = strings.HasPrefix(line, "<!-- not run: ")
			}
		case strings.TrimSpace(line) == "```":
			if !skip && len(b.commands) > 0 {
				blocks = append(blocks, *b)
			}
			b, skip = nil, false
		case strings.HasPrefix(line, "$ "):
			b.commands = append(b.commands, command{text: line[2:]})
		case len(b.commands) > 0:
			last := &b.commands[len(b.commands)-1]
			if strings.HasSuffix(last.text, `\`) {
				last.text += "\n" + line
			}
			last.interrupted = last.interrupted || line == "^C"
		}
	}
	return blocks
}

// script makes of a block what a shell runs: the commands one after the other, and at its
// end, alone, the one that is interrupted.
func (b block) script() (script string, interrupted bool) {
	lines := []string{
		"set -eu", // not pipefail: a grep that finds nothing in a log is no failure
		`docker() {
  if [[ $1 == compose ]]; then
    shift
    command $STACK_DOCKER compose --env-file "$ENV_FILE" "$@"
  else
    command $STACK_DOCKER "$@"
  fi
}`,
		// An error of HTTP is one of the command; what the monitor says is a few seconds old.
		`curl() {
  local i status
  for i in 1 2 3 4 5; do
    status=0
    command curl --fail-with-body "$@" || status=$?
    ((status == 22)) || return $status
    sleep 4
  done
  return 22
}`,
	}
	for _, c := range b.commands {
		text := c.text
		if strings.HasPrefix(text, "docker ") && strings.Contains(text, " exec ") {
			text = strings.Replace(text, " exec ", " exec -T ", 1) // a test has no terminal
		} else {
			text = strings.NewReplacer(
				"localhost:8080", strings.TrimPrefix(project.dashboard, "http://"),
				"localhost:9092", project.broker,
				"http://localhost/", project.api+"/",
				"//localhost/", strings.TrimPrefix(project.api, "http:")+"/",
				".localhost/", ".localhost:"+project.api[strings.LastIndex(project.api, ":")+1:]+"/",
			).Replace(text)
		}
		interrupted = interrupted || c.interrupted
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n"), interrupted
}

func (b block) run(t *testing.T) {
	t.Helper()
	script, interrupted := b.script()
	limit := 2 * time.Minute
	if interrupted {
		limit = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = project.root
	cmd.Env = append(os.Environ(), "ENV_FILE="+project.envFile, "STACK_DOCKER="+cmp.Or(os.Getenv("STACK_DOCKER"), "docker"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the interrupt is for all that it started
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case interrupted && ctx.Err() == nil:
		t.Errorf("ended by itself (%v), and is shown to be interrupted:\n%s\nIt printed:\n%s", err, script, out.String())
	case interrupted && out.Len() == 0:
		t.Errorf("printed nothing in %v:\n%s", limit, script)
	case !interrupted && err != nil:
		t.Errorf("%v:\n%s\nIt printed:\n%s", err, script, out.String())
	}
}
