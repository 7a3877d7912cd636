package app

import (
	"log/slog"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/kafka"
	"postamt/sidecar/internal/registry"
	"postamt/sidecar/internal/webhook"
)

// subscriptionsTopic keeps what clients want delivered.
const subscriptionsTopic = "_postamt.subscriptions"

// openSubscriptions makes the registry and the table that it is kept in.
func openSubscriptions(cfg config.Config, cluster *kafka.Cluster, sender *webhook.Sender, log *slog.Logger) (*registry.Registry, *kafka.Table, error) {
	keys := make([][]byte, len(cfg.Seal.Keys))
	for i, key := range cfg.Seal.Keys {
		keys[i] = []byte(key)
	}
	seals, err := registry.NewSeals(keys...)
	if err != nil {
		return nil, nil, err
	}
	if !seals.Able() {
		log.Warn("there is no POSTAMT_SECRET_KEY: subscriptions can be neither made nor delivered")
	}
	r := registry.New(cluster, registry.Options{
		Seals: seals, MaxSubscriptions: cfg.Limits.Subscriptions, CheckURL: sender.CheckURL, CheckHeaders: webhook.CheckHeaders, Log: log,
	})
	table, err := kafka.OpenTable(cfg.Kafka.BootstrapServers, subscriptionsTopic, r.Changed, log)
	if err != nil {
		return nil, nil, err
	}
	r.UseTable(table)
	return r, table, nil
}
