package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Paths of the receiver.
const (
	pathAtOnce = "/at-once"
	pathSlow   = "/slow"  // answers after slowAnswer
	pathStuck  = "/stuck" // answers with 500 to keys that contain stuckKey
	pathStamp  = "/stamp" // keeps when each key arrived
)

const (
	slowAnswer = 50 * time.Millisecond
	stuckKey   = "stuck"
)

// receiver is the endpoint of deliveries, in a process of its own. It does as little as it can, and
// the same for Postamt and for the bare client.
type receiver struct {
	mu sync.Mutex
	receiverState
	seen map[string][]uint64 // a bit for each offset, by partition
}

// receiverState is what a receiver tells of what it got since it was last told to forget. Times are
// in nanoseconds since 1970.
type receiverState struct {
	Accepted, Distinct, Refused int
	First, Last, Now            int64 // of those accepted
	Sample                      *sample
	Stamps                      map[string]int64 // by key
}

// sample is a request as it came.
type sample struct {
	Header http.Header
	Body   []byte
}

func (r *receiver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.receiverState, r.seen = receiverState{Stamps: make(map[string]int64)}, make(map[string][]uint64)
}

func (r *receiver) state() receiverState {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.receiverState
	s.Now = time.Now().UnixNano()
	s.Stamps = maps.Clone(r.Stamps)
	return s
}

func (r *receiver) take(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if req.URL.Path == pathSlow {
		time.Sleep(slowAnswer)
	}
	key := req.Header.Get("kafka-key")
	if req.URL.Path == pathStuck && strings.Contains(key, stuckKey) {
		r.mu.Lock()
		r.Refused++
		r.mu.Unlock()
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	r.count(req, key, body)
	w.WriteHeader(http.StatusNoContent)
}

func (r *receiver) count(req *http.Request, key string, body []byte) {
	partition := req.Header.Get("kafka-partition")
	offset, _ := strconv.Atoi(req.Header.Get("kafka-offset"))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Last = time.Now().UnixNano()
	if r.Accepted++; r.Accepted == 1 {
		r.First = r.Last
		r.Sample = &sample{req.Header.Clone(), body}
	}
	bits := r.seen[partition]
	for offset/64 >= len(bits) {
		bits = append(bits, 0)
	}
	r.seen[partition] = bits
	if bit := uint64(1) << (offset % 64); bits[offset/64]&bit == 0 {
		bits[offset/64] |= bit
		r.Distinct++
	}
	if req.URL.Path == pathStamp {
		r.Stamps[key] = r.Last
	}
}

func serveReceiver() {
	r := &receiver{}
	r.forget()
	panic((&http.Server{Addr: os.Getenv("HTTP_ADDRESS"), Handler: r.handler()}).ListenAndServe()) //nolint:gosec // nobody is slow here
}

func (r *receiver) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /forget", func(http.ResponseWriter, *http.Request) { r.forget() })
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(r.state()) })
	for _, path := range []string{pathAtOnce, pathSlow, pathStuck, pathStamp} {
		mux.HandleFunc("POST "+path, r.take)
	}
	return mux
}
