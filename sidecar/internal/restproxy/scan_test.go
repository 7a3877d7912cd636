package restproxy

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// ordinary are bodies that must not need encoding/json, else the speed is gone.
var ordinary = map[string]Format{
	`{"records":[{"value":{"a":1}}]}`: JSON,
	` { "records" : [ { "key" : "k" , "value" : [ 1 , true , null , -0.5e+3 , "" ] , "partition" : 3 } ] } `:   JSON,
	`{"value_schema_id":null,"records":[{"value":"Köln \u00e9 \"\\ \ud83d\ude00","x":{"y":[]}},{"value":{}}]}`: JSON,
	`{"records":[{"key":null,"value":null,"timestamp":null,"partition":null,"headers":null}]}`:                 JSON,
	`{"records":[{"value":1,"timestamp":1700000000000},{"value":2,"timestamp":"2026-01-02T03:04:05Z"}]}`:       JSON,
	`{"records":[{"value":1,"headers":[{"key":"a","value":"AQI="},{"key":"b","value":null}]}]}`:                JSON,
	`{"records":[{"key":"AQI=","value":""},{"value":"AQIDBA=="},{"value":"AQ=="}]}`:                            Binary,
	`{"records":[{"key":"plain","value":"with \n escape"},{"value":""}]}`:                                      Text,
}

func TestScanTakesOrdinaryBodies(t *testing.T) {
	for body, format := range ordinary {
		scanned, ok := scanProduce([]byte(body), format, 10)
		if !ok {
			t.Errorf("%s: left to encoding/json", body)
			continue
		}
		parsed, err := parseProduce([]byte(body), format, 10)
		if err != nil || !reflect.DeepEqual(scanned, parsed) {
			t.Errorf("%s:\nscanned %+v\nparsed  %+v, %v", body, scanned, parsed, err)
		}
	}
}

func TestScanLeavesTheRestToTheParser(t *testing.T) {
	for _, body := range []string{
		``, `null`, `[]`, `{}`, `{"records":[]}`, `{"records":null}`, `{"records":[null]}`, `{"records":[1]}`,
		`{"records":[{"value":1}]}x`, `{"records":[{"value":1}]`, `{"records":[{"value":1},]}`, `{"records":[{"value":1,}]}`,
		`{"records":[{"value":01}]}`, `{"records":[{"value":1.}]}`, `{"records":[{"value":-}]}`, `{"records":[{"value":1e}]}`,
		`{"records":[{"value":"a` + "\n" + `"}]}`, `{"records":[{"value":"\x"}]}`, `{"records":[{"value":"\u12g4"}]}`, `{"records":[{"value":"\`,
		"{\"records\":[{\"value\":\"\xff\"}]}", "{\"records\":[{\"value\":\"\xc3", `{"records":[{"value":tru}]}`, `{"records":[{"value":nul`,
		`{"records":[{"value":1,"value":2}]}`, `{"records":[],"records":[{"value":1}]}`,
		`{"records":[{"value":1,"headers":[{"key":"a","key":"b"}]}]}`, `{"records":[{"Value":1}]}`, `{"RECORDS":[{"value":1}]}`, `{"records":[{"\u0076alue":1}]}`,
		`{"records":[{"value":1,"partition":-1}]}`, `{"records":[{"value":1,"partition":4294967296}]}`, `{"records":[{"value":1,"partition":1.0}]}`,
		`{"records":[{"value":1,"timestamp":-5}]}`, `{"records":[{"value":1,"headers":[{"key":"","value":null}]}]}`, `{"records":[{"value":1,"headers":7}]}`,
		`{"records":[{"value":1},{"value":2},{"value":3}]}`, // more than two
		`{"records":[{"value":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}]}`,
	} {
		if records, ok := scanProduce([]byte(body), JSON, 2); ok {
			t.Errorf("%q was taken: %+v", body, records)
		}
	}
	for _, body := range []string{`{"records":[{"value":1}]}`, `{"records":[{"value":"!"}]}`, `{"records":[{"value":"A"}]}`} {
		if _, ok := scanProduce([]byte(body), Binary, 2); ok {
			t.Errorf("%q was taken as binary", body)
		}
	}
}

// FuzzScan holds the scanner to the parser: what it takes, it takes as the parser does, and
// keys and values lie apart from each other.
func FuzzScan(f *testing.F) {
	for body, format := range ordinary {
		f.Add([]byte(body), string(format))
	}
	f.Add([]byte(`{"records":[{"value":"aaaaaaaa\"bbbbbbbb"}]}`), "json")
	f.Add([]byte(`{"records":[{"value":{"k":"1234567é\u12aB"}}],"x":[{},[],"",0]}`), "json")
	f.Add([]byte(`{"records":[{"value":1,"headers":[{"key":"a","value":"","key":"b"}]}],"records":[]}`), "json")
	f.Fuzz(func(t *testing.T, body []byte, name string) {
		format, err := ParseFormat(name)
		if err != nil {
			return
		}
		before := bytes.Clone(body)
		scanned, ok := scanProduce(body, format, 20)
		if !bytes.Equal(body, before) {
			t.Fatal("the body was changed")
		}
		parsed, err := parseProduce(body, format, 20)
		if ok && (err != nil || !reflect.DeepEqual(scanned, parsed)) {
			t.Fatalf("%q\nscanned %+v\nparsed  %+v, %v", body, scanned, parsed, err)
		}
	})
}

func produceBody(records int, value string) []byte {
	return []byte(`{"records":[` + strings.TrimSuffix(strings.Repeat(`{"value":`+value+`},`, records), ",") + `]}`)
}

const voucher = `{"code":"V-00000001","amount":49.95,"currency":"EUR","store":{"id":17,"city":"Köln"},"items":[{"sku":"4006381333931","qty":1}],"sold_at":"2026-01-02T03:04:05Z","note":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}`

func BenchmarkDecodeProduce(b *testing.B) {
	base64 := `"` + strings.Repeat("QUJD", 67) + `"`
	for _, c := range []struct {
		records int
		format  Format
		value   string
	}{{1, JSON, voucher}, {100, JSON, voucher}, {1000, JSON, voucher}, {100, Binary, base64}, {100, Text, base64}} {
		body := produceBody(c.records, c.value)
		for name, decode := range map[string]func([]byte, Format, int) (int, error){
			"scan":          func(b []byte, f Format, n int) (int, error) { r, err := DecodeProduce(b, f, n); return len(r), err },
			"encoding/json": func(b []byte, f Format, n int) (int, error) { r, err := parseProduce(b, f, n); return len(r), err },
		} {
			b.Run(fmt.Sprintf("%s/%s/%d", name, c.format, c.records), func(b *testing.B) {
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					if n, err := decode(body, c.format, c.records); n != c.records || err != nil {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
