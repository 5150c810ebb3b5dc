// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// observer is what one life of a leader remembers. A crash loses all of it.
type observer struct {
	began         time.Duration // or when the view was last bad
	lease, status motion
	word          motion
	heard         word // the word that was read last
	outlived      bool
	others        motion
	port          evidence.Port
	apps          map[string]*appMemory
	power         map[string]evidence.Power
	apiAnswered   time.Duration
	attempts      map[string]time.Duration // first seen, by id and state
	own           map[string]bool
	boot          string
	attested      map[string]time.Duration // first seen, by name
	proven        time.Duration            // first seen that proof is written down
	vantages      map[string]*vantage
	woken         bool // an answer changed: look now
}

// motion is a value that moves, as seen from outside.
type motion struct {
	value               int
	known, moved        bool
	firstSeen, lastRead time.Duration
	notBefore           time.Duration
}

func (m *motion) see(value int, at time.Duration) {
	switch {
	case !m.known:
		m.known, m.value, m.firstSeen = true, value, at
	case value != m.value:
		m.value, m.firstSeen, m.moved, m.notBefore = value, at, true, m.lastRead
	}
	m.lastRead = at
}

// read takes the Lease of the host's own agent.
func (e *observer) read(x word, now time.Duration) {
	if x.count != e.word.value {
		due := evidence.AgentLease{Bound: e.heard.bound}.Due()
		late := due > 0 && e.word.lastRead-e.word.firstSeen >= due
		e.outlived, e.heard = x.boot == e.heard.boot && (e.outlived || late), x
	}
	e.word.see(x.count, now)
}

type appMemory struct {
	next                   time.Duration
	since                  time.Duration
	good, bad              int
	answered, refused      bool
	hasAnswer, hasKernel   bool
	lastAnswer, lastKernel time.Duration
	serving                evidence.Serving
}

// restartObserver is a crash, or another leader: memory is gone, the journal stays.
func (w *World) restartObserver() {
	w.life++
	w.eyes = observer{began: w.now, apps: map[string]*appMemory{}, power: map[string]evidence.Power{}, attempts: map[string]time.Duration{},
		own: map[string]bool{}, attested: map[string]time.Duration{}, vantages: map[string]*vantage{}, apiAnswered: w.now}
}

// look is one look at every plane.
func (w *World) look() {
	h, e := w.host, &w.eyes
	if !w.cluster.apiSilent {
		e.apiAnswered = w.now
		if !h.leaseUnread && !h.leaseDeleted {
			e.lease.see(h.renewals, w.now)
		}
		if !h.leaseUnread && h.word.count > 0 {
			e.read(h.word, w.now)
		}
		e.others.see(w.cluster.othersCount, w.now)
		if !h.nodeUnread && !h.node.Missing {
			if e.boot != h.node.BootID {
				e.status, e.boot = motion{}, h.node.BootID
			}
			e.status.see(h.statuses, w.now)
		}
	}
	for _, a := range w.attestations {
		if _, known := e.attested[a.Name]; !known && !w.cluster.apiSilent {
			e.attested[a.Name] = w.now
		}
	}
	if !w.journal.ProofRecorded {
		e.proven = 0
	} else if e.proven == 0 {
		e.proven = w.now
	}
	w.lookAtPort()
	for _, p := range w.pods {
		w.lookAtApp(p)
	}
	for _, x := range w.witnesses {
		w.lookAtWitness(x)
	}
	for _, d := range w.devices {
		w.lookAtDevice(d)
	}
	for _, a := range w.journal.Attempts {
		if key := a.ID + string(a.State); e.attempts[key] == 0 {
			e.attempts[key] = w.now
		}
	}
}

func (w *World) lookAtPort() {
	h, port := w.host, &w.eyes.port
	before := port.Answer
	defer func() { w.eyes.woken = w.eyes.woken || port.Answer != before }()
	port.Asked = evidence.Instant(w.now)
	if h.portUnasked {
		port.Answer, port.Asked = evidence.AnswerUnread, 0
		return
	}
	port.Answer = h.port(h.toUs)
	if port.Answer.Rank() != evidence.RankNone {
		port.HasAnswer, port.LastAnswer = true, port.Asked
	}
}

