// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// rewrite changes the status of the incident as a manager of another version would have written it.
func (w *world) rewrite(patch string) {
	w.t.Helper()
	w.must(w.admin.Status().Patch(w.ctx(), w.incident(), merge(patch)))
}

// moments of a loss at which the manager is replaced by one of another version.
var moments = []struct {
	name string
	at   func(*world) bool
}{
	{"when the pod is held", func(w *world) bool { return isHeld(w.lost()) && w.incident().Status.Step != "" }},
	{"when Off was taken", func(w *world) bool { return lastAttempt(w).State == v1alpha1.AttemptAccepted }},
	{"when proof stands", func(w *world) bool { return w.incident().Status.Step == v1alpha1.StepReleasing }},
}

// TestAJournalOfANewerHoldfastIsLeftAlone rolls the manager back in the middle of a loss: nothing happens to journal, device or pods, the hold stands and
// people are told, until a manager that knows the journal leads again.
func TestAJournalOfANewerHoldfastIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			l := w.boot()
			l.settle()
			w.hangs()
			l.until(m.name, func() bool { return m.at(w) })
			w.rewrite(`{"status":{"journalVersion":99}}`)
			before, offs := w.incident(), w.count("Off")
			l = again(l)
			l.while(12*time.Second, "held, and the journal as it was", func() bool {
				return isHeld(w.lost()) && w.count("Off") == offs && w.incident().ResourceVersion == before.ResourceVersion
			})
			w.mu.Lock()
			told := slices.ContainsFunc(w.told, func(s string) bool { return strings.HasPrefix(s, "HostIncident JournalTooNew:") })
			w.mu.Unlock()
			if !told {
				t.Error("nobody was told why nothing is done")
			}
			w.rewrite(`{"status":{"journalVersion":1}}`)
			l = again(l)
			l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
			w.releasedOnce(t)
			if w.offs != 1 {
				t.Errorf("switched off %d times", w.offs)
			}
		})
	}
}

// TestAJournalThatBecomesNewerBeforeOffIsSeen lets a newer manager take the incident over between the plan and the call.
func TestAJournalThatBecomesNewerBeforeOffIsSeen(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.hangs()
	happened := w.once(intended, func() { w.rewrite(`{"status":{"journalVersion":99}}`) })
	for range rounds {
		if *happened {
			break
		}
		next, _ := l.look()
		w.pass(min(next, time.Second))
	}
	l.while(5*time.Second, "held and not switched off", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
	if !*happened || w.incident().Status.JournalVersion != 99 {
		t.Errorf("journal version %d", w.incident().Status.JournalVersion)
	}
}

// TestANewerJournalLeavesNoBudget: what a newer Holdfast spent cannot be counted by an older one.
func TestANewerJournalLeavesNoBudget(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	other := &v1alpha1.HostIncident{Spec: v1alpha1.HostIncidentSpec{NodeName: w.host("b"), BootID: "b", Episode: 1}}
	other.Name = w.name + "-b-old-1"
	w.must(w.admin.Create(t.Context(), other))
	w.must(w.admin.Status().Patch(t.Context(), other, merge(`{"status":{"journalVersion":99,"step":"Closed"}}`)))
	w.hangs()
	mine := func() *v1alpha1.HostIncident {
		list := w.incidents()
		i := slices.IndexFunc(list, func(h v1alpha1.HostIncident) bool { return h.Spec.NodeName == w.host("a") })
		if i < 0 {
			return &v1alpha1.HostIncident{}
		}
		return &list[i]
	}
	w.watchers = nil // the laws know one incident
	l.until("the budget is spent", func() bool {
		return is(mine().Status.Conditions, v1alpha1.ConditionBlocked, v1alpha1.ReasonBudgetSpent)
	})
	l.while(5*time.Second, "not switched off", func() bool { return w.count("Off") == 0 })
}

// TestTheManagerIsUpgradedInTheMiddleOfALoss: another process, with another name, takes over a journal as the first release wrote it, brings it up to its
// own version, and ends what was begun, with the one Off that was given.
func TestTheManagerIsUpgradedInTheMiddleOfALoss(t *testing.T) {
	t.Parallel()
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := lawful(t)
			l := w.boot()
			l.settle()
			w.hangs()
			l.until(m.name, func() bool { return m.at(w) })
			l.end()
			w.rewrite(`{"status":{"journalVersion":null,"settings":null}}`)
			if v := w.incident().Status.JournalVersion; v != 0 {
				t.Fatalf("journal version %d", v)
			}
			l = w.boot()
			l.hosts.Self = "manager-of-tomorrow/1"
			l.self = l.hosts.Self
			l.lookAtApp()
			l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
			w.releasedOnce(t)
			h := w.incident()
			if w.offs != 1 || h.Status.JournalVersion != v1alpha1.JournalVersion || h.Status.ObservedBy != l.self || len(h.Status.Settings) == 0 {
				t.Errorf("switched off %d times; journal version %d, observed by %s", w.offs, h.Status.JournalVersion, h.Status.ObservedBy)
			}
		})
	}
}

// verdictOf is our condition on host a.
func (w *world) verdictOf() corev1.NodeCondition {
	w.t.Helper()
	for _, c := range w.node("a").Status.Conditions {
		if c.Type == v1alpha1.NodeConditionVerdict {
			return c
		}
	}
	return corev1.NodeCondition{}
}

// TestTheNodeSaysWhatItsHostIsHeldToBe also counts: a condition that is as it should be is not written again, whatever the kubelet writes beside it.
func TestTheNodeSaysWhatItsHostIsHeldToBe(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	if c := w.verdictOf(); c.Type != "" {
		t.Errorf("the Node of a host that never was in trouble says %+v", c)
	}
	w.kubeletDies()
	l.until("the Node says KubeletDown", func() bool {
		c := w.verdictOf()
		return c.Status == corev1.ConditionTrue && c.Reason == "KubeletDown" && strings.Contains(c.Message, w.incident().Name)
	})
	patches := w.count("patch status of Node done")
	l.while(4*time.Second, "told", func() bool { return w.verdictOf().Reason == "KubeletDown" })
	w.setNode(func(s *corev1.NodeStatus) { s.Conditions[0].LastHeartbeatTime.Time = w.clock.Now() })
	l.while(4*time.Second, "told beside what the kubelet says", func() bool { return w.verdictOf().Reason == "KubeletDown" && len(w.node("a").Status.Conditions) == 2 })
	if n := w.count("patch status of Node done"); n != patches {
		t.Errorf("the Node's status was patched %d times without need", n-patches)
	}
	w.set(func() { w.renews["a"] = true })
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	if c := w.verdictOf(); c.Status != corev1.ConditionFalse || c.Reason != "NoIncident" {
		t.Errorf("the Node says %+v after the end", c)
	}
}

// TestWhatACrashLeftOnTheNodeIsTakenBack: the incident ended, and the manager with it, before the Node was told.
func TestWhatACrashLeftOnTheNodeIsTakenBack(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	n := w.node("a")
	base := n.DeepCopy()
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: v1alpha1.NodeConditionVerdict, Status: corev1.ConditionTrue, Reason: "Lost"})
	w.must(w.admin.Status().Patch(t.Context(), n, client.MergeFrom(base)))
	l := w.boot()
	l.settle()
	l.until("it is taken back", func() bool { return w.verdictOf().Status == corev1.ConditionFalse })
}
