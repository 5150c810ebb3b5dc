// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Goal bounds the time from the fault to the first write elsewhere, the application's start told apart. P50 is zero where nothing is said of it.
type Goal struct {
	Name     string
	P50, Max time.Duration
}

// GoalOf is the goal of a kind that Holdfast brings elsewhere.
func GoalOf(k Kind) Goal {
	if k == Witnessed {
		return Goal{Name: "P1", P50: 6 * time.Second, Max: 12 * time.Second}
	}
	return Goal{Name: "P3", Max: 15 * time.Second}
}

// String says what is wanted.
func (g Goal) String() string {
	text := "at most " + seconds(g.Max)
	if g.P50 > 0 {
		text = "p50 at most " + seconds(g.P50) + ", " + text
	}
	return g.Name + ", " + text
}

// ScenePrefix begins the line that tells the scene.
const ScenePrefix = "- Scene: "

var names = map[Kind]string{
	Guarded:     "P1 Holdfast, API-only",
	Witnessed:   "P1w Holdfast, an agent on every host",
	Prompt:      "P1s Holdfast, API-only, nodeStatusUpdateFrequency 2s",
	Unattached:  "P1n Holdfast, API-only, volume without attach",
	Human:       "B2 taint at Ready=Unknown",
	Deployment:  "B1 stock Deployment, Recreate",
	StatefulSet: "B0 stock StatefulSet",
}

var stretches = map[Mark]string{
	Suspected:  "suspicion (P1: application probes fail; baselines: Ready=Unknown)",
	Opened:     "incident opened",
	Commanded:  "Off commanded",
	Proven:     "proof (P1: Off read back after command and taint; B2: the human's taint)",
	Deleted:    "pod deleted",
	Detached:   "attachment released",
	Bound:      "replacement bound",
	Mounted:    "volume mounted there (attach, and the kubelet's next look at its own status)",
	Started:    "replacement's process started",
	FirstWrite: "first write (application start)",
}

// Markdown tells what the rows of one seed say; scene is where they come from, in a line.
func Markdown(seed uint64, scene string, rows []Row) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# Failover after a loss of power\n\n")
	fmt.Fprintf(&out, "Written by `make bench-failover` from the rows of seed %d in [rows.csv](rows.csv); [what rows mean](../README.md).\n\n", seed)
	fmt.Fprintf(&out, "- Commit: %s\n%s%s\n", strings.Join(commits(rows), ", "), ScenePrefix, scene)
	fmt.Fprintf(&out, "- T0: %s\n\n", spread(Of(rows, Guarded)))
	whole(&out, rows)
	for _, k := range []Kind{Guarded, Witnessed, Prompt, Unattached} {
		goal(&out, k, Of(rows, k))
	}
	for _, k := range []Kind{Guarded, Witnessed, Prompt, Unattached, Human, Deployment} {
		phases(&out, k, Of(rows, k))
	}
	return out.String()
}

func commits(rows []Row) []string {
	var all []string
	for _, r := range rows {
		all = append(all, "`"+r.Commit+"`")
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// spread says how old the leases were that P1 met.
func spread(rows []Row) string {
	var ages []time.Duration
	for _, r := range rows {
		ages = append(ages, r.LeaseAge)
	}
	if len(ages) == 0 {
		return "no case of P1"
	}
	return fmt.Sprintf("random by the seed; the host's lease was %s to %s old in P1 (the younger, the longer Holdfast waits for a renewal that would contradict the device)", seconds(slices.Min(ages)), seconds(slices.Max(ages)))
}

func whole(out *strings.Builder, rows []Row) {
	base := Whole(Of(rows, Guarded))
	fmt.Fprintf(out, "## From the fault to the first durable write elsewhere\n\n| kind | N | recovered | p50 | p90 | max | p50 ÷ P1's | two writers |\n|---|---|---|---|---|---|---|---|\n")
	for _, k := range Kinds {
		of := Of(rows, k)
		if len(of) == 0 {
			continue
		}
		s := Whole(of)
		fmt.Fprintf(out, "| %s | %d | %d | %s | %s | %s | %s | %s |\n", names[k], s.N, s.Seen, s.text(s.P50, s.p50), s.text(s.P90, s.p90), s.text(s.Max, s.maxEnd), ratio(s, base), writers(of))
	}
	fmt.Fprintf(out, "\nPercentiles are nearest ranks. `>` marks a case that was given up at that time: a lower bound, not a measurement.\n\n")
}

func ratio(s, base Sum) string {
	r, bound, ok := s.Ratio(base)
	switch {
	case !ok:
		return "–"
	case bound:
		return fmt.Sprintf("> %.0f", r)
	default:
		return fmt.Sprintf("%.1f", r)
	}
}

func writers(rows []Row) string {
	bad := 0
	for _, r := range rows {
		if r.Interleavings > 0 {
			bad++
		}
	}
	return share(bad, len(rows))
}

// share is honest about none.
func share(k, n int) string {
	if k > 0 {
		return fmt.Sprintf("%d of %d", k, n)
	}
	return fmt.Sprintf("0 of %d (at 95 %%: below %.0f %%)", n, 100*RuleOfThree(n))
}

// goal judges a kind twice: without the application's start, which is what the goal bounds, and with it.
func goal(out *strings.Builder, k Kind, rows []Row) {
	if len(rows) == 0 {
		return
	}
	slow, slowWhole, goal := 0, 0, GoalOf(k)
	var frees, starts []time.Duration
	for _, r := range rows {
		whole, ok := r.Whole()
		free, known := r.Free()
		if !ok || whole > goal.Max {
			slowWhole++
		}
		if !known || free > goal.Max {
			slow++
		}
		if known {
			frees, starts = append(frees, free), append(starts, whole-free)
		}
	}
	verdict := "holds in every case"
	if slow > 0 || goal.P50 > 0 && (len(frees) == 0 || SumOf(frees, nil).P50 > goal.P50) {
		verdict = "does not hold"
	}
	fmt.Fprintf(out, "**%s**: goal %s with the application's start told apart, %s: slower were %s.\n", k, goal, verdict, share(slow, len(rows)))
	if len(frees) > 0 {
		f, s := SumOf(frees, nil), SumOf(starts, nil)
		fmt.Fprintf(out, "The application could start elsewhere after p50 %s, max %s; its start there took p50 %s, max %s more.", seconds(f.P50), seconds(f.Max), seconds(s.P50), seconds(s.Max))
		if k == Guarded {
			out.WriteString(" A kubelet mounts an attachable volume only after its next node status, which it writes every 10 s; the baselines pay that as well, P1n does not.")
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(out, "With the start, slower than %s were %s.\n\n", seconds(goal.Max), share(slowWhole, len(rows)))
}

func phases(out *strings.Builder, k Kind, rows []Row) {
	all := Phases(rows)
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(out, "## Where the time goes: %s\n\n| until | p50 | p90 | max | share |\n|---|---|---|---|---|\n", names[k])
	for _, p := range all {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %.0f %% |\n", stretches[p.To], seconds(p.Sum.P50), seconds(p.Sum.P90), seconds(p.Sum.Max), 100*p.Share)
	}
	most := Dominant(all)
	fmt.Fprintf(out, "\nWhat dominates: until %s, %.0f %% of the time.\n\n", stretches[most.To], 100*most.Share)
}

func (s Sum) text(d time.Duration, seen bool) string {
	if !seen {
		return "> " + seconds(d)
	}
	return seconds(d)
}

func seconds(d time.Duration) string {
	if d >= 100*time.Second {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
