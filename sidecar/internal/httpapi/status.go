package httpapi

import "net/http"

// getHealth serves GET /health: 200 while the proxy should send requests here, also while
// Kafka is away, and 503 while starting, draining or making the producer anew.
func (s *Server) getHealth(w http.ResponseWriter, r *http.Request) error {
	report := s.Health.Report()
	s.writeJSON(w, r, statusIf(report.Serving), "application/json", report)
	return nil
}

// getReady serves GET /health/ready: 200 only while every check succeeds.
func (s *Server) getReady(w http.ResponseWriter, r *http.Request) error {
	report := s.Health.Report()
	s.writeJSON(w, r, statusIf(report.Ready), "application/json", report)
	return nil
}

// getLive serves GET /health/live: 200 while the process can answer at all.
func (s *Server) getLive(w http.ResponseWriter, r *http.Request) error {
	s.writeJSON(w, r, http.StatusOK, "application/json", map[string]string{"status": "ok"})
	return nil
}

// getOpenAPI serves GET /openapi.yaml: what this interface is, for people and programs.
func (s *Server) getOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	_ = s.write(w, http.StatusOK, "application/yaml", s.opts.OpenAPI) // RFC 9512
	return nil
}

func statusIf(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// getLag serves GET /lag?group=: the lag of every consumer group, or of one.
func (s *Server) getLag(w http.ResponseWriter, r *http.Request) error {
	params, err := query(r, "group")
	if err != nil {
		return err
	}
	lag, err := s.Lag(params.Get("group"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := lag.WriteTo(pushed{s, w}); err == nil { // else the client is gone
		_ = s.send(w, []byte("\n"))
	}
	return nil
}

// pushed is an answer that is written part by part.
type pushed struct {
	s *Server
	w http.ResponseWriter
}

func (p pushed) Write(b []byte) (int, error) {
	if err := p.s.push(p.w, b); err != nil {
		return 0, err
	}
	return len(b), nil
}
