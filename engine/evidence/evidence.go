// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package evidence is what Holdfast knows of one host at one moment, as plain values.
//
// Whatever could not be read is present as Unread and is never taken for a negative answer. Everything that can be a sign of life
// carries the instant before which it cannot have happened, so that it can be put before or after a reading of Off.
package evidence

import (
	"fmt"
	"slices"
	"time"
)

// Instant is a moment on the observer's own monotonic clock, counted from the observer's start. Instants of two observers
// (two leaders, or one before and after a restart) cannot be compared, and nothing stored is ever turned into one.
type Instant time.Duration

// Sub returns the time from u to i.
func (i Instant) Sub(u Instant) time.Duration { return time.Duration(i - u) }

// Rank orders signs of life. A frozen machine still has a kernel that answers.
type Rank uint8

const (
	// RankNone: no sign of life.
	RankNone Rank = iota
	// RankKernel: the host's kernel answered (RST, SYN-ACK).
	RankKernel
	// RankUserspace: a process of the host acted (lease renewed, TLS answered).
	RankUserspace
	// RankWriter: the application answered.
	RankWriter
)

// String returns the word used in status.
func (r Rank) String() string {
	return [...]string{"None", "Kernel", "Userspace", "Writer"}[r]
}

// Snapshot is everything known about one host at one moment. Decide reads nothing else.
type Snapshot struct {
	// At is when the snapshot was complete.
	At Instant
	// Host is the host and boot in question: the open incident's, or else the Node's present one.
	Host Host
	// Node, Lease, Port, Apps and Power were read in this order; Power comes last, so that a reading of Off is
	// later than every reading of the Node beside it (invariant I3).
	Node  Node
	Lease Lease
	Port  Port
	// Apps holds one reading per guarded pod on the host. A pod that is not probed any more stays listed, unread, with its last answer, for
	// as long as its object exists: an answer that was heard stays heard.
	Apps []App
	// Power holds one reading per fencing method that the host's profile names, in order of level.
	Power []Power
	// NoMethods says why the host has no fencing method, where that is not for want of a profile; empty otherwise.
	NoMethods string
	// Attestations are what humans say of this host, read after the Node.
	Attestations []Attestation
	// Cluster says whether the observer can trust its own eyes.
	Cluster Cluster
	// Witnesses is what the agents say of the host; the zero value where there are none.
	Witnesses Witnesses
	// AgentLease is the Lease of the host's own agent.
	AgentLease AgentLease
	// Listed is true when the open incidents, the pods of the host and its attachments were all listed live for this snapshot. While it is
	// false, nothing may be concluded from the absence of a writer, an attachment or an incident.
	Listed bool
	// Writers are the pod objects on the host that name a guarded claim.
	Writers []Writer
	// Attachments are the volumes of guarded claims that the API still shows attached to the host.
	Attachments []Attachment
	// Successors are guarded pods of the incident's apps on other hosts.
	Successors []Successor
	// Journal is what the open incident says, empty if there is none.
	Journal Journal
	// Repairs is what the journals of all hosts say of restarted kubelets.
	Repairs Repairs
	// Addresses are those that the pods in the journal had for themselves.
	Addresses []Address
}

// Address is one that a pod of the incident had for itself, and what has become of it.
type Address struct {
	IP string
	// Gone is true once the pod's object is known to be gone after proof, and Ago how long that is.
	Gone bool
	Ago  time.Duration
	// User names whoever has the address now, a pod object in whatever phase on whatever host; empty where nobody has. Unread is true where that is not known.
	User   string
	Unread bool
	// Begun is true when by the journal connections to it are being reset, Ended when they were, and Ours while this process has it done.
	Begun, Ended, Ours bool
	// Over says why this process has let it go by itself, and is empty otherwise.
	Over string
}

// Repairs is when kubelets were last restarted. What was only about to be done counts as done.
type Repairs struct {
	// Read is false where the journals could not be listed: nothing is known then.
	Read bool
	// Tried is true when this host's kubelet was restarted, Ago how long that is, and Failed when it is known not to have been.
	Tried, Failed bool
	Ago           time.Duration
	// Elsewhere names the other host whose kubelet was restarted last, ElsewhereAgo ago; empty where none was.
	Elsewhere    string
	ElsewhereAgo time.Duration
}

