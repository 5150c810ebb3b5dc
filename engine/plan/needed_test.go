// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/scenario"
)

// TestEveryRefusalIsNeeded takes each refusal away in turn: some story must then do what was refused, or something else that it did not do before.
// That the refusal is no longer told is not enough.
func TestEveryRefusalIsNeeded(t *testing.T) {
	stories := read(t)
	for _, r := range plan.Refusals() {
		if r.What == "Reschedule" {
			continue // not a branch: there is no step that reschedules without proof
		}
		t.Run(r.What+" "+r.By, func(t *testing.T) {
			plan.Without(r, func() {
				if file := firstToAct(stories); file != "" {
					t.Logf("told by %s", file)
					return
				}
				t.Errorf("no story in test/scenario does anything else without %s refused by %s: write one that needs it", r.What, r.By)
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

func firstToAct(stories map[string]string) string {
	for file, want := range stories {
		if actsDifferently(want) {
			return file
		}
	}
	return ""
}

func actsDifferently(want string) (changed bool) {
	defer func() {
		if recover() != nil {
			changed = true
		}
	}()
	got, err := scenario.Rewrite(want)
	return err != nil || acts(got) != acts(want)
}

// acts is what was done or planned, without what was told.
func acts(story string) string {
	var out strings.Builder
	for _, line := range strings.Split(story, "\n") {
		if strings.Contains(line, "held ") || strings.Contains(line, "blocked") || strings.Contains(line, "stalled") || strings.HasPrefix(line, "next ") || strings.Contains(line, " by ") {
			continue
		}
		out.WriteString(line + "\n")
	}
	return out.String()
}
