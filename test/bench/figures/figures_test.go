// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func ms(n ...int) []time.Duration {
	var out []time.Duration
	for _, i := range n {
		out = append(out, time.Duration(i)*time.Millisecond)
	}
	return out
}

// recovered is a row with marks in milliseconds, in the order suspected, proven, bound, detached, first write.
func recovered(kind Kind, number int, marks ...int) Row {
	r := Row{Commit: "abc", Case: Case{Seed: 7, Kind: kind, Number: number, Renewals: 1}, Timings: "default", T0: time.Date(2026, 5, 4, 12, 0, number, 0, time.UTC),
		Host: "host-1", NewHost: "host-2", Outcome: Recovered, Marks: map[Mark]time.Duration{}}
	for i, m := range []Mark{Suspected, Proven, Bound, Detached, FirstWrite} {
		r.Marks[m] = time.Duration(marks[i]) * time.Millisecond
	}
	return r
}

func censored(kind Kind, number int, at time.Duration) Row {
	return Row{Commit: "abc", Case: Case{Seed: 7, Kind: kind, Number: number}, T0: time.Unix(0, 0).UTC(), Outcome: Censored, CensoredAt: at, Marks: map[Mark]time.Duration{}}
}

func TestPercentilesAreNearestRanks(t *testing.T) {
	for name, c := range map[string]struct {
		spans         []time.Duration
		p50, p90, max time.Duration
	}{
		"one":              {ms(5), 5, 5, 5},
		"two":              {ms(9, 1), 1, 9, 9},
		"three, unsorted":  {ms(30, 10, 20), 20, 30, 30},
		"ten":              {ms(10, 9, 8, 7, 6, 5, 4, 3, 2, 1), 5, 9, 10},
		"eleven":           {ms(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), 6, 10, 11},
		"twenty, all same": {slices.Repeat(ms(4), 20), 4, 4, 4},
	} {
		s := SumOf(c.spans, nil)
		if s.P50 != c.p50*time.Millisecond || s.P90 != c.p90*time.Millisecond || s.Max != c.max*time.Millisecond {
			t.Errorf("%s: p50 %v, p90 %v, max %v; want %d, %d and %d ms", name, s.P50, s.P90, s.Max, c.p50, c.p90, c.max)
		}
	}
}

func TestCensoredSpansAreLongerThanAllOthers(t *testing.T) {
	s := SumOf(ms(1000, 2000), ms(1500))
	if s.N != 3 || s.Seen != 2 || s.P50 != 2*time.Second || !s.p50 {
		t.Errorf("a span censored at 1.5 s leaves 2 s as the median of three: %+v", s)
	}
	if text := s.text(s.Max, s.maxEnd); text != "> 1.50 s" {
		t.Errorf("the longest span is %q, and nothing is known but that it exceeds 1.5 s: %+v", text, s)
	}
	if none := SumOf(nil, nil); none.N != 0 || none.P50 != 0 {
		t.Errorf("no spans: %+v", none)
	}
}

func TestRatios(t *testing.T) {
	base := SumOf(ms(10, 12, 14), nil)
	for name, c := range map[string]struct {
		of        Sum
		base      Sum
		want      float64
		bound, ok bool
	}{
		"by the medians":             {SumOf(ms(600, 1, 900), nil), base, 50, false, true},
		"a lower bound":              {SumOf(nil, []time.Duration{1200 * time.Millisecond}), base, 100, true, true},
		"of nothing":                 {Sum{}, base, 0, false, false},
		"to nothing":                 {base, Sum{}, 0, false, false},
		"to what was never measured": {base, SumOf(nil, ms(700)), 0, false, false},
	} {
		got, bound, ok := c.of.Ratio(c.base)
		if got != c.want || bound != c.bound || ok != c.ok {
			t.Errorf("%s: %v, bound %v, ok %v; want %v, %v, %v", name, got, bound, ok, c.want, c.bound, c.ok)
		}
	}
}

func TestRuleOfThree(t *testing.T) {
	for n, want := range map[int]float64{0: 1, 2: 1, 3: 1, 10: 0.3, 300: 0.01} {
		if got := RuleOfThree(n); math.Abs(got-want) > 1e-9 {
			t.Errorf("none of %d: below %v, want %v", n, got, want)
		}
	}
}

