// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ScenePrefix begins the line that tells the scene.
const ScenePrefix = "- Scene: "

var names = map[Kind]string{
	Guarded:     "P1 Holdfast, API-only",
	Witnessed:   "P1w Holdfast, an agent on every host",
	Hung:        "P2w Holdfast, an agent on every host; the host hangs with its power on",
	Prompt:      "P1s Holdfast, API-only, nodeStatusUpdateFrequency 2s",
	Unattached:  "P1n Holdfast, API-only, volume without attach",
	Human:       "B2 taint at Ready=Unknown",
	Deployment:  "B1 stock Deployment, Recreate",
	StatefulSet: "B0 stock StatefulSet",
}

var stretches = map[Mark]string{
	Suspected:  "suspicion (Holdfast: its first request; baselines: Ready=Unknown)",
	Opened:     "incident opened",
	Commanded:  "Off commanded",
	Proven:     "proof (Holdfast: Off read back after command and taint; B2: the human's taint)",
	Deleted:    "pod deleted",
	Detached:   "attachment released",
	Bound:      "replacement bound",
	Mounted:    "volume mounted there (attach, and the kubelet's next look at its own status)",
	Started:    "replacement's process started",
	FirstWrite: "first write (application start)",
}

// Markdown tells what a run says; scene is where it comes from, in a line.
func Markdown(scene string, r Run) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# Failover after the loss of a host\n\n")
	fmt.Fprintf(&out, "Written by `make bench-failover` from what has seed %d in [rows.csv](rows.csv), [outages.csv](outages.csv) and [usage.csv](usage.csv); [what rows mean](../README.md).\n\n", r.Seed)
	fmt.Fprintf(&out, "- Commit: %s\n%s%s\n", strings.Join(commits(r), ", "), ScenePrefix, scene)
	fmt.Fprintf(&out, "- T0: %s\n\n", spread(r.Rows))
	verdicts(&out, Verdicts(r))
	whole(&out, r.Rows)
	for _, k := range holdfasts {
		goal(&out, k, Of(r.Rows, k))
	}
	traffic(&out, r.Rows)
	outages(&out, r.Outages)
	usage(&out, r.Usages)
	for _, k := range append(slices.Clone(holdfasts), Human, Deployment) {
		phases(&out, k, Of(r.Rows, k))
	}
	return out.String()
}

func verdicts(out *strings.Builder, all []Verdict) {
	fmt.Fprintf(out, "## The goals\n\n| goal | wanted | measured | N | |\n|---|---|---|---|---|\n")
	for _, v := range all {
		fmt.Fprintf(out, "| %s | %s | %s | %d | %s |\n", v.Goal, v.Wanted, v.Measured, v.N, v.Says)
	}
	out.WriteString("\nA goal holds if every case keeps it, and p50 where one is named. P1 and P2 bound the time until the application could start elsewhere; its start there is told apart below.\n\n")
}

// traffic tells what clients of a lost application met.
func traffic(out *strings.Builder, rows []Row) {
	fmt.Fprintf(out, "## What clients meet\n\n| kind | endpoint out after the loss: N | p50 | max | connections ended after the proof: N | p50 | max | never |\n|---|---|---|---|---|---|---|---|\n")
	for _, k := range holdfasts {
		of := Of(rows, k)
		if len(of) == 0 {
			continue
		}
		e, _ := spansOf(of, Row.endpointOut)
		held := reachable(of)
		r, bad := spansOf(held, Row.Reset)
		fmt.Fprintf(out, "| %s | %d | %s | %s | %d | %s | %s | %d |\n", k, e.N, e.orNever(e.P50, e.p50), e.orNever(e.Max, e.maxEnd), r.N, r.orNever(r.P50, r.p50), r.orNever(r.Max, r.maxEnd), bad)
	}
	out.WriteString("\nConnections: four clients on a surviving host, in a pod and on the host's network, one of each that only reads and one that goes on writing; the last of them counts. One that ended before the proof counts as zero.\n\n")
}

func (s Sum) orNever(d time.Duration, seen bool) string {
	switch {
	case s.N == 0:
		return "–"
	case !seen:
		return "never"
	default:
		return seconds(d)
	}
}

