// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"fmt"
	"strings"
	"time"
)

// Witnesses is what the agents say about the host (docs/spec/witness.md). The zero value is that of a cluster without agents.
//
// No instant crosses the wire: what is dated here was dated by its age, and is known to lie between two instants of the observer's own clock.
type Witnesses struct {
	// On is true when agents are configured; while it is false, the rest counts for nothing.
	On bool
	// Expected is how many vantage points should answer: those on other hosts that have answered this observer before, and whose host is not itself in trouble.
	Expected int
	// Vantages holds one entry for each vantage point that this observer knows. What was heard through one that does not answer any more stays listed.
	Vantages []Vantage
	// Report is the freshest that the host's own agent said of its host.
	Report Report
}

// Sign is one moment at which something of the host was heard, not before the one instant and not after the other. The zero value says that nothing was.
type Sign struct {
	Heard               bool
	NotBefore, NotAfter Instant
}

// Vantage is one agent on another host, and what it says of the host in question.
type Vantage struct {
	// Witness is the Node that the agent runs on, and Zone where that is.
	Witness, Zone string
	// Answered is true when it answered this observer in the latest round, whatever it said, and At is then when the answer was here.
	Answered bool
	At       Instant
	// State is what gossip makes of the host's agent, and StateFor for how long. It is nobody's own word and lags by seconds: it raises suspicion and ends
	// it, and is never a dated sign of life.
	State    Gossip
	StateFor time.Duration
	// Agent is when the host's agent last answered this one directly, and AgentBoot the boot that it then named.
	Agent     Sign
	AgentBoot string
	// Port is how the kubelet's port of the host answered when it was last asked from there, and PortAsked the instant before which it was not asked.
	// PortHeard is the latest answer of any kind, and is kept when later questions are not answered.
	Port      Answer
	PortAsked Instant
	PortHeard Sign
	// Apps are the applications on the host as asked from there.
	Apps []AppThere
}

// Gossip is what gossip makes of a host.
type Gossip uint8

const (
	// GossipUnread: gossip there does not know the host, or the vantage point did not answer.
	GossipUnread Gossip = iota
	// GossipAlive, GossipSuspect (does not answer; others are asked), GossipDead (nobody has heard it).
	GossipAlive
	GossipSuspect
	GossipDead
)

// String returns the word used in status.
func (g Gossip) String() string { return [...]string{"unread", "Alive", "Suspect", "Dead"}[g] }

// There is how an application answered a vantage point.
type There uint8

const (
	// ThereUnread: not asked, or the question did not leave the vantage point.
	ThereUnread There = iota
	// ThereSilent: no packet came back in time.
	ThereSilent
	// ThereRefused: a kernel refused.
	ThereRefused
	// ThereFailed: it was reached and did not answer as it should, or not in time after its kernel had accepted.
	ThereFailed
	// ThereAnswered: it answered its own probe.
	ThereAnswered
)

// String returns the word used in status.
func (t There) String() string {
	return [...]string{"unread", "silent", "refused", "failed", "answered"}[t]
}

// Rank returns the sign of life that the answer is.
func (t There) Rank() Rank {
	return [...]Rank{RankNone, RankNone, RankKernel, RankKernel, RankWriter}[t]
}

// AppThere is one guarded pod as asked from a vantage point. It counts only while the observer's own entry for the pod (Snapshot.Apps) is exclusive.
type AppThere struct {
	PodUID string
	// Says is the latest answer, and Asked the instant before which the question was not sent.
	Says  There
	Asked Instant
	// Answered is when it last answered its probe, Replied when anything of the host last answered in its stead; both are kept.
	Answered, Replied Sign
}

// Pulse is whether something on its own host answered the host's agent.
type Pulse uint8

// Values of Pulse.
const (
	PulseUnread Pulse = iota
	PulseAlive
	PulseDead
)

// String returns the word used in status.
func (p Pulse) String() string { return [...]string{"unread", "alive", "dead"}[p] }

// Report is what the host's own agent said of its host, to a vantage point or to the observer itself, and in no case by way of others.
type Report struct {
	Sign
	BootID                string
	Kubelet, Runtime, API Pulse
	// Storage is whether the devices under its pods' volumes complete anything, and Memory and IO whether its processes get on. No rule rests on them: they tell whoever
	// reads a verdict what else is wrong.
	Storage, Memory, IO Pulse
}

// String says it in status. What is as it should be besides, or is not known, is left out.
func (r Report) String() string {
	words := []string{fmt.Sprintf("kubelet %s, runtime %s, API %s", r.Kubelet, r.Runtime, r.API)}
	return strings.Join(append(words, r.amiss()...), ", ")
}

