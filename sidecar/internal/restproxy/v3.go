package restproxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"postamt/sidecar/internal/event"
)

// The dialect's v3. Validation errors of a whole request have their five digits in the text.
const (
	codeEmptyBody    = 42206
	codeBatchInvalid = 42208
)

// V3Invalid is an error of a whole v3 request, as existing clients expect it: the code is 422.
func V3Invalid(code int, format string, args ...any) *event.Error {
	return event.Errorf(event.Unprocessable, 0, op, "Error: %d : %s", code, fmt.Sprintf(format, args...))
}

// V3EmptyBody is of a produce request without a record.
func V3EmptyBody() *event.Error {
	return V3Invalid(codeEmptyBody, `the body is empty; it must be one or more records such as {"value":{"type":"JSON","data":…}}`)
}

// V3Part is what a report says of a key or value: its type, "" when the request had none, and
// its size in bytes.
type V3Part struct {
	Type string
	Size int
}

// V3Record is a record of a v3 request.
type V3Record struct {
	event.Record
	KeyPart, ValuePart V3Part
}

type v3Record struct {
	Partition *int32          `json:"partition_id"`
	Key       *v3Data         `json:"key"`
	Value     *v3Data         `json:"value"`
	Timestamp json.RawMessage `json:"timestamp"`
	Headers   []struct {
		Name  string  `json:"name"`
		Value *string `json:"value"` // base64; null is Kafka's null
	} `json:"headers"`
}

type v3Data struct {
	Type *string         `json:"type"`
	Data json.RawMessage `json:"data"`

	Subject         json.RawMessage `json:"subject"`
	SubjectStrategy json.RawMessage `json:"subject_name_strategy"`
	Schema          json.RawMessage `json:"schema"`
	SchemaID        json.RawMessage `json:"schema_id"`
	SchemaVersion   json.RawMessage `json:"schema_version"`
}

// DecodeV3 reads one record of a v3 request, which must be valid JSON: {"partition_id",
// "headers":[{"name","value"}],"key":{"type","data"},"value":{"type","data"},"timestamp"}. Unknown
// members are ignored. The record has no topic, AnyPartition where it names none, and a
// timestamp in any case.
func DecodeV3(text []byte) (V3Record, *event.Error) {
	var r v3Record
	if err := unmarshal(text, &r); err != nil {
		ee := err.(*event.Error) //nolint:errorlint,forcetypeassert // it makes no other
		ee.Msg = strings.Replace(ee.Msg, "the body is", "the record is", 1)
		return V3Record{}, ee
	}
	return r.decode()
}

func (r *v3Record) decode() (into V3Record, err *event.Error) {
	into.Partition = event.AnyPartition
	if r.Partition != nil {
		if *r.Partition < 0 {
			return into, event.Errorf(event.NotFound, 40402, op, "partition_id is %d; it must be a number from 0 up", *r.Partition)
		}
		into.Partition = *r.Partition
	}
	if into.Key, into.KeyPart, err = r.Key.decode("key"); err != nil {
		return into, err
	}
	if into.Value, into.ValuePart, err = r.Value.decode("value"); err != nil {
		return into, err
	}
	into.Timestamp = time.Now().Truncate(time.Millisecond)
	if !null(r.Timestamp) {
		t, err := ParseTimestamp(strings.Trim(string(r.Timestamp), `"`))
		if err != nil {
			return into, err.(*event.Error) //nolint:errorlint,forcetypeassert // it makes no other
		}
		into.Timestamp = t.Truncate(time.Millisecond)
	}
	for i, h := range r.Headers {
		if h.Name == "" || strings.ContainsRune(h.Name, 0) {
			return into, event.Errorf(event.Unprocessable, 0, op, "headers[%d].name is %q; it must not be empty or hold a NUL", i, h.Name)
		}
		header := event.Header{Key: h.Name}
		if h.Value != nil {
			v, err := base64.StdEncoding.AppendDecode([]byte{}, []byte(*h.Value))
			if err != nil {
				return into, event.Errorf(event.Invalid, 0, op, "headers[%d].value is not base64", i)
			}
			header.Value = v
		}
		into.Headers = append(into.Headers, header)
	}
	return into, nil
}

func (d *v3Data) decode(name string) ([]byte, V3Part, *event.Error) {
	if d == nil {
		return nil, V3Part{}, nil
	}
	if d.Type == nil {
		return nil, V3Part{}, event.Errorf(event.Unprocessable, 0, op, "%s.type is missing, which would mean the latest schema of a schema registry, and there is none; it must be BINARY, JSON or STRING", name)
	}
	part := V3Part{Type: *d.Type}
	switch part.Type {
	case "BINARY", "JSON", "STRING":
	case "AVRO", "JSONSCHEMA", "PROTOBUF":
		return nil, part, event.Errorf(event.Unprocessable, 0, op, "%s.type %s needs a schema registry, which there is none of; it must be BINARY, JSON or STRING", name, part.Type)
	default:
		return nil, part, event.Errorf(event.Unprocessable, 0, op, "%s.type is %q; it must be BINARY, JSON or STRING", name, part.Type)
	}
	for member, raw := range map[string]json.RawMessage{
		"subject": d.Subject, "subject_name_strategy": d.SubjectStrategy, "schema": d.Schema, "schema_id": d.SchemaID, "schema_version": d.SchemaVersion,
	} {
		if !null(raw) {
			return nil, part, event.Errorf(event.Unprocessable, 0, op, "%s.%s is of types that need a schema registry; leave it out with type %s", name, member, part.Type)
		}
	}
	if null(d.Data) {
		return nil, part, nil
	}
	if part.Type == "JSON" {
		var b bytes.Buffer
		_ = json.Compact(&b, d.Data) // it was parsed once already
		part.Size = b.Len()
		return b.Bytes(), part, nil
	}
	var text string
	if err := json.Unmarshal(d.Data, &text); err != nil {
		return nil, part, event.Errorf(event.Invalid, 0, op, "%s.data is %s; with type %s it must be a string", name, kindOf(d.Data), part.Type)
	}
	b := []byte(text)
	if part.Type == "BINARY" {
		var err error
		if b, err = base64.StdEncoding.AppendDecode([]byte{}, b); err != nil {
			return nil, part, event.Errorf(event.Invalid, 0, op, "%s.data is not a base64 string (of the standard alphabet, with padding)", name)
		}
	}
	part.Size = len(b)
	return b, part, nil
}

