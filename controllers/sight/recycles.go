// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

const (
	// recycleFor bounds a round, looking and all. Agents forget a look after fifteen minutes.
	recycleFor = 10 * time.Minute
	// recycleOrder bounds a request: what the agent gives itself, and a way there and back.
	recycleOrder = wire.RecycleMillis*time.Millisecond + time.Second
	// recycleLanes is how many agents are asked to look at a time.
	recycleLanes = 16
	// recycleTurn is how long a turn takes: agents end connections for so long before they are asked again.
	recycleTurn = wire.RecycleSeconds * time.Second
)

// Recycle is one round: some of the connections that there are to some pods.
type Recycle struct {
	// ID names the round, at agents too. It is never used again.
	ID string
	// Servers are addresses with ports of pods that live, Except addresses of clients that are left alone.
	Servers, Except []string
	// PerSecond is how many connections are ended in a second on all hosts together, and Percent how many of those that are found.
	PerSecond, Percent int
}

// Recycled is how far a round is.
type Recycled struct {
	// Over says why it has ended, empty while it has not.
	Over string
	// Hosts is how many agents answered that they looked, Found how many connections they found, Limit how many of them may be ended, and Begun how many were begun to be, at most:
	// where an agent has not said how many, as many as it was asked for.
	Hosts, Found, Limit, Begun int
}

// Recycles has agents end some connections to pods that live, paced over all of them together, for one app after the other: an agent serves one request at a time.
// It does so only while it runs, and it runs only on the leader: when that is gone, the agents end what they were asked for last, a turn's worth at most, and no more.
type Recycles struct {
	witnesses *Witnesses
	clock     *Clock
	poke      chan struct{}

	mu     sync.Mutex
	begun  int                   // rounds, so far
	rounds map[string]*recycling // by app, the last one
}

// recycling is one round; Recycles.mu guards it.
type recycling struct {
	Recycle
	Recycled
	nth   int // of all rounds, in the order in which they begin
	taken bool
	stop  context.CancelFunc // nil until it is taken
}

// NewRecycles returns one that asks nobody until it is started.
func NewRecycles(w *Witnesses) *Recycles {
	return &Recycles{witnesses: w, clock: w.clock, poke: make(chan struct{}, 1), rounds: map[string]*recycling{}}
}

// NeedLeaderElection keeps standbys from asking.
func (r *Recycles) NeedLeaderElection() bool { return true }

// Start carries rounds out until the context ends. It implements manager.Runnable.
func (r *Recycles) Start(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.poke:
		}
		for round, own := r.next(ctx); round != nil && ctx.Err() == nil; round, own = r.next(ctx) {
			r.end(round, r.carryOut(own, round))
		}
	}
}

// next takes the first of the rounds that nobody has taken yet; nil where there is none. Its context ends with the round.
func (r *Recycles) next(ctx context.Context) (first *recycling, own context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, round := range r.rounds {
		if !round.taken && round.Over == "" && (first == nil || round.nth < first.nth) {
			first = round
		}
	}
	if first == nil {
		return nil, nil
	}
	own, first.stop = context.WithCancel(ctx)
	first.taken = true
	return first, own
}

// Begin begins a round of an app. The caller has written down that it does.
func (r *Recycles) Begin(app string, round Recycle) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before := r.rounds[app]; before != nil {
		before.halt("another round began")
	}
	r.begun++
	r.rounds[app] = &recycling{Recycle: round, nth: r.begun}
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// Stop ends the round of an app, if there is one.
func (r *Recycles) Stop(app, why string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if round := r.rounds[app]; round != nil {
		round.halt(why)
	}
}

