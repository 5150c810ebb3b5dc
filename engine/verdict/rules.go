// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

type rule struct {
	name string
	says Class
	when func(sight) (because string, fires bool)
}

// rules in order of precedence. docs/spec/verdicts.md has one line for each.
var rules = []rule{
	{"ProofRefuted", Unknown, proofRefuted},
	{"VerifiedOff", Lost, verifiedOff},
	{"SelfFenced", Lost, selfFenced},
	{"AttestedDead", Lost, attestedDead},
	{"OtherMachine", Unknown, otherMachine},
	{"NewBoot", Healthy, newBoot},
	{"LossStands", Lost, lossStands},
	{"ObserverDeaf", Blind, observerDeaf},
	{"NotRead", Unknown, notRead},
	{"NodeMissing", Unknown, nodeMissing},
	{"PowerReadsOff", Silent, powerReadsOff},
	{"DeviceContradicted", Unknown, deviceContradicted},
	{"ManyHostsLate", Blind, manyHostsLate},
	{"KubeletSaysRuntimeDown", RuntimeDown, runtimeDown},
	{"WriterAnswers", KubeletDown, writerAnswers},
	{"UserspaceAnswers", KubeletDown, userspaceAnswers},
	{"CutFromAPI", Isolated, cutFromAPI},
	{"HeardByWitness", KubeletDown, heardByWitness},
	{"OnlyKernelAnswers", Hung, onlyKernelAnswers},
	{"OnlyLeaseMoves", Isolated, onlyLeaseMoves},
	{"OutOfOurReach", Isolated, outOfOurReach},
	{"WitnessesSilent", Blind, witnessesSilent},
	{"NothingAnswers", Silent, nothingAnswers},
	{"LeaseFreshAppFails", AppDown, appFails},
	{"LeaseFresh", Healthy, leaseFresh},
	{"NotEnoughSeen", Unknown, notEnoughSeen},
}

func proofRefuted(in sight) (string, bool) {
	if !in.Journal.Open() || !in.Journal.ProofRecorded || !in.SameBoot() || in.Node.Missing {
		return "", false
	}
	if liar := in.proofRestsOnLiar(); liar != "" {
		return "the proof rested on " + liar + ", which lied", true
	}
	if len(in.contradicted) > 0 {
		_, who := in.Life(in.power(in.contradicted[0]).OffSince)
		return fmt.Sprintf("%s reads %s, but %s showed life since", in.contradicted[0], in.power(in.contradicted[0]).Said, who), true
	}
	// A status names its boot, and a boot that a device has read Off does not come back: what counts is when it began to read Off.
	began, seen := in.off(offBegan)
	if in.Node.Spoke && (!seen || in.Node.SpokeNotBefore >= began) {
		return "the kubelet posts status for a boot that was declared lost", true
	}
	if !seen {
		began = in.Journal.ProvenSince + evidence.Instant(holdUp)
	}
	if to, spoke := in.AgentSpoke(began); spoke {
		return "the host's agent answered " + to + " from a boot that was declared lost", true
	}
	off, seen := in.off(lastOff)
	for _, a := range in.Apps {
		// The fenced taint keeps a new boot from starting the pod, and no other sign of life names its boot.
		if seen && in.Node.Fenced && a.Exclusive && a.HasAnswer && a.LastAnswer >= off+evidence.Instant(holdUp) {
			return a.Pod + " answers from a boot that was declared lost", true
		}
	}
	return "", false
}

// proofRestsOnLiar names a distrusted method that was commanded, unless trusted ones that have been seen off by command cut all that it cuts.
func (in sight) proofRestsOnLiar() string {
	var trusted []evidence.Power
	for _, a := range in.Journal.Attempts {
		if !in.Journal.Distrusts(a.Method) && a.State == evidence.AttemptSettled {
			trusted = append(trusted, in.power(a.Method))
		}
	}
	for _, a := range in.Journal.Attempts {
		if in.Journal.Distrusts(a.Method) && a.State != evidence.AttemptFailed && !cutsAll(trusted, in.power(a.Method)) {
			return a.Method
		}
	}
	return ""
}

// cutsAll reports whether the methods cut together whatever another one cuts.
func cutsAll(by []evidence.Power, other evidence.Power) bool {
	covers := func(driver string) bool {
		return slices.ContainsFunc(by, func(p evidence.Power) bool { return p.Covers(driver) })
	}
	if other.CoversHost {
		return covers("")
	}
	return !slices.ContainsFunc(other.CoversDrivers, func(driver string) bool { return !covers(driver) })
}

