// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string // direct, without those of tests
	Deps       []string // transitive
}

func list(t *testing.T, patterns ...string) map[string]pkg {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-deps", "-json=ImportPath,Standard,Imports,Deps"}, patterns...)...)
	command.Dir = root
	output, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]pkg{}
	for decoder := json.NewDecoder(strings.NewReader(string(output))); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
}

// within says whether path is one of the packages or below one of them; a name that ends in $ is that package only.
func within(path string, names ...string) bool {
	for _, name := range names {
		exact, only := strings.CutSuffix(name, "$")
		if path == exact || !only && strings.HasPrefix(path, exact+"/") {
			return true
		}
	}
	return false
}

// importLaw says for each part what of ours it may reach, directly or not.
var importLaw = []struct {
	part string
	may  []string
}{
	{"api", []string{"api"}},
	{"engine/evidence", []string{"engine/evidence"}},
	{"engine/verdict", []string{"engine/evidence", "engine/verdict"}},
	{"engine/plan", []string{"engine/evidence", "engine/verdict", "engine/plan"}},
	{"engine/report", []string{"engine", "api"}},
	{"engine/scenario", []string{"engine", "api"}},
	{"fencing", []string{"fencing"}},
	{"admission", []string{"admission", "api"}},
	{"agent/wire", []string{"agent/wire"}},
	{"agent/keyring", []string{"agent/keyring"}},
	{"agent/rpc", []string{"agent/rpc"}},
	{"agent/probe", []string{"agent/probe", "agent/rpc", "agent/wire"}},
	{"agent", []string{"agent"}},
	{"controllers", []string{"admission", "agent/authority$", "agent/keyring$", "agent/probe$", "agent/rpc$", "agent/wire$", "api", "controllers", "engine", "fencing$"}},
	{"cmd", []string{"admission", "agent", "api", "cmd", "controllers", "engine", "fencing$", "fencing/ipmi"}},
}

func TestImportsStayWithinTheLaw(t *testing.T) {
	packages := list(t, "./...")
	for _, law := range importLaw {
		var may []string
		for _, name := range law.may {
			may = append(may, module+name)
		}
		found := false
		for path, p := range packages {
			if !within(path, module+law.part) {
				continue
			}
			found = true
			for _, dep := range p.Deps {
				if strings.HasPrefix(dep, module) && !within(dep, may...) {
					t.Errorf("%s reaches %s; %s may reach %v only", path, dep, law.part, law.may)
				}
			}
		}
		if !found {
			t.Errorf("there is no package in %s: does the law still name the right one?", law.part)
		}
	}
}

func TestImportsOfTheEngineAreStandardButForTheAPI(t *testing.T) {
	packages := list(t, "./engine/...")
	for path, p := range packages {
		switch {
		case !within(path, module+"engine"):
			if within(path, "sigs.k8s.io/controller-runtime") {
				t.Errorf("the engine reaches %s", path)
			}
		case within(path, module+"engine/report"):
			for _, direct := range p.Imports {
				if !packages[direct].Standard && !within(direct, module+"engine", module+"api", "k8s.io/apimachinery/pkg/apis/meta/v1$") {
					t.Errorf("%s imports %s; only the API may stand between it and Kubernetes", path, direct)
				}
			}
		default:
			for _, dep := range p.Deps {
				if !packages[dep].Standard && !within(dep, module+"engine") {
					t.Errorf("%s reaches %s; the engine uses the standard library only", path, dep)
				}
			}
		}
	}
}

func TestImportsOfControllersCmdAndTestComeFromCmdAndTestsOnly(t *testing.T) {
	for path, p := range list(t, "./...") {
		for _, direct := range p.Imports {
			if within(direct, module+"controllers") && !within(path, module+"controllers", module+"cmd", module+"test") ||
				within(direct, module+"cmd") && !within(path, module+"cmd", module+"test") ||
				within(direct, module+"test") && !within(path, module+"test", module+"hack") {
				t.Errorf("%s imports %s", path, direct)
			}
		}
	}
}

// agentIsMadeOf is all that an agent links besides Go's own library and ours. What is added here is on every host: measure it, as docs/spec/witness.md,
// "What an agent costs", says.
var agentIsMadeOf = []string{
	"github.com/armon/go-metrics", "github.com/fsnotify/fsnotify", "github.com/go-logr/logr", "github.com/godbus/dbus/v5", "github.com/google/btree", "github.com/google/nftables",
	"github.com/hashicorp/errwrap", "github.com/hashicorp/go-immutable-radix", "github.com/hashicorp/go-metrics", "github.com/hashicorp/go-msgpack/v2",
	"github.com/hashicorp/go-multierror", "github.com/hashicorp/go-sockaddr", "github.com/hashicorp/golang-lru", "github.com/hashicorp/memberlist",
	"github.com/mdlayher/netlink", "github.com/mdlayher/socket", "github.com/miekg/dns", "github.com/sean-/seed", "github.com/vishvananda/netlink", "github.com/vishvananda/netns",
	"golang.org/x/crypto", "golang.org/x/net", "golang.org/x/sync", "golang.org/x/sys", "google.golang.org/protobuf/encoding/protowire$",
	"google.golang.org/protobuf/internal", "k8s.io/utils/clock$",
}

func TestAnAgentLinksWhatIsNamedAndNoMore(t *testing.T) {
	linked := map[string]bool{}
	for path, p := range list(t, "./cmd/witness") {
		if p.Standard || within(path, strings.TrimSuffix(module, "/")) {
			continue
		}
		known := false
		for _, name := range agentIsMadeOf {
			if within(path, name) {
				known, linked[name] = true, true
			}
		}
		if !known {
			t.Errorf("the agent links %s, which every host would hold in memory", path)
		}
	}
	for _, name := range agentIsMadeOf {
		if !linked[name] {
			t.Errorf("the agent does not link %s any more: take it off the list", name)
		}
	}
}
