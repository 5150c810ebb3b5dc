// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command mutate shows that the tests notice when a safety feature is taken away. Each test/mutants/*.patch takes one away; its header says which
// and names the tests that must then fail:
//
//	# takes away: what the code does no more
//	# kills: go test ./test/scenario
//	# kills: go test ./engine/...
//
// One of the commands has to fail; they are tried in order, so the quickest comes first.
//
// The tree is copied, so that nothing is changed in place. A mutant that survives, does not apply, or does not even compile is a failure. With arguments,
// only the mutants named run.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	verbose := flag.Bool("v", false, "print what the tests said")
	flag.Parse()
	if err := run(*verbose, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

type mutant struct {
	name, patch, takesAway string
	kills                  [][]string
}

func run(verbose bool, only []string) error {
	root, err := output(".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return fmt.Errorf("find the repository: %w", err)
	}
	root = strings.TrimSpace(root)
	mutants, err := read(root, only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-mutate-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := copyTree(root, dir); err != nil {
		return fmt.Errorf("copy the tree: %w", err)
	}
	survived := 0
	for _, m := range mutants {
		begin := time.Now()
		verdict, said := m.try(dir)
		if !strings.HasPrefix(verdict, "killed") {
			survived++
		}
		fmt.Printf("%-28s %-9s %s\n", m.name, time.Since(begin).Round(100*time.Millisecond), verdict)
		if verbose || strings.HasPrefix(verdict, "BROKEN") {
			fmt.Println(said)
		}
	}
	if survived > 0 {
		return fmt.Errorf("%d of %d mutants were not killed", survived, len(mutants))
	}
	fmt.Printf("%d mutants, all killed\n", len(mutants))
	return nil
}

// read finds the mutants and their headers.
func read(root string, only []string) ([]mutant, error) {
	patches, err := filepath.Glob(filepath.Join(root, "test/mutants/*.patch"))
	if err != nil || len(patches) == 0 {
		return nil, errors.New("no patches in test/mutants")
	}
	var out []mutant
	for _, patch := range patches {
		m := mutant{name: strings.TrimSuffix(filepath.Base(patch), ".patch"), patch: patch}
		if len(only) > 0 && !slices.Contains(only, m.name) {
			continue
		}
		text, err := os.ReadFile(patch) //nolint:gosec // a patch of this repository
		if err != nil {
			return nil, err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if words, ok := strings.CutPrefix(line, "# takes away: "); ok {
				m.takesAway = words
			}
			if words, ok := strings.CutPrefix(line, "# kills: "); ok {
				m.kills = append(m.kills, strings.Fields(words))
			}
		}
		odd := func(kill []string) bool { return len(kill) < 3 || kill[0] != "go" || kill[1] != "test" }
		if len(m.kills) == 0 || slices.ContainsFunc(m.kills, odd) || m.takesAway == "" {
			return nil, fmt.Errorf(`%s: the header wants "# takes away: …" and "# kills: go test …"`, patch)
		}
		out = append(out, m)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no mutant of these names: %v", only)
	}
	return out, nil
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// try applies the mutant in the copy, runs its tests, and takes it back.
func (m mutant) try(dir string) (verdict, said string) {
	if said, err := output(dir, "git", "apply", "--whitespace=nowarn", m.patch); err != nil {
		return "DOES NOT APPLY", said
	}
	defer func() {
		if said, err := output(dir, "git", "apply", "--whitespace=nowarn", "-R", m.patch); err != nil {
			panic("take back " + m.name + ": " + said)
		}
	}()
	for _, kill := range m.kills {
		said, err := output(dir, "go", append([]string{"test", "-trimpath", "-failfast"}, kill[2:]...)...)
		hit := failed.FindStringSubmatch(said)
		switch {
		case strings.Contains(said, "[build failed]") || strings.Contains(said, "[setup failed]"):
			return "BROKEN: does not compile", said
		case err != nil && hit == nil:
			return "BROKEN: the tests did not run", said
		case err != nil:
			return "killed by " + hit[1], said
		}
	}
	return "SURVIVED: " + m.takesAway, ""
}

func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...) //nolint:gosec // names are constants; arguments come from this repository
	cmd.Dir = dir
	// Git must take the copy for a plain directory, wherever it lies.
	cmd.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// copyTree copies what git knows or would add, as it stands in the working tree.
func copyTree(root, dir string) error {
	list, err := output(root, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimSuffix(list, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(root, name)) //nolint:gosec // a file of this repository
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted in the working tree
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