// Of says how far a round is; known is false where this process has not begun it.
func (r *Recycles) Of(app, id string) (now Recycled, known bool) {
	if r == nil {
		return Recycled{}, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	round := r.rounds[app]
	if round == nil || round.ID != id {
		return Recycled{}, false
	}
	return round.Recycled, true
}

// halt ends a round, and what is asked for it; Recycles.mu is held.
func (r *recycling) halt(why string) {
	if r.Over == "" {
		r.Over = why
	}
	if r.stop != nil {
		r.stop()
	}
}

func (r *Recycles) end(round *recycling, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	round.halt(why)
}

// part is what one agent has of a round.
type part struct {
	node  string
	found int
	// room is how many it may end yet.
	room int
}

// carryOut carries one round out, and says why it is over.
func (r *Recycles) carryOut(ctx context.Context, round *recycling) string {
	deadline := r.clock.NewTimer(recycleFor)
	defer deadline.Stop()
	parts := r.look(ctx, round)
	if len(parts) == 0 {
		return "no agent has found a connection"
	}
	for turn := 0; ; turn++ {
		orders := deal(parts, round.PerSecond, turn)
		if len(orders) == 0 {
			return "all that was asked for is done"
		}
		pace := r.clock.NewTimer(recycleTurn)
		r.ask(ctx, round, orders)
		select {
		case <-ctx.Done():
			pace.Stop()
			return "the leader ends"
		case <-deadline.C():
			pace.Stop()
			return "its time is over"
		case <-pace.C():
		}
	}
}

// look has all agents look, and gives each that found something its share of what may be ended.
func (r *Recycles) look(ctx context.Context, round *recycling) []*part {
	hosts := r.witnesses.reachable("")
	parts := make([]*part, len(hosts))
	lanes := make(chan struct{}, recycleLanes)
	var asking sync.WaitGroup
	for i, h := range hosts {
		lanes <- struct{}{}
		asking.Go(func() {
			defer leave(lanes)
			answer, err := r.order(ctx, h.Node, wire.RecycleRequest{Round: round.ID, Servers: round.Servers, Except: round.Except})
			if err == nil {
				parts[i] = &part{node: h.Node, found: answer.Found}
			}
		})
	}
	asking.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*part
	for _, p := range parts {
		if p == nil {
			continue
		}
		round.Hosts++
		round.Found += p.found
		if p.found > 0 {
			out = append(out, p)
		}
	}
	round.Limit = round.Found * round.Percent / 100
	allot(out, round.Limit, round.Percent)
	return out
}

// allot gives each agent its per cent, rounded down, and what is left of the limit one by one.
func allot(parts []*part, limit, percent int) {
	for _, p := range parts {
		p.room = p.found * percent / 100
		limit -= p.room
	}
	for _, p := range parts {
		if limit > 0 && p.room < p.found {
			p.room++
			limit--
		}
	}
}

// turnOf is what one agent is asked for in a turn.
type turnOf struct {
	*part
	most, perSecond int
}

// deal gives the connections that may end in a second out to the agents that have some left, one by one, beginning with another one each turn.
func deal(parts []*part, perSecond, turn int) (out []turnOf) {
	rates := make([]int, len(parts))
	for given := true; given && perSecond > 0; {
		given = false
		for i := range parts {
			at := (i + turn) % len(parts)
			if perSecond > 0 && rates[at] < min(parts[at].room, wire.RecyclePerSecond) {
				rates[at]++
				perSecond--
				given = true
			}
		}
	}
	for i, rate := range rates {
		if rate > 0 {
			out = append(out, turnOf{part: parts[i], most: min(parts[i].room, rate*wire.RecycleSeconds), perSecond: rate})
		}
	}
	return out
}

// ask has the agents end what is theirs in a turn, and waits for all of them.
func (r *Recycles) ask(ctx context.Context, round *recycling, orders []turnOf) {
	var asking sync.WaitGroup
	for _, o := range orders {
		r.count(round, o.most) // while nobody has said otherwise
		asking.Go(func() {
			answer, err := r.order(ctx, o.node, wire.RecycleRequest{Round: round.ID, Most: o.most, PerSecond: o.perSecond})
			switch {
			case err == nil:
				r.count(round, answer.Begun-o.most)
				o.room = min(o.room-answer.Begun, answer.Left)
			case errors.Is(err, wire.ErrNothingDone): // it does not know the round any more
				r.count(round, -o.most)
				o.room = 0
			default: // it may have done all of it, and is not asked again
				o.room = 0
			}
		})
	}
	asking.Wait()
}

func (r *Recycles) count(round *recycling, more int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	round.Begun += more
}

func (r *Recycles) order(ctx context.Context, node string, request wire.RecycleRequest) (wire.RecycleAnswer, error) {
	bounded, done := context.WithTimeout(ctx, recycleOrder)
	defer done()
	answer, err := r.witnesses.Recycle(bounded, node, request)
	if err != nil && ctx.Err() == nil {
		r.witnesses.complain(Unreset, node, err)
	}
	return answer, err
}

// Recycle has the agent of a host look for connections to pods that live, or end some of them. An error that is wire.ErrNothingDone says that it ended none.
func (w *Witnesses) Recycle(ctx context.Context, host string, request wire.RecycleRequest) (wire.RecycleAnswer, error) {
	w.mu.Lock()
	h, port, on := w.hosts[host], w.port, w.on
	w.mu.Unlock()
	if !on || h.Address == "" {
		return wire.RecycleAnswer{}, fmt.Errorf("%w: no agent is known on %s", wire.ErrNothingDone, host)
	}
	agent := w.Reach(host)
	defer agent.Close()
	return agent.Recycle(ctx, address(h, port), request)
}
