// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// exits reads the moves that docs/spec/exits.md lists.
func exits(t *testing.T) map[Move]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/spec/exits.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[Move]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (?:–|`(\\w+)`) \\| `(\\w+)` \\| \\S").FindAllStringSubmatch(string(text), -1) {
		out[Move{evidence.Step(row[1]), evidence.Step(row[2])}] = true
	}
	return out
}

// TestStoriesShowEveryExit: each move on the page is made in a story, and no other.
func TestStoriesShowEveryExit(t *testing.T) {
	listed, made := exits(t), map[Move]bool{}
	files, err := filepath.Glob("../../test/scenario/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // a story of this repository
		if err != nil {
			t.Fatal(err)
		}
		moves, err := Moves(string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for m := range moves {
			made[m] = true
			if !listed[m] {
				t.Errorf("%s goes from %q to %s; docs/spec/exits.md does not say so", filepath.Base(file), m.From, m.To)
			}
		}
	}
	for m := range listed {
		if !made[m] {
			t.Errorf("docs/spec/exits.md goes from %q to %s, and no story does", m.From, m.To)
		}
	}
}

// TestEveryStepHasAWayToTheEnd enumerates the steps: from each one, the listed moves lead to Closed.
func TestEveryStepHasAWayToTheEnd(t *testing.T) {
	listed := exits(t)
	ends := map[evidence.Step]bool{evidence.StepClosed: true}
	for range len(listed) {
		for m := range listed {
			ends[m.From] = ends[m.From] || ends[m.To]
		}
	}
	for _, step := range []evidence.Step{evidence.StepNone, evidence.StepSuspected, evidence.StepHolding, evidence.StepConfirmed, evidence.StepFencing,
		evidence.StepReleasing, evidence.StepRecovering, evidence.StepResolved} {
		if !ends[step] {
			t.Errorf("no way from %q to an end", step)
		}
	}
	for m := range listed {
		if m.From == evidence.StepClosed || m.From == evidence.StepRetired {
			t.Errorf("%s is an end, and the page goes on to %s", m.From, m.To)
		}
	}
}

// TestHistoriesTakeNoOtherExit: random histories make no move that the page does not list.
func TestHistoriesTakeNoOtherExit(t *testing.T) {
	listed := exits(t)
	rapid.Check(t, func(t *rapid.T) {
		h := newHistory(t)
		h.past()
		h.repair()
		h.utter(rapid.SampledFrom([]string{"boot", "host loses power", "Node is deleted"}).Draw(t, "end"))
		h.live(2 * time.Minute)
		for m := range h.moves {
			if !listed[m] {
				h.fail("goes from " + string(m.From) + " to " + string(m.To) + ", which docs/spec/exits.md does not list")
			}
		}
	})
}
