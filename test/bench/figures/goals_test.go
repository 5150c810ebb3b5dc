// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// good is a run that keeps every goal.
func good() Run {
	r := Run{Seed: 7}
	for i := range 30 {
		row := recovered(Witnessed, i+1, 2000, 4000, 5000, 5100, 6500)
		row.Clients, row.ConfirmAfter, row.Marks[EndpointOut] = 4, 15*time.Second, 2500*time.Millisecond
		for _, m := range Ends {
			row.Marks[m] = 4500 * time.Millisecond
		}
		r.Rows = append(r.Rows, row)
	}
	hung := recovered(Hung, 1, 2000, 20000, 20500, 20600, 22000)
	hung.ConfirmAfter, hung.Clients, hung.Marks[EndpointOut] = 15*time.Second, 4, 2500*time.Millisecond
	for _, m := range Ends {
		hung.Marks[m] = 20500 * time.Millisecond
	}
	r.Rows = append(r.Rows, hung, recovered(Human, 1, 50000, 50100, 60000, 60000, 68000), censored(StatefulSet, 1, 780*time.Second))
	r.Outages = []Outage{{Commit: "abc", Seed: 7, Timings: "default", T0: time.Unix(0, 0).UTC(), Host: "host-5", Length: time.Hour, After: time.Minute, Interval: 50 * time.Millisecond,
		Writes: 70000, Acked: 60000, Pause: 200 * time.Millisecond, PauseAfter: 100 * time.Millisecond, Gap: 300 * time.Millisecond, Gaps: 500 * time.Millisecond, Unserved: 400 * time.Millisecond}}
	r.Usages = []Usage{
		{Commit: "abc", Seed: 7, Program: Agent, Host: "host-1", Rest: time.Minute, RestCPU: 500 * time.Millisecond, Span: 20 * time.Minute, CPU: 15 * time.Second, RSS: 19 << 10, Anon: 8 << 10, File: 11 << 10},
		{Commit: "abc", Seed: 7, Program: Leader, Host: "host-2", Rest: time.Minute, RestCPU: 900 * time.Millisecond, Span: 20 * time.Minute, CPU: 30 * time.Second, RSS: 90 << 10, Anon: 40 << 10, File: 50 << 10},
		{Commit: "abc", Seed: 7, Program: Standby, Host: "host-3", Span: 20 * time.Minute, CPU: 3 * time.Second, RSS: 70 << 10, Anon: 30 << 10, File: 40 << 10},
	}
	return r
}

// says is what a run says of a goal; where two have one name, what they wanted tells them apart.
func says(t *testing.T, r Run, goal, wanted string) string {
	t.Helper()
	all := Verdicts(r)
	i := slices.IndexFunc(all, func(v Verdict) bool { return v.Goal == goal && strings.Contains(v.Wanted, wanted) })
	if i < 0 {
		t.Fatalf("no verdict on %s (%s): %+v", goal, wanted, all)
	}
	return all[i].Says
}

func TestARunThatKeepsEveryGoalSaysSo(t *testing.T) {
	for _, v := range Verdicts(good()) {
		if v.Says != holds || v.N == 0 {
			t.Errorf("%+v, want that it holds", v)
		}
	}
}

