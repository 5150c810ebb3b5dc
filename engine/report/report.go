// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package report projects what was seen, found and planned onto the status that people read. It is one-way: nothing decides by a condition.
package report

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Wall turns an instant of the observer into the time of day.
type Wall func(evidence.Instant) time.Time

// Incident writes what was found and planned into an incident's status. The journal proper (step, attempts, proof, pods, phases) is written by
// whoever acted; it is only read here.
func Incident(status *v1alpha1.HostIncidentStatus, seen evidence.Snapshot, found verdict.Found, todo plan.Plan, wall Wall) {
	if name := found.Class.String(); status.Verdict != name {
		status.Verdict = name
		status.Since = &metav1.Time{Time: wall(seen.At)}
	}
	status.Findings = nil
	for _, f := range found.Findings {
		status.Findings = append(status.Findings, v1alpha1.RuleFinding{Rule: f.Rule, Says: f.Says.String(), Because: f.Because})
	}
	status.Evidence = Evidence(seen, wall)
	status.Doing, status.Next = doing(todo), nextWords(found, todo)
	status.Apps = int32(len(distinct(status.Pods))) //nolint:gosec // bounded by pods on one host
	status.ProofSummary = proofSummary(status, found)
	conditions(status, found, todo, wall(seen.At))
}

func distinct(pods []v1alpha1.IncidentPod) map[string]bool {
	apps := map[string]bool{}
	for _, p := range pods {
		apps[p.Namespace+"/"+p.App] = true
	}
	return apps
}

func doing(todo plan.Plan) string {
	if len(todo.Steps) == 0 {
		return "watching"
	}
	last := todo.Steps[len(todo.Steps)-1]
	return fmt.Sprintf("%s: %s", last.Kind, last.Because)
}

func nextWords(found verdict.Found, todo plan.Plan) string {
	if todo.Blocked != "" {
		return todo.Blocked
	}
	for i := len(todo.Refusals) - 1; i >= 0; i-- {
		if r := todo.Refusals[i]; r.What != "Reschedule" {
			return fmt.Sprintf("%s waits: %s", r.What, r.By)
		}
	}
	return Exits(found.Class)
}

// Exits says in words what ends a verdict; docs/spec/exits.md has the whole table.
func Exits(c verdict.Class) string {
	switch c {
	case verdict.Healthy:
		return "nothing to wait for"
	case verdict.AppDown:
		return "the application's probes pass again"
	case verdict.KubeletDown:
		return "the kubelet comes back, or the application stops serving, or every sign of life ends"
	case verdict.Hung:
		return "the host answers again, or it is fenced"
	case verdict.RuntimeDown:
		return "the kubelet says Ready again"
	case verdict.Isolated:
		return "the path heals, or the host is fenced"
	case verdict.Silent:
		return "a sign of life, or proof of isolation"
	case verdict.Lost:
		return "successors serve; then the host returns with a new boot, or is retired"
	case verdict.Blind:
		return "the observer's own view heals"
	default:
		return "the missing sources answer"
	}
}

func proofSummary(status *v1alpha1.HostIncidentStatus, found verdict.Found) string {
	switch {
	case found.Refuted:
		return "refuted"
	case status.Proof != nil:
		return fmt.Sprintf("%s by %s", status.Proof.Strength, status.Proof.Method)
	case len(found.ReadsOff) > 0:
		return "reads Off"
	default:
		return "none"
	}
}

