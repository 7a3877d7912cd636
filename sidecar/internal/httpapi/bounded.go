package httpapi

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// bounded is the context of a request that is answered until a time. Its timer is made only for
// those who wait for the context: a Producer has its own way to keep the time, which costs less.
type bounded struct {
	request context.Context // ends only when the client goes away
	until   time.Time

	mu    sync.Mutex
	timed context.Context
	stop  context.CancelFunc
}

// bound gives the context of a request, which REQUEST_TIMEOUT bounds. Its end must be called.
func (s *Server) bound(r *http.Request) *bounded {
	return &bounded{request: r.Context(), until: time.Now().Add(s.opts.RequestTimeout)}
}

func (b *bounded) context() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.stop = context.WithDeadline(b.request, b.until)
	}
	return b.timed
}

func (b *bounded) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
	}
}

func (b *bounded) Deadline() (time.Time, bool) { return b.context().Deadline() }
func (b *bounded) Done() <-chan struct{}       { return b.context().Done() }
func (b *bounded) Err() error                  { return b.context().Err() }
func (b *bounded) Value(key any) any           { return b.context().Value(key) }
