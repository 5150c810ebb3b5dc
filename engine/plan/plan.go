// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plan turns a verdict into steps, as data. At most one step of a plan is irreversible (invariant I9), and it comes last, so that
// whoever carries the plan out can do the others first, look again, make the plan again, and only then do it.
package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Kind is what a step does. The zero value is illegal.
type Kind uint8

// Kinds of steps. Those from Isolate on cannot be undone.
const (
	// OpenIncident creates the HostIncident; creating it is the lock.
	OpenIncident Kind = iota + 1
	// Advance moves the incident to the step named in Target.
	Advance
	// ArmHold puts label and finalizer of the hold on the pod Target (a UID), and its name into the namespace's annotation.
	ArmHold
	// DisarmHold takes them away.
	DisarmHold
	// KeepServing patches the pod Target (a UID) Ready, because its own probes pass and its kubelet cannot say so.
	KeepServing
	// StopServing patches the pod Target (a UID) not Ready.
	StopServing
	// Settle records what a reading shows about the attempt Target: As is Settled or Superseded.
	Settle
	// Distrust records that the method Target lied.
	Distrust
	// RecordProof writes the proof down.
	RecordProof
	// Taint puts our NoExecute taint on the Node. It is reversible for the Node, and only ever planned for a host whose device reads Off.
	Taint
	// SwapTaint takes the out-of-service taint off and leaves ours.
	SwapTaint
	// Untaint takes both off: the return gate is open.
	Untaint
	// Close ends the incident.
	Close
	// ResetConnections has the agents of the hosts that are left end TCP connections to the address Target, until LetGo.
	ResetConnections
	// LetGo ends it.
	LetGo

	// Isolate commands the host off by the method Target.
	Isolate
	// TaintOutOfService makes Kubernetes detach the host's volumes at once.
	TaintOutOfService
	// DeletePod removes the pod object Target (a UID) with grace 0.
	DeletePod
	// RestartKubelet has the host's own agent restart its kubelet.
	RestartKubelet
)

// String returns the name used in status and scenarios.
func (k Kind) String() string {
	names := [...]string{"Invalid", "OpenIncident", "Advance", "ArmHold", "DisarmHold", "KeepServing", "StopServing", "Settle", "Distrust", "RecordProof",
		"Taint", "SwapTaint", "Untaint", "Close", "ResetConnections", "LetGo", "Isolate", "TaintOutOfService", "DeletePod", "RestartKubelet"}
	if int(k) >= len(names) {
		return names[0]
	}
	return names[k]
}

// Irreversible reports whether the step cannot be undone.
func (k Kind) Irreversible() bool { return k >= Isolate }

// Step is one thing to do.
type Step struct {
	Kind Kind
	// Target is a pod's UID, a method, an attempt's ID, a step of the incident or an IP address, by kind.
	Target string
	// As is the new state of an attempt, for Settle.
	As evidence.AttemptState
	// Level of the method, for Isolate.
	Level int
	// Because is for people.
	Because string
}

// Refusal is something that will not be done, and why. A refusal is an answer, not a silence.
type Refusal struct {
	// What is Reschedule, Fence, Release, Recover, Resolve, Return or Repair.
	What   string
	Target string
	// By is the name of the invariant or the setting that refuses; Refusals lists them all.
	By string
	// Because is for people.
	Because string
}

// Plan is what to do now, what not to do, and when to look again.
type Plan struct {
	Steps    []Step
	Refusals []Refusal
	// Blocked says what a human has to do, empty when nobody has to, and BlockedBy is its reason, one of Blocks.
	Blocked   string
	BlockedBy string
	// Stalled says that the incident has been at its step for longer than the step's bound (see Bounds); empty while it has not.
	Stalled string
	// ApprovalRequired and BudgetExhausted are the two brakes that only a human takes off.
	ApprovalRequired bool
	BudgetExhausted  bool
	// Would holds what a Shadow app would have had done.
	Would []Step
	// Next is when to look again, whatever happens.
	Next time.Duration
}

// Budget is how many Off commands that change state were given in the sliding window, read from the API.
type Budget struct {
	Used int
	Max  int
}

