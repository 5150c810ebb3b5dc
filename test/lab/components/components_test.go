// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package components

import (
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/hack/pinned"
)

func TestEveryVersionThatIsLinkedInIsThePinnedOne(t *testing.T) {
	specs := Specs()
	found, err := pinned.Lookup(t.Context(), "../../..", specs)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range specs {
		pin := found[i].Version
		if pin == "" {
			t.Errorf("%s: no module that %s/go.mod requires holds %s", s.Name, s.Dir, s.Package)
			continue
		}
		for _, flag := range s.LDFlags {
			name, value, _ := strings.Cut(flag, "=")
			if strings.HasSuffix(strings.ToLower(name), "version") && value != pin {
				t.Errorf("%s: %q, but the module is pinned at %s", s.Name, flag, pin)
			}
		}
	}
}

func TestTheKubernetesVersionIsThePinnedOne(t *testing.T) {
	found, err := pinned.Lookup(t.Context(), "../../..", []pinned.Spec{kubernetes("kubelet")})
	if err != nil {
		t.Fatal(err)
	}
	if found[0].Version != KubernetesVersion {
		t.Errorf("KubernetesVersion is %s, kubernetes/go.mod pins %s", KubernetesVersion, found[0].Version)
	}
	version := strings.Split(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	flags := strings.Join(kubernetes("kubelet").LDFlags, " ")
	for _, want := range []string{"gitMajor=" + version[0] + " ", "gitMinor=" + version[1] + " "} {
		if !strings.Contains(flags, want) {
			t.Errorf("the linker flags lack %q: %s", want, flags)
		}
	}
}
