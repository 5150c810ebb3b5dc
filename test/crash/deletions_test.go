// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

func set(namespace, name string) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
}

// gone reports whether an object is not there any more.
func (w *world) gone(o client.Object) bool {
	w.t.Helper()
	err := w.admin.Get(w.ctx(), client.ObjectKeyFromObject(o), o)
	if !apierrors.IsNotFound(err) {
		w.must(err)
	}
	return err != nil
}

// succeed starts a tenant's pod anew on host b, with an address of its own.
func (w *world) succeed(a tenant, ip string) {
	w.t.Helper()
	s := set(a.namespace, a.name)
	w.must(w.admin.Get(w.ctx(), client.ObjectKeyFromObject(s), s))
	w.start(s, "b", ip)
}

// TestOneOfSeveralAppsIsDeleted deletes one of three apps on a host that is in trouble: its pod stays held and is released on proof like the others, and
// nobody waits for a successor of it.
func TestOneOfSeveralAppsIsDeleted(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	two, three := w.moreApps("shop"), w.moreApps("mail")
	l := w.boot()
	l.settle()
	w.kubeletDies()
	all := func() bool { return isHeld(w.lost()) && isHeld(w.theirs(two)) && isHeld(w.theirs(three)) }
	l.until("all are held", all)
	g := &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: two.namespace, Name: two.name}}
	w.must(w.admin.Delete(t.Context(), g))
	l = again(l) // a new leader knows nothing of before
	l.while(5*time.Second, "all are held, the deleted app's pod as well", func() bool { l.lookAtApp(); return all() && !w.gone(g) })
	w.set(func() { w.kernel = false })
	l.until("every volume is detached", step(w, v1alpha1.StepRecovering))
	for _, p := range w.incident().Status.Pods {
		if p.ReleasedAt == nil {
			t.Errorf("pod %s/%s of app %s was not released", p.Namespace, p.Name, p.App)
		}
	}
	if w.lost() != nil || w.theirs(two) != nil || w.theirs(three) != nil || w.offs != 1 {
		t.Errorf("pods are left, or the host was switched off %d times", w.offs)
	}
	w.succeed(w.tenants[0], nextIP)
	w.succeed(three, "10.1.0.3")
	l.lookAtApp()
	l.until("nobody waits for the deleted app", step(w, v1alpha1.StepResolved))
	w.returns()
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	l.lookAtApp()
	if !w.gone(g) {
		t.Errorf("the deleted app does not go: %v", g.Finalizers)
	}
}

// TestTheWorkloadIsDeletedWhileItsPodIsHeld does what the garbage collector does after it: the pod is deleted gracefully, and the hold keeps its object.
func TestTheWorkloadIsDeletedWhileItsPodIsHeld(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	w.must(w.admin.Delete(t.Context(), set(w.name, "db")))
	w.must(w.admin.Delete(t.Context(), w.lost()))
	l = again(l)
	l.while(8*time.Second, "terminating and held", func() bool { l.lookAtApp(); return isHeld(w.lost()) && w.lost().DeletionTimestamp != nil })
	w.set(func() { w.kernel = false })
	l.until("it is released on proof, and nobody waits for a successor", step(w, v1alpha1.StepResolved))
	w.releasedOnce(t)
	if w.offs != 1 {
		t.Errorf("switched off %d times", w.offs)
	}
}

// TestTheClaimIsDeletedWhileItsWriterIsHeld: a claim in use stays until its pod is gone. One whose finalizer was taken off by hand is gone at once, and
// its volume is still waited for.
func TestTheClaimIsDeletedWhileItsWriterIsHeld(t *testing.T) {
	t.Parallel()
	for _, byForce := range []bool{false, true} {
		name := map[bool]string{false: "pending", true: "its finalizer taken off"}[byForce]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			w.stuck = true
			l := w.boot()
			l.settle()
			w.kubeletDies()
			l.until("the pod is held", func() bool { return isHeld(w.lost()) })
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "data-db-0"}}
			w.must(w.admin.Delete(t.Context(), claim))
			if w.gone(claim) {
				t.Fatal("a claim in use is gone at once: does the API server protect claims?")
			}
			if byForce {
				w.must(w.admin.Patch(t.Context(), claim, merge(`{"metadata":{"finalizers":null}}`)))
			}
			l = again(l)
			l.while(5*time.Second, "held", func() bool { l.lookAtApp(); return isHeld(w.lost()) })
			w.set(func() { w.kernel = false })
			l.until("the pod is released", func() bool { return w.lost() == nil })
			l.while(5*time.Second, "the volume is waited for, although nothing names it any more", func() bool {
				_, out := taint(w.node("a"), v1alpha1.TaintOutOfService)
				return out && w.incident().Status.Step == v1alpha1.StepReleasing
			})
			w.stuck = false
			l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
			w.releasedOnce(t)
		})
	}
}