// Left reports whether one more Off command may change state.
func (b Budget) Left() bool { return b.Used < b.Max }

// maxTries bounds the Off commands per method and incident that a device, which reads On, took and that had no effect: each is of the budget that
// other hosts may need. A device that reads Off and does not say whether it took the command is asked again for as long as it takes, with pauses.
const maxTries = 2

// Intervals after which a host is looked at again when nothing happens in between.
const (
	nextHealthy = 10 * time.Second
	nextHeld    = 2 * time.Second
	nextSuspect = 500 * time.Millisecond
	nextFencing = 250 * time.Millisecond
	nextRelease = 100 * time.Millisecond
	nextReturn  = 3 * time.Second
	// settling is how long a device may have read Off before it counts as not believed rather than as only just off.
	settling = 5 * time.Second
)

// Make makes the plan for a verdict. It is a pure function; two calls with the same values give the same plan.
func Make(found verdict.Found, seen evidence.Snapshot, budget Budget) Plan {
	m := &maker{found: found, policy: found.Policy, seen: seen, budget: budget}
	m.stalled()
	m.traffic()
	m.settle()
	m.distrust()
	switch found.Class {
	case verdict.Healthy, verdict.AppDown: // the application's own policy is not the host's business
		m.healthy()
	case verdict.KubeletDown, verdict.Hung, verdict.RuntimeDown:
		m.living(m.policy.NotServing, "the host lives, its kubelet or runtime does not, and no application on it serves (onKubeletFailure.whenNotServing: Fence)")
	case verdict.Isolated:
		m.living(m.policy.Isolated, "the host lives and is cut off, and no application on it answers (onIsolation.whenNotServing: Fence)")
	case verdict.Silent, verdict.Blind, verdict.Unknown:
		m.silent()
	case verdict.Lost:
		m.lost()
	default:
		panic(fmt.Sprintf("plan: verdict %s has no plan", found.Class))
	}
	m.connections()
	if in := m.policy.LateIn(seen.Lease); in > 0 && len(seen.Writers) > 0 {
		m.out.Next = min(m.out.Next, in) // nothing else may happen when a kubelet stops renewing
	}
	return m.out
}

type maker struct {
	found  verdict.Found
	policy verdict.Policy
	seen   evidence.Snapshot
	budget Budget
	// method is the one that would be commanded, once chosen.
	method evidence.Power
	out    Plan
}

func (m *maker) do(s Step) { m.out.Steps = append(m.out.Steps, s) }

func (m *maker) refuse(what, target, by, because string) {
	m.out.Refusals = append(m.out.Refusals, Refusal{What: what, Target: target, By: by, Because: because})
}

func (m *maker) because() string { return m.found.Class.String() + ": " + m.found.Findings[0].Because }

func (m *maker) advance(to evidence.Step, because string) {
	if m.seen.Journal.Step != to {
		m.do(Step{Kind: Advance, Target: string(to), Because: because})
	}
}

// traffic keeps the endpoints of applications that serve while nobody else can say so, and takes out those of lost ones.
func (m *maker) traffic() {
	if m.policy.Paused {
		return
	}
	for _, a := range m.seen.Apps {
		step := Step{Target: a.PodUID}
		switch {
		case m.keeps(a) && m.serves(a) && !a.EndpointReady:
			step.Kind, step.Because = KeepServing, a.Pod+" answers its own probes"
		case a.EndpointReady && (m.found.Class == verdict.Lost || m.stops() && m.fails(a)):
			step.Kind, step.Because = StopServing, m.because()
		default:
			continue
		}
		if m.policy.Shadow {
			m.out.Would = append(m.out.Would, step)
			continue
		}
		m.do(step)
	}
}

// keeps reports whether the endpoint of an application that serves is put back: where no kubelet can say so, and where one that is back has not got
// round to it.
func (m *maker) keeps(a evidence.App) bool {
	if !m.policy.KeepTraffic {
		return false
	}
	switch m.found.Class {
	case verdict.KubeletDown, verdict.Blind, verdict.Isolated:
		return true
	case verdict.Healthy:
		return a.EndpointOwed
	default:
		return false
	}
}

