// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// sight is a snapshot with what the rules ask of it worked out once.
type sight struct {
	evidence.Snapshot
	policy Policy

	late         bool
	serving      []string // pods that answer their own probes
	failing      []string // pods that fail them
	readsOff     []string
	contradicted []string
	proof        Proof
	proofGap     string // why a device that reads Off proves nothing yet
}

type rule struct {
	name string
	says Class
	when func(sight) (because string, fires bool)
}

// rules in order of precedence. docs/spec/verdicts.md has one line for each.
var rules = []rule{
	{"ProofRefuted", Unknown, proofRefuted},
	{"VerifiedOff", Lost, verifiedOff},
	{"NewBoot", Healthy, newBoot},
	{"LossStands", Lost, lossStands},
	{"ObserverDeaf", Blind, observerDeaf},
	{"NodeUnread", Unknown, nodeUnread},
	{"NodeMissing", Unknown, nodeMissing},
	{"DeviceContradicted", Unknown, deviceContradictedUnderFence},
	{"PowerReadsOff", Silent, powerReadsOff},
	{"ManyHostsLate", Blind, manyHostsLate},
	{"KubeletSaysRuntimeDown", RuntimeDown, runtimeDown},
	{"WriterAnswers", KubeletDown, writerAnswers},
	{"UserspaceAnswers", KubeletDown, userspaceAnswers},
	{"OnlyKernelAnswers", Hung, onlyKernelAnswers},
	{"NothingAnswers", Silent, nothingAnswers},
	{"LeaseFreshAppFails", AppDown, appFails},
	{"LeaseFresh", Healthy, leaseFresh},
	{"NotEnoughSeen", Unknown, notEnoughSeen},
}

func look(s evidence.Snapshot, p Policy) sight {
	in := sight{Snapshot: s, policy: p, late: p.Late(s.Lease)}
	for _, a := range s.Apps {
		switch {
		case a.Serving == evidence.ServingYes && a.Exclusive:
			in.serving = append(in.serving, a.Pod)
		case a.Serving == evidence.ServingNo:
			in.failing = append(in.failing, a.Pod)
		}
	}
	for _, pw := range s.Power {
		if pw.State != evidence.PowerOff || pw.Identity != evidence.IdentityMatches {
			continue
		}
		if rank, _ := s.Life(pw.OffSince); rank != evidence.RankNone {
			in.contradicted = append(in.contradicted, pw.Method)
			continue
		}
		if !s.Journal.Distrusts(pw.Method) {
			in.readsOff = append(in.readsOff, pw.Method)
		}
	}
	in.proof, in.proofGap = prove(in)
	return in
}

// prove looks for proof that holds in this very snapshot (invariants I1, I3, I4).
func prove(in sight) (Proof, string) {
	gap := "no device reads Off for this machine"
	for _, pw := range in.Power {
		if !contains(in.readsOff, pw.Method) {
			continue
		}
		attempt, commanded := commandedBy(in.Journal, pw.Method)
		switch {
		case !in.Node.Read || in.Node.Missing:
			gap = "the Node cannot be read"
		case !in.SameBoot():
			gap = "the Node has another boot ID"
		case !commanded:
			gap = pw.Method + " reads Off, but Off was not commanded in this incident"
		case !in.Node.Fenced:
			gap = "the Node does not carry the fenced taint yet"
		case pw.At < in.Node.At:
			gap = pw.Method + " was read before the taint was seen"
		case pw.Strength < in.policy.MinimumProof:
			gap = fmt.Sprintf("%s proves %s, and %s is asked for", pw.Method, pw.Strength, in.policy.MinimumProof)
		case uncovered(in.Writers, pw) != "":
			gap = pw.Method + " does not cut volume " + uncovered(in.Writers, pw)
		default:
			return Proof{Method: pw.Method, Attempt: attempt, Strength: pw.Strength, Fresh: true}, ""
		}
	}
	return Proof{}, gap
}

func commandedBy(j evidence.Journal, method string) (id string, ok bool) {
	for _, a := range j.Attempts {
		if a.Method == method && a.Commanded() {
			id, ok = a.ID, true
		}
	}
	return id, ok
}

func uncovered(writers []evidence.Writer, pw evidence.Power) string {
	for _, w := range writers {
		for _, v := range w.Volumes {
			if !w.Finished && !pw.Covers(v.Driver) {
				return v.Claim
			}
		}
	}
	return ""
}

func proofRefuted(in sight) (string, bool) {
	if !in.Journal.ProofRecorded || !in.SameBoot() || in.Node.Missing {
		return "", false
	}
	if len(in.contradicted) > 0 {
		_, who := in.Life(offSince(in.Snapshot, in.contradicted[0]))
		return fmt.Sprintf("%s reads Off, but %s showed life since", in.contradicted[0], who), true
	}
	for _, pw := range in.Power {
		// The device reads On, or something else, and the kubelet has posted a status for the boot that was declared lost.
		if pw.State == evidence.PowerOn && in.Node.Spoke && in.Node.Read && in.Node.Ready == evidence.ReadyTrue && !in.late {
			return "the kubelet posts status for a boot that was declared lost, and " + pw.Method + " reads On", true
		}
	}
	return "", false
}

func offSince(s evidence.Snapshot, method string) evidence.Instant {
	for _, pw := range s.Power {
		if pw.Method == method {
			return pw.OffSince
		}
	}
	return 0
}

