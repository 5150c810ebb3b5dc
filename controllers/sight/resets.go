// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const (
	// resetSpan is what an agent is asked for at a time, and resetEvery how often: when this process dies, addresses are let go within the span.
	resetSpan  = 30 * time.Second
	resetEvery = 10 * time.Second
	// resetRetry is how long after an order in vain it is given again.
	resetRetry = time.Second
	// resetTurn is how often it is looked whether somebody has an address.
	resetTurn = 250 * time.Millisecond
	// resetFor bounds an order: what the agent gives itself, and a way there and back.
	resetFor = wire.ResetMillis*time.Millisecond + time.Second
	// resetLanes is how many orders are under way at a time, and resetAbreast how many at one agent, which takes four.
	resetLanes   = 64
	resetAbreast = 3
	// resetLag is how much later than it was asked for an agent may let go by itself.
	resetLag = time.Second
	// resetKept is how long what came of an address is known after its end.
	resetKept = time.Minute
)

// Resets has the agents of all hosts but the lost one end connections to lost addresses, and let addresses go: in the background, so that nobody who looks at
// hosts waits for an agent. An address is let go by itself when its time is over, when a pod object has it, and when an agent says that it lives on its host.
type Resets struct {
	// User names whoever has an address, nobody is empty. It is not changed once this runs.
	User func(ctx context.Context, address string) (string, error)

	witnesses *Witnesses
	clock     *Clock
	// ended is told the name of the lost host when an address is let go by itself.
	ended func(host string)
	lanes chan struct{}
	poke  chan struct{}

	mu sync.Mutex
	// lost is by address, and abreast how many orders are under way by agent.
	lost    map[string]*lost
	abreast map[string]int
}

// lost is one address.
type lost struct {
	host  string
	until evidence.Instant
	// over is why it is let go, empty while it is not, and at when that was.
	over   string
	at     evidence.Instant
	shares map[string]*share // by Node
}

// share is what one agent does about an address.
type share struct {
	busy, done bool
	found      int
	// kept is until when the agent may keep the address lost, next when to ask it again.
	kept, next evidence.Instant
}

// Reset is how far it is with an address.
type Reset struct {
	// Over says why the address was let go; empty while connections to it are reset.
	Over string
	// Hosts is how many are asked, Done how many have done it at least once, and Connections how many they found.
	Hosts, Done, Connections int
}

// NewResets returns one that asks nobody until it is started.
func NewResets(w *Witnesses, ended func(host string)) *Resets {
	return &Resets{witnesses: w, clock: w.clock, ended: ended, lanes: make(chan struct{}, resetLanes), poke: make(chan struct{}, 1),
		lost: map[string]*lost{}, abreast: map[string]int{}}
}

// NeedLeaderElection keeps standbys from asking.
func (r *Resets) NeedLeaderElection() bool { return true }

// Start asks until the context ends. It implements manager.Runnable.
func (r *Resets) Start(ctx context.Context) error {
	tick := r.clock.NewTicker(resetTurn)
	defer tick.Stop()
	var orders sync.WaitGroup
	defer orders.Wait()
	for {
		r.endThose(ctx)
		r.give(ctx, &orders)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		case <-r.poke:
		}
	}
}

// Begin has connections to an address of a released pod of the host end, for so long. One that is begun goes on as it was begun.
func (r *Resets) Begin(host, address string, span time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lost[address]; l == nil || l.over != "" {
		r.lost[address] = &lost{host: host, until: r.clock.Instant() + evidence.Instant(span), shares: map[string]*share{}}
		r.wake()
	}
}

// LetGo ends it. What another leader has begun is ended too: every agent is told.
func (r *Resets) LetGo(host, address, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lost[address]
	if l == nil {
		l = &lost{host: host, shares: map[string]*share{}}
		r.lost[address] = l
		for _, h := range r.witnesses.reachable(host) {
			l.shares[h.Node] = &share{kept: r.clock.Instant() + evidence.Instant(resetSpan+resetLag)}
		}
	}
	r.end(l, why)
}

// end is LetGo; mu is held.
func (r *Resets) end(l *lost, why string) {
	if l.over != "" {
		return
	}
	l.over, l.at = why, r.clock.Instant()
	for _, s := range l.shares {
		s.next = 0
	}
	r.wake()
}