// serves reports whether an application answers us, or, on a host that no kubelet speaks for, a vantage point.
func (m *maker) serves(a evidence.App) bool {
	_, there := m.seen.AnswersThere(a.PodUID)
	return a.Exclusive && (a.Serving == evidence.ServingYes || there && m.found.Class != verdict.Healthy)
}

// fails reports whether an application answers nobody: not us, by its own thresholds, or by its latest probe where the host is given up; and not the
// vantage points, where any should answer.
func (m *maker) fails(a evidence.App) bool {
	ours := a.Serving == evidence.ServingNo || (a.Serving == evidence.ServingYes && a.FailingFor > 0 && m.seen.WitnessesCallItDead())
	return a.Exclusive && ours && m.seen.FailsThere(a.PodUID)
}

func (m *maker) stops() bool {
	c := m.found.Class
	return c == verdict.Silent || c == verdict.Hung || c == verdict.KubeletDown
}

// settle records what readings show about attempts; the rest of the plan is made as if that stood in the journal already.
func (m *maker) settle() {
	m.seen.Journal.Attempts = slices.Clone(m.seen.Journal.Attempts)
	for i := range m.seen.Journal.Attempts {
		a := &m.seen.Journal.Attempts[i]
		as, because := m.settled(*a)
		if as == "" {
			continue
		}
		m.do(Step{Kind: Settle, Target: a.ID, As: as, Because: because})
		a.State = as
	}
}

// settled says what the present readings make of an attempt, or nothing if they leave it as it is.
func (m *maker) settled(a evidence.Attempt) (as evidence.AttemptState, because string) {
	state := m.power(a.Method)
	reads := a.Method + " reads " + state.String()
	switch {
	case a.State == evidence.AttemptAccepted && state.Dead():
		return evidence.AttemptSettled, reads
	case a.State == evidence.AttemptAccepted && state == evidence.PowerOn && a.Overdue:
		return evidence.AttemptSuperseded, "the command was taken, and still " + reads
	case a.State == evidence.AttemptSettled && state == evidence.PowerOn && m.seen.SameBoot() && (len(m.seen.Unreleased()) > 0 || !m.seen.Listed):
		// Somebody switched it on again: that command is spent, and a later Off would not be its doing.
		return evidence.AttemptSuperseded, "it was off, and " + reads + " again"
	case a.Unsettled() && a.CallOver && state.Dead(), a.Unsettled() && a.CallOver && a.Overdue && state == evidence.PowerOn:
		// Nobody knows whether the device took it. The call is over and the device reads: another command may be given, and it must be.
		return evidence.AttemptSuperseded, "no answer came; " + reads
	default:
		return "", ""
	}
}

// power is what a device of this very machine reads.
func (m *maker) power(method string) evidence.PowerState {
	for _, p := range m.seen.Power {
		if p.Method == method && p.Identity == evidence.IdentityMatches {
			return p.State
		}
	}
	return evidence.PowerUnread
}

func (m *maker) distrust() {
	for _, method := range m.found.Liars {
		if !m.seen.Journal.Distrusts(method) {
			m.do(Step{Kind: Distrust, Target: method, Because: m.because()})
		}
	}
}

// openHold opens the incident and arms the hold on every writer. It reports whether anything is there to guard.
func (m *maker) openHold() bool {
	writers := m.seen.Unreleased()
	if !m.seen.Journal.Open() {
		if len(writers) == 0 {
			return false
		}
		m.do(Step{Kind: OpenIncident, Because: m.because()})
	}
	for _, w := range writers {
		if !w.Held {
			m.do(Step{Kind: ArmHold, Target: w.UID, Because: m.because()})
		}
		m.refuse("Reschedule", w.Namespace+"/"+w.Name, byProof, m.because())
	}
	return true
}

// hold keeps what is on the host there.
func (m *maker) hold() {
	m.out.Next = nextHeld
	if m.openHold() && !m.underway() {
		m.advance(evidence.StepHolding, m.because())
	}
}

