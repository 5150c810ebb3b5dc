// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// situation is everything that a plan is made from.
type situation struct {
	seen   evidence.Snapshot
	policy verdict.Policy
	budget plan.Budget
}

func (s situation) decide() (verdict.Found, plan.Plan) {
	found := verdict.Decide(s.seen, s.policy)
	return found, plan.Make(found, s.seen, s.budget)
}

const now = evidence.Instant(time.Hour)

func ago(d time.Duration) evidence.Instant { return now - evidence.Instant(d) }

// span draws a time back from now that is small, or long, or at a boundary of the rules.
func span(t *rapid.T, name string) time.Duration {
	return time.Duration(rapid.SampledFrom([]int{0, 1, 5, 10, 20, 30, 60, 90, 104, 112, 113, 120, 125, 126, 150, 151, 200, 300, 600, 3000}).Draw(t, name)) * 100 * time.Millisecond
}

func oneIn(t *rapid.T, n int, name string) bool { return rapid.IntRange(1, n).Draw(t, name) == 1 }

// anySituation draws snapshots that a gatherer could make: readings agree with their own history, and nothing else has to agree with anything. Most are
// near one of two in which something irreversible is done, with only a few parts drawn anew: there it matters.
func anySituation(t *rapid.T) situation {
	s := drawn(t)
	switch rapid.IntRange(0, 5).Draw(t, "near") {
	case 1:
		return near(t, s, fencible())
	case 2:
		return near(t, s, releasable())
	case 3:
		return near(t, s, releasableTogether())
	case 4:
		return near(t, s, attested())
	case 5:
		return near(t, s, repairable())
	}
	return s
}

// near takes each part from the base, or, one time in eight, from the situation drawn.
func near(t *rapid.T, s, base situation) situation {
	take := func(name string) bool { return oneIn(t, 8, "take "+name) }
	parts := []struct {
		name string
		put  func()
	}{
		{"policy", func() { base.policy = s.policy }}, {"budget", func() { base.budget = s.budget }},
		{"node", func() { base.seen.Node = s.seen.Node }}, {"lease", func() { base.seen.Lease = s.seen.Lease }},
		{"port", func() { base.seen.Port = s.seen.Port }}, {"apps", func() { base.seen.Apps = s.seen.Apps }},
		{"power", func() { base.seen.Power = s.seen.Power }}, {"journal", func() { base.seen.Journal = s.seen.Journal }},
		{"writers", func() { base.seen.Writers = s.seen.Writers }}, {"cluster", func() { base.seen.Cluster = s.seen.Cluster }},
		{"lists", func() { base.seen.Listed = s.seen.Listed }}, {"distrust", func() { base.seen.Journal.Distrusted = s.seen.Journal.Distrusted }},
		{"taint", func() { base.seen.Node.Fenced = s.seen.Node.Fenced }}, {"boot", func() { base.seen.Node.BootID = s.seen.Node.BootID }},
		{"node at", func() { base.seen.Node.At = s.seen.Node.At }}, {"second device", func() { base.seen.Power = append(base.seen.Power, s.seen.Power...) }},
		{"coverage", func() { base.seen.Power[0].CoversHost = false }}, {"manual", func() { base.policy.ManualApproval = true }},
		{"attestation", func() { base.seen.Attestations = s.seen.Attestations }}, {"proof asked for", func() { base.policy.MinimumProof = evidence.StrengthPowerOff }},
		{"witnesses", func() { base.seen.Witnesses = s.seen.Witnesses }}, {"agent's lease", func() { base.seen.AgentLease = s.seen.AgentLease }}, {"repairs", func() { base.seen.Repairs = s.seen.Repairs }},
		{"own agent", func() { base.seen.Witnesses.Report = s.seen.Witnesses.Report }}, {"own agent's API", func() { base.seen.Witnesses.Report.API = s.seen.Witnesses.Report.API }},
		{"lease age", func() { base.seen.Lease.Age = s.seen.Lease.Age }},
		{"paused", func() { base.policy.Paused = true }}, {"shadow", func() { base.policy.Shadow = true }},
	}
	for _, p := range parts {
		if take(p.name) && (p.name != "coverage" || len(base.seen.Power) > 0) {
			p.put()
		}
	}
	if len(base.seen.Power) > 2 {
		base.seen.Power = base.seen.Power[:2]
	}
	for i := range base.seen.Power { // all devices are read at once
		p := &base.seen.Power[i]
		later := base.seen.Power[0].At - p.At
		p.Method, p.At, p.OffSince, p.LastOff, p.LastOn = fmt.Sprintf("m%d", i), p.At+later, p.OffSince+later, p.LastOff+later, p.LastOn+later
	}
	for i := range base.seen.Attestations {
		for _, p := range base.seen.Power {
			base.seen.Attestations[i].Seen = min(base.seen.Attestations[i].Seen, p.At)
		}
	}
	if !base.seen.Journal.Open() {
		base.seen.Node.UID, base.seen.Node.SystemUUID, base.seen.Node.BootID = "u1", "m1", "b1"
	}
	return base
}

// fencible is a host that has been silent for a minute beside others that were heard, with its power On.
func fencible() situation {
	s := situation{budget: plan.Budget{Max: 2}, policy: verdict.Policy{ConfirmAfter: 15 * time.Second, MinimumProof: evidence.StrengthPowerOff, BlindPercent: 50,
		BlindAPISilent: 5 * time.Second, KeepTraffic: true}}
	s.seen = evidence.Snapshot{At: now, Listed: true, Host: evidence.Host{Node: "n", NodeUID: "u1", BootID: "b1", SystemUUID: "m1"},
		Node:    evidence.Node{Read: true, At: now, UID: "u1", BootID: "b1", SystemUUID: "m1", Ready: evidence.ReadyUnknown},
		Lease:   evidence.Lease{Read: true, At: now, Duration: 40 * time.Second, Age: time.Minute, Moved: true, NotBefore: ago(61 * time.Second)},
		Port:    evidence.Port{Answer: evidence.AnswerNone, Asked: now},
		Apps:    []evidence.App{{App: "ns/app", Pod: "p0", PodUID: "w0", Exclusive: true, Serving: evidence.ServingNo, HasAnswer: true, LastAnswer: ago(time.Minute), FailingFor: time.Minute}},
		Writers: []evidence.Writer{{App: "ns/app", Namespace: "ns", Name: "p0", UID: "w0", Held: true, Volumes: []evidence.Volume{{Claim: "c", Driver: "d2"}}}},
		Power: []evidence.Power{{Method: "m0", Level: 1, Strength: evidence.StrengthPowerOff, CoversHost: true, CoversDrivers: []string{"d1"}, State: evidence.PowerOn,
			Said: evidence.PowerOn, Identity: evidence.IdentityMatches, At: now, HasOn: true, LastOn: now}},
		Cluster: evidence.Cluster{Hosts: 10, StaleHosts: 1, Observing: time.Hour, HasOther: true, OtherNotBefore: ago(time.Second)},
		Journal: evidence.Journal{Name: "i", Step: evidence.StepSuspected, Apps: []string{"ns/app"}}}
	return s
}

// releasable is the same host after its device was commanded, the Node tainted, and Off read again.
func releasable() situation {
	s := fencible()
	p := &s.seen.Power[0]
	p.State, p.Said, p.HasOff, p.LastOff, p.OffSince, p.LastOn = evidence.PowerOff, evidence.PowerOff, true, now, ago(20*time.Second), ago(30*time.Second)
	s.seen.Node.Fenced = true
	s.seen.Journal.Step = evidence.StepFencing
	s.seen.Journal.Attempts = []evidence.Attempt{{ID: "a0", Method: "m0", State: evidence.AttemptSettled, Own: true, CallOver: true}}
	return s
}

