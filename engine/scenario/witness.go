// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// When the host's own agent speaks through its Lease: after so long without an answer, and then so often (agent/lease).
const (
	agentDeaf  = 1250 * time.Millisecond
	agentEvery = time.Second
	agentSoon  = time.Minute
	agentSlow  = 5 * time.Second
	// agentBetween is how often one touches its Lease while it looks for another host in vain.
	agentBetween = 3 * time.Second
)

// How gossip goes, and how long the observer goes on expecting an answer of an agent that gave one.
const (
	gossipSuspects = 500 * time.Millisecond
	gossipGivesUp  = 1500 * time.Millisecond
	forgets        = 2 * time.Minute
)

// witness is an agent on another host, as it truly is.
type witness struct {
	name string
	// cut: it does not reach the host. mute: it does not answer the observer. dead: it does neither, and gossips with nobody.
	cut, mute, dead bool
	// blank: gossip there does not know the host, and its port is not asked from there.
	blank bool
	// heard is when the host's agent last answered it, and report what that then said.
	heard  time.Duration
	report evidence.Report
}

// word is what the host's own agent last said in its Lease; count tells words apart.
type word struct {
	boot      string
	at, every time.Duration
	count     int
	// pulse: it was not said because nobody is heard. bound is what it says of the watchdog.
	pulse bool
	bound time.Duration
}

// vantage is what an observer remembers of a witness.
type vantage struct {
	evidence.Vantage
	answered time.Duration
}

// AddWitnesses puts agents on so many other hosts, which reset connections, as is the default.
func (w *World) AddWitnesses(n int) {
	w.Policy.ResetConnections = n > 0
	for range n {
		w.witnesses = append(w.witnesses, &witness{name: fmt.Sprintf("w%d", len(w.witnesses)+1)})
	}
}

// gossip lets the agents hear each other.
func (w *World) gossip() {
	h := &w.host
	if !h.powered || !h.kernel || !h.userspace || !h.agent {
		return
	}
	for _, x := range w.witnesses {
		if x.cut || x.dead || x.blank {
			continue
		}
		x.heard, w.gossiped = w.now, w.now
		x.report = evidence.Report{BootID: h.boot, Kubelet: pulse(h.kubelet), API: pulse(h.toAPI && !w.cluster.apiSilent)}
		if !h.runtimeUnread {
			x.report.Runtime = pulse(!h.runtimeDown)
		}
		if h.noStorage {
			x.report.Storage = evidence.PulseDead
		}
	}
}

// call lets the host's own agent speak through the API: once in each boot, then while it hears nobody, and all the time where it has a watchdog.
func (w *World) call() {
	h := &w.host
	silence, every := w.now-w.gossiped, agentEvery
	if silence > agentDeaf+agentSoon {
		every = agentSlow
	}
	alone := w.gossiped > 0 && silence > agentDeaf
	pulse := h.watchdog.there() && (!h.watchdog.held || w.now-h.word.at >= h.watchdog.span/4)
	if h.word.boot != h.boot || (alone && w.now-h.word.at >= every) || pulse {
		w.says(word{every: every, pulse: !alone && h.watchdog.there()})
	}
}

// touch has the agents that answer the observer write their own Leases while they are asked to look for the host in vain.
func (w *World) touch() {
	asked := slices.ContainsFunc(w.witnesses, func(x *witness) bool { return !x.mute && !x.dead })
	if !asked || w.gossiped == 0 || w.now-w.gossiped < gossipSuspects || w.cluster.othersSilent || w.cluster.apiSilent || w.now-w.touched < agentBetween {
		return
	}
	w.touched = w.now
	w.cluster.othersCount++
}

// says puts a word of the host's own agent into its Lease, and reports whether the API took it.
func (w *World) says(x word) bool {
	h := &w.host
	if len(w.witnesses) == 0 || !h.powered || !h.kernel || !h.userspace || !h.agent || !h.toAPI || w.cluster.apiSilent {
		return false
	}
	x.boot, x.at, x.count = h.boot, w.now, h.word.count+1
	if x.every > 0 {
		x.bound = h.watchdog.bound()
	}
	h.word = x
	if h.watchdog.there() {
		h.watchdog.reached(w.now)
	}
	return true
}

// agentLease is the Lease of the host's own agent as the observer knows it.
func (w *World) agentLease() evidence.AgentLease {
	if len(w.witnesses) == 0 {
		return evidence.AgentLease{}
	}
	h, m := w.host, w.eyes.word
	now := evidence.Instant(w.now)
	return evidence.AgentLease{Read: !h.leaseUnread && !w.cluster.apiSilent, Missing: h.word.count == 0, At: now, Asked: now, BootID: h.word.boot, Every: h.word.every,
		Age: w.now - m.firstSeen, Moved: m.moved, NotBefore: evidence.Instant(m.notBefore), Pulse: h.word.pulse, Bound: h.word.bound, Since: evidence.Instant(m.firstSeen), Outlived: w.eyes.outlived}
}

