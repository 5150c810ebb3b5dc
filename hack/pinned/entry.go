// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pinned

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// entry is a spec together with its place in the cache.
type entry struct {
	spec    Spec
	module  string // absolute directory of the pinned module
	dir     string // absolute directory of the cache entry
	version string // of the module that holds the command; empty if it is the pinned module itself
}

// binary is where the command is once it is built. It keeps its name, so the
// entry's directory can stand on a PATH.
func (e entry) binary() string { return filepath.Join(e.dir, e.spec.Name) }

// cached says whether the binary is there. An entry's directory appears in
// one rename, so a binary that exists is complete.
func (e entry) cached() bool {
	st, err := os.Stat(e.binary())
	return err == nil && st.Mode().IsRegular()
}

// resolve checks the specs and works out their entries.
func resolve(ctx context.Context, root, cache string, specs []Spec) ([]entry, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	modules := map[string]module{}
	names := map[string]bool{}
	entries := make([]entry, 0, len(specs))
	for _, s := range specs {
		switch {
		case s.Name == "" || s.Name != filepath.Base(s.Name):
			return nil, fmt.Errorf("pinned command of package %q: the name %q is not a file name", s.Package, s.Name)
		case names[s.Name]:
			return nil, fmt.Errorf("pinned command %s is specified twice", s.Name)
		case !filepath.IsLocal(s.Dir):
			return nil, fmt.Errorf("pinned command %s: the directory %q is not inside the repository", s.Name, s.Dir)
		}
		names[s.Name] = true
		m, ok := modules[s.Dir]
		if !ok {
			if m, err = readModule(ctx, filepath.Join(root, s.Dir)); err != nil {
				return nil, fmt.Errorf("pinned module %s: %w", s.Dir, err)
			}
			modules[s.Dir] = m
		}
		entries = append(entries, entry{
			spec:    s,
			module:  m.dir,
			dir:     filepath.Join(cache, "pinned", key(m, s)),
			version: m.versionOf(s.Package),
		})
	}
	return entries, nil
}

// module is what the specs of one directory have in common.
type module struct {
	dir       string
	content   string            // hash over the directory's files
	toolchain map[string]string // the go command's settings that decide the result
	requires  map[string]string // module path → version
}

func readModule(ctx context.Context, dir string) (module, error) {
	m := module{dir: dir}
	goMod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return m, err
	}
	if m.requires, err = parseGoMod(string(goMod)); err != nil {
		return m, err
	}
	if m.content, err = hashFiles(dir); err != nil {
		return m, err
	}
	m.toolchain, err = toolchain(ctx, dir)
	return m, err
}

// versionOf returns the version of the required module that holds a package:
// the one with the longest path that is a prefix of the package's.
func (m module) versionOf(pkg string) string {
	for p := pkg; p != "." && p != "/"; p = pathDir(p) {
		if v, ok := m.requires[p]; ok {
			return v
		}
	}
	return ""
}

func pathDir(p string) string {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return "."
	}
	return p[:i]
}

// parseGoMod returns the required versions of a go.mod. It refuses a module
// that is replaced by a directory, because no hash here sees its content.
func parseGoMod(text string) (map[string]string, error) {
	requires := map[string]string{}
	block := ""
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "//")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
			continue
		case len(words) == 2 && words[1] == "(":
			block = words[0]
			continue
		case words[0] == ")":
			block = ""
			continue
		}
		verb := block
		if verb == "" {
			verb, words = words[0], words[1:]
		}
		switch {
		case verb == "require" && len(words) == 2:
			requires[words[0]] = words[1]
		case verb == "replace":
			if to := words[len(words)-1]; strings.HasPrefix(to, ".") || filepath.IsAbs(to) {
				return nil, fmt.Errorf("go.mod replaces %s by the directory %s; pin a version instead", words[0], to)
			}
		}
	}
	return requires, nil
}

// hashFiles hashes the names and contents of all files below dir.
func hashFiles(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%x %s\n", sum.Sum(nil), filepath.ToSlash(rel))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// toolchain asks the go command, in the module's directory because its go.mod
// may select another toolchain.
func toolchain(ctx context.Context, dir string) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "-json",
		"GOVERSION", "GOOS", "GOARCH", "GOAMD64", "GOARM64", "GOEXPERIMENT", "CC", "CGO_CFLAGS", "CGO_LDFLAGS")
	cmd.Dir = dir
	cmd.Env = environ(false)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var settings map[string]string
	if err := json.Unmarshal(out, &settings); err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	return settings, nil
}

// key names a cache entry by everything that decides the binary's content.
func key(m module, s Spec) string {
	settings := m.toolchain
	if !s.CGO {
		settings = map[string]string{}
		for k, v := range m.toolchain {
			if k != "CC" && !strings.HasPrefix(k, "CGO_") {
				settings[k] = v
			}
		}
	}
	// Marshalling sorts the map's keys and cannot fail for strings.
	text, _ := json.Marshal(struct {
		Content, Name, Package string
		Tags, LDFlags          []string
		CGO                    bool
		Toolchain              map[string]string
	}{m.content, s.Name, s.Package, s.Tags, s.LDFlags, s.CGO, settings})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}
