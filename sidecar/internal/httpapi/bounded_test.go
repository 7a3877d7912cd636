package httpapi

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestABoundedRequestEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Server{opts: Options{RequestTimeout: 30 * time.Second}}
		start := time.Now()
		ctx := s.bound(httptest.NewRequestWithContext(t.Context(), "POST", "/", nil))
		defer ctx.end()
		time.Sleep(20 * time.Second) // before anybody waits
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		if ctx.Err() != nil || child.Err() != nil {
			t.Error("it has ended before its time")
		}
		<-child.Done()
		if took := time.Since(start); took != 30*time.Second || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("it has ended after %v with %v", took, ctx.Err())
		}
	})
}

func TestABoundedRequestEndsWithTheClient(t *testing.T) {
	t.Parallel()
	client, leave := context.WithCancel(t.Context())
	s := &Server{opts: Options{RequestTimeout: time.Hour}}
	ctx := s.bound(httptest.NewRequestWithContext(client, "POST", "/", nil))
	defer ctx.end()
	leave()
	<-ctx.Done()
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error(ctx.Err())
	}
}
