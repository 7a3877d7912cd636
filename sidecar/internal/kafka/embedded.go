package kafka

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"
)

// Embedded is a broker in this process that speaks Kafka's protocol: for development and
// tests, not for records that matter.
type Embedded struct{ cluster *kfake.Cluster }

// OpenEmbedded starts a broker on a free port of 127.0.0.1. It keeps its records in memory,
// or in dataDir when that is not empty: on disk before they are acknowledged.
func OpenEmbedded(dataDir string) (*Embedded, error) {
	options := []kfake.Opt{kfake.NumBrokers(1)}
	if dataDir != "" {
		options = append(options, kfake.DataDir(dataDir), kfake.SyncWrites())
	}
	cluster, err := kfake.NewCluster(options...)
	if err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err)
	}
	return &Embedded{cluster}, nil
}

// Addresses are what clients connect to.
func (e *Embedded) Addresses() []string { return e.cluster.ListenAddrs() }

// Close stops the broker.
func (e *Embedded) Close() { e.cluster.Close() }
