// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const (
	// holdUp is how long a machine may go on answering after its device has begun to read Off: a power supply holds up, a probe was in flight.
	// Later life means that the device lied.
	holdUp = time.Second
	// quiet is how long nothing may have been heard before a reading of Off is believed, however long the device has read Off.
	quiet = 3 * time.Second
)

// noDevice is the gap in the proof where nothing else is known.
const noDevice = "no device reads Off for this machine"

// sight is a snapshot with what the rules ask of it worked out once.
type sight struct {
	evidence.Snapshot
	policy Policy

	late         bool
	serving      []string // pods that answer their own probes
	failing      []string // pods that fail them
	readsOff     []string // methods whose reading of Off is believed
	contradicted []string // methods that read Off although the host has shown life since
	outdated     []string // methods whose last word was Off, that cannot be read now, and after which the host has shown life
	proof        Proof
	proofGap     string // why a device that reads Off proves nothing yet
}

func look(s evidence.Snapshot, p Policy) sight {
	in := sight{Snapshot: s, policy: p, late: p.Late(s.Lease), proofGap: noDevice}
	for _, a := range s.Apps {
		switch {
		case !a.Exclusive: // whoever answers there, or does not, may be another pod
		case a.Serving == evidence.ServingYes:
			in.serving = append(in.serving, a.Pod)
		case a.Serving == evidence.ServingNo:
			in.failing = append(in.failing, a.Pod)
		}
	}
	for _, pw := range s.Power {
		if pw.Said == evidence.PowerOff {
			in.weigh(pw)
		}
	}
	in.prove()
	return in
}

// prove puts the proof together: of every method whose reading of Off proves something, as few as cut every volume of every writer.
func (in *sight) prove() {
	var proving []evidence.Power
	for _, pw := range in.Power {
		if !slices.Contains(in.readsOff, pw.Method) {
			continue
		}
		if gap := in.gap(pw); gap != "" {
			in.proofGap = gap
			continue
		}
		proving = append(proving, pw)
	}
	if len(proving) == 0 {
		return
	}
	writers := in.Unreleased()
	if volume := evidence.Uncut(writers, proving); volume != "" {
		if in.proofGap == noDevice {
			in.proofGap = "what is proven off does not cut volume " + volume
		}
		return
	}
	in.proof = Proof{Fresh: true}
	for _, pw := range evidence.Least(writers, proving) {
		attempt, _ := commandedBy(in.Journal, pw.Method)
		in.proof.Parts = append(in.proof.Parts, Part{Method: pw.Method, Attempt: attempt, Strength: pw.Strength})
		if in.proof.Strength == evidence.StrengthNone || pw.Strength < in.proof.Strength {
			in.proof.Strength = pw.Strength
		}
	}
}

// weigh believes a device that says Off, or says why not. Life that came after Off refutes it; older life does not.
func (in *sight) weigh(pw evidence.Power) {
	if in.Journal.Distrusts(pw.Method) {
		in.proofGap = pw.Method + " lied in this incident"
		return
	}
	rank, who := in.Life(pw.OffSince + evidence.Instant(holdUp))
	readable := pw.State == evidence.PowerOff && pw.Identity == evidence.IdentityMatches
	switch {
	case !readable && rank != evidence.RankNone:
		// It may have lied, or the host may have been switched on since.
		in.outdated = append(in.outdated, pw.Method)
		return
	case !readable:
		in.proofGap = pw.Method + " cannot be read now"
		return
	case rank != evidence.RankNone:
		in.contradicted = append(in.contradicted, pw.Method)
		in.proofGap = pw.Method + " reads Off, but " + who + " showed life since"
		return
	}
	if other := in.readOnSince(pw); other != "" {
		in.proofGap = fmt.Sprintf("%s reads Off, but %s reads On", pw.Method, other)
		return
	}
	if rank, who = in.Life(pw.At - evidence.Instant(quiet)); rank != evidence.RankNone {
		in.proofGap = fmt.Sprintf("%s reads Off, but %s showed life a moment ago", pw.Method, who)
		return
	}
	in.readsOff = append(in.readsOff, pw.Method)
}

