// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verdict names what has happened to a host, from everything known at one moment.
//
// Rules are an ordered slice of named pure functions. All are evaluated and every finding is kept; the first that
// fires gives the class. The names of classes and rules are API: they stand in status and in docs/spec/verdicts.md.
package verdict

import (
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Class is the verdict on a host. The zero value is illegal.
type Class uint8

// Classes; docs/spec/verdicts.md says what each means and how it ends.
const (
	Healthy Class = iota + 1
	KubeletDown
	Hung
	RuntimeDown
	AppDown
	Isolated
	Silent
	Lost
	Blind
	Unknown
)

// String returns the name used in status.
func (c Class) String() string {
	names := [...]string{"Invalid", "Healthy", "KubeletDown", "Hung", "RuntimeDown", "AppDown", "Isolated", "Silent", "Lost", "Blind", "Unknown"}
	if int(c) >= len(names) {
		return names[0]
	}
	return names[c]
}

// Careful orders the choices of several apps on one host: the higher is the more careful one.
type Careful uint8

const (
	// Act: what the app allows without a human.
	Act Careful = iota
	// Hold: wait and alert.
	Hold
)

// Policy is what the apps on the host, their profile and the cluster's GuardConfig ask for together.
type Policy struct {
	// StaleAfter replaces the lease's own duration as the measure of lateness; zero keeps it.
	StaleAfter time.Duration
	// ConfirmAfter is how long every plane must be silent before a host whose power reads On counts as confirmed lost.
	ConfirmAfter time.Duration
	// MinimumProof is the weakest proof that lets writers be released.
	MinimumProof evidence.Strength
	// AwaitLease has a proof wait for the kubelet's lease also where the host's own agent would have spoken up before (Snapshot.AgentWouldHaveCalled).
	AwaitLease bool
	// BlindPercent of hosts with a late lease, and at least two, is too much to be true.
	BlindPercent int
	// BlindAPISilent is how long the API may be silent before the observer's own view is bad.
	BlindAPISilent time.Duration

	// Shadow: plan, tell, and touch nothing but holds. Paused: hold and plan nothing.
	Shadow bool
	Paused bool
	// OnLoss Act fences and migrates a host that is lost.
	OnLoss Careful
	// NotServing Act fences a host that lives without its kubelet or its runtime, and on which no application serves.
	NotServing Careful
	// Isolated Act fences a host that lives and is cut off, and on which no application answers.
	Isolated Careful
	// ManualApproval wants a human's word before an Off command that changes state.
	ManualApproval bool
	// KeepTraffic puts endpoints back while the application's own probes pass and the kubelet cannot say so.
	KeepTraffic bool
	// RestartKubelet has the kubelet of a host that lives restarted, where that would help.
	RestartKubelet bool
	// ResetConnections has connections to the pods of a lost host reset on the hosts that are left.
	ResetConnections bool
}

// Finding is what one rule says.
type Finding struct {
	Rule    string
	Says    Class
	Because string
}

// Found is the verdict with everything that was found.
type Found struct {
	Class Class
	// Findings holds the findings of every rule that fired, in order; the first gave the class.
	Findings []Finding
	Policy   Policy
	// Proof is set only when the class is Lost.
	Proof Proof
	// Gap says why there is no proof in this snapshot; empty when there is.
	Gap string
	// Word says what is proof without any device, or would be but for the taint: a human's word, with its name, or the host's own watchdog.
	Word string
	// ReadsOff names the trusted methods whose device reads Off for the right machine, with no sign of life since.
	ReadsOff []string
	// Contradicted names the methods whose device reads Off although the host has shown life since.
	Contradicted []string
	// Refuted is true when the host was declared lost, and then showed life in the same boot.
	Refuted bool
	// Liars names the methods that must not be trusted again in this incident: their word was contradicted, or the proof that was refuted
	// rested on it.
	Liars []string
}

// Rule returns the name of the rule that gave the class.
func (f Found) Rule() string {
	if len(f.Findings) == 0 {
		return ""
	}
	return f.Findings[0].Rule
}

// Blind reports whether the observer's own view was found bad, whatever the class.
func (f Found) Blind() bool {
	return f.has("ObserverDeaf") || f.has("ManyHostsLate") || f.has("WitnessesSilent")
}

// Proof is why nothing on the host can write any more, in its boot. The zero value is no proof.
type Proof struct {
	// Parts are the methods that together cut every volume of every writer that is not released, in order of level.
	Parts []Part
	// Strength is that of the weakest part.
	Strength evidence.Strength
	// Fresh is true when the proof was read in this very snapshot; only a fresh proof releases (invariant I6).
	Fresh bool
}

// Part is what one method contributes to a proof.
type Part struct {
	Method   string
	Attempt  string
	Strength evidence.Strength
}

// Methods names the methods of the proof.
func (p Proof) Methods() string {
	var names []string
	for _, part := range p.Parts {
		names = append(names, part.Method)
	}
	return strings.Join(names, ", ")
}

// measure is the span by which a lease is judged: StaleAfter, or the lease's own duration, or what a kubelet asks for by default.
func (p Policy) measure(l evidence.Lease) time.Duration {
	switch {
	case p.StaleAfter > 0:
		return p.StaleAfter
	case l.Duration > 0:
		return l.Duration
	default:
		return 40 * time.Second
	}
}

// Late reports whether the kubelet has missed renewals: nothing was seen to move for three eighths of the lease's duration
// (a kubelet renews at a quarter of it), or of StaleAfter when that is set.
func (p Policy) Late(l evidence.Lease) bool {
	return l.Read && (l.Missing || l.Age > p.measure(l)*3/8)
}

// LateIn is how long it takes until a lease that nobody renews any more is late; zero where it is late already, or was not read.
func (p Policy) LateIn(l evidence.Lease) time.Duration {
	if !l.Read || p.Late(l) {
		return 0
	}
	return p.measure(l)*3/8 - l.Age + time.Millisecond
}

// Expired reports whether the lease has run out, by its own duration or by StaleAfter: a kubelet that was well would have renewed it four times over.
func (p Policy) Expired(l evidence.Lease) bool { return l.Read && l.Age > p.measure(l) }

// Contrast is how long after a host's last sign of life some other host must have renewed its lease for the silence to be the host's own. It is five
// sixteenths of the lease's duration: when a cluster falls silent all at once, a host that was well had renewed within the quarter before
// (and a little for jitter), so no other can have renewed that much later.
func (p Policy) Contrast(l evidence.Lease) time.Duration { return p.measure(l) * 5 / 16 }

// Renewed is the age from which on a lease says that a kubelet which was well would have renewed it: nine thirty-seconds of the lease's duration, by which
// the kubelet itself goes. It waits a quarter and up to a twenty-fifth of that for its jitter, counted from the answer to the last renewal; what is left, a
// thirty-second less that jitter (0.85 s of 40 s), is for that answer and the next request on their way. docs/adr/0005-what-a-lying-device-is-given.md has the arithmetic.
func Renewed(l evidence.Lease) time.Duration { return Policy{}.measure(l) * 9 / 32 }

// Confirmed reports whether silence has lasted long enough, while others were heard, to fence a host whose power reads On.
//
// It wants four things at once: no sign of life on any plane for ConfirmAfter; the lease late as well; a renewal by some other host,
// not the observer's own, that came well after this host's last sign of life (see Contrast); and, where agents should answer, a quorum of them that has looked
// for the host in vain, with none that hears it. Without the third the observer cannot tell a
// dead host from its own deafness: renewals are not in step, and when all stop at once one host is late several seconds before the others.
// docs/adr/0004-contrast-before-confirming.md has the arithmetic.
func (p Policy) Confirmed(s evidence.Snapshot) bool {
	_, heard := s.WitnessHears()
	return s.SilentFor() >= p.ConfirmAfter && p.Late(s.Lease) && p.Contrasted(s) && s.WitnessQuorum() && !heard
}

// Contrasted reports whether another host was heard when this one, had it been well, would have been heard again.
func (p Policy) Contrasted(s evidence.Snapshot) bool {
	return s.Cluster.HasOther && s.Cluster.OtherNotBefore.Sub(s.LastLife()) > p.Contrast(s.Lease)
}

// Decide gives the verdict. It evaluates every rule; the first that fires gives the class.
func Decide(s evidence.Snapshot, p Policy) Found {
	in := look(s, p)
	found := Found{Policy: p, Word: in.word, ReadsOff: in.readsOff, Contradicted: in.contradicted}
	if !in.proof.Fresh {
		found.Gap = in.proofGap
	}
	for _, r := range rules {
		if because, fires := r.when(in); fires {
			found.Findings = append(found.Findings, Finding{Rule: r.name, Says: r.says, Because: because})
		}
	}
	found.Class = found.Findings[0].Says
	switch found.Rule() {
	case "VerifiedOff", "SelfFenced", "AttestedDead":
		found.Proof = in.proof
	case "LossStands":
		found.Proof = Proof{Parts: in.proof.Parts, Strength: in.proof.Strength}
	}
	found.Refuted = found.has("ProofRefuted")
	found.Liars = in.liars(found.Refuted)
	return found
}

// liars are the methods that were contradicted and, once proof is refuted, those that it rested on: commanded, and seen Off.
func (in sight) liars(refuted bool) []string {
	if !in.Journal.Open() {
		return nil
	}
	out := slices.Clone(in.contradicted)
	if refuted && in.Journal.Word != "" {
		out = append(out, in.Journal.Word)
	}
	if in.outlived() && !slices.Contains(out, evidence.SelfFencing) {
		out = append(out, evidence.SelfFencing)
	}
	for _, a := range in.Journal.Attempts {
		if refuted && a.State == evidence.AttemptSettled && !slices.Contains(out, a.Method) {
			out = append(out, a.Method)
		}
	}
	return out
}

func (f Found) has(rule string) bool {
	for _, x := range f.Findings {
		if x.Rule == rule {
			return true
		}
	}
	return false
}

// Rules lists the names of all rules with the class that each gives, in order.
func Rules() []Finding {
	out := make([]Finding, 0, len(rules))
	for _, r := range rules {
		out = append(out, Finding{Rule: r.name, Says: r.says})
	}
	return out
}
