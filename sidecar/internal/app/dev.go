package app

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"

	"postamt/compose"
	"postamt/sidecar/internal/bootstrap"
	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/kafka"
)

// Bootstrap makes the declared topics exist. planOnly writes to out what would change.
func Bootstrap(ctx context.Context, cfg config.Config, planOnly, strict bool, out io.Writer, log *slog.Logger) error {
	return bootstrapFrom(ctx, cfg, bootstrap.Options{File: cfg.Topics, PlanOnly: planOnly, Strict: strict, Out: out}, log)
}

func bootstrapFrom(ctx context.Context, cfg config.Config, o bootstrap.Options, log *slog.Logger) error {
	client, err := kafka.NewClient(cfg.Kafka.BootstrapServers)
	if err != nil {
		return fmt.Errorf("make the Kafka client: %w", err)
	}
	defer client.Close()
	o.ReplicationFactor, o.Timeout, o.Log = int(cfg.Kafka.ReplicationFactor), cfg.Bootstrap.Deadline, log
	return bootstrap.Run(ctx, kafka.NewAdmin(client), o)
}

// RunDev serves all roles in one process on an embedded broker, which keeps its records in
// memory, or in dataDir when that is not empty. The topics are those of topicsFile, or the
// stack's own when that is empty.
func RunDev(ctx context.Context, cfg config.Config, topicsFile, dataDir string, log *slog.Logger, ready func(api, metrics net.Addr)) error {
	broker, err := kafka.OpenEmbedded(dataDir)
	if err != nil {
		return err
	}
	defer broker.Close()
	cfg.Kafka.BootstrapServers, cfg.Kafka.ReplicationFactor = broker.Addresses(), 1

	o := bootstrap.Options{File: topicsFile}
	if topicsFile == "" {
		o.Topics = compose.Topics
	}
	if err := bootstrapFrom(ctx, cfg, o, log); err != nil {
		return err
	}
	return Run(ctx, Dev, cfg, log, ready)
}
