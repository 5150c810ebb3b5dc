// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain keeps the tool from writing into the tree; a failure prints its seed.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			panic(err)
		}
	}
	flag.Parse()
	os.Exit(m.Run())
}
