// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// page reads the rows of docs/spec/exits.md that match.
func page(t *testing.T, row string) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/spec/exits.md")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile("(?m)^"+row).FindAllStringSubmatch(string(text), -1)
}

// exits reads the moves that docs/spec/exits.md lists.
func exits(t *testing.T) map[Move]bool {
	t.Helper()
	out := map[Move]bool{}
	for _, row := range page(t, "\\| (?:–|`(\\w+)`) \\| `([A-Z]\\w+)` \\| \\S") {
		if move := (Move{evidence.Step(row[1]), evidence.Step(row[2])}); !isVerdict(row[2]) {
			out[move] = true
		}
	}
	return out
}

// turns reads the ways out of verdicts that docs/spec/exits.md lists.
func turns(t *testing.T) map[Turn]bool {
	t.Helper()
	out := map[Turn]bool{}
	for _, row := range page(t, "\\| `(\\w+)` \\| `(\\w+)` \\| \\S") {
		if isVerdict(row[2]) {
			out[Turn{row[1], row[2]}] = true
		}
	}
	return out
}

func isVerdict(name string) bool {
	for c := verdict.Healthy; c <= verdict.Unknown; c++ {
		if c.String() == name {
			return true
		}
	}
	return false
}

// told tells every story, and returns the moves and turns of all of them by file.
func told(t *testing.T) (moves map[string]map[Move]bool, taken map[Turn]bool) {
	t.Helper()
	moves, taken = map[string]map[Move]bool{}, map[Turn]bool{}
	files, err := filepath.Glob("../../test/scenario/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // a story of this repository
		if err != nil {
			t.Fatal(err)
		}
		m, turned, err := Moves(string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		moves[filepath.Base(file)] = m
		maps.Copy(taken, turned)
	}
	return moves, taken
}

// TestStoriesShowEveryExit: each move on the page is made in a story, and no other.
func TestStoriesShowEveryExit(t *testing.T) {
	listed, made := exits(t), map[Move]bool{}
	stories, _ := told(t)
	for file, moves := range stories {
		for m := range moves {
			made[m] = true
			if !listed[m] {
				t.Errorf("%s goes from %q to %s; docs/spec/exits.md does not say so", file, m.From, m.To)
			}
		}
	}
	for m := range listed {
		if !made[m] {
			t.Errorf("docs/spec/exits.md goes from %q to %s, and no story does", m.From, m.To)
		}
	}
}

// TestEveryVerdictHasAWayOut: every verdict that is not Healthy lists ways out, each is taken in a story, and they lead to Healthy and, but for an
// application's own failure, to Lost.
func TestEveryVerdictHasAWayOut(t *testing.T) {
	listed := turns(t)
	_, taken := told(t)
	for turn := range listed {
		if !taken[turn] {
			t.Errorf("docs/spec/exits.md goes from %s to %s, and no story does", turn.From, turn.To)
		}
	}
	for c := verdict.KubeletDown; c <= verdict.Unknown; c++ {
		for _, end := range []verdict.Class{verdict.Healthy, verdict.Lost} {
			if c != end && c != verdict.AppDown && !leads(listed, c.String(), end.String()) {
				t.Errorf("docs/spec/exits.md has no way from %s to %s", c, end)
			}
		}
	}
}

func leads(listed map[Turn]bool, from, to string) bool {
	reached := map[string]bool{from: true}
	for range len(listed) {
		for turn := range listed {
			reached[turn.To] = reached[turn.To] || reached[turn.From]
		}
	}
	return reached[to]
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