// TestTheNamespaceIsDeletedWhileAPodIsHeld does what the namespace controller does: everything in it is deleted, again and again.
func TestTheNamespaceIsDeletedWhileAPodIsHeld(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		then func(*world, *life)
	}{
		{"and the host is lost", func(w *world, l *life) {
			w.set(func() { w.kernel = false })
			l.until("it is released on proof, and nobody waits for a successor", step(w, v1alpha1.StepResolved))
			if w.offs != 1 || w.lost() != nil {
				w.t.Errorf("switched off %d times", w.offs)
			}
		}},
		{"and the kubelet comes back", func(w *world, l *life) {
			w.set(func() { w.renews["a"] = true })
			l.until("the incident is closed", step(w, v1alpha1.StepClosed))
			if p := w.lost(); p == nil || isHeld(p) || p.DeletionTimestamp == nil {
				w.t.Error("the pod is not left to its kubelet")
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			l := w.boot()
			l.settle()
			w.kubeletDies()
			l.until("the pod is held", func() bool { return isHeld(w.lost()) })
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.name}}
			w.must(w.admin.Delete(t.Context(), ns))
			empty := func() {
				for _, o := range []client.Object{w.app(), set(w.name, "db"), w.pod.DeepCopy()} {
					w.must(client.IgnoreNotFound(w.admin.Delete(t.Context(), o)))
				}
			}
			empty()
			l = again(l)
			l.while(8*time.Second, "held in a namespace that is going", func() bool {
				empty()
				l.lookAtApp()
				return isHeld(w.lost()) && !w.gone(ns) && ns.DeletionTimestamp != nil && strings.Contains(w.held(), "db-0=")
			})
			test.then(w, l)
			if got := w.held(); strings.Contains(got, "db-0") {
				t.Errorf("the list of held pods is %q", got)
			}
		})
	}
}

// TestAnIncidentThatVanishesIsFollowedByAnother deletes the journal, which the admission policies refuse, at several points of a loss: the hold stands,
// the next episode begins from nothing, and the host is not switched off a second time.
func TestAnIncidentThatVanishesIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		at   func(*world) bool
	}{
		{"when the pod is held", func(w *world) bool { return isHeld(w.lost()) }},
		{"when Off was commanded", func(w *world) bool { return w.count("Off done") == 1 }},
		{"when proof stands", func(w *world) bool { return w.incident().Status.Step == v1alpha1.StepReleasing }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			l := w.boot()
			l.settle()
			w.hangs()
			l.until(test.name, func() bool { return test.at(w) })
			first := w.incident().Name
			w.must(w.admin.Delete(t.Context(), w.incident()))
			l.until("another episode begins", func() bool { return strings.HasSuffix(w.incident().Name, "-2") })
			l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
			w.releasedOnce(t)
			if w.offs != 1 {
				t.Errorf("switched off %d times", w.offs)
			}
			h := w.incident()
			if h.Spec.Episode != 2 || h.Name == first || len(h.Status.Attempts) == 0 || h.Status.Proof.AttemptID != "off-1" {
				t.Errorf("the proof does not rest on a command of this incident: %+v", h.Status)
			}
		})
	}
}

