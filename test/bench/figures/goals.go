// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Run is everything that was measured with one seed.
type Run struct {
	Seed    uint64
	Rows    []Row
	Outages []Outage
	Usages  []Usage
}

// Goal bounds the time from the fault to the first write elsewhere, the application's start told apart. P50 is zero where nothing is said of it.
type Goal struct {
	Name     string
	P50, Max time.Duration
}

// GoalOf is the goal of a kind that Holdfast brings elsewhere; confirmAfter is what the guard waits before it has a host fenced that hangs.
func GoalOf(k Kind, confirmAfter time.Duration) Goal {
	switch k {
	case Witnessed:
		return Goal{Name: "P1", P50: 6 * time.Second, Max: 12 * time.Second}
	case Hung:
		return Goal{Name: "P2", Max: confirmAfter + 6*time.Second}
	default:
		return Goal{Name: "P3", Max: 15 * time.Second}
	}
}

// String says what is wanted.
func (g Goal) String() string {
	text := "at most " + seconds(g.Max)
	if g.P50 > 0 {
		text = "p50 at most " + seconds(g.P50) + ", " + text
	}
	return g.Name + ", " + text
}

// The other goals.
const (
	endpointWithin = 3 * time.Second
	resetWithin    = 2 * time.Second
	outageOf       = time.Hour
	gapWithin      = time.Second
	agentMemory    = 20 << 10 // KiB
	managerMemory  = 200 << 10
	agentShare     = 0.01
	enough         = 30 // cases of P1w

	settled = time.Minute // a younger process has done little but begin
)

// Outcome of a goal.
const (
	holds     = "holds"
	missed    = "**missed**"
	undecided = "undecided"
)

// Verdict is what a run says of a goal.
type Verdict struct {
	Goal, Wanted, Measured string
	N                      int
	// Says is holds, missed, or undecided and why.
	Says string
}

// Verdicts judge a run. A goal for which nothing was measured is undecided, and never held.
func Verdicts(r Run) []Verdict {
	return []Verdict{failover(Of(r.Rows, Witnessed), Witnessed), failover(Of(r.Rows, Hung), Hung), endpoints(witnessed(r.Rows)), resets(witnessed(r.Rows)),
		keptAlive(r.Outages), beside(r.Rows), memory(r.Usages, []Program{Agent}, agentMemory), processor(r.Usages), memory(r.Usages, []Program{Leader, Standby}, managerMemory)}
}

// witnessed are the rows of both kinds with agents.
func witnessed(rows []Row) []Row { return append(Of(rows, Witnessed), Of(rows, Hung)...) }

// judge says what follows from what broke a goal and what kept it from being decided.
func (v Verdict) judge(broken bool, doubts ...string) Verdict {
	doubts = slices.DeleteFunc(doubts, func(d string) bool { return d == "" })
	switch {
	case v.N == 0:
		v.Says, v.Measured = undecided+": not measured", "–"
	case broken:
		v.Says = missed
	case len(doubts) > 0:
		v.Says = undecided + ": " + strings.Join(doubts, ", ")
	default:
		v.Says = holds
	}
	return v
}

// failover judges P1 or P2: the time until the application could start elsewhere.
func failover(rows []Row, k Kind) Verdict {
	goal := goalOf(k, rows)
	free, _ := spansOf(rows, Row.Free)
	doubt := ""
	if k == Witnessed && len(rows) < enough {
		doubt = fmt.Sprintf("N is below %d", enough)
	}
	v := Verdict{Goal: goal.Name, N: len(rows), Wanted: string(k) + ": " + strings.TrimPrefix(goal.String(), goal.Name+", "),
		Measured: fmt.Sprintf("p50 %s, max %s", free.text(free.P50, free.p50), free.text(free.Max, free.maxEnd))}
	if k == Hung {
		v.Wanted += " (confirmAfter + 6 s)"
	}
	return v.judge(slow(rows) > 0 || goal.P50 > 0 && (!free.p50 || free.P50 > goal.P50), doubt)
}

// goalOf is the goal of a kind by the guard that its rows had, the strictest if they differ.
func goalOf(k Kind, rows []Row) Goal {
	confirm := time.Duration(0)
	for i, r := range rows {
		if i == 0 || r.ConfirmAfter < confirm {
			confirm = r.ConfirmAfter
		}
	}
	return GoalOf(k, confirm)
}

// slow counts the cases that were over the bound of their goal before the application could start elsewhere, or never came so far.
func slow(rows []Row) int {
	n := 0
	for _, r := range rows {
		if free, ok := r.Free(); !ok || free > GoalOf(r.Kind, r.ConfirmAfter).Max {
			n++
		}
	}
	return n
}

// spansOf sums a span over rows; bad counts those in which it did not end.
func spansOf(rows []Row, of func(Row) (time.Duration, bool)) (s Sum, bad int) {
	var spans, never []time.Duration
	for _, r := range rows {
		if d, ok := of(r); ok {
			spans = append(spans, d)
		} else {
			never = append(never, r.CensoredAt)
		}
	}
	return SumOf(spans, never), len(never)
}

