package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const run = 1795374340000

// deliveryOf is a delivery of a voucher that the register sold.
func deliveryOf(run, number int64, card int, offset int64) delivery {
	v := voucher{run, number, fmt.Sprintf("%s%d", cardPrefix(run), card), 50}
	text, _ := json.Marshal(v)
	return delivery{ID: fmt.Sprintf("test.voucher/2/%d/%d", offset, run+offset), Key: v.Card, Value: text, Arrived: run + offset + 40}
}

func TestBookTellsRepeatsOrderAndWhatIsMissing(t *testing.T) {
	b := newBook(0)
	for _, d := range []delivery{
		deliveryOf(run, 1, 0, 0),
		deliveryOf(run, 3, 0, 2),
		deliveryOf(run, 2, 1, 1),
		deliveryOf(run, 3, 0, 2), // again
		deliveryOf(run, 3, 0, 5), // the register did not learn that it was stored
		deliveryOf(run, 6, 1, 7),
		deliveryOf(run, 5, 1, 6), // late
		deliveryOf(run-1, 9, 0, 9),
		{ID: "test.voucher/0/0/1", Key: "4711", Value: json.RawMessage(`{"amount":50}`)},
		{ID: "no id", Key: "4711"},
	} {
		b = b.take(d)
	}
	if b.Received != 7 || b.Numbers.size() != 5 || b.Repeated != 1 || b.StoredTwice != 1 || b.Earlier != 1 || b.Other != 2 || b.LongestWait != 40*time.Millisecond {
		t.Errorf("the book is %+v", b)
	}
	if b.Busiest != 7 {
		t.Errorf("in the busiest second %d came; want all 7", b.Busiest)
	}
	if len(b.Late) != 1 || b.Late[0] != (late{5, 2, 6}) {
		t.Errorf("out of order came %+v; want number 5", b.Late)
	}
	if n, numbers := b.missing(sold{Last: 9, Unknown: []int64{8}}, 1); n != 3 || !slices.Equal(numbers, []int64{4}) {
		t.Errorf("%d are missing, first %v; want 4, 7 and 9", n, numbers)
	}
	if b = b.take(deliveryOf(run+1, 1, 0, 20)); b.Run != run+1 || b.Received != 1 {
		t.Errorf("the book of the next run is %+v", b)
	}
}

func TestMissingPassesOverWholeWords(t *testing.T) {
	b := newBook(run)
	for number := int64(1); number <= 1000; number++ {
		if number != 1 && number != 512 && number != 703 && number != 1000 {
			b.Numbers.add(number)
		}
	}
	if n, numbers := b.missing(sold{Last: 1000}, 9); n != 4 || !slices.Equal(numbers, []int64{1, 512, 703, 1000}) {
		t.Errorf("%d are missing: %v", n, numbers)
	}
}

func TestFileKeepsTheBookOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "webshop")
	f, s, known, err := openFile(path, "whsec_a")
	if err != nil || known {
		t.Fatalf("a file that is not there: %t, %v", known, err)
	}
	for offset := range int64(3) {
		d := deliveryOf(run, offset+1, 0, offset)
		if _, err := f.add(d); err != nil {
			t.Fatal(err)
		}
		s.Book = s.Book.take(d)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // from lines, then from the snapshot that this makes of them
		again, kept, known, err := openFile(path, "whsec_b")
		if err != nil || !known || kept.Secret != "whsec_a" {
			t.Fatalf("%+v, %t, %v; want the secret that it had", kept, known, err)
		}
		got, _ := json.Marshal(kept.Book)
		want, _ := json.Marshal(s.Book)
		if !bytes.Equal(got, want) {
			t.Errorf("the book is %s; want %s", got, want)
		}
		if err := again.close(); err != nil {
			t.Fatal(err)
		}
	}
	// A line that was cut off was never answered: it is as if it had not come.
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, append(text, `{"id":"test.vou`...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, kept, _, err := openFile(path, ""); err != nil || kept.Book.Received != 3 {
		t.Errorf("%+v, %v; want the three that were kept", kept.Book, err)
	}
	if err := os.WriteFile(path, []byte("something else\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := openFile(path, ""); err == nil || !strings.Contains(err.Error(), "DEMO_FILE") {
		t.Errorf("another file: %v; want an error that names DEMO_FILE", err)
	}
}

// shop is a web shop that has joined, behind a server.
type shop struct {
	*httptest.Server
	t *testing.T
	s *Webshop
}

func openShop(t *testing.T) *shop {
	t.Helper()
	s, err := NewWebshop(Options{API: "http://127.0.0.1:9", Register: "http://127.0.0.1:9"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.joined = true
	server := httptest.NewServer(s.Handler())
	t.Cleanup(server.Close)
	return &shop{server, t, s}
}

// deliver sends a delivery, signed as Postamt signs it, and returns the status, 0 for no answer.
func (s *shop) deliver(d delivery, secret string) int {
	s.t.Helper()
	signer, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	signature, err := signer.Sign(d.ID, now, d.Value)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.URL+"/vouchers", bytes.NewReader(d.Value))
	if err != nil {
		s.t.Fatal(err)
	}
	for name, value := range map[string]string{
		"webhook-id": d.ID, "webhook-timestamp": fmt.Sprint(now.Unix()), "webhook-signature": signature, "kafka-key": d.Key, "postamt-attempt": "1",
	} {
		req.Header.Set(name, value)
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (s *shop) tell(method, path, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestWebshopTakesWhatIsSignedAndNothingElse(t *testing.T) {
	s := openShop(t)
	other := "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	d := deliveryOf(run, 1, 0, 0)
	if got := s.deliver(d, s.s.secret); got != 204 {
		t.Errorf("signed: %d; want 204", got)
	}
	if got := s.deliver(d, other); got != 401 {
		t.Errorf("signed with another secret: %d; want 401", got)
	}
	s.s.joined = false // whose secret may be an earlier one's
	if got := s.deliver(d, other); got != 503 {
		t.Errorf("signed with another secret before it has subscribed: %d; want 503, which blames no record", got)
	}
	if b := s.s.book; b.Received != 1 || s.s.invalid != 1 {
		t.Errorf("%d received, %d invalid; want 1 and 1", b.Received, s.s.invalid)
	}
}

func TestFaults(t *testing.T) {
	s := openShop(t)
	for i, tc := range []struct {
		fault string
		want  map[int64]int // by number
	}{
		{`{"mode":"down"}`, map[int64]int{1: 0, 2: 0}},
		{`{"mode":"hang","poison":[3]}`, map[int64]int{3: 0, 4: 204}},
		{`{"mode":"fail","share":1}`, map[int64]int{5: 500}},
		{`{"mode":"fail","share":0}`, map[int64]int{5: 204}},
		{`{"mode":"refuse","poison":[6]}`, map[int64]int{6: 422, 7: 204}},
		{`{"mode":"slow","delay":"1ms"}`, map[int64]int{8: 204}},
		{`{"mode":"slow","delay":"10s"}`, map[int64]int{9: 0}}, // its client has gone by then
		{`{"mode":"up"}`, map[int64]int{1: 204, 3: 204, 6: 204}},
	} {
		if status, text := s.tell("POST", "/faults", tc.fault); status != 200 {
			t.Fatalf("%s: %d %s", tc.fault, status, text)
		}
		for number, want := range tc.want {
			if got := s.deliver(deliveryOf(run, number, int(number), number+int64(i)*100), s.s.secret); got != want {
				t.Errorf("%s: number %d is answered with %d; want %d", tc.fault, number, got, want)
			}
		}
	}
	if s.s.book.Numbers.has(9) {
		t.Error("what was not answered is in the book")
	}
	for body, says := range map[string]string{
		`{"mode":"broken"}`:            `mode is "broken"; it must be one of up, down`,
		`{"mode":"fail","share":2}`:    "share is 2; it must be from 0 to 1",
		`{"mode":"slow","delay":"1h"}`: `delay is "1h"; it must be a duration from 0s to 1m0s`,
		`{"mode":"fail","poison":` + "[1" + strings.Repeat(",1", maxPoison) + "]}": "poison has 1001 numbers; it may have 1000",
	} {
		if status, text := s.tell("POST", "/faults", body); status != 422 || !strings.Contains(text, strings.ReplaceAll(says, `"`, `\"`)) {
			t.Errorf("%.60s: %d %s; want 422, %s", body, status, text, says)
		}
	}
	if status, _ := s.tell("POST", "/faults", `{"mod":"up"}`); status != 400 {
		t.Errorf("an unknown member: %d; want 400", status)
	}
}

// A share of the vouchers is refused, each of them every time.
func TestRefusalIsOfTheVoucher(t *testing.T) {
	share := 0.3
	f := faults{Mode: modeRefuse, Share: &share}
	hit := 0
	for number := range int64(10_000) {
		first := f.hits(number)
		if f.hits(number) != first {
			t.Fatalf("number %d is refused by chance", number)
		}
		if first {
			hit++
		}
	}
	if hit < 2700 || hit > 3300 {
		t.Errorf("%d of 10000 are refused; want about 3000", hit)
	}
}

func TestOtherSitesCannotBreakTheShop(t *testing.T) {
	s := openShop(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/faults", strings.NewReader(`{"mode":"down"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "http://elsewhere.example")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 403 || s.s.faults.Mode != modeUp {
		t.Errorf("a request of another site: %d, mode %s; want 403, and that nothing changes", resp.StatusCode, s.s.faults.Mode)
	}
}