func conditions(status *v1alpha1.HostIncidentStatus, found verdict.Found, todo plan.Plan, at time.Time) {
	set := func(kind string, yes bool, reasons [2]string, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reasons[1], Message: message, LastTransitionTime: metav1.Time{Time: at}}
		if yes {
			c.Status, c.Reason = metav1.ConditionTrue, reasons[0]
		}
		Set(&status.Conditions, c)
	}
	first := ""
	if len(found.Findings) > 0 {
		first = found.Findings[0].Because
	}
	set(v1alpha1.ConditionProofEstablished, status.Proof != nil, [2]string{provenBy(status.Proof), v1alpha1.ReasonNotEstablished}, first)
	released, all := 0, len(status.Pods)
	for _, p := range status.Pods {
		if p.ReleasedAt != nil {
			released++
		}
	}
	set(v1alpha1.ConditionReleased, status.Proof != nil && all > 0 && released == all,
		[2]string{v1alpha1.ReasonPodsReleased, v1alpha1.ReasonNotReleased}, fmt.Sprintf("%d of %d pods released", released, all))
	recovered := status.Step == v1alpha1.StepResolved || (status.Proof != nil && status.Step == v1alpha1.StepClosed)
	set(v1alpha1.ConditionRecovered, recovered, [2]string{v1alpha1.ReasonApplicationsUp, v1alpha1.ReasonNotRecovered}, "step "+string(status.Step))
	set(v1alpha1.ConditionReturnCleared, status.Step == v1alpha1.StepClosed, [2]string{v1alpha1.ReasonNewBoot, v1alpha1.ReasonNotReturned}, "step "+string(status.Step))
	set(v1alpha1.ConditionBlocked, todo.Blocked != "",
		[2]string{blockedReasons[todo.BlockedBy], v1alpha1.ReasonNotBlocked}, todo.Blocked)
	set(v1alpha1.ConditionStalled, todo.Stalled != "", [2]string{v1alpha1.ReasonStepOverdue, v1alpha1.ReasonWithinBounds}, stalledWords(todo, status.Next))
	set(v1alpha1.ConditionProofRefuted, found.Refuted, [2]string{v1alpha1.ReasonLifeAfterOff, v1alpha1.ReasonNotRefuted}, "")
}

func provenBy(p *v1alpha1.Proof) string {
	switch {
	case p != nil && p.Strength == v1alpha1.ProofGone:
		return v1alpha1.ReasonVerifiedGone
	case p != nil && p.Strength == v1alpha1.ProofSelfFenced:
		return v1alpha1.ReasonSelfFenced
	case p != nil && p.Strength == v1alpha1.ProofAttested:
		return v1alpha1.ReasonAttested
	default:
		return v1alpha1.ReasonVerifiedOff
	}
}

// blockedReasons has every one of plan.Blocks.
var blockedReasons = map[string]string{
	plan.BlockNoMethod:           v1alpha1.ReasonNoMethod,
	plan.BlockDeviceContradicted: v1alpha1.ReasonDeviceContradicted,
	plan.BlockNodeMissing:        v1alpha1.ReasonNodeMissing,
	plan.BlockOtherMachine:       v1alpha1.ReasonOtherMachine,
	plan.BlockForeignFinalizer:   v1alpha1.ReasonForeignFinalizer,
	plan.BlockActionHold:         v1alpha1.ReasonActionHold,
	plan.BlockSameBoot:           v1alpha1.ReasonSameBoot,
	plan.BlockUnsettledAttempt:   v1alpha1.ReasonUnsettledAttempt,
	plan.BlockAwaitingApproval:   v1alpha1.ReasonAwaitingApproval,
	plan.BlockBudgetSpent:        v1alpha1.ReasonBudgetSpent,
}

func stalledWords(todo plan.Plan, next string) string {
	if todo.Stalled == "" {
		return ""
	}
	return todo.Stalled + "; " + next
}