// Host identifies a machine in one boot.
type Host struct {
	Node       string
	NodeUID    string
	BootID     string
	SystemUUID string
}

// Ready is the Node's Ready condition.
type Ready uint8

const (
	// ReadyUnread: the Node could not be read, or has no Ready condition.
	ReadyUnread Ready = iota
	// ReadyTrue, ReadyFalse (said by the kubelet itself), ReadyUnknown (said by the node lifecycle controller).
	ReadyTrue
	ReadyFalse
	ReadyUnknown
)

// String returns the condition's own word.
func (r Ready) String() string { return [...]string{"Unread", "True", "False", "Unknown"}[r] }

// Node is a live GET of the Node object.
type Node struct {
	// Read is false when the GET was not answered.
	Read bool
	// Missing is true when the API server answered that there is no such Node.
	Missing bool
	At      Instant

	UID        string
	BootID     string
	SystemUUID string
	Ready      Ready
	// ReadyReason is the condition's reason.
	ReadyReason string
	// RuntimeDown is true when the kubelet itself says that its container runtime does not answer.
	RuntimeDown bool
	// Fenced is true while our own NoExecute taint is on the Node; OutOfService while that taint is.
	Fenced bool
	// FencedBefore is true when that taint is of an incident of another boot than the one that the snapshot is about: its journal was deleted.
	FencedBefore bool
	OutOfService bool
	// Spoke is true when this observer has seen the kubelet post a status (heartbeat) for the boot ID above, and SpokeNotBefore is then the
	// last instant at which the latest one had not yet been posted. Unlike a lease, a status names its boot.
	Spoke          bool
	SpokeNotBefore Instant
}

// Lease is the kubelet's lease, read live.
type Lease struct {
	// Read is false when the GET was not answered; Missing when there is no lease.
	Read    bool
	Missing bool
	At      Instant
	// Duration is the lease's own duration.
	Duration time.Duration
	// Age is how long this observer has been looking at the same renewal: a lower bound, by the observer's own clock.
	Age time.Duration
	// Moved is true when this observer has seen the lease renewed at least once, and NotBefore is then the last instant
	// at which the renewal had not yet happened.
	Moved     bool
	NotBefore Instant
}

// Answer is how a TCP port of the host answered.
type Answer uint8

const (
	// AnswerUnread: not asked, or the question did not leave the observer.
	AnswerUnread Answer = iota
	// AnswerNone: no packet came back in time.
	AnswerNone
	// AnswerUnreachable: a router or the neighbour table said that there is no such host.
	AnswerUnreachable
	// AnswerReset: the kernel refused.
	AnswerReset
	// AnswerAccepted: the kernel accepted, but nothing spoke.
	AnswerAccepted
	// AnswerSpoke: a process spoke TLS.
	AnswerSpoke
)

// String returns the word used in status.
func (a Answer) String() string {
	return [...]string{"unread", "no answer", "unreachable", "reset", "accepted", "spoke"}[a]
}

// Rank returns the sign of life that the answer is.
func (a Answer) Rank() Rank {
	switch a {
	case AnswerReset, AnswerAccepted:
		return RankKernel
	case AnswerSpoke:
		return RankUserspace
	default:
		return RankNone
	}
}

// Port is the kubelet's port 10250, asked by the observer. HasAnswer and LastAnswer are kept through rounds in which it is not asked.
type Port struct {
	Answer Answer
	// Asked is when the question was sent; an answer cannot have been given before.
	Asked Instant
	// HasAnswer is true when any question was answered so far, and LastAnswer is when the latest such question was sent.
	HasAnswer  bool
	LastAnswer Instant
}

// Silent reports whether the port was asked and nobody answered.
func (p Port) Silent() bool { return p.Answer.Silent() }

// Silent reports whether a question was sent and nobody answered.
func (a Answer) Silent() bool { return a == AnswerNone || a == AnswerUnreachable }

// Serving is whether an application answers its own probes.
type Serving uint8

