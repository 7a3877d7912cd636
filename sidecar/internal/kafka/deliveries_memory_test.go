package kafka_test

import (
	"runtime"
	"testing"
	"weak"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
	"postamt/sidecar/internal/kafka"
)

// A record that waits keeps itself in memory, and not what came in its batch.
func TestARecordThatWaitsDoesNotKeepItsBatch(t *testing.T) {
	t.Parallel()
	cluster := clusterFor(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "a"))
	client, err := kafka.NewClient(cluster.ListenAddrs(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	header := []kgo.RecordHeader{{Key: "h", Value: []byte("header")}, {Key: "none"}}
	if err := client.ProduceSync(t.Context(),
		&kgo.Record{Topic: "a", Key: []byte("key"), Value: []byte("waits"), Headers: header},
		&kgo.Record{Topic: "a", Key: []byte{}, Value: make([]byte, 100_000)},
	).FirstErr(); err != nil {
		t.Fatal(err)
	}
	d := delivererFor(t, cluster, "one", nil)
	var records []event.Record
	eventually(t, "both are read", func() bool {
		more, err := d.Poll(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, more...)
		return len(records) == 2
	})
	waits := records[0]
	if string(waits.Key) != "key" || string(waits.Value) != "waits" || len(waits.Headers) != 2 || string(waits.Headers[0].Value) != "header" || waits.Headers[1].Value != nil ||
		records[1].Key == nil || len(records[1].Key) != 0 {
		t.Errorf("read are %+v and the key %v", waits, records[1].Key)
	}
	other := weak.Make(&records[1].Value[0])
	records = nil
	eventually(t, "the rest of the batch goes", func() bool {
		runtime.GC()
		return other.Value() == nil
	})
	runtime.KeepAlive(waits)
}
