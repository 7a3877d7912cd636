package app

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"postamt/compose"
	"postamt/sidecar/internal/bootstrap"
	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/registry"
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
	if len(cfg.Seal.Keys) == 0 {
		key, err := devKey(dataDir)
		if err != nil {
			return err
		}
		cfg.Seal.Keys = []config.Secret{key}
	}

	o := bootstrap.Options{File: topicsFile}
	if topicsFile == "" {
		o.Topics = compose.Topics
	}
	if err := bootstrapFrom(ctx, cfg, o, log); err != nil {
		return err
	}
	return Run(ctx, Dev, cfg, log, ready)
}

// devKey makes the key that secrets are sealed with. Where records outlive the process, so does it.
func devKey(dataDir string) (config.Secret, error) {
	key := make([]byte, registry.KeyBytes)
	_, _ = rand.Read(key) // never fails
	if dataDir == "" {
		return config.Secret(key), nil
	}
	path := filepath.Join(dataDir, "secret_key")
	err := os.WriteFile(path+".new", key, 0o600)
	if err == nil {
		err = os.Link(path+".new", path) // not over one that is there
		_ = os.Remove(path + ".new")
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("keep the key of secrets: %w", err)
	}
	kept, err := os.ReadFile(path) //nolint:gosec // the folder is the caller's choice
	if err == nil && len(kept) != registry.KeyBytes {
		err = fmt.Errorf("%s has %d bytes; it must have %d", path, len(kept), registry.KeyBytes)
	}
	return config.Secret(kept), err
}
