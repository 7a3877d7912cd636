package filter

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

func record(value string) *event.Record {
	return &event.Record{
		Topic: "test.voucher.sold", Partition: 2, Offset: 7, Key: []byte("shop-1"), Value: []byte(value),
		Timestamp: time.UnixMilli(1767323045678),
		Headers:   []event.Header{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}, {Key: "null"}, {Key: "bytes", Value: []byte{0xff, 'x'}}},
	}
}

const (
	yes     = "yes"
	no      = "no"
	missing = "missing"
)

// verdict shows what a filter says as one word, an error as its text.
func verdict(t *testing.T, expression string, r *event.Record) string {
	t.Helper()
	f, err := Compile(expression)
	if err != nil {
		t.Errorf("%s: %v", expression, err)
		return ""
	}
	match, miss, err := f.Match(t.Context(), r)
	switch {
	case err != nil && (match || miss), match && miss:
		t.Errorf("%s: match %v, missing %v, %v at the same time", expression, match, miss, err)
	case err != nil:
		return err.Error()
	case miss:
		return missing
	case match:
		return yes
	}
	return no
}

func TestWhatAnExpressionSees(t *testing.T) {
	const value = `{"amount":50.5,"count":3,"name":"Übergabe","tags":["new","sale"],"items":[{"price":5},{"price":70}],"gone":null,"ok":true,
		"id":9007199254740993,"huge":18446744073709551615,"googol":1e100,"beyond":1e999,"minus":-9007199254740993,"zero":-0.0,"in.dots":1}`
	for expression, want := range map[string]string{
		// The record
		"topic == 'test.voucher.sold' && partition == 2 && offset == 7": yes,
		"timestamp == timestamp('2026-01-02T03:04:05.678Z')":            yes,
		"timestamp > timestamp('2027-01-01T00:00:00Z')":                 no,
		"timestamp.getFullYear() == 2026 && timestamp.getHours() == 3":  yes,
		"key == 'shop-1' && key != null && key.startsWith('shop-')":     yes,
		"headers['a'] == '2' && headers['null'] == ''":                  yes,
		"headers.bytes == '\uFFFDx' && size(headers) == 3":              yes,
		"'a' in headers && !('b' in headers)":                           yes,
		"headers.b == 'x'":                                              missing,
		"has(headers.b) && headers.b == 'x'":                            no,

		// A CloudEvent's attributes of a record that is none
		"type == 'voucher.sold'":                                  yes,
		"source == '/topics/test.voucher.sold'":                   yes,
		"subject == 'shop-1'":                                     yes,
		"id == 'test.voucher.sold/2/7/1767323045678'":             yes,
		"time == timestamp":                                       yes,
		"type in ['voucher.sold', 'voucher.returned']":            yes,
		"type.matches('^voucher[.](sold|returned)$')":             yes,
		"matches(type, '^voucher$')":                              no,
		"type == 'voucher.sold' && data.amount > 50":              yes, // the example of the documentation
		"type == 'voucher.sold' ? data.amount > 60 : data.nosuch": no,

		// The value: numbers
		"data.amount > 50 && data.amount > 50.0 && data.amount < 51": yes,
		"data.count == 3 && data.count == 3.0 && data.count >= 3u":   yes,
		"data.count * 2.0 == 6.0 && data.count + data.amount > 53":   yes,
		"data.count * 2 == 6":                                 "the filter uses a value as another type than it has in this record",
		"int(data.count) % 2 == 1":                            yes,
		"data.id == 9007199254740993":                         yes, // a double would be ...992
		"data.id == 9007199254740992":                         no,
		"data.minus == -9007199254740993 && data.minus < 0":   yes,
		"data.huge == 18446744073709551615u && data.huge > 1": yes,
		"data.googol > 1e99 && data.beyond > data.googol":     yes,
		"data.zero == 0":                                      yes,

		// The value: the rest
		"data.name == 'Übergabe' && data.name.size() == 8 && data.name.contains('gabe')": yes,
		"'sale' in data.tags && data.tags[1] == 'sale' && size(data.tags) == 2":          yes,
		"data.items.exists(i, i.price > 60) && !data.items.all(i, i.price > 60)":         yes,
		"data.items.exists_one(i, i.price > 60)":                                         yes,
		"data.tags[data.count] == 'x'":                                                   missing,
		"data.gone == null":                                                              yes,
		"data.gone > 5":                                                                  "the filter uses a value as another type than it has in this record",
		"data.ok":                                                                        yes,
		"data['in.dots'] == 1":                                                           yes,
		"data.name":                                                                      "the filter gives a string; it must give true or false",
		"has(data.amount) && !has(data.nosuch) && has(data.gone)":                        yes,
		"data.nosuch == 1":                                                               missing,
		"data.nosuch.deeper.still == 1":                                                  missing,
		"data.amount.field == 1":                                                         missing, // of what is no object
		"data.nosuch == 1 || data.amount > 50":                                           yes,
		"data.nosuch == 1 && data.amount > 60":                                           no,
		"!(data.nosuch == 1)":                                                            missing,
		"data.items.exists(i, i.nosuch == 1)":                                            missing,
		"data.name > 5":                                                                  "the filter uses a value as another type than it has in this record",
		"1 / (data.count > 5 ? 1 : 0) == 1":                                              "division by zero",
		"int(data.name) == 5":                                                            "",
	} {
		got := verdict(t, expression, record(value))
		if want == "" && got != yes && got != no && got != missing && got != "" || got == want {
			continue
		}
		t.Errorf("%s: %s; want %s", expression, got, want)
	}
}