// releasableTogether is a host with a volume of each of two drivers, each cut by a method of its own.
func releasableTogether() situation {
	s := releasable()
	s.seen.Writers[0].Volumes = append(s.seen.Writers[0].Volumes, evidence.Volume{Claim: "c2", Driver: "d1"})
	s.seen.Power[0].CoversHost = false
	second := s.seen.Power[0]
	second.Method, second.Level, second.CoversDrivers = "m1", 2, []string{"d2"}
	s.seen.Power = append(s.seen.Power, second)
	s.seen.Journal.Attempts = append(s.seen.Journal.Attempts, evidence.Attempt{ID: "a1", Method: "m1", State: evidence.AttemptSettled, Own: true, CallOver: true})
	return s
}

// repairable is a host that is held while its application serves, whose kubelet is well by the word of the host's own agent, and does not renew its lease.
func repairable() situation {
	s := fencible()
	s.policy.RestartKubelet, s.policy.NotServing = true, verdict.Hold
	s.seen.Port = evidence.Port{Answer: evidence.AnswerSpoke, Asked: now, HasAnswer: true, LastAnswer: now}
	s.seen.Apps[0].Serving, s.seen.Apps[0].LastAnswer, s.seen.Apps[0].FailingFor = evidence.ServingYes, now, 0
	s.seen.Journal.Step = evidence.StepHolding
	s.seen.Repairs.Read = true
	s.seen.Witnesses = evidence.Witnesses{On: true, Report: evidence.Report{Sign: evidence.Sign{Heard: true, NotBefore: ago(time.Second), NotAfter: now}, BootID: "b1",
		Kubelet: evidence.PulseAlive, Runtime: evidence.PulseAlive, API: evidence.PulseAlive}}
	return s
}

// attested is the silent host with a device that is silent too, and a human's word for its death.
func attested() situation {
	s := fencible()
	p := &s.seen.Power[0]
	p.State, p.Identity, p.HasOn, p.LastOn = evidence.PowerUnread, evidence.IdentityUnchecked, true, ago(time.Minute)
	s.policy.MinimumProof = evidence.StrengthAttested
	s.seen.Node.Fenced = true
	s.seen.Attestations = []evidence.Attestation{{Name: "word", BootID: "b1", At: now, Seen: ago(10 * time.Second)}}
	return s
}

func drawn(t *rapid.T) situation {
	s := situation{policy: anyPolicy(t), budget: plan.Budget{Used: rapid.IntRange(0, 2).Draw(t, "used"), Max: 2}}
	s.seen = evidence.Snapshot{At: now, Listed: !oneIn(t, 8, "unlisted"), Host: evidence.Host{Node: "n", NodeUID: "u1", BootID: "b1", SystemUUID: "m1"}}
	s.seen.Node, s.seen.Lease, s.seen.Port = anyNode(t), anyLease(t), anyPort(t)
	for i := range rapid.IntRange(0, 2).Draw(t, "pods") {
		s.seen.Writers = append(s.seen.Writers, anyWriter(t, i))
		s.seen.Apps = append(s.seen.Apps, anyApp(t, i))
	}
	read := ago(span(t, "power at")) // all devices are read at once
	for i := range rapid.IntRange(0, 2).Draw(t, "devices") {
		s.seen.Power = append(s.seen.Power, anyPower(t, i, read))
	}
	if oneIn(t, 3, "attested") {
		s.seen.Attestations = []evidence.Attestation{anyAttestation(t, read)}
	}
	if oneIn(t, 3, "attached") {
		s.seen.Attachments = []evidence.Attachment{{Name: "a", Attached: true}}
	}
	s.seen.Cluster = evidence.Cluster{Hosts: 10, StaleHosts: rapid.SampledFrom([]int{0, 1, 1, 1, 2, 9}).Draw(t, "stale"), Observing: 30 * time.Minute,
		HasOther: !oneIn(t, 4, "no other"), OtherNotBefore: ago(span(t, "other"))}
	if oneIn(t, 2, "witnesses") {
		s.seen.Witnesses, s.seen.AgentLease = anyWitnesses(t, s.seen), anyAgentLease(t)
	}
	s.seen.Repairs = evidence.Repairs{Read: !oneIn(t, 6, "repairs unread"), Tried: oneIn(t, 2, "tried"), Failed: oneIn(t, 4, "repair failed"),
		Ago: span(t, "tried ago") * 3, ElsewhereAgo: span(t, "elsewhere ago")}
	if oneIn(t, 3, "elsewhere") {
		s.seen.Repairs.Elsewhere = "other"
	}
	if oneIn(t, 8, "deaf") {
		s.seen.Cluster.APISilent = 10 * time.Second
	}
	if !oneIn(t, 4, "no incident") {
		s.seen.Journal = anyJournal(t)
	}
	if !s.seen.Journal.Open() { // then the host in question is the Node's present one
		s.seen.Node.UID, s.seen.Node.SystemUUID, s.seen.Node.BootID = "u1", "m1", "b1"
	}
	return s
}

func anyPolicy(t *rapid.T) verdict.Policy {
	p := verdict.Policy{ConfirmAfter: 15 * time.Second, MinimumProof: evidence.StrengthPowerOff, BlindPercent: 50, BlindAPISilent: 5 * time.Second,
		Shadow: oneIn(t, 8, "shadow"), Paused: oneIn(t, 8, "paused"), ManualApproval: oneIn(t, 4, "manual"), KeepTraffic: true,
		RestartKubelet: oneIn(t, 2, "restart"), AwaitLease: oneIn(t, 4, "await lease")}
	if oneIn(t, 4, "minimum proof") {
		p.MinimumProof = rapid.SampledFrom([]evidence.Strength{evidence.StrengthAttested, evidence.StrengthSelfFenced}).Draw(t, "word allowed")
	}
	if oneIn(t, 6, "hold on loss") {
		p.OnLoss = verdict.Hold
	}
	if oneIn(t, 2, "hold when not serving") {
		p.NotServing = verdict.Hold
	}
	if oneIn(t, 2, "hold when isolated") {
		p.Isolated = verdict.Hold
	}
	return p
}

func anyNode(t *rapid.T) evidence.Node {
	n := evidence.Node{Read: !oneIn(t, 8, "node unread"), At: ago(span(t, "node at")), UID: "u1", SystemUUID: "m1", BootID: "b1",
		Ready:  rapid.SampledFrom([]evidence.Ready{evidence.ReadyTrue, evidence.ReadyUnknown, evidence.ReadyFalse, evidence.ReadyUnread}).Draw(t, "ready"),
		Fenced: oneIn(t, 2, "fenced"), OutOfService: oneIn(t, 4, "oos"), RuntimeDown: oneIn(t, 3, "runtime"),
		Spoke: oneIn(t, 2, "spoke"), SpokeNotBefore: ago(span(t, "spoke at"))}
	n.Missing = n.Read && oneIn(t, 12, "missing")
	if oneIn(t, 5, "new boot") {
		n.BootID = "b2"
	}
	if oneIn(t, 10, "other machine") {
		n.SystemUUID = "m2"
	}
	if oneIn(t, 10, "new node") {
		n.UID = "u2"
	}
	return n
}

func anyLease(t *rapid.T) evidence.Lease {
	age := span(t, "lease age")
	return evidence.Lease{Read: !oneIn(t, 8, "lease unread"), Missing: oneIn(t, 15, "lease missing"), At: now, Duration: 40 * time.Second, Age: age,
		Moved: !oneIn(t, 3, "never moved"), NotBefore: ago(age + time.Second)}
}

func anyPort(t *rapid.T) evidence.Port {
	p := evidence.Port{Asked: ago(span(t, "port asked")), HasAnswer: oneIn(t, 2, "port had answered"), LastAnswer: ago(span(t, "port answer")),
		Answer: rapid.SampledFrom([]evidence.Answer{evidence.AnswerNone, evidence.AnswerNone, evidence.AnswerUnreachable, evidence.AnswerReset, evidence.AnswerAccepted,
			evidence.AnswerSpoke, evidence.AnswerUnread}).Draw(t, "port")}
	if p.Answer.Rank() != evidence.RankNone {
		p.HasAnswer, p.LastAnswer = true, p.Asked
	}
	return p
}

