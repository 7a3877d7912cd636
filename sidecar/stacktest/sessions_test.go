//go:build stack

package stacktest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// A session may fail this long in a row: the group's timeout of a member and a rebalance.
	longestFailure = 20 * time.Second
	faultsTime     = 90 * time.Second
)

// sharedRecords is what the sessions of one consumer group have got.
type sharedRecords struct {
	mu        sync.Mutex
	read      map[place]bool
	committed map[int32]int64 // by partition: the offset after the last whose commit was answered
	at        map[int32]time.Time
	twice     []string
}

// begin is what has been committed when a read begins: that must not be in its answer.
func (s *sharedRecords) begin() map[int32]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.committed)
}

func (s *sharedRecords) got(session string, records []record, begun time.Time, committed map[int32]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		p := place{r.Topic, r.Partition, r.Offset}
		s.read[p] = true
		if r.Offset < committed[r.Partition] {
			s.twice = append(s.twice, fmt.Sprintf("%s read %v at %s, committed up to %d at %s", session, p, begun.Format("05.000"), committed[r.Partition], s.at[r.Partition].Format("05.000")))
		}
	}
}

func (s *sharedRecords) commit(last map[int32]record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for partition, r := range last {
		if s.committed[partition] <= r.Offset {
			s.committed[partition], s.at[partition] = r.Offset+1, time.Now()
		}
	}
}

func (s *sharedRecords) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.read)
}

// committedIn asks how many records of a topic of 6 partitions the group of a session has
// committed: what Kafka says, since a commit whose answer was lost may have been made.
func committedIn(url, topic string) (int, error) {
	var query []string
	for partition := range 6 {
		query = append(query, fmt.Sprintf("topic=%s&partition=%d", topic, partition))
	}
	got, err := request("GET", url+"/offsets?"+strings.Join(query, "&"), "")
	if err != nil || got.status != 200 {
		return 0, fmt.Errorf("committed offsets: %v %w", got, err)
	}
	var in struct {
		Offsets []struct{ Offset int }
	}
	if err := json.Unmarshal([]byte(got.body), &in); err != nil {
		return 0, err
	}
	sum := 0
	for _, o := range in.Offsets {
		sum += o.Offset
	}
	return sum, nil
}

// puller is a client of one pull session. It has no cookies, so that each of its requests goes
// to the next replica.
type puller struct {
	name, url string
	shared    bool // its group has a second session
	group     *sharedRecords
	client    *http.Client

	requests, failed int
	failing          time.Time // since when, zero: it is not
	longest          time.Duration
	why              string // of the longest
	first            []string
}

// ask sends a request, and notes whether it succeeded. A 409 is an answer: of a session that
// has moved, or a partition that has.
func (p *puller) ask(method, path, body string, ok ...int) (answer, bool) {
	begun := time.Now()
	var headers []string
	if body != "" {
		headers = []string{"Content-Type: " + v2}
	}
	got, err := requestBy(p.client, method, p.url+path, body, headers...)
	p.requests++
	if err == nil && slices.Contains(append(ok, 409), got.status) {
		p.failing = time.Time{}
		return got, got.status != 409
	}
	if p.failed++; len(p.first) < 3 {
		p.first = append(p.first, fmt.Sprintf("%s %s at %s after %v: %v %v", method, path, begun.Format("05.000"), time.Since(begun), got, err))
	}
	if p.failing.IsZero() {
		p.failing = begun
	}
	if took := time.Since(p.failing); took > p.longest {
		p.longest, p.why = took, fmt.Sprintf("%s %s: %v %v", method, path, got, err)
	}
	time.Sleep(100 * time.Millisecond)
	return got, false
}

// run reads and commits until ctx ends, and seeks back to what it has not committed.
func (p *puller) run(ctx context.Context, t *testing.T) {
	last, sought := make(map[int32]record), make(map[int32]record) // read and not committed; to come next
	for turn := 0; ctx.Err() == nil; turn++ {
		// What was read before, and could not be committed, may have been given by a replica that is
		// gone: a commit without offsets is of what the present one has given.
		left := len(last) > 0
		records, ok := p.read(t, "&max_bytes=2000")
		if !ok {
			continue
		}
		first := make(map[int32]record)
		for _, r := range records {
			if _, seen := first[r.Partition]; !seen {
				first[r.Partition] = r
			}
			last[r.Partition] = r
		}
		for partition, r := range first {
			if at, ok := sought[partition]; ok && r.Offset != at.Offset {
				t.Errorf("%s: after a seek of partition %d to %d comes %d", p.name, partition, at.Offset, r.Offset)
			}
			delete(sought, partition)
		}
		if turn%7 == 3 && !p.shared && len(records) > 0 {
			if p.seek(ctx, first) {
				maps.Copy(sought, first)
				clear(last)
				continue
			}
		}
		if len(last) == 0 {
			continue
		}
		body := "" // all that was read
		if turn%2 == 0 || p.shared || left {
			body = offsetsOf(last)
		}
		got, ok := p.ask("POST", "/offsets", body, 200)
		if ok {
			p.group.commit(last)
		}
		if ok || got.status == 409 && (p.shared || body == "") { // it comes again, here or there
			clear(last)
		}
	}
}

