// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// brake is one named reason not to do something. The names stand in status, in scenarios and in docs/spec/exits.md.
type brake struct {
	name string
	// when says whether the brake holds, and why in words.
	when func(*maker) (because string, holds bool)
	// tell, when there is one, says what else is to be told: a brake that only a human takes off, or a way out.
	tell func(*maker)
}

// reschedule has one brake, and it is always on: what is on the host stays there until proof says otherwise. (The step that would move it, DeletePod,
// is planned by release alone.)
const byProof = "I1 ProofBeforeRelease"

// doubting holds back the fence of a host of which too little is known.
var doubting = []brake{
	{name: "Blind", when: func(m *maker) (string, bool) { return m.because(), m.found.Class == verdict.Blind }},
	{name: "Unknown", when: func(m *maker) (string, bool) {
		return m.because(), m.found.Class == verdict.Unknown && !m.found.Refuted
	}, tell: func(m *maker) {
		m.out.Next = nextSuspect
		if words, ok := wayOut[m.found.Rule()]; ok {
			m.block(m.found.Rule(), words)
		}
	}},
	{name: "WitnessHears", when: func(m *maker) (string, bool) {
		words, heard := m.seen.WitnessHears()
		return words, heard && m.found.Class == verdict.Silent // what lives is fenced by the apps' own wish only
	}, tell: func(m *maker) { m.out.Next = nextSuspect }},
}

// wayOut says, by the rule that gave the verdict, what a human can do where the engine will not find out by itself.
var wayOut = map[string]string{
	BlockNodeMissing:        "the Node object is gone while the incident is open: power the machine off by hand, or let it register again",
	BlockOtherMachine:       "another machine has taken the Node's name: power the first machine off by hand",
	BlockDeviceContradicted: "the fence device reads Off while the host shows life: repair the device, or power the host off by hand",
}

// confirming holds back the fence of a silent host whose device does not read Off.
var confirming = []brake{
	{name: "ConfirmAfter", when: func(m *maker) (string, bool) {
		silent, after := m.seen.SilentFor(), m.policy.ConfirmAfter
		return fmt.Sprintf("silent for %s of %s", silent.Round(100*time.Millisecond), after), silent < after
	}},
	{name: "LeaseNotLate", when: func(m *maker) (string, bool) {
		return fmt.Sprintf("the lease is %s old and may still be renewed", m.seen.Lease.Age.Round(100*time.Millisecond)), !m.policy.Late(m.seen.Lease)
	}},
	{name: "NoContrast", when: func(m *maker) (string, bool) {
		return "no other host has been heard since this one should have been heard again", !m.policy.Contrasted(m.seen)
	}},
	{name: "NoQuorum", when: func(m *maker) (string, bool) {
		return fmt.Sprintf("%d of %d vantage points have looked for the host in vain", m.seen.WitnessesSearched(), m.seen.Witnesses.Expected), !m.seen.WitnessQuorum()
	}},
}

// fencing holds back every Off command. An unsettled attempt comes last: a human's word gets past it, and past nothing else.
var fencing = []brake{
	{name: "NothingToRelease", when: func(m *maker) (string, bool) {
		return "no guarded writer is left on the host", len(m.seen.Unreleased()) == 0 && !m.found.Refuted
	}},
	{name: "ModePaused", when: func(m *maker) (string, bool) { return "an app on the host is paused", m.policy.Paused }},
	{name: "ActionHold", when: func(m *maker) (string, bool) {
		return "onHostLoss.action is Hold", m.policy.OnLoss != verdict.Act && !m.found.Refuted
	}, tell: func(m *maker) {
		m.block(BlockActionHold, "onHostLoss.action is Hold, so nothing is moved: bring the host back, or set FenceAndMigrate")
	}},
	{name: "I4 NodeIdentity", when: func(m *maker) (string, bool) {
		if !m.seen.Node.Read {
			return "the Node cannot be read", true
		}
		return fmt.Sprintf("the Node names machine %q (uid %s), the incident machine %q (uid %s)", m.seen.Node.SystemUUID, m.seen.Node.UID,
			m.seen.Host.SystemUUID, m.seen.Host.NodeUID), !m.seen.SameMachine() || !m.seen.SameBoot()
	}, tell: func(m *maker) {
		m.block(BlockOtherMachine, "the Node object no longer names the machine of the incident: power the old machine off by hand")
	}},
	{name: "I2 UnsettledAttempt", when: func(m *maker) (string, bool) {
		return m.unsettledWords(), m.unsettled()
	}, tell: func(m *maker) {
		m.out.Next = nextFencing
		m.blockedByAttempt()
	}},
}

