// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"maps"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Target is one guarded pod that is asked whether it serves.
type Target struct {
	// App is "namespace/name" of the GuardedStatefulApp, Pod is "namespace/name" of the pod.
	App    string
	Pod    string
	UID    string
	Host   string
	IP     string
	Ports  map[string]int32
	Health v1alpha1.Health
	// Uptime is how long the pod's containers had been running when the target was made.
	Uptime time.Duration
}

// Board asks guarded pods, and the kubelet ports of suspect hosts, all the time, and shows the latest answers. It asks only while it
// runs, and it runs only on the leader.
type Board struct {
	// Dial reaches applications and kubelets; NewBoard sets it to the network of this process. It is not changed once the board runs.
	Dial Dial

	clock *Clock
	// changed is told the name of a host whenever an answer there changes, the first failure of a probe included.
	changed func(host string)

	mu    sync.Mutex
	ctx   context.Context
	pods  map[string]*podBoard // by pod UID
	ports map[string]*portBoard
}

type podBoard struct {
	target Target
	stop   context.CancelFunc
	since  evidence.Instant
	tally  map[string]*tally

	hasAnswer, hasKernel   bool
	lastAnswer, lastKernel evidence.Instant
	kernelNow              map[string]bool
}

type portBoard struct {
	address string
	stop    context.CancelFunc
	latest  evidence.Port
}

// portEvery and portTimeout pace the questions to a suspect host's kubelet port.
const (
	kubeletPort = 10250
	portEvery   = 500 * time.Millisecond
	portTimeout = time.Second
)

// NewBoard returns a board that asks nothing until it is started.
func NewBoard(c *Clock, changed func(host string)) *Board {
	return &Board{Dial: (&net.Dialer{}).DialContext, clock: c, changed: changed, pods: map[string]*podBoard{}, ports: map[string]*portBoard{}}
}

// Start runs the board until the context ends. It implements manager.Runnable.
func (b *Board) Start(ctx context.Context) error {
	b.mu.Lock()
	b.ctx = ctx
	for _, p := range b.pods {
		b.run(p)
	}
	b.mu.Unlock()
	<-ctx.Done()
	return nil
}

// NeedLeaderElection keeps standbys from asking.
func (b *Board) NeedLeaderElection() bool { return true }

// Set replaces the targets of one app. A target that stays the same keeps its answers.
func (b *Board) Set(app string, targets []Target) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := map[string]bool{}
	for _, t := range targets {
		keep[t.UID] = true
		old, ok := b.pods[t.UID]
		if ok && same(old.target, t) {
			continue
		}
		if ok && old.stop != nil {
			old.stop()
		}
		p := &podBoard{target: t, since: b.clock.Instant(), tally: map[string]*tally{}, kernelNow: map[string]bool{}}
		if ok && old.target.IP == t.IP { // what was heard from there stays heard, whatever is asked from now on
			p.hasAnswer, p.lastAnswer, p.hasKernel, p.lastKernel = old.hasAnswer, old.lastAnswer, old.hasKernel, old.lastKernel
		}
		b.pods[t.UID] = p
		b.run(p)
	}
	for uid, p := range b.pods {
		if p.target.App == app && !keep[uid] {
			if p.stop != nil {
				p.stop()
			}
			delete(b.pods, uid)
		}
	}
}

// Targets returns the guarded pods on a host.
func (b *Board) Targets(host string) []Target {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Target
	for _, uid := range slices.Sorted(maps.Keys(b.pods)) {
		if t := b.pods[uid].target; t.Host == host {
			out = append(out, t)
		}
	}
	return out
}

func same(a, b Target) bool {
	a.Uptime, b.Uptime = 0, 0
	return reflect.DeepEqual(a, b)
}

// run starts the probes of a pod; the caller holds the lock.
func (b *Board) run(p *podBoard) {
	if b.ctx == nil || p.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(b.ctx)
	p.stop = stop
	for _, probe := range p.target.Health.Probes {
		p.tally[probe.Name] = &tally{}
		go b.probe(ctx, p, probe)
	}
}

