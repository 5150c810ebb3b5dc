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
	hears        string   // what a vantage point hears of the host at present, in words; empty when none hears anything
	calledDead   bool     // a quorum of vantage points has given the host up, and none hears it
	serving      []string // pods that answer their own probes
	failing      []string // pods that fail them
	readsOff     []string // methods whose reading of Off is believed
	contradicted []string // methods that read Off although the host has shown life since
	outdated     []string // methods whose last word was Off, that cannot be read now, and after which the host has shown life
	proof        Proof
	proofGap     string // why a device that reads Off proves nothing yet
	word         string // what would be proof without a device, or is
}

func look(s evidence.Snapshot, p Policy) sight {
	in := sight{Snapshot: s, policy: p, late: p.Late(s.Lease), proofGap: noDevice, calledDead: s.WitnessesCallItDead()}
	in.hears, _ = s.WitnessHears()
	for _, a := range s.Apps {
		switch {
		case !a.Exclusive: // whoever answers there, or does not, may be another pod
		case in.calledDead && a.Serving == evidence.ServingYes && a.FailingFor > 0: // its thresholds are not reached yet, and nobody hears it either
		case a.Serving == evidence.ServingYes:
			in.serving = append(in.serving, a.Pod)
		case a.Serving == evidence.ServingNo:
			in.failing = append(in.failing, a.Pod)
		}
	}
	for _, pw := range s.Power {
		if pw.Said.Dead() {
			in.weigh(pw)
		}
	}
	in.prove()
	if !in.proof.Fresh {
		in.countOut()
	}
	if !in.proof.Fresh && in.word == "" {
		in.attest()
	}
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
		in.proof.Parts = append(in.proof.Parts, Part{Method: pw.Method, Attempt: attempt, Strength: pw.Proves()})
		if in.proof.Strength == evidence.StrengthNone || pw.Proves() < in.proof.Strength {
			in.proof.Strength = pw.Proves()
		}
	}
}

// countOut takes the host's own watchdog for a proof where no device gives one: its agent said that the host is reset unless it says another word, has said none for
// longer than that takes, and the API had every word that the host could go on. It wants all that a human's word does.
// docs/adr/0015-a-host-that-fences-itself.md has the arithmetic.
func (in *sight) countOut() {
	if !in.Witnesses.On || in.AgentLease.Due() == 0 {
		return
	}
	if gap := in.countGap(in.AgentLease); gap != "" {
		in.proofGap = "self-fence: " + gap
		return
	}
	in.word = evidence.SelfFencing
	if !in.Node.Fenced {
		in.proofGap = "self-fence: the Node does not carry the fenced taint yet"
		return
	}
	in.proof = Proof{Fresh: true, Strength: evidence.StrengthSelfFenced, Parts: []Part{{Method: evidence.SelfFencing, Attempt: evidence.SelfFencing, Strength: evidence.StrengthSelfFenced}}}
}

// countGap says why a word that announces a reset proves nothing, but for the taint; it is empty when it does.
func (in *sight) countGap(l evidence.AgentLease) string {
	switch {
	case in.policy.MinimumProof > evidence.StrengthSelfFenced:
		return fmt.Sprintf("%s is asked for (minimumProof)", in.policy.MinimumProof)
	case in.Journal.Distrusts(evidence.SelfFencing) || in.outlived():
		return "the host has outlived its watchdog in this incident"
	case !l.Read || l.Missing:
		return "the Lease of the host's agent cannot be read"
	case l.BootID == "" || l.BootID != in.Host.BootID:
		return "the Lease is of boot " + short(l.BootID) + ", and not of the one in question"
	case l.Asked < in.Node.At:
		return "the Lease was read before the Node"
	case l.Stood() < l.Due():
		return fmt.Sprintf("the word has stood for %s of %s", span(l.Stood()), span(l.Due()))
	}
	return in.wordGap(l.Since + evidence.Instant(l.Due()))
}

// outlived reports whether this boot has shown life after its watchdog was to have reset it. Life that names no boot may be the next one's: it is waited for, and
// no sign that the watchdog failed.
func (in *sight) outlived() bool {
	l := in.AgentLease
	if !in.Witnesses.On || l.BootID == "" || l.BootID != in.Host.BootID {
		return false
	}
	due := l.Since + evidence.Instant(l.Due())
	_, spoke := in.AgentSpoke(due)
	return l.Outlived || (l.Due() > 0 && (spoke || (in.Node.Spoke && in.SameBoot() && in.Node.SpokeNotBefore >= due)))
}

// attest takes a human's word for a proof where no device gives one. It is the weakest there is: it wants all that a host whose power reads On must show before
// it is fenced, and no device that says otherwise.
func (in *sight) attest() {
	for _, a := range in.Attestations {
		if gap := in.attestGap(a); gap != "" {
			in.proofGap = "attestation " + a.Name + ": " + gap
			continue
		}
		in.word = "attestation " + a.Name
		if !in.Node.Fenced {
			in.proofGap = "attestation " + a.Name + ": the Node does not carry the fenced taint yet"
			continue
		}
		in.proof = Proof{Fresh: true, Strength: evidence.StrengthAttested, Parts: []Part{{Method: evidence.Attesting, Attempt: a.Name, Strength: evidence.StrengthAttested}}}
		return
	}
}

// attestGap says why an attestation proves nothing, but for the taint; it is empty when it does.
func (in *sight) attestGap(a evidence.Attestation) string {
	switch {
	case in.policy.MinimumProof > evidence.StrengthAttested:
		return fmt.Sprintf("%s is asked for (minimumProof)", in.policy.MinimumProof)
	case in.Journal.Distrusts(evidence.Attesting):
		return "one was refuted in this incident"
	case a.BootID == "" || a.BootID != in.Host.BootID:
		return "it is of boot " + short(a.BootID) + ", and not of the one in question"
	case a.Expired:
		return "it has expired"
	case a.At < in.Node.At:
		return "it was read before the Node"
	}
	return in.wordGap(a.Seen)
}