// Amiss is what an application on the host may fail of, and empty where nothing is known to be amiss.
func (r Report) Amiss() string { return strings.Join(r.amiss(), ", ") }

func (r Report) amiss() (words []string) {
	for _, c := range []struct {
		of   Pulse
		says string
	}{
		{r.Storage, "a volume's device completes nothing"},
		{r.Memory, "its processes wait for memory"},
		{r.IO, "its processes wait for storage"},
	} {
		if c.of == PulseDead {
			words = append(words, c.says)
		}
	}
	return words
}

// AgentLease is the Lease by which the host's own agent says that it lives while it hears no other agent, read live. The zero value is that of a host whose
// agent keeps none. docs/adr/0009-an-isolated-agent-speaks-through-the-api.md.
type AgentLease struct {
	// Read is false when the GET was not answered, or not made; Missing when there is no lease.
	Read    bool
	Missing bool
	// At is now, and Asked the instant before which the lease was not read.
	At, Asked Instant
	// BootID is the boot that it names.
	BootID string
	// Every is how long after this word the agent says the next one, at most, while it is cut off.
	Every time.Duration
	// Age is how long this observer has been looking at the same word: a lower bound.
	Age time.Duration
	// Moved is true when this observer has seen a word of this boot after another one, and NotBefore is then the last instant at which the latest had not yet
	// been said.
	Moved     bool
	NotBefore Instant

	// Pulse is true of a word that says nothing but that its agent reached the API: it was not said because nobody was heard.
	Pulse bool
	// Bound is how long at most the host lives after the word, by its watchdog, unless the agent says another; zero where no watchdog counts.
	Bound time.Duration
	// Since is when this observer had the word before it: it was said no later.
	Since Instant
	// Outlived is true when this observer has seen a word of this boot after one that said that the host would be reset by then.
	Outlived bool
}

// LeastBound is less than any agent gives itself: ten seconds of contact, and twice a timeout of four seconds. An announcement of less is none.
const LeastBound = 18 * time.Second

// Due is how long a word must have stood before its host is reset for certain: its bound, and a tenth of that for what the hardware's clock and ours are wrong
// by and what the reset takes, five seconds at least. Zero where nothing is announced.
func (l AgentLease) Due() time.Duration {
	if l.Bound < LeastBound {
		return 0
	}
	return l.Bound + max(l.Bound/10, 5*time.Second)
}

// Stood is how long the word is known to have stood: from when this observer had it to before it was last read live.
func (l AgentLease) Stood() time.Duration { return l.Asked.Sub(l.Since) }

const (
	// CallSpan is how long after gossip gave its host up an agent that lives and reaches the API has said so, at the latest: it takes itself for cut off after
	// 1.1 s in which nobody answers it, looks four times a second, and has the rest for one request. Gossip itself takes longer than that to give a host up.
	CallSpan = 2 * time.Second
	// callMargin is what a word of such an agent may come late.
	callMargin = time.Second
	// WordSpan is how old an answer of a vantage point may be and still be its word on the present.
	WordSpan = 5 * time.Second
	// AgentSpan is how long after the host's agent was last heard its userspace still counts as alive, unless gossip has given it up since.
	AgentSpan = 10 * time.Second
	// callMost is the longest time between two words of an agent that calls: that of 12,000 hosts. One that says that it takes longer is not waited for.
	callMost = time.Minute
)

// ofBoot reports whether the agent that answered there was of that boot.
func (v Vantage) ofBoot(boot string) bool { return v.AgentBoot != "" && v.AgentBoot == boot }

// answering are the vantage points on other hosts that answered in this round, each once.
func (s Snapshot) answering() []Vantage {
	if !s.Witnesses.On {
		return nil
	}
	var out []Vantage
	known := map[string]bool{s.Host.Node: true}
	for _, v := range s.Witnesses.Vantages {
		if v.Answered && s.At.Sub(v.At) <= WordSpan && !known[v.Witness] {
			known[v.Witness] = true
			out = append(out, v)
		}
	}
	return out
}

// Witnessed reports whether vantage points are to be asked at all: agents are configured, and one at least should answer. Where none is expected, it is as
// without agents.
func (s Snapshot) Witnessed() bool { return s.Witnesses.On && s.Witnesses.Expected > 0 }

// WitnessesAnswering is how many vantage points on other hosts answered in this round.
func (s Snapshot) WitnessesAnswering() int { return len(s.answering()) }

// most reports whether so many are more than half of the vantage points that should answer.
func (s Snapshot) most(n int) bool { return s.Witnessed() && 2*n > s.Witnesses.Expected }

// WitnessHears names an answering vantage point that hears anything of the host at present, on whatever plane and in whatever boot, and says what. One is
// enough: it may be the only one that can.
func (s Snapshot) WitnessHears() (words string, hears bool) {
	for _, v := range s.answering() {
		if words := s.hears(v); words != "" {
			return v.Witness + " hears it (" + words + ")", true
		}
	}
	return "", false
}

