package kafka

import (
	"time"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// Handles gives tests the two librdkafka producers, to break them.
func (p *Producer) Handles() []*ckafka.Producer {
	return []*ckafka.Producer{p.quick.Load().p, p.batching.Load().p}
}

// Pick tells which of the two a request that comes at a time goes to, until done.
func (p *Producer) Pick(now time.Time) (name string, done func()) {
	return p.pick(now).name, func() { p.requests.Add(-1) }
}

// Calm is how long the load must have been low before records leave at once again.
const Calm = calm

// MaxInHand is how long records that were handed out keep their partition.
const MaxInHand = maxInHand
