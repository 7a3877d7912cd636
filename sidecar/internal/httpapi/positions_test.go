package httpapi_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// offsets reads until n records have come, and lists their offsets.
func (s *service) offsets(base string, n int) []string {
	s.t.Helper()
	var out []string
	eventually(s.t, fmt.Sprint(n, " records come"), func() bool {
		got := s.do("GET", base+"/records?timeout=500", "")
		got.want(s.t, "read", 200, "")
		for _, m := range regexp.MustCompile(`"offset":(\d+)`).FindAllStringSubmatch(got.body, -1) {
			out = append(out, m[1])
		}
		return len(out) >= n
	})
	return out
}

func (s *service) wantOffsets(what, base, want string) {
	s.t.Helper()
	n := len(strings.Fields(want)) // more may have come since
	if got := fmt.Sprint(s.offsets(base, n)[:n]); got != "["+want+"]" {
		s.t.Errorf("%s: it reads %s; want %s", what, got, want)
	}
}

const b0 = `{"partitions":[{"topic":"b","partition":0}]}`

func TestPositions(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for i := range 6 {
		s.do("POST", fmt.Sprintf("/topics/b/records?timestamp=%d", 1767323045000+1000*i), fmt.Sprint(i)).want(t, "a record", 200, "")
	}
	subscribed := s.joined("/consumers/g", "c", `"auto.offset.reset":"earliest"`, "b")
	s.do("POST", "/consumers/h", `{"name":"c","format":"json","auto.offset.reset":"earliest"}`, plainV2).want(t, "create", 200, "")
	assigned := "/consumers/h/instances/c"
	s.do("POST", assigned+"/assignments", b0, plainV2).want(t, "assign", 204, "")
	s.do("GET", assigned+"/assignments/", "").want(t, "what is assigned", 200, b0)
	for _, base := range []string{subscribed, assigned} {
		to := func(path, body string) {
			t.Helper()
			s.do("POST", base+"/positions"+path, body, plainV2).want(t, "seek to "+body, 204, "")
		}
		s.wantOffsets("at first", base, "0 1 2 3 4 5")
		to("/", `{"offsets":[{"topic":"b","partition":0,"offset":4,"metadata":"x"}]}`)
		s.do("POST", base+"/offsets", "").want(t, "commit", 200, "[]")
		s.do("GET", base+"/offsets", b0, plainV2).want(t, "what came before a seek is not committed after it", 200, `{"offsets":[]}`)
		s.wantOffsets("after a seek, at the offset", base, "4 5")
		to("", `{"timestamps":[{"topic":"b","partition":0,"timestamp":"2026-01-02T03:04:06.5Z"}]}`)
		s.wantOffsets("the first record of a time or later", base, "2 3 4 5")
		to("", `{"timestamps":[{"topic":"b","partition":0,"timestamp":1767323050000}]}`)
		s.wantOffsets("a time in milliseconds", base, "5")
		to("/beginning", b0)
		if got := s.offsets(base+"", 1); got[0] != "0" {
			t.Errorf("at the beginning it reads %v", got)
		}
		to("/end/", b0)
		s.do("GET", base+"/records?timeout=200", "").want(t, "at the end", 200, "[]")
		s.do("POST", "/topics/b/records", "new").want(t, "a record", 200, "")
		if got := s.offsets(base, 1); len(got) != 1 {
			t.Errorf("after a seek to the end come %v", got)
		}
		// A read that waits does not hold up a seek.
		waiting := make(chan answer)
		go func() { waiting <- s.do("GET", base+"/records?timeout=20000", "") }()
		time.Sleep(200 * time.Millisecond)
		start := time.Now()
		to("/beginning", b0)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("a seek during a read took %v", took)
		}
		(<-waiting).want(t, "the read that waited", 200, "[]")
		if got := s.offsets(base, 1); got[0] != "0" {
			t.Errorf("after it: %v", got)
		}
		s.do("POST", base+"/offsets", `{"offsets":[{"topic":"b","partition":0,"offset":2}]}`, plainV2).want(t, "commit", 200, "[]")
		s.do("GET", base+"/offsets", b0, plainV2).want(t, "committed", 200, `{"offsets":[{"topic":"b","partition":0,"offset":3,"metadata":""}]}`)

		for body, want := range map[string]int{
			`{"offsets":[{"topic":"b","partition":0,"offset":1000}]}`:      422, // Kafka would go back to the beginning
			`{"offsets":[{"topic":"b","partition":0,"offset":-1}]}`:        422,
			`{"offsets":[{"topic":"b","offset":1}]}`:                       422,
			`{"offsets":[{"topic":"b","partition":7,"offset":1}]}`:         409,
			`{"offsets":[{"topic":"a","partition":0,"offset":1}]}`:         409,
			`{"timestamps":[{"topic":"b","partition":0,"timestamp":"x"}]}`: 422,
			`{"timestamps":[{"topic":"b","partition":0}]}`:                 422,
			`{}`: 422, `[]`: 422, ``: 400, `{`: 400,
		} {
			if got := s.do("POST", base+"/positions", body, plainV2); got.status != want {
				t.Errorf("positions %s: %d %s; want %d", body, got.status, got.body, want)
			}
		}
	}
	// The two ways to get partitions exclude each other.
	if got := s.do("POST", subscribed+"/assignments", b0, plainV2); got.status != 409 || got.code(t) != 40903 {
		t.Errorf("assign to a session that is subscribed: %d %s", got.status, got.body)
	}
	if got := s.do("POST", assigned+"/subscription", `{"topics":["b"]}`, plainV2); got.status != 409 || got.code(t) != 40903 {
		t.Errorf("subscribe one that has partitions assigned: %d %s", got.status, got.body)
	}
	for body, want := range map[string]int{
		`{"partitions":[{"topic":"b","partition":9}]}`:                  404,
		`{"partitions":[{"topic":"none","partition":0}]}`:               404,
		`{"partitions":[{"topic":"_postamt.own","partition":0}]}`:       404,
		`{"partitions":[{"topic":"__consumer_offsets","partition":0}]}`: 404,
		`{"partitions":[{"topic":"b"}]}`:                                422,
		`{}`:                                                            422, ``: 400,
	} {
		if got := s.do("POST", assigned+"/assignments", body, plainV2); got.status != want {
			t.Errorf("assignments %s: %d %s; want %d", body, got.status, got.body, want)
		}
	}
	s.do("POST", assigned+"/assignments", `{"partitions":[]}`, plainV2).want(t, "give the partitions back", 204, "")
	if got := s.do("POST", assigned+"/positions/end", b0, plainV2); got.status != 409 || got.code(t) != 40903 {
		t.Errorf("seek without partitions: %d %s", got.status, got.body)
	}
	s.do("POST", assigned+"/subscription", `{"topics":["b"]}`, plainV2).want(t, "subscribe instead", 204, "")
	s.do("DELETE", assigned+"/subscription", "").want(t, "unsubscribe", 204, "")
	s.do("POST", assigned+"/assignments", b0, plainV2).want(t, "and assign again", 204, "")
	s.wantOffsets("from what was committed", assigned, "3 4 5")
}

