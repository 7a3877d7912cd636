// Receiver is what the stack tests have Alertmanager notify: it prints the path and the body of each
// request, a line each, for `docker logs`.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	srv := &http.Server{Addr: ":8080", ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(
		func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				fmt.Printf("%s %s\n", r.URL.Path, bytes.ReplaceAll(body, []byte("\n"), nil))
			}
		})}
	fmt.Fprintln(os.Stderr, srv.ListenAndServe())
	os.Exit(1)
}