func (r Row) endpointOut() (time.Duration, bool) {
	d, ok := r.Marks[EndpointOut]
	return d, ok
}

func endpoints(rows []Row) Verdict {
	s, bad := spansOf(rows, Row.endpointOut)
	return Verdict{Goal: "P5", N: len(rows), Wanted: "with agents: endpoint of the lost pod out at most " + seconds(endpointWithin) + " after the loss", Measured: measured(s, bad)}.
		judge(bad > 0 || s.Max > endpointWithin)
}

// reachable are the rows in which clients had connections.
func reachable(rows []Row) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return r.Clients == 0 })
}

func resets(rows []Row) Verdict {
	rows = reachable(rows)
	s, bad := spansOf(rows, Row.Reset)
	return Verdict{Goal: "P6", N: len(rows), Wanted: "with agents: every connection to the lost pod ended at most " + seconds(resetWithin) + " after the proof", Measured: measured(s, bad)}.
		judge(bad > 0 || s.Max > resetWithin)
}

func measured(s Sum, bad int) string {
	if s.Seen == 0 {
		return fmt.Sprintf("never in %d", s.N)
	}
	text := fmt.Sprintf("p50 %s, max %s", s.text(s.P50, s.p50), s.text(s.Max, s.maxEnd))
	if bad > 0 {
		text = fmt.Sprintf("p50 %s, never in %d", s.text(s.P50, s.p50), bad)
	}
	return text
}

func keptAlive(outages []Outage) Verdict {
	v := Verdict{Goal: "P7", N: len(outages), Wanted: "kubelet dead for " + outageOf.String() + ": no downtime, no restart, no lost write, endpoint gaps of at most " + seconds(gapWithin)}
	var down, gap, short time.Duration
	restarts, lost, silent := 0, 0, false
	for i, o := range outages {
		down, gap, restarts, lost = max(down, o.Down), max(gap, o.Gap), restarts+o.Restarts, lost+o.Lost+o.Interleavings
		silent = silent || o.Writes == 0 || o.Acked == 0
		if i == 0 || o.Length < short {
			short = o.Length
		}
	}
	v.Measured = fmt.Sprintf("%s dead: %s down, %d restarts, %d lost writes, gap %s", short.Round(time.Second), seconds(down), restarts, lost, seconds(gap))
	doubt := ""
	if short < outageOf {
		doubt = "the kubelet was dead for " + short.Round(time.Second).String() + " only"
	}
	if silent {
		doubt += "; nothing was written or acknowledged"
	}
	return v.judge(down > 0 || restarts > 0 || lost > 0 || gap > gapWithin, strings.TrimPrefix(doubt, "; "))
}

// beside says whether the baselines were measured in the same run.
func beside(rows []Row) Verdict {
	stock, human := len(Of(rows, StatefulSet)), len(Of(rows, Human))
	v := Verdict{Goal: "beside", N: stock + human, Wanted: "B0 and B2 in the same run", Measured: fmt.Sprintf("B0 %d, B2 %d", stock, human)}
	return v.judge(stock == 0 || human == 0)
}

// of selects the processes of programs.
func of(usages []Usage, programs []Program) []Usage {
	return slices.DeleteFunc(slices.Clone(usages), func(u Usage) bool { return !slices.Contains(programs, u.Program) })
}

func memory(usages []Usage, programs []Program, limit int) Verdict {
	usages = of(usages, programs)
	most := Usage{}
	for _, u := range usages {
		if u.RSS > most.RSS {
			most = u
		}
	}
	who := "agent"
	if programs[0] != Agent {
		who = "manager"
	}
	return Verdict{Goal: "memory", N: len(usages), Wanted: who + ": at most " + mib(limit) + " resident", Measured: fmt.Sprintf("at most %s, %s of them its own", mib(most.RSS), mib(most.Anon))}.
		judge(most.RSS > limit)
}

func processor(usages []Usage) Verdict {
	usages = of(usages, []Program{Agent})
	rest, overall, known := 0.0, 0.0, 0
	for _, u := range usages {
		r, ok := u.AtRest()
		if rest = max(rest, r); ok {
			known++
		}
		if o, _ := u.Overall(); u.Span >= settled {
			overall = max(overall, o)
		}
	}
	doubt := ""
	if known < len(usages) {
		doubt = fmt.Sprintf("%d of them were not seen at rest", len(usages)-known)
	}
	return Verdict{Goal: "CPU", N: len(usages), Wanted: fmt.Sprintf("agent: at most %.0f %% of a core at rest", 100*agentShare),
		Measured: fmt.Sprintf("at most %s at rest, %s over all faults", percent(rest), percent(overall))}.judge(rest > agentShare, doubt)
}

func mib(kib int) string           { return fmt.Sprintf("%.1f MiB", float64(kib)/1024) }
func percent(share float64) string { return fmt.Sprintf("%.2f %%", 100*share) }
