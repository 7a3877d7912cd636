package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"sync/atomic"
)

// serveLine is what Postamt is compared with: a service of net/http and encoding/json alone
// that takes the same requests and gives the same answers, and keeps nothing. Values stay as
// they came (RawMessage), which is the fastest that encoding/json has; a service that makes
// Go values of them (any) takes less than half as many records.
func serveLine() {
	type record struct {
		Key       json.RawMessage `json:"key"`
		Value     json.RawMessage `json:"value"`
		Partition *int32          `json:"partition"`
	}
	type offset struct {
		Partition int32   `json:"partition"`
		Offset    int64   `json:"offset"`
		ErrorCode *int    `json:"error_code"`
		Error     *string `json:"error"`
	}
	type answer struct {
		Offsets       []offset `json:"offsets"`
		KeySchemaID   *int     `json:"key_schema_id"`
		ValueSchemaID *int     `json:"value_schema_id"`
	}
	var next atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /topics/{topic}", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var request struct {
			Records []record `json:"records"`
		}
		if err := json.Unmarshal(body, &request); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		first := next.Add(int64(len(request.Records))) - int64(len(request.Records))
		out := answer{Offsets: make([]offset, len(request.Records))}
		for i := range request.Records {
			out.Offsets[i] = offset{Partition: int32(i % 6), Offset: first + int64(i)}
		}
		body, err = json.Marshal(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.kafka.v2+json")
		_, _ = w.Write(body)
	})
	server := &http.Server{Addr: os.Getenv("HTTP_ADDRESS"), Handler: mux} //nolint:gosec // the load generator is not slow
	panic(server.ListenAndServe())
}
