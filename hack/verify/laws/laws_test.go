// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package laws breaks the import law and the clock law of .golangci.yml on purpose, in a copy of the checkout, and
// expects golangci-lint to notice. It takes a minute and is part of `make verify`.
package laws

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-dev/holdfast/"

// violation is a file in a package of its own, and the linter that must point at it.
type violation struct {
	name   string
	dir    string
	code   string
	linter string
	says   string
}

func imports(packages ...string) string {
	var code strings.Builder
	for _, p := range packages {
		fmt.Fprintf(&code, "import _ %q\n", p)
	}
	return code.String()
}

var violations = []violation{
	{"evidence imports verdict", "engine/evidence", imports(module + "engine/verdict"), "depguard", "engine/verdict"},
	{"evidence imports the API", "engine/evidence", imports(module + "api/v1alpha1"), "depguard", "api/v1alpha1"},
	{"evidence takes a context", "engine/evidence", imports("context"), "depguard", "no context"},
	{"verdict imports plan", "engine/verdict", imports(module + "engine/plan"), "depguard", "engine/plan"},
	{"verdict logs", "engine/verdict", imports("log/slog"), "depguard", "does not log"},
	{"plan imports report", "engine/plan", imports(module + "engine/report"), "depguard", "engine/report"},
	{"plan imports Kubernetes", "engine/plan", imports("k8s.io/apimachinery/pkg/types"), "depguard", "k8s.io/apimachinery"},
	{"plan imports fencing", "engine/plan", imports(module + "fencing"), "depguard", "holdfast/fencing"},
	{"report imports a client", "engine/report", imports("sigs.k8s.io/controller-runtime/pkg/client"), "depguard", "sigs.k8s.io"},
	{"scenario imports controllers", "engine/scenario", imports(module + "controllers/guard"), "depguard", "controllers/guard"},
	{"the API imports the engine", "api", imports(module + "engine/evidence"), "depguard", "engine/evidence"},
	{"a driver imports the API", "fencing/ipmi", imports(module + "api/v1alpha1"), "depguard", "nothing of ours"},
	{"a driver imports Kubernetes", "fencing/ipmi", imports("k8s.io/api/core/v1"), "depguard", "not Kubernetes"},
	{"admission imports the engine", "admission", imports(module + "engine/verdict"), "depguard", "admission imports the API"},
	{"a controller imports a driver", "controllers/guard", imports(module + "fencing/ipmi"), "depguard", "drivers come from cmd"},
	{"the agent imports a controller", "agent/wire", imports(module + "controllers/guard"), "depguard", "nothing of ours"},
	{"the agent imports the engine", "agent/gossip", imports(module + "engine/verdict"), "depguard", "nothing of ours"},
	{"a controller imports gossip", "controllers/guard", imports(module + "agent/gossip"), "depguard", "how a question is tried"},
	{"a controller imports a test package", "controllers/guard", imports(module + "test/envtest"), "depguard", "controllers import"},
	{"cmd imports the fake world", "cmd", imports(module + "fencing/fake"), "depguard", "for tests"},

	{"the engine looks at the clock", "engine/verdict", "import \"time\"\nvar At = time.Now()\n", "forbidigo", "injected clock"},
	{"the engine waits", "engine/plan", "import \"time\"\nvar C = time.After(1)\n", "forbidigo", "injected clock"},
	{"the engine looks at the clock by another name", "engine/evidence", "import t \"time\"\nvar At = t.Now()\n", "forbidigo", "injected clock"},
	{"a controller sleeps", "controllers/guard", "import \"time\"\nfunc F() { time.Sleep(1) }\n", "forbidigo", "injected clock"},
	{"a controller looks at the clock", "controllers/guard", "import \"time\"\nvar At = time.Since(time.Time{})\n", "forbidigo", "injected clock"},
	{
		"a controller stamps by Kubernetes' clock", "controllers/guard",
		"import metav1 \"k8s.io/apimachinery/pkg/apis/meta/v1\"\nvar At = metav1.Now()\n", "forbidigo", "injected clock",
	},
	{"no licence", "engine/plan", "", "goheader", ""},
}

