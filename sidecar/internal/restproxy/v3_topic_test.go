package restproxy

import (
	"errors"
	"fmt"
	"testing"

	"postamt/sidecar/internal/event"
)

func TestReplicasAssignments(t *testing.T) {
	for text, want := range map[string]string{
		`{}`: "[]", `[]`: "[]", `null`: "[]",
		`{"0":[1,2],"1":[2,1]}`: "[[1 2] [2 1]]",
		`[{"partition_id":1,"broker_ids":[2]},{"partition_id":0,"broker_ids":[1]}]`: "[[1] [2]]",
		`{"1":[1]}`: "", `{"0":[]}`: "", `{"-1":[1]}`: "", `{"x":[1]}`: "", `{"0":["1"]}`: "", `{"0":[1],"2":[1]}`: "", `1`: "", `"x"`: "",
		`[{"broker_ids":[1]}]`: "", `[{"partition_id":0}]`: "", `[{"partition_id":0,"broker_ids":[1]},{"partition_id":0,"broker_ids":[2]}]`: "", `[1]`: "",
	} {
		spec, _, err := DecodeNewTopic([]byte(`{"topic_name":"a","replicas_assignments":` + text + `}`))
		if want == "" {
			if kindOfError(err) != event.Unprocessable {
				t.Errorf("%s is taken as %v, %v", text, spec.Assignments, err)
			}
		} else if got := fmt.Sprint(spec.Assignments); err != nil || got != want {
			t.Errorf("%s is taken as %s, %v; want %s", text, got, err, want)
		}
	}
	if _, _, err := DecodeNewTopic([]byte(`{"topic_name":"a","replicas_assignments":{"0":[1]},"partitions_count":1}`)); kindOfError(err) != event.Unprocessable {
		t.Errorf("two numbers of partitions: %v", err)
	}
}

func kindOfError(err error) event.Kind {
	if ee, ok := errors.AsType[*event.Error](err); ok {
		return ee.Kind
	}
	return ""
}

func TestConfigChanges(t *testing.T) {
	changes, validateOnly, err := DecodeConfigChanges([]byte(`{"data":[{"name":"a","value":"1"},{"name":"b","value":"","operation":"SET"},{"name":"c","operation":"DELETE"},{"name":"d","value":"x","operation":"DELETE"}],"validate_only":true}`))
	if err != nil || !validateOnly || len(changes) != 4 || *changes[0].Value != "1" || *changes[1].Value != "" || changes[2].Value != nil || changes[3].Value != nil || changes[3].Name != "d" {
		t.Errorf("%+v, %v, %v", changes, validateOnly, err)
	}
	for text, want := range map[string]event.Kind{
		`{}`: event.Unprocessable, `{"data":[]}`: event.Unprocessable, `{"data":[{"value":"1"}]}`: event.Unprocessable, `{"data":[{"name":"a"}]}`: event.Unprocessable,
		`{"data":[{"name":"a","value":null}]}`: event.Unprocessable, `{"data":[{"name":"a","value":1}]}`: event.Unprocessable,
		`{"data":[{"name":"a","value":"1","operation":"APPEND"}]}`:              event.Unprocessable,
		`{"data":[{"name":"a","value":"1"},{"name":"a","value":"2"}]}`:          event.Unprocessable,
		`{"data":[{"name":"a","value":"1"}`:                                     event.Invalid,
		`{"data":[{"name":"a","value":"1"}],"data":[{"name":"b","value":"1"}]}`: event.Unprocessable,
	} {
		if _, _, err := DecodeConfigChanges([]byte(text)); kindOfError(err) != want {
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
}