func anyWriter(t *rapid.T, i int) evidence.Writer {
	return evidence.Writer{App: "ns/app", Namespace: "ns", Name: fmt.Sprintf("p%d", i), UID: fmt.Sprintf("w%d", i), Held: oneIn(t, 2, "held"),
		Finished: oneIn(t, 6, "finished"), Removed: oneIn(t, 8, "removed"), BootID: rapid.SampledFrom([]string{"", "b1", "b2"}).Draw(t, "pod boot"),
		Volumes: []evidence.Volume{{Claim: "c", Driver: rapid.SampledFrom([]string{"d1", "d2"}).Draw(t, "driver")}}}
}

func anyApp(t *rapid.T, i int) evidence.App {
	a := evidence.App{App: "ns/app", Pod: fmt.Sprintf("p%d", i), PodUID: fmt.Sprintf("w%d", i), Exclusive: !oneIn(t, 6, "shared"), EndpointReady: oneIn(t, 2, "endpoint"),
		Kernel: oneIn(t, 5, "kernel"), HasKernel: oneIn(t, 3, "had kernel"), LastKernel: ago(span(t, "last kernel")),
		HasAnswer: !oneIn(t, 3, "never answered"), LastAnswer: ago(span(t, "last answer"))}
	switch rapid.IntRange(0, 2).Draw(t, "serving") {
	case 0:
		a.Serving, a.HasAnswer, a.LastAnswer = evidence.ServingYes, true, ago(min(now.Sub(a.LastAnswer), 6*time.Second))
	case 1:
		a.Serving, a.FailingFor = evidence.ServingNo, max(4*time.Second, now.Sub(a.LastAnswer))
		if a.HasAnswer {
			a.LastAnswer = ago(a.FailingFor)
		}
	}
	return a
}

// anyWitnesses are up to three vantage points, of which each may hear the host or not.
func anyWitnesses(t *rapid.T, s evidence.Snapshot) evidence.Witnesses {
	w := evidence.Witnesses{On: !oneIn(t, 6, "off"), Expected: rapid.IntRange(0, 3).Draw(t, "expected")}
	for i := range rapid.IntRange(0, 3).Draw(t, "vantages") {
		v := evidence.Vantage{Witness: fmt.Sprintf("w%d", i), Answered: !oneIn(t, 4, "no answer"), At: ago(span(t, "answered at")), StateFor: span(t, "state for"),
			State:     rapid.SampledFrom([]evidence.Gossip{evidence.GossipDead, evidence.GossipDead, evidence.GossipAlive, evidence.GossipSuspect, evidence.GossipUnread}).Draw(t, "gossip"),
			AgentBoot: rapid.SampledFrom([]string{"b1", "b2", ""}).Draw(t, "agent boot"), Agent: anySign(t, "agent"), PortHeard: anySign(t, "port"), PortAsked: ago(span(t, "port asked there")),
			Port: rapid.SampledFrom([]evidence.Answer{evidence.AnswerNone, evidence.AnswerNone, evidence.AnswerReset, evidence.AnswerSpoke, evidence.AnswerUnread}).Draw(t, "port there")}
		for _, a := range s.Apps {
			v.Apps = append(v.Apps, evidence.AppThere{PodUID: a.PodUID, Asked: ago(span(t, "app asked there")), Answered: anySign(t, "app answered"), Replied: anySign(t, "app replied"),
				Says: rapid.SampledFrom([]evidence.There{evidence.ThereSilent, evidence.ThereSilent, evidence.ThereRefused, evidence.ThereFailed, evidence.ThereAnswered, evidence.ThereUnread}).Draw(t, "app there")})
		}
		w.Vantages = append(w.Vantages, v)
	}
	pulse := rapid.SampledFrom([]evidence.Pulse{evidence.PulseUnread, evidence.PulseAlive, evidence.PulseDead})
	w.Report = evidence.Report{Sign: anySign(t, "report"), BootID: rapid.SampledFrom([]string{"b1", "b2"}).Draw(t, "report boot"), Kubelet: pulse.Draw(t, "kubelet"),
		Runtime: pulse.Draw(t, "runtime"), API: pulse.Draw(t, "api")}
	return w
}

func anyAgentLease(t *rapid.T) evidence.AgentLease {
	return evidence.AgentLease{Read: !oneIn(t, 4, "agent's lease unread"), Missing: oneIn(t, 8, "agent's lease missing"), At: now, Asked: now, Every: time.Second,
		BootID: rapid.SampledFrom([]string{"b1", "b1", "b2", ""}).Draw(t, "agent's lease boot"), Age: span(t, "agent's lease"), Moved: oneIn(t, 3, "agent's lease moved"),
		NotBefore: ago(span(t, "agent's lease not before")), Pulse: oneIn(t, 2, "pulse"), Outlived: oneIn(t, 8, "outlived"), Since: ago(3 * span(t, "agent's lease since")),
		Bound: rapid.SampledFrom([]time.Duration{0, 17 * time.Second, 20 * time.Second, 45 * time.Second, 100 * time.Second}).Draw(t, "bound")}
}

func anySign(t *rapid.T, name string) evidence.Sign {
	if !oneIn(t, 4, name+" heard") {
		return evidence.Sign{}
	}
	at := ago(span(t, name))
	return evidence.Sign{Heard: true, NotBefore: at, NotAfter: min(now, at+evidence.Instant(time.Second))}
}

// signs are the dated signs of life of boot b1 in what agents say, in other words than the engine's; gossip's states are none.
func signs(s evidence.Snapshot) (at []evidence.Instant) {
	add := func(x evidence.Sign) {
		if x.Heard {
			at = append(at, x.NotBefore)
		}
	}
	if !s.Witnesses.On {
		return nil
	}
	if l := s.AgentLease; l.Moved && l.BootID == "b1" {
		at = append(at, l.NotBefore)
	}
	if s.Witnesses.Report.BootID == "b1" {
		add(s.Witnesses.Report.Sign)
	}
	for _, v := range s.Witnesses.Vantages {
		if v.AgentBoot == "b1" {
			add(v.Agent)
		}
		add(v.PortHeard)
		if v.Port == evidence.AnswerReset || v.Port == evidence.AnswerSpoke {
			at = append(at, v.PortAsked)
		}
		for i, a := range v.Apps {
			if i < len(s.Apps) && s.Apps[i].PodUID == a.PodUID && s.Apps[i].Exclusive {
				add(a.Answered)
				add(a.Replied)
			}
		}
	}
	return at
}

func anyPower(t *rapid.T, i int, read evidence.Instant) evidence.Power {
	p := evidence.Power{Method: fmt.Sprintf("m%d", i), Level: i + 1, Strength: evidence.StrengthPowerOff, CoversHost: !oneIn(t, 4, "partial"),
		CoversDrivers: []string{rapid.SampledFrom([]string{"d1", "d2"}).Draw(t, "cuts")},
		State:         rapid.SampledFrom([]evidence.PowerState{evidence.PowerOff, evidence.PowerOff, evidence.PowerOn, evidence.PowerUnread, evidence.PowerGone}).Draw(t, "power"),
		Identity:      rapid.SampledFrom([]evidence.Identity{evidence.IdentityMatches, evidence.IdentityMatches, evidence.IdentityMatches, evidence.IdentityDiffers, evidence.IdentityUnchecked}).Draw(t, "identity"),
		At:            read, HasOn: oneIn(t, 2, "was on"), LastOn: ago(span(t, "last on"))}
	if p.HasOff = oneIn(t, 2, "was off"); p.HasOff {
		p.LastOff = min(p.At, ago(span(t, "last off")))
		p.OffSince = p.LastOff - evidence.Instant(span(t, "off for"))
	}
	p.LastOn = min(p.LastOn, p.At)
	if p.State == evidence.PowerUnread {
		p.Identity = evidence.IdentityUnchecked
	}
	switch {
	case p.State == evidence.PowerUnread || p.Identity != evidence.IdentityMatches:
		p.Said = rapid.SampledFrom([]evidence.PowerState{evidence.PowerUnread, evidence.PowerOn}).Draw(t, "said")
		if p.HasOff && p.OffSince > p.LastOn {
			p.Said = rapid.SampledFrom([]evidence.PowerState{evidence.PowerOff, evidence.PowerOff, evidence.PowerGone}).Draw(t, "said dead")
		}
	case p.State == evidence.PowerOff || p.State == evidence.PowerGone:
		p.Said, p.HasOff, p.LastOff = p.State, true, p.At
		p.OffSince = p.At - evidence.Instant(span(t, "off for"))
		p.LastOn = min(p.LastOn, p.OffSince-1)
	case p.State == evidence.PowerOn:
		p.OffSince = 0
		p.Said, p.HasOn, p.LastOn = p.State, true, p.At
	}
	return p
}