// isolating holds back an Off command by the method that was chosen.
var isolating = []brake{
	{name: "OffNotSettled", when: func(m *maker) (string, bool) {
		return m.method.Method + " was commanded off and has only just begun to read Off", m.pending(m.method)
	}, tell: func(m *maker) { m.out.Next = nextSuspect }},
	{name: "ModeShadow", when: func(m *maker) (string, bool) { return "an app on the host is in mode Shadow", m.policy.Shadow }},
	{name: "ApprovalManual", when: func(m *maker) (string, bool) {
		return "onHostLoss.approval is Manual, and nobody has approved", m.policy.ManualApproval && m.changesState() && !m.seen.Journal.Approved && !m.found.Refuted
	}, tell: func(m *maker) {
		m.out.ApprovalRequired = true
		m.block(BlockAwaitingApproval, "a human is asked before the host is commanded off: look at it, and approve")
	}},
	{name: "I5 Budget", when: func(m *maker) (string, bool) {
		// A boot that was declared lost and speaks is fenced at once: a second writer may run already.
		return fmt.Sprintf("%d of %d Off commands spent", m.budget.Used, m.budget.Max), m.changesState() && !m.budget.Left() && !m.found.Refuted
	}, tell: func(m *maker) {
		m.out.BudgetExhausted = true
		m.block(BlockBudgetSpent, "the budget of Off commands is spent: find out why so many hosts are lost, then raise it or wait for the window")
	}},
}

// releasing holds back the release of writers on proof.
var releasing = []brake{
	{name: "ModePaused", when: func(m *maker) (string, bool) { return "an app on the host is paused", m.policy.Paused }},
	{name: "ModeShadow", when: func(m *maker) (string, bool) { return "an app on the host is in mode Shadow", m.policy.Shadow }},
	{name: "ForeignFinalizer", when: func(m *maker) (string, bool) {
		return "only finalizers of others keep the pods that are left", len(m.removable()) == 0
	}, tell: func(m *maker) {
		m.block(BlockForeignFinalizer, "pods of the lost host are deleted but kept by finalizers that are not Holdfast's: see to whoever set them")
	}},
}

// returning holds back the end of an incident (invariant I8).
var returning = []brake{
	{name: "I2 UnsettledAttempt", when: func(m *maker) (string, bool) {
		return m.unsettledWords(), m.unsettled()
	}},
	{name: "I8 NotHeard", when: func(m *maker) (string, bool) {
		return "this observer has not yet heard a well kubelet", !m.heard()
	}},
	{name: "I8 SameBoot", when: func(m *maker) (string, bool) {
		return "the boot ID is still the one that was commanded off", m.seen.SameBoot() && m.wasFenced()
	}, tell: func(m *maker) {
		m.block(BlockSameBoot, "the host runs on in the boot that was commanded off: reboot it")
	}},
	{name: "I8 OldPods", when: func(m *maker) (string, bool) {
		old := m.oldWriters()
		return fmt.Sprintf("%d pods of the old boot are still there", len(old)), m.seen.Journal.ProofRecorded && m.seen.Node.Fenced && len(old) > 0
	}, tell: func(m *maker) { m.out.Next = nextRelease }},
	{name: "I8 StillAttached", when: func(m *maker) (string, bool) {
		// Without the fenced taint the new boot may have started pods in place; their volumes are attached by right.
		n := len(m.seen.Attachments)
		return fmt.Sprintf("%d volumes are still attached from the old boot", n), m.seen.Journal.ProofRecorded && m.seen.Node.Fenced && n > 0
	}},
	{name: "ModePaused", when: func(m *maker) (string, bool) { return "an app on the host is paused, and holds stay", m.policy.Paused }},
}