func (s Snapshot) hears(v Vantage) string {
	switch {
	case v.State == GossipAlive || v.State == GossipSuspect:
		return "gossip: " + v.State.String()
	case s.agentLately(v):
		return "its agent answers"
	case v.Port.Rank() != RankNone && s.At.Sub(v.PortAsked) <= WordSpan:
		return "port 10250: " + v.Port.String()
	}
	for _, a := range s.appsThere(v) {
		if a.Says.Rank() != RankNone && s.At.Sub(a.Asked) <= WordSpan {
			return "application: " + a.Says.String()
		}
	}
	return ""
}

// agentLately reports whether the host's agent, in whatever boot, answered this vantage point within AgentSpan, and after gossip there last gave it up.
func (s Snapshot) agentLately(v Vantage) bool {
	return v.Agent.Heard && s.At.Sub(v.Agent.NotBefore) <= AgentSpan && (v.State != GossipDead || v.Agent.NotBefore >= v.At-Instant(v.StateFor))
}

// appsThere are the applications as asked from there of which the observer knows that nobody else has their address.
func (s Snapshot) appsThere(v Vantage) []AppThere {
	var out []AppThere
	for _, a := range v.Apps {
		if s.exclusive(a.PodUID) {
			out = append(out, a)
		}
	}
	return out
}

func (s Snapshot) exclusive(podUID string) bool {
	for _, a := range s.Apps {
		if a.PodUID == podUID {
			return a.Exclusive
		}
	}
	return false
}

// WitnessesCallItDead reports whether more than half of the vantage points that should answer did, gossip at each of these has given the host up, and no
// vantage point hears anything of it.
func (s Snapshot) WitnessesCallItDead() bool {
	dead := 0
	for _, v := range s.answering() {
		if v.State == GossipDead {
			dead++
		}
	}
	_, heard := s.WitnessHears()
	return !heard && s.most(dead)
}

// GivenUp is since when gossip at every vantage point that has given the host up has done so; not before that instant, and not known where none has.
func (s Snapshot) GivenUp() (since Instant, known bool) {
	for _, v := range s.answering() {
		if v.State == GossipDead {
			since, known = max(since, v.At-Instant(v.StateFor)), true
		}
	}
	return since, known
}

// AgentWouldHaveCalled reports whether the host's own agent, did it live and reach the API, would have said so by now in its Lease, and has not. All of this must
// hold: gossip has given the host up at a quorum of vantage points, and none hears anything of it; a quorum of them had answers from the agent of this boot; nobody
// has heard anything of the host since, so that it is not the agent alone that died; the agent of this boot was able to write its Lease, and reached the API when it was last
// heard; and the Lease, read live long enough after gossip gave the host up, still has a word in it that the next should have followed.
func (s Snapshot) AgentWouldHaveCalled() bool {
	since, known := s.GivenUp()
	l, r := s.AgentLease, s.Witnesses.Report
	known = known && s.WitnessesCallItDead() && s.most(s.answeredByAgent()) && s.LastLife() <= since
	able := l.Read && !l.Missing && s.Host.BootID != "" && l.BootID == s.Host.BootID && r.Heard && r.BootID == s.Host.BootID && r.API == PulseAlive
	return known && able && l.Asked.Sub(since) >= CallSpan && l.Age > l.Every+callMargin
}

// answeredByAgent is how many answering vantage points have had an answer of the agent of this boot.
func (s Snapshot) answeredByAgent() int {
	n := 0
	for _, v := range s.answering() {
		if v.Agent.Heard && v.ofBoot(s.Host.BootID) {
			n++
		}
	}
	return n
}

// AgentCalls reports whether the agent of this boot said lately, through its Lease, that it hears nobody: in a large cluster, where words come more seldom, until the next is
// overdue.
func (s Snapshot) AgentCalls() bool {
	sign, called := s.called()
	return called && !s.AgentLease.Pulse && s.At.Sub(sign.NotAfter) <= max(AgentSpan, min(s.AgentLease.Every, callMost)+WordSpan)
}

// called is when the agent of this boot last spoke through its Lease, if this observer saw that.
func (s Snapshot) called() (Sign, bool) {
	l := s.AgentLease
	return Sign{Heard: true, NotBefore: l.NotBefore, NotAfter: l.At - Instant(l.Age)}, s.Witnesses.On && l.Moved && s.Host.BootID != "" && l.BootID == s.Host.BootID
}