// underway is true from an Off command that the device may have taken until its outcome is known to be none.
func (m *maker) underway() bool { return m.unsettled() || m.wasFenced() }

// wasFenced is true when the boot of the incident is known to have been commanded off.
func (m *maker) wasFenced() bool {
	j := m.seen.Journal
	if j.ProofRecorded || !m.seen.Node.FencedBefore && (m.seen.Node.Fenced || m.seen.Node.OutOfService) {
		return true
	}
	for _, a := range j.Attempts {
		if a.Commanded() {
			return true
		}
	}
	return false
}

// living holds a host that lives, or fences it when it serves nothing and all apps ask for that.
func (m *maker) living(notServing verdict.Careful, because string) {
	if notServing != verdict.Act || !m.servesNothing() || m.braked("Fence", patience) {
		m.hold()
		m.repair()
		return
	}
	m.out.Next = nextHeld
	if m.openHold() {
		m.fence(because)
	}
}

func (m *maker) servesNothing() bool {
	if len(m.seen.Apps) == 0 {
		return false
	}
	for _, a := range m.seen.Apps {
		if a.Serving != evidence.ServingNo || !a.Exclusive || a.FailingFor < m.policy.ConfirmAfter || !m.seen.FailsThere(a.PodUID) {
			return false
		}
	}
	return true
}

// silent holds, and fences once the loss is confirmed: by a device that reads Off, or by silence while others are heard.
func (m *maker) silent() {
	m.out.Next = nextSuspect
	if m.found.Class == verdict.Unknown && !m.seen.Journal.Open() && m.kubeletSpeaks() {
		return // an application fails and the host has not been asked yet: ask first
	}
	if !m.openHold() {
		if m.seen.Listed {
			m.out.Next = nextHealthy // nothing guarded is there
		}
		return
	}
	if m.found.Refuted {
		m.fence(m.because())
		return
	}
	if m.found.Rule() == "NodeMissing" && len(m.seen.Unreleased()) == 0 && !m.unsettled() {
		m.advance(evidence.StepRetired, "the Node was removed, and nothing guarded was left on it")
		return
	}
	if m.braked("Fence", doubting) {
		return
	}
	off := m.found.Rule() == "PowerReadsOff"
	if !off && !m.wentOff() && m.braked("Fence", confirming) {
		m.out.Next = nextSuspect
		if !m.underway() { // never back behind a command or proof
			m.advance(evidence.StepSuspected, m.because())
		}
		return
	}
	m.fence(m.because())
}

// wentOff is true when this observer has seen a device read Off by command, and none read On since: the loss needs no second confirmation, only
// the device cannot be read now.
func (m *maker) wentOff() bool {
	off := false
	for _, p := range m.seen.Power {
		if p.State == evidence.PowerOn || (p.HasOn && (!p.HasOff || p.LastOn > p.LastOff)) {
			return false
		}
		off = off || (p.HasOff && m.count(p.Method, evidence.AttemptSettled) > 0)
	}
	return off
}

// fence commands Off, once, by the first method that can be used; or goes on with what was commanded.
func (m *maker) fence(because string) {
	m.out.Next = nextFencing
	if !m.underway() && m.seen.Journal.Step != evidence.StepFencing {
		m.advance(evidence.StepConfirmed, because)
	}
	braked := m.braked("Fence", fencing)
	if braked && (m.out.BlockedBy != BlockUnsettledAttempt || m.found.Word == "") {
		return
	}
	step, ok := m.nextToProof(because, !braked)
	if !ok {
		return
	}
	if m.braked("Fence", isolating) {
		if m.policy.Shadow {
			m.out.Would = append(m.out.Would, step)
		}
		return
	}
	m.do(step)
}

// nextToProof is the step that brings proof closer: the taint where all that has to be off is off, another Off command where it is not. Where no method can
// be used, or command forbids it, a human's word or the host's own watchdog takes the place of the devices'.
func (m *maker) nextToProof(because string, command bool) (Step, bool) {
	taint := Step{Kind: Taint, Because: because}
	if m.commandedAndOff() {
		return taint, !m.seen.Node.Fenced // the next reading, made after the taint is seen, is the proof
	}
	if command {
		var ok bool
		if m.method, ok = m.choose(); ok {
			return Step{Kind: Isolate, Target: m.method.Method, Level: m.method.Level, Because: because}, true
		}
	}
	if m.found.Word == "" {
		return Step{}, false
	}
	m.block("", "")
	m.out.Next = nextFencing
	taint.Because = m.found.Word
	return taint, !m.seen.Node.Fenced
}

