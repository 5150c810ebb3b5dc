// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// How long things are remembered.
const (
	// rememberDead is how long a host stays in the view that died: whoever looks must find it there long after the fact, and a host that was taken away
	// must go some day.
	rememberDead = time.Hour
	// rememberFarewell is how near to each other a farewell and a death have to be to be an orderly departure.
	rememberFarewell = 10 * time.Second
	// missed is how long a host that died counts as one of the others.
	missed = time.Minute
)

// host is what is known of one.
type host struct {
	facts   wire.Facts
	address string
	state   wire.State
	since   time.Time
	// heard is when the host's own agent was last asked something that it answered, in the boot of facts. It is the moment of asking: what answers later
	// may have been alive no later than that. Zero if it never did.
	heard time.Time
	// farewell is when it said that it goes.
	farewell time.Time
}

// hosts is the one place where what is heard becomes what is said. It calls nobody, so it may be called from anywhere.
type hosts struct {
	clock clock.PassiveClock
	own   string

	mu    sync.Mutex
	known map[string]*host
	// last is the latest of all dates of heard.
	last time.Time
	// among is of how many others this host found itself on the smaller side, fewer since when; zero while it is not there.
	among int
	fewer time.Time
	index uint64
	// changed is closed, and made again, whenever index grows.
	changed chan struct{}
}

// newHosts knows its own host and nobody else. Its index begins anywhere, so that whoever waits on the index of an earlier life is answered at once.
func newHosts(own wire.Facts, address string, clk clock.PassiveClock) *hosts {
	var begin [4]byte
	_, _ = rand.Read(begin[:])
	h := &hosts{clock: clk, own: own.Node, known: map[string]*host{}, index: uint64(binary.BigEndian.Uint32(begin[:])) << 16, changed: make(chan struct{})}
	h.known[own.Node] = &host{facts: own, address: address, state: wire.StateAlive, since: clk.Now()}
	return h
}

// grow is called with mu held, after a change that is in the view.
func (h *hosts) grow() {
	h.index++
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *hosts) setOwn(facts wire.Facts) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if own := h.known[h.own]; own.facts != facts {
		own.facts = facts
		h.grow()
	}
}

// joined is told that gossip takes a host for alive, with these facts. They are others' word: they give no date.
func (h *hosts) joined(facts wire.Facts, address string) {
	if facts.Node == h.own {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	known, ok := h.known[facts.Node]
	if !ok || known.facts.BootID != facts.BootID {
		// A new boot is a new host: nothing that was heard of the old one says anything of it.
		known = &host{state: wire.StateAlive, since: now}
		h.known[facts.Node] = known
	} else if known.facts == facts && known.state == wire.StateAlive && known.address == address {
		return
	}
	known.facts, known.address = facts, address
	if known.state != wire.StateAlive {
		known.state, known.since = wire.StateAlive, now
	}
	h.grow()
}

// left is told that gossip takes a host for dead, or for gone in order: it cannot tell them apart, so the host must have taken leave.
func (h *hosts) left(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.known[node]
	if !ok || node == h.own {
		return
	}
	now := h.clock.Now()
	if !known.farewell.IsZero() && now.Sub(known.farewell) < rememberFarewell {
		delete(h.known, node)
	} else if known.state != wire.StateDead {
		known.state, known.since = wire.StateDead, now
	}
	h.grow()
}

// farewell is told that a host says it goes. The word may come after the death that it is about: memberlist takes the latest of what has come first.
func (h *hosts) farewell(node, bootID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.known[node]
	if !ok || node == h.own || known.facts.BootID != bootID {
		return
	}
	now := h.clock.Now()
	known.farewell = now
	if known.state == wire.StateDead && now.Sub(known.since) < rememberFarewell {
		delete(h.known, node)
		h.grow()
	}
}

// suspect is told that a host did not answer this agent, and says whether that is news.
func (h *hosts) suspect(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.known[node]
	if !ok || node == h.own || known.state != wire.StateAlive {
		return false
	}
	known.state, known.since = wire.StateSuspect, h.clock.Now()
	h.grow()
	return true
}

// heard is told that a host's agent answered something that it was asked at that moment, and which boot it named. An answer of another boot than the one
// whose facts are known says nothing of that one; it is not taken, and heard says so.
func (h *hosts) heard(node, bootID string, asked time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.known[node]
	if !ok || bootID == "" || known.facts.BootID != bootID {
		return false
	}
	if asked.After(known.heard) {
		known.heard = asked
	}
	if asked.After(h.last) {
		h.last = asked
	}
	if known.state == wire.StateSuspect {
		known.state, known.since = wire.StateAlive, h.clock.Now()
		h.grow()
	}
	return true
}

// forget drops those who have been dead for long.
func (h *hosts) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	for node, known := range h.known {
		if known.state == wire.StateDead && now.Sub(known.since) > rememberDead {
			delete(h.known, node)
			h.grow()
		}
	}
}

