// Package compose carries the default topics into the binary, for `postamt dev`.
package compose

import _ "embed"

// Topics is topics.yaml, which the stack mounts as a file.
//
//go:embed topics.yaml
var Topics []byte
