package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Secret is a text that is never shown.
type Secret string

// String is "[redacted]", or what stands for no secret.
func (s Secret) String() string {
	if s == "" || s == noSecret {
		return string(s)
	}
	return redacted
}

// GoString is String, for %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText is String, for JSON and logs.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const (
	redacted = "[redacted]"
	noSecret = "none"
)

// Seal says what secrets of clients are kept under.
type Seal struct {
	Key     Secret `env:"KEY" envDefault:"none" help:"what the secrets of subscriptions are sealed with: 32 random bytes in base64; several with commas between, of which the first seals and all open. Without one there are no subscriptions"`
	KeyFile string `env:"KEY_FILE" envDefault:"/run/secrets/secret_key" help:"the file that has them, where POSTAMT_SECRET_KEY is none; the default need not be there"`
	// Keys are what the two give: 32 bytes each.
	Keys []Secret
}

// sealKeyBytes is what AES-256 takes.
const sealKeyBytes = 32

// read finds the keys. fileGiven says that the file was asked for, and so has to be there.
func (s *Seal) read(fileGiven bool) error {
	name, text := "POSTAMT_SECRET_KEY", string(s.Key)
	if text == noSecret {
		name = "POSTAMT_SECRET_KEY_FILE"
		content, err := os.ReadFile(s.KeyFile)
		if errors.Is(err, fs.ErrNotExist) && !fileGiven {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text = string(content)
	}
	for i, encoded := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\r' }) {
		key, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || len(key) != sealKeyBytes { // and no word of the key itself
			return fmt.Errorf("%s: key %d is not %d bytes in base64, as `head -c 32 /dev/urandom | base64` makes them", name, i+1, sealKeyBytes)
		}
		s.Keys = append(s.Keys, Secret(key))
	}
	if len(s.Keys) == 0 {
		return fmt.Errorf("%s is empty; it must be %d random bytes in base64", name, sealKeyBytes)
	}
	return nil
}
