package app

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"postamt/sidecar/internal/config"
	"postamt/sidecar/internal/demo"
)

// The two ends of the demo.
const (
	demoRegister = "register"
	demoWebshop  = "webshop"
)

// demoGrace is how long requests to the demo have to end.
const demoGrace = 5 * time.Second

// RunDemo serves one end of the demo at HTTP_ADDRESS until ctx ends. ready, if not nil, is told the
// address.
func RunDemo(ctx context.Context, end string, cfg config.Config, log *slog.Logger, ready func(net.Addr)) error {
	if end != demoRegister && end != demoWebshop {
		return fmt.Errorf("the demo has no %q; it has %s and %s", end, demoRegister, demoWebshop)
	}
	o := demoOptions(cfg.Demo)
	handler, run, err := demoEnd(end, o, log)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", cfg.HTTPAddress)
	if err != nil {
		return fmt.Errorf("HTTP_ADDRESS: %w", err)
	}
	log.Info("serving", "http", ln.Addr().String(), "api", o.API, "version", Version)
	if ready != nil {
		ready(ln.Addr())
	}
	return serveDemo(ctx, ln, handler, cfg, log, run)
}

func demoOptions(c config.Demo) demo.Options {
	o := demo.Options{API: c.API, Host: c.Host, Topic: c.Topic, Rate: c.Rate, MaxRate: config.MaxDemoRate, Cards: c.Cards, Register: c.Register, URL: c.URL, File: c.File}
	if o.Host == "auto" {
		o.Host = ""
	}
	if o.File == "none" {
		o.File = ""
	}
	return o
}

func demoEnd(end string, o demo.Options, log *slog.Logger) (http.Handler, worker, error) {
	if end == demoRegister {
		r := demo.NewRegister(o, log)
		return r.Handler(), r.Run, nil
	}
	s, err := demo.NewWebshop(o, log)
	if err != nil {
		return nil, nil, err
	}
	return s.Handler(), s.Run, nil
}

func serveDemo(ctx context.Context, ln net.Listener, handler http.Handler, cfg config.Config, log *slog.Logger, workers ...worker) error {
	group, ctx := errgroup.WithContext(ctx)
	srv := server(handler, cfg, log)
	srv.BaseContext = func(net.Listener) context.Context { return ctx } // what hangs ends, too
	group.Go(func() error { return serveUntil(ctx, srv, ln, demoGrace, func() {}) })
	for _, w := range workers {
		group.Go(func() error { return w(ctx) })
	}
	return group.Wait()
}

// RunDevWithDemo is RunDev with both ends of the demo at DEMO_ADDRESS, the register below /register.
// ready, if not nil, is told the addresses of the API and of the page.
func RunDevWithDemo(ctx context.Context, cfg config.Config, topicsFile, dataDir string, log *slog.Logger, ready func(api, page net.Addr)) error {
	ln, err := net.Listen("tcp", cfg.Demo.Page)
	if err != nil {
		return fmt.Errorf("DEMO_ADDRESS: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	serves := make(chan net.Addr, 1)
	group.Go(func() error {
		return RunDev(ctx, cfg, topicsFile, dataDir, log, func(api, _ net.Addr) {
			if ready != nil {
				ready(api, ln.Addr())
			}
			serves <- api
		})
	})
	group.Go(func() error {
		defer func() { _ = ln.Close() }()
		select {
		case <-ctx.Done():
			return nil
		case api := <-serves:
			o := demoOptions(cfg.Demo)
			o.API, o.Host = "http://"+api.String(), ""
			o.Register, o.URL = "http://"+ln.Addr().String()+"/register", "http://"+ln.Addr().String()+"/vouchers"
			register, sell, err := demoEnd(demoRegister, o, log)
			if err != nil {
				return err
			}
			page, watch, err := demoEnd(demoWebshop, o, log)
			if err != nil {
				return err
			}
			mux := http.NewServeMux()
			mux.Handle("/register/", http.StripPrefix("/register", register))
			mux.Handle("/", page)
			return serveDemo(ctx, ln, mux, cfg, log, sell, watch)
		}
	})
	return group.Wait()
}