// seek goes back to where a read began: it has to come again. A seek without an answer may have
// been made, and to commit what was read does not undo it: it is repeated.
func (p *puller) seek(ctx context.Context, first map[int32]record) bool {
	for {
		got, ok := p.ask("POST", "/positions", offsetsOf(first), 204)
		if ok || got.status == 409 || ctx.Err() != nil {
			return ok
		}
	}
}

func (p *puller) read(t *testing.T, query string) ([]record, bool) {
	begun, committed := time.Now(), p.group.begin()
	got, ok := p.ask("GET", "/records?timeout=1000"+query, "", 200)
	if !ok {
		return nil, false
	}
	var records []record
	if err := json.Unmarshal([]byte(got.body), &records); err != nil {
		t.Errorf("%s: %v is not an array of records", p.name, got)
	}
	p.group.got(p.name, records, begun, committed)
	return records, true
}

func offsetsOf(records map[int32]record) string {
	var list []string
	for _, r := range records {
		list = append(list, fmt.Sprintf(`{"topic":%q,"partition":%d,"offset":%d}`, r.Topic, r.Partition, r.Offset))
	}
	return `{"offsets":[` + strings.Join(list, ",") + `]}`
}

// Twenty sessions go on while replicas are killed and started again: every record is read, none
// that was committed comes again, and no session fails for long.
func TestFaultAnyReplicaAnswersForAnySession(t *testing.T) {
	replicas := scale(t, "consumer", 3)
	t.Cleanup(func() {
		docker(t, append([]string{"start"}, replicas...)...)
		awaitServers(t, "consumer", 3)
		scale(t, "consumer", 2)
	})
	topic := newTopic(t, 6)
	var pullers []*puller
	var groups []*sharedRecords
	for g := range 15 { // ten groups of one, five of two
		group := &sharedRecords{read: make(map[place]bool), committed: make(map[int32]int64), at: make(map[int32]time.Time)}
		groups = append(groups, group)
		name := unique("sessions")
		for i := range 1 + g/10 {
			in := fmt.Sprintf("c%d", i)
			expect(t, 200, "POST", "/consumers/"+name, fmt.Sprintf(`{"name":%q,"format":"text","auto.offset.reset":"earliest"}`, in), "Content-Type: "+v2)
			url := "/consumers/" + name + "/instances/" + in
			expect(t, 204, "POST", url+"/subscription", fmt.Sprintf(`{"topics":[%q]}`, topic), "Content-Type: "+v2)
			pullers = append(pullers, &puller{name: name + "/" + in, url: url, shared: g >= 10, group: group, client: &http.Client{Timeout: time.Minute, Transport: checked}})
		}
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var pulling, producing sync.WaitGroup
	for _, p := range pullers {
		pulling.Go(func() { p.run(ctx, t) })
	}
	produced := 0
	faulty, recovered := context.WithTimeout(context.Background(), faultsTime)
	defer recovered()
	producing.Go(func() {
		client, err := kgo.NewClient(kgo.SeedBrokers(project.broker), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.RoundRobinPartitioner()))
		if err != nil {
			t.Error(err)
			return
		}
		defer client.Close()
		for ; faulty.Err() == nil; produced++ {
			if err := client.ProduceSync(context.Background(), kgo.StringRecord(fmt.Sprintf("%d-%0100d", produced, 0))).FirstErr(); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
	})
	kills := 0
	for faulty.Err() == nil {
		time.Sleep(time.Duration(2+rand.IntN(3)) * time.Second)
		victims := slices.Clone(replicas)
		rand.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		victims = victims[:1+kills%2] // one, or two at once
		docker(t, append([]string{"kill", "--signal", "KILL"}, victims...)...)
		kills += len(victims)
		time.Sleep(time.Duration(1+rand.IntN(6)) * time.Second)
		docker(t, append([]string{"start"}, victims...)...)
		awaitServers(t, "consumer", 3)
	}
	producing.Wait()
	err := poll(time.Minute, func() error {
		for i, p := range pullers {
			committed, err := committedIn(p.url, topic)
			if err != nil {
				return err
			}
			if read := p.group.count(); read < produced || committed < produced {
				return fmt.Errorf("session %d: its group has read %d and committed %d of %d records", i, read, committed, produced)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	stop()
	pulling.Wait()

	requests, failed := 0, 0
	var longest time.Duration
	for _, p := range pullers {
		requests, failed, longest = requests+p.requests, failed+p.failed, max(longest, p.longest)
		if p.longest > longestFailure {
			t.Errorf("%s failed for %v in a row, in the end with %s", p.name, p.longest, p.why)
		}
		if testing.Verbose() {
			for _, f := range p.first {
				t.Logf("%s: %s", p.name, f)
			}
		}
		if got, err := request("DELETE", p.url, ""); err != nil || got.status != 204 {
			t.Errorf("delete %s: %v %v", p.name, got, err)
		}
	}
	for i, g := range groups {
		if len(g.twice) > 0 {
			t.Errorf("group %d: %d committed records came again, first %s", i, len(g.twice), g.twice[0])
		}
	}
	t.Logf("%d records to each of %d groups; %d kills; %d of %d requests failed, the longest row for %v", produced, len(groups), kills, failed, requests, longest)
	if kills < 6 {
		t.Errorf("only %d kills", kills)
	}
}
