// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/plan"
)

// TestSpecListsRefusals: docs/spec/exits.md says for each refusal what ends it, and for nothing else.
func TestSpecListsRefusals(t *testing.T) {
	text, err := os.ReadFile("../../docs/spec/exits.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []plan.Refusal
	for _, row := range regexp.MustCompile("(?m)^\\| (\\w+) \\| `([^`]+)` \\| \\S").FindAllStringSubmatch(string(text), -1) {
		told = append(told, plan.Refusal{What: row[1], By: row[2]})
	}
	if !slices.Equal(told, plan.Refusals()) {
		t.Errorf("the page tells\n%v\nand the code refuses\n%v", told, plan.Refusals())
	}
}
