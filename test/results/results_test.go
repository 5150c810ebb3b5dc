// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package results

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestRowsAreAppendedUnderOneHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "rows.csv")
	if lines, err := Read(path); err != nil || lines != nil {
		t.Fatalf("before the first row: %v, %v", lines, err)
	}
	header := []string{"commit", "words"}
	for _, row := range [][]string{{"a", "one, two"}, {"b", "\"three\""}} {
		if err := Append(path, header, row); err != nil {
			t.Fatal(err)
		}
	}
	lines, err := Read(path)
	if want := [][]string{header, {"a", "one, two"}, {"b", "\"three\""}}; err != nil || !reflect.DeepEqual(lines, want) {
		t.Errorf("read %v (%v), want %v", lines, err, want)
	}
}

// TestACommitIsTheLastThatChangedMoreThanResults: so that a run which leaves rows does not become another one by that.
func TestACommitIsTheLastThatChangedMoreThanResults(t *testing.T) {
	dir := t.TempDir()
	commit := func(file string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", file}} {
			cmd := exec.Command("git", args...)
			cmd.Dir = dir
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("git %v: %v: %s", args, err, text)
			}
		}
		hash, err := Commit(dir)
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	code := commit("code.go")
	if got := commit("docs/results/rows.csv"); got != code {
		t.Errorf("after a commit of results it is %s, want %s", got, code)
	}
	if err := os.WriteFile(filepath.Join(dir, "docs/results/rows.csv"), []byte("more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Commit(dir); err != nil || got != code {
		t.Errorf("with more results it is %s (%v), want %s", got, err, code)
	}
	if err := os.WriteFile(filepath.Join(dir, "code.go"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Commit(dir); err != nil || got != code+"-dirty" {
		t.Errorf("with other code it is %s (%v), want %s-dirty", got, err, code)
	}
	if got := commit("code2.go"); got == code || strings.Contains(got, "dirty") {
		t.Errorf("after another commit it is %s", got)
	}
}
