// Command postamt is the sidecar of a Kafka cluster: HTTP in, HTTP out, topics and lag.
// Each role is a subcommand; settings come from the environment.
package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/caarlos0/env/v11"

	"postamt/sidecar/internal/app"
)

// openAPI describes the HTTP interface: GET /openapi.yaml.
//
//go:embed openapi.yaml
var openAPI []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := app.Main(ctx, os.Args[1:], env.ToMap(os.Environ()), openAPI, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "postamt:", err)
		os.Exit(1)
	}
}
