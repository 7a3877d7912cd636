// Command go is a receiver of deliveries: it verifies their signatures and takes each record once.
//
//	WEBHOOK_SECRET=whsec_… go run ./docs/receivers/go 127.0.0.1:9000
package main

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const maxBodyBytes = 16 << 20 // at least the largest record of the topics

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: WEBHOOK_SECRET=whsec_… receiver HOST:PORT")
	}
	webhook, err := standardwebhooks.NewWebhook(os.Getenv("WEBHOOK_SECRET"))
	if err != nil || os.Getenv("WEBHOOK_SECRET") == "" { // an empty secret would verify, too
		log.Fatal("WEBHOOK_SECRET must be the subscription's secret, whsec_…")
	}
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on http://%s\n", ln.Addr())
	server := &http.Server{Handler: &receiver{webhook: webhook, done: make(map[string]bool)}, ReadTimeout: 30 * time.Second}
	log.Fatal(server.Serve(ln))
}

// receiver takes deliveries. A real one keeps the ids where it keeps what it does with the records,
// in the same transaction: then a record is never taken twice, and never lost.
type receiver struct {
	webhook *standardwebhooks.Webhook
	mu      sync.Mutex
	done    map[string]bool // by webhook-id
}

func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The signature is over the bytes as they came: verify them before anything reads them.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		http.Error(w, "too large", http.StatusRequestEntityTooLarge) // it will never fit
		return
	} else if err != nil {
		http.Error(w, "the body broke off", http.StatusRequestTimeout) // the next attempt may have all of it
		return
	}
	if err := rc.webhook.Verify(body, r.Header); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	rc.mu.Lock()
	defer rc.mu.Unlock()
	if id := r.Header.Get("webhook-id"); !rc.done[id] {
		fmt.Printf("%s %s\n", id, body) // what this receiver does with a record
		rc.done[id] = true
	}
	w.WriteHeader(http.StatusNoContent) // also the second time: it has the record
}