// port is how port 10250 of the host answers whoever reaches the host, or does not.
func (h host) port(reached bool) evidence.Answer {
	switch {
	case !reached || !h.powered || !h.kernel:
		return evidence.AnswerNone
	case h.userspace && h.kubelet:
		return evidence.AnswerSpoke
	case h.kubelet:
		return evidence.AnswerAccepted
	default:
		return evidence.AnswerReset
	}
}

func (w *World) lookAtApp(p *pod) {
	m, ok := w.eyes.apps[p.UID]
	if !ok {
		m = &appMemory{since: w.now, next: w.now}
		w.eyes.apps[p.UID] = m
	}
	if !p.probed {
		m.serving, m.good, m.bad = evidence.ServingUnread, 0, 0
		return
	}
	if w.now < m.next {
		return
	}
	m.next = w.now + probeEvery
	before := m.serving
	defer func() { w.eyes.woken = w.eyes.woken || m.serving != before }()
	h := w.host
	reached := h.toUs && h.powered && h.kernel
	m.answered = reached && h.userspace && p.serves
	m.refused = reached && h.userspace && !p.serves
	switch {
	case m.answered:
		m.hasAnswer, m.lastAnswer = true, w.now
		m.good, m.bad, m.serving = m.good+1, 0, evidence.ServingYes
	default:
		m.good, m.bad = 0, m.bad+1
		if m.bad >= probeFailures {
			m.serving = evidence.ServingNo
		}
	}
	if m.refused {
		m.hasKernel, m.lastKernel = true, w.now
	}
}

func (w *World) lookAtDevice(d *device) {
	p, was := d.Power, w.eyes.power[d.Method]
	p.State, p.At = d.answer(d.truth(w)), evidence.Instant(w.now)
	p.Said, p.OffSince, p.HasOff, p.LastOff, p.HasOn, p.LastOn = was.Said, was.OffSince, was.HasOff, was.LastOff, was.HasOn, was.LastOn
	switch {
	case p.State == evidence.PowerUnread:
		p.Why = "no answer"
	case p.Identity != evidence.IdentityMatches:
	case p.State.Dead():
		if !p.Said.Dead() || p.At.Sub(p.LastOff) > evidence.RunGap {
			p.OffSince = p.At
		}
		p.Said, p.HasOff, p.LastOff = p.State, true, p.At
	default:
		p.Said = p.State
		if p.State == evidence.PowerOn {
			p.HasOn, p.LastOn = true, p.At
		}
	}
	w.eyes.power[d.Method] = p
}