const (
	// ServingUnread: not probed yet, or still starting up.
	ServingUnread Serving = iota
	// ServingYes: probes pass by their own thresholds.
	ServingYes
	// ServingNo: probes fail by their own thresholds.
	ServingNo
)

// String returns the word used in status.
func (s Serving) String() string { return [...]string{"Unknown", "True", "False"}[s] }

// App is what the application probes of one guarded pod say.
type App struct {
	// App is "namespace/name" of the GuardedStatefulApp.
	App    string
	Pod    string
	PodUID string
	// Exclusive is false while another pod object has the same address: answers then count for nothing.
	Exclusive bool
	Serving   Serving
	// Answered and Asked count probes in the latest round.
	Answered int
	Asked    int
	// Kernel is true when the latest refusal came from a kernel (RST) rather than from silence.
	Kernel bool
	// LastAnswer is when the latest probe that was answered had been sent; HasAnswer is false if there was none.
	HasAnswer  bool
	LastAnswer Instant
	// LastKernel is the same for answers of the kernel alone.
	HasKernel  bool
	LastKernel Instant
	// FailingFor is how long no probe has been answered; zero while one is.
	FailingFor time.Duration
	// EndpointReady is the pod's Ready condition in the API.
	EndpointReady bool
	// EndpointOwed is true while Ready is not True although all that a kubelet makes it from is: the node controller took it back, and the next round of
	// the kubelet's status manager (10 s) will not agree.
	EndpointOwed bool
}

// PowerState is what a fence device says of its host.
type PowerState uint8

const (
	// PowerUnread: not asked in this round, or no answer that can be used.
	PowerUnread PowerState = iota
	PowerOn
	PowerOff
	// PowerGone: the machine no longer exists at its provider.
	PowerGone
)

// String returns the word used in status.
func (p PowerState) String() string { return [...]string{"Unreadable", "On", "Off", "Gone"}[p] }

// Identity is whether a fence device belongs to the host in question.
type Identity uint8

const (
	// IdentityUnchecked: the device did not say.
	IdentityUnchecked Identity = iota
	// IdentityMatches the host's system UUID.
	IdentityMatches
	// IdentityDiffers, or cannot name a machine.
	IdentityDiffers
)

// String returns the word used in status.
func (i Identity) String() string { return [...]string{"Unchecked", "Matches", "Differs"}[i] }

// Strength orders proofs, weakest first; the zero value proves nothing.
type Strength uint8

const (
	// StrengthNone proves nothing.
	StrengthNone Strength = iota
	// StrengthAttested: a human says so, and nothing speaks against it.
	StrengthAttested
	// StrengthSelfFenced: the host said that a hardware watchdog resets it, and has been silent for longer than that takes.
	StrengthSelfFenced
	// StrengthPowerOff: commanded off and read back off.
	StrengthPowerOff
	// StrengthGone: the machine no longer exists at its provider.
	StrengthGone
)

// String returns the word used in status.
func (s Strength) String() string {
	return [...]string{"None", "Attested", "SelfFenced", "PowerOff", "Gone"}[s]
}

// Power is the latest reading of one fencing method, with what the method is.
type Power struct {
	Method string
	Level  int
	// Strength and the coverage are what an isolation by this method would prove.
	Strength      Strength
	CoversHost    bool
	CoversDrivers []string
	State         PowerState
	Identity      Identity
	// At is when the reading was begun.
	At Instant

	// What follows is remembered of readings in this boot whose identity matched, and is kept through rounds in which the device cannot be read.

	// Said is the latest such reading: State, or while that cannot be used the one before.
	Said PowerState
	// OffSince is when the first of the latest unbroken run of readings of Off or Gone was complete: whatever a sign of life shows from then on, the
	// device had already said so. A reading of something else breaks the run, and so does a gap longer than RunGap.
	OffSince Instant
	// HasOff is true when the device has read Off or Gone at all, and LastOff is when the latest such reading was complete.
	HasOff  bool
	LastOff Instant
	// HasOn is true when the device has read On at all, and LastOn is when the latest such reading was begun.
	HasOn  bool
	LastOn Instant
	// Why says why the device could not be read.
	Why string
}