func TestRecordsThatHaveLittle(t *testing.T) {
	event0 := func(headers ...string) *event.Record {
		r := record(`{}`)
		r.Headers = nil
		for i := 0; i < len(headers); i += 2 {
			r.Headers = append(r.Headers, event.Header{Key: headers[i], Value: []byte(headers[i+1])})
		}
		return r
	}
	keyless, binary, tombstone := record(`1`), record(`1`), record("")
	keyless.Key, binary.Key, tombstone.Value = nil, []byte{0xff}, nil
	plain := record(`1`)
	plain.Topic = "my-topic"
	for _, tc := range []struct {
		expression string
		r          *event.Record
		want       string
	}{
		{"key == null && subject == null && data == 1", keyless, yes},
		{"key == 'a' || subject == 'a'", keyless, no},
		{"key == null", binary, yes},
		{"data == null", tombstone, yes},
		{"data.amount > 50", tombstone, missing},
		{"type == 'my-topic'", plain, yes},
		{"size(headers) == 0", event0(), yes},
		{"data == null", record("not json"), yes},
		{"data == null", record("{} {}"), yes},
		{"data == null", record("\"\xff\""), yes},
		{"type.matches('^[a-z]{3,8}[.-][a-z]+$')", record(""), yes},
		{"data == null", record(""), yes},
		{"data == null", record(strings.Repeat("[", 20_000)), yes},
		{"data == 'x'", record(" \"x\"\n"), yes},
		{"data.amount > 50", record("[1]"), "unsupported index type 'string' in list"},
		// A CloudEvent in Kafka's binary binding
		{"type == 'com.example.sold' && source == '/shop' && id == 'A1' && subject == 'voucher/7'", event0("ce_type", "com.example.sold", "ce_source", "/shop", "ce_id", "A1", "ce_subject", "voucher/7"), yes},
		{"time == timestamp('2026-03-04T05:06:07Z') && time != timestamp", event0("ce_time", "2026-03-04T05:06:07Z"), yes},
		{"time == timestamp", event0("ce_time", "yesterday"), yes},
		{"headers.ce_tenant == 'x'", event0("ce_tenant", "x"), yes},
	} {
		if got := verdict(t, tc.expression, tc.r); got != tc.want {
			t.Errorf("%s of %.60q: %s; want %s", tc.expression, tc.r.Value, got, tc.want)
		}
	}
}