func verifiedOff(in sight) (string, bool) {
	if !in.proof.Fresh {
		return "", false
	}
	return fmt.Sprintf("%s was commanded Off (%s), the Node is tainted, and it reads Off since", in.proof.Method, in.proof.Attempt), true
}

func newBoot(in sight) (string, bool) {
	if !in.Journal.Open() || !in.Node.Read || in.Node.Missing || in.SameBoot() {
		return "", false
	}
	return fmt.Sprintf("boot %s runs now; boot %s is over", short(in.Node.BootID), short(in.Host.BootID)), true
}

// lossStands keeps the verdict while nothing is left to release; it releases nothing.
func lossStands(in sight) (string, bool) {
	if !in.Journal.Open() || !in.Journal.ProofRecorded || len(in.Writers) > 0 {
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

func nodeUnread(in sight) (string, bool) {
	if in.Node.Read && in.Lease.Read {
		return "", false
	}
	return "the Node or its Lease could not be read", true
}

func nodeMissing(in sight) (string, bool) {
	if !in.Node.Read || !in.Node.Missing {
		return "", false
	}
	return "the Node object is gone; the machine may still run", true
}

func deviceContradictedUnderFence(in sight) (string, bool) {
	if len(in.contradicted) == 0 {
		return "", false
	}
	rank, who := in.Life(offSince(in.Snapshot, in.contradicted[0]))
	if rank == evidence.RankWriter || !in.late {
		return "", false // the rules on life say more
	}
	return fmt.Sprintf("%s reads Off, but %s showed life (%s) since", in.contradicted[0], who, rank), true
}

// powerReadsOff believes a device only where something else already points the same way: an application that fails its probes or a
// late lease, and no application that serves. That way a device that lies about a host which is well starts nothing.
func powerReadsOff(in sight) (string, bool) {
	if len(in.readsOff) == 0 || len(in.serving) > 0 || (len(in.failing) == 0 && !in.late) {
		return "", false
	}
	return strings.Join(in.readsOff, ", ") + " reads Off for this machine, and nothing has shown life since; not proof yet: " + in.proofGap, true
}

func manyHostsLate(in sight) (string, bool) {
	c := in.Cluster
	if !in.suspicious() || c.StaleHosts < 2 || c.Hosts == 0 || c.StaleHosts*100 < in.policy.BlindPercent*c.Hosts {
		return "", false
	}
	return fmt.Sprintf("%d of %d hosts have a late lease: the view is at fault before they are", c.StaleHosts, c.Hosts), true
}

// suspicious is true when anything at all speaks against the host.
func (in sight) suspicious() bool {
	return in.late || in.Node.Ready != evidence.ReadyTrue || len(in.failing) > 0
}

func runtimeDown(in sight) (string, bool) {
	if in.late || in.Node.Ready != evidence.ReadyFalse || !in.Node.RuntimeDown {
		return "", false
	}
	return "the kubelet says that its container runtime does not answer", true
}

func writerAnswers(in sight) (string, bool) {
	if !in.late || len(in.serving) == 0 {
		return "", false
	}
	return fmt.Sprintf("lease late %s; %s answers its own probes; port 10250: %s", span(in.Lease.Age), strings.Join(in.serving, ", "), in.Port.Answer), true
}

func userspaceAnswers(in sight) (string, bool) {
	if !in.late || in.Port.Answer.Rank() != evidence.RankUserspace {
		return "", false
	}
	return fmt.Sprintf("lease late %s, but the kubelet speaks on port 10250", span(in.Lease.Age)), true
}

func onlyKernelAnswers(in sight) (string, bool) {
	if !in.late || len(in.serving) > 0 || in.Port.Answer.Rank() == evidence.RankUserspace {
		return "", false
	}
	if in.Port.Answer.Rank() == evidence.RankKernel {
		return fmt.Sprintf("lease late %s; port 10250: %s; no application serves", span(in.Lease.Age), in.Port.Answer), true
	}
	for _, a := range in.Apps {
		if a.Kernel && a.Exclusive {
			return fmt.Sprintf("lease late %s; the kernel refuses for %s; no application serves", span(in.Lease.Age), a.Pod), true
		}
	}
	return "", false
}

func nothingAnswers(in sight) (string, bool) {
	if len(in.serving) > 0 || (len(in.failing) == 0 && !in.late) {
		return "", false
	}
	if in.Port.Answer != evidence.AnswerNone && in.Port.Answer != evidence.AnswerUnreachable {
		return "", false
	}
	for _, a := range in.Apps {
		if a.Kernel && a.Exclusive {
			return "", false
		}
	}
	return fmt.Sprintf("no plane answers for %s; port 10250: %s; lease %s old", span(in.SilentFor()), in.Port.Answer, span(in.Lease.Age)), true
}

func appFails(in sight) (string, bool) {
	if in.late || len(in.failing) == 0 || in.Port.Answer.Rank() == evidence.RankNone {
		return "", false
	}
	return strings.Join(in.failing, ", ") + " fails its own probes on a host that is well", true
}

func leaseFresh(in sight) (string, bool) {
	if in.late || len(in.failing) > 0 || in.Lease.Missing {
		return "", false
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
	return fmt.Sprintf("lease %s old, Ready %s, port 10250 %s: no rule can tell", span(in.Lease.Age), in.Node.Ready, in.Port.Answer), true
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

func span(d time.Duration) string { return d.Round(100 * time.Millisecond).String() }