// Attestation is one human's word that a host is dead in one boot.
type Attestation struct {
	Name   string
	BootID string
	// Seen is when this observer first saw it: life from then on refutes it.
	Seen Instant
	// At is when it was last read.
	At Instant
	// Expired is true when its time is over by any measure.
	Expired bool
}

// Attesting is the name by which an attestation stands in a proof, and in Distrusted once it was refuted.
const Attesting = "attestation"

// SelfFencing is the name by which a host's own watchdog does.
const SelfFencing = "self-fence"

// RunGap is the longest time between two readings of Off that still counts as Off in between: no machine is switched on, boots and
// answers within it. Open incidents are looked at more often than that.
const RunGap = 6 * time.Second

// Dead reports whether the state is one in which the host cannot run: Off, or Gone.
func (p PowerState) Dead() bool { return p == PowerOff || p == PowerGone }

// Proves is what the method's present state, or an isolation by it, would prove.
func (p Power) Proves() Strength {
	if p.State == PowerGone {
		return StrengthGone
	}
	return p.Strength
}

// Covers reports whether an isolation by this method cuts volumes of the CSI driver. A volume whose driver is not known is cut only with the host; a
// machine that is gone has no host left.
func (p Power) Covers(driver string) bool {
	return p.CoversHost || p.State == PowerGone || (driver != "" && slices.Contains(p.CoversDrivers, driver))
}

// Weak says in what an isolation by this method, if it worked, would prove too little, or nothing if it would not.
func (p Power) Weak(minimum Strength) string {
	if p.Proves() == StrengthNone || p.Proves() < minimum {
		return fmt.Sprintf("%s proves %s, and %s is asked for", p.Method, p.Proves(), minimum)
	}
	return ""
}

// Uncut names the first volume of the writers that no isolation by any of the methods cuts, or nothing if every volume of every writer is cut by some
// method, be it one or several together (invariant I1). A writer whose volumes are not known is cut only with the host.
func Uncut(writers []Writer, by []Power) string {
	cut := func(driver string) bool {
		return slices.ContainsFunc(by, func(p Power) bool { return p.Covers(driver) })
	}
	for _, w := range writers {
		if len(w.Volumes) == 0 && !cut("") {
			return "of " + w.Name
		}
		for _, v := range w.Volumes {
			if !cut(v.Driver) {
				return v.Claim
			}
		}
	}
	return ""
}

// Least returns the methods that it takes to cut every volume of the writers: the shortest run of those given, from the first on, without the ones that can
// be spared. It returns nothing if all of them together leave a volume uncut; where there are no writers, the first will do.
func Least(writers []Writer, by []Power) []Power {
	for n := 1; n <= len(by); n++ {
		if Uncut(writers, by[:n]) != "" {
			continue
		}
		least := slices.Clone(by[:n])
		for i := 0; i < len(least) && len(least) > 1; {
			if rest := slices.Delete(slices.Clone(least), i, i+1); Uncut(writers, rest) == "" {
				least = rest
				continue
			}
			i++
		}
		return least
	}
	return nil
}

// Cluster is the observer's view of itself.
type Cluster struct {
	// Hosts and StaleHosts count all Nodes and those whose lease the observer has seen stand still for too long.
	Hosts      int
	StaleHosts int
	// APISilent is how long the observer has had no answer to a live read.
	APISilent time.Duration
	// HasOther is true when the observer has seen a host write through the API that is neither the host in question nor the observer's own: its kubelet renewed
	// its lease, or its agent wrote its own. OtherNotBefore is then the last instant at which the latest such write had not yet happened.
	HasOther       bool
	OtherNotBefore Instant
	// Observing is how long the observer has been looking with eyes that it trusts: since its start, or since the last look that found its view
	// bad. A fresh observer has seen nothing move yet, and silence while the view was bad is no silence of the host's.
	Observing time.Duration
}

// Volume is one guarded claim of a writer.
type Volume struct {
	Claim  string
	Driver string
	Handle string
}