func TestAMissIsCalledAMiss(t *testing.T) {
	for name, c := range map[string]struct {
		goal, wanted string
		spoil        func(*Run)
	}{
		"the median of P1w": {"P1", "", func(r *Run) {
			for i := range 16 {
				r.Rows[i].Marks[Detached] = 6001 * time.Millisecond
			}
		}},
		"one of P1w":                      {"P1", "", func(r *Run) { r.Rows[3].Marks[Bound] = 12001 * time.Millisecond }},
		"one of P1w that never came":      {"P1", "", func(r *Run) { r.Rows[3] = censored(Witnessed, 4, 3*time.Minute) }},
		"one of P2w":                      {"P2", "", func(r *Run) { r.Rows[30].Marks[Bound] = 21001 * time.Millisecond }},
		"P2w by a guard in more hurry":    {"P2", "", func(r *Run) { r.Rows[30].ConfirmAfter = 14 * time.Second }},
		"an endpoint that stayed":         {"P5", "", func(r *Run) { delete(r.Rows[3].Marks, EndpointOut) }},
		"an endpoint that went late":      {"P5", "", func(r *Run) { r.Rows[3].Marks[EndpointOut] = 3001 * time.Millisecond }},
		"a connection that stayed":        {"P6", "", func(r *Run) { delete(r.Rows[3].Marks, Ends[2]) }},
		"a connection that ended late":    {"P6", "", func(r *Run) { r.Rows[3].Marks[Ends[1]] = 6001 * time.Millisecond }},
		"connections without a proof":     {"P6", "", func(r *Run) { delete(r.Rows[3].Marks, Proven) }},
		"an endpoint of P2w that stayed":  {"P5", "", func(r *Run) { delete(r.Rows[30].Marks, EndpointOut) }},
		"a connection of P2w that stayed": {"P6", "", func(r *Run) { delete(r.Rows[30].Marks, Ends[0]) }},
		"downtime":                        {"P7", "", func(r *Run) { r.Outages[0].Down = 1100 * time.Millisecond }},
		"a restart":                       {"P7", "", func(r *Run) { r.Outages[0].Restarts = 1 }},
		"a lost write":                    {"P7", "", func(r *Run) { r.Outages[0].Lost = 1 }},
		"two writers":                     {"P7", "", func(r *Run) { r.Outages[0].Interleavings = 1 }},
		"an endpoint gap":                 {"P7", "", func(r *Run) { r.Outages[0].Gap = 1001 * time.Millisecond }},
		"a miss in a short outage":        {"P7", "", func(r *Run) { r.Outages[0].Length, r.Outages[0].Restarts = time.Minute, 1 }},
		"no B2":                           {"beside", "", func(r *Run) { r.Rows = slices.Delete(r.Rows, 31, 32) }},
		"an agent's memory":               {"memory", "agent", func(r *Run) { r.Usages[0].RSS = 20<<10 + 1 }},
		"an agent's processor":            {"CPU", "", func(r *Run) { r.Usages[0].RestCPU = 601 * time.Millisecond }},
		"the memory of the one standby":   {"memory", "manager", func(r *Run) { r.Usages[2].RSS = 200<<10 + 1 }},
	} {
		r := good()
		c.spoil(&r)
		if got := says(t, r, c.goal, c.wanted); got != missed {
			t.Errorf("%s: %s is %q, want %s", name, c.goal, got, missed)
		}
		if !strings.Contains(Markdown("", r), missed) {
			t.Errorf("%s: the summary does not tell", name)
		}
	}
}

func TestWhatWasNotMeasuredIsNotHeld(t *testing.T) {
	for _, v := range Verdicts(Run{}) {
		if !strings.HasPrefix(v.Says, undecided) {
			t.Errorf("of nothing, %s %s", v.Goal, v.Says)
		}
	}
	for name, c := range map[string]struct {
		goal, want string
		spoil      func(*Run)
	}{
		"too few cases":        {"P1", "N is below 30", func(r *Run) { r.Rows = r.Rows[1:] }},
		"no connections":       {"P6", "not measured", func(r *Run) { forget(r.Rows) }},
		"a short outage":       {"P7", "the kubelet was dead for 3m0s only", func(r *Run) { r.Outages[0].Length = 3 * time.Minute }},
		"nobody wrote":         {"P7", "nothing was written", func(r *Run) { r.Outages[0].Writes = 0 }},
		"not seen at rest":     {"CPU", "1 of them", func(r *Run) { r.Usages[0].Rest = 0 }},
		"no programs measured": {"memory", "not measured", func(r *Run) { r.Usages = nil }},
	} {
		r := good()
		c.spoil(&r)
		if got := says(t, r, c.goal, ""); !strings.HasPrefix(got, undecided) || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s is %q, want %s: … %s", name, c.goal, got, undecided, c.want)
		}
	}
}

// forget has had no clients.
func forget(rows []Row) {
	for i := range rows {
		rows[i].Clients = 0
	}
}

func TestConnectionsEndAfterTheProof(t *testing.T) {
	r := Row{Clients: 2, Marks: map[Mark]time.Duration{Proven: 4 * time.Second, Ends[0]: 3 * time.Second, Ends[1]: 4500 * time.Millisecond}}
	if d, ok := r.Reset(); d != 500*time.Millisecond || !ok {
		t.Errorf("the last ended %v after the proof, %v; want 0.5 s", d, ok)
	}
	r.Marks[Ends[1]] = time.Second
	if d, ok := r.Reset(); d != 0 || !ok {
		t.Errorf("both ended before the proof: %v, %v; want 0", d, ok)
	}
	r.Clients = 3
	if _, ok := r.Reset(); ok {
		t.Error("one of three has not ended, and all have")
	}
}

