// Package kafka is the only importer of the two Kafka clients: confluent-kafka-go writes,
// franz-go reads, joins groups and administers. What it returns and takes is package
// event's; its errors are event.Errors.
package kafka

import (
	"context"
	"errors"
	"net"

	ckafka "github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"postamt/sidecar/internal/event"
)

// What the REST Proxy dialect calls the failures that this package meets.
const (
	codeTopicNotFound     = 40401
	codePartitionNotFound = 40402
	codeUnavailable       = 50302
	codeForbidden         = 40301
)

const (
	msgAway   = "Kafka cannot be reached at present; repeat the request later"
	msgClocks = "Kafka refuses records of this time: the clocks of this service and of Kafka differ by more than the topic's message.timestamp.before.max.ms or message.timestamp.after.max.ms allows; set them right, then repeat the request"
	msgMaybe  = "Kafka has not acknowledged the record in time (REQUEST_TIMEOUT): it may be stored, or not; repeat the request, and expect that it can come twice"
)

// wrap gives a client's error its Kind from its code, never from its text, which the
// libraries may reword. Library errors stop here.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	if already := (*event.Error)(nil); errors.As(err, &already) {
		return err
	}
	kind, code, msg := classify(err)
	return &event.Error{Kind: kind, Code: code, Op: op, Msg: msg, Err: err}
}

func classify(err error) (event.Kind, int, string) {
	var (
		ce ckafka.Error
		ke *kerr.Error
		ne net.Error
	)
	switch {
	case errors.As(err, &ce):
		return classifyProduce(ce)
	case errors.As(err, &ke):
		return classifyRequest(ke)
	case errors.Is(err, kgo.ErrClientClosed):
		return event.Unavailable, codeUnavailable, "this replica is about to stop; repeat the request"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne):
		return event.Unavailable, codeUnavailable, msgAway
	case errors.Is(err, context.Canceled):
		return event.Gone, 0, "the client went away"
	}
	return event.Unavailable, codeUnavailable, msgAway
}

func classifyProduce(err ckafka.Error) (event.Kind, int, string) {
	switch err.Code() { // IsRetriable is set only by the transactional producer
	case ckafka.ErrMsgSizeTooLarge, ckafka.ErrInvalidMsgSize:
		return event.TooLarge, 0, "the record is larger than its topic's max.message.bytes allows (a topic that allows less than 1,048,588 refuses small records, too, when they come many at once)"
	case ckafka.ErrUnknownTopicOrPart, ckafka.ErrUnknownTopic:
		return event.NotFound, codeTopicNotFound, "no such topic"
	case ckafka.ErrUnknownPartition: // metadata knows it: it has just been added
		return event.Unavailable, codeUnavailable, "the partition is so new that the producer does not know it yet; repeat the request later"
	case ckafka.ErrInvalidTimestamp:
		return event.Unprocessable, 0, "the record's timestamp is farther from now than its topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms allow"
	case ckafka.ErrInvalidRecord:
		return event.Unprocessable, 0, "Kafka refused the record, or a batch for the sake of another record in it: a compacted topic needs keys"
	case ckafka.ErrPolicyViolation:
		return event.Unprocessable, 0, "Kafka refused the record by a policy of the cluster"
	case ckafka.ErrTopicAuthorizationFailed, ckafka.ErrClusterAuthorizationFailed:
		return event.Forbidden, codeForbidden, "Kafka does not let this service write to the topic: check its ACLs"
	case ckafka.ErrQueueFull:
		return event.TooMany, 0, "too many records wait for Kafka; repeat the request later"
	case ckafka.ErrMsgTimedOut, ckafka.ErrTimedOut, ckafka.ErrTimedOutQueue:
		return event.Unavailable, codeUnavailable, msgMaybe
	case ckafka.ErrNotEnoughReplicas, ckafka.ErrNotEnoughReplicasAfterAppend:
		return event.Unavailable, codeUnavailable, "too few replicas of the partition are in sync (min.insync.replicas): the record may be stored, or not; repeat the request later, and expect that it can come twice"
	case ckafka.ErrInvalidDifferentRecord:
		return event.Unavailable, codeUnavailable, "Kafka refused another record of the same batch, and this one with it: it is not stored; repeat the request"
	}
	return event.Unavailable, codeUnavailable, msgMaybe
}

func classifyRequest(err *kerr.Error) (event.Kind, int, string) {
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		return event.NotFound, codeTopicNotFound, "no such topic"
	case errors.Is(err, kerr.InvalidTopicException):
		return event.NotFound, codeTopicNotFound, "no such topic, and there can be none: a topic's name has 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"
	case errors.Is(err, kerr.InvalidGroupID):
		return event.Unprocessable, 0, "Kafka refuses the name of the consumer group"
	case errors.Is(err, kerr.InconsistentGroupProtocol):
		return event.Conflict, 40903, "the consumer group has members of another kind: its assignment protocol has no strategy in common with ours (cooperative-sticky)"
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.RebalanceInProgress), errors.Is(err, kerr.FencedInstanceID):
		return event.Conflict, 40903, "the consumer group has rebalanced meanwhile; read again"
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.GroupAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return event.Forbidden, codeForbidden, "Kafka does not let this service do that: check its ACLs"
	}
	return event.Unavailable, codeUnavailable, "Kafka could not do it at present (" + err.Message + "); repeat the request later"
}