// recovering holds back the end of Releasing.
var recovering = []brake{
	{name: "StillAttached", when: func(m *maker) (string, bool) {
		n := len(m.seen.Attachments)
		return fmt.Sprintf("%d volumes are still attached", n), n > 0
	}},
}

// resolving holds back the end of Recovering.
var resolving = []brake{
	{name: "NotServingYet", when: func(m *maker) (string, bool) {
		return "not every application serves elsewhere yet", !m.recovered()
	}},
}

// Refusals lists the names of all refusals, by what they refuse.
func Refusals() []Refusal {
	out := []Refusal{{What: "Reschedule", By: byProof}}
	for _, group := range groups {
		for _, b := range *group.brakes {
			out = append(out, Refusal{What: group.what, By: b.name})
		}
	}
	return out
}

var groups = []struct {
	what   string
	brakes *[]brake
}{
	{"Fence", &doubting}, {"Fence", &confirming}, {"Fence", &patience}, {"Fence", &fencing}, {"Fence", &isolating}, {"Release", &releasing}, {"Return", &returning},
	{"Recover", &recovering}, {"Resolve", &resolving}, {"Repair", &repairing},
}

// braked asks the brakes in order; the first that holds is told, and the others are not asked.
func (m *maker) braked(what string, brakes []brake) bool {
	for _, b := range brakes {
		because, holds := b.when(m)
		if !holds {
			continue
		}
		m.refuse(what, m.seen.Host.Node, b.name, because)
		m.out.Next = nextHeld
		if b.tell != nil {
			b.tell(m)
		}
		return true
	}
	return false
}

func (m *maker) unsettled() bool {
	_, yes := m.firstUnsettled()
	return yes
}

func (m *maker) firstUnsettled() (evidence.Attempt, bool) {
	for _, a := range m.seen.Journal.Attempts {
		if a.Unsettled() {
			return a, true
		}
	}
	return evidence.Attempt{}, false
}

func (m *maker) unsettledWords() string {
	a, _ := m.firstUnsettled()
	return fmt.Sprintf("attempt %s by %s is %s", a.ID, a.Method, a.State)
}

// blockedByAttempt says what to do about an attempt that nothing will settle by itself.
func (m *maker) blockedByAttempt() {
	a, yes := m.firstUnsettled()
	if !yes || m.power(a.Method) != evidence.PowerUnread {
		return
	}
	if a.Overdue || (a.State != evidence.AttemptAccepted && a.CallOver) {
		m.block(BlockUnsettledAttempt, fmt.Sprintf("%s, and %s, so that the attempt can be settled", m.unsettledWords(), m.unreadWords(a.Method)))
	}
}

// unreadWords says why a method that was commanded cannot be read, and what to do about it.
func (m *maker) unreadWords(method string) string {
	for _, p := range m.seen.Power {
		switch {
		case p.Method != method:
		case p.Why != "" && p.State == evidence.PowerUnread:
			return fmt.Sprintf("%s cannot be read (%s): repair the device", method, p.Why)
		default:
			return method + " cannot be read: repair the device"
		}
	}
	switch {
	case m.seen.NoMethods != "":
		return m.seen.NoMethods
	case len(m.seen.Power) == 0:
		return "no FencingProfile selects this host any more: put it back"
	default:
		return "the FencingProfile does not name that device any more: put it back"
	}
}
