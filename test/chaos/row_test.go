// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/results"
)

// TestACaseIsJudgedByWhatStoodAtTheDeadline: what was said on the way there does not count, and a second writer does whatever was said.
func TestACaseIsJudgedByWhatStoodAtTheDeadline(t *testing.T) {
	for name, c := range map[string]struct {
		seen                []string // one a second
		interleavings, lost int
		since               time.Duration // -1 for never
		why                 string
	}{
		"allowed in the end":               {seen: []string{"Healthy", "Silent", "Lost"}, since: 2 * time.Second},
		"allowed throughout":               {seen: []string{"Lost", "Hung"}, since: 0},
		"allowed, and then not":            {seen: []string{"Lost", "Silent"}, since: -1, why: "Silent is not"},
		"allowed again":                    {seen: []string{"Lost", "Silent", "Hung"}, since: 2 * time.Second},
		"nothing was seen":                 {since: -1, why: " is not"},
		"two writers":                      {seen: []string{"Lost"}, interleavings: 1, why: "1 times a writer wrote after its successor"},
		"what was acknowledged is gone":    {seen: []string{"Lost"}, lost: 2, why: "2 acknowledged lines"},
		"fewer than before is not to tell": {seen: []string{"Lost"}, interleavings: -1, lost: -1},
	} {
		r := row{commit: "abc", seed: 1, number: 7, host: "host-1", faults: "power lost", want: []string{"Hung", "Lost"}, by: 16 * time.Second}
		for i, v := range c.seen {
			r.seen = append(r.seen, change{v, time.Duration(i) * time.Second})
		}
		r.judge(c.interleavings, c.lost)
		if (r.outcome == passed) != (c.why == "") || !strings.Contains(r.why, c.why) {
			t.Errorf("%s: %s, because %q", name, r.outcome, r.why)
		}
		if since, ok := r.since(); ok != (c.since >= 0) || ok && since != c.since {
			t.Errorf("%s: since %v, %v", name, since, ok)
		}
	}
}

// TestARunGoesOnWhereRowsAreMissing: of this commit and seed.
func TestARunGoesOnWhereRowsAreMissing(t *testing.T) {
	o := options{seed: 1, n: 5, only: -1, Options: campaign.Options{Out: t.TempDir()}}
	for _, r := range []row{{commit: "abc", seed: 1, number: 0}, {commit: "abc", seed: 1, number: 3}, {commit: "abc", seed: 2, number: 1}, {commit: "older", seed: 1, number: 2}} {
		r.judge(0, 0)
		if err := r.append(o.rows()); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := o.missing("abc"); err != nil || !slices.Equal(got, []uint64{1, 2, 4}) {
		t.Errorf("missing are %v (%v)", got, err)
	}
	o.only = 3
	if got, err := o.missing("abc"); err != nil || !slices.Equal(got, []uint64{3}) {
		t.Errorf("asked for one, missing are %v (%v)", got, err)
	}
	lines, err := results.Read(filepath.Join(o.Out, "rows.csv"))
	if err != nil || len(lines) != 5 || len(lines[1]) != len(header) {
		t.Errorf("the table is %v (%v)", lines, err)
	}
}