func TestPhasesAddUpToTheWhole(t *testing.T) {
	rows := []Row{
		recovered(Guarded, 1, 3000, 9000, 9500, 10000, 12000),
		recovered(Guarded, 2, 4000, 5000, 5500, 5200, 9000), // detached before it was bound
		censored(Guarded, 3, time.Minute),
	}
	all := Phases(rows)
	var marks []Mark
	share := 0.0
	for _, p := range all {
		marks = append(marks, p.To)
		share += p.Share
		if p.Sum.N != 2 {
			t.Errorf("phase until %s is of %d rows; the censored one has no phases", p.To, p.Sum.N)
		}
	}
	if want := []Mark{Suspected, Proven, Detached, Bound, FirstWrite}; !slices.Equal(marks, want) {
		t.Errorf("marks %v, want them by their medians: %v", marks, want)
	}
	if math.Abs(share-1) > 1e-9 {
		t.Errorf("the shares add up to %v, want 1", share)
	}
	if all[2].Sum.Max != time.Second || all[3].Sum.P50 != 0 || all[3].Sum.Max != 300*time.Millisecond {
		t.Errorf("detached took %+v, bound %+v: what was reached before has no length", all[2].Sum, all[3].Sum)
	}
	if most := Dominant(all); most.To != Proven && most.To != Suspected {
		t.Errorf("dominant is %+v", most)
	}
	if most := Dominant(nil); most.To != "" {
		t.Errorf("nothing dominates in nothing: %+v", most)
	}
}

func TestRowsSurviveTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rows.csv")
	want := []Row{recovered(Guarded, 1, 3000, 9000, 9500, 10000, 12000), censored(StatefulSet, 1, 720*time.Second)}
	want[0].Age, want[0].Pick = 0, 0 // the plan's own: they follow from the seed
	want[0].LeaseAge, want[0].Interleavings = 2500*time.Millisecond, 3
	want[0].ConfirmAfter, want[0].Clients = 15*time.Second, 4
	want[0].Marks[EndpointOut], want[0].Marks["host_reads_end"] = 2*time.Second, 6*time.Second
	for _, r := range want {
		if err := Append(path, r); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back:\n %+v\nwant:\n %+v", got, want)
	}
}

func TestLoadRefusesWhatItDoesNotKnow(t *testing.T) {
	good := strings.Join(header(), ",") + "\n"
	row := strings.Join(recovered(Guarded, 1, 1, 2, 3, 4, 5).record(), ",") + "\n"
	for name, c := range map[string]struct{ text, says string }{
		"other columns":   {"commit,seed\nabc,7\n", "columns"},
		"not a number":    {good + strings.Replace(row, ",7,", ",seven,", 1), "seed"},
		"another outcome": {good + strings.Replace(row, "recovered", "fine", 1), "outcome"},
		"a row too short": {good + "abc,7\n", "wrong number of fields"},
	} {
		path := filepath.Join(t.TempDir(), "rows.csv")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s: %v, want an error that says %q and what to do", name, err, c.says)
		}
	}
	if rows, err := Load(filepath.Join(t.TempDir(), "none.csv")); err != nil || rows != nil {
		t.Errorf("no file: %v, %v; want no rows", rows, err)
	}
}

func TestARerunContinuesWhereRowsAreMissing(t *testing.T) {
	cases := Cases(Guarded, 4, 7)
	rows := []Row{{Case: cases[0]}, {Case: cases[2]}, {Case: Case{Seed: 7, Kind: Human, Number: 2}}, {Case: Case{Seed: 8, Kind: Guarded, Number: 4}}}
	var numbers []int
	for _, c := range Missing(cases, rows) {
		numbers = append(numbers, c.Number)
	}
	if !slices.Equal(numbers, []int{2, 4}) {
		t.Errorf("missing are %v, want 2 and 4: rows of other kinds and seeds do not count", numbers)
	}
	if len(cases) != 4 {
		t.Error("Missing changed what it was given")
	}
}