// anyAttestation is seen no later than the devices are read.
func anyAttestation(t *rapid.T, read evidence.Instant) evidence.Attestation {
	return evidence.Attestation{Name: "word", BootID: rapid.SampledFrom([]string{"b1", "b1", "b2", ""}).Draw(t, "attested boot"), Expired: oneIn(t, 3, "expired"),
		At: ago(span(t, "attestation read")), Seen: min(read, ago(span(t, "attestation seen")))}
}

func anyJournal(t *rapid.T) evidence.Journal {
	j := evidence.Journal{Name: "i", ProofRecorded: oneIn(t, 3, "proof"), Word: rapid.SampledFrom([]string{"", "", evidence.Attesting, evidence.SelfFencing}).Draw(t, "proof is a word"), ProvenSince: ago(span(t, "proven since")), Approved: oneIn(t, 2, "approved"), Apps: []string{"ns/app"},
		Step: rapid.SampledFrom([]evidence.Step{evidence.StepSuspected, evidence.StepHolding, evidence.StepConfirmed, evidence.StepFencing, evidence.StepReleasing,
			evidence.StepRecovering, evidence.StepResolved, evidence.StepClosed}).Draw(t, "step")}
	for i := range rapid.IntRange(0, 3).Draw(t, "attempts") {
		a := evidence.Attempt{ID: fmt.Sprintf("a%d", i), Method: rapid.SampledFrom([]string{"m0", "m1"}).Draw(t, "by"), Overdue: oneIn(t, 2, "overdue"), Own: oneIn(t, 2, "own"),
			State: rapid.SampledFrom([]evidence.AttemptState{evidence.AttemptSettled, evidence.AttemptAccepted, evidence.AttemptIntended, evidence.AttemptFailed,
				evidence.AttemptUnclear, evidence.AttemptSuperseded}).Draw(t, "attempt")}
		a.CallOver = a.Own || oneIn(t, 2, "call over")
		j.Attempts = append(j.Attempts, a)
	}
	if oneIn(t, 5, "distrust") {
		j.Distrusted = []string{rapid.SampledFrom([]string{"m0", "m0", evidence.SelfFencing, evidence.Attesting}).Draw(t, "distrusted")}
	}
	return j
}

// proven states I1, I3 and I4 for all devices together in other words than the engine's: every volume of every writer is cut by a device that stands.
func proven(s situation) bool {
	if slices.ContainsFunc(s.seen.Attestations, func(a evidence.Attestation) bool { return attests(s, a) }) || fencesItself(s) {
		return true
	}
	for _, w := range s.seen.Writers {
		for _, v := range w.Volumes {
			cut := slices.ContainsFunc(s.seen.Power, func(p evidence.Power) bool {
				return (p.CoversHost || p.State == evidence.PowerGone || slices.Contains(p.CoversDrivers, v.Driver)) && stands(s, p)
			})
			if !w.Finished && !cut {
				return false
			}
		}
	}
	return slices.ContainsFunc(s.seen.Power, func(p evidence.Power) bool { return stands(s, p) })
}

// stands states what makes one device's Off count.
func stands(s situation, p evidence.Power) bool {
	n, j := s.seen.Node, s.seen.Journal
	commanded := slices.ContainsFunc(j.Attempts, func(a evidence.Attempt) bool {
		return a.Method == p.Method && (a.State == evidence.AttemptAccepted || a.State == evidence.AttemptSettled)
	})
	well := s.seen.Lease.Missing || s.seen.Lease.Age > 10400*time.Millisecond // a well kubelet had renewed by then
	return well && n.Read && !n.Missing && s.seen.Listed && s.seen.Lease.Read && j.Open() &&
		n.BootID == "b1" && n.UID == "u1" && n.SystemUUID == "m1" && n.Fenced &&
		(p.State == evidence.PowerGone || (p.State == evidence.PowerOff && commanded)) && p.Identity == evidence.IdentityMatches && p.At >= n.At &&
		!slices.Contains(j.Distrusted, p.Method) && quietSince(s.seen, p.OffSince+evidence.Instant(time.Second)) &&
		quietSince(s.seen, p.At-evidence.Instant(3*time.Second)) && !otherReadsOn(s.seen, p)
}

// fencesItself states what makes a host's watchdog count: all apps allow it, its agent announced it in this boot and has not moved since for the bound and a margin,
// nothing has shown life since then, this boot has never outlived it, and all that a human's word wants beside.
func fencesItself(s situation) bool {
	l := s.seen.AgentLease
	margin := max(5*time.Second, l.Bound/10)
	end := l.Since + evidence.Instant(l.Bound+margin)
	word := evidence.Attestation{BootID: "b1", At: l.Asked, Seen: end}
	s.policy.MinimumProof = map[evidence.Strength]evidence.Strength{evidence.StrengthAttested: evidence.StrengthAttested, evidence.StrengthSelfFenced: evidence.StrengthAttested}[s.policy.MinimumProof]
	distrusted := slices.Contains(s.seen.Journal.Distrusted, evidence.SelfFencing)
	s.seen.Journal.Distrusted = slices.DeleteFunc(slices.Clone(s.seen.Journal.Distrusted), func(m string) bool { return m == evidence.Attesting })
	return s.seen.Witnesses.On && l.Read && !l.Missing && l.BootID == "b1" && l.Bound >= 18*time.Second && l.Asked >= end && !l.Outlived && !distrusted && attests(s, word)
}

// attests states what makes a human's word count: all apps allow it, it is of this boot and holds, the Node is tainted, and silence is as sure as it gets
// without a device, none of which has read On since.
func attests(s situation, a evidence.Attestation) bool {
	n := s.seen.Node
	on := slices.ContainsFunc(s.seen.Power, func(p evidence.Power) bool {
		return p.State == evidence.PowerOn && p.Identity == evidence.IdentityMatches && !slices.Contains(s.seen.Journal.Distrusted, p.Method)
	})
	return s.policy.MinimumProof == evidence.StrengthAttested && a.BootID == "b1" && !a.Expired && a.At >= n.At && !on &&
		n.Read && !n.Missing && n.Fenced && n.BootID == "b1" && n.UID == "u1" && n.SystemUUID == "m1" && s.seen.Listed && s.seen.Lease.Read && s.seen.Journal.Open() &&
		!slices.Contains(s.seen.Journal.Distrusted, evidence.Attesting) && s.seen.Port.Silent() &&
		quietSince(s.seen, ago(s.policy.ConfirmAfter)+1) && quietSince(s.seen, a.Seen) && s.seen.Cluster.HasOther &&
		(s.seen.Lease.Missing || s.seen.Lease.Age > 15*time.Second)
}

// otherReadsOn: another trusted device of this machine reads On, of the host if this one is of the host, or of a volume that this one cuts.
func otherReadsOn(s evidence.Snapshot, p evidence.Power) bool {
	return slices.ContainsFunc(s.Power, func(o evidence.Power) bool {
		whole := p.CoversHost || p.State == evidence.PowerGone
		same := whole == o.CoversHost && (whole || slices.Equal(p.CoversDrivers, o.CoversDrivers))
		return same && o.Method != p.Method && o.State == evidence.PowerOn && o.Identity == evidence.IdentityMatches && !slices.Contains(s.Journal.Distrusted, o.Method)
	})
}