// TestAHoldWhoseIncidentVanishedEnds: where the kubelet is well again, nothing opens an incident but what the last one left.
func TestAHoldWhoseIncidentVanishedEnds(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	l.end()
	w.must(w.admin.Delete(t.Context(), w.incident()))
	w.set(func() { w.renews["a"] = true })
	l = w.boot()
	l.lookAtApp()
	l.until("another episode ends it", func() bool { h := w.incident(); return h.Spec.Episode == 2 && h.Status.Step == v1alpha1.StepClosed })
	if p := w.lost(); p == nil || p.Labels[v1alpha1.LabelHold] != "" || len(p.Finalizers) != 0 || strings.Contains(w.held(), "db-0") {
		t.Errorf("the hold was not lifted: %v %v, listed %q", p.Labels, p.Finalizers, w.held())
	}
}

// TestATaintWhoseIncidentVanishedIsTakenOff deletes the journal after everything was released: the host comes back in another boot, and is let in.
func TestATaintWhoseIncidentVanishedIsTakenOff(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("everything is released", step(w, v1alpha1.StepRecovering))
	l.look()
	w.must(w.admin.Delete(t.Context(), w.incident()))
	l.while(5*time.Second, "fenced", func() bool { _, fenced := taint(w.node("a"), v1alpha1.TaintFenced); return fenced })
	w.returns()
	l.until("the host is let in", func() bool { return len(w.node("a").Spec.Taints) == 0 })
	l.until("the incident that did it is closed", step(w, v1alpha1.StepClosed))
}

// TestAVanishedIncidentCountsAsAnOff: a budget of one is spent by what nobody can count any more.
func TestAVanishedIncidentCountsAsAnOff(t *testing.T) {
	t.Parallel()
	w := lawful(t, func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" })
	w.budget = 1
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("approval is asked for", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
	})
	w.must(w.admin.Delete(t.Context(), w.incident()))
	l.until("approval is asked for again", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
	})
	w.must(w.admin.Patch(t.Context(), w.incident(), merge(`{"metadata":{"annotations":{"guard.holdfast.dev/approved":"boot-1"}}}`)))
	l.until("the budget is spent", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonBudgetSpent)
	})
	l.while(5*time.Second, "not switched off", func() bool { return w.count("Off") == 0 })
}

// TestWithoutAGuardConfigNothingIsSwitchedOff deletes the settings while a host hangs.
func TestWithoutAGuardConfigNothingIsSwitchedOff(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.set(func() { w.config = nil })
	w.hangs()
	l.until("the budget is spent", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonBudgetSpent)
	})
	l.while(5*time.Second, "held and not switched off", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
	w.set(func() { w.config = &v1alpha1.GuardConfigSpec{} })
	l.until("the pod is released", func() bool { return w.lost() == nil })
	if w.offs != 1 {
		t.Errorf("switched off %d times", w.offs)
	}
}

// TestWhatRecordsAHoldIsBoltedBeforeIt: the GuardConfig and the definitions of kinds are labelled before the first pod is held, and until the last
// incident is over; what a crash left is swept.
func TestWhatRecordsAHoldIsBoltedBeforeIt(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	bolted := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		n := 0
		for _, yes := range w.bolted {
			if yes {
				n++
			}
		}
		return n
	}
	w.watch(func(o operation) {
		if p, ok := o.object.(*corev1.Pod); ok && !o.done && o.what == "patch Pod" && p.Labels[v1alpha1.LabelHold] != "" && bolted() != 6 {
			t.Errorf("a pod is held while %d of 6 are bolted", bolted())
		}
	})
	l := w.boot()
	l.settle()
	if bolted() != 0 {
		t.Error("bolted while nothing is held")
	}
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	w.must(l.bolt.Sweep(t.Context()))
	if n := bolted(); n != 6 {
		t.Errorf("%d are bolted while an incident is open", n)
	}
	w.set(func() { w.bolted = map[string]bool{}; w.renews["a"] = true }) // as an upgrade of the definitions does
	w.must(l.bolt.Sweep(t.Context()))
	if n := bolted(); n != 6 {
		t.Errorf("%d are bolted after a sweep", n)
	}
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	l.end()
	if n := bolted(); n != 6 {
		t.Errorf("%d are bolted before anybody swept", n)
	}
	w.must(w.boot().bolt.Sweep(t.Context()))
	if bolted() != 0 {
		t.Error("bolted although no incident is open")
	}
}
