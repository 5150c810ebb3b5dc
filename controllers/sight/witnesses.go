// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Agent is how the agent of one Node is asked, and nobody in its stead: a call.Client.
type Agent interface {
	// View returns what it sees now, Await what it sees once the index of that is another one.
	View(ctx context.Context, address string) (wire.View, error)
	Await(ctx context.Context, address string, index uint64) (wire.View, error)
	// Probe has it try questions; there is one answer to each, in their order.
	Probe(ctx context.Context, address string, questions []wire.Question) (wire.ProbeAnswer, error)
	// Restart has it restart the kubelet of its host. An error that is wire.ErrNothingDone says that it did not; after any other it may have.
	Restart(ctx context.Context, address string, request wire.RestartRequest) (wire.RestartAnswer, error)
	// Reset has it end connections to lost addresses, and let others go, as Restart does what it does.
	Reset(ctx context.Context, address string, request wire.ResetRequest) (wire.ResetAnswer, error)
	// Recycle has it look for connections to pods that live, or end some of those that it looked for, as Restart does what it does.
	Recycle(ctx context.Context, address string, request wire.RecycleRequest) (wire.RecycleAnswer, error)
	Close()
}

// Host is one that may have an agent.
type Host struct {
	Node    string
	Address string
	Zone    string
	// Ready is false while the API says that its kubelet is not heard, or not well.
	Ready bool
	// NoAgent is true where none is run, as on a host that has no Linux: nobody is asked there.
	NoAgent bool
}

// Roll is which hosts there are, and where their agents listen.
type Roll struct {
	// On is false where no agents are configured: nobody is asked then.
	On    bool
	Port  int32
	Hosts []Host
}

// Witnesses asks some agents, all the time, what they see of the other hosts, and has them look for those that are under suspicion. What it keeps of their
// answers is the evidence of docs/spec/witness.md. It asks only while it runs, and it runs only on the leader.
type Witnesses struct {
	// Reach returns who asks the agent of a Node, Roll which hosts there are, and Targets the guarded pods on a host. OwnHost is the Node that this process
	// runs on. None is changed once it runs.
	Reach   func(node string) Agent
	Roll    func(context.Context) (Roll, error)
	Targets func(host string) []Target
	OwnHost string
	Log     logr.Logger

	clock *Clock
	// changed is told the name of a host whenever a vantage point says something new of it.
	changed func(host string)

	mu   sync.Mutex
	on   bool
	port int32
	// hosts are those of the roll, suspects those that are to be looked for.
	hosts, suspects map[string]Host
	vantages        map[string]*vantage
	// news is closed, and made again, whenever a vantage point has answered or not.
	news   chan struct{}
	counts map[Complaint]uint64
	told   map[Complaint]evidence.Instant
}

const (
	// mostVantages is how many agents are asked.
	mostVantages = 5
	// fewVantages: where there are no more than so many others, the agent on this process' own host is asked too, though it sees no more than this process does.
	fewVantages = 2
	// rollEvery is how often hosts and settings are read.
	rollEvery = 5 * time.Second
	// forgets is how long an answer is expected of an agent that gave one, and does not any more.
	forgets = 2 * time.Minute
	// remembers is how long what was heard through one that is not asked any more is kept.
	remembers = time.Hour
	// freshFor is how old an answer may be for a suspicion to begin without waiting for another one, and patience how long it waits.
	freshFor = 2 * time.Second
	patience = time.Second
)

// NewWitnesses returns one that asks nobody until it is started.
func NewWitnesses(c *Clock, changed func(host string)) *Witnesses {
	return &Witnesses{clock: c, changed: changed, hosts: map[string]Host{}, suspects: map[string]Host{}, vantages: map[string]*vantage{}, news: make(chan struct{}),
		counts: map[Complaint]uint64{}, told: map[Complaint]evidence.Instant{}}
}

// NeedLeaderElection keeps standbys from asking.
func (w *Witnesses) NeedLeaderElection() bool { return true }