// power is what is known of a method; one that is not configured any more is taken to cover the host, as it must have when it was chosen alone.
func (in sight) power(method string) evidence.Power {
	for _, pw := range in.Power {
		if pw.Method == method {
			return pw
		}
	}
	return evidence.Power{Method: method, CoversHost: true}
}

// off is the latest moment, over the trusted devices of this machine that this observer has read Off, of what a device says of its Off; for a proof that is no
// device's, not before that was first seen.
func (in sight) off(when func(evidence.Power) evidence.Instant) (latest evidence.Instant, seen bool) {
	if in.Journal.Word != "" {
		latest, seen = in.Journal.ProvenSince, true
	}
	for _, pw := range in.Power {
		if at := when(pw); pw.HasOff && !in.Journal.Distrusts(pw.Method) && (!seen || at > latest) {
			latest, seen = at, true
		}
	}
	return latest, seen
}

// offBegan is when a device began to read Off, with the time for which a machine may answer on.
func offBegan(p evidence.Power) evidence.Instant { return p.OffSince + evidence.Instant(holdUp) }

func lastOff(p evidence.Power) evidence.Instant { return p.LastOff }

func verifiedOff(in sight) (string, bool) {
	if !in.proof.Fresh || in.proof.Strength < evidence.StrengthPowerOff {
		return "", false
	}
	var parts []string
	for _, p := range in.proof.Parts {
		if p.Strength == evidence.StrengthGone {
			return p.Method + " says that the machine does not exist any more, and said so after the Node was tainted", true
		}
		parts = append(parts, fmt.Sprintf("%s was commanded Off (%s)", p.Method, p.Attempt))
	}
	verb := "it reads Off"
	if len(parts) > 1 {
		verb = "all of them read Off"
	}
	return fmt.Sprintf("%s, the Node is tainted, and %s since", strings.Join(parts, ", "), verb), true
}

func selfFenced(in sight) (string, bool) {
	if !in.proof.Fresh || in.proof.Strength != evidence.StrengthSelfFenced {
		return "", false
	}
	return fmt.Sprintf("its watchdog resets the host within %s of a word that has stood for %s, every plane is silent while others are heard, and the Node is tainted",
		span(in.AgentLease.Bound), span(in.AgentLease.Stood())), true
}

func attestedDead(in sight) (string, bool) {
	if !in.proof.Fresh || in.proof.Strength != evidence.StrengthAttested {
		return "", false
	}
	return "a human attests that this boot is over (" + in.proof.Parts[0].Attempt + "), every plane is silent while others are heard, and the Node is tainted", true
}

// lossIsComplete is true when proof was established and nothing is left to release.
func (in sight) lossIsComplete() bool {
	return in.Journal.Open() && in.Journal.ProofRecorded && in.Listed && len(in.Unreleased()) == 0
}

// otherMachine holds while another machine runs under the Node's name: its boot ID says nothing of the first machine's.
func otherMachine(in sight) (string, bool) {
	if !in.Journal.Open() || !in.Node.Read || in.Node.Missing || in.Node.SystemUUID == in.Host.SystemUUID || in.lossIsComplete() {
		return "", false
	}
	return fmt.Sprintf("the Node now names machine %s; machine %s may still run", in.Node.SystemUUID, in.Host.SystemUUID), true
}

func newBoot(in sight) (string, bool) {
	if !in.Journal.Open() || !in.Node.Read || in.Node.Missing || !in.Listed || in.SameBoot() {
		return "", false
	}
	return fmt.Sprintf("boot %s runs now; boot %s is over", short(in.Node.BootID), short(in.Host.BootID)), true
}

// lossStands keeps the verdict while nothing is left to release; it releases nothing.
func lossStands(in sight) (string, bool) {
	if !in.lossIsComplete() || !in.Node.Read || len(in.outdated) > 0 {
		return "", false
	}
	return "proof was established, every writer is released, and this boot has not spoken since", true
}

func observerDeaf(in sight) (string, bool) {
	if in.Cluster.APISilent < in.policy.BlindAPISilent {
		return "", false
	}
	return "the API has not answered for " + span(in.Cluster.APISilent), true
}

func notRead(in sight) (string, bool) {
	if in.Node.Read && in.Lease.Read && in.Listed {
		return "", false
	}
	return "the Node, its Lease, or what the API lists for it could not be read", true
}

