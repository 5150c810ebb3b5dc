// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/fencing"
)

func step(w *world, s v1alpha1.IncidentStep) func() bool {
	return func() bool { return w.incident().Status.Step == s }
}

// laws are what every operation of every story is held against.
func (w *world) laws(o operation) {
	w.t.Helper()
	h, p := w.incident(), w.lost()
	proof := h.Status.Proof != nil
	w.mu.Lock()
	w.armed = (w.armed || isHeld(p)) && (p != nil || !proof) // what went on proof is not asked for again when its incident vanishes
	bound := w.armed && !proof && !w.renews["a"]
	w.mu.Unlock()
	if bound && p == nil {
		w.t.Errorf("%s: the held pod is gone, and there is no proof", o)
	}
	if bound && p != nil && !isHeld(p) {
		w.t.Errorf("%s: the hold on the pod is lost, and there is neither proof nor a kubelet", o)
	}
	if o.done {
		return
	}
	switch o.what {
	case "Off":
		w.offIsIntended(o, h)
		if !isHeld(p) && p != nil {
			w.t.Errorf("Off is commanded before the pod is held")
		}
	case "delete Pod":
		if !proof || w.bmc.Power() != fencing.PowerOff {
			w.t.Errorf("a pod is deleted with proof %v and power %s", h.Status.Proof, w.bmc.Power())
		}
		for _, key := range []string{v1alpha1.TaintFenced, v1alpha1.TaintOutOfService} {
			if _, tainted := taint(w.node("a"), key); !tainted {
				w.t.Errorf("a pod is deleted before its Node has the taint %s", key)
			}
		}
	}
}

// offIsIntended: at the moment of the call, the API server knows of it, and by whom (invariant I2).
func (w *world) offIsIntended(o operation, h *v1alpha1.HostIncident) {
	w.t.Helper()
	var intended []v1alpha1.Attempt
	for _, a := range h.Status.Attempts {
		if a.State == v1alpha1.AttemptIntended {
			intended = append(intended, a)
		}
	}
	if len(intended) != 1 || intended[0].By != o.life.self {
		w.t.Errorf("Off is commanded by %s, and the journal has as intended: %+v", o.life.self, intended)
	}
}

// lawful is a world in which every operation is held against the laws.
func lawful(t *testing.T, change ...func(*v1alpha1.GuardedStatefulApp)) *world {
	t.Helper()
	w := newWorld(t, change...)
	w.watch(w.laws)
	return w
}

// order fails unless the trace has these lines in this order, others in between.
func (w *world) order(lines ...string) {
	w.t.Helper()
	w.mu.Lock()
	trace := slices.Clone(w.trace)
	w.mu.Unlock()
	at := 0
	for _, line := range lines {
		found := slices.IndexFunc(trace[at:], func(s string) bool { return strings.HasSuffix(s, line) })
		if found < 0 {
			w.t.Fatalf("%q is missing after line %d of\n%s", line, at, strings.Join(trace, "\n"))
		}
		at += found + 1
	}
}

func (w *world) count(line string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, s := range w.trace {
		if strings.HasSuffix(s, line) {
			n++
		}
	}
	return n
}

func TestAHostThatLostItsPower(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.powerFails()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	if h := w.incident(); w.lost().Labels[v1alpha1.LabelHold] != h.Name || w.held() != "stranger=other,bare=,db-0="+h.Name {
		t.Errorf("held by %s as %s, listed as %q", h.Name, w.lost().Labels[v1alpha1.LabelHold], w.held())
	}
	l.until("the pod is released", func() bool { return w.lost() == nil })
	l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
	w.order("create HostIncident", "patch Namespace", "patch Pod", "update status of HostIncident done", "Off", "Off done", "patch Node", "Observe",
		"patch Node", "Observe", "delete Pod", "delete Pod done", "patch Pod", "patch Node")
	w.releasedOnce(t)
	if w.offs != 0 || w.count("Off done") != 1 {
		t.Errorf("%d Off commands, %d of them to a host that was on; want one, to a host that was off already", w.count("Off done"), w.offs)
	}

	set := &appsv1.StatefulSet{}
	w.must(w.admin.Get(t.Context(), client.ObjectKeyFromObject(&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "db"}}), set))
	successor := w.start(set, "b", nextIP)
	l.lookAtApp()
	l.until("the successor serves", step(w, v1alpha1.StepResolved))
	w.returns()
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	if n := w.node("a"); len(n.Spec.Taints) != 0 {
		t.Errorf("the Node of the new boot has taints %v", n.Spec.Taints)
	}
	if p := w.current("db-0"); p.UID != successor.UID || p.Labels[v1alpha1.LabelHold] != "" {
		t.Error("the successor was touched")
	}
	w.toldTo(t, "Held", "Pod", "StatefulSet", "Node", "HostIncident", "GuardedStatefulApp")
}

// returns brings host a back in a new boot.
func (w *world) returns() {
	w.bmc.SetPower(fencing.PowerOn)
	w.setNode(func(s *corev1.NodeStatus) { s.NodeInfo.BootID = "boot-2" })
	w.set(func() { w.renews["a"], w.kernel, w.serves = true, true, false })
}