// quietSince reports whether no plane has shown life from the instant on.
func quietSince(s evidence.Snapshot, i evidence.Instant) bool {
	if (s.Lease.Moved && s.Lease.NotBefore >= i) || (s.Node.Spoke && s.Node.SpokeNotBefore >= i) || (s.Port.HasAnswer && s.Port.LastAnswer >= i) {
		return false
	}
	if slices.ContainsFunc(signs(s), func(at evidence.Instant) bool { return at >= i }) {
		return false
	}
	return !slices.ContainsFunc(s.Apps, func(a evidence.App) bool {
		return a.Exclusive && ((a.HasAnswer && a.LastAnswer >= i) || (a.HasKernel && a.LastKernel >= i))
	})
}

func has(p plan.Plan, kinds ...plan.Kind) bool {
	return slices.ContainsFunc(p.Steps, func(s plan.Step) bool { return slices.Contains(kinds, s.Kind) })
}

func irreversible(p plan.Plan) []plan.Kind {
	var out []plan.Kind
	for _, s := range p.Steps {
		if s.Kind.Irreversible() {
			out = append(out, s.Kind)
		}
	}
	return out
}

// TestI1ReleaseOnlyOnProof: nothing is released unless a device proves, now, that this boot of this machine cannot write to any of its volumes; or
// unless proof was recorded, the very machine runs another boot, and the fenced taint has kept that from starting what the old one ran.
func TestI1ReleaseOnlyOnProof(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		if !has(p, plan.TaintOutOfService, plan.DeletePod) {
			return
		}
		if proven(s) {
			return
		}
		n := s.seen.Node
		if has(p, plan.DeletePod) && s.seen.Journal.ProofRecorded && n.Read && !n.Missing && n.Fenced && n.BootID == "b2" && n.SystemUUID == "m1" && s.seen.Listed {
			w := s.seen.Writers[slices.IndexFunc(s.seen.Writers, func(w evidence.Writer) bool { return w.UID == p.Steps[len(p.Steps)-1].Target })]
			if w.BootID != "b2" {
				return
			}
		}
		t.Fatalf("released without proof: %v", p.Steps)
	})
}

// TestI2OneCommandAtATime: while an attempt may still take effect unseen, nothing new is commanded, and it is settled only by what is read.
func TestI2OneCommandAtATime(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		states := map[string]evidence.PowerState{}
		for _, pw := range s.seen.Power {
			if pw.Identity == evidence.IdentityMatches {
				states[pw.Method] = pw.State
			}
		}
		for _, a := range s.seen.Journal.Attempts {
			settled := slices.IndexFunc(p.Steps, func(x plan.Step) bool { return x.Kind == plan.Settle && x.Target == a.ID })
			if a.Unsettled() && settled < 0 && has(p, plan.Isolate) {
				t.Fatalf("commanded while %s is %s", a.ID, a.State)
			}
			if settled < 0 {
				continue
			}
			if states[a.Method] == evidence.PowerUnread {
				t.Fatalf("settled %s without a reading", a.ID)
			}
			if p.Steps[settled].As == evidence.AttemptSettled && (a.State != evidence.AttemptAccepted || !states[a.Method].Dead()) {
				t.Fatalf("%s, which is %s, counts as settled by a reading of %s", a.ID, a.State, states[a.Method])
			}
			if a.State != evidence.AttemptAccepted && a.Unsettled() && !a.CallOver {
				t.Fatalf("settled %s while its call may be under way", a.ID)
			}
		}
	})
}

// TestI4RightHost: only a readable device that belongs to this machine is commanded, and only while the Node still names this machine.
func TestI4RightHost(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		for _, step := range p.Steps {
			if step.Kind != plan.Isolate {
				continue
			}
			i := slices.IndexFunc(s.seen.Power, func(pw evidence.Power) bool { return pw.Method == step.Target })
			if pw := s.seen.Power[i]; pw.Identity != evidence.IdentityMatches || pw.State == evidence.PowerUnread {
				t.Fatalf("commanded %s, which is %s and reads %s", pw.Method, pw.Identity, pw.State)
			}
			if !s.seen.SameMachine() || !s.seen.SameBoot() {
				t.Fatalf("commanded off while the Node names another machine or boot")
			}
		}
	})
}

// TestI5BudgetAndModes: the brakes that people set hold.
func TestI5BudgetAndModes(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		if s.policy.Shadow && has(p, plan.Isolate, plan.Taint, plan.TaintOutOfService, plan.DeletePod, plan.KeepServing, plan.StopServing) {
			t.Fatalf("mode Shadow touches: %v", p.Steps)
		}
		if s.policy.Paused && has(p, plan.Isolate, plan.Taint, plan.TaintOutOfService, plan.DeletePod, plan.KeepServing, plan.StopServing, plan.Untaint, plan.DisarmHold, plan.Close) {
			t.Fatalf("mode Paused acts: %v", p.Steps)
		}
		for _, step := range p.Steps {
			if step.Kind != plan.Isolate || found.Refuted {
				continue
			}
			i := slices.IndexFunc(s.seen.Power, func(pw evidence.Power) bool { return pw.Method == step.Target })
			changes := !s.seen.Power[i].State.Dead() || otherReadsOn(s.seen, s.seen.Power[i])
			if changes && !s.budget.Left() {
				t.Fatalf("beyond the budget")
			}
			if s.policy.OnLoss != verdict.Act || (changes && s.policy.ManualApproval && !s.seen.Journal.Approved) {
				t.Fatalf("without leave")
			}
		}
	})
}

// TestUnreadIsNeverNegative: taking a reading away (what was seen earlier stays known) never makes a host lost, and never adds an irreversible step.
func TestUnreadIsNeverNegative(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		less := s
		less.seen = lessRead(t, s.seen)
		foundLess, pLess := less.decide()
		if foundLess.Class == verdict.Lost && found.Class != verdict.Lost {
			t.Fatalf("%s by %s becomes Lost by %s", found.Class, found.Rule(), foundLess.Rule())
		}
		for _, k := range irreversible(pLess) {
			last := pLess.Steps[len(pLess.Steps)-1]
			if k == plan.Isolate && (len(irreversible(p)) > 0 || wantsFence(found, p) || slices.Contains(found.ReadsOff, last.Target)) {
				continue // another method takes over from the one that cannot be read now, or from one that waits for leave, and it reads Off already
			}
			if !slices.Contains(irreversible(p), k) {
				t.Fatalf("%s is added: %s by %s %v becomes %s by %s %v", k, found.Class, found.Rule(), p, foundLess.Class, foundLess.Rule(), pLess)
			}
		}
	})
}

// wantsFence is true of a plan that fences, and waits for nothing but its method.
func wantsFence(found verdict.Found, p plan.Plan) bool {
	for _, r := range p.Refusals {
		if r.What == "Fence" && r.By != "OffNotSettled" {
			return false
		}
	}
	return found.Class == verdict.Silent || found.Refuted
}

func lessRead(t *rapid.T, s evidence.Snapshot) evidence.Snapshot {
	s.Apps, s.Power = slices.Clone(s.Apps), slices.Clone(s.Power)
	if oneIn(t, 3, "take node") {
		s.Node = evidence.Node{At: s.Node.At, Spoke: s.Node.Spoke, SpokeNotBefore: s.Node.SpokeNotBefore}
	}
	if oneIn(t, 3, "take lease") {
		s.Lease.Read, s.Lease.Missing = false, false
	}
	if oneIn(t, 3, "take port") {
		s.Port.Answer, s.Port.Asked = evidence.AnswerUnread, 0
	}
	if oneIn(t, 3, "take lists") {
		s.Listed, s.Writers, s.Attachments, s.Successors = false, nil, nil, nil
	}
	if oneIn(t, 3, "take others") {
		s.Cluster.HasOther, s.Cluster.OtherNotBefore = false, 0
	}
	for i := range s.Apps {
		if oneIn(t, 3, "take app") {
			s.Apps[i].Serving, s.Apps[i].Answered, s.Apps[i].FailingFor = evidence.ServingUnread, 0, 0
		}
	}
	for i := range s.Power {
		if oneIn(t, 3, "take power") {
			s.Power[i].State, s.Power[i].Identity = evidence.PowerUnread, evidence.IdentityUnchecked
		}
	}
	return s
}

