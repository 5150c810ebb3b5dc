// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Leases remembers when each kubelet's lease, and each Node's status, was seen to move. It never compares a stored time with a clock.
type Leases struct {
	clock *Clock

	mu       sync.Mutex
	lease    map[string]*motion
	status   map[string]*motion
	duration map[string]time.Duration
	agent    map[string]*word
}

// word is what the agent of a host says in its own Lease. Of the AgentLease, only what the word itself says is kept here.
type word struct {
	motion
	// written moves with every write of the Lease, also with one that says nothing new.
	written motion
	evidence.AgentLease
	// version is that of the Lease as it was last read: whoever writes it, whatever it says, the count of how long it has stood begins anew.
	version string
}

// motion is one value that moves.
type motion struct {
	value     string
	firstSeen evidence.Instant // when the present value was first seen
	seen      evidence.Instant // last live read, whatever it showed
	hasSeen   bool
	moved     bool
	notBefore evidence.Instant
}

// observe takes a value read at the instant given. Only a live read bounds the next move from below: a cache may lag by any time.
func (m *motion) observe(value string, at evidence.Instant, live bool) {
	if m.value == "" {
		m.value, m.firstSeen = value, at
	} else if value != m.value {
		m.value, m.firstSeen, m.moved = value, at, true
		m.notBefore = 0
		if m.hasSeen {
			m.notBefore = m.seen
		}
	}
	if live {
		m.seen, m.hasSeen = at, true
	}
}

// stale reports whether an answer tells less than is known: an older value from a cache that lags, or a live answer that was asked for before
// one that has come already.
func (m *motion) stale(value string, at evidence.Instant, live bool) bool {
	if live {
		return m.hasSeen && at < m.seen
	}
	return value < m.value
}

// NewLeases returns an empty memory.
func NewLeases(c *Clock) *Leases {
	return &Leases{clock: c, lease: map[string]*motion{}, status: map[string]*motion{}, duration: map[string]time.Duration{}, agent: map[string]*word{}}
}

// renewFormat writes times so that they sort as text.
const renewFormat = "2006-01-02T15:04:05.000000000Z"

// SeeLease takes a lease that was asked for at the instant given. A value older than the last one (from a lagging cache) is ignored.
func (l *Leases) SeeLease(lease *coordinationv1.Lease, asked evidence.Instant, live bool) {
	if lease.Spec.RenewTime == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := entry(l.lease, lease.Name)
	value := lease.Spec.RenewTime.UTC().Format(renewFormat)
	if m.stale(value, asked, live) {
		return
	}
	m.observe(value, asked, live)
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		l.duration[lease.Name] = time.Duration(*s) * time.Second
	}
}

// SeeAgent takes the Lease of a host's own agent, as SeeLease does that of its kubelet. A Lease that says nothing of a renewal is none.
func (l *Leases) SeeAgent(lease *coordinationv1.Lease, asked evidence.Instant, live bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lease.Spec.RenewTime == nil || lease.Spec.HolderIdentity == nil {
		if live {
			delete(l.agent, lease.Name) // what was said before stands there no more
		}
		return
	}
	w, ok := l.agent[lease.Name]
	if !ok {
		w = &word{}
		l.agent[lease.Name] = w
	}
	if version := fmt.Sprintf("%020s", lease.ResourceVersion); !w.written.stale(version, asked, live) {
		w.written.observe(version, asked, live)
	}
	said := boot(*lease.Spec.HolderIdentity)
	value := strings.Join([]string{lease.Spec.RenewTime.UTC().Format(renewFormat), said, lease.Annotations[wire.AnnotationSelfFence], lease.Annotations[wire.AnnotationPulse]}, "|")
	if w.stale(value, asked, live) {
		return
	}
	if value != w.value || lease.ResourceVersion != w.version {
		// It had stood for so long when it was last read live that the host was to be reset: whoever speaks after that was not.
		due := w.Due()
		late := due > 0 && w.hasSeen && w.seen.Sub(w.Since) >= due
		w.Outlived, w.Since = w.BootID == said && (w.Outlived || late), l.clock.Instant()
		w.version = lease.ResourceVersion
	}
	w.observe(value, asked, live)
	w.BootID, w.Every = said, 0
	if s := lease.Spec.LeaseDurationSeconds; s != nil {
		w.Every = time.Duration(*s) * time.Second
	}
	w.Pulse, w.Bound = lease.Annotations[wire.AnnotationPulse] == "true", bound(lease.Annotations[wire.AnnotationSelfFence])
}