// Snapshot is what the observer knows now.
func (w *World) Snapshot() evidence.Snapshot {
	h, e := w.host, &w.eyes
	now := evidence.Instant(w.now)
	s := evidence.Snapshot{At: now, Listed: !h.listsUnread && !w.cluster.apiSilent, Journal: w.journalNow(), Port: e.port}
	s.Host = w.present()
	if w.journal.Open() {
		s.Host = w.incident
	}
	s.Node = evidence.Node{At: now}
	if !h.nodeUnread && !w.cluster.apiSilent {
		s.Node = h.node
		s.Node.Read, s.Node.At = true, now
		if h.node.Missing {
			s.Node = evidence.Node{Read: true, Missing: true, At: now}
		}
	}
	s.Node.Spoke, s.Node.SpokeNotBefore = e.status.moved, evidence.Instant(e.status.notBefore)
	s.Lease = evidence.Lease{Read: !h.leaseUnread && !w.cluster.apiSilent, Missing: h.leaseDeleted, At: now, Duration: leaseDuration,
		Age: w.now - e.lease.firstSeen, Moved: e.lease.moved, NotBefore: evidence.Instant(e.lease.notBefore)}
	for _, d := range w.devices {
		s.Power = append(s.Power, e.power[d.Method])
	}
	for _, p := range w.pods {
		if m := e.apps[p.UID]; m != nil {
			s.Apps = append(s.Apps, w.appNow(p, m))
		}
		if s.Listed {
			s.Writers = append(s.Writers, p.Writer)
		}
	}
	if s.Listed {
		s.Attachments, s.Successors = slices.Clone(w.attached), slices.Clone(w.successors)
	}
	for _, a := range w.attestations {
		if seen, ok := e.attested[a.Name]; ok && !w.cluster.apiSilent {
			a.At, a.Seen, a.Expired = now, evidence.Instant(seen), w.now-a.made >= a.holds
			s.Attestations = append(s.Attestations, a.Attestation)
		}
	}
	s.Witnesses, s.AgentLease, s.Addresses = w.witnessesNow(), w.agentLease(), w.addressesNow()
	s.Repairs = evidence.Repairs{Read: s.Listed, Tried: w.repairs.at > 0, Failed: w.repairs.failed, Ago: w.now - w.repairs.at}
	if w.elsewhere.at > 0 {
		s.Repairs.Elsewhere, s.Repairs.ElsewhereAgo = "another", w.now-w.elsewhere.at
	}
	s.Cluster = w.clusterNow(w.Policy.Late(s.Lease))
	return s
}

func (w *World) appNow(p *pod, m *appMemory) evidence.App {
	a := evidence.App{App: p.App, Pod: p.Name, PodUID: p.UID, Exclusive: !p.shares, Serving: m.serving, Asked: 1, Kernel: m.refused,
		HasAnswer: m.hasAnswer, LastAnswer: evidence.Instant(m.lastAnswer), HasKernel: m.hasKernel, LastKernel: evidence.Instant(m.lastKernel), EndpointReady: p.ready,
		EndpointOwed: p.containersReady && !p.ready && !p.Terminating}
	switch {
	case m.answered:
		a.Answered = 1
	case m.hasAnswer:
		a.FailingFor = w.now - m.lastAnswer
	default:
		a.FailingFor = w.now - m.since
	}
	return a
}

func (w *World) clusterNow(late bool) evidence.Cluster {
	e := &w.eyes
	c := evidence.Cluster{Hosts: w.cluster.hosts, StaleHosts: w.cluster.stale, APISilent: w.now - e.apiAnswered,
		HasOther: e.others.moved, OtherNotBefore: evidence.Instant(e.others.notBefore), Observing: w.now - e.began}
	if c.StaleHosts == 0 && late {
		c.StaleHosts = 1
	}
	others := evidence.Lease{Read: true, Duration: leaseDuration, Age: w.now - e.others.firstSeen}
	if w.cluster.stale == 0 && w.Policy.Late(others) {
		c.StaleHosts += w.cluster.hosts - 1
	}
	return c
}

// journalNow is the journal with what only this observer can say of its attempts.
func (w *World) journalNow() evidence.Journal {
	j := w.journal
	j.Attempts = slices.Clone(j.Attempts)
	j.Pods = len(j.Apps)
	j.StepFor = w.now - w.stepped
	j.ProvenSince = evidence.Instant(w.eyes.proven)
	for i := range j.Attempts {
		a := &j.Attempts[i]
		known := time.Duration(0)
		if first, ok := w.eyes.attempts[a.ID+string(a.State)]; ok {
			known = w.now - first
		}
		a.Own = w.eyes.own[a.ID]
		a.CallOver = a.Own || known > 2*callDeadline
		a.Overdue = known > settleTime
	}
	return j
}

// Decide gives the verdict on the world as it is seen now.
func (w *World) Decide() (verdict.Found, evidence.Snapshot) {
	s := w.Snapshot()
	found := verdict.Decide(s, w.Policy)
	if found.Blind() {
		w.eyes.began = w.now
	}
	return found, s
}