// TestI8ReturnGate: an incident ends only once this observer has heard a well kubelet (or another boot has ended the old one, to which nothing was
// done); taints come off only for another boot, with nothing of the old one left and nothing under way.
func TestI8ReturnGate(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		n := s.seen.Node
		newBoot := n.Read && !n.Missing && n.BootID == "b2"
		heard := n.Read && !n.Missing && n.Ready == evidence.ReadyTrue && s.seen.Lease.Moved && s.seen.Lease.Age <= 15*time.Second
		unsettled := slices.ContainsFunc(s.seen.Journal.Attempts, func(a evidence.Attempt) bool {
			return a.Unsettled() && !slices.ContainsFunc(p.Steps, func(x plan.Step) bool { return x.Kind == plan.Settle && x.Target == a.ID })
		})
		released := s.seen.Journal.ProofRecorded && n.Fenced
		if has(p, plan.Untaint) && (!newBoot || unsettled || (released && !heard)) {
			t.Fatalf("untainted: %v", p.Steps)
		}
		if has(p, plan.Close) && (unsettled || (!heard && !newBoot)) {
			t.Fatalf("closed: %v", p.Steps)
		}
		if has(p, plan.Close) && s.seen.Journal.ProofRecorded && !newBoot {
			t.Fatalf("closed on the boot that was declared lost: %v", p.Steps)
		}
		if has(p, plan.Untaint) && s.seen.Journal.ProofRecorded && n.Fenced && len(s.seen.Attachments) > 0 {
			t.Fatalf("untainted with volumes still attached: %v", p.Steps)
		}
	})
}

// TestI6SilenceNeedsContrast: a host whose power no device reads Off is commanded off only after silence for confirmAfter, with the lease late, and with
// another host heard well after its last life; or because the apps ask for it, or the host was declared lost and speaks.
func TestI6SilenceNeedsContrast(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		off := slices.ContainsFunc(s.seen.Power, func(pw evidence.Power) bool { return pw.HasOff || pw.State.Dead() })
		if !has(p, plan.Isolate) || off || found.Refuted || lives(found.Class) {
			return
		}
		quiet := quietSince(s.seen, ago(s.policy.ConfirmAfter)+1)
		contrast := s.seen.Cluster.HasOther && quietSince(s.seen, s.seen.Cluster.OtherNotBefore-evidence.Instant(12500*time.Millisecond)+1)
		if heardNow(s.seen) || (s.seen.Witnesses.On && 2*len(looked(s.seen)) <= s.seen.Witnesses.Expected && s.seen.Witnesses.Expected > 0) {
			t.Fatalf("fenced by silence: %v of %d looked, heard %v", looked(s.seen), s.seen.Witnesses.Expected, heardNow(s.seen))
		}
		if !quiet || !contrast || (!s.seen.Lease.Missing && s.seen.Lease.Age <= 15*time.Second) {
			t.Fatalf("fenced by silence: quiet %v, contrast %v, lease %s", quiet, contrast, s.seen.Lease.Age)
		}
	})
}

// current are the vantage points that answered in this round.
func current(s evidence.Snapshot) map[string]evidence.Vantage {
	out := map[string]evidence.Vantage{}
	for _, v := range s.Witnesses.Vantages {
		if s.Witnesses.On && v.Answered && v.At >= ago(5*time.Second) {
			out[v.Witness] = v
		}
	}
	return out
}

// heardNow: some vantage point that answered hears the host, by gossip, port or application.
func heardNow(s evidence.Snapshot) bool {
	for _, v := range current(s) {
		if v.State == evidence.GossipAlive || v.State == evidence.GossipSuspect || (v.Port.Rank() != evidence.RankNone && v.PortAsked >= ago(5*time.Second)) {
			return true
		}
		for i, a := range v.Apps {
			if i < len(s.Apps) && s.Apps[i].PodUID == a.PodUID && s.Apps[i].Exclusive && a.Says.Rank() != evidence.RankNone && a.Asked >= ago(5*time.Second) {
				return true
			}
		}
	}
	return false
}

// looked names the vantage points that asked the host's port in vain, after any sign of life.
func looked(s evidence.Snapshot) (names []string) {
	for name, v := range current(s) {
		if (v.Port == evidence.AnswerNone || v.Port == evidence.AnswerUnreachable) && v.PortAsked >= ago(5*time.Second) && quietSince(s, v.PortAsked+1) {
			names = append(names, name)
		}
	}
	return names
}

// TestAHostThatAnyWitnessHearsIsNotSilent by silence alone, and is commanded off only where the apps ask for that, or it was declared lost.
func TestAHostThatAnyWitnessHearsIsNotSilent(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		if !heardNow(s.seen) {
			return
		}
		if found.Rule() == "NothingAnswers" || found.Proof.Fresh {
			t.Fatalf("%s by %s", found.Class, found.Rule())
		}
		if has(p, plan.Isolate, plan.Taint) && !found.Refuted && !lives(found.Class) {
			t.Fatalf("%s by %s is fenced: %v", found.Class, found.Rule(), p.Steps)
		}
	})
}

// TestTrafficIsNotStoppedByOurWordAlone: where vantage points should answer, an endpoint leaves only when more than half of them asked the application in
// vain, or with proof.
func TestTrafficIsNotStoppedByOurWordAlone(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		if !s.seen.Witnesses.On || s.seen.Witnesses.Expected == 0 || found.Class == verdict.Lost {
			return
		}
		for _, step := range p.Steps {
			if step.Kind != plan.StopServing {
				continue
			}
			failed := 0
			for _, v := range current(s.seen) {
				for _, a := range v.Apps {
					if a.PodUID == step.Target && a.Says == evidence.ThereAnswered && a.Asked >= ago(5*time.Second) {
						t.Fatalf("%s is taken out, and answers %s", step.Target, v.Witness)
					}
					if a.PodUID == step.Target && a.Says != evidence.ThereUnread && a.Asked >= ago(5*time.Second) {
						failed++
					}
				}
			}
			if 2*failed <= s.seen.Witnesses.Expected {
				t.Fatalf("%s is taken out, and %d of %d vantage points asked it in vain", step.Target, failed, s.seen.Witnesses.Expected)
			}
		}
	})
}

// TestAKubeletIsRestartedWhereThatHelpsAndAllAllowIt: its lease has run out, the host's own agent says lately and of this boot that API and runtime answer there, no
// Off command may be under way, and neither it nor another host's was restarted a moment ago.
func TestAKubeletIsRestartedWhereThatHelpsAndAllAllowIt(t *testing.T) {
	done := 0
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		if !has(p, plan.RestartKubelet) {
			return
		}
		done++
		r, own := s.seen.Repairs, s.seen.Witnesses.Report
		helps := s.seen.Witnesses.On && own.Heard && own.BootID == "b1" && own.NotBefore >= ago(10*time.Second) && own.API == evidence.PulseAlive &&
			own.Runtime == evidence.PulseAlive && own.Kubelet != evidence.PulseUnread
		lately := !r.Read || (r.Tried && r.Ago < 10*time.Minute) || (r.Elsewhere != "" && r.ElsewhereAgo < time.Minute)
		commanded := slices.ContainsFunc(s.seen.Journal.Attempts, func(a evidence.Attempt) bool {
			spent := slices.ContainsFunc(p.Steps, func(x plan.Step) bool {
				return x.Kind == plan.Settle && x.Target == a.ID && x.As == evidence.AttemptSuperseded
			})
			return !spent && a.State != evidence.AttemptFailed && a.State != evidence.AttemptSuperseded
		})
		if found.Class != verdict.KubeletDown || !helps || lately || commanded || s.seen.Lease.Age <= 40*time.Second || !s.seen.Journal.Open() || s.seen.Journal.ProofRecorded {
			t.Fatalf("%s by %s: restarted: %v", found.Class, found.Rule(), p.Steps)
		}
		if !s.policy.RestartKubelet || s.policy.Paused || s.policy.Shadow || has(p, plan.Isolate, plan.Taint, plan.DeletePod, plan.TaintOutOfService) {
			t.Fatalf("restarted against the policy or beside a fence: %v", p.Steps)
		}
	})
	if done == 0 {
		t.Error("no situation had a kubelet restarted")
	}
}

