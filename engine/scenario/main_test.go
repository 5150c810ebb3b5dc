// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"flag"
	"os"
	"testing"
)

// TestMain asks for more histories than the tool's own default; -rapid.checks on the command line overrides it.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.checks": "400", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	flag.Parse()
	os.Exit(m.Run())
}
