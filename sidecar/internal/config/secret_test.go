package config

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKeysComeFromTheVariableOrItsFile(t *testing.T) {
	key := func(b byte) string {
		return base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b}, sealKeyBytes))
	}
	file := func(content string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "secret_key")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tc := range map[string]struct {
		environ map[string]string
		keys    int
		mistake string
	}{
		"neither":              {nil, 0, ""},
		"the variable":         {map[string]string{"POSTAMT_SECRET_KEY": key(1)}, 1, ""},
		"several":              {map[string]string{"POSTAMT_SECRET_KEY": key(1) + ", " + key(2)}, 2, ""},
		"the file":             {map[string]string{"POSTAMT_SECRET_KEY_FILE": file(key(1) + "\n")}, 1, ""},
		"several in the file":  {map[string]string{"POSTAMT_SECRET_KEY_FILE": file(key(1) + "\n" + key(2) + "\n")}, 2, ""},
		"both":                 {map[string]string{"POSTAMT_SECRET_KEY": key(1), "POSTAMT_SECRET_KEY_FILE": "/nowhere"}, 1, ""},
		"a file that is none":  {map[string]string{"POSTAMT_SECRET_KEY_FILE": "/nowhere"}, 0, "POSTAMT_SECRET_KEY_FILE: open /nowhere"},
		"an empty file":        {map[string]string{"POSTAMT_SECRET_KEY_FILE": file("\n")}, 0, "POSTAMT_SECRET_KEY_FILE is empty"},
		"a key that is short":  {map[string]string{"POSTAMT_SECRET_KEY": key(1) + "," + key(2)[:40]}, 0, "POSTAMT_SECRET_KEY: key 2 is not 32 bytes in base64"},
		"a key and a mistake":  {map[string]string{"POSTAMT_SECRET_KEY": "hunter2", "MAX_RECORDS": "many"}, 0, "POSTAMT_SECRET_KEY: key 1 is not"},
		"a key of base64's 33": {map[string]string{"POSTAMT_SECRET_KEY": base64.StdEncoding.EncodeToString(make([]byte, 33))}, 0, "key 1 is not 32 bytes"},
	} {
		cfg, err := Load(tc.environ)
		if tc.mistake == "" && (err != nil || len(cfg.Seal.Keys) != tc.keys) {
			t.Errorf("%s: %d keys, %v", name, len(cfg.Seal.Keys), err)
		}
		if tc.mistake != "" && (err == nil || !strings.Contains(err.Error(), tc.mistake) || strings.Contains(err.Error(), "hunter2")) {
			t.Errorf("%s: %v; want %q", name, err, tc.mistake)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	text := base64.StdEncoding.EncodeToString(slices.Repeat([]byte("s"), sealKeyBytes))
	cfg, err := Load(map[string]string{"POSTAMT_SECRET_KEY": text})
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if err := cfg.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for how, shown := range map[string]string{
		"the table": table.String(), "JSON": string(asJSON), "%v": fmt.Sprintf("%v", cfg), "%+v": fmt.Sprintf("%+v", cfg), "%#v": fmt.Sprintf("%#v", cfg), "%s": fmt.Sprintf("%s", cfg.Seal.Keys),
	} {
		if strings.Contains(shown, text) || strings.Contains(shown, "ssss") || !strings.Contains(shown, redacted) {
			t.Errorf("%s is %s", how, shown)
		}
	}
	if cfg, err = Load(nil); err != nil || cfg.Seal.Key.String() != "none" {
		t.Errorf("without a key it is %v, %v", cfg.Seal.Key, err)
	}
}