// changesState is true when the Off command may switch a machine off: when it does not read Off, or is not believed.
func (m *maker) changesState() bool {
	return m.method.Method != "" && !slices.Contains(m.found.ReadsOff, m.method.Method)
}

// commandedAndOff: this incident gave Off commands, the devices took them, and trusted readings show Off now for all that has to be cut.
func (m *maker) commandedAndOff() bool {
	var off []evidence.Power
	for _, p := range m.seen.Power {
		if m.isOff(p) {
			off = append(off, p)
		}
	}
	return len(evidence.Least(m.seen.Unreleased(), off)) > 0
}

// isOff is true of a method whose device took the command, and whose reading of Off is trusted.
func (m *maker) isOff(p evidence.Power) bool {
	return (m.commanded(p.Method) || p.State == evidence.PowerGone) && slices.Contains(m.found.ReadsOff, p.Method) && p.Weak(m.policy.MinimumProof) == ""
}

func (m *maker) commanded(method string) bool {
	return m.count(method, evidence.AttemptAccepted, evidence.AttemptSettled) > 0
}

// choose picks the method to command next. Of those that are off already, have just gone off, or can be used, it takes as few as cut every volume of every
// writer, by level, and of these the first that is not off. For a host that was declared lost and speaks, a method that lied is better than none.
func (m *maker) choose() (evidence.Power, bool) {
	var can []evidence.Power
	why := ""
	for _, p := range m.seen.Power {
		not := m.unusable(p)
		if not == "" || m.isOff(p) || m.pending(p) { // of what is pending, the brake on it holds
			can = append(can, p)
			continue
		}
		why = not
	}
	for _, p := range evidence.Least(m.seen.Unreleased(), can) {
		if !m.isOff(p) {
			return p, true
		}
	}
	m.out.Next = nextHeld
	if len(m.seen.Power) == 0 {
		m.block(BlockNoMethod, "no FencingProfile can be used for this host: "+m.noMethods())
		return evidence.Power{}, false
	}
	if len(can) > 0 {
		why = strings.TrimPrefix(why+"; nothing that can be used cuts volume "+evidence.Uncut(m.seen.Unreleased(), can), "; ")
	}
	m.block(BlockNoMethod, "no fencing method can be used ("+why+"): repair the device, or power the host off by hand")
	if m.found.Refuted {
		for _, p := range m.seen.Power {
			if m.lastResort(p) {
				return p, true
			}
		}
	}
	return evidence.Power{}, false
}

// noMethods says why no method is known, and what to do about it.
func (m *maker) noMethods() string {
	if m.seen.NoMethods != "" {
		return m.seen.NoMethods
	}
	return "add one that selects it, or narrow those that overlap"
}

// unusable says why a method cannot be commanded now, or nothing if it can.
func (m *maker) unusable(p evidence.Power) string {
	switch {
	case p.Identity == evidence.IdentityDiffers:
		return p.Method + " belongs to another machine"
	case p.State == evidence.PowerUnread:
		return p.Method + " cannot be read: " + p.Why
	case p.Identity != evidence.IdentityMatches:
		return p.Method + " does not say which machine it belongs to"
	case p.State == evidence.PowerGone:
		return p.Method + " knows no such machine any more"
	case m.seen.Journal.Distrusts(p.Method):
		return p.Method + " lied in this incident"
	case slices.Contains(m.found.Contradicted, p.Method):
		return p.Method + " reads Off while the host shows life"
	case p.Weak(m.policy.MinimumProof) != "":
		return p.Weak(m.policy.MinimumProof)
	case m.inVainJustNow(p.Method):
		return p.Method + " failed a moment ago to take the command, or to say that it had"
	case p.State == evidence.PowerOff && m.commanded(p.Method):
		return p.Method + " was commanded off and reads Off, but is not believed while something else speaks against it"
	case p.State == evidence.PowerOn && m.count(p.Method, evidence.AttemptSuperseded) >= maxTries:
		return fmt.Sprintf("%s was given %d Off commands and they had no effect", p.Method, m.count(p.Method, evidence.AttemptSuperseded))
	default:
		return ""
	}
}