// WitnessesSearched is how many vantage points asked the host's port in vain since it last showed life to anybody, and lately.
func (s Snapshot) WitnessesSearched() int {
	n := 0
	for _, v := range s.answering() {
		if v.Port.Silent() && s.At.Sub(v.PortAsked) <= WordSpan && v.PortAsked >= s.LastLife() {
			n++
		}
	}
	return n
}

// WitnessQuorum reports whether more than half of the vantage points that should answer did, and looked for the host in vain; or none is to be asked.
func (s Snapshot) WitnessQuorum() bool { return !s.Witnessed() || s.most(s.WitnessesSearched()) }

// WitnessLife is the strongest sign of life of this boot that vantage points have of the host at present, and who has it. Gossip alone is none.
func (s Snapshot) WitnessLife() (best Rank, words string) {
	see := func(r Rank, at Instant, by string) {
		if s.At.Sub(at) <= WordSpan && r > best {
			best, words = r, by
		}
	}
	for _, v := range s.answering() {
		if s.agentLately(v) && v.ofBoot(s.Host.BootID) && best < RankUserspace {
			best, words = RankUserspace, "its agent answers "+v.Witness
		}
		see(v.Port.Rank(), v.PortAsked, fmt.Sprintf("port 10250 from %s: %s", v.Witness, v.Port))
		for _, a := range s.appsThere(v) {
			see(a.Says.Rank(), a.Asked, fmt.Sprintf("application from %s: %s", v.Witness, a.Says))
		}
	}
	return best, words
}

// AnswersThere names a vantage point that an application on the host answers at present.
func (s Snapshot) AnswersThere(podUID string) (witness string, ok bool) {
	for _, v := range s.answering() {
		for _, a := range s.appsThere(v) {
			if a.PodUID == podUID && a.Says == ThereAnswered && s.At.Sub(a.Asked) <= WordSpan {
				return v.Witness, true
			}
		}
	}
	return "", false
}

// FailsThere reports whether an application on the host answers none of the vantage points, and more than half of those that should answer have asked it
// lately; or none is to be asked.
func (s Snapshot) FailsThere(podUID string) bool {
	if _, ok := s.AnswersThere(podUID); ok {
		return false
	}
	failed := 0
	for _, v := range s.answering() {
		for _, a := range s.appsThere(v) {
			if a.PodUID == podUID && a.Says != ThereUnread && s.At.Sub(a.Asked) <= WordSpan {
				failed++
			}
		}
	}
	return !s.Witnessed() || s.most(failed)
}

// ReportNow is what the host's own agent says of it, if that was in this boot and lately.
func (s Snapshot) ReportNow() (Report, bool) {
	r := s.Witnesses.Report
	return r, s.Witnesses.On && r.Heard && r.BootID != "" && r.BootID == s.Host.BootID && s.At.Sub(r.NotBefore) <= AgentSpan
}

// AgentSpoke reports whether the agent of this very boot answered anybody directly, not before the instant. Like a status of the kubelet, and unlike a lease, it
// names its boot.
func (s Snapshot) AgentSpoke(since Instant) (to string, spoke bool) {
	if !s.Witnesses.On || s.Host.BootID == "" {
		return "", false
	}
	if r := s.Witnesses.Report; r.Heard && r.BootID == s.Host.BootID && r.NotBefore >= since {
		return "us or a vantage point", true
	}
	if sign, ok := s.called(); ok && sign.NotBefore >= since {
		return "the API server", true
	}
	for _, v := range s.Witnesses.Vantages {
		if v.Agent.Heard && v.ofBoot(s.Host.BootID) && v.Agent.NotBefore >= since {
			return v.Witness, true
		}
	}
	return "", false
}

// witnessed hands every dated sign of life that the agents have of this boot to see. Gossip's states are not among them.
func (s Snapshot) witnessed(see func(Rank, Sign, string)) {
	w := s.Witnesses
	if !w.On {
		return
	}
	if w.Report.BootID != "" && w.Report.BootID == s.Host.BootID {
		see(RankUserspace, w.Report.Sign, "Agent")
	}
	if sign, ok := s.called(); ok {
		see(RankUserspace, sign, "Agent by its Lease")
	}
	for _, v := range w.Vantages {
		if v.ofBoot(s.Host.BootID) {
			see(RankUserspace, v.Agent, "Agent heard by "+v.Witness)
		}
		if v.Port.Rank() != RankNone {
			see(v.Port.Rank(), Sign{Heard: true, NotBefore: v.PortAsked, NotAfter: v.PortHeard.NotAfter}, "KubeletPort from "+v.Witness)
		}
		see(RankKernel, v.PortHeard, "KubeletPort from "+v.Witness)
		for _, a := range s.appsThere(v) {
			see(RankWriter, a.Answered, "Application from "+v.Witness)
			see(RankKernel, a.Replied, "Application from "+v.Witness)
		}
	}
}