// lawful are files that the same rules must let pass.
var lawful = []violation{
	{"report imports the API", "engine/report", imports(module+"api/v1alpha1", module+"engine/plan"), "", ""},
	{"a driver imports the contract", "fencing/ipmi", imports(module+"fencing", "net"), "", ""},
	{"a controller imports the contract", "controllers/guard", imports(module+"fencing", module+"engine/verdict", "context"), "", ""},
	{"a controller tries a question", "controllers/guard", imports(module+"agent/probe", module+"agent/wire"), "", ""},
	{"cmd imports a driver", "cmd", imports(module+"fencing/ipmi", module+"controllers/guard"), "", ""},
	{"a controller computes with durations", "controllers/guard", "import \"time\"\nvar D = 3 * time.Second\n", "", ""},
}

func TestEachLawIsEnforced(t *testing.T) {
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	copied := copyCheckout(t, root)
	for i := range violations {
		violations[i].plant(t, copied, fmt.Sprintf("planted%d", i))
	}
	for i := range lawful {
		lawful[i].plant(t, copied, fmt.Sprintf("lawful%d", i))
	}
	found := lint(t, filepath.Join(root, "bin", "golangci-lint"), copied)
	for i, v := range violations {
		dir := filepath.Join(v.dir, fmt.Sprintf("planted%d", i))
		if !slices.ContainsFunc(found, func(f finding) bool {
			return filepath.Dir(f.Pos.Filename) == dir && f.FromLinter == v.linter && strings.Contains(f.Text, v.says)
		}) {
			t.Errorf("%s: %s does not say %q of %s", v.name, v.linter, v.says, dir)
		}
	}
	for i, v := range lawful {
		dir := filepath.Join(v.dir, fmt.Sprintf("lawful%d", i))
		for _, f := range found {
			if filepath.Dir(f.Pos.Filename) == dir {
				t.Errorf("%s, and %s says: %s", v.name, f.FromLinter, f.Text)
			}
		}
	}
}

// plant writes the file into a package of its own below the directory that it is about: a package cannot import what
// imports it, but one below it can.
func (v violation) plant(t *testing.T, root, name string) {
	t.Helper()
	dir := filepath.Join(root, v.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	header := "// Copyright The Holdfast Authors.\n// SPDX-License-Identifier: Apache-2.0\n\n"
	if v.linter == "goheader" {
		header = "// Somebody wrote this.\n\n"
	}
	code := header + "package " + name + "\n\n" + v.code
	if err := os.WriteFile(filepath.Join(dir, "planted.go"), []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
}

type finding struct {
	FromLinter string
	Text       string
	Pos        struct{ Filename string }
}

func lint(t *testing.T, binary, root string) []finding {
	t.Helper()
	command := exec.CommandContext(t.Context(), binary, "run", "--enable-only", "depguard,forbidigo,goheader",
		"--output.json.path", "stdout", "--show-stats=false", "--issues-exit-code", "0",
		"./api/...", "./engine/...", "./fencing/...", "./admission/...", "./agent/...", "./controllers/...", "./cmd/...")
	command.Dir = root
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("golangci-lint: %v\n%s\n%s(make tools builds it)", err, output, &stderr)
	}
	var report struct{ Issues []finding }
	if err := json.NewDecoder(bytes.NewReader(output)).Decode(&report); err != nil {
		t.Fatalf("golangci-lint says %v:\n%s\n%s", err, output, &stderr)
	}
	for _, f := range report.Issues {
		if f.FromLinter == "typecheck" {
			t.Errorf("%s does not compile, so nothing is proven: %s", f.Pos.Filename, f.Text)
		}
	}
	return report.Issues
}

// copyCheckout copies what git knows and what it would add.
func copyCheckout(t *testing.T, root string) string {
	t.Helper()
	to := t.TempDir()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z",
		"*.go", "go.mod", "go.sum", ".golangci.yml", "admission", "agent", "api", "controllers", "engine", "fencing", "cmd")
	list.Dir = root
	names, err := list.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(root, name))
		if os.IsNotExist(err) {
			continue // deleted and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(target, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return to
}