func TestMistakesAreNamedWithTheirPosition(t *testing.T) {
	for expression, says := range map[string]string{
		"":                                   "the filter is empty",
		" \n":                                "the filter is empty",
		"\xff == 1":                          "not UTF-8",
		"data.amount >":                      "line 1, column 14: Syntax error",
		"data.amount > 50 &&\n  tpye == 'x'": "line 2, column 3: undeclared reference to 'tpye'",
		"data.amount":                        "",
		"topic":                              "the filter gives a string; it must give true or false",
		"1 + 1":                              "the filter gives a int",
		"topic > 5":                          "line 1, column 7: found no matching overload",
		"topic.nosuch()":                     "line 1, column 13: undeclared reference to 'nosuch'",
		"key == 5":                           "line 1, column 5: found no matching overload",
		"type.matches('(')":                  "missing closing )",
		"type.matches(source)":               "line 1, column 14: the pattern of matches() must be a literal string",
		"type.matches(data.p)":               "must be a literal string",
		"matches(type, type)":                "must be a literal string",
		"type.matches('a{1000}')":            "line 1, column 14: the pattern has 1002 steps",
		"data.map(x, x) == []":               "undeclared reference to 'map'",
		"data.filter(x, true) == []":         "undeclared reference to 'filter'",
		"[1] + [2] == []":                    "found no matching overload",
		"data.a = 1":                         "line 1, column 8: ",
		"a ? b":                              "line 1, column",
		strings.Repeat("x", MaxBytes+1):      "the filter has 4097 bytes; it has at most 4096",
		strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000): "recursion limit",
		strings.Repeat("[", 1001):                                      "recursion limit",
	} {
		f, err := Compile(expression)
		if says == "" {
			if err != nil {
				t.Errorf("%s: %v", expression, err)
			}
			continue
		}
		var ee *event.Error
		if !errors.As(err, &ee) || ee.Kind != event.Unprocessable || !strings.Contains(ee.Msg, says) || f != nil {
			t.Errorf("%.60q: %v; want unprocessable, %q", expression, err, says)
		} else if len(ee.Msg) > 600 {
			t.Errorf("%.60q: the message has %d bytes: %s", expression, len(ee.Msg), ee.Msg)
		}
	}
}

// What is made to cost much ends soon, with an error and not with a hang.
func TestCostlyFiltersEnd(t *testing.T) {
	var numbers strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&numbers, "%d,", i)
	}
	list := "[" + numbers.String() + "-1]"
	long := `{"list":` + list + `,"nested":[` + strings.Repeat("["+list+"],", 20) + `1],"text":"` + strings.Repeat("a", 900_000) + `","part":"` + strings.Repeat("a", 60_000) + `b"}`
	r := record(long)
	for i := range 120_000 {
		r.Headers = append(r.Headers, event.Header{Key: strconv.Itoa(i), Value: []byte("v")})
	}
	for _, expression := range []string{
		strings.TrimSuffix(strings.Repeat("headers == headers && ", 180), " && "),
		"data.list.all(a, headers == headers)",
		"data.list.all(a, [headers] == [headers])",
		"data.list.all(a, {'h': headers} == {'h': headers})",
		"data.list.all(a, data.list.all(b, data.list.all(c, a + b + c > -9.0)))",
		"data.list.exists(a, data.list.exists(b, a + b > 50000.0))",
		"data.list.all(a, data.nested == data.nested)", // a step of the library's that is no small one
		"data.list.all(a, a in data.list)",
		"data.list.all(a, !data.text.contains('aaaaaaaaaaaaaaaaaaaab'))",
		"data.list.all(a, data.part.matches('(a|aa)+b$'))",
		"data.part.matches('(a?){30}b$') && data.list.all(a, data.part.matches('(.*)(.*)(.*)(.*)b'))",
		"data.text.matches('a')",
		strings.TrimSuffix(strings.Repeat("data.part.matches('.{250}c$') || ", 100), " || "),
		"data.list.all(a, data.text + data.text != '')",
		"data.list.all(a, [data.text] == [data.text])",
		"data.list.all(a, {'a': data.text} == {'a': data.text})",
		"data.list.all(a, data.text < data.text + 'a')",
		"data.list.all(a, size(data.text) > 5)",
		"data.list.all(a, bytes(data.text) != b'')",
		"data.list.all(a, data.nested[0] in data.nested)",
		strings.TrimSuffix(strings.Repeat("data.nested == data.nested && ", 130), " && "),
	} {
		begun := time.Now()
		got := verdict(t, expression, r)
		if took := time.Since(begun); took > 20*time.Second {
			t.Errorf("%.80s took %v", expression, took)
		} else {
			t.Logf("%.80s: %s after %v", expression, got, took)
		}
		if got == missing || got == yes || got == no {
			t.Errorf("%.80s: %s; want an error", expression, got)
		}
	}
}

// Nothing ends an expression without a loop but its cost: patterns that are short, and long when they are
// written out, cost what they take.
func TestMatchesCostTheirSteps(t *testing.T) {
	r := record(`{"part":"` + strings.Repeat("a", 30_000) + `"}`)
	const tooMuch = "the filter costs too much for this record: it loops or looks through too much of it"
	for n, want := range map[int]string{2: no, 6: tooMuch} {
		if got := verdict(t, strings.TrimSuffix(strings.Repeat("data.part.matches('.{250}b') || ", n), " || "), r); got != want {
			t.Errorf("%d matches of 30,000 × 250 steps: %s; want %s", n, got, want)
		}
	}
	if got := verdict(t, strings.TrimSuffix(strings.Repeat("data.part.matches('^[a-z]+b$') || ", 10), " || "), r); got != no {
		t.Errorf("10 matches of a common pattern: %s", got)
	}
}