// Set puts a condition into a list, keeping the time of the last change when the status is the same.
func Set(list *[]metav1.Condition, c metav1.Condition) {
	if c.Message == "" {
		c.Message = c.Reason
	}
	for i := range *list {
		old := &(*list)[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return
	}
	*list = append(*list, c)
}

// Evidence puts every reading into words with its date.
func Evidence(s evidence.Snapshot, wall Wall) []v1alpha1.EvidenceRecord {
	var out []v1alpha1.EvidenceRecord
	add := func(source, reading string, rank evidence.Rank, at evidence.Instant) {
		out = append(out, v1alpha1.EvidenceRecord{Source: source, Reading: reading, Rank: rank.String(), ObservedAt: metav1.Time{Time: wall(at)}})
	}
	switch {
	case !s.Node.Read:
		add("Node", "unread", evidence.RankNone, s.At)
	case s.Node.Missing:
		add("Node", "missing", evidence.RankNone, s.Node.At)
	default:
		add("Node", fmt.Sprintf("Ready=%s (%s), boot %s", s.Node.Ready, s.Node.ReadyReason, s.Node.BootID), evidence.RankNone, s.Node.At)
	}
	if s.Lease.Read {
		since := s.Lease.At - evidence.Instant(s.Lease.Age)
		add("Lease", "last seen to move", evidence.RankUserspace, since)
	}
	if s.Port.Answer != evidence.AnswerUnread {
		add("KubeletPort", s.Port.Answer.String(), s.Port.Answer.Rank(), s.Port.Asked)
	}
	for _, a := range s.Apps {
		rank, at, words := evidence.RankNone, s.At, "has never answered"
		if a.HasAnswer {
			rank, at, words = evidence.RankWriter, a.LastAnswer, "last answered"
		}
		add("Application "+a.Pod, fmt.Sprintf("serving %s, %s", a.Serving, words), rank, at)
	}
	for _, p := range s.Power {
		words := p.State.String()
		if p.Why != "" {
			words += ": " + p.Why
		}
		add("Power "+p.Method, fmt.Sprintf("%s, identity %s", words, p.Identity), evidence.RankNone, p.At)
	}
	for _, a := range s.Attestations {
		words := "boot " + a.BootID
		if a.Expired {
			words += ", expired"
		}
		add("Attestation "+a.Name, words, evidence.RankNone, a.Seen)
	}
	if s.Witnesses.On {
		witnesses(s, add)
		selfFence(s.AgentLease, add)
	}
	add("Cluster", fmt.Sprintf("%d of %d hosts late", s.Cluster.StaleHosts, s.Cluster.Hosts), evidence.RankNone, s.At)
	return out
}

// selfFence puts into words what the host's agent announces of its watchdog.
func selfFence(l evidence.AgentLease, add func(source, reading string, rank evidence.Rank, at evidence.Instant)) {
	if l.Due() == 0 {
		return
	}
	words := fmt.Sprintf("boot %s: reset within %s of its last word, which has stood for %s", l.BootID, l.Bound, l.Stood().Round(time.Second))
	if l.Outlived {
		words += "; it has outlived that before"
	}
	add("Watchdog", words, evidence.RankNone, l.Since)
}

// witnesses puts into words what each vantage point says, and what the host's own agent says of itself.
func witnesses(s evidence.Snapshot, add func(source, reading string, rank evidence.Rank, at evidence.Instant)) {
	add("Witnesses", fmt.Sprintf("%d answer, %d should; %d have looked for the host in vain", s.WitnessesAnswering(), s.Witnesses.Expected, s.WitnessesSearched()), evidence.RankNone, s.At)
	for _, v := range s.Witnesses.Vantages {
		if !v.Answered {
			add("Witness "+v.Witness, "does not answer", evidence.RankNone, v.At)
			continue
		}
		words := fmt.Sprintf("gossip %s, port %s", v.State, v.Port)
		for _, a := range v.Apps {
			words += fmt.Sprintf(", application %s %s", a.PodUID, a.Says)
		}
		rank := v.Port.Rank()
		if v.Agent.Heard {
			words += ", its agent was heard in boot " + v.AgentBoot
		}
		add("Witness "+v.Witness, words, rank, v.At)
	}
	if r := s.Witnesses.Report; r.Heard {
		add("Agent", fmt.Sprintf("boot %s: %s", r.BootID, r), evidence.RankUserspace, r.NotBefore)
	}
}
