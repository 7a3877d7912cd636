//go:build stack

package stacktest

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browser is the program that STACK_BROWSER names, or one that is installed.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{os.Getenv("STACK_BROWSER"), "chromium-headless-shell", "chromium", "google-chrome"} {
		if path, err := exec.LookPath(cmp.Or(name, "none")); err == nil {
			return path
		}
	}
	t.Fatal("there is no Chromium here; ./scripts/test installs one, and STACK_BROWSER names another")
	return ""
}

// page is the demo's, in a browser.
type page struct {
	t   *testing.T
	ctx context.Context
}

func openPage(t *testing.T, url string) *page {
	t.Helper()
	ctx, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(browser(t)), chromedp.WindowSize(1100, 1250),
		chromedp.NoSandbox)...) // which root has no right to, and so nobody in most containers
	t.Cleanup(stop)
	ctx, end := chromedp.NewContext(ctx)
	console := chromedp.Console(ctx)
	read := make(chan struct{})
	t.Cleanup(func() {
		end()
		<-read
	})
	if err := chromedp.Do(ctx, chromedp.Navigate(url)); err != nil {
		t.Fatalf("the browser: %v", err)
	}
	go func() { // what the policy of its content forbids is in the console, too
		defer close(read)
		for m, err := range console {
			if err != nil {
				return
			}
			t.Errorf("the console of the page has %v", m)
		}
	}()
	return &page{t, ctx}
}

// evaluate is the value of an expression in the page.
func evaluate[T any](p *page, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		p.t.Fatalf("the browser: %s: %v", expression, err)
	}
	return v
}

// text is what an element shows.
func (p *page) text(id string) string {
	p.t.Helper()
	return evaluate[string](p, fmt.Sprintf("document.getElementById(%q).textContent", id))
}

func (p *page) click(id string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS("#"+id))); err != nil {
		p.t.Fatalf("the browser: click on %s: %v", id, err)
	}
}

// press clicks on the button of a fault, and waits until the page shows that the web shop is told so:
// what it showed before says nothing about it.
func (p *page) press(id string) {
	p.t.Helper()
	p.click(id)
	eventually(p.t, time.Minute, id+" is pressed", func() error {
		if pressed := evaluate[string](p, fmt.Sprintf("document.getElementById(%q).getAttribute('aria-pressed')", id)); pressed != "true" {
			return fmt.Errorf("aria-pressed is %q; problem %q", pressed, p.text("problem"))
		}
		return nil
	})
}

// await waits until an element shows what ok wants.
func (p *page) await(what, id string, ok func(string) bool) {
	p.t.Helper()
	eventually(p.t, time.Minute, what, func() error {
		if got := p.text(id); !ok(got) {
			return fmt.Errorf("#%s shows %q; problem %q", id, got, p.text("problem"))
		}
		return nil
	})
}

func is(want string) func(string) bool { return func(got string) bool { return got == want } }
func isNot(want ...string) func(string) bool {
	return func(got string) bool { return got != "" && !strings.Contains(strings.Join(want, " "), got) }
}

// Each button of the page breaks something that shows, and after each nothing is missing.
func TestThePageShowsNothingMissingAfterEachFault(t *testing.T) {
	d := startDemo(t)
	_, port, _ := strings.Cut(strings.TrimPrefix(project.api, "http://"), ":")
	p := openPage(t, "http://webshop.localhost:"+port+"/")
	evaluate[bool](p, `$('rate').value = 10, $('rate').dispatchEvent(new Event('input')), $('rate').dispatchEvent(new Event('change'))`)
	p.await("the register sells as the slider says", "register", func(s string) bool { return strings.HasPrefix(s, "sells 10 a second") })
	p.await("vouchers arrive", "received", isNot("0", "–"))

	for _, fault := range []struct{ name, shows, id string }{
		{"fault-slow", "waits of two seconds", "wait"}, // before any that is longer
		{"fault-down", "down", "subscription"},
		{"fault-fail", "down", "subscription"},
		{"fault-some", "kept out", "shop"},
		{"fault-refuse", "a dead letter", "dead"},
		{"fault-poison", "kept out", "shop"},
	} {
		p.press(fault.name)
		p.await(fault.name+" shows: "+fault.shows, fault.id, func(s string) bool {
			switch fault.id {
			case "dead":
				return s != "0"
			case "wait":
				seconds := 0.0
				_, err := fmt.Sscanf(s, "%f s", &seconds)
				return err == nil && seconds >= 2
			case "shop":
				return strings.Contains(s, "kept out") && !strings.HasSuffix(s, "kept out 0")
			}
			return strings.HasPrefix(s, fault.shows)
		})
		if file := os.Getenv("STACK_SCREENSHOTS"); file != "" {
			png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
			if err == nil {
				err = os.WriteFile(file+fault.name+".png", png, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		p.press("fault-up")
		p.await("it works again", "shop", is("works"))
		if fault.name == "fault-refuse" {
			p.await("all that is missing is a dead letter", "missing-why", is("dead letters: nothing is lost"))
			p.click("redrive")
		}
		p.await("nothing is missing after "+fault.name, "missing", is("0"))
		if got := p.text("out-of-order"); got != "0" {
			t.Errorf("after %s %s came out of order; want 0", fault.name, got)
		}
	}
	s := d.settle(time.Minute)
	if s.Missing > 0 || s.Sold != s.Distinct {
		t.Errorf("the page showed that nothing is missing, and the web shop says %+v", s)
	}
	p.await("the page says what the web shop does", "sold", is(withCommas(s.Sold)))
	if got := p.text("received"); got != withCommas(s.Distinct) {
		t.Errorf("the page shows %s received; want %d", got, s.Distinct)
	}

	// It needs nothing from anywhere else.
	if elsewhere := evaluate[[]string](p, `performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin + '/'))`); len(elsewhere) > 0 {
		t.Errorf("the page asks for %v", elsewhere)
	}
	p.click("anew")
	p.await("it counts anew", "sold", is("0"))
}

func withCommas(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", withCommas(n/1000), n%1000)
}
