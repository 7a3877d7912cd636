package app

import (
	"os"
	"path/filepath"
	"testing"

	"postamt/sidecar/internal/registry"
)

func TestTheKeyOfDevLivesAsLongAsItsRecords(t *testing.T) {
	dir := t.TempDir()
	first, err := devKey(dir)
	if err != nil || len(first) != registry.KeyBytes {
		t.Fatalf("the key has %d bytes, %v", len(first), err)
	}
	if again, err := devKey(dir); err != nil || again != first {
		t.Errorf("the next time it is another one, %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "secret_key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its file is %v, %v", info, err)
	}
	if other, err := devKey(""); err != nil || other == first || len(other) != registry.KeyBytes {
		t.Errorf("in memory it has %d bytes, %v", len(other), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "secret_key"), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := devKey(dir); err == nil {
		t.Error("a key that was cut off is taken")
	}
}
