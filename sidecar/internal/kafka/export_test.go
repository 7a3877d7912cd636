package kafka

import ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"

// Handles gives tests the two librdkafka producers, to break them.
func (p *Producer) Handles() []*ckafka.Producer {
	return []*ckafka.Producer{p.quick.Load().p, p.batching.Load().p}
}