// What is cheap is allowed however large the record is.
func TestCheapFiltersOfLargeRecords(t *testing.T) {
	r := record(`{"list":[` + strings.Repeat("1,", 1000) + `1],"text":"` + strings.Repeat("a", 900_000) + `b"}`)
	for _, expression := range []string{
		"data.list.all(e, size(data.list) > 5 && e == 1)", "size(data.text) == 900001", "data.text.startsWith('aaa') && data.text.endsWith('ab')", "data.text.contains('ab')",
	} {
		if got := verdict(t, expression, r); got != yes {
			t.Errorf("%s: %s", expression, got)
		}
	}
}

func TestOneFilterForManyAtOnce(t *testing.T) {
	f, err := Compile("data.n > 50 && headers.a == '2' || data.s.startsWith('x') || data.list.exists(e, e == data.n)")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(worker))) //nolint:gosec // a test's choices
			for range 500 {
				n := random.IntN(100)
				match, _, err := f.Match(t.Context(), record(fmt.Sprintf(`{"n":%d,"s":"y","list":[7]}`, n)))
				if err != nil || match != (n > 50 || n == 7) {
					t.Errorf("n is %d: %v, %v", n, match, err)
				}
				if _, _, err := f.Match(t.Context(), record(`{"n":"text","s":1}`)); err == nil {
					t.Error("a comparison of text with a number is no error")
				}
			}
		})
	}
	all.Wait()
}

func TestWhoWaitsForAProcessorCanLeave(t *testing.T) {
	all := int64(runtime.GOMAXPROCS(0)) // more than there are
	for processors.TryAcquire(1) {
		defer processors.Release(1)
		if all--; all < 0 {
			t.Fatal("evaluations may take all processors")
		}
	}
	f, err := Compile("true")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if match, miss, err := f.Match(ctx, record("1")); match || miss || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a processor: %v, %v, %v; want nothing decided", match, miss, err)
	}
}

func FuzzCompileAndMatch(f *testing.F) {
	for _, expression := range []string{
		"type == 'voucher.sold' && data.amount > 50", "data.items.exists(i, i.price > 60)", "has(data.a) ? data.a[0] in [1, 2.5, 'x'] : key == null",
		"headers['a'].matches('^[a-z]+$')", "timestamp > timestamp('2026-01-01T00:00:00Z') + duration('1h')", "\"\\u00fc\" == b'x'", "data.a.b[1u].c", "{'a': 1}.a == 1",
	} {
		f.Add(expression, `{"amount":50.5,"items":[{"price":1}],"a":[1]}`)
	}
	f.Add("data", "true")
	f.Add("data == data", "[1e400,-0,18446744073709551616]")
	f.Fuzz(func(t *testing.T, expression, value string) {
		// A hang would be found by nobody otherwise: the fuzzer only waits.
		defer time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("%q of %q does not end", expression, value)) }).Stop()
		compiled, err := Compile(expression)
		if err != nil {
			if ee := (*event.Error)(nil); !errors.As(err, &ee) || ee.Kind != event.Unprocessable || ee.Msg == "" || ee.Msg == msgPanic {
				t.Errorf("%q: %v", expression, err)
			}
			return
		}
		match, miss, err := compiled.Match(t.Context(), record(value))
		if match && (miss || err != nil) || miss && err != nil {
			t.Errorf("%q of %q: %v, %v, %v", expression, value, match, miss, err)
		}
		if err != nil && strings.Contains(err.Error(), "internal error") {
			t.Errorf("%q of %q: %v", expression, value, err)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	for name, expression := range map[string]string{
		"key": "key == 'shop-1'", "type": "type == 'voucher.sold'", "data": "type == 'voucher.sold' && data.amount > 50",
	} {
		b.Run(name, func(b *testing.B) {
			f, err := Compile(expression)
			if err != nil {
				b.Fatal(err)
			}
			r := record(`{"amount":51,"currency":"EUR","shop":"Linden","code":"` + strings.Repeat("x", 140) + `"}`)
			b.ReportAllocs()
			for b.Loop() {
				if match, _, err := f.Match(b.Context(), r); !match || err != nil {
					b.Fatal(match, err)
				}
			}
		})
	}
}