func outages(out *strings.Builder, all []Outage) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(out, "## P7: the kubelet is dead, the application is not\n\n| kubelet dead for | looked on after its return | writes | longest pause | down (pauses of more than %s) | restarts | lost writes | two writers | longest endpoint gap (all) | longest time without an acknowledgement |\n|---|---|---|---|---|---|---|---|---|---|\n", seconds(Unnoticed))
	for _, o := range all {
		fmt.Fprintf(out, "| %s | %s | %d | %s, after the return %s | %s, after the return %s | %d | %d of %d | %d | %s (%s), after the return %s | %s |\n", o.Length.Round(time.Second), o.After.Round(time.Second), o.Writes, seconds(o.Pause), seconds(o.PauseAfter),
			seconds(o.Down), seconds(o.DownAfter), o.Restarts, o.Lost, o.Acked, o.Interleavings, seconds(o.Gap), seconds(o.Gaps), seconds(o.GapAfter), seconds(o.Unserved))
	}
	fmt.Fprintf(out, "\nIt writes every %s, and all other cases were played on other hosts meanwhile.\n\n", all[0].Interval)
}

func usage(out *strings.Builder, all []Usage) {
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(out, "## Memory and processor\n\n| program | host | resident | its own | pages of files | CPU at rest | over | CPU with all faults | over |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, u := range all {
		rest, overall := "–", "–"
		if share, ok := u.AtRest(); ok {
			rest = percent(share)
		}
		if share, ok := u.Overall(); ok {
			overall = percent(share)
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", u.Program, u.Host, mib(u.RSS), mib(u.Anon), mib(u.File), rest, u.Rest.Round(time.Second), overall, u.Span.Round(time.Second))
	}
	out.WriteString("\nShares of one core. At rest: before the first fault. With all faults: of the process that was there at their end; one whose host was lost began anew. Goals: an agent 20 MiB and 1 %, a manager 200 MiB.\n\n")
}

func commits(r Run) []string {
	var all []string
	for _, o := range r.Rows {
		all = append(all, "`"+o.Commit+"`")
	}
	for _, o := range r.Outages {
		all = append(all, "`"+o.Commit+"`")
	}
	for _, o := range r.Usages {
		all = append(all, "`"+o.Commit+"`")
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// base is the kind that others are compared with: with agents, if there is any.
func base(rows []Row) Kind {
	if len(Of(rows, Witnessed)) > 0 {
		return Witnessed
	}
	return Guarded
}

// spread says how old the leases were that the first kind met.
func spread(rows []Row) string {
	var ages []time.Duration
	k := base(rows)
	for _, r := range Of(rows, k) {
		ages = append(ages, r.LeaseAge)
	}
	if len(ages) == 0 {
		return "no case of " + string(k)
	}
	return fmt.Sprintf("random by the seed; the host's lease was %s to %s old in %s (the younger, the longer Holdfast waits for a renewal that would contradict the device)", seconds(slices.Min(ages)), seconds(slices.Max(ages)), k)
}

func whole(out *strings.Builder, rows []Row) {
	k := base(rows)
	against := Whole(Of(rows, k))
	fmt.Fprintf(out, "## From the fault to the first durable write elsewhere\n\n| kind | N | recovered | p50 | p90 | max | p50 ÷ %s's | two writers |\n|---|---|---|---|---|---|---|---|\n", k)
	for _, k := range append(slices.Clone(holdfasts), Human, Deployment, StatefulSet) {
		of := Of(rows, k)
		if len(of) == 0 {
			continue
		}
		s := Whole(of)
		fmt.Fprintf(out, "| %s | %d | %d | %s | %s | %s | %s | %s |\n", names[k], s.N, s.Seen, s.text(s.P50, s.p50), s.text(s.P90, s.p90), s.text(s.Max, s.maxEnd), ratio(s, against), writers(of))
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
	slowWhole, late, goal := 0, slow(rows), goalOf(k, rows)
	var frees, starts []time.Duration
	for _, r := range rows {
		whole, ok := r.Whole()
		if !ok || whole > GoalOf(k, r.ConfirmAfter).Max {
			slowWhole++
		}
		if free, known := r.Free(); known {
			frees, starts = append(frees, free), append(starts, whole-free)
		}
	}
	verdict := "holds in every case"
	if late > 0 || goal.P50 > 0 && (len(frees) == 0 || SumOf(frees, nil).P50 > goal.P50) {
		verdict = "does not hold"
	}
	fmt.Fprintf(out, "**%s**: goal %s with the application's start told apart, %s: slower were %s.\n", k, goal, verdict, share(late, len(rows)))
	if len(frees) > 0 {
		f, s := SumOf(frees, nil), SumOf(starts, nil)
		fmt.Fprintf(out, "The application could start elsewhere after p50 %s, max %s; its start there took p50 %s, max %s more.", seconds(f.P50), seconds(f.Max), seconds(s.P50), seconds(s.Max))
		if k != Unattached && k != Prompt {
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
