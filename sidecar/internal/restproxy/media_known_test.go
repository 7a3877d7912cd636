package restproxy

import (
	"mime"
	"testing"
)

// What is found as it is written must be what a parser would have found.
func TestKnownMediaTypesNeedNoParser(t *testing.T) {
	t.Parallel()
	for text := range formats {
		if mediaType, _, err := mime.ParseMediaType(text); err != nil || mediaType != text {
			t.Errorf("%s is read as %q, %v", text, mediaType, err)
		}
		if _, err := negotiate([]string{text}, ""); err != nil {
			t.Errorf("Accept: %s is let through, and is %v", text, err)
		}
	}
	for _, accept := range [][]string{nil, {"*/*"}} {
		if _, err := negotiate(accept, ""); err != nil {
			t.Errorf("Accept: %s is let through, and is %v", accept, err)
		}
	}
}
