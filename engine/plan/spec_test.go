// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"os"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
)

func spec(t *testing.T, row string) [][]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/spec/exits.md")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile("(?m)^"+row).FindAllStringSubmatch(string(text), -1)
}

// TestSpecListsRefusals: docs/spec/exits.md says for each refusal what ends it, and for nothing else.
func TestSpecListsRefusals(t *testing.T) {
	var told []plan.Refusal
	for _, row := range spec(t, "\\| (\\w+) \\| `([^`]+)` \\| \\S") {
		told = append(told, plan.Refusal{What: row[1], By: row[2]})
	}
	if !slices.Equal(told, plan.Refusals()) {
		t.Errorf("the page tells\n%v\nand the code refuses\n%v", told, plan.Refusals())
	}
}

// TestSpecListsBounds: docs/spec/exits.md has the bound of every step that is not an end.
func TestSpecListsBounds(t *testing.T) {
	var told []plan.Bound
	for _, row := range spec(t, "\\| `(\\w+)` \\| `([0-9hms]+)`[^|]* \\| \\S") {
		d, err := time.ParseDuration(row[2])
		if err != nil {
			t.Fatal(err)
		}
		told = append(told, plan.Bound{Step: evidence.Step(row[1]), Is: d})
	}
	if !slices.Equal(told, plan.Bounds()) {
		t.Errorf("the page tells\n%v\nand the code has\n%v", told, plan.Bounds())
	}
}

// TestSpecListsBlocks: docs/spec/exits.md has every reason why only a human can bring an incident on.
func TestSpecListsBlocks(t *testing.T) {
	section := spec(t, "## Blocked\n(?s:(.*?))\n## ")
	if len(section) != 1 {
		t.Fatal("the page has no section Blocked")
	}
	var told []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(section[0][1], -1) {
		told = append(told, row[1])
	}
	if !slices.Equal(told, plan.Blocks()) {
		t.Errorf("the page tells\n%v\nand the code has\n%v", told, plan.Blocks())
	}
}
