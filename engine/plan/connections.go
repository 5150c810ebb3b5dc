// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

const (
	// ResetWindow is for how long after its pod's release connections to an address are reset at most (ADR 10).
	ResetWindow = 2 * time.Minute
	// nextReset is how often the journal is told of it.
	nextReset = time.Second
)

// endings say, in this order, why connections to an address are not reset, or not any more.
var endings = []func(m *maker, a evidence.Address) string{
	func(m *maker, _ evidence.Address) string {
		return said(!m.policy.ResetConnections || m.policy.Paused || m.policy.Shadow, "it is not wanted any more: agents are not to do it, or an app on the host is paused or in mode Shadow")
	},
	func(m *maker, _ evidence.Address) string { return said(m.returned(), "the host is back") },
	func(m *maker, _ evidence.Address) string { return said(m.ends(), "the incident ends") },
	func(_ *maker, a evidence.Address) string { return said(a.Unread, "nobody knows who has the address") },
	func(_ *maker, a evidence.Address) string { return said(a.User != "", "the address belongs to "+a.User) },
	func(_ *maker, a evidence.Address) string { return a.Over },
	func(_ *maker, a evidence.Address) string {
		return said(a.Ago >= ResetWindow, "the pod was released "+ResetWindow.String()+" ago")
	},
}

func said(so bool, because string) string {
	if so {
		return because
	}
	return ""
}

// connections has those to the addresses of released pods reset, and lets addresses go. Nothing waits for it. It is asked last, since it ends with the incident,
// and done first, since a step that cannot be undone is the last one of a plan.
func (m *maker) connections() {
	var steps []Step
	for _, a := range m.seen.Addresses {
		if a.Ended {
			continue
		}
		switch because := m.ending(a); {
		case because != "" && (a.Begun || a.Ours):
			steps = append(steps, Step{Kind: LetGo, Target: a.IP, Because: because})
		case because != "":
		case m.found.Class == verdict.Lost && m.seen.Journal.ProofRecorded && a.Gone && !(a.Begun && a.Ours):
			steps = append(steps, Step{Kind: ResetConnections, Target: a.IP, Because: "its pod was released, and nobody has the address"})
			m.out.Next = min(m.out.Next, nextReset)
		case a.Ours:
			m.out.Next = min(m.out.Next, nextReset)
		}
	}
	m.out.Steps = append(steps, m.out.Steps...)
}

func (m *maker) ending(a evidence.Address) string {
	for _, ending := range endings {
		if because := ending(m, a); because != "" {
			return because
		}
	}
	return ""
}

// returned is true when something of the host is heard, its Node is in another boot, or a device says that it is on: its addresses may live again.
func (m *maker) returned() bool {
	if slices.ContainsFunc(m.seen.Power, func(p evidence.Power) bool {
		return p.CoversHost && p.State == evidence.PowerOn && p.Identity == evidence.IdentityMatches
	}) {
		return true
	}
	switch m.found.Class {
	case verdict.Lost, verdict.Silent, verdict.Blind, verdict.Unknown:
		return m.found.Refuted || !m.seen.SameBoot()
	default:
		return true
	}
}

// ends is true when the incident is over with this plan.
func (m *maker) ends() bool {
	return slices.ContainsFunc(m.out.Steps, func(s Step) bool {
		return s.Kind == Close || s.Kind == Advance && s.Target == string(evidence.StepRetired)
	})
}
