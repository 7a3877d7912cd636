package containers

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// manyContainers is an engine that tells what containers use when the next second begins, as Engine 20.10
// does. It answers within the process, so that a test's time can be virtual.
type manyContainers struct {
	count  int
	broken map[string]string // hangs or fails, by service and question: c007/stats

	now, most atomic.Int64 // questions at once
}

func (e *manyContainers) collector(interval time.Duration) *Collector {
	c := New(Options{Engine: "http://engine", Project: "postamt", Max: e.count, Interval: interval, Log: slog.New(slog.DiscardHandler)})
	c.engine.http.Transport = e
	return c
}

func (e *manyContainers) RoundTrip(r *http.Request) (*http.Response, error) {
	e.most.Store(max(e.now.Add(1), e.most.Load())) // one too few in a race is none too many
	defer e.now.Add(-1)
	switch path := strings.TrimPrefix(r.URL.Path, "/containers/"); {
	case path == "json":
		var list []string
		for n := range e.count {
			list = append(list, fmt.Sprintf(`{"Id":"c%03d","Names":["/c%03[1]d"],"Labels":{%q:"c%03[1]d"}}`, n, serviceLabel))
		}
		return answer(http.StatusOK, "["+strings.Join(list, ",")+"]"), nil
	case e.broken[path] == "hangs":
		<-r.Context().Done()
		return nil, r.Context().Err()
	case e.broken[path] == "fails":
		return answer(http.StatusInternalServerError, "out of order"), nil
	case strings.HasSuffix(path, "/json"):
		return answer(http.StatusOK, `{"State":{"Running":true,"StartedAt":"2026-11-27T23:14:15.5Z"}}`), nil
	}
	now := time.Now()
	select {
	case <-time.After(now.Truncate(time.Second).Add(time.Second).Sub(now)):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return answer(http.StatusOK, `{"read":"2026-11-27T23:17:22Z","pids_stats":{"current":3}}`), nil
}

func answer(status int, text string) *http.Response {
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Body: io.NopCloser(strings.NewReader(text))}
}

func TestManyContainersAreSeenBySlowEngines(t *testing.T) {
	for count, want := range map[int]time.Duration{260: 6 * time.Second, 1200: 25 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			e := &manyContainers{count: count}
			c := e.collector(15 * time.Second)
			if err := c.Refresh(t.Context()); err != nil || len(c.found) != count {
				t.Errorf("of %d containers %d are found: %v", count, len(c.found), err)
			}
			if c.duration > want {
				t.Errorf("the look at %d containers takes %v, want %v", count, c.duration, want)
			}
			// The proxy has 64 connections, for Traefik and for /events, too.
			if most := e.most.Load(); most > 48 {
				t.Errorf("%d questions were asked at once", most)
			}
		})
	}
}

// A look of 6 s each second: its metrics would be stale before the next one ends, by the interval alone.
func TestALookThatTakesLongerThanTheIntervalDoesNotGoStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := (&manyContainers{count: 260}).collector(time.Second)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			// Without followKills, whose connection would count among the questions.
			for ctx.Err() == nil {
				_ = c.Refresh(ctx)
			}
			close(ended)
		}()
		time.Sleep(7 * time.Second)
		for s := range 15 {
			if got := samples(t, c); got["container_threads{c259}"] != 3 {
				t.Errorf("%d s after the first look there are no figures", s)
			}
			time.Sleep(time.Second)
		}
		stop()
		<-ended
	})
}

func TestAContainerThatTheEngineDoesNotTellOfCostsTheOthersNothing(t *testing.T) {
	for path, how := range map[string]string{"c001/json": "hangs", "c001/stats": "fails"} {
		synctest.Test(t, func(t *testing.T) {
			c := (&manyContainers{count: 3, broken: map[string]string{path: how}}).collector(15 * time.Second)
			err := c.Refresh(t.Context())
			if want := "does not tell of 1 of 3 containers, such as c001: "; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: the error is %v; want %s", path, how, err, want)
			}
			if c.duration > 11*time.Second {
				t.Errorf("%s %s: the look takes %v, want 10 s and a second", path, how, c.duration)
			}
			got := samples(t, c)
			if _, ok := got["container_running{c001}"]; ok || got["container_threads{c000}"] != 3 || got["container_threads{c002}"] != 3 || got["postamt_containers_collect_errors_total"] != 1 {
				t.Errorf("%s %s: there is %v; want figures of the other two, and an error counted", path, how, got)
			}
		})
	}
}

func TestTheLastLookStaysWhereTheEngineTellsOfNoneOrTheEndCuts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &manyContainers{count: 2}
		c := e.collector(15 * time.Second)
		refresh(t, c)
		e.broken = map[string]string{"c000/stats": "fails", "c001/json": "hangs"}
		if err := c.Refresh(t.Context()); err == nil {
			t.Error("a look that finds nothing is no error")
		}
		e.broken = map[string]string{"c001/json": "hangs"}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := c.Refresh(ctx); err == nil {
			t.Error("a look that is cut is no error")
		}
		if got := samples(t, c); got["container_threads{c000}"] != 3 || got["container_threads{c001}"] != 3 {
			t.Errorf("there is %v; want what the last look has shown", got)
		}
	})
}