// bound is what an agent says of its watchdog. What is no whole number of seconds, or longer than any agent gives itself, is nothing.
func bound(seconds string) time.Duration {
	n, err := strconv.ParseUint(seconds, 10, 16)
	if err != nil || n > wire.MaxSelfFenceSeconds {
		return 0
	}
	return time.Duration(n) * time.Second
}

// Agent returns what is known of the Lease of a host's own agent. read says whether a live read was answered that was asked at that instant.
func (l *Leases) Agent(host string, read, missing bool, asked evidence.Instant) evidence.AgentLease {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Instant()
	out := evidence.AgentLease{Read: read, Missing: missing, At: now, Asked: asked}
	if w, ok := l.agent[host]; ok {
		out = w.AgentLease
		out.Read, out.Missing, out.At, out.Asked = read, missing, now, asked
		out.Age, out.Moved, out.NotBefore = now.Sub(w.firstSeen), w.moved, w.notBefore
	}
	return out
}

// Forget drops what is known of a host that is gone for good.
func (l *Leases) Forget(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lease, host)
	delete(l.status, host)
	delete(l.duration, host)
	delete(l.agent, host)
}

// SeeNode takes a Node that was asked for at the instant given.
func (l *Leases) SeeNode(node *corev1.Node, asked evidence.Instant, live bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range node.Status.Conditions {
		if c.Type != corev1.NodeReady {
			continue
		}
		// The boot ID is part of the value: a status of another boot is another value, and its own motion.
		value := node.Status.NodeInfo.BootID + "|" + c.LastHeartbeatTime.UTC().Format(time.RFC3339)
		if c.Status == corev1.ConditionUnknown {
			// The controller-manager's word, not the kubelet's, whose date it keeps: read live, it shows that the kubelet has posted nothing new.
			if m, ok := l.status[node.Name]; ok && live && m.value == value && asked >= m.seen {
				m.seen, m.hasSeen = asked, true
			}
			continue
		}
		m := entry(l.status, node.Name)
		if m.value != "" && !strings.HasPrefix(m.value, node.Status.NodeInfo.BootID+"|") {
			if !live && m.hasSeen {
				continue // the boot that was read live stands until a live read shows another
			}
			delete(l.status, node.Name)
			m = entry(l.status, node.Name)
		}
		if !m.stale(value, asked, live) {
			m.observe(value, asked, live)
		}
	}
}

func entry(of map[string]*motion, name string) *motion {
	m, ok := of[name]
	if !ok {
		m = &motion{}
		of[name] = m
	}
	return m
}

// Lease returns what is known of the host's lease. read says whether the latest live read was answered.
func (l *Leases) Lease(host string, read, missing bool) evidence.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.clock.Instant()
	out := evidence.Lease{Read: read, Missing: missing, At: now, Duration: l.duration[host]}
	if m, ok := l.lease[host]; ok {
		out.Age = now.Sub(m.firstSeen)
		out.Moved, out.NotBefore = m.moved, m.notBefore
	}
	if out.Duration == 0 {
		out.Duration = 40 * time.Second // the kubelet's default, nodeLeaseDurationSeconds
	}
	return out
}

// Spoke reports the latest status that the kubelet was seen to post.
func (l *Leases) Spoke(host string) (bool, evidence.Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m, ok := l.status[host]; ok && m.moved {
		return true, m.notBefore
	}
	return false, 0
}

// Late counts hosts, of those named, whose lease is late by the measure given, and finds when a host that is not excepted last wrote through the API: when its
// kubelet renewed its lease, or its agent wrote its own.
func (l *Leases) Late(hosts []string, late func(evidence.Lease) bool, except ...string) (count int, other bool, notBefore evidence.Instant) {
	for _, h := range hosts {
		lease := l.Lease(h, true, false)
		if late(lease) {
			count++
			continue
		}
		if !slices.Contains(except, h) && lease.Moved && (!other || lease.NotBefore > notBefore) {
			other, notBefore = true, lease.NotBefore
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range hosts {
		w := l.agent[h]
		if w == nil || slices.Contains(except, h) || !w.written.moved || (other && w.written.notBefore <= notBefore) {
			continue
		}
		other, notBefore = true, w.written.notBefore
	}
	return count, other, notBefore
}

// API remembers when the API server last answered a live read of this observer.
type API struct {
	clock *Clock

	mu   sync.Mutex
	last evidence.Instant
}

// NewAPI returns a memory that begins as if the API had just answered.
func NewAPI(c *Clock) *API { return &API{clock: c, last: c.Instant()} }

// Answered notes an answer.
func (a *API) Answered() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = a.clock.Instant()
}

// SilentFor is how long the API has not answered.
func (a *API) SilentFor() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.clock.Instant().Sub(a.last)
}
