// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plan turns a verdict into steps, as data. At most one step of a plan is irreversible (invariant I9), and it comes last, so that
// whoever carries the plan out can do the others first, look again, make the plan again, and only then do it.
package plan

import (
	"fmt"
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

	// Isolate commands the host off by the method Target.
	Isolate
	// TaintOutOfService makes Kubernetes detach the host's volumes at once.
	TaintOutOfService
	// DeletePod removes the pod object Target (a UID) with grace 0.
	DeletePod
)

// String returns the name used in status and scenarios.
func (k Kind) String() string {
	names := [...]string{"Invalid", "OpenIncident", "Advance", "ArmHold", "DisarmHold", "KeepServing", "StopServing", "Settle", "Distrust", "RecordProof",
		"Taint", "SwapTaint", "Untaint", "Close", "Isolate", "TaintOutOfService", "DeletePod"}
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
	// Target is a pod's UID, a method, an attempt's ID or a step of the incident, by kind.
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
	// What is Reschedule, Fence, Release or Return.
	What   string
	Target string
	// By is the invariant or the setting that refuses.
	By string
}

// Plan is what to do now, what not to do, and when to look again.
type Plan struct {
	Steps    []Step
	Refusals []Refusal
	// Blocked says what a human has to do, empty when nobody has to.
	Blocked string
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

// maxTries bounds the Off commands per method and incident that were taken by the device and had no effect.
const maxTries = 2

// Intervals after which a host is looked at again when nothing happens in between.
const (
	nextHealthy = 10 * time.Second
	nextHeld    = 2 * time.Second
	nextSuspect = 500 * time.Millisecond
	nextFencing = 250 * time.Millisecond
	nextRelease = 100 * time.Millisecond
	nextReturn  = 5 * time.Second
)

// Make makes the plan for a verdict. It is a pure function; two calls with the same values give the same plan.
func Make(found verdict.Found, seen evidence.Snapshot, budget Budget) Plan {
	m := &maker{found: found, seen: seen, budget: budget}
	m.traffic()
	m.settle()
	switch found.Class {
	case verdict.Healthy:
		m.healthy()
	case verdict.AppDown:
		m.healthy() // the host is well; the application's own policy is not the host's business
	case verdict.KubeletDown:
		m.hold(evidence.StepHolding)
		m.notServing()
	case verdict.Hung:
		m.hold(evidence.StepHolding)
		m.notServing()
	case verdict.RuntimeDown, verdict.Isolated:
		m.hold(evidence.StepHolding)
	case verdict.Silent:
		m.silent()
	case verdict.Lost:
		m.lost()
	case verdict.Blind:
		m.blind()
	case verdict.Unknown:
		m.unknown()
	default:
		panic(fmt.Sprintf("plan: verdict %s has no plan", found.Class))
	}
	return m.out
}

type maker struct {
	found  verdict.Found
	seen   evidence.Snapshot
	budget Budget
	out    Plan
}

func (m *maker) do(s Step) { m.out.Steps = append(m.out.Steps, s) }

func (m *maker) refuse(what, target, by string) {
	m.out.Refusals = append(m.out.Refusals, Refusal{What: what, Target: target, By: by})
}

func (m *maker) next(d time.Duration) {
	if m.out.Next == 0 || d < m.out.Next {
		m.out.Next = d
	}
}

// advance moves the incident on, never back behind proof.
func (m *maker) advance(to evidence.Step, because string) {
	if m.seen.Journal.Step != to {
		m.do(Step{Kind: Advance, Target: string(to), Because: because})
	}
}

// openHold opens the incident and arms the hold on every writer. It reports whether anything is there to guard.
func (m *maker) openHold() bool {
	if !m.seen.Journal.Open() {
		if len(m.seen.Writers) == 0 {
			return false
		}
		m.do(Step{Kind: OpenIncident, Because: m.because()})
	}
	for _, w := range m.seen.Writers {
		if !w.Held && !w.Finished {
			m.do(Step{Kind: ArmHold, Target: w.UID, Because: m.because()})
		}
		m.refuse("Reschedule", w.Namespace+"/"+w.Name, "I1 ProofBeforeRelease")
	}
	return true
}

func (m *maker) because() string { return m.found.Class.String() + ": " + m.found.Findings[0].Because }

func (m *maker) hold(step evidence.Step) {
	m.next(nextHeld)
	if !m.openHold() {
		return
	}
	if !afterIsolate(m.seen.Journal.Step) && !m.unsettled() {
		m.advance(step, m.because())
	}
}

func afterIsolate(s evidence.Step) bool {
	switch s {
	case evidence.StepFencing, evidence.StepReleasing, evidence.StepRecovering, evidence.StepResolved:
		return true
	default:
		return false
	}
}

func (m *maker) unsettled() bool {
	for _, a := range m.seen.Journal.Attempts {
		if a.Unsettled() {
			return true
		}
	}
	return false
}

// traffic keeps the endpoints of applications that serve while nobody else can say so, and takes out those of lost ones.
func (m *maker) traffic() {
	for _, a := range m.seen.Apps {
		switch {
		case m.keeps() && a.Serving == evidence.ServingYes && a.Exclusive && !a.EndpointReady:
			m.do(Step{Kind: KeepServing, Target: a.PodUID, Because: a.Pod + " answers its own probes"})
		case m.stops() && a.Serving == evidence.ServingNo && a.EndpointReady:
			m.do(Step{Kind: StopServing, Target: a.PodUID, Because: m.because()})
		}
	}
}

func (m *maker) keeps() bool {
	if !m.found.Policy.KeepTraffic {
		return false
	}
	c := m.found.Class
	return c == verdict.KubeletDown || c == verdict.Blind || c == verdict.Isolated
}

func (m *maker) stops() bool {
	c := m.found.Class
	return c == verdict.Silent || c == verdict.Lost || c == verdict.Hung || c == verdict.KubeletDown
}

// settle records what readings show about attempts that may still be under way.
func (m *maker) settle() {
	for _, a := range m.seen.Journal.Attempts {
		if !a.Unsettled() {
			continue
		}
		switch state := m.power(a.Method); {
		case a.State == evidence.AttemptAccepted && state == evidence.PowerOff:
			m.do(Step{Kind: Settle, Target: a.ID, As: evidence.AttemptSettled, Because: a.Method + " reads Off"})
		case a.State == evidence.AttemptAccepted && state == evidence.PowerOn && a.Overdue:
			m.do(Step{Kind: Settle, Target: a.ID, As: evidence.AttemptSuperseded, Because: a.Method + " took the command and still reads On"})
		case a.State != evidence.AttemptAccepted && a.CallOver && (state == evidence.PowerOff || state == evidence.PowerOn):
			// Nobody knows whether the device took it. The call is over and the device reads: another command may be given, and it must be.
			m.do(Step{Kind: Settle, Target: a.ID, As: evidence.AttemptSuperseded, Because: "no answer came; " + a.Method + " reads " + state.String()})
		}
	}
}

func (m *maker) power(method string) evidence.PowerState {
	for _, p := range m.seen.Power {
		if p.Method == method && p.Identity == evidence.IdentityMatches {
			return p.State
		}
	}
	return evidence.PowerUnread
}

// healthy ends what is open, once this observer itself has heard the kubelet.
func (m *maker) healthy() {
	j := m.seen.Journal
	if !j.Open() {
		m.next(nextHealthy)
		return
	}
	m.next(nextHeld)
	if !m.returned() {
		return
	}
	if j.ProofRecorded || afterIsolate(j.Step) || m.seen.Node.Fenced || m.seen.Node.OutOfService {
		m.returnGate()
		return
	}
	m.disarm()
	m.do(Step{Kind: Close, Because: m.because()})
}

// returned wants the kubelet heard by this observer, and well: a fresh observer's lease is young because the observer is.
func (m *maker) returned() bool {
	n := m.seen.Node
	return n.Read && !n.Missing && n.Ready == evidence.ReadyTrue && m.seen.Lease.Moved && !m.found.Policy.Late(m.seen.Lease)
}

func (m *maker) disarm() {
	for _, w := range m.seen.Writers {
		if w.Held {
			m.do(Step{Kind: DisarmHold, Target: w.UID, Because: m.because()})
		}
	}
}

// returnGate opens only for a new boot with nothing of the old one left (invariant I8).
func (m *maker) returnGate() {
	j := m.seen.Journal
	switch {
	case m.unsettled():
		m.refuse("Return", m.seen.Host.Node, "I8 an attempt is not settled")
		m.next(nextFencing)
	case m.seen.SameBoot():
		m.refuse("Return", m.seen.Host.Node, "I8 the boot ID is still the one that was fenced")
		m.next(nextReturn)
	case j.ProofRecorded && m.oldWriters() > 0:
		m.releaseOldBoot()
	case j.ProofRecorded && len(m.seen.Attachments) > 0:
		m.refuse("Return", m.seen.Host.Node, "I8 volumes are still attached from the fenced boot")
		m.next(nextHeld)
	default:
		m.disarm()
		m.do(Step{Kind: Untaint, Because: "new boot, nothing of the old one left"})
		m.do(Step{Kind: Close, Because: "the host returned with a new boot"})
	}
}

func (m *maker) oldWriters() int {
	n := 0
	for _, w := range m.seen.Writers {
		if w.Held && !w.Finished {
			n++
		}
	}
	return n
}

// releaseOldBoot removes what proof had not yet released when the host came back: the old boot is over, and the fenced taint has
// kept the new one from starting anything.
func (m *maker) releaseOldBoot() {
	m.next(nextRelease)
	if !m.seen.Node.Fenced {
		m.disarm() // nothing kept the kubelet from starting them again: they run in the new boot, in place
		return
	}
	for _, w := range m.seen.Writers {
		if w.Held && !w.Finished {
			m.do(Step{Kind: DeletePod, Target: w.UID, Because: "its boot is over and proof was established"})
			return
		}
	}
}

// notServing fences a host that lives without its kubelet and serves nothing, where the apps ask for it.
func (m *maker) notServing() {
	if m.found.Policy.NotServing != verdict.Act {
		return
	}
	failing := 0
	for _, a := range m.seen.Apps {
		if a.Serving == evidence.ServingYes {
			return
		}
		if a.Serving == evidence.ServingNo && a.FailingFor >= m.found.Policy.ConfirmAfter {
			failing++
		}
	}
	if failing > 0 && failing == len(m.seen.Apps) {
		m.fence("the host lives, its kubelet does not, and no application on it serves (whenNotServing: Fence)")
	}
}

func (m *maker) silent() {
	m.next(nextSuspect)
	if !m.openHold() {
		return
	}
	off := len(m.found.ReadsOff) > 0 && m.found.Rule() == "PowerReadsOff"
	confirmed := off || m.found.Policy.Confirmed(m.seen)
	if afterIsolate(m.seen.Journal.Step) {
		confirmed = true // fenced once, in this incident; the way goes on
	}
	if !confirmed {
		m.advance(evidence.StepSuspected, m.because())
		m.refuse("Fence", m.seen.Host.Node, fmt.Sprintf("confirmAfter: silent for %s of %s, or no other host heard since", m.seen.SilentFor().Round(time.Second), m.found.Policy.ConfirmAfter))
		return
	}
	m.fence(m.because())
}

// fence commands Off, once, by the first method that can be used; or goes on with what was commanded.
func (m *maker) fence(because string) {
	p := m.found.Policy
	m.next(nextFencing)
	if m.unsettled() {
		m.refuse("Fence", m.seen.Host.Node, "I2 an attempt is not settled")
		return
	}
	if len(m.seen.Writers) == 0 {
		m.refuse("Fence", m.seen.Host.Node, "no guarded writer is left on the host")
		return
	}
	if m.commandedAndOff() {
		if !m.seen.Node.Fenced {
			m.do(Step{Kind: Taint, Because: because})
		}
		return // the next reading, made after the taint is seen, is the proof
	}
	method, ok := m.choose()
	if !ok {
		return
	}
	step := Step{Kind: Isolate, Target: method.Method, Level: method.Level, Because: because}
	changesState := method.State != evidence.PowerOff
	switch {
	case p.Paused:
		m.refuse("Fence", m.seen.Host.Node, "mode Paused")
	case p.Shadow:
		m.out.Would = append(m.out.Would, step)
		m.refuse("Fence", m.seen.Host.Node, "mode Shadow")
	case p.OnLoss != verdict.Act:
		m.refuse("Fence", m.seen.Host.Node, "onHostLoss.action Hold")
		m.out.Blocked = "onHostLoss.action is Hold: power the host off by hand, or set FenceAndMigrate"
	case p.ManualApproval && changesState && !m.seen.Journal.Approved:
		m.out.ApprovalRequired = true
		m.refuse("Fence", m.seen.Host.Node, "onHostLoss.approval Manual")
	case changesState && !m.budget.Left():
		m.out.BudgetExhausted = true
		m.refuse("Fence", m.seen.Host.Node, fmt.Sprintf("I5 budget: %d of %d Off commands spent", m.budget.Used, m.budget.Max))
	default:
		m.advance(evidence.StepConfirmed, because)
		m.do(step)
		return
	}
	m.next(nextHeld)
}

// commandedAndOff: this incident gave an Off command, its device took it, and a trusted reading shows Off now.
func (m *maker) commandedAndOff() bool {
	for _, a := range m.seen.Journal.Attempts {
		if a.Commanded() && has(m.found.ReadsOff, a.Method) {
			return true
		}
	}
	return false
}

// choose picks the first method, by level, that reads at all, belongs to this machine, is trusted, and has not been in vain too often.
func (m *maker) choose() (evidence.Power, bool) {
	if len(m.seen.Power) == 0 {
		m.out.Blocked = "no FencingProfile covers this host: power it off by hand and release it with an attestation, or add a profile"
		m.next(nextHeld)
		return evidence.Power{}, false
	}
	why := ""
	for _, p := range m.seen.Power {
		switch {
		case m.seen.Journal.Distrusts(p.Method):
			why = p.Method + " lied in this incident"
		case has(m.found.Contradicted, p.Method):
			why = p.Method + " reads Off while the host shows life"
		case p.Identity == evidence.IdentityDiffers:
			why = p.Method + " belongs to another machine"
		case p.State == evidence.PowerUnread:
			why = p.Method + " cannot be read: " + p.Why
		case p.Identity != evidence.IdentityMatches:
			why = p.Method + " does not say which machine it belongs to"
		case m.tries(p.Method) >= maxTries:
			why = fmt.Sprintf("%s took %d Off commands and had no effect", p.Method, m.tries(p.Method))
		default:
			return p, true
		}
	}
	m.out.Blocked = "no fencing method can be used (" + why + "): repair the device, or power the host off by hand"
	m.next(nextHeld)
	return evidence.Power{}, false
}

func (m *maker) tries(method string) int {
	n := 0
	for _, a := range m.seen.Journal.Attempts {
		if a.Method == method && a.State == evidence.AttemptSuperseded {
			n++
		}
	}
	return n
}

// lost releases, one irreversible step a round, and only on proof that was read in this very snapshot.
func (m *maker) lost() {
	j := m.seen.Journal
	m.next(nextRelease)
	if !m.found.Proof.Fresh {
		m.after()
		return
	}
	if !j.ProofRecorded {
		m.do(Step{Kind: RecordProof, Target: m.found.Proof.Method, Because: m.because()})
	}
	writers := m.unreleased()
	switch {
	case len(writers) > 0 && !m.seen.Node.OutOfService:
		m.advance(evidence.StepReleasing, "proof by "+m.found.Proof.Method)
		m.do(Step{Kind: TaintOutOfService, Because: "proof by " + m.found.Proof.Method})
	case len(writers) > 0:
		m.advance(evidence.StepReleasing, "proof by "+m.found.Proof.Method)
		m.do(Step{Kind: DeletePod, Target: writers[0].UID, Because: "proof by " + m.found.Proof.Method})
	default:
		m.after()
	}
}

func (m *maker) unreleased() []evidence.Writer {
	var out []evidence.Writer
	for _, w := range m.seen.Writers {
		if !w.Finished {
			out = append(out, w)
		}
	}
	return out
}

// after waits for detachment, takes the out-of-service taint off, and waits for the successors.
func (m *maker) after() {
	j := m.seen.Journal
	switch {
	case len(m.seen.Attachments) > 0:
		m.refuse("Recover", m.seen.Host.Node, fmt.Sprintf("%d volumes are still attached", len(m.seen.Attachments)))
	case m.seen.Node.OutOfService:
		m.do(Step{Kind: SwapTaint, Because: "nothing is attached any more"})
		m.advance(evidence.StepRecovering, "every writer is released and detached")
	case j.Step == evidence.StepReleasing || j.Step == evidence.StepFencing || j.Step == evidence.StepConfirmed:
		m.advance(evidence.StepRecovering, "every writer is released and detached")
	case j.Step == evidence.StepRecovering && m.recovered():
		m.advance(evidence.StepResolved, "every application serves elsewhere")
	case j.Step == evidence.StepResolved:
		m.out.Next = nextReturn
	default:
		m.out.Next = nextSuspect
	}
}

// recovered wants a serving successor for every app of the incident.
func (m *maker) recovered() bool {
	for _, app := range m.seen.Journal.Apps {
		serves := false
		for _, s := range m.seen.Successors {
			serves = serves || (s.App == app && s.Serving == evidence.ServingYes)
		}
		if !serves {
			return false
		}
	}
	return true
}

func (m *maker) blind() {
	m.next(nextHeld)
	m.openHold()
	m.refuse("Fence", m.seen.Host.Node, "Blind: "+m.found.Findings[0].Because)
}

func (m *maker) unknown() {
	m.next(nextSuspect)
	for _, method := range m.found.Contradicted {
		if !m.seen.Journal.Distrusts(method) && m.seen.Journal.Open() && m.found.Refuted {
			m.do(Step{Kind: Distrust, Target: method, Because: m.because()})
		}
	}
	if !m.openHold() {
		return
	}
	if m.found.Refuted {
		m.refuteFence()
		return
	}
	m.refuse("Fence", m.seen.Host.Node, "Unknown: "+m.found.Findings[0].Because)
}

// refuteFence fences a boot that was declared lost and speaks: at once, and outside the budget.
func (m *maker) refuteFence() {
	m.next(nextFencing)
	if m.unsettled() {
		m.refuse("Fence", m.seen.Host.Node, "I2 an attempt is not settled")
		return
	}
	if method, ok := m.choose(); ok && !m.found.Policy.Paused && !m.found.Policy.Shadow {
		m.do(Step{Kind: Isolate, Target: method.Method, Level: method.Level, Because: m.because()})
	}
}

func has(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
