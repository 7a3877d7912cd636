package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"postamt/sidecar/internal/config"
)

// producerGC is GOGC of the producer, where the environment sets none.
const producerGC = 200

const usage = `usage: postamt ROLE

  producer                      takes records over HTTP and writes them to Kafka
  consumer                      gives records over HTTP: pull sessions and streams
  monitor                       shows the lag of every consumer group
  containers                    shows what the project's containers use, asked of Docker Engine
  bootstrap [--plan] [--strict] makes the declared topics exist, then ends;
                                --plan shows what would change and changes nothing,
                                --strict ends with 1 where topics differ from the file
  dev [--data DIR] [--demo]     all of them on an embedded broker, on 127.0.0.1:8088;
                                --data keeps its records in DIR, --demo adds the demo
  demo register|webshop         sells vouchers, and receives them; the web shop has a page with a
                                button for each thing that can go wrong
  healthcheck                   ends with 0 when this container's /health says 200
  config                        prints every variable, its value and what it is for
  version                       prints the version

Settings are environment variables: postamt config prints them.`

// Main runs one subcommand. An error has one line for each thing that was wrong. The roles
// that listen serve openAPI at /openapi.yaml.
func Main(ctx context.Context, args []string, environ map[string]string, openAPI []byte, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errors.New("no role is named\n\n" + usage)
	}
	name, args := args[0], args[1:]
	flags := flag.NewFlagSet("postamt "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	var plan, strict, withDemo bool
	var data string
	switch name {
	case "bootstrap":
		flags.BoolVar(&plan, "plan", false, "show what would change, and change nothing")
		flags.BoolVar(&strict, "strict", false, "end with 1 where topics differ from the file")
	case "dev":
		flags.StringVar(&data, "data", "", "the folder that keeps the records; without it they are in memory")
		flags.BoolVar(&withDemo, "demo", false, "sell vouchers to a web shop, whose page is at DEMO_ADDRESS")
	case "help", "-h", "--help":
		fmt.Fprintln(stdout, usage)
		return nil
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	var end string // of the demo
	if name == "demo" && flags.NArg() == 1 {
		end = flags.Arg(0)
	} else if name == "demo" {
		return fmt.Errorf("demo takes one argument, %s or %s\n\n%s", demoRegister, demoWebshop, usage)
	} else if flags.NArg() > 0 {
		return fmt.Errorf("%s takes no argument %q\n\n%s", name, flags.Arg(0), usage)
	}
	if name == "version" {
		fmt.Fprintln(stdout, Version)
		return nil
	}
	if name == "dev" {
		environ = devDefaults(environ)
	}
	cfg, err := config.Load(environ)
	if err != nil {
		return err
	}
	cfg.OpenAPI = openAPI
	log := newLogger(cfg, stderr)
	if name == string(Producer) && environ["GOGC"] == "" {
		// What lives for longer than a request is a few MiB here: with Go's 100 it is gone
		// through so often that this takes a fifth of the processor's time.
		debug.SetGCPercent(producerGC)
	}
	switch name {
	case string(Producer), string(Consumer), string(Monitor):
		return Run(ctx, Role(name), cfg, log.With("role", name), nil)
	case "containers":
		return RunContainers(ctx, cfg, log.With("role", name), nil)
	case "bootstrap":
		return Bootstrap(ctx, cfg, plan, strict, stdout, log.With("role", name))
	case "dev":
		run := RunDev
		if withDemo {
			run = RunDevWithDemo
		}
		return run(ctx, cfg, environ["TOPICS_FILE"], data, log, func(api, page net.Addr) {
			fmt.Fprintf(stdout, "Postamt serves http://%s; try:\n\n    curl -d 'Hello, Kafka!' 'http://%[1]s/topics/my-topic/records?key=key1'\n\n", api)
			if withDemo {
				fmt.Fprintf(stdout, "The demo's page is http://%s\n\n", page)
			}
		})
	case "demo":
		return RunDemo(ctx, end, cfg, log.With("role", end), nil)
	case "healthcheck":
		return healthcheck(ctx, cfg.HTTPAddress)
	case "config":
		return cfg.WriteTable(stdout)
	}
	return fmt.Errorf("there is no role %q\n\n%s", name, usage)
}

// devDefaults are the settings that differ when everything runs on a developer's machine.
func devDefaults(environ map[string]string) map[string]string {
	out := map[string]string{
		"HTTP_ADDRESS": "127.0.0.1:8088", "METRICS_ADDRESS": "127.0.0.1:8089",
		"LOG_FORMAT": "text", "LOG_LEVEL": "WARN", "SHUTDOWN_LISTEN_GRACE": "0s", "MONITOR_INTERVAL": "2s",
		"WEBHOOK_ALLOW": "127.0.0.0/8,::1/128", // endpoints that are being written
	}
	maps.Copy(out, environ)
	return out
}

func newLogger(cfg config.Config, w io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// healthcheckTimeout is shorter than the one of the containers' health checks, so that it is
// this error that shows in `docker inspect`.
const healthcheckTimeout = 2 * time.Second

// healthcheck asks the role that listens on address in this container.
func healthcheck(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if host == "" || net.ParseIP(host).IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/health", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}