// Start asks until the context ends. It implements manager.Runnable.
func (w *Witnesses) Start(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	tick := w.clock.NewTicker(rollEvery)
	defer tick.Stop()
	for {
		roll, err := w.Roll(ctx)
		if err == nil {
			w.call(ctx, roll, &asking)
		} else if ctx.Err() == nil {
			w.complain(Unread, "", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		}
	}
}

// call begins to ask those that are chosen of the roll, and ends to ask the others.
func (w *Witnesses) call(ctx context.Context, roll Roll, asking *sync.WaitGroup) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.port = roll.On, roll.Port
	w.hosts = make(map[string]Host, len(roll.Hosts))
	for _, h := range roll.Hosts {
		w.hosts[h.Node] = h
	}
	w.forget()
	var chosen []Host
	if w.on {
		chosen = w.choose()
	}
	for _, v := range w.vantages {
		if v.stop != nil && !slices.ContainsFunc(chosen, func(h Host) bool { return h.Node == v.host.Node && v.at(h, w.port) }) {
			v.stop()
			v.stop = nil
		}
	}
	for _, h := range chosen {
		v := w.vantages[h.Node]
		if v == nil {
			v = &vantage{seen: map[string]*seen{}}
			w.vantages[h.Node] = v
		}
		v.host.Zone = h.Zone
		if v.stop != nil {
			continue
		}
		v.host, v.port, v.poke, v.fails = h, w.port, make(chan struct{}, 1), false
		var life context.Context
		life, v.stop = context.WithCancel(ctx)
		one := &asker{Witnesses: w, vantage: v, node: h.Node, address: address(h, w.port), agent: w.Reach(h.Node), poke: v.poke}
		asking.Go(func() { one.ask(life) })
	}
}

// forget drops what nobody asks about any more; w.mu is held.
func (w *Witnesses) forget() {
	now := w.clock.Instant()
	for node, v := range w.vantages {
		if v.stop == nil && len(w.suspects) == 0 && now.Sub(v.last) > remembers {
			delete(w.vantages, node)
			continue
		}
		for host := range v.seen {
			_, listed := w.hosts[host]
			if _, suspect := w.suspects[host]; !listed && !suspect {
				delete(v.seen, host)
			}
		}
	}
}

// Suspect has the vantage points look for a host, until Trust. It returns once one of them has said what it sees now, or none has in a second: before that, their
// silence is none.
func (w *Witnesses) Suspect(ctx context.Context, host string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	before, known := w.suspects[host]
	now := before
	if h, listed := w.hosts[host]; listed {
		now = h
	}
	now.Node = host
	w.suspects[host] = now
	on := w.on
	if !known {
		for _, v := range w.vantages {
			v.wake()
		}
	}
	w.mu.Unlock()
	if !known && on {
		w.awaitWord(ctx)
	}
}

// awaitWord waits until somebody has answered lately, or all have been asked in vain.
func (w *Witnesses) awaitWord(ctx context.Context) {
	begun := w.clock.Instant()
	enough := w.clock.NewTimer(patience)
	defer enough.Stop()
	for {
		w.mu.Lock()
		news, open := w.news, 0
		for _, v := range w.vantages {
			if v.answered && v.latest >= begun-evidence.Instant(freshFor) {
				w.mu.Unlock()
				return
			}
			if v.stop != nil && v.answeredOnce && v.tried < begun {
				open++
			}
		}
		w.mu.Unlock()
		if open == 0 {
			return
		}
		select {
		case <-news:
		case <-enough.C():
			return
		case <-ctx.Done():
			return
		}
	}
}

// Trust ends it. What was heard of the host stays known.
func (w *Witnesses) Trust(host string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, known := w.suspects[host]; !known {
		return
	}
	delete(w.suspects, host)
	there := map[string]bool{}
	for _, t := range w.Targets(host) {
		there[t.UID] = true
	}
	for _, v := range w.vantages {
		if s := v.seen[host]; s != nil {
			s.Apps = slices.DeleteFunc(s.Apps, func(a evidence.AppThere) bool { return !there[a.PodUID] })
		}
	}
}

// Doubted reports whether some vantage point's gossip does not hear the host, or has given it up: it is worth a look then, and to be looked for.
func (w *Witnesses) Doubted(host string) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for node, v := range w.vantages {
		if s := v.seen[host]; s != nil && node != host && v.stop != nil && v.answered && (s.State == evidence.GossipSuspect || s.State == evidence.GossipDead) {
			return true
		}
	}
	return false
}

// On reports whether agents are configured.
func (w *Witnesses) On() bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.on
}