// TestARestartMovesNoVerdict: when kubelets were restarted changes nothing of what is held of a host, releases nothing, and brings no fence forward.
func TestARestartMovesNoVerdict(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		without := s
		without.seen.Repairs, without.policy.RestartKubelet = evidence.Repairs{}, false
		found, p := s.decide()
		foundWithout, pWithout := without.decide()
		if found.Class != foundWithout.Class || found.Rule() != foundWithout.Rule() || found.Proof.Fresh != foundWithout.Proof.Fresh {
			t.Fatalf("%s by %s becomes %s by %s", foundWithout.Class, foundWithout.Rule(), found.Class, found.Rule())
		}
		for _, k := range []plan.Kind{plan.Isolate, plan.Taint, plan.TaintOutOfService, plan.DeletePod} {
			if has(p, k) && !has(pWithout, k) {
				t.Fatalf("%s is done for a repair: %v", k, p.Steps)
			}
		}
	})
}

// TestConnectionsAreResetOfTheGoneOnly: of a lost host, to addresses whose pod object is gone and that nobody has, for two minutes; everything else goes on as
// without.
func TestConnectionsAreResetOfTheGoneOnly(t *testing.T) {
	reset, letGo := 0, 0
	check(t, func(t *rapid.T, s situation) {
		without, pWithout := s.decide()
		s.policy.ResetConnections = !oneIn(t, 6, "no resets")
		for i := range rapid.IntRange(1, 3).Draw(t, "addresses") {
			a := evidence.Address{IP: fmt.Sprintf("10.1.0.%d", i+1), Gone: !oneIn(t, 4, "there"), Ago: 2 * span(t, "gone for"), Unread: oneIn(t, 8, "users unread"),
				Begun: oneIn(t, 2, "begun"), Ours: oneIn(t, 2, "ours"), Ended: oneIn(t, 6, "ended")}
			if oneIn(t, 4, "used") {
				a.User = "pod shop/web-7"
			}
			s.seen.Addresses = append(s.seen.Addresses, a)
		}
		found, p := s.decide()
		if found.Class != without.Class || found.Proof.Fresh != without.Proof.Fresh {
			t.Fatalf("%s becomes %s", without.Class, found.Class)
		}
		of := func(s plan.Step) bool { return s.Kind == plan.ResetConnections || s.Kind == plan.LetGo }
		if rest := slices.DeleteFunc(slices.Clone(p.Steps), of); !slices.Equal(rest, pWithout.Steps) || !slices.Equal(p.Refusals, pWithout.Refusals) || p.Next > pWithout.Next {
			t.Fatalf("%v becomes %v", pWithout.Steps, p.Steps)
		}
		for _, a := range s.seen.Addresses {
			does := func(k plan.Kind) bool {
				return slices.ContainsFunc(p.Steps, func(s plan.Step) bool { return s.Kind == k && s.Target == a.IP })
			}
			may := s.policy.ResetConnections && !s.policy.Paused && !s.policy.Shadow && a.Ago < plan.ResetWindow && a.User == "" && !a.Unread && !a.Ended && s.seen.SameBoot() && !found.Refuted
			if does(plan.ResetConnections) {
				reset++
				if !may || !a.Gone || found.Class != verdict.Lost || !s.seen.Journal.ProofRecorded || has(p, plan.Close) {
					t.Fatalf("connections are reset to %+v at %s", a, found.Class)
				}
			}
			if a.Begun && !a.Ended && (!may || lives(found.Class) || found.Class == verdict.Healthy || has(p, plan.Close)) {
				letGo++
				if !does(plan.LetGo) {
					t.Fatalf("%+v is kept at %s by %v", a, found.Class, p.Steps)
				}
			}
		}
	})
	if reset == 0 || letGo == 0 {
		t.Errorf("%d resets and %d ends were seen: the test says nothing", reset, letGo)
	}
}

func lives(c verdict.Class) bool {
	return slices.Contains([]verdict.Class{verdict.Hung, verdict.KubeletDown, verdict.RuntimeDown, verdict.Isolated}, c)
}

// TestTheLivingAreFencedByPolicyOnly: a host that lives is commanded off only where the apps ask for that by the policy for its very state, and every
// application on it has failed its probes for confirmAfter.
func TestTheLivingAreFencedByPolicyOnly(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		if !has(p, plan.Isolate, plan.Taint) || found.Refuted || !lives(found.Class) {
			return
		}
		asked := s.policy.NotServing
		if found.Class == verdict.Isolated {
			asked = s.policy.Isolated
		}
		serves := slices.ContainsFunc(s.seen.Apps, func(a evidence.App) bool {
			return a.Serving != evidence.ServingNo || a.FailingFor < s.policy.ConfirmAfter
		})
		if asked != verdict.Act || serves || len(s.seen.Apps) == 0 {
			t.Fatalf("%s by %s is fenced: %v", found.Class, found.Rule(), p.Steps)
		}
	})
}

// TestNobodyIsBlockedWithoutAReason: what only a human can end names its reason and the way out.
func TestNobodyIsBlockedWithoutAReason(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		if (p.Blocked != "") != (p.BlockedBy != "") || (p.BlockedBy != "" && !slices.Contains(plan.Blocks(), p.BlockedBy)) {
			t.Fatalf("blocked %q by %q", p.Blocked, p.BlockedBy)
		}
		if (p.ApprovalRequired || p.BudgetExhausted) && p.Blocked == "" {
			t.Fatalf("a brake that only a human takes off does not block: %v", p.Refusals)
		}
	})
}

// TestI9OneIrreversibleStepAndLast, and every plan says when to look again.
func TestI9OneIrreversibleStepAndLast(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		_, p := s.decide()
		for i, step := range p.Steps {
			if step.Kind.Irreversible() && i != len(p.Steps)-1 {
				t.Fatalf("%s is not last: %v", step.Kind, p.Steps)
			}
		}
		if in := s.policy.LateIn(s.seen.Lease); in > 0 && len(s.seen.Writers) > 0 && p.Next > in {
			t.Fatalf("next look in %s, and the lease is late in %s: %s %v", p.Next, in, s.seen.Journal.Step, p)
		}
		if p.Next <= 0 || p.Next > 10*time.Second {
			t.Fatalf("next look in %s: %s %v", p.Next, s.seen.Journal.Step, p)
		}
	})
}