// pending is true while a device that was commanded off has only just begun to read Off, and is all that is wanted otherwise.
func (m *maker) pending(p evidence.Power) bool {
	return p.Weak(m.policy.MinimumProof) == "" && m.power(p.Method) == evidence.PowerOff && m.commanded(p.Method) && !m.seen.Journal.Distrusts(p.Method) &&
		!slices.Contains(m.found.Contradicted, p.Method) && p.At.Sub(p.OffSince) < settling
}

func (m *maker) lastResort(p evidence.Power) bool {
	state := m.power(p.Method)
	given := m.count(p.Method, evidence.AttemptAccepted, evidence.AttemptSettled, evidence.AttemptSuperseded)
	return (state == evidence.PowerOn || state == evidence.PowerOff) && given <= maxTries && !m.inVainJustNow(p.Method)
}

// inVainJustNow is true when the latest two attempts by the method failed or were superseded, until the settling time of the last is over: then it
// may be tried again. One alone says little; the attempt may have been withdrawn before the call.
func (m *maker) inVainJustNow(method string) bool {
	row, rests := 0, false
	for _, a := range m.seen.Journal.Attempts {
		switch {
		case a.Method != method:
		case a.State == evidence.AttemptFailed || a.State == evidence.AttemptSuperseded:
			row, rests = row+1, !a.Overdue
		default:
			row = 0
		}
	}
	return row >= 2 && rests
}

func (m *maker) count(method string, states ...evidence.AttemptState) int {
	n := 0
	for _, a := range m.seen.Journal.Attempts {
		if a.Method == method && slices.Contains(states, a.State) {
			n++
		}
	}
	return n
}

// lost releases, one irreversible step a round, and only on proof that was read in this very snapshot.
func (m *maker) lost() {
	m.out.Next = nextRelease
	if !m.found.Proof.Fresh {
		m.after()
		return
	}
	because := "proof by " + m.found.Proof.Methods()
	if !m.seen.Journal.ProofRecorded {
		m.do(Step{Kind: RecordProof, Target: m.found.Proof.Methods(), Because: m.because()})
	}
	if len(m.seen.Unreleased()) == 0 {
		m.after()
		return
	}
	m.advance(evidence.StepReleasing, because)
	if m.braked("Release", releasing) {
		return
	}
	if !m.seen.Node.OutOfService {
		m.do(Step{Kind: TaintOutOfService, Because: because})
		return
	}
	for _, w := range m.removable() {
		m.do(Step{Kind: DeletePod, Target: w.UID, Because: because})
		return
	}
}

// removable are the unreleased writers that a delete can still do something about.
func (m *maker) removable() []evidence.Writer {
	var out []evidence.Writer
	for _, w := range m.seen.Unreleased() {
		if !w.Removed {
			out = append(out, w)
		}
	}
	return out
}

// after waits for detachment, takes the out-of-service taint off, and waits for the successors.
func (m *maker) after() {
	if m.braked("Recover", recovering) {
		m.out.Next = nextFencing
		return
	}
	switch step := m.seen.Journal.Step; {
	case m.seen.Node.OutOfService:
		m.do(Step{Kind: SwapTaint, Because: "nothing is attached any more"})
		m.advance(evidence.StepRecovering, "every writer is released and detached")
	case step == evidence.StepRecovering:
		m.out.Next = nextSuspect
		if !m.braked("Resolve", resolving) {
			m.advance(evidence.StepResolved, "every application serves elsewhere")
		}
	case step == evidence.StepResolved && m.seen.Node.Read && m.seen.Node.Missing:
		m.advance(evidence.StepRetired, "the Node was removed for good")
	case step == evidence.StepResolved && m.gone() && !m.unsettled():
		m.advance(evidence.StepRetired, "the machine does not exist any more, and will not come back")
	case step == evidence.StepResolved:
		m.out.Next = nextReturn
	default:
		m.advance(evidence.StepRecovering, "every writer is released and detached")
	}
}