func nodeMissing(in sight) (string, bool) {
	if !in.Node.Read || !in.Node.Missing {
		return "", false
	}
	return "the Node object is gone; the machine may still run", true
}

// deviceContradicted holds a host whose device says Off while the host said otherwise lately; where the application answers, or the lease moves, the
// rules on life say more, and where all has been silent for long, a device that lied is no reason to wait for another.
func deviceContradicted(in sight) (string, bool) {
	said := slices.Concat(in.contradicted, in.outdated)
	if len(said) == 0 || !in.late || in.SilentFor() >= in.policy.ConfirmAfter {
		return "", false
	}
	rank, who := in.Life(in.power(said[0]).OffSince)
	if rank == evidence.RankWriter {
		return "", false
	}
	return fmt.Sprintf("%s says %s, but %s showed life (%s) since", said[0], in.power(said[0]).Said, who, rank), true
}

// powerReadsOff believes a device only where something else points the same way: a late lease, or an application that fails its probes or a quorum of vantage
// points that has given the host up, on a host whose port does not answer either, and no application that serves. A device that lies about a host which is well starts nothing.
// A method that only cuts volumes says nothing of the host.
func powerReadsOff(in sight) (string, bool) {
	off := slices.DeleteFunc(slices.Clone(in.readsOff), func(method string) bool { return !in.power(method).Covers("") })
	if len(off) == 0 || len(in.serving) > 0 || in.heardLately() {
		return "", false
	}
	if !in.late && ((len(in.failing) == 0 && !in.calledDead) || !in.Port.Silent()) {
		return "", false
	}
	says := "Off"
	if in.power(off[0]).State == evidence.PowerGone {
		says = "Gone"
	}
	because := strings.Join(off, ", ") + " reads " + says + " for this machine, and nothing has shown life since"
	if !in.proof.Fresh {
		because += "; not proof yet: " + in.proofGap
	}
	return because, true
}

func manyHostsLate(in sight) (string, bool) {
	c := in.Cluster
	if !in.suspicious() || c.StaleHosts < 2 || c.Hosts == 0 || c.StaleHosts*100 < in.policy.BlindPercent*c.Hosts {
		return "", false
	}
	return fmt.Sprintf("%d of %d hosts have a late lease: the view is at fault before they are", c.StaleHosts, c.Hosts), true
}

func runtimeDown(in sight) (string, bool) {
	if in.late || in.Node.Ready != evidence.ReadyFalse || !in.Node.RuntimeDown {
		return "", false
	}
	return "the kubelet says that its container runtime does not answer", true
}

func writerAnswers(in sight) (string, bool) {
	if !in.lost() || len(in.serving) == 0 {
		return "", false
	}
	return fmt.Sprintf("%s; %s answers its own probes; port 10250: %s", in.leaseWords(), strings.Join(in.serving, ", "), in.Port.Answer), true
}

func userspaceAnswers(in sight) (string, bool) {
	if !in.lost() || in.Port.Answer.Rank() != evidence.RankUserspace {
		return "", false
	}
	return in.leaseWords() + ", but the kubelet speaks on port 10250", true
}

// cutFromAPI tells a host that lives and reaches no API server from one whose kubelet died: its own agent says so, to somebody who hears it.
func cutFromAPI(in sight) (string, bool) {
	rank, words := in.WitnessLife()
	report, ok := in.ReportNow()
	if !in.lost() || !in.silentToUs() || rank < evidence.RankUserspace || !ok || report.API != evidence.PulseDead {
		return "", false
	}
	return fmt.Sprintf("%s; %s; from there the API does not answer: the host lives and is cut off", in.leaseWords(), words), true
}

// heardByWitness holds for a host that may be silent to us, and that a vantage point has a sign of life of, of its userspace or better.
func heardByWitness(in sight) (string, bool) {
	rank, words := in.WitnessLife()
	if !in.lost() || rank < evidence.RankUserspace {
		return "", false
	}
	if r, ok := in.ReportNow(); ok {
		words += "; it says: " + r.String()
	}
	return in.leaseWords() + "; " + words, true
}

func onlyKernelAnswers(in sight) (string, bool) {
	rank, there := in.WitnessLife()
	if rank >= evidence.RankUserspace {
		return "", false
	}
	if !in.lost() || len(in.serving) > 0 || in.Port.Answer.Rank() == evidence.RankUserspace {
		return "", false
	}
	if in.Port.Answer.Rank() == evidence.RankKernel {
		return fmt.Sprintf("%s; port 10250: %s; no application is known to serve", in.leaseWords(), in.Port.Answer), true
	}
	if pod, ok := in.kernelRefuses(); ok {
		return fmt.Sprintf("%s; the kernel refuses for %s; no application is known to serve", in.leaseWords(), pod), true
	}
	if rank == evidence.RankKernel {
		return fmt.Sprintf("%s; %s; no application is known to serve", in.leaseWords(), there), true
	}
	return "", false
}

