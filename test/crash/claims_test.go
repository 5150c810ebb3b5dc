// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// runs lets a pod like the world's own run, with another name, on a host.
func (w *world) runs(name, letter, ip string, change func(*corev1.Pod)) *corev1.Pod {
	w.t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: name}, Spec: *w.pod.Spec.DeepCopy(), Status: *w.pod.Status.DeepCopy()}
	p.Spec.NodeName, p.Status.PodIP, p.Status.PodIPs = w.host(letter), ip, []corev1.PodIP{{IP: ip}}
	if change != nil {
		change(p)
	}
	w.create(p)
	return p
}

func TestWhoeverNamesAGuardedClaimIsHeldAndReleased(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// One that nobody owns and nobody has labelled, and the app's own, left behind by its StatefulSet and relabelled.
	w.runs("backup", "a", "10.1.0.9", nil)
	own := w.lost()
	base := own.DeepCopy()
	own.OwnerReferences, own.Labels = nil, map[string]string{"app": "something-else"}
	w.must(w.admin.Patch(t.Context(), own, client.MergeFrom(base)))
	l := w.boot()
	l.settle()
	for _, name := range []string{"backup", "db-0"} {
		if got := w.current(name).Labels[v1alpha1.LabelApp]; got != "db" {
			t.Errorf("%s has the label %q of an app", name, got)
		}
	}
	w.powerFails()
	l.until("both are held", func() bool { return isHeld(w.current("backup")) && isHeld(w.lost()) })
	l.until("both are released", func() bool { return w.current("backup") == nil && w.lost() == nil })
	if pods := w.incident().Status.Pods; len(pods) != 2 || pods[0].ReleasedAt == nil && pods[1].ReleasedAt == nil {
		t.Errorf("pods %+v", pods)
	}
}

func TestADeploymentHasRecoveredWhenAPodOfAnotherNameServes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(g *v1alpha1.GuardedStatefulApp) { g.Spec.WorkloadRef.Kind = "Deployment" })
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}}, Spec: *w.pod.Spec.DeepCopy()}
	template.Spec.NodeName = ""
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "db"}, Spec: appsv1.DeploymentSpec{Template: template,
		Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}}}
	w.create(d)
	set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: w.name, Name: "db-5c", OwnerReferences: []metav1.OwnerReference{
		*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}}, Spec: appsv1.ReplicaSetSpec{Selector: d.Spec.Selector, Template: template}}
	w.create(set)
	owned := func(p *corev1.Pod) {
		p.Labels = map[string]string{"app": "db", v1alpha1.LabelApp: "db"}
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	}
	own := w.lost()
	base := own.DeepCopy()
	owned(own)
	w.must(w.admin.Patch(t.Context(), own, client.MergeFrom(base)))
	l := w.boot()
	l.settle()
	if g := w.app(); len(g.Status.Members) != 1 || g.Status.Healthy == "" || g.Status.Workload != "deployment/db" {
		t.Errorf("status %+v", g.Status)
	}
	w.powerFails()
	l.until("the pod is released", func() bool { return w.lost() == nil })
	l.until("what was attached is detached", step(w, v1alpha1.StepRecovering))
	w.runs("db-5c-successor", "b", nextIP, owned)
	l.lookAtApp()
	l.until("the successor serves", step(w, v1alpha1.StepResolved))
}