// Writer is one pod object on the host that names a guarded claim.
type Writer struct {
	App       string
	Namespace string
	Name      string
	UID       string
	Volumes   []Volume
	// Held is true when label and finalizer of the hold are on the pod; the label alone on a pod that is terminating, which takes no new finalizer.
	Held bool
	// HeldBy names the incident that the hold on the pod is of; empty when there is none. One that is not the open incident's is of a journal that was deleted.
	HeldBy string
	// Terminating is true when the object has a deletionTimestamp.
	Terminating bool
	// Removed is true when a delete with grace 0 has been accepted and the hold's finalizer is off, so that only finalizers of others keep the object.
	Removed bool
	// Finished is true when the pod is in phase Succeeded or Failed.
	Finished bool
	// BootID is the boot in which the pod was last seen to be started, when known.
	BootID string
	// Addresses are those that the pod has for itself: none, where it is on its host's network.
	Addresses []string
}

// Attachment is a VolumeAttachment of a guarded claim to the host.
type Attachment struct {
	Name   string
	Volume string
	// Attached is the attacher's own word.
	Attached bool
}

// Successor is a guarded pod of one of the incident's apps on another host.
type Successor struct {
	App     string
	Pod     string
	Host    string
	Serving Serving
}

// Step is how far the open incident has come, as in the API.
type Step string

// Steps of an incident. The empty step means that there is no incident.
const (
	StepNone       Step = ""
	StepSuspected  Step = "Suspected"
	StepHolding    Step = "Holding"
	StepConfirmed  Step = "Confirmed"
	StepFencing    Step = "Fencing"
	StepReleasing  Step = "Releasing"
	StepRecovering Step = "Recovering"
	StepResolved   Step = "Resolved"
	StepClosed     Step = "Closed"
	StepRetired    Step = "Retired"
)

// AttemptState is what is known about one Off command, as in the API.
type AttemptState string

// States of an attempt; see docs/spec/fencing.md.
const (
	AttemptIntended   AttemptState = "Intended"
	AttemptAccepted   AttemptState = "Accepted"
	AttemptFailed     AttemptState = "Failed"
	AttemptUnclear    AttemptState = "Unclear"
	AttemptSettled    AttemptState = "Settled"
	AttemptSuperseded AttemptState = "Superseded"
)

// Attempt is one journalled Off command of this incident.
type Attempt struct {
	ID     string
	Method string
	Level  int
	State  AttemptState
	// Overdue is true when the driver's own settling time has passed on the observer's clock since the observer first saw the attempt.
	Overdue bool
	// Own is true when this observer made the attempt in this life, so that no other process can still be in the call.
	Own bool
	// CallOver is true when the call cannot still be under way: it is Own, or its deadline has passed since the observer first saw it.
	CallOver bool
}

// Unsettled reports whether the attempt may still take effect unseen.
func (a Attempt) Unsettled() bool {
	switch a.State {
	case AttemptIntended, AttemptAccepted, AttemptUnclear:
		return true
	default:
		return false
	}
}

// Commanded reports whether the device is known to have taken the Off command.
func (a Attempt) Commanded() bool {
	return a.State == AttemptAccepted || a.State == AttemptSettled
}

// Journal is the open incident.
type Journal struct {
	// Name of the incident; empty when there is none.
	Name string
	Step Step
	// StepFor is how long the incident has been at this step, for whoever is to be told; nothing is decided by it.
	StepFor time.Duration
	// Attempts in the order in which they were journalled.
	Attempts []Attempt
	// ProofRecorded is true when proof was established and written down earlier in this incident. It is history, not evidence:
	// release still wants a fresh reading.
	ProofRecorded bool
	// Word is what that proof rested on where it was no device: Attesting or SelfFencing, and empty otherwise. ProvenSince is when this observer first saw a
	// proof written down.
	Word        string
	ProvenSince Instant
	// Released counts pods whose objects are known to be gone after proof; Pods counts all that were ever listed.
	Released int
	Pods     int
	// Apps of the incident, "namespace/name".
	Apps []string
	// Distrusted methods lied in this incident.
	Distrusted []string
	// Approved is true when a human approved the fence of this host in this boot.
	Approved bool
}

// Open reports whether there is an incident that has not ended.
func (j Journal) Open() bool {
	return j.Name != "" && j.Step != StepClosed && j.Step != StepRetired
}

