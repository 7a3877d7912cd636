package restproxy

import (
	"strings"
	"testing"

	"postamt/sidecar/internal/event"
)

func TestAMemberThatIsThereTwiceIsRefused(t *testing.T) {
	produce := func(body string) error { _, err := DecodeProduce([]byte(body), JSON, 10); return err }
	line := func(body string) error {
		if _, err := DecodeLine([]byte(body), JSON); err != nil {
			return err
		}
		return nil
	}
	v3 := func(body string) error {
		if _, err := DecodeV3([]byte(body)); err != nil {
			return err
		}
		return nil
	}
	v3Batch := func(body string) error {
		entries, err := DecodeV3Batch([]byte(body), 10)
		if err == nil && entries[0].Err != nil {
			return entries[0].Err
		}
		return err
	}
	commit := func(body string) error { _, err := DecodeCommit([]byte(body)); return err }
	positions := func(body string) error { _, err := DecodePositions([]byte(body)); return err }
	create := func(body string) error { _, err := DecodeCreateConsumer([]byte(body)); return err }
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	for _, tc := range []struct {
		decode     func(string) error
		body, says string // "" where it is right
	}{
		{produce, `{"records":[{"key":"a","value":1}],"records":[{"value":2}]}`, "records is there twice"},
		{produce, `{"records":[{"key":"a","value":1}],"Records":[{"value":2}]}`, "records is there twice"},
		{produce, `{"records":[{"key":"a","value":1}],"r\u0065cords":[{"value":2}]}`, "records is there twice"},
		{produce, `{"records":[],"records":[{"value":2}]}`, "records is there twice"},
		{produce, `{"records":[{"value":0},{"value":1,"headers":[{"key":"a","value":"eA=="}],"headers":[{"key":"b"}]}]}`, "records[1].headers is there twice"},
		{produce, `{"records":[{"value":0,"headers":[{"key":"a"},{"key":"b","value":null,"key":"c"}]}]}`, "records[0].headers[1].key is there twice"},
		{produce, `{"records":[{"value":` + deep + `,"value":1}]}`, "records[0].value is there twice"},
		{produce, `{"records":[{"value":{"a":1,"a":2},"x":1,"x":2}],"y":{},"y":[]}`, ""},
		{produce, `{"Records":[{"value":{"a":1,"a":2}}],"y":{},"y":[]}`, ""},
		{line, `{"value":1,"headers":[{"key":"a","value":"eA=="}],"headers":[{"key":"b"}]}`, "headers is there twice"},
		{line, `{"value":1,"value":null}`, "value is there twice"},
		{line, `{"value":{"a":1,"a":2}}`, ""},
		{v3, `{"value":{"type":"JSON","data":1},"value":{"type":"JSON"}}`, "value is there twice"},
		{v3, `{"value":{"type":"JSON","data":1,"data":2}}`, "value.data is there twice"},
		{v3, `{"headers":[{"name":"a","value":"eA==","Name":"b"}]}`, "headers[0].name is there twice"},
		{v3, `{"value":{"type":"JSON","data":{"a":1,"a":2}},"id":1,"id":2}`, ""},
		{v3Batch, `{"entries":[{"id":"1","id":"2"}]}`, "entries[0].id is there twice"},
		{v3Batch, `{"entries":[{"id":"1"}],"entries":[{"id":"2"}]}`, "entries is there twice"},
		{v3Batch, `{"entries":[{"id":"1","partition_id":1,"partition_id":0}]}`, "partition_id is there twice"},
		{commit, `{"offsets":[{"topic":"a","partition":0,"offset":1,"offset":2}]}`, "offsets[0].offset is there twice"},
		{positions, `{"offsets":[{"topic":"a","topic":"b","partition":0,"offset":1}]}`, "offsets[0].topic is there twice"},
		{create, `{"format":"json","format":"binary"}`, "format is there twice"},
	} {
		err := tc.decode(tc.body)
		if tc.says == "" {
			if err != nil {
				t.Errorf("%.100s: %v", tc.body, err)
			}
			continue
		}
		wantKind(t, err, event.Unprocessable)
		if err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%.100s: %v; want %q", tc.body, err, tc.says)
		}
	}
}