// Of is what the agents say of a host, for its snapshot. Without agents, and on nil, it is the zero value.
func (w *Witnesses) Of(host string) evidence.Witnesses {
	if w == nil {
		return evidence.Witnesses{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on {
		return evidence.Witnesses{}
	}
	out := evidence.Witnesses{On: true}
	for _, node := range slices.Sorted(maps.Keys(w.vantages)) {
		v := w.vantages[node]
		if !v.answeredOnce {
			continue
		}
		s := v.seen[host]
		if s != nil && s.report.Heard && (!out.Report.Heard || s.report.NotBefore > out.Report.NotBefore) {
			out.Report = s.report
		}
		if node == host { // nobody is a vantage point on itself
			continue
		}
		if w.expected(v) {
			out.Expected++
		}
		out.Vantages = append(out.Vantages, v.of(s))
	}
	return out
}

// expected reports whether a vantage point should answer; w.mu is held. One whose own host is in trouble by the word of the API need not, unless it does.
func (w *Witnesses) expected(v *vantage) bool {
	now := w.clock.Instant()
	if v.answered && now.Sub(v.latest) <= evidence.WordSpan {
		return true
	}
	return now.Sub(v.last) <= forgets && w.hosts[v.host.Node].Ready
}

// choose names those that are to be asked; w.mu is held. Those that have answered and those of whom gossip says that they live come first; then the zone that
// has the fewest. Who does not answer makes room for another for a while.
func (w *Witnesses) choose() []Host {
	candidates := slices.DeleteFunc(slices.SortedFunc(maps.Values(w.hosts), byName), func(h Host) bool { return h.Address == "" || h.NoAgent })
	others := slices.DeleteFunc(slices.Clone(candidates), func(h Host) bool { return h.Node == w.OwnHost })
	if len(others) > fewVantages {
		candidates = others
	}
	inZone := map[string]int{}
	var chosen []Host
	for len(chosen) < mostVantages && len(candidates) > 0 {
		best := 0
		for i := range candidates {
			if w.worth(candidates[i], inZone) > w.worth(candidates[best], inZone) {
				best = i
			}
		}
		inZone[candidates[best].Zone]++
		chosen = append(chosen, candidates[best])
		candidates = slices.Delete(candidates, best, best+1)
	}
	return chosen
}

// worth orders candidates: the greater the better.
func (w *Witnesses) worth(h Host, inZone map[string]int) int {
	worth := -8 * inZone[h.Zone]
	v := w.vantages[h.Node]
	if v != nil && v.stop != nil { // nobody is changed without a reason
		worth += 4
	}
	if v != nil && v.benched(w.clock.Instant()) {
		worth -= 10000
	}
	if v != nil && v.stop == nil && !v.answeredOnce { // tried once: first come those that were not
		worth -= 100
	}
	for node, by := range w.vantages {
		if s := by.seen[h.Node]; s != nil && node != h.Node && by.answered && s.State == evidence.GossipAlive {
			return worth + 1000
		}
	}
	if v != nil && v.answered {
		worth += 1000
	}
	return worth
}

// Asked are the hosts whose agents are asked at present, by name.
func (w *Witnesses) Asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, node := range slices.Sorted(maps.Keys(w.vantages)) {
		if w.vantages[node].stop != nil {
			out = append(out, node)
		}
	}
	return out
}

// Restart has the agent of a host restart its kubelet, in the boot that the request names. An error that is wire.ErrNothingDone says that it did not.
func (w *Witnesses) Restart(ctx context.Context, host string, request wire.RestartRequest) (wire.RestartAnswer, error) {
	if w == nil {
		return wire.RestartAnswer{}, fmt.Errorf("%w: there are no agents", wire.ErrNothingDone)
	}
	agent, where, err := w.agentOf(host)
	if err != nil {
		return wire.RestartAnswer{}, err
	}
	defer agent.Close()
	return agent.Restart(ctx, where, request)
}

// agentOf is who asks the agent of a host, to be closed, and where that listens. Where none is known, the error is wire.ErrNothingDone.
func (w *Witnesses) agentOf(host string) (agent Agent, where string, err error) {
	w.mu.Lock()
	h, port, on := w.hosts[host], w.port, w.on
	w.mu.Unlock()
	if !on || h.Address == "" {
		return nil, "", fmt.Errorf("%w: no agent is known on %s", wire.ErrNothingDone, host)
	}
	return w.Reach(host), address(h, port), nil
}