func pulse(alive bool) evidence.Pulse {
	if alive {
		return evidence.PulseAlive
	}
	return evidence.PulseDead
}

// gossipSays is what every agent makes of the host: one that hears it tells the others.
func (w *World) gossipSays() (state evidence.Gossip, since time.Duration) {
	switch silent := w.now - w.gossiped; {
	case w.gossiped == 0:
		return evidence.GossipUnread, 0
	case silent >= gossipGivesUp:
		return evidence.GossipDead, silent - gossipGivesUp
	case silent >= gossipSuspects:
		return evidence.GossipSuspect, silent - gossipSuspects
	default:
		return evidence.GossipAlive, silent
	}
}

// lookAtWitness asks one agent for its view of the host, and to try port and applications.
func (w *World) lookAtWitness(x *witness) {
	v, known := w.eyes.vantages[x.name]
	if x.mute || x.dead {
		if known {
			w.eyes.woken = w.eyes.woken || v.Answered
			v.Answered = false
		}
		return
	}
	if !known {
		v = &vantage{Vantage: evidence.Vantage{Witness: x.name}}
		w.eyes.vantages[x.name] = v
	}
	state, port := v.State, v.Port
	v.Answered, v.At, v.answered = true, evidence.Instant(w.now), w.now
	v.State, v.StateFor = w.gossipSays()
	if x.heard > 0 {
		v.Agent, v.AgentBoot = sign(x.heard), x.report.BootID
	}
	v.Port, v.PortAsked = w.host.port(!x.cut), evidence.Instant(w.now)
	if x.blank {
		v.Port, v.PortAsked, v.State, v.StateFor = evidence.AnswerUnread, 0, evidence.GossipUnread, 0
	}
	if v.Port.Rank() != evidence.RankNone {
		v.PortHeard = sign(w.now)
	}
	w.eyes.woken = w.eyes.woken || state != v.State || port != v.Port
	for _, p := range w.pods {
		w.askThere(v, x, p)
	}
}

// sign is dated to within a tick, on the safe side.
func sign(at time.Duration) evidence.Sign {
	return evidence.Sign{Heard: true, NotBefore: evidence.Instant(at - tick), NotAfter: evidence.Instant(at)}
}

func (w *World) askThere(v *vantage, x *witness, p *pod) {
	i := slices.IndexFunc(v.Apps, func(a evidence.AppThere) bool { return a.PodUID == p.UID })
	if i < 0 {
		v.Apps, i = append(v.Apps, evidence.AppThere{PodUID: p.UID}), len(v.Apps)
	}
	a := &v.Apps[i]
	if !p.probed {
		a.Says = evidence.ThereUnread
		return
	}
	before := a.Says
	a.Asked, a.Says = evidence.Instant(w.now), evidence.ThereSilent
	if h := w.host; !x.cut && h.powered && h.kernel && h.userspace {
		a.Says, a.Replied = evidence.ThereRefused, sign(w.now)
		if p.serves {
			a.Says, a.Answered = evidence.ThereAnswered, sign(w.now)
		}
	}
	w.eyes.woken = w.eyes.woken || before != a.Says
}

// witnessesNow is what the observer has from the agents now.
func (w *World) witnessesNow() evidence.Witnesses {
	out := evidence.Witnesses{On: len(w.witnesses) > 0}
	for _, x := range w.witnesses {
		v, known := w.eyes.vantages[x.name]
		if !known {
			continue
		}
		if w.now-v.answered <= forgets {
			out.Expected++
		}
		one := v.Vantage
		one.Apps = slices.Clone(v.Apps)
		out.Vantages = append(out.Vantages, one)
		if heard := sign(x.heard); v.Answered && x.heard > 0 && (!out.Report.Heard || heard.NotBefore > out.Report.NotBefore) {
			out.Report = x.report
			out.Report.Sign = heard
		}
	}
	return out
}

func onWitness(do func(*witness)) func(*World, []string) error {
	return func(w *World, a []string) error {
		for _, x := range w.witnesses {
			if x.name == a[0] {
				do(x)
				return nil
			}
		}
		return fmt.Errorf("no witness %q", a[0])
	}
}

func allWitnesses(do func(*witness)) func(*World, []string) error {
	return truth(func(w *World) {
		for _, x := range w.witnesses {
			do(x)
		}
	})
}
