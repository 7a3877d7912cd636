package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// inFlight is how many deliveries are made at once: what a subscription has without saying so.
const inFlight = 64

// bareResult is what the bare client prints.
type bareResult struct{ Seconds float64 }

// postBare is what deliveries are compared with: a loop of net/http's client that sends the headers
// and the body of one delivery to the same endpoint, again and again, and does nothing else. Its
// argument has them, as JSON.
func postBare() error {
	var request struct {
		URL   string
		Times int
		sample
	}
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return err
	}
	request.Header.Del("Content-Length") // the client's own to set
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true}}
	var failed atomic.Value
	var next atomic.Int64
	var posting sync.WaitGroup
	began := time.Now()
	for range inFlight {
		posting.Go(func() {
			for next.Add(1) <= int64(request.Times) && failed.Load() == nil {
				if err := postOnce(client, request.URL, request.sample); err != nil {
					failed.Store(err.Error())
				}
			}
		})
	}
	posting.Wait()
	if text := failed.Load(); text != nil {
		return fmt.Errorf("POST %s: %v", request.URL, text)
	}
	return json.NewEncoder(os.Stdout).Encode(bareResult{time.Since(began).Seconds()})
}

func postOnce(client *http.Client, url string, s sample) error {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(s.Body)) //nolint:noctx // nobody ends it but by ending the process
	if err != nil {
		return err
	}
	req.Header = s.Header
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the answer is %s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