// What "latest" is, is decided when the session subscribes, however late it reads.
func TestLatestIsFromTheSubscriptionOn(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/b/records", "old").want(t, "a record", 200, "")
	for _, how := range []string{`subscription|{"topics":["b"]}`, `subscription|{"topic_pattern":"b|x"}`, `assignments|` + b0} {
		verb, body, _ := strings.Cut(how, "|")
		s.do("POST", "/consumers/"+fmt.Sprintf("%x", how), `{"name":"c","format":"json"}`, plainV2).want(t, "create", 200, "")
		base := "/consumers/" + fmt.Sprintf("%x", how) + "/instances/c"
		s.do("POST", base+"/"+verb, body, plainV2).want(t, how, 204, "")
		place := s.do("POST", "/topics/b/records", "new")
		want := regexp.MustCompile(`"offset":(\d+)`).FindStringSubmatch(place.body)[1]
		if got := s.offsets(base, 1); got[0] != want {
			t.Errorf("%s: it reads %v; want %s", how, got, want)
		}
	}
}

// Kafka lets nobody commit for a group beside its members.
func TestAssignedByHandBesideMembers(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	s.do("POST", "/topics/b/records", "0").want(t, "a record", 200, "")
	s.joined("/consumers/g", "member", "", "b")
	s.do("POST", "/consumers/g", `{"name":"hand","format":"json","auto.offset.reset":"earliest"}`, plainV2).want(t, "create", 200, "")
	base := "/consumers/g/instances/hand"
	s.do("POST", base+"/assignments", b0, plainV2).want(t, "assign", 204, "")
	s.wantOffsets("it reads", base, "0")
	if got := s.do("POST", base+"/offsets", ""); got.status != 409 || got.code(t) != 40903 || !strings.Contains(got.body, "has members") {
		t.Errorf("commit beside a member: %d %s", got.status, got.body)
	}
}
