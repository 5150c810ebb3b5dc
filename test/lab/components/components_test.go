// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package components

import (
	"os/exec"
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

// TestTheAttacherSharesWhatKubernetesCompiles guards the time of a cold build: with another version of one module low in the tree, the attacher compiles
// three minutes' worth of packages a second time.
func TestTheAttacherSharesWhatKubernetesCompiles(t *testing.T) {
	shared := versions(t, "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager")
	common := 0
	for module, version := range versions(t, "csi-attacher", "github.com/kubernetes-csi/external-attacher/v4/cmd/csi-attacher") {
		want, ok := shared[module]
		if !ok || want == "v0.0.0" { // of the parts that Kubernetes replaces, the attacher needs one, and that is small
			continue
		}
		common++
		if version != want {
			t.Errorf("csi-attacher requires %s %s, Kubernetes %s: exclude it in csi-attacher/go.mod", module, version, want)
		}
	}
	if common < 20 {
		t.Errorf("the attacher has %d modules in common with Kubernetes; want at least client-go and what it rests on", common)
	}
}

// versions are those of the modules, by path, that the packages are built from. What is compiled carries the version that is required, and is not shared
// with one that a replace line put in its place.
func versions(t *testing.T, dir string, packages ...string) map[string]string {
	t.Helper()
	format := "{{with .Module}}{{.Path}} {{.Version}}{{end}}"
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-mod=readonly", "-deps", "-f", format}, packages...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if module, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			found[module] = version
		}
	}
	return found
}