// wordGap says why no word can be a proof that stands for what was so from the instant given on.
func (in *sight) wordGap(from evidence.Instant) string {
	_, since := in.Life(from)
	switch {
	case in.Journal.ProofRecorded && len(in.contradicted)+len(in.outdated) > 0:
		return "a device on which the loss rested said Off, and the host showed life since"
	case !in.Journal.Open():
		return "no incident is open"
	case !in.Node.Read || in.Node.Missing || !in.Lease.Read || !in.Listed:
		return "the Node, its Lease or its pods cannot be read"
	case !in.SameBoot():
		return "the Node has another boot ID"
	case !in.SameMachine():
		return "the Node names another machine"
	case since != "":
		return since + " showed life since"
	case !in.policy.Confirmed(in.Snapshot):
		return "the silence is not confirmed"
	case !in.Port.Silent():
		return "the port has not been asked in vain"
	}
	for _, pw := range in.Power {
		on := pw.State == evidence.PowerOn && pw.Identity == evidence.IdentityMatches
		if (on || (pw.HasOn && pw.LastOn >= from)) && !in.Journal.Distrusts(pw.Method) {
			return pw.Method + " reads On, or has since"
		}
	}
	return ""
}

// weigh believes a device that says Off, or says why not. Life that came after Off refutes it; older life does not.
func (in *sight) weigh(pw evidence.Power) {
	if in.Journal.Distrusts(pw.Method) {
		in.proofGap = pw.Method + " lied in this incident"
		return
	}
	rank, who := in.Life(pw.OffSince + evidence.Instant(holdUp))
	readable := pw.State.Dead() && pw.Identity == evidence.IdentityMatches
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
		in.proofGap = pw.Method + " reads " + pw.State.String() + ", but " + who + " showed life since"
		return
	}
	if other := in.readOnSince(pw); other != "" {
		in.proofGap = fmt.Sprintf("%s reads %s, but %s reads On", pw.Method, pw.State, other)
		return
	}
	if rank, who = in.Life(pw.At - evidence.Instant(quiet)); rank != evidence.RankNone {
		in.proofGap = fmt.Sprintf("%s reads %s, but %s showed life a moment ago", pw.Method, pw.State, who)
		return
	}
	in.readsOff = append(in.readsOff, pw.Method)
}

// readOnSince names a trusted device that contradicts one that reads Off: one of this machine and of the same coverage reads On, or has read On since the
// other began to read Off and cannot be read now.
func (in *sight) readOnSince(off evidence.Power) string {
	for _, pw := range in.Power {
		on := pw.State == evidence.PowerOn && pw.Identity == evidence.IdentityMatches
		wasOn := !pw.State.Dead() && pw.HasOn && pw.LastOn >= off.OffSince
		if (on || wasOn) && sameThing(pw, off) && !in.Journal.Distrusts(pw.Method) {
			return pw.Method
		}
	}
	return ""
}

// sameThing reports whether two methods speak of the same thing, so that On of one contradicts Off of the other: a volume may be cut while its host is on.
// A method whose coverage is not known may speak of anything.
func sameThing(a, b evidence.Power) bool {
	if (!a.Covers("") && len(a.CoversDrivers) == 0) || (!b.Covers("") && len(b.CoversDrivers) == 0) || (a.Covers("") && b.Covers("")) {
		return true
	}
	return !a.Covers("") && !b.Covers("") && slices.ContainsFunc(a.CoversDrivers, b.Covers)
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
	case !commanded && pw.State != evidence.PowerGone: // there is nothing left to command
		return pw.Method + " reads Off, but Off was not commanded in this incident"
	case !in.Journal.Open():
		return "no incident is open"
	case !in.Node.Fenced:
		return "the Node does not carry the fenced taint yet"
	case pw.At < in.Node.At:
		return pw.Method + " was read before the taint was seen"
	case !in.late && !in.askedInVain(pw.OffSince):
		return "nothing has been asked in vain since " + pw.Method + " reads Off"
	case !in.Lease.Missing && in.Lease.Age <= Renewed(in.Lease) && (in.policy.AwaitLease || !in.AgentWouldHaveCalled()):
		return "the lease is only " + span(in.Lease.Age) + " old, and could still be renewed if " + pw.Method + " lied"
	case in.hears != "": // gossip may lag, and has no date: it refutes no device, and is waited for
		return in.hears
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
	return in.late || in.Node.Ready != evidence.ReadyTrue || len(in.failing) > 0 || in.calledDead
}

// silentToUs is true of a host that application, lease or vantage points raise the suspicion of, and of which none of our own planes hears anything.
func (in sight) silentToUs() bool {
	if len(in.serving) > 0 || (len(in.failing) == 0 && !in.late && !in.calledDead) || !in.Port.Silent() {
		return false
	}
	_, refuses := in.kernelRefuses()
	return !refuses
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

// renewedWhileFailing reports whether the lease was renewed so long after the last answer of an application that fails now, or after every vantage point had
// given the host up, that the host was alive then. A host that died has died within one probe period of its last answer, and confirmAfter is at least twice
// that (admission sees to it); and before any gossip gave it up.
func (in sight) renewedWhileFailing() bool {
	if in.late || !in.Lease.Moved {
		return false
	}
	if since, known := in.GivenUp(); known && in.calledDead && in.Lease.NotBefore >= since {
		return true
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
