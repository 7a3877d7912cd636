package event

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestOwnTopicsAndGroups(t *testing.T) {
	for topic, own := range map[string]bool{
		"_postamt.sessions": true, "__consumer_offsets": true, "__transaction_state": true,
		"_postamt": false, "_other": false, "postamt.x": false, "test.voucher": false, "": false,
	} {
		if Own(topic) != own {
			t.Errorf("Own(%q) is %v", topic, !own)
		}
	}
	for group, own := range map[string]bool{"postamt.hook": true, "postamt": false, "_postamt.x": false, "webshop": false} {
		if OwnGroup(group) != own {
			t.Errorf("OwnGroup(%q) is %v", group, !own)
		}
	}
}

func TestSizeCountsKeyValueAndHeaders(t *testing.T) {
	r := Record{Topic: "not counted", Key: []byte("12"), Value: []byte("345"), Headers: []Header{{Key: "6", Value: []byte("78")}, {Key: "9"}}}
	if got := r.Size(); got != 9 {
		t.Errorf("the size is %d; want 9", got)
	}
	if got := (&Record{}).Size(); got != 0 {
		t.Errorf("an empty record has %d bytes", got)
	}
}

func TestErrorKeepsItsCauseForTheLog(t *testing.T) {
	err := fmt.Errorf("outer: %w", &Error{Kind: Unavailable, Op: "kafka.Produce", Msg: "Kafka is away", Err: io.ErrUnexpectedEOF})
	var ee *Error
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &ee) || ee.Kind != Unavailable {
		t.Errorf("the error is %v", err)
	}
	for _, part := range []string{"kafka.Produce", "Kafka is away", "unexpected EOF"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if got := Errorf(Invalid, 0, "decode", "%d is not %s", 1, "two").Error(); got != "decode: 1 is not two" {
		t.Errorf("without a cause it is %q", got)
	}
}