// standing leaves out who has been dead for long: who is gone is missed no more.
func (h *hosts) standing() Standing {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.clock.Now()
	out := Standing{Last: h.last}
	for node, known := range h.known {
		switch {
		case node == h.own || (known.state == wire.StateDead && now.Sub(known.since) > missed):
		case known.state == wire.StateAlive:
			out.Others, out.Heard = out.Others+1, out.Heard+1
		default:
			out.Others++
		}
	}
	h.side(&out, now)
	return out
}

// side keeps those missed of whom most died at a time: they live on the other side of a cluster that fell apart, as likely as not, however long they have not
// been heard. That ends when as many are heard as are more than half of those of then, and after an hour. It is called with mu held.
func (h *hosts) side(now *Standing, at time.Time) {
	hears := 2 * (now.Heard + 1)
	switch {
	case hears <= now.Others+1:
		if h.among == 0 {
			h.fewer = at
		}
		h.among = max(h.among, now.Others)
	case hears > h.among+1, at.Sub(h.fewer) > rememberDead:
		h.among = 0
	}
	now.Others = max(now.Others, h.among)
}

// is says in which state a host is; the empty one if it is not known.
func (h *hosts) is(node string) (state wire.State, address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.known[node]; ok {
		return known.state, known.address
	}
	return "", ""
}

// addresses are those of other hosts in one of the states.
func (h *hosts) addresses(states ...wire.State) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for node, known := range h.known {
		if node != h.own && slices.Contains(states, known.state) {
			out = append(out, known.address)
		}
	}
	slices.Sort(out)
	return out
}

// await is the view as soon as its index is not the one given, or as it is when ctx ends.
func (h *hosts) await(ctx context.Context, index uint64) wire.View {
	for {
		h.mu.Lock()
		view, changed := h.view(), h.changed
		h.mu.Unlock()
		if view.Index != index {
			return view
		}
		select {
		case <-changed:
		case <-ctx.Done():
			// Its ages are of now, not of when the wait began.
			return h.now()
		}
	}
}

func (h *hosts) now() wire.View {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view()
}

// view is called with mu held. Ages are rounded up: what they date happened no earlier than they say.
func (h *hosts) view() wire.View {
	now := h.clock.Now()
	own := h.known[h.own]
	// Its own host is heard by itself, now.
	own.heard = now
	view := wire.View{Node: h.own, BootID: own.facts.BootID, Index: h.index, Hosts: make([]wire.Host, 0, len(h.known))}
	for _, known := range h.known {
		seen := wire.Host{Facts: known.facts, State: known.state, StateAge: wire.Millis(now.Sub(known.since))}
		if !known.heard.IsZero() {
			age := wire.Millis(now.Sub(known.heard))
			seen.HeardAge = &age
		}
		view.Hosts = append(view.Hosts, seen)
	}
	slices.SortFunc(view.Hosts, func(a, b wire.Host) int { return strings.Compare(a.Node, b.Node) })
	return view
}
