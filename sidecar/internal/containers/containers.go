// Package containers tells what the containers of a Compose project use: memory, processor, threads,
// network and disk, and how often each was started again or ran out of memory. It asks Docker Engine's
// API for it, through a proxy that lets only reads through, and so needs nothing of the host: no
// mount, no capability, no /proc. Metrics have the names that cAdvisor gives them, so that dashboards
// made for it work; docs/decisions/0006-host-metrics.md says why it is not cAdvisor itself.
package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	missedRounds = 3 // until metrics are stale
	atOnce       = 16
)

// Options say what to ask and how often.
type Options struct {
	Engine   string        // URL of Docker Engine's API
	Project  string        // of Compose
	Interval time.Duration // between two looks
	Max      int           // containers that are looked at
	Targets  string        // file for Prometheus (see targets.go); none when empty
	Log      *slog.Logger
	Now      func() time.Time
}

// container is what one look has found of one.
type container struct {
	id, name, service, image string
	inspected
	stats *stats // nil where it does not run
}

// Collector looks at a project's containers every interval. It is a prometheus.Collector, and safe for
// concurrent use.
type Collector struct {
	Options
	engine      *engine
	followRetry time.Duration

	mu        sync.Mutex
	found     []container // by name
	leftOut   int         // beyond Max
	collected time.Time   // zero before the first look
	duration  time.Duration
	errors    int
	kills     map[string]kill // by id
}

// kill counts the OOM kills in a container.
type kill struct {
	count int
	last  time.Time
}

// New makes a Collector; Run starts it.
func New(o Options) *Collector {
	if o.Now == nil {
		o.Now = time.Now
	}
	// Each look is bounded by its context, and events have no end.
	transport := &http.Transport{MaxIdleConnsPerHost: atOnce, IdleConnTimeout: time.Minute}
	return &Collector{
		Options: o, kills: make(map[string]kill), followRetry: 5 * time.Second,
		engine: &engine{url: strings.TrimSuffix(o.Engine, "/"), http: &http.Client{Transport: transport}},
	}
}

// Check fails when Docker Engine does not answer.
func (c *Collector) Check(ctx context.Context) error { return c.engine.ping(ctx) }

// Run looks at once and then every interval, and follows OOM kills meanwhile, until ctx is canceled;
// then it returns nil. A look that fails is logged and counted, and never stops the loop.
func (c *Collector) Run(ctx context.Context) error {
	var both errgroup.Group
	both.Go(func() error { return c.followKills(ctx) })
	both.Go(func() error {
		defer c.removeTargets()
		ticker := time.NewTicker(c.Interval)
		defer ticker.Stop()
		for {
			if err := c.Refresh(ctx); err != nil && ctx.Err() == nil {
				c.Log.Warn("look at the containers", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
	return both.Wait()
}

// Refresh looks once, within one interval. After an error the last look stays, until it is stale.
func (c *Collector) Refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Interval)
	defer cancel()
	start := c.Now()
	list, err := c.engine.list(ctx, c.Project)
	var found []container
	leftOut := 0
	if err == nil {
		slices.SortFunc(list, func(a, b listed) int { return cmp.Compare(nameOf(a), nameOf(b)) })
		err = c.writeTargets(list)
		leftOut = max(0, len(list)-c.Max)
		var all error
		found, all = c.look(ctx, list[:len(list)-leftOut])
		err = errors.Join(err, all)
		if leftOut > 0 {
			err = errors.Join(err, fmt.Errorf("project %s has %d containers; MAX_CONTAINERS is %d, and must be as many for the last %d to be among the metrics", c.Project, len(list), c.Max, leftOut))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.errors++
	}
	if found == nil {
		return err
	}
	c.found, c.leftOut, c.collected, c.duration = found, leftOut, start, c.Now().Sub(start)
	for id, k := range c.kills { // a container made since the list has its kills counted
		if k.last.Before(start) && !slices.ContainsFunc(list, func(l listed) bool { return l.ID == id }) {
			delete(c.kills, id)
		}
	}
	return err
}

// look asks for each container, some at once. One that has gone meanwhile is left out. After another
// error there are no results: half of the containers would look as if the others had gone.
func (c *Collector) look(ctx context.Context, list []listed) ([]container, error) {
	found := make([]container, len(list))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, l := range list {
		group.Go(func() error {
			one := container{id: l.ID, name: nameOf(l), service: l.Labels[serviceLabel], image: l.Image}
			var err error
			if one.inspected, err = c.engine.inspect(ctx, l.ID); err == nil && one.State.Running {
				one.stats, err = c.engine.stats(ctx, l.ID)
			}
			if err == nil {
				found[i] = one
			} else if gone := (goneError{}); errors.As(err, &gone) {
				err = nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(one container) bool { return one.id == "" }), nil
}

// nameOf is the container's own name: a linked one has others, with a slash in the middle.
func nameOf(l listed) string {
	for _, name := range l.Names {
		if name = strings.TrimPrefix(name, "/"); !strings.Contains(name, "/") {
			return name
		}
	}
	return l.ID
}

// followKills counts OOM kills from now on. The proxy ends a connection after an hour without one; the
// next begins where it ended.
func (c *Collector) followKills(ctx context.Context) error {
	since := c.Now()
	for ctx.Err() == nil {
		err := c.engine.follow(ctx, c.Project, since, func(e oomEvent) {
			at := time.Unix(0, e.TimeNano)
			since = at.Add(time.Nanosecond)
			c.mu.Lock()
			c.kills[e.Actor.ID] = kill{c.kills[e.Actor.ID].count + 1, at}
			c.mu.Unlock()
			c.Log.Warn("a container ran out of memory", "id", e.Actor.ID)
		})
		c.Log.Debug("the engine's events end", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(c.followRetry):
		}
	}
	return nil
}
