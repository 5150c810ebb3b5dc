// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package draw

import (
	"os"
	"slices"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
)

func matrix(t *testing.T) scenario.Matrix {
	t.Helper()
	text, err := os.ReadFile("../../scenario/matrix.csv")
	if err != nil {
		t.Fatal(err)
	}
	m, err := scenario.ParseMatrix(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEveryCaseIsInTheMatrix: whatever is drawn, the table says what must come of it; and what can be drawn is.
func TestEveryCaseIsInTheMatrix(t *testing.T) {
	m := matrix(t)
	met := map[string]bool{}
	for n := range uint64(2000) {
		f := Case(7, n)
		if f != Case(7, n) {
			t.Fatalf("case %d is not drawn twice alike", n)
		}
		for _, s := range f.States() {
			if _, err := m.Expect(s); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
		for _, word := range []string{string(f.Whole), "bmc " + string(f.Device), "api " + f.API.String(), "peers " + f.Peers.String()} {
			met[word] = true
		}
	}
	for _, word := range []string{"", "power lost", "hangs", "hangs, silent", "bmc clear", "bmc ignore", "bmc lie-off", "bmc dead",
		"api none", "api in", "api out", "api both", "peers none", "peers in", "peers out", "peers both"} {
		if !met[word] {
			t.Errorf("%q is never drawn", word)
		}
	}
}

// TestWhatIsExpected: by the table, of some cases that can be judged without it.
func TestWhatIsExpected(t *testing.T) {
	m := matrix(t)
	for _, c := range []struct {
		f    Faults
		want []string
	}{
		{Faults{Device: bmc.Clear}, []string{"Healthy"}},
		{Faults{Kubelet: true, Device: bmc.LieOff}, []string{"KubeletDown"}},
		{Faults{Whole: Powerless, Device: bmc.Clear}, []string{"Lost"}},
		{Faults{Whole: Powerless, Device: bmc.Ignore}, []string{"Lost"}},
		{Faults{Whole: Powerless, Device: bmc.Dead}, []string{"Silent"}},
		{Faults{Whole: Frozen, Device: bmc.Clear}, []string{"Hung"}},
		{Faults{Whole: Frozen, Device: bmc.LieOff}, []string{"Hung", "Unknown"}},
		{Faults{Whole: Deaf, Device: bmc.Clear}, []string{"Lost"}},
		{Faults{Whole: Deaf, Device: bmc.Ignore}, []string{"Lost", "Silent"}},
		{Faults{Peers: fault.Both, Device: bmc.Clear}, []string{"Isolated"}},
		{Faults{Peers: fault.In, Device: bmc.Clear}, []string{"Healthy", "Isolated"}},
		{Faults{API: fault.Both, Peers: fault.Both, Device: bmc.LieOff}, []string{"Lost"}},
		{Faults{API: fault.In, Peers: fault.Both, Device: bmc.LieOff}, []string{"Isolated", "Lost", "Silent"}},
	} {
		var got []string
		for _, s := range c.f.States() {
			row, err := m.Expect(s)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, row.Verdicts...)
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.f, got, c.want)
		}
	}
}
