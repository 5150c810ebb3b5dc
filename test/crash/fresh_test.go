// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/fencing"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

// once lets f happen just after the first write of the journal for which when holds: after the plan, and before the look that precedes the step.
func (w *world) once(when func(*v1alpha1.HostIncident) bool, f func()) *bool {
	happened := new(bool)
	w.watch(func(o operation) {
		if *happened || !o.done || o.what != "update status of HostIncident" || !when(w.incident()) {
			return
		}
		*happened = true
		f()
	})
	return happened
}

func intended(h *v1alpha1.HostIncident) bool {
	n := len(h.Status.Attempts)
	return n > 0 && h.Status.Attempts[n-1].State == v1alpha1.AttemptIntended
}

func lastAttempt(w *world) v1alpha1.Attempt {
	w.t.Helper()
	a := w.incident().Status.Attempts
	if len(a) == 0 {
		return v1alpha1.Attempt{}
	}
	return a[len(a)-1]
}

func withdrawn(a v1alpha1.Attempt) bool {
	return a.State == v1alpha1.AttemptFailed && strings.Contains(a.Message, "withdrawn before the call")
}

// TestAFactThatChangesBeforeOffIsSeen changes one deciding fact between the journal and the call.
func TestAFactThatChangesBeforeOffIsSeen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*world)
	}{
		{"the kubelet renews its lease", func(w *world) { w.renew("a") }},
		{"the Node is in another boot", func(w *world) {
			w.setNode(func(s *corev1.NodeStatus) { s.NodeInfo.BootID = "boot-2" })
		}},
		{"the Node names another machine", func(w *world) {
			w.setNode(func(s *corev1.NodeStatus) { s.NodeInfo.SystemUUID = "4c4c4544-0042-3510-8052-ffffffffffff" })
		}},
		{"the device says it belongs to another machine", func(w *world) { w.bmc.SetFault(fake.FaultWrongIdentity) }},
		{"the device does not answer any more", func(w *world) { w.bmc.SetFault(fake.FaultDead) }},
		{"the app is paused", func(w *world) {
			w.must(w.admin.Patch(w.ctx(), w.app(), merge(`{"spec":{"mode":"Paused"}}`)))
		}},
		{"the budget is taken away", func(w *world) { w.set(func() { w.budget = 0 }) }},
		{"the host is off by itself", func(w *world) { w.bmc.SetPower(fencing.PowerOff) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			l := w.boot()
			l.settle()
			w.hangs()
			happened := w.once(intended, func() { test.change(w) })
			for range rounds {
				if *happened {
					break
				}
				next, _ := l.look()
				w.pass(min(next, time.Second))
			}
			if a := w.incident().Status.Attempts; !*happened || len(a) != 1 || !withdrawn(a[0]) {
				t.Errorf("attempts %+v\n%s", a, w.tell())
			}
			if n := w.count("Off"); n != 0 {
				t.Errorf("%d Off commands", n)
			}
			if !isHeld(w.lost()) {
				t.Error("the hold was lifted")
			}
		})
	}
}

// TestTheDeviceIsAskedAgainInTheCallItself swaps the device for another machine's after the last look: the command's own session has to notice.
func TestTheDeviceIsAskedAgainInTheCallItself(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	w.watch(func(o operation) {
		if o.what == "Off" && !o.done {
			w.bmc.SetFault(fake.FaultWrongIdentity)
		}
	})
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("the attempt is answered", func() bool { return lastAttempt(w).State == v1alpha1.AttemptFailed })
	if a := lastAttempt(w); !strings.Contains(a.Message, fencing.ErrIdentity.Error()) || offs(w.bmcs) != 0 || w.bmc.Power() != fencing.PowerOn {
		t.Errorf("attempt %+v, %d Off commands taken, power %s: another machine was switched off", a, offs(w.bmcs), w.bmc.Power())
	}
	l.while(10*time.Second, "held", func() bool { return isHeld(w.lost()) })
}

// TestAMachineThatIsOnAgainIsNotReleased switches the host on between the plan to release and each of its steps.
func TestAMachineThatIsOnAgainIsNotReleased(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		when func(w *world) bool
		then func(w *world) bool
	}{
		{"before the out-of-service taint", func(w *world) bool { return w.incident().Status.Step == v1alpha1.StepReleasing },
			func(w *world) bool { _, out := taint(w.node("a"), v1alpha1.TaintOutOfService); return !out }},
		{"before the pod is deleted", func(w *world) bool { _, out := taint(w.node("a"), v1alpha1.TaintOutOfService); return out },
			func(w *world) bool { return w.lost() != nil }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			on := false
			// The last write before a step, or the last look before one, whichever the step has.
			w.watch(func(o operation) {
				if !on && o.done && o.what != "Off" && test.when(w) {
					on = true
					w.bmc.SetPower(fencing.PowerOn)
				}
			})
			l := w.boot()
			l.settle()
			w.hangs()
			for range rounds {
				if on {
					break
				}
				next, _ := l.look()
				w.pass(min(next, time.Second))
			}
			if !on || !test.then(w) {
				t.Errorf("switched on: %v; released all the same\n%s", on, w.tell())
			}
		})
	}
}

// TestTwoLeadersAtOnceSwitchOffOnce lets a second process that believes it leads look while the first is inside of the call.
func TestTwoLeadersAtOnceSwitchOffOnce(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	var other *life
	nested := false
	w.watch(func(o operation) {
		if o.life == other || nested || o.what != "Off" || o.done {
			return
		}
		nested = true
		before := offs(w.bmcs)
		for range 4 {
			other.look()
			w.pass(callDeadline / 5)
		}
		if offs(w.bmcs) != before {
			t.Error("the second leader commanded Off while the first was inside of the call")
		}
	})
	l := w.boot()
	other = w.boot()
	l.settle()
	other.settle()
	w.hangs()
	for range rounds {
		if w.incident().Status.Step == v1alpha1.StepRecovering {
			break
		}
		l.look()
		other.look()
		w.detach()
		w.pass(time.Second)
	}
	if !nested || w.offs != 1 || w.incident().Status.Step != v1alpha1.StepRecovering {
		t.Errorf("second leader looked on: %v, host switched off %d times\n%s", nested, w.offs, w.tell())
	}
	l.look()
	w.releasedOnce(t)
}

// TestTwoLeadersRace lets both look at the same time, again and again.
func TestTwoLeadersRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := w.boot(), w.boot()
	one.settle()
	two.settle()
	w.hangs()
	for range rounds {
		if w.incident().Status.Step == v1alpha1.StepRecovering {
			break
		}
		done := make(chan struct{})
		go func() { defer close(done); two.look() }()
		one.look()
		<-done
		w.detach()
		w.pass(time.Second)
	}
	if w.offs != 1 || w.incident().Status.Step != v1alpha1.StepRecovering {
		t.Errorf("the host was switched off %d times\n%s", w.offs, w.tell())
	}
	one.look()
	w.releasedOnce(t)
}