// releasedOnce checks what is true once the loss of host a is dealt with, whatever happened on the way.
func (w *world) releasedOnce(t *testing.T) {
	t.Helper()
	h := w.incident()
	if h.Status.Proof == nil || h.Status.Proof.BootID != "boot-1" || h.Status.Proof.Strength != v1alpha1.ProofPowerOff {
		t.Errorf("proof %+v", h.Status.Proof)
	}
	if len(h.Status.Pods) != 1 || h.Status.Pods[0].ReleasedAt == nil {
		t.Errorf("pods %+v", h.Status.Pods)
	}
	if got := w.held(); got != "stranger=other,bare=" && got != "stranger=other,bare" {
		t.Errorf("the list of held pods is %q: entries of others must stay, ours must go", got)
	}
	n := w.node("a")
	if _, fenced := taint(n, v1alpha1.TaintFenced); !fenced {
		t.Error("the Node is not fenced")
	}
	if _, out := taint(n, v1alpha1.TaintOutOfService); out {
		t.Error("the out-of-service taint was not taken off")
	}
}

// toldTo checks that an event with the reason went to objects of all these kinds.
func (w *world) toldTo(t *testing.T, reason string, kinds ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kind := range kinds {
		if !slices.ContainsFunc(w.told, func(s string) bool { return strings.HasPrefix(s, kind+" "+reason+":") }) {
			t.Errorf("no event %s about the %s in\n%s", reason, kind, strings.Join(w.told, "\n"))
		}
	}
}

func TestAHostThatHangsIsSwitchedOffOnce(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	w.budget = 1 // the attempt in hand must not count against itself
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("the pod is released", func() bool { return w.lost() == nil })
	l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
	w.releasedOnce(t)
	if w.offs != 1 || w.count("Off done") != 1 {
		t.Errorf("%d Off commands, %d of them to a host that was on; want one", w.count("Off done"), w.offs)
	}
}

// TestSilenceThatWasMetBlindDoesNotCount lets every host fall silent, and one of them come back before the other: half a minute without life is no reason
// to fence then, for nobody could have been heard in that time. What stays silent beside it is fenced in the end.
func TestSilenceThatWasMetBlindDoesNotCount(t *testing.T) {
	t.Parallel()
	w := lawful(t, func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.ConfirmAfterSeconds = 15 })
	l := w.boot()
	l.settle()
	w.hangs()
	w.set(func() { w.renews["b"] = false })
	l.until("the view is found bad", func() bool { return w.incident() != nil && w.incident().Status.Verdict == "Blind" })
	l.while(30*time.Second, "blind, held and not switched off", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
	w.set(func() { w.renews["b"] = true })
	l.until("the view is clear", func() bool { return w.incident().Status.Verdict == "Silent" })
	l.while(10*time.Second, "given the time to speak", func() bool { return isHeld(w.lost()) && w.count("Off") == 0 })
	l.until("the pod is released", func() bool { return w.lost() == nil })
	if w.offs != 1 {
		t.Errorf("switched off %d times", w.offs)
	}
}

func TestAKubeletThatDiesAloneMovesNothing(t *testing.T) {
	t.Parallel()
	w := lawful(t)
	l := w.boot()
	l.settle()
	w.kubeletDies()
	l.until("the pod is held", func() bool { return isHeld(w.lost()) })
	l.until("the verdict is KubeletDown", func() bool { return w.incident().Status.Verdict == "KubeletDown" })
	// What the node lifecycle controller does now, and the endpoint controller believes.
	w.setNode(func(s *corev1.NodeStatus) {
		s.Conditions[0].Status, s.Conditions[0].Reason = corev1.ConditionUnknown, "NodeStatusUnknown"
	})
	p := w.lost()
	base := p.DeepCopy()
	p.Status.Conditions[0].Status = corev1.ConditionFalse
	w.must(w.admin.Status().Patch(t.Context(), p, client.MergeFrom(base)))
	l.until("the endpoint is kept", func() bool { return isReady(w.lost()) })
	l.while(20*time.Second, "held where it is, and served", func() bool { return isHeld(w.lost()) && isReady(w.lost()) && w.incident().Status.Proof == nil })
	if n := w.count("Off"); n != 0 || len(w.node("a").Spec.Taints) != 0 {
		t.Errorf("%d Off commands, taints %v for a host that lives", n, w.node("a").Spec.Taints)
	}
	if h := w.incident(); h.Status.Verdict != "KubeletDown" || h.Status.Step != v1alpha1.StepHolding {
		t.Errorf("verdict %s, step %s", h.Status.Verdict, h.Status.Step)
	}
	w.setNode(func(s *corev1.NodeStatus) { s.Conditions[0].Status, s.Conditions[0].Reason = corev1.ConditionTrue, "" })
	w.set(func() { w.renews["a"] = true })
	l.until("the incident is closed", step(w, v1alpha1.StepClosed))
	if p := w.lost(); p == nil || isHeld(p) || len(p.Finalizers) != 0 || w.held() != "stranger=other,bare=" {
		t.Errorf("the hold was not lifted: %+v, listed %q", p, w.held())
	}
}

func TestTrafficIsNotKeptWhenTheApplicationFallsSilent(t *testing.T) {
	t.Parallel()
	w := lawful(t, func(g *v1alpha1.GuardedStatefulApp) { g.Spec.OnHostLoss.Approval = "Manual" })
	l := w.boot()
	l.settle()
	w.hangs()
	l.until("the endpoint is taken out", func() bool { return !isReady(w.lost()) })
	p := w.lost()
	base := p.DeepCopy()
	for i := range p.Status.Conditions {
		p.Status.Conditions[i].Status = corev1.ConditionTrue
	}
	w.must(w.admin.Status().Patch(t.Context(), p, client.MergeFrom(base)))
	l.until("it is taken out again", func() bool { return !isReady(w.lost()) })
}