func (b *Board) probe(ctx context.Context, p *podBoard, probe v1alpha1.Probe) {
	tick := b.clock.NewTicker(seconds(max(1, probe.PeriodSeconds)))
	defer tick.Stop()
	for {
		b.once(ctx, p, probe)
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

func (b *Board) once(ctx context.Context, p *podBoard, probe v1alpha1.Probe) {
	call, done := context.WithTimeout(ctx, seconds(max(1, probe.TimeoutSeconds)))
	defer done()
	sent := b.clock.Instant()
	err := ask(call, b.Dial, probe, p.target)
	if ctx.Err() != nil {
		return
	}
	b.mu.Lock()
	before, wellBefore := serving(p, b.clock.Instant()), p.well()
	p.tally[probe.Name].count(err == nil, probe)
	p.kernelNow[probe.Name] = errors.Is(err, errAlive)
	if err == nil && sent >= p.lastAnswer {
		p.hasAnswer, p.lastAnswer = true, sent
	}
	if errors.Is(err, errAlive) && sent >= p.lastKernel {
		p.hasKernel, p.lastKernel = true, sent
	}
	after, wellAfter := serving(p, b.clock.Instant()), p.well()
	b.mu.Unlock()
	if before != after || wellBefore != wellAfter {
		b.changed(p.target.Host)
	}
}

// well reports whether no probe failed when it was last asked, whatever its threshold: from the first failure on the host is worth a question.
func (p *podBoard) well() bool {
	for _, t := range p.tally {
		if t.row < 0 {
			return false
		}
	}
	return true
}

// serving joins the probes: all must pass; one that fails is enough, unless the pod is still starting.
func serving(p *podBoard, now evidence.Instant) evidence.Serving {
	all := evidence.ServingYes
	for _, probe := range p.target.Health.Probes {
		t := p.tally[probe.Name]
		if t == nil || t.verdict == evidence.ServingUnread {
			all = evidence.ServingUnread
			continue
		}
		if t.verdict == evidence.ServingNo {
			starting := !p.hasAnswer && p.target.Uptime+now.Sub(p.since) < seconds(p.target.Health.StartupSeconds)
			if starting {
				return evidence.ServingUnread
			}
			return evidence.ServingNo
		}
	}
	return all
}

// App returns what is known of a pod. ok is false when the pod is not probed.
func (b *Board) App(uid string) (a evidence.App, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.pods[uid]
	if !ok {
		return evidence.App{}, false
	}
	now := b.clock.Instant()
	a = evidence.App{App: p.target.App, Pod: p.target.Pod, PodUID: uid, Serving: serving(p, now), Asked: len(p.target.Health.Probes),
		HasAnswer: p.hasAnswer, LastAnswer: p.lastAnswer, HasKernel: p.hasKernel, LastKernel: p.lastKernel}
	for name, t := range p.tally {
		if t.row > 0 {
			a.Answered++
		}
		a.Kernel = a.Kernel || p.kernelNow[name]
	}
	switch {
	case a.Answered > 0:
	case p.hasAnswer:
		a.FailingFor = now.Sub(p.lastAnswer)
	default:
		a.FailingFor = now.Sub(p.since)
	}
	return a, true
}

// WatchPort begins to ask a suspect host's kubelet port; it goes on until UnwatchPort. Without an address, what is being asked already goes on.
func (b *Board) WatchPort(host, ip string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx == nil || ip == "" {
		return
	}
	if old, ok := b.ports[host]; ok {
		if old.address == ip {
			return
		}
		old.stop()
	}
	ctx, stop := context.WithCancel(b.ctx)
	p := &portBoard{address: ip, stop: stop}
	b.ports[host] = p
	go b.watchPort(ctx, host, p)
}

// UnwatchPort ends it and forgets the answers.
func (b *Board) UnwatchPort(host string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.ports[host]; ok {
		p.stop()
		delete(b.ports, host)
	}
}

func (b *Board) watchPort(ctx context.Context, host string, p *portBoard) {
	tick := b.clock.NewTicker(portEvery)
	defer tick.Stop()
	for {
		call, done := context.WithTimeout(ctx, portTimeout)
		asked := b.clock.Instant()
		answer := askPort(call, b.Dial, p.address, kubeletPort)
		done()
		if ctx.Err() != nil {
			return
		}
		b.mu.Lock()
		changed := p.latest.Answer != answer
		p.latest.Answer, p.latest.Asked = answer, asked
		if answer.Rank() != evidence.RankNone {
			p.latest.HasAnswer, p.latest.LastAnswer = true, asked
		}
		b.mu.Unlock()
		if changed {
			b.changed(host)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
	}
}

// Port returns the latest answer of a suspect host's kubelet port; unread if it is not being asked.
func (b *Board) Port(host string) evidence.Port {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.ports[host]; ok {
		return p.latest
	}
	return evidence.Port{}
}