func TestPauses(t *testing.T) {
	s := int64(time.Second)
	for name, c := range map[string]struct {
		events        []int64
		longest, down time.Duration
	}{
		"nothing":                 {nil, 10 * time.Second, 10 * time.Second},
		"one in the middle":       {[]int64{15 * s}, 5 * time.Second, 10 * time.Second},
		"short ones are no loss":  {[]int64{11 * s, 12 * s, 13 * s, 14 * s, 15 * s, 16 * s, 17 * s, 18 * s, 19 * s}, time.Second, 0},
		"at the end":              {[]int64{11 * s, 12 * s, 13 * s, 14 * s, 15 * s, 16 * s, 17 * s}, 3 * time.Second, 3 * time.Second},
		"what is outside is none": {[]int64{1 * s, 11 * s, 12 * s, 13 * s, 14 * s, 15 * s, 16 * s, 17 * s, 18 * s, 30 * s}, 2 * time.Second, 2 * time.Second},
	} {
		if longest, down := Pauses(c.events, 10*s, 20*s); longest != c.longest || down != c.down {
			t.Errorf("%s: longest %v, down %v; want %v, %v", name, longest, down, c.longest, c.down)
		}
	}
}

func TestGaps(t *testing.T) {
	s := int64(time.Second)
	for name, c := range map[string]struct {
		turns        []Turn
		longest, sum time.Duration
	}{
		"always ready":          {[]Turn{{1 * s, true}}, 0, 0},
		"nothing known":         {nil, 0, 0},
		"two gaps":              {[]Turn{{1 * s, true}, {11 * s, false}, {12 * s, true}, {14 * s, false}, {17 * s, true}}, 3 * time.Second, 4 * time.Second},
		"from before":           {[]Turn{{5 * s, false}, {12 * s, true}}, 2 * time.Second, 2 * time.Second},
		"to the end":            {[]Turn{{5 * s, true}, {18 * s, false}}, 2 * time.Second, 2 * time.Second},
		"told twice is one":     {[]Turn{{11 * s, false}, {12 * s, false}, {14 * s, true}}, 3 * time.Second, 3 * time.Second},
		"over before it begins": {[]Turn{{1 * s, false}, {2 * s, true}}, 0, 0},
	} {
		if longest, sum := Gaps(c.turns, 10*s, 20*s); longest != c.longest || sum != c.sum {
			t.Errorf("%s: longest %v, sum %v; want %v, %v", name, longest, sum, c.longest, c.sum)
		}
	}
}

func TestOutagesAndUsagesSurviveTheirFiles(t *testing.T) {
	want, dir := good(), t.TempDir()
	outages, usages := filepath.Join(dir, "outages.csv"), filepath.Join(dir, "usage.csv")
	for _, o := range append(want.Outages, Outage{Seed: 8}) {
		if err := AppendOutage(outages, o); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range append(slices.Clone(want.Usages), Usage{Seed: 8}) {
		if err := AppendUsage(usages, u); err != nil {
			t.Fatal(err)
		}
	}
	gotO, err := LoadOutages(outages, 7)
	if err != nil || !reflect.DeepEqual(gotO, want.Outages) {
		t.Errorf("outages are %+v, %v;\nwant %+v", gotO, err, want.Outages)
	}
	gotU, err := LoadUsages(usages, 7)
	if err != nil || !reflect.DeepEqual(gotU, want.Usages) {
		t.Errorf("usages are %+v, %v;\nwant %+v", gotU, err, want.Usages)
	}
	if none, err := LoadOutages(filepath.Join(dir, "none.csv"), 7); err != nil || none != nil {
		t.Errorf("no file: %v, %v; want no rows", none, err)
	}
	if err := os.WriteFile(usages, []byte("commit,seed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadUsages(usages, 7); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("other columns: %v, want an error that says what to do", err)
	}
}

func TestTheSummaryHasEverything(t *testing.T) {
	run := good()
	young := run.Usages[0]
	young.Span, young.CPU = 3*time.Second, time.Second // it has just begun
	run.Usages = append(run.Usages, young)
	text := Markdown("a machine", run)
	for _, want := range []string{
		"| P1 | P1w: p50 at most 6.00 s, at most 12.00 s | p50 5.10 s, max 5.10 s | 30 | holds |",
		"| P2 | P2w: at most 21.00 s (confirmAfter + 6 s) | p50 20.60 s, max 20.60 s | 1 | holds |",
		"| P7 | kubelet dead for 1h0m0s: no downtime, no restart, no lost write, endpoint gaps of at most 1.00 s | 1h0m0s dead: 0.00 s down, 0 restarts, 0 lost writes, gap 0.30 s | 1 | holds |",
		"| P1w | 30 | 2.50 s | 2.50 s | 30 | 0.50 s | 0.50 s | 0 |",
		"at most 0.83 % at rest, 1.25 % over all faults",
		"| agent | host-1 | 19.0 MiB | 8.0 MiB | 11.0 MiB | 0.83 % | 1m0s | 1.25 % | 20m0s |",
		"| standby | host-3 | 70.0 MiB | 30.0 MiB | 40.0 MiB | – | 0s | 0.25 % | 20m0s |",
		"p50 ÷ P1w's", "## Where the time goes: P2w",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}
