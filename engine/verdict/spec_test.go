// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// TestSpecListsRules: docs/spec/verdicts.md has the rules in order, with their classes, and every class.
func TestSpecListsRules(t *testing.T) {
	text, err := os.ReadFile("../../docs/spec/verdicts.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| \\d+ \\| `(\\w+)` \\| `(\\w+)` \\|").FindAllStringSubmatch(string(text), -1)
	rules := verdict.Rules()
	if len(rows) != len(rules) {
		t.Errorf("the page has %d rules, the code %d", len(rows), len(rules))
	}
	for i := range min(len(rows), len(rules)) {
		if rows[i][1] != rules[i].Rule || rows[i][2] != rules[i].Says.String() {
			t.Errorf("rule %d is %s, %s on the page and %s, %s in the code", i+1, rows[i][1], rows[i][2], rules[i].Rule, rules[i].Says)
		}
	}
	for c := verdict.Healthy; c <= verdict.Unknown; c++ {
		if !regexp.MustCompile("(?m)^\\| `" + c.String() + "` \\|").Match(text) {
			t.Errorf("the page does not say what %s means", c)
		}
	}
}