// TestFreshObserverWaits: an observer that has seen nothing move does not take its own youth for anybody's silence.
func TestFreshObserverWaits(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		young := 3 * time.Second
		s.seen.Cluster.Observing, s.seen.Cluster.HasOther = young, false
		s.seen.Lease.Age, s.seen.Lease.Moved, s.seen.Lease.Missing, s.seen.Node.Spoke = young, false, false, false
		s.seen.Port.HasAnswer = false
		s.seen.Witnesses, s.seen.AgentLease = evidence.Witnesses{}, evidence.AgentLease{}
		s.seen.Power = slices.Clone(s.seen.Power)
		for i := range s.seen.Power {
			p := &s.seen.Power[i]
			p.HasOn, p.HasOff, p.Said = p.HasOn && p.State == evidence.PowerOn, p.HasOff && p.State == evidence.PowerOff, evidence.PowerUnread
			if p.Identity == evidence.IdentityMatches {
				p.Said = p.State
			}
		}
		for i := range s.seen.Apps {
			s.seen.Apps[i].HasAnswer, s.seen.Apps[i].HasKernel, s.seen.Apps[i].FailingFor = false, false, min(young, s.seen.Apps[i].FailingFor)
		}
		found, p := s.decide()
		if has(p, plan.Untaint, plan.Close, plan.DisarmHold) {
			t.Fatalf("a fresh observer lets go: %v", p.Steps)
		}
		if has(p, plan.Isolate) && !found.Refuted && len(found.ReadsOff) == 0 {
			t.Fatalf("a fresh observer fences without a device that reads Off: %v", p.Steps)
		}
	})
}

// TestClockShift: only differences between instants count.
func TestClockShift(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		found, p := s.decide()
		by := evidence.Instant(rapid.Int64Range(-int64(20*time.Minute), int64(time.Hour)).Draw(t, "shift"))
		moved := s
		moved.seen = shift(s.seen, by)
		foundMoved, pMoved := moved.decide()
		if found.Class != foundMoved.Class || !reflect.DeepEqual(p, pMoved) {
			t.Fatalf("%s %v becomes %s %v when every clock is shifted by %s", found.Class, p, foundMoved.Class, pMoved, time.Duration(by))
		}
	})
}

func shift(s evidence.Snapshot, by evidence.Instant) evidence.Snapshot {
	s.Apps, s.Power, s.Attestations = slices.Clone(s.Apps), slices.Clone(s.Power), slices.Clone(s.Attestations)
	instants := []*evidence.Instant{&s.At, &s.Node.At, &s.Node.SpokeNotBefore, &s.Lease.At, &s.Lease.NotBefore, &s.Port.Asked, &s.Port.LastAnswer, &s.Cluster.OtherNotBefore,
		&s.Journal.ProvenSince}
	for i := range s.Attestations {
		instants = append(instants, &s.Attestations[i].Seen, &s.Attestations[i].At)
	}
	for i := range s.Apps {
		instants = append(instants, &s.Apps[i].LastAnswer, &s.Apps[i].LastKernel)
	}
	for i := range s.Power {
		instants = append(instants, &s.Power[i].At, &s.Power[i].OffSince, &s.Power[i].LastOff, &s.Power[i].LastOn)
	}
	instants = append(instants, &s.AgentLease.At, &s.AgentLease.Asked, &s.AgentLease.NotBefore, &s.AgentLease.Since, &s.Witnesses.Report.NotBefore, &s.Witnesses.Report.NotAfter)
	s.Witnesses.Vantages = slices.Clone(s.Witnesses.Vantages)
	for i := range s.Witnesses.Vantages {
		v := &s.Witnesses.Vantages[i]
		v.Apps = slices.Clone(v.Apps)
		instants = append(instants, &v.At, &v.Agent.NotBefore, &v.Agent.NotAfter, &v.PortAsked, &v.PortHeard.NotBefore, &v.PortHeard.NotAfter)
		for j := range v.Apps {
			a := &v.Apps[j]
			instants = append(instants, &a.Asked, &a.Answered.NotBefore, &a.Answered.NotAfter, &a.Replied.NotBefore, &a.Replied.NotAfter)
		}
	}
	for _, i := range instants {
		*i += by
	}
	return s
}

// TestWithoutVantagePointsItIsAsWithoutAgents: agents that are not configured, and agents of which none is expected and none has ever answered, change nothing.
func TestWithoutVantagePointsItIsAsWithoutAgents(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		plain, off, mute := s, s, s
		plain.seen.Witnesses = evidence.Witnesses{}
		off.seen.Witnesses = anyWitnesses(t, s.seen)
		off.seen.Witnesses.On = false
		mute.seen.AgentLease = evidence.AgentLease{}
		mute.seen.Witnesses = evidence.Witnesses{On: true, Vantages: []evidence.Vantage{{Witness: "w0", At: now, State: evidence.GossipAlive}, {Witness: "w1", At: now, State: evidence.GossipDead}}}
		found, p := plain.decide()
		for what, other := range map[string]situation{"not configured": off, "never heard": mute} {
			foundOther, pOther := other.decide()
			if !reflect.DeepEqual(found, foundOther) || !reflect.DeepEqual(p, pOther) {
				t.Fatalf("agents that are %s make %s by %s %v of %s by %s %v", what, foundOther.Class, foundOther.Rule(), pOther, found.Class, found.Rule(), p)
			}
		}
	})
}

// TestWitnessesNeverRelease: whatever agents say, it makes no host lost and releases nothing that would stay without them, but for a watchdog, which is told of
// elsewhere, and for one wait: where the host's own agent would have spoken up by now if the host lived, nobody waits for its kubelet's lease.
func TestWitnessesNeverRelease(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		with := s
		with.seen.Witnesses, with.seen.AgentLease = anyWitnesses(t, s.seen), anyAgentLease(t)
		with.seen.AgentLease.Bound = 0
		s.seen.Witnesses, s.seen.AgentLease = evidence.Witnesses{}, evidence.AgentLease{}
		if !with.policy.AwaitLease && silentAgent(with.seen) {
			s.seen.Lease.Age = max(s.seen.Lease.Age, s.seen.Lease.Duration*9/32+1)
		}
		found, p := s.decide()
		foundWith, pWith := with.decide()
		if foundWith.Proof.Fresh && !found.Proof.Fresh {
			t.Fatalf("%s by %s becomes %s by %s", found.Class, found.Rule(), foundWith.Class, foundWith.Rule())
		}
		if has(pWith, plan.TaintOutOfService, plan.DeletePod) && !has(p, plan.TaintOutOfService, plan.DeletePod) {
			t.Fatalf("released on the word of agents: %v", pWith.Steps)
		}
	})
}

// silentAgent is, in other words than the engine's, that an agent which lived and reached the API would have said so: of the vantage points that should answer,
// more than half have given the host up for two seconds and once had its answer, nothing of the host has been heard since the last of them did, and its Lease
// has stood still for more than twice as long as the agent ever lets it.
func silentAgent(s evidence.Snapshot) bool {
	gone, knew, since := 0, 0, evidence.Instant(0)
	for _, v := range current(s) {
		if v.State == evidence.GossipDead {
			gone, since = gone+1, max(since, v.At-evidence.Instant(v.StateFor))
		}
		if v.Agent.Heard && v.AgentBoot == "b1" {
			knew++
		}
	}
	l, r := s.AgentLease, s.Witnesses.Report
	return 2*gone > s.Witnesses.Expected && 2*knew > s.Witnesses.Expected && s.Witnesses.Expected > 0 && since <= ago(2*time.Second) && quietSince(s, since+1) && !heardNow(s) &&
		l.Read && !l.Missing && l.BootID == "b1" && l.Age > 2*time.Second && (r.BootID != "b1" || r.API != evidence.PulseDead)
}

// TestMakeIsPure: the same values give the same plan, and stay as they were.
func TestMakeIsPure(t *testing.T) {
	check(t, func(t *rapid.T, s situation) {
		before := shift(s.seen, 0)
		before.Journal.Attempts = slices.Clone(s.seen.Journal.Attempts)
		_, p := s.decide()
		_, again := s.decide()
		if !reflect.DeepEqual(p, again) || !reflect.DeepEqual(before, s.seen) {
			t.Fatalf("not pure: %v, %v", p, again)
		}
	})
}

// check runs a property on many situations, and makes sure that the interesting ones are among them.
func check(t *testing.T, property func(*rapid.T, situation)) {
	t.Helper()
	rapid.Check(t, func(rt *rapid.T) {
		for range 60 {
			property(rt, anySituation(rt))
		}
	})
}
