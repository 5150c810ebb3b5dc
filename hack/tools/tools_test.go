// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/hack/pinned"
)

func TestEveryVersionThatIsLinkedInIsThePinnedOne(t *testing.T) {
	specs := Specs()
	found, err := pinned.Lookup(t.Context(), "../..", specs)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range specs {
		pin := found[i].Version
		if pin == "" {
			t.Errorf("%s: no module that %s/go.mod requires holds %s", s.Name, s.Dir, s.Package)
		}
		for _, flag := range s.LDFlags {
			if name, value, _ := strings.Cut(flag, "="); strings.HasSuffix(name, "version.Version") && value != pin {
				t.Errorf("%s: %q, but the module is pinned at %s", s.Name, flag, pin)
			}
		}
	}
}