// V3Entry is a record of a batch: Err says why it is none.
type V3Entry struct {
	ID string
	V3Record
	Err *event.Error
}

// DecodeV3Batch reads the body of records:batch: {"entries":[{"id":"1", …as DecodeV3…}]}.
func DecodeV3Batch(body []byte, maxEntries int) ([]V3Entry, error) {
	var req struct {
		Entries []json.RawMessage `json:"entries"`
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, V3EmptyBody()
	}
	if err := unmarshal(body, &req); err != nil {
		return nil, err
	}
	switch n := len(req.Entries); {
	case n == 0:
		return nil, V3Invalid(codeBatchInvalid, `entries is empty or missing; the body must be {"entries":[{"id":"1","value":…}]}`)
	case n > maxEntries:
		return nil, V3Invalid(codeBatchInvalid, "there are %d entries; a batch takes at most %d (MAX_BATCH_ENTRIES)", n, maxEntries)
	}
	entries := make([]V3Entry, len(req.Entries))
	seen := make(map[string]bool, len(entries))
	for i, text := range req.Entries {
		var id struct {
			ID *string `json:"id"`
		}
		if err := json.Unmarshal(text, &id); err != nil || id.ID == nil || *id.ID == "" || utf8.RuneCountInString(*id.ID) > 80 {
			return nil, V3Invalid(codeBatchInvalid, "entries[%d].id must be a string of 1 to 80 characters", i)
		}
		if twice := checkRepeated(text, &id); twice != nil {
			return nil, V3Invalid(codeBatchInvalid, "entries[%d].%s", i, twice.Msg)
		}
		if seen[*id.ID] {
			return nil, V3Invalid(codeBatchInvalid, "entries[%d].id is %q, which another entry has; the ids must be distinct", i, *id.ID)
		}
		seen[*id.ID] = true
		entries[i].ID = *id.ID
		entries[i].V3Record, entries[i].Err = DecodeV3(text)
	}
	return entries, nil
}

// V3Place is what a report says of a stored record beside its parts.
type V3Place struct {
	Cluster, Topic string
	Partition      int32
	Offset         int64
	Timestamp      time.Time
}

// AppendV3Report appends the report of a stored record, as a member of an object that has been
// begun: "error_code":200 or "id":… is the caller's. It ends the object.
func AppendV3Report(b []byte, p V3Place, key, value V3Part) []byte {
	b = appendString(append(b, `"cluster_id":`...), p.Cluster)
	b = appendString(append(b, `,"topic_name":`...), p.Topic)
	b = strconv.AppendInt(append(b, `,"partition_id":`...), int64(p.Partition), 10)
	b = strconv.AppendInt(append(b, `,"offset":`...), p.Offset, 10)
	b = p.Timestamp.UTC().AppendFormat(append(b, `,"timestamp":`...), `"2006-01-02T15:04:05.000Z"`)
	b = key.append(b, `,"key":`)
	b = value.append(b, `,"value":`)
	return append(b, '}')
}

func (p V3Part) append(b []byte, name string) []byte {
	if p.Type == "" {
		return b
	}
	b = append(append(append(append(b, name...), `{"type":"`...), p.Type...), `","size":`...)
	return append(strconv.AppendInt(b, int64(p.Size), 10), '}')
}

// AppendV3Batch appends the answer to a batch. places has the place of each entry that has no
// Err; errorOf gives the code and message of the others.
func AppendV3Batch(b []byte, entries []V3Entry, places []V3Place, errorOf func(error) (int, string)) []byte {
	var failures []byte
	b = append(b, `{"successes":[`...)
	first := len(b)
	for i, e := range entries {
		if e.Err != nil {
			if len(failures) > 0 {
				failures = append(failures, ',')
			}
			code, msg := errorOf(e.Err)
			failures = append(appendString(append(failures, `{"id":`...), e.ID), ',')
			failures = append(failures, AppendError(nil, code, msg)[1:]...)
			continue
		}
		if len(b) > first {
			b = append(b, ',')
		}
		b = append(appendString(append(b, `{"id":`...), e.ID), ',')
		b = AppendV3Report(b, places[i], e.KeyPart, e.ValuePart)
	}
	b = append(append(b, `],"failures":[`...), failures...)
	return append(b, "]}"...)
}
