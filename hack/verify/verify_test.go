// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verify holds the checks of the checkout itself that need no generator and no linter.
package verify

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/holdfast-dev/holdfast/"
)

var (
	phonyLine  = regexp.MustCompile(`(?m)^\.PHONY: (\S+)$`)
	targetLine = regexp.MustCompile(`(?m)^([a-z0-9-]+):(?:[^=\n]*?)(?: ## (.+))?$`)
)

func TestTheHelpListsEveryTarget(t *testing.T) {
	makefile := read(t, "Makefile")
	var phony []string
	for _, match := range phonyLine.FindAllStringSubmatch(makefile, -1) {
		phony = append(phony, match[1])
	}
	var described []string
	for _, match := range targetLine.FindAllStringSubmatch(makefile, -1) {
		if match[2] == "" {
			t.Errorf("target %s has no line in the help: write ## and what it does behind its prerequisites", match[1])
		}
		described = append(described, match[1])
	}
	for _, name := range phony {
		if !slices.Contains(described, name) {
			t.Errorf("%s is phony and no target", name)
		}
	}
	for _, name := range described {
		if !slices.Contains(phony, name) {
			t.Errorf("target %s is not phony: a file of that name would hide it", name)
		}
	}

	for _, arguments := range [][]string{nil, {"help"}} {
		command := exec.CommandContext(t.Context(), "make", arguments...)
		command.Dir = root
		command.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "MAKE") })
		output, err := command.Output()
		if err != nil {
			t.Fatalf("make %v: %v", arguments, err)
		}
		var listed []string
		for line := range strings.Lines(string(output)) {
			if fields := strings.Fields(line); strings.HasPrefix(line, "  ") && len(fields) > 1 {
				listed = append(listed, fields[0])
			}
		}
		if !slices.Equal(listed, described) {
			t.Errorf("make %v lists\n%v\nand the Makefile has\n%v", arguments, listed, described)
		}
	}
}

func TestEveryFileNamedInTheMakefileExists(t *testing.T) {
	for _, match := range regexp.MustCompile(`(?m)(?:^|[\s/])((?:hack|test|cmd|config)/[\w./-]+|\./cmd/[\w/-]+)`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		if strings.HasPrefix(match[1], "hack/tools/") {
			continue // a pattern
		}
		if _, err := os.Stat(filepath.Join(root, strings.TrimSuffix(match[1], "/..."))); err != nil {
			t.Errorf("the Makefile names %s: %v", match[1], err)
		}
	}
}

func TestCIRunsMakeTest(t *testing.T) {
	if !strings.HasSuffix(read(t, ".ci/run"), "set -eu\ncd \"$(dirname \"$0\")/..\"\nexec make test\n") {
		t.Error(".ci/run does more, or less, than make test")
	}
}

func TestEveryFileSaysItsLicence(t *testing.T) {
	const header = "Copyright The Holdfast Authors.\n%s SPDX-License-Identifier: Apache-2.0\n"
	comment := map[string]string{".go": "//", ".sh": "#"}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", "bin", "out"}, entry.Name()):
			return filepath.SkipDir
		}
		mark, ok := comment[filepath.Ext(path)]
		if !ok {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if want := strings.ReplaceAll(header, "%s", mark); !strings.Contains(string(content[:min(len(content), 400)]), mark+" "+want) {
			t.Errorf("%s does not begin with the two lines of the licence", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
