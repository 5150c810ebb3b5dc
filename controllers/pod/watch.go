// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// SetupWithManager registers the controller.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	everybody := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request { return r.waiting(ctx) })
	ofPod := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		// Its own namespace also when it waits no more: it may still be on the list of those who are let in.
		return append(r.waiting(ctx), reconcile.Request{NamespacedName: types.NamespacedName{Name: o.GetNamespace()}})
	})
	claims := predicate.NewPredicateFuncs(func(o client.Object) bool {
		p, ok := o.(*corev1.Pod)
		return ok && len(guard.ClaimsOf(p)) > 0
	})
	return ctrl.NewControllerManagedBy(mgr).Named("pod").
		For(&corev1.Namespace{}, builder.WithPredicates(predicate.AnnotationChangedPredicate{})).
		Watches(&corev1.Pod{}, ofPod, builder.WithPredicates(claims)).
		Watches(&v1alpha1.HostIncident{}, everybody).
		Watches(&v1alpha1.GuardedStatefulApp{}, everybody, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}

// waiting are the namespaces in which somebody waits.
func (r *Reconciler) waiting(ctx context.Context) []reconcile.Request {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingFields{guard.IndexPodGated: "true"}); err != nil {
		return nil
	}
	seen := map[string]bool{}
	var out []reconcile.Request
	for _, p := range pods.Items {
		if !seen[p.Namespace] {
			seen[p.Namespace] = true
			out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: p.Namespace}})
		}
	}
	return out
}
