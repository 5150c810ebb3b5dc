// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
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
		if r.told[w.key()] == words || r.tell(ctx, w, words) {
			told[w.key()] = words
		}
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

// tell tells the pod's condition, and events of the pod and the app. It reports false if the pod was not told: those who still wait are told at the next
// look.
func (r *Reconciler) tell(ctx context.Context, w *waiting, words string) bool {
	status, reason := corev1.ConditionFalse, v1alpha1.ReasonWaiting
	if w.in {
		status, reason = corev1.ConditionTrue, v1alpha1.ReasonLetIn
	}
	c := corev1.PodCondition{Type: v1alpha1.ConditionLetIn, Status: status, Reason: reason, Message: words, LastTransitionTime: metav1.Time{Time: r.Clock.Now()}}
	if err := r.condition(ctx, w.pod, c); err != nil {
		logf.FromContext(ctx).V(1).Info("The pod was not told", "pod", w.pod.Name, "error", err.Error())
		return false
	}
	if r.Events == nil {
		return true
	}
	if w.app == nil {
		r.Events.Eventf(w.pod, nil, corev1.EventTypeNormal, reason, reason, "%s", words)
		return true
	}
	r.Events.Eventf(w.pod, &w.app.GuardedStatefulApp, corev1.EventTypeNormal, reason, reason, "%s", words)
	r.Events.Eventf(&w.app.GuardedStatefulApp, w.pod, corev1.EventTypeNormal, reason, reason, "pod %s: %s", w.pod.Name, words)
	return true
}

// condition writes a condition of the pod. Others write pods too, the scheduler within milliseconds of a lifted gate: a conflict is tried again with the pod
// as it is now. The lock, and the UID, keep the condition from another pod of the same name.
func (r *Reconciler) condition(ctx context.Context, p *corev1.Pod, c corev1.PodCondition) error {
	uid, tried := p.UID, false
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		if tried {
			if err := r.Live.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
				return err
			}
		}
		tried = true
		if p.UID != uid {
			return fmt.Errorf("it is gone: another of its name has the UID %s", p.UID)
		}
		base := p.DeepCopy()
		p.Status.Conditions = append(slices.DeleteFunc(slices.Clone(p.Status.Conditions), func(o corev1.PodCondition) bool { return o.Type == c.Type }), c)
		return r.Client.Status().Patch(ctx, p, client.StrategicMergeFrom(base, client.MergeFromWithOptimisticLock{}))
	})
}