func (r *Resets) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Of says how far it is with an address; known is false where this process has not begun it.
func (r *Resets) Of(address string) (now Reset, known bool) {
	if r == nil {
		return Reset{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lost[address]
	if l == nil {
		return Reset{}, false
	}
	now = Reset{Over: l.over, Hosts: len(l.shares)}
	for _, s := range l.shares {
		now.Connections += s.found
		if s.done {
			now.Done++
		}
	}
	return now, true
}

// endThose lets go whose time is over, and who belongs to somebody; and forgets what nobody wants to know any more.
func (r *Resets) endThose(ctx context.Context) {
	r.mu.Lock()
	open := map[string]evidence.Instant{}
	for address, l := range r.lost {
		switch now := r.clock.Instant(); {
		case l.over == "":
			open[address] = l.until
		case now.Sub(l.at) > resetKept:
			delete(r.lost, address)
		}
	}
	r.mu.Unlock()
	for address, until := range open {
		why := ""
		switch user, err := r.User(ctx, address); {
		case r.clock.Instant() >= until:
			why = "its time is over"
		case err != nil:
			why = "nobody knows who has the address: " + err.Error()
		case user != "":
			why = "the address belongs to " + user
		default:
			continue
		}
		r.over(address, why)
	}
}

// over ends an address by itself.
func (r *Resets) over(address, why string) {
	r.mu.Lock()
	l := r.lost[address]
	if l == nil || l.over != "" {
		r.mu.Unlock()
		return
	}
	r.end(l, why)
	r.mu.Unlock()
	r.ended(l.host)
}

// order is one request to one agent: about one address, so that what it answers is about that one.
type order struct {
	node, address string
	request       wire.ResetRequest
	span          time.Duration
	share         *share
}

// give gives all orders that are due, as long as there are lanes.
func (r *Resets) give(ctx context.Context, orders *sync.WaitGroup) {
	for _, o := range r.due() {
		orders.Go(func() {
			defer leave(r.lanes)
			r.carryOut(ctx, o)
		})
	}
}

// due takes the orders that are to be given now, and a lane for each.
func (r *Resets) due() []order {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []order
	for _, address := range slices.Sorted(maps.Keys(r.lost)) {
		l := r.lost[address]
		for _, h := range r.witnesses.reachable(l.host) {
			s := l.shares[h.Node]
			if s == nil {
				if l.over != "" {
					continue
				}
				s = &share{}
				l.shares[h.Node] = s
			}
			o, wanted := r.orderOf(address, l, s)
			if !wanted || r.abreast[h.Node] >= resetAbreast {
				continue
			}
			if !enter(r.lanes) {
				return out
			}
			o.node, s.busy = h.Node, true
			r.abreast[h.Node]++
			out = append(out, o)
		}
	}
	return out
}

// orderOf is what an agent is to be asked now about an address; mu is held.
func (r *Resets) orderOf(address string, l *lost, s *share) (o order, wanted bool) {
	now := r.clock.Instant()
	o = order{address: address, share: s}
	switch {
	case s.busy || s.next > now:
		return o, false
	case l.over == "":
		o.span = min(resetSpan, l.until.Sub(now)).Truncate(time.Millisecond)
		o.request = wire.ResetRequest{Lost: []string{address}, ForMillis: o.span.Milliseconds()}
		return o, o.span > 0
	default:
		o.request = wire.ResetRequest{Back: []string{address}}
		return o, s.kept > now
	}
}

// carryOut gives one order and notes what came of it.
func (r *Resets) carryOut(ctx context.Context, o order) {
	bounded, done := context.WithTimeout(ctx, resetFor)
	defer done()
	answer, err := r.witnesses.Reset(bounded, o.node, o.request)
	lives := r.note(o, answer, err)
	if lives {
		r.over(o.address, "the address lives on "+o.node)
	}
	if err != nil && ctx.Err() == nil && !lives {
		r.witnesses.complain(Unreset, o.node, err)
	}
	r.wake()
}

// note notes what came of an order, and reports whether the agent says that the address lives on its own host.
func (r *Resets) note(o order, answer wire.ResetAnswer, err error) (lives bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, now := o.share, r.clock.Instant()
	s.busy = false
	if r.abreast[o.node]--; r.abreast[o.node] == 0 {
		delete(r.abreast, o.node)
	}
	s.next = now + evidence.Instant(resetRetry)
	back := len(o.request.Back) > 0
	switch {
	case err == nil && back:
		s.kept = 0
	case back:
	case err == nil:
		s.done, s.found = true, s.found+answer.Found
		s.next = now + evidence.Instant(resetEvery)
		fallthrough
	case !errors.Is(err, wire.ErrNothingDone): // it may have been done
		s.kept = now + evidence.Instant(o.span+resetLag)
	}
	if l := r.lost[o.address]; !back && l != nil && l.over != "" {
		s.next = 0 // it was let go meanwhile
	}
	return !back && errors.Is(err, wire.ErrUnfit)
}

// Reset has the agent of a host end connections to lost addresses, or let addresses go. An error that is wire.ErrNothingDone says that it did nothing.
func (w *Witnesses) Reset(ctx context.Context, host string, request wire.ResetRequest) (wire.ResetAnswer, error) {
	agent, where, err := w.agentOf(host)
	if err != nil {
		return wire.ResetAnswer{}, err
	}
	defer agent.Close()
	return agent.Reset(ctx, where, request)
}

// reachable are the hosts but one whose agents can be asked, by name.
func (w *Witnesses) reachable(but string) []Host {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return nil
	}
	return slices.DeleteFunc(slices.SortedFunc(maps.Values(w.hosts), byName), func(h Host) bool { return h.Node == but || h.Address == "" || h.NoAgent })
}
