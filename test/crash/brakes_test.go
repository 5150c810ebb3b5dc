// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"context"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/fencingprofile"
	"github.com/holdfast-dev/holdfast/fencing/fake"
)

// TestBrakes lets a host hang that nobody may switch off, and sees it held and not switched off.
func TestBrakes(t *testing.T) {
	t.Parallel()
	mode := func(m v1alpha1.Mode) func(*v1alpha1.GuardedStatefulApp) {
		return func(g *v1alpha1.GuardedStatefulApp) { g.Spec.Mode = m }
	}
	tests := []struct {
		name   string
		change func(*v1alpha1.GuardedStatefulApp)
		budget int32
		says   func(*v1alpha1.HostIncident) bool
	}{
		{"Paused", mode(v1alpha1.ModePaused), 2, func(h *v1alpha1.HostIncident) bool { return strings.Contains(h.Status.Next, "ModePaused") }},
		{"Shadow", mode(v1alpha1.ModeShadow), 2, func(h *v1alpha1.HostIncident) bool { return strings.Contains(h.Status.Next, "ModeShadow") }},
		{"onHostLoss Hold", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Action = "Hold" }, 2,
			func(h *v1alpha1.HostIncident) bool { return strings.Contains(h.Status.Next, "FenceAndMigrate") }},
		{"budget spent", nil, 0, func(h *v1alpha1.HostIncident) bool {
			return is(h.Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonBudgetSpent)
		}},
		{"approval Manual", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" }, 2, func(h *v1alpha1.HostIncident) bool {
			return is(h.Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var changes []func(*v1alpha1.GuardedStatefulApp)
			if test.change != nil {
				changes = append(changes, test.change)
			}
			w := lawful(t, changes...)
			w.budget = test.budget
			l := w.boot()
			l.settle()
			w.hangs()
			l.until("the pod is held", func() bool { return isHeld(w.lost()) })
			l.until("it is told why nothing is done", func() bool { return test.says(w.incident()) })
			l.while(10*time.Second, "held and not switched off", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
		})
	}
}

func TestAnApprovalIsForOneBoot(t *testing.T) {
	t.Parallel()
	w := lawful(t, func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" })
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("approval is asked for", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
	})
	w.must(w.admin.Patch(t.Context(), w.incident(), merge(`{"metadata":{"annotations":{"guard.holdfast.dev/approved":"boot-0"}}}`)))
	l.while(5*time.Second, "not switched off on another boot's approval", func() bool { return w.count("Off") == 0 })
	w.must(w.admin.Patch(t.Context(), w.incident(), merge(`{"metadata":{"annotations":{"guard.holdfast.dev/approved":"boot-1"}}}`)))
	l.until("the pod is released", func() bool { return w.lost() == nil })
	if w.offs != 1 {
		t.Errorf("switched off %d times", w.offs)
	}
}

// TestDeletingTheAppDoesNotWeakenItsHold deletes app and workload while the pod is held; the guard ends with the incident.
func TestDeletingTheAppDoesNotWeakenItsHold(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	w.must(w.admin.Delete(t.Context(), w.app()))
	w.must(w.admin.Delete(t.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "db"}}))
	l = again(l) // a new leader knows nothing of before
	l.while(15*time.Second, "held, probed and under guard", func() bool {
		l.lookAtApp()
		p := w.lost()
		return isHeld(p) && p.Labels[v1alpha1.LabelApp] == "db" && w.app().DeletionTimestamp != nil
	})
	if v := w.incident().Status.Verdict; v != "KubeletDown" {
		t.Errorf("verdict %s: the application answers, and is not heard any more", v)
	}
	w.set(func() { w.renews["a"] = true })
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	l.lookAtApp()
	g := &v1alpha1.GuardedStatefulApp{}
	if err := w.admin.Get(t.Context(), client.ObjectKey{Namespace: w.name, Name: "db"}, g); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the app does not go once nothing of it is held: %v %v", err, g.Finalizers)
	}
}

func again(l *life) *life {
	l.end()
	next := l.boot()
	next.lookAtApp()
	return next
}

// TestWhatAHumanOverrodeIsNotHeldAgain takes the hold off a pod as an override does.
func TestWhatAHumanOverrodeIsNotHeldAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.boot()
	l.settle()
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	w.must(w.admin.Patch(t.Context(), w.lost(), merge(`{"metadata":{"annotations":{"guard.holdfast.dev/override":"unplugged"},"labels":{"guard.holdfast.dev/hold":null},"finalizers":null}}`)))
	l.while(10*time.Second, "left as the human left it", func() bool { return !isHeld(w.lost()) && w.lost().Labels[v1alpha1.LabelHold] == "" })
}

// TestATerminatingPodIsHeldByItsLabel: the API server refuses new finalizers on it, and nothing may loop over that.
func TestATerminatingPodIsHeldByItsLabel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.boot()
	l.settle()
	w.must(w.admin.Delete(t.Context(), w.lost()))
	w.kubeletDies()
	l.until("the pod is labelled", func() bool { return w.lost().Labels[v1alpha1.LabelHold] != "" })
	patches := w.count("patch Pod done")
	l.while(5*time.Second, "terminating and held", func() bool { return w.lost().DeletionTimestamp != nil })
	if n := w.count("patch Pod done"); n != patches {
		t.Errorf("it is patched again and again: %d times after the first", n-patches)
	}
}

// TestRefusedCredentialsAreTheirOwnReason also looks for the password in everything that is told; see secretsAreUntold.
func TestRefusedCredentialsAreTheirOwnReason(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		break_ func(*world)
		reason string
	}{
		{"wrong password", func(w *world) { w.bmc.SetFault(fake.FaultWrongPassword) }, v1alpha1.ReasonDeviceDenied},
		{"dead", func(w *world) { w.bmc.SetFault(fake.FaultDead) }, v1alpha1.ReasonDeviceUnreadable},
		{"another machine's", func(w *world) { w.bmc.SetFault(fake.FaultWrongIdentity) }, v1alpha1.ReasonIdentityMismatch},
		{"no Secret", func(w *world) {
			w.must(w.admin.Delete(w.ctx(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "bmc"}}))
		}, v1alpha1.ReasonSecretMissing},
		{"half a Secret", func(w *world) {
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "bmc"}}
			w.must(w.admin.Patch(w.ctx(), s, merge(`{"data":{"username":null}}`)))
		}, v1alpha1.ReasonSecretMalformed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			test.break_(w)
			l := w.boot()
			r := &fencingprofile.Reconciler{Client: l.apps.Client, Clock: l.hosts.Clock, Devices: l.hosts.Devices, CallDeadline: callDeadline}
			name := client.ObjectKey{Name: w.name + "-rack"}
			if _, err := r.Reconcile(context.WithoutCancel(t.Context()), ctrl.Request{NamespacedName: name}); err != nil {
				t.Fatal(err)
			}
			p := &v1alpha1.FencingProfile{}
			w.must(w.admin.Get(t.Context(), name, p))
			for _, h := range p.Status.Readiness {
				if h.NodeName == w.host("a") && h.Reason != test.reason {
					t.Errorf("reason %s (%s), want %s", h.Reason, h.Message, test.reason)
				}
			}
			w.hangs()
			l.until("the pod is held", func() bool { return isHeld(w.lost()) })
			l.while(5*time.Second, "held, whatever the device says", func() bool { return isHeld(w.lost()) && w.offs == 0 })
		})
	}
}
