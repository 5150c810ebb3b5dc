// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// TestEveryRuleIsNeeded takes each rule away in turn: some story must come out differently.
func TestEveryRuleIsNeeded(t *testing.T) {
	stories := read(t)
	for _, r := range verdict.Rules() {
		t.Run(r.Rule, func(t *testing.T) {
			verdict.Without(r.Rule, func() {
				if file := firstToChange(stories); file != "" {
					t.Logf("told by %s", file)
					return
				}
				t.Errorf("no story in test/scenario comes out differently without rule %s: write one that needs it", r.Rule)
			})
		})
	}
}

func read(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../../test/scenario/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	stories := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f) //nolint:gosec // a story of this repository
		if err != nil {
			t.Fatal(err)
		}
		stories[f] = string(text)
	}
	return stories
}

func firstToChange(stories map[string]string) string {
	for file, want := range stories {
		if changes(want) {
			return file
		}
	}
	return ""
}

// changes also counts a story that cannot be told any more.
func changes(want string) (changed bool) {
	defer func() {
		if recover() != nil {
			changed = true
		}
	}()
	got, err := scenario.Rewrite(want)
	return err != nil || got != want
}