// onlyLeaseMoves tells a host that cannot be reached from one that is dead.
func onlyLeaseMoves(in sight) (string, bool) {
	if len(in.serving) > 0 || !in.Port.Silent() {
		return "", false
	}
	if _, ok := in.kernelRefuses(); ok {
		return "", false
	}
	if in.AgentCalls() && in.silentToUs() {
		return "the host's own agent says through the API that it hears nobody, and nothing of the host answers: it lives and cannot be reached", true
	}
	if !in.renewedWhileFailing() {
		return "", false
	}
	if len(in.failing) == 0 {
		return "the lease was renewed after the vantage points had given the host up, and port 10250 does not answer: the host lives and cannot be reached", true
	}
	return "the lease was renewed while neither " + strings.Join(in.failing, ", ") + " nor port 10250 answered: the host lives and cannot be reached", true
}

// outOfOurReach is a host whose lease is not late yet, that answers others and not us: it is we who are cut from it.
func outOfOurReach(in sight) (string, bool) {
	rank, words := in.WitnessLife()
	if in.late || len(in.failing) == 0 || !in.silentToUs() || rank < evidence.RankUserspace {
		return "", false
	}
	return "neither " + strings.Join(in.failing, ", ") + " nor port 10250 answers us; " + words + ": the host lives and cannot be reached", true
}

// witnessesSilent doubts us where a host is silent, and so is every vantage point on the other hosts: we may be the one who is cut off.
func witnessesSilent(in sight) (string, bool) {
	if !in.Witnesses.On || in.Witnesses.Expected < 2 || in.WitnessesAnswering() > 0 || !in.silentToUs() {
		return "", false
	}
	return fmt.Sprintf("the host is silent, and so are all %d vantage points that should answer: the view is at fault before they are", in.Witnesses.Expected), true
}

func nothingAnswers(in sight) (string, bool) {
	if !in.silentToUs() || in.hears != "" {
		return "", false
	}
	return fmt.Sprintf("no plane answers for %s; port 10250: %s; lease %s old", span(in.SilentFor()), in.Port.Answer, span(in.Lease.Age)), true
}

// appFails wants the kubelet heard beside the failing application: on its port, or by its lease while at least the kernel answers.
func appFails(in sight) (string, bool) {
	if in.late || len(in.failing) == 0 || in.Port.Answer.Rank() == evidence.RankNone {
		return "", false
	}
	if in.Port.Answer.Rank() == evidence.RankKernel && !in.renewedWhileFailing() {
		return "", false
	}
	words := strings.Join(in.failing, ", ") + " fails its own probes on a host that is well"
	if report, ok := in.ReportNow(); ok && report.Amiss() != "" {
		words += ", but for what its agent says: " + report.Amiss()
	}
	return words, true
}

func leaseFresh(in sight) (string, bool) {
	if in.late || len(in.failing) > 0 || in.Lease.Missing {
		return "", false
	}
	if in.Journal.Open() && !in.Lease.Moved {
		return "", false // the lease is young because the observer is
	}
	switch in.Node.Ready {
	case evidence.ReadyTrue:
		return fmt.Sprintf("lease %s old", span(in.Lease.Age)), true
	case evidence.ReadyFalse:
		// The kubelet speaks and will carry out what it is told: Kubernetes can move pods gracefully.
		return fmt.Sprintf("lease %s old; the kubelet itself says NotReady (%s)", span(in.Lease.Age), in.Node.ReadyReason), true
	default:
		return "", false
	}
}

func notEnoughSeen(in sight) (string, bool) {
	words := fmt.Sprintf("lease %s old, Ready %s, port 10250 %s", span(in.Lease.Age), in.Node.Ready, in.Port.Answer)
	if in.hears != "" {
		words += "; " + in.hears
	}
	return words + ": no rule can tell", true
}

func (in sight) leaseWords() string {
	switch {
	case in.Lease.Missing:
		return "lease missing"
	case in.late:
		return "lease late " + span(in.Lease.Age)
	default:
		return "Ready Unknown, lease not seen to move"
	}
}

func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

func span(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
