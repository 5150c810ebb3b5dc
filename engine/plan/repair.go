// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

const (
	// RepairWindow is in what time the kubelet of a host is restarted once at most.
	RepairWindow = 10 * time.Minute
	// repairFor is how long a restart is given before anything else is done about the host, and before another host's kubelet is restarted. A kubelet
	// that comes back has renewed its lease by then.
	repairFor = time.Minute
)

// repairing holds back the restart of a kubelet.
var repairing = []brake{
	{name: "ModePaused", when: func(m *maker) (string, bool) { return "an app on the host is paused", m.policy.Paused }},
	{name: "FenceUnderway", when: func(m *maker) (string, bool) { return "the host was commanded off", m.underway() }},
	{name: "LeaseNotExpired", when: func(m *maker) (string, bool) {
		age := m.seen.Lease.Age.Round(100 * time.Millisecond)
		return fmt.Sprintf("the lease is %s old and has not run out: the kubelet may come back by itself", age), !m.policy.Expired(m.seen.Lease)
	}},
	{name: "RestartedLately", when: func(m *maker) (string, bool) {
		if !m.seen.Repairs.Read {
			return "it cannot be read when kubelets were restarted", true
		}
		return fmt.Sprintf("it was restarted %s ago; once in %s", m.seen.Repairs.Ago.Round(time.Second), RepairWindow), m.repairedLately()
	}},
	{name: "OneAtATime", when: func(m *maker) (string, bool) {
		r := m.seen.Repairs
		return fmt.Sprintf("the kubelet of %s was restarted %s ago", r.Elsewhere, r.ElsewhereAgo.Round(time.Second)), r.Elsewhere != "" && r.ElsewhereAgo < repairFor
	}},
	{name: "ModeShadow", when: func(m *maker) (string, bool) { return "an app on the host is in mode Shadow", m.policy.Shadow }},
}

// patience holds back the fence of a host that lives while a restart of its kubelet is owed, or may still help: repair comes first.
var patience = []brake{
	{name: "RepairFirst", when: func(m *maker) (string, bool) {
		r := m.seen.Repairs
		if r.Read && r.Tried && !r.Failed && r.Ago < repairFor {
			return fmt.Sprintf("its kubelet was restarted %s ago, and gets %s", r.Ago.Round(time.Second), repairFor), true
		}
		because, cures := m.cures()
		return because, cures && !m.repairedLately() && !m.policy.Paused && !m.policy.Shadow && !m.underway()
	}},
}

// cures reports whether restarting the kubelet would help by all that is known, and why. The host's own agent must say, now and of this boot, that the way to
// the API is open and that the runtime answers: where either is missing, no kubelet can do anything.
func (m *maker) cures() (because string, cures bool) {
	report, ok := m.seen.ReportNow()
	if !m.policy.RestartKubelet || m.found.Class != verdict.KubeletDown || !ok || report.API != evidence.PulseAlive || report.Runtime != evidence.PulseAlive {
		return "", false
	}
	lease := m.seen.Lease.Age.Round(100 * time.Millisecond)
	switch report.Kubelet {
	case evidence.PulseAlive:
		return fmt.Sprintf("the host's agent says that the kubelet is well and that the API answers there, and the lease is %s old: its connection hangs", lease), true
	case evidence.PulseDead:
		return fmt.Sprintf("the host's agent says that the kubelet is dead, and that runtime and API answer there; the lease is %s old", lease), true
	default:
		return "", false
	}
}

func (m *maker) repairedLately() bool {
	return m.seen.Repairs.Tried && m.seen.Repairs.Ago < RepairWindow
}

// repair restarts the kubelet of a host that is held, where that would help and all apps on it allow it (onKubeletFailure.repair).
func (m *maker) repair() {
	because, cures := m.cures()
	if !cures || !m.seen.Journal.Open() {
		return
	}
	step := Step{Kind: RestartKubelet, Because: because}
	if m.braked("Repair", repairing) {
		if m.policy.Shadow && m.out.Refusals[len(m.out.Refusals)-1].By == "ModeShadow" {
			m.out.Would = append(m.out.Would, step)
		}
		return
	}
	m.do(step)
}