// Distrusts reports whether the method lied in this incident.
func (j Journal) Distrusts(method string) bool {
	for _, m := range j.Distrusted {
		if m == method {
			return true
		}
	}
	return false
}

// SameBoot reports whether the Node, as last read, is in the boot that the snapshot is about. A Node that was not read, or has no boot ID,
// is taken to be in the same boot.
func (s Snapshot) SameBoot() bool {
	if !s.Node.Read || s.Node.Missing || s.Node.BootID == "" {
		return true
	}
	return s.Node.BootID == s.Host.BootID
}

// SameMachine reports whether the Node was read and still names the machine that the snapshot is about, by system UUID and by UID (invariant I4).
func (s Snapshot) SameMachine() bool {
	return s.Node.Read && !s.Node.Missing && s.Node.SystemUUID == s.Host.SystemUUID && s.Node.UID == s.Host.NodeUID
}

// Orphaned reports whether something of an incident is left, a hold or a taint, and no incident is open: its journal was deleted.
func (s Snapshot) Orphaned() bool {
	if s.Journal.Open() || !s.Listed {
		return false
	}
	for _, w := range s.Writers {
		if w.HeldBy != "" {
			return true
		}
	}
	return s.Node.Fenced
}

// Unreleased are the writers whose pods have not finished.
func (s Snapshot) Unreleased() []Writer {
	var out []Writer
	for _, w := range s.Writers {
		if !w.Finished {
			out = append(out, w)
		}
	}
	return out
}

// LastLife is the latest instant at which the host can have shown a sign of life to this observer or to an agent: when the lease was first seen renewed,
// when an answered question was sent, or when an agent's answer at the latest was given. For an observer that has seen nothing, it is the observer's own start, or when its view
// was last bad.
func (s Snapshot) LastLife() Instant {
	last := s.At - Instant(s.Cluster.Observing)
	see := func(i Instant) {
		if i > last {
			last = i
		}
	}
	if s.Lease.Read && s.Lease.Moved && s.SameBoot() {
		see(s.Lease.At - Instant(s.Lease.Age))
	}
	if s.Node.Spoke && s.SameBoot() {
		see(s.Node.SpokeNotBefore)
	}
	if s.Port.HasAnswer {
		see(s.Port.LastAnswer)
	}
	for _, a := range s.Apps {
		if a.Exclusive && a.HasAnswer {
			see(a.LastAnswer)
		}
		if a.Exclusive && a.HasKernel {
			see(a.LastKernel)
		}
	}
	s.witnessed(func(_ Rank, sign Sign, _ string) {
		if sign.Heard {
			see(min(s.At, max(sign.NotBefore, sign.NotAfter)))
		}
	})
	return last
}

// SilentFor is how long the host has shown no sign of life to this observer.
func (s Snapshot) SilentFor() time.Duration { return s.At.Sub(s.LastLife()) }

// Life is the strongest sign of life that cannot have happened before the instant given.
// Leases, statuses and agents of another boot are not life of this one.
func (s Snapshot) Life(since Instant) (Rank, string) {
	best, who := RankNone, ""
	see := func(r Rank, at Instant, by string) {
		if at >= since && r > best {
			best, who = r, by
		}
	}
	if s.Lease.Moved && s.SameBoot() { // what was seen stays seen when the lease cannot be read now
		see(RankUserspace, s.Lease.NotBefore, "Lease")
	}
	if s.Node.Spoke && s.SameBoot() {
		see(RankUserspace, s.Node.SpokeNotBefore, "NodeStatus")
	}
	see(s.Port.Answer.Rank(), s.Port.Asked, "KubeletPort")
	if s.Port.HasAnswer {
		see(RankKernel, s.Port.LastAnswer, "KubeletPort") // whatever it was, a kernel gave it
	}
	for _, a := range s.Apps {
		if !a.Exclusive {
			continue
		}
		if a.HasAnswer {
			see(RankWriter, a.LastAnswer, "Application "+a.Pod)
		}
		if a.HasKernel {
			see(RankKernel, a.LastKernel, "Application "+a.Pod)
		}
	}
	s.witnessed(func(r Rank, sign Sign, by string) {
		if sign.Heard {
			see(r, sign.NotBefore, by)
		}
	})
	return best, who
}
