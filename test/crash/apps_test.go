// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// says reports whether the incident tells that a setting has come to a value because of just these apps.
func (w *world) says(setting, value string, by ...string) bool {
	w.t.Helper()
	return slices.ContainsFunc(w.incident().Status.Settings, func(d v1alpha1.DecidedSetting) bool {
		return d.Setting == setting && d.Value == value && slices.Equal(d.By, by)
	})
}

// change patches the spec of a tenant's app.
func (w *world) change(a tenant, patch string) {
	w.t.Helper()
	g := &v1alpha1.GuardedStatefulApp{}
	g.Namespace, g.Name = a.namespace, a.name
	w.must(w.admin.Patch(w.ctx(), g, merge(patch)))
}

// TestOfSeveralAppsOnAHostTheMostCarefulWins has four apps in four namespaces, each careful in another way, on one host that hangs. Each brake is taken
// off in turn, and status says each time whose it was.
func TestOfSeveralAppsOnAHostTheMostCarefulWins(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	slow := w.moreApps("slow", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.ConfirmAfterSeconds = 5 })
	asks := w.moreApps("asks", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" })
	waits := w.moreApps("waits", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Action = "Hold" })
	bold := w.tenants[0]
	key := func(a tenant) string { return a.namespace + "/" + a.name }
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("Hold is told of the one that asked for it", func() bool { return w.says("onHostLoss.action", "Hold", key(waits)) })
	if !w.says("onHostLoss.confirmAfterSeconds", "5", key(slow)) || !w.says("onHostLoss.approval", "Manual", key(asks)) {
		t.Errorf("settings %+v", w.incident().Status.Settings)
	}
	everybody := []string{key(asks), key(bold), key(slow), key(waits)}
	slices.Sort(everybody)
	if !w.says("mode", "Enforce", everybody...) {
		t.Errorf("settings %+v", w.incident().Status.Settings)
	}
	still := func() bool { return w.count("Off") == 0 && isHeld(w.lost()) && isHeld(w.theirs(waits)) }
	l.while(8*time.Second, "held for the sake of one", still)

	w.change(waits, `{"spec":{"onHostLoss":{"action":"FenceAndMigrate"}}}`)
	l.until("approval is asked for", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
	})
	l.lookAtApp()
	if c := meta.FindStatusCondition(w.app().Status.Conditions, v1alpha1.ConditionApprovalRequired); c == nil || c.Reason != v1alpha1.ReasonAwaitingApproval || !strings.Contains(c.Message, key(asks)) {
		t.Errorf("%s is not told whom it waits for: %+v", key(bold), c)
	}
	l.while(3*time.Second, "not switched off without approval", still)

	w.change(bold, `{"spec":{"mode":"Paused"}}`)
	w.must(w.admin.Patch(t.Context(), w.incident(), merge(`{"metadata":{"annotations":{"guard.holdfast.dev/approved":"boot-1"}}}`)))
	l.until("the one that is paused is told", func() bool { return w.says("mode", "Paused", key(bold)) })
	l.while(3*time.Second, "not switched off while one is paused", still)

	w.change(bold, `{"spec":{"mode":"Enforce"}}`)
	l.until("every volume is detached", step(w, v1alpha1.StepRecovering))
	if w.offs != 1 {
		t.Errorf("switched off %d times", w.offs)
	}
	for _, a := range w.tenants {
		if w.theirs(a) != nil {
			t.Errorf("the pod of %s is still there", key(a))
		}
	}
}

// TestADeletedAppsBrakeHoldsUntilTheEnd: whoever deletes the app that asked for a human's word has not thereby given it.
func TestADeletedAppsBrakeHoldsUntilTheEnd(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	asks := w.moreApps("asks", func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" })
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("approval is asked for", func() bool {
		return is(w.incident().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonAwaitingApproval)
	})
	g := &v1alpha1.GuardedStatefulApp{}
	w.must(w.admin.Get(t.Context(), client.ObjectKey{Namespace: asks.namespace, Name: asks.name}, g))
	w.must(w.admin.Delete(t.Context(), g))
	l.while(8*time.Second, "held and not switched off", func() bool { l.lookAtApp(); return w.count("Off") == 0 && isHeld(w.lost()) })
}

// TestWhatWasSpentIsCountedByEveryLeader: the budget is read from the API, and what another process spent, in an incident that is over, is spent.
func TestWhatWasSpentIsCountedByEveryLeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.budget = 1
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("every volume is detached", step(w, v1alpha1.StepRecovering))
	w.succeed(w.tenants[0], nextIP)
	l.lookAtApp()
	l.until("the successor serves", step(w, v1alpha1.StepResolved))
	w.returns()
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	second := w.moreApps("second")
	w.set(func() { w.serves = true })
	l = again(l)
	for range 4 {
		l.look()
		w.pass(time.Second)
	}
	w.hangs()
	open := func() *v1alpha1.HostIncident {
		list := w.incidents()
		i := slices.IndexFunc(list, func(h v1alpha1.HostIncident) bool { return !h.Status.Step.Over() })
		if i < 0 {
			return &v1alpha1.HostIncident{}
		}
		return &list[i]
	}
	l.until("the budget is spent", func() bool {
		return is(open().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonBudgetSpent)
	})
	l.while(5*time.Second, "held and not switched off again", func() bool { return isHeld(w.theirs(second)) && w.offs == 1 })
}
