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

	// atOnce leaves of the proxy's 64 connections (compose/haproxy.cfg) some to Traefik. Engine 20.10
	// answers for all of them when the next second begins, so that this many take a second.
	atOnce = 48

	listTimeout = 15 * time.Second
	oneTimeout  = 10 * time.Second // for what is asked of one container
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

// Run looks at once and then every interval (one after the other where a look takes longer), and follows OOM kills meanwhile, until ctx is canceled;
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

// Refresh looks once. It has no deadline of its own: each question to the engine has one, so that many
// containers only take longer. Containers of which the engine does not tell are left out, and the error
// says so; where it tells of none at all, the last look stays, until it is stale.
func (c *Collector) Refresh(ctx context.Context) error {
	start := c.Now()
	list, err := c.list(ctx)
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

func (c *Collector) list(ctx context.Context) ([]listed, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return c.engine.list(ctx, c.Project)
}

// look asks for each container, some at once. One that has gone meanwhile is left out, and so is one of
// which the engine does not tell, with an error. There are no results where it does not tell of any, or
// when ctx ends: the containers would look as if they had gone.
func (c *Collector) look(ctx context.Context, list []listed) ([]container, error) {
	found, failed := make([]container, len(list)), make([]error, len(list))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for i, l := range list {
		group.Go(func() error {
			one, err := c.ask(ctx, l)
			if gone := (goneError{}); err == nil {
				found[i] = one
			} else if !errors.As(err, &gone) {
				failed[i] = fmt.Errorf("%s: %w", nameOf(l), err)
			}
			return nil
		})
	}
	_ = group.Wait()
	found = slices.DeleteFunc(found, func(one container) bool { return one.id == "" })
	failed = slices.DeleteFunc(failed, func(err error) bool { return err == nil })
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case len(failed) == 0:
		return found, nil
	case len(found) == 0:
		found = nil
	}
	return found, fmt.Errorf("the engine does not tell of %d of %d containers, such as %w", len(failed), len(list), failed[0])
}

// ask asks for one container.
func (c *Collector) ask(ctx context.Context, l listed) (one container, err error) {
	ctx, cancel := context.WithTimeout(ctx, oneTimeout)
	defer cancel()
	one = container{id: l.ID, name: nameOf(l), service: l.Labels[serviceLabel], image: l.Image}
	if one.inspected, err = c.engine.inspect(ctx, l.ID); err == nil && one.State.Running {
		one.stats, err = c.engine.stats(ctx, l.ID)
		one.State.Running = one.stats != nil
	}
	return one, err
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
