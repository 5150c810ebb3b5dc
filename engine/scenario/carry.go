// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// Round is one look, one decision, and what was done about it.
type Round struct {
	Seen  evidence.Snapshot
	Found verdict.Found
	Plan  plan.Plan
	Done  []plan.Step
}

// Plan looks and plans, and does nothing.
func (w *World) Plan() Round {
	found, seen := w.Decide()
	return Round{Seen: seen, Found: found, Plan: plan.Make(found, seen, w.Budget)}
}

// Act looks, plans, and carries the plan out as the shell does: the reversible steps; then a second look and a second plan; then the irreversible
// step, if it is still asked for (invariants I6, I9).
func (w *World) Act() Round {
	w.look()
	defer w.bounded()
	r := w.Plan()
	w.turn(r)
	for _, s := range r.Plan.Steps {
		if s.Kind.Irreversible() {
			break
		}
		w.reversible(s)
		r.Done = append(r.Done, s)
	}
	if len(r.Plan.Steps) == 0 {
		return r
	}
	last := r.Plan.Steps[len(r.Plan.Steps)-1]
	if !last.Kind.Irreversible() {
		return r
	}
	w.look()
	again := w.Plan().Plan.Steps
	same := func(s plan.Step) bool { return s.Kind == last.Kind && s.Target == last.Target }
	if slices.ContainsFunc(again, same) {
		w.irreversible(last)
		r.Done = append(r.Done, last)
	}
	return r
}

// turn notes which verdict follows on which.
func (w *World) turn(r Round) {
	class := r.Found.Class.String()
	if w.turned != "" && w.turned != class {
		w.turns[Turn{w.turned, class}] = true
	}
	w.turned = class
}

func (w *World) reversible(s plan.Step) {
	switch s.Kind {
	case plan.OpenIncident:
		w.open()
	case plan.Advance:
		w.stepTo(evidence.Step(s.Target))
	case plan.ArmHold, plan.DisarmHold:
		w.pod(s.Target).Held = s.Kind == plan.ArmHold
	case plan.KeepServing, plan.StopServing:
		w.pod(s.Target).says(s.Kind == plan.KeepServing)
	case plan.Settle:
		for i := range w.journal.Attempts {
			if a := &w.journal.Attempts[i]; a.ID == s.Target {
				a.State = s.As
			}
		}
	case plan.Distrust:
		w.journal.Distrusted = append(w.journal.Distrusted, s.Target)
	case plan.RecordProof:
		w.journal.ProofRecorded, w.journal.Word = true, ""
		if s.Target == evidence.Attesting || s.Target == evidence.SelfFencing {
			w.journal.Word = s.Target
		}
	case plan.Taint:
		w.host.node.Fenced = true
	case plan.SwapTaint:
		w.host.node.OutOfService = false
	case plan.Untaint:
		w.host.node.OutOfService, w.host.node.Fenced = false, false
	case plan.Close:
		w.stepTo(evidence.StepClosed)
	case plan.ResetConnections:
		w.resetConnections(s.Target)
	case plan.LetGo:
		w.letGo(s.Target)
	default:
		panic(fmt.Sprintf("scenario: no way to carry out %s", s.Kind))
	}
}

func (w *World) open() {
	w.incidents++
	w.incident = w.present()
	w.journal = evidence.Journal{Name: fmt.Sprintf("%s-%d", w.host.name, w.incidents)}
	w.stepTo(evidence.StepSuspected)
	for _, p := range w.pods {
		if !p.Finished {
			w.journal.Apps = append(w.journal.Apps, p.App)
		}
	}
}

func (w *World) irreversible(s plan.Step) {
	switch s.Kind {
	case plan.Isolate:
		w.isolate(s)
	case plan.TaintOutOfService:
		w.host.node.OutOfService = true
		for _, p := range w.pods {
			w.judge(p, "its volumes were taken away")
		}
	case plan.DeletePod:
		w.deletePod(w.pod(s.Target))
	case plan.RestartKubelet:
		w.restartKubelet()
	default:
		panic(fmt.Sprintf("scenario: no way to carry out %s", s.Kind))
	}
}

