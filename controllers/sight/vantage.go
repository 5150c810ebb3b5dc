// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// vantage is one agent that is asked, or was, with all that was heard through it. Its fields are guarded by Witnesses.mu.
type vantage struct {
	host Host
	port int32
	// stop ends the asking; nil while it is not asked.
	stop context.CancelFunc
	poke chan struct{}

	// answeredOnce is true from its first answer on; last is when the latest answer was here, and answered is false from the next question in vain on.
	answeredOnce, answered bool
	last                   evidence.Instant
	// latest is when the latest view was here that says what gossip makes of the hosts, and tried when the latest that was asked for had come or not.
	latest, tried evidence.Instant
	// awaited is when the latest view was here that it was waited for.
	awaited evidence.Instant
	// failing is since when it has answered nothing, while it does not.
	failing evidence.Instant
	fails   bool
	seen    map[string]*seen
}

// seen is what is known through one vantage point of one host.
type seen struct {
	evidence.Vantage
	report evidence.Report
}

const (
	// benchAfter is how long a vantage point may fail to answer before another is asked in its stead, and benchFor for how long.
	benchAfter = 20 * time.Second
	benchFor   = 2 * time.Minute
	// oldest is the age beyond which an age is only said to be great: it keeps sums with it from running over.
	oldest = 24 * time.Hour
	// trip is by how much an answer may be younger than the question that an agent's age counts from: gossip takes none that comes later.
	trip = 500 * time.Millisecond
	// bootBytes is more than a boot ID takes.
	bootBytes = 64
)

func byName(a, b Host) int { return strings.Compare(a.Node, b.Node) }

func address(h Host, port int32) string { return net.JoinHostPort(h.Address, strconv.Itoa(int(port))) }

// at reports whether it is asked there.
func (v *vantage) at(h Host, port int32) bool { return v.host.Address == h.Address && v.port == port }

// wake has it asked at once.
func (v *vantage) wake() {
	select {
	case v.poke <- struct{}{}:
	default: // it is not asked, or will be already
	}
}

// benched reports whether it has failed to answer for so long that another is better asked.
func (v *vantage) benched(now evidence.Instant) bool {
	silent := now.Sub(v.failing)
	return v.fails && silent > benchAfter && silent < benchAfter+benchFor
}

// of is what it says of a host.
func (v *vantage) of(s *seen) evidence.Vantage {
	out := evidence.Vantage{}
	if s != nil {
		out = s.Vantage
		out.Apps = slices.Clone(s.Apps)
	}
	out.Witness, out.Zone, out.Answered, out.At = v.host.Node, v.host.Zone, v.answered, v.latest
	return out
}

func (v *vantage) about(host string) *seen {
	s := v.seen[host]
	if s == nil {
		s = &seen{}
		v.seen[host] = s
	}
	return s
}

// age is an age that was said; no agent says one below zero.
func age(ms int64) time.Duration {
	if ms > int64(oldest/time.Millisecond) {
		return oldest
	}
	return time.Duration(ms) * time.Millisecond
}

// boot is a boot ID that was said, or none where that is no boot ID.
func boot(said string) string {
	if len(said) > bootBytes {
		return ""
	}
	return said
}

// dated is the sign of an answer of that age, which was said between the two instants.
func dated(ms int64, asked, arrived evidence.Instant) evidence.Sign {
	return evidence.Sign{Heard: true, NotBefore: asked - evidence.Instant(age(ms)), NotAfter: min(arrived, arrived-evidence.Instant(age(ms)-trip))}
}

// newer reports whether a sign is the first, or certainly came later than what is known may have come.
func newer(known, sign evidence.Sign) bool { return !known.Heard || sign.NotBefore > known.NotBefore }

// latest is what two signs say of the latest moment at which anything was heard: not before the later of their first moments, and not after the later of their last.
// The view that was asked for first may be of the later moment, as where one is awaited; and what was heard once is never forgotten for a silence.
func latest(a, b evidence.Sign) evidence.Sign {
	switch {
	case !a.Heard:
		return b
	case !b.Heard:
		return a
	default:
		return evidence.Sign{Heard: true, NotBefore: max(a.NotBefore, b.NotBefore), NotAfter: max(a.NotAfter, b.NotAfter)}
	}
}

// said takes an answer of the host's agent, which named that boot.
func (s *seen) said(sign evidence.Sign, boot string) {
	switch {
	case s.AgentBoot == boot:
		s.Agent = latest(s.Agent, sign)
	case newer(s.Agent, sign):
		s.Agent, s.AgentBoot = sign, boot
	}
}

var states = map[wire.State]evidence.Gossip{wire.StateAlive: evidence.GossipAlive, wire.StateSuspect: evidence.GossipSuspect, wire.StateDead: evidence.GossipDead}

var pulses = map[wire.Pulse]evidence.Pulse{wire.Alive: evidence.PulseAlive, wire.Dead: evidence.PulseDead}

// twice names a host that the view has more than once. Such a view says nothing.
func twice(view wire.View) error {
	known := make(map[string]bool, len(view.Hosts))
	for _, h := range view.Hosts {
		if known[h.Node] {
			return fmt.Errorf("the view names host %.80q more than once", h.Node)
		}
		known[h.Node] = true
	}
	return nil
}

// take takes a view that was asked for and arrived at these instants, and names the hosts of which it says something new. Only hosts that are wanted are taken.
func (v *vantage) take(view wire.View, asked, arrived evidence.Instant, wanted func(host string) bool) (news []string) {
	before := make(map[string]evidence.Gossip, len(v.seen))
	for host, s := range v.seen {
		before[host] = s.State
		s.State, s.StateFor = evidence.GossipUnread, 0
	}
	for _, h := range view.Hosts {
		if !wanted(h.Node) {
			continue
		}
		s := v.about(h.Node)
		s.State, s.StateFor = states[h.State], age(h.StateAge)
		if v.hear(s, h, asked, arrived) || s.news(before[h.Node]) {
			news = append(news, h.Node)
		}
	}
	for host, was := range before {
		if s := v.seen[host]; was != evidence.GossipUnread && s.State == evidence.GossipUnread {
			news = append(news, host)
		}
	}
	return news
}

// news reports whether another state is one to look at: that a host which nobody doubted is heard is none.
func (s *seen) news(before evidence.Gossip) bool {
	return s.State != before && (before != evidence.GossipUnread || s.State != evidence.GossipAlive)
}

// hear takes what an agent answered directly, and what it says of its own host. It reports whether that is another boot, or something of the host lives or dies.
func (v *vantage) hear(s *seen, h wire.Host, asked, arrived evidence.Instant) bool {
	if h.HeardAge == nil {
		return false
	}
	sign := dated(*h.HeardAge, asked, arrived)
	if h.Node != v.host.Node {
		s.said(sign, boot(h.BootID))
	}
	if !newer(s.report.Sign, sign) {
		if s.report.BootID == boot(h.BootID) {
			s.report.Sign = latest(s.report.Sign, sign)
		}
		return false
	}
	if s.report.BootID == boot(h.BootID) {
		sign = latest(s.report.Sign, sign)
	}
	was := s.report
	s.report = evidence.Report{Sign: sign, BootID: boot(h.BootID), Kubelet: pulses[h.Kubelet], Runtime: pulses[h.Runtime], API: pulses[h.API],
		Storage: pulses[h.Storage], Memory: pulses[h.Memory], IO: pulses[h.IO]}
	now := s.report
	was.Sign, now.Sign = evidence.Sign{}, evidence.Sign{}
	return was != now && was.BootID != ""
}
