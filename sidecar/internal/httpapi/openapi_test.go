package httpapi

import (
	"slices"
	"strings"
	"testing"

	"postamt/sidecar/internal/contract"
)

// openapi.yaml and the routes name the same operations.
func TestEveryRouteIsInTheContract(t *testing.T) {
	c, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	described := c.Operations()
	var served []string
	for _, rt := range (&Server{}).routes() {
		served = append(served, rt.method+" "+strings.TrimSuffix(rt.path, "{$}"))
	}
	for _, op := range served {
		if !slices.Contains(described, op) {
			t.Errorf("%s is served, and not in openapi.yaml", op)
		}
	}
	for _, op := range described {
		if !slices.Contains(served, op) {
			t.Errorf("%s is in openapi.yaml, and not served", op)
		}
	}
}
