package registry

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// KeyBytes is the length of a key that secrets are sealed with.
const KeyBytes = 32

// Seals keeps what may not be read in the table. The first key seals, every one of them opens, so
// that a key can be replaced: the new one is put before the old one until all has been sealed anew.
type Seals struct {
	ciphers []keyed
}

type keyed struct {
	id   [keyIDBytes]byte
	aead cipher.AEAD
}

// keyIDBytes is how much of a key's hash stands before what it has sealed, to tell a missing key
// from damage.
const keyIDBytes = 4

// NewSeals takes keys of KeyBytes each. With none, nothing can be sealed or opened.
func NewSeals(keys ...[]byte) (*Seals, error) {
	s := &Seals{}
	for i, key := range keys {
		if len(key) != KeyBytes {
			return nil, fmt.Errorf("key %d has %d bytes; it must have %d", i+1, len(key), KeyBytes)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, err
		}
		hash := sha256.Sum256(key)
		s.ciphers = append(s.ciphers, keyed{[keyIDBytes]byte(hash[:]), aead})
	}
	return s, nil
}

// Able tells whether there is a key.
func (s *Seals) Able() bool { return len(s.ciphers) > 0 }

// errNoKey is of what was sealed with a key that is not known here.
var errNoKey = errors.New("its secrets were sealed with a key that is not in POSTAMT_SECRET_KEY")

// seal makes text unreadable. What it is of must be the same when it is opened.
func (s *Seals) seal(text []byte, of string) []byte {
	first := s.ciphers[0]
	return first.aead.Seal(first.id[:], nil, text, []byte(of))
}

func (s *Seals) open(sealed []byte, of string) ([]byte, error) {
	if len(sealed) < keyIDBytes {
		return nil, errors.New("its secrets are damaged")
	}
	for _, k := range s.ciphers {
		if k.id != [keyIDBytes]byte(sealed) {
			continue
		}
		if text, err := k.aead.Open(nil, nil, sealed[keyIDBytes:], []byte(of)); err == nil {
			return text, nil
		}
		return nil, errors.New("its secrets are damaged, or another subscription's")
	}
	return nil, errNoKey
}

// newSecret makes what deliveries are signed with.
func newSecret() []byte {
	key := make([]byte, secretBytes)
	_, _ = rand.Read(key) // never fails
	return key
}