// restartKubelet has the host's agent do so, if it lives; the new kubelet speaks two seconds later.
func (w *World) restartKubelet() {
	w.repairs = repair{at: w.now}
	if w.crashBeforeCall {
		w.crashBeforeCall = false
		w.tell("the leader dies after the journal and before the call")
		w.restartObserver()
		return
	}
	h := &w.host
	if w.repairs.failed = !h.powered || !h.userspace || !h.agent; w.repairs.failed {
		w.tell("the agent does not answer the order to restart the kubelet")
		return
	}
	w.tell("the agent restarts the kubelet")
	if h.beyondRepair {
		return
	}
	boot := h.boot
	w.after(2*time.Second, func() {
		if h.powered && h.userspace && h.boot == boot {
			h.kubelet, h.hung = true, false
			w.postStatus()
		}
	})
}

// stepTo moves the incident; one that is over leaves no journal behind.
func (w *World) stepTo(to evidence.Step) {
	if w.journal.Step != to {
		w.moves[Move{w.journal.Step, to}] = true
		w.stepped = w.now
	}
	w.journal.Step = to
	if !w.journal.Open() {
		w.journal = evidence.Journal{}
		w.forgetAddresses()
	}
}

// judge notes what must never happen.
func (w *World) judge(p *pod, what string) {
	if w.mayWrite(p) {
		w.Broken = append(w.Broken, fmt.Sprintf("%s: pod %s may still write, but %s", w.clock(), p.Name, what))
	}
}

func (w *World) isolate(s plan.Step) {
	d := w.device(s.Target)
	id := fmt.Sprintf("off-%d", len(w.journal.Attempts)+1)
	w.journal.Attempts = append(w.journal.Attempts, evidence.Attempt{ID: id, Method: s.Target, Level: s.Level, State: evidence.AttemptIntended})
	w.stepTo(evidence.StepFencing)
	if w.crashBeforeCall {
		w.crashBeforeCall = false
		w.tell("the leader dies after the journal and before the call")
		w.restartObserver()
		return
	}
	w.eyes.own[id] = true
	if d.Identity != evidence.IdentityMatches {
		w.Broken = append(w.Broken, w.clock()+": commanded a device that is not this machine's")
	}
	state := d.takes(w, d)
	if w.eyes.power[s.Target].State != evidence.PowerOff && state != evidence.AttemptFailed {
		w.Budget.Used++
	}
	w.journal.Attempts[len(w.journal.Attempts)-1].State = state
	w.tell("%s answers the command: %s", s.Target, state)
}

func (w *World) deletePod(p *pod) {
	w.judge(p, "its object was removed")
	if p.finalizer {
		p.Terminating, p.Removed, p.Held = true, true, false
		return
	}
	w.pods = slices.DeleteFunc(w.pods, func(x *pod) bool { return x == p })
	for _, ip := range p.Addresses {
		w.addresses = append(w.addresses, &address{Address: evidence.Address{IP: ip, Gone: true, User: p.user}, pod: p.Name, gone: w.now})
	}
	w.detach(p)
}

// detach lets the volume go a second later, and then the successor start.
func (w *World) detach(p *pod) {
	if w.stuckVolumes {
		return
	}
	w.after(time.Second, func() {
		w.attached = slices.DeleteFunc(w.attached, func(a evidence.Attachment) bool { return a.Name == "att-"+p.Name })
		if w.noSuccessors {
			return
		}
		w.tell("%s starts on another host", p.Name)
		w.successors = append(w.successors, evidence.Successor{App: p.App, Pod: p.Name, Host: "another"})
		n := len(w.successors) - 1
		w.after(3*time.Second, func() {
			w.tell("%s serves on another host", p.Name)
			w.successors[n].Serving = evidence.ServingYes
		})
	})
}

// present is the host as its Node names it now.
func (w *World) present() evidence.Host {
	n := w.host.node
	return evidence.Host{Node: w.host.name, NodeUID: n.UID, BootID: n.BootID, SystemUUID: n.SystemUUID}
}