func TestCasesComeFromTheSeed(t *testing.T) {
	if !slices.Equal(Cases(Guarded, 10, 7), Cases(Guarded, 10, 7)) {
		t.Error("one seed gives two plans")
	}
	if slices.Equal(Cases(Guarded, 10, 7), Cases(Guarded, 10, 8)) {
		t.Error("two seeds give one plan")
	}
	if Cases(Guarded, 10, 7)[0].Age == Cases(Human, 10, 7)[0].Age {
		t.Error("two kinds share their moments")
	}
}

func TestFaultsAreSpreadOverTheLease(t *testing.T) {
	for seed := range uint64(50) {
		taken := map[int64]bool{}
		for _, c := range Cases(Human, 10, seed) {
			if c.Age < 0 || c.Age >= renewEvery || c.Renewals < 1 || c.Renewals > 2 {
				t.Fatalf("seed %d: case %+v", seed, c)
			}
			taken[int64(c.Age/time.Second)] = true
		}
		if len(taken) != 10 {
			t.Errorf("seed %d: ten cases fall into %d of the ten seconds of a lease", seed, len(taken))
		}
	}
	for _, c := range Cases(Witnessed, 30, 7) {
		if c.Renewals != 0 {
			t.Errorf("with Holdfast nothing is awaited but the age: %+v", c)
		}
	}
}

func TestMarkdownTellsGoodAndBad(t *testing.T) {
	var rows []Row
	for i := range 10 {
		rows = append(rows, recovered(Guarded, i+1, 3000, 7000, 7500, 7600, 9000+100*i))
	}
	rows = append(rows, recovered(Deployment, 1, 50000, 350000, 352000, 700000, 705000), censored(StatefulSet, 1, 720*time.Second))
	text := Markdown("a machine", Run{Seed: 7, Rows: OfSeed(append(rows, Row{Case: Case{Seed: 8, Kind: Guarded}, Outcome: Censored}), 7)})
	for _, want := range []string{
		"| P1 Holdfast, API-only | 10 | 10 | 9.40 s | 9.80 s | 9.90 s | 1.0 | 0 of 10 (at 95 %: below 30 %) |",
		"| B1 stock Deployment, Recreate | 1 | 1 | 705 s | 705 s | 705 s | 75.0 | 0 of 1 (at 95 %: below 100 %) |",
		"| B0 stock StatefulSet | 1 | 0 | > 720 s | > 720 s | > 720 s | > 77 |",
		"**P1**: goal P3, at most 15.00 s with the application's start told apart, holds in every case: slower were 0 of 10 (at 95 %: below 30 %).",
		"could start elsewhere after p50 7.60 s, max 7.60 s; its start there took p50 1.80 s, max 2.30 s more.",
		"With the start, slower than 15.00 s were 0 of 10 (at 95 %: below 30 %).",
		"seed 7", "`abc`", "- Scene: a machine\n", "What dominates: until proof",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	rows[3].Marks[FirstWrite] = GoalOf(Guarded, 0).Max + time.Millisecond
	rows[4].Interleavings = 1
	text = Markdown("", Run{Seed: 7, Rows: rows})
	for _, want := range []string{"holds in every case: slower were 0 of 10", "With the start, slower than 15.00 s were 1 of 10.", "| 1 of 10 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	rows[3].Marks[Bound] = GoalOf(Guarded, 0).Max + time.Millisecond
	rows[5].Outcome = Censored
	if text = Markdown("", Run{Seed: 7, Rows: rows}); !strings.Contains(text, "does not hold: slower were 2 of 10.") {
		t.Errorf("one that was bound late and one that never wrote do not break the goal:\n%s", text)
	}
}

// TestAGoalMayBoundTheMedianToo: with agents half of the cases have to be faster than the rest may be.
func TestAGoalMayBoundTheMedianToo(t *testing.T) {
	for bound, want := range map[int]string{5900: "holds in every case", 6100: "does not hold"} {
		var rows []Row
		for i := range 30 {
			rows = append(rows, recovered(Witnessed, i+1, 2000, 4000, 5000, bound, bound+1000))
		}
		text := Markdown("a machine", Run{Seed: 7, Rows: rows})
		if want := "**P1w**: goal P1, p50 at most 6.00 s, at most 12.00 s with the application's start told apart, " + want; !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}