// gone is true while a trusted device says that the machine does not exist any more.
func (m *maker) gone() bool {
	return slices.ContainsFunc(m.seen.Power, func(p evidence.Power) bool {
		return p.State == evidence.PowerGone && slices.Contains(m.found.ReadsOff, p.Method)
	})
}

// recovered wants a serving successor for every app of the incident.
func (m *maker) recovered() bool {
	for _, app := range m.seen.Journal.Apps {
		serves := func(s evidence.Successor) bool { return s.App == app && s.Serving == evidence.ServingYes }
		if !slices.ContainsFunc(m.seen.Successors, serves) {
			return false
		}
	}
	return true
}

// healthy ends what is open, through the return gate (invariant I8).
func (m *maker) healthy() {
	m.out.Next = nextHealthy
	if !m.seen.Journal.Open() {
		if m.seen.Orphaned() {
			m.out.Next = nextHeld
			m.do(Step{Kind: OpenIncident, Because: "a hold or a taint stands, and its journal is gone: another one ends it"})
		}
		return
	}
	m.out.Next = nextHeld
	if !m.seen.SameBoot() && m.oldBootIsOver() {
		return
	}
	if m.braked("Return", returning) {
		return
	}
	m.letGo(m.because())
}

// letGo takes holds and taints off and ends the incident.
func (m *maker) letGo(because string) {
	m.disarm()
	if m.seen.Node.Fenced || m.seen.Node.OutOfService {
		m.do(Step{Kind: Untaint, Because: because})
	}
	m.do(Step{Kind: Close, Because: because})
}

// heard wants the kubelet heard by this observer, and well: a fresh observer's lease is young because the observer is.
func (m *maker) heard() bool {
	n := m.seen.Node
	return n.Read && !n.Missing && n.Ready == evidence.ReadyTrue && m.seen.Lease.Read && m.seen.Lease.Moved && !m.policy.Late(m.seen.Lease)
}

// kubeletSpeaks is true while nothing says that the control plane has lost the kubelet.
func (m *maker) kubeletSpeaks() bool {
	n := m.seen.Node
	return n.Read && !n.Missing && n.Ready == evidence.ReadyTrue && m.seen.Lease.Read && !m.policy.Late(m.seen.Lease)
}

func (m *maker) disarm() {
	for _, w := range m.seen.Writers {
		if w.Held || w.HeldBy != "" {
			m.do(Step{Kind: DisarmHold, Target: w.UID, Because: m.because()})
		}
	}
}

// oldBootIsOver does what is left to do for a boot that a newer one has ended, whether or not the newer one is well. It reports whether the incident
// needs nothing more.
func (m *maker) oldBootIsOver() bool {
	proved := m.seen.Journal.ProofRecorded
	shut := proved && m.seen.Node.Fenced // the taint has kept the new boot from starting anything
	if !shut && !m.unsettled() && m.policy.Late(m.seen.Lease) && !m.policy.Paused {
		// The new boot fails too, and is judged by itself, in an incident of its own.
		m.letGo("the boot is over, and the next one fails by itself")
		return true
	}
	old := m.oldWriters()
	switch {
	case !proved || m.unsettled():
	case len(old) == 0 && !m.heard():
		m.after()
	case len(old) > 0 && shut && !m.policy.Paused && !m.policy.Shadow:
		m.out.Next = nextRelease
		m.do(Step{Kind: DeletePod, Target: old[0].UID, Because: "its boot is over and proof was established"})
	}
	return false
}

// oldWriters are the pods that the old boot ran.
func (m *maker) oldWriters() []evidence.Writer {
	var out []evidence.Writer
	for _, w := range m.removable() {
		if (w.Held || w.BootID == m.seen.Host.BootID) && (w.BootID == "" || w.BootID != m.seen.Node.BootID) {
			out = append(out, w)
		}
	}
	return out
}
