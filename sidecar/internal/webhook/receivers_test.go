package webhook

import (
	"bufio"
	"bytes"
	"context"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postamt/sidecar/internal/event"
)

const receivers = "../../../docs/receivers"

// received is what a receiver has taken: "id body", a record each.
type received struct {
	mu  sync.Mutex
	all []string
}

func (r *received) add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, line)
}

func (r *received) lines() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.all...)
}

// start runs a receiver that prints where it listens, and then what it takes.
func start(t *testing.T, name string, args ...string) (url string, taken func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, append(args, "127.0.0.1:0")...)
	cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+FormatSecret(newKey))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 4<<20)
	lines.Scan()
	url, ok := strings.CutPrefix(lines.Text(), "listening on ")
	var r received
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines.Scan() {
			r.add(lines.Text())
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		_ = cmd.Wait()
	})
	if !ok {
		cancel()
		<-done
		_ = cmd.Wait()
		t.Fatalf("%s says %q, %s", name, lines.Text(), stderr.String())
	}
	return url, r.lines
}

// The receivers that the docs show, as they are.
func TestReceiversOfTheDocs(t *testing.T) {
	t.Run("go", func(t *testing.T) {
		binary := filepath.Join(t.TempDir(), "receiver")
		if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, receivers+"/go").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		url, taken := start(t, binary)
		testReceiver(t, url, taken)
	})
	t.Run("python", func(t *testing.T) {
		url, taken := start(t, "python3", receivers+"/receiver.py")
		testReceiver(t, url, taken)
	})
	t.Run("shell", func(t *testing.T) {
		folder := t.TempDir()
		script, err := filepath.Abs(receivers + "/receiver.sh")
		if err != nil {
			t.Fatal(err)
		}
		server := endpoint(t, (&cgi.Handler{
			Path: script, Env: []string{"WEBHOOK_SECRET=" + FormatSecret(newKey), "WEBHOOK_FOLDER=" + folder}, InheritEnv: []string{"PATH"},
		}).ServeHTTP)
		testReceiver(t, server.URL, func() (lines []string) {
			files, err := os.ReadDir(folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				body, err := os.ReadFile(filepath.Join(folder, f.Name()))
				if err != nil {
					t.Fatal(err)
				}
				lines = append(lines, f.Name()+" "+string(body))
			}
			return lines
		})
	})
}

func testReceiver(t *testing.T, url string, taken func() []string) {
	t.Helper()
	s, sub := newSender(t, nil), subscription(url)
	want := 0
	// deliver makes an attempt, and expects so many records to have been taken at its end.
	deliver := func(what string, a event.Attempt, status int) {
		t.Helper()
		if status == http.StatusNoContent {
			want++
		}
		out := s.Send(t.Context(), sub, a)
		if out.Status != status {
			t.Errorf("%s: %+v; want %d", what, out, status)
		}
		for deadline := time.Now().Add(10 * time.Second); len(taken()) != want && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		if got := taken(); len(got) != want {
			t.Errorf("%s: %d records have been taken, %q; want %d", what, len(got), got, want)
		}
	}
	at := func(offset int64, value string, started time.Time) event.Attempt {
		r := record("4711", value, "shop", "linden")
		r.Offset = offset
		a := attempt(r)
		a.Started = started
		return a
	}
	deliver("a record", at(1, `{"amount":50}`, time.Now()), 204)
	if got := taken(); len(got) != 1 || !strings.HasSuffix(got[0], ` {"amount":50}`) {
		t.Errorf("it has taken %q", got)
	}
	want-- // the same once more is not taken again
	deliver("the same record", at(1, `{"amount":50}`, time.Now()), 204)
	deliver("bytes", at(2, "\x00\xff\r", time.Now()), 204)
	deliver("nothing", at(3, "", time.Now()), 204)
	deliver("a large one", at(4, long(1<<20), time.Now()), 204)

	deliver("one of ten minutes ago", at(5, "x", time.Now().Add(-10*time.Minute)), 401)
	deliver("one of the future", at(5, "x", time.Now().Add(10*time.Minute)), 401)
	sub.Secrets = []event.Secret{{Key: oldKey}}
	deliver("another secret", at(5, "x", time.Now()), 401)
	sub.Secrets = []event.Secret{{Key: oldKey}, {Key: newKey}}
	deliver("two secrets", at(5, "x", time.Now()), 204)

	// What somebody else has changed on its way.
	sub.Secrets = []event.Secret{{Key: newKey}}
	for what, change := range map[string]func(*http.Request){
		"its id":       func(r *http.Request) { r.Header.Set("webhook-id", "test.voucher/2/7/1") },
		"no id":        func(r *http.Request) { r.Header.Del("webhook-id") },
		"its time":     func(r *http.Request) { r.Header.Set("webhook-timestamp", r.Header.Get("webhook-timestamp")+"0") },
		"no time":      func(r *http.Request) { r.Header.Del("webhook-timestamp") },
		"no signature": func(r *http.Request) { r.Header.Del("webhook-signature") },
		"an old scheme": func(r *http.Request) {
			r.Header.Set("webhook-signature", strings.Replace(r.Header.Get("webhook-signature"), "v1,", "v0,", 1))
		},
		"not changed": func(*http.Request) {},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), sub.Timeout)
		defer cancel()
		req, err := s.request(ctx, sub, at(6, "x", time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		change(req)
		resp, err := s.transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if accepted := resp.StatusCode == 204; accepted != (what == "not changed") {
			t.Errorf("%s: the answer is %s", what, resp.Status)
		}
	}
}