// readOnSince names a trusted device that contradicts one that reads Off: one of this machine and of the same coverage reads On, or has read On since the
// other began to read Off and cannot be read now.
func (in *sight) readOnSince(off evidence.Power) string {
	for _, pw := range in.Power {
		on := pw.State == evidence.PowerOn && pw.Identity == evidence.IdentityMatches
		wasOn := pw.State != evidence.PowerOff && pw.HasOn && pw.LastOn >= off.OffSince
		if (on || wasOn) && sameThing(pw, off) && !in.Journal.Distrusts(pw.Method) {
			return pw.Method
		}
	}
	return ""
}

// sameThing reports whether two methods speak of the same thing, so that On of one contradicts Off of the other: a volume may be cut while its host is on.
// A method whose coverage is not known may speak of anything.
func sameThing(a, b evidence.Power) bool {
	if (!a.CoversHost && len(a.CoversDrivers) == 0) || (!b.CoversHost && len(b.CoversDrivers) == 0) || (a.CoversHost && b.CoversHost) {
		return true
	}
	return !a.CoversHost && !b.CoversHost && slices.ContainsFunc(a.CoversDrivers, b.Covers)
}

// gap says why a device that reads Off does not yet prove, in this very snapshot, that nothing on the host can write to what the device cuts
// (invariants I1, I3, I4). It is empty when it does.
func (in *sight) gap(pw evidence.Power) string {
	_, commanded := commandedBy(in.Journal, pw.Method)
	switch {
	case !in.Node.Read || in.Node.Missing || !in.Lease.Read:
		return "the Node or its Lease cannot be read"
	case !in.Listed:
		return "the pods of the host cannot be listed"
	case !in.SameBoot():
		return "the Node has another boot ID"
	case !in.SameMachine():
		return "the Node names another machine"
	case !commanded:
		return pw.Method + " reads Off, but Off was not commanded in this incident"
	case !in.Node.Fenced:
		return "the Node does not carry the fenced taint yet"
	case pw.At < in.Node.At:
		return pw.Method + " was read before the taint was seen"
	case !in.late && !in.askedInVain(pw.OffSince):
		return "nothing has been asked in vain since " + pw.Method + " reads Off"
	case !in.Lease.Missing && in.Lease.Age <= Renewed(in.Lease):
		return "the lease is only " + span(in.Lease.Age) + " old, and could still be renewed if " + pw.Method + " lied"
	default:
		return pw.Weak(in.policy.MinimumProof)
	}
}

// askedInVain reports whether the host was given the chance to contradict: its port was asked since the instant given, and did not answer.
func (in *sight) askedInVain(since evidence.Instant) bool {
	return in.Port.Silent() && in.Port.Asked >= since
}

func commandedBy(j evidence.Journal, method string) (id string, ok bool) {
	if !j.Open() {
		return "", false
	}
	for _, a := range j.Attempts {
		if a.Method == method && a.Commanded() {
			id, ok = a.ID, true
		}
	}
	return id, ok
}

// lost reports whether the control plane has lost the kubelet: by this observer's own watch, or, before this observer has seen the
// lease move at all, by the word of the node lifecycle controller, which has watched for longer.
func (in sight) lost() bool {
	return in.late || (in.Node.Ready == evidence.ReadyUnknown && !in.Lease.Moved)
}

// suspicious is true when anything at all speaks against the host.
func (in sight) suspicious() bool {
	return in.late || in.Node.Ready != evidence.ReadyTrue || len(in.failing) > 0
}

// heardLately names a pod that is not being probed, and that answered within confirmAfter: it may serve as well as not.
func (in sight) heardLately() bool {
	for _, a := range in.Apps {
		if a.Exclusive && a.Serving == evidence.ServingUnread && a.HasAnswer && in.At.Sub(a.LastAnswer) < in.policy.ConfirmAfter {
			return true
		}
	}
	return false
}

// renewedWhileFailing reports whether the lease was renewed so long after the last answer of an application that fails now, that the host was alive
// then. A host that died has died within one probe period of its last answer, and confirmAfter is at least twice that (admission sees to it).
func (in sight) renewedWhileFailing() bool {
	if in.late || !in.Lease.Moved {
		return false
	}
	for _, a := range in.Apps {
		if slices.Contains(in.failing, a.Pod) && in.Lease.NotBefore.Sub(in.At)+a.FailingFor >= in.policy.ConfirmAfter/2 {
			return true
		}
	}
	return false
}

// kernelRefuses names a pod for which the host's kernel answers in the application's stead.
func (in sight) kernelRefuses() (pod string, ok bool) {
	for _, a := range in.Apps {
		if a.Kernel && a.Exclusive {
			return a.Pod, true
		}
	}
	return "", false
}
