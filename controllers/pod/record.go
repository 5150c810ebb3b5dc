// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// record tells each pod, and its app, for what it waits, and says when to look again.
func (r *Reconciler) record(ctx context.Context, s *sighting) (ctrl.Result, error) {
	told := map[types.NamespacedName]string{}
	for key, words := range r.told {
		if key.Namespace != s.namespace.Name {
			told[key] = words
		}
	}
	next := time.Duration(0)
	for _, w := range s.waiting {
		words := w.words()
		if r.told[w.key()] != words {
			r.tell(ctx, w, words)
		}
		told[w.key()] = words
		switch {
		case w.in:
		case w.left > 0 && (next == 0 || w.left < next):
			next = w.left
		case next == 0:
			next = waitEvery
		}
	}
	r.told = told
	return ctrl.Result{RequeueAfter: next}, nil
}

func (w *waiting) words() string {
	switch {
	case w.in && w.answer.Host != "":
		return "let in on host " + w.answer.Host + ", where its volumes are in use"
	case w.in:
		return "let in: nobody else is on its volumes"
	case w.left > 0:
		return "until every API server knows that it is let in"
	default:
		return w.answer.Waits
	}
}

// tell tells the pod's condition, and events of the pod and the app.
func (r *Reconciler) tell(ctx context.Context, w *waiting, words string) {
	status, reason := corev1.ConditionFalse, v1alpha1.ReasonWaiting
	if w.in {
		status, reason = corev1.ConditionTrue, v1alpha1.ReasonLetIn
	}
	base := w.pod.DeepCopy()
	c := corev1.PodCondition{Type: v1alpha1.ConditionLetIn, Status: status, Reason: reason, Message: words, LastTransitionTime: metav1.Time{Time: r.Clock.Now()}}
	w.pod.Status.Conditions = append(slices.DeleteFunc(slices.Clone(w.pod.Status.Conditions), func(o corev1.PodCondition) bool { return o.Type == c.Type }), c)
	// The lock keeps the patch from meeting another pod of the same name. What is not said now is said with the next change.
	err := r.Client.Status().Patch(ctx, w.pod, client.StrategicMergeFrom(base, client.MergeFromWithOptimisticLock{}))
	if err != nil {
		logf.FromContext(ctx).V(1).Info("The pod was not told", "pod", w.pod.Name, "error", err.Error())
	}
	if r.Events == nil {
		return
	}
	if w.app == nil {
		r.Events.Eventf(w.pod, nil, corev1.EventTypeNormal, reason, reason, "%s", words)
		return
	}
	r.Events.Eventf(w.pod, &w.app.GuardedStatefulApp, corev1.EventTypeNormal, reason, reason, "%s", words)
	r.Events.Eventf(&w.app.GuardedStatefulApp, w.pod, corev1.EventTypeNormal, reason, reason, "pod %s: %s", w.pod.Name, words)
}
