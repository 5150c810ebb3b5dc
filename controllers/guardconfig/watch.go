// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// SetupWithManager registers the controller, and starts it once although there may be no GuardConfig yet.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	first := make(chan event.GenericEvent, 1)
	if err := mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		config := &v1alpha1.GuardConfig{}
		config.Name = v1alpha1.GuardConfigName
		select {
		case first <- event.GenericEvent{Object: config}:
		case <-ctx.Done():
		}
		return nil
	})); err != nil {
		return err
	}
	only := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == v1alpha1.GuardConfigName })
	itself := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: v1alpha1.GuardConfigName}}}
	})
	return ctrl.NewControllerManagedBy(mgr).Named("guardconfig").
		For(&v1alpha1.GuardConfig{}, builder.WithPredicates(only, predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.HostIncident{}, itself, builder.WithPredicates(opensOrEnds())).
		WatchesRawSource(source.Channel(first, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// opensOrEnds lets through what moves the bolt.
func opensOrEnds() predicate.Predicate {
	over := func(o client.Object) bool {
		h, ok := o.(*v1alpha1.HostIncident)
		return ok && h.Status.Step.Over()
	}
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool { return over(e.ObjectOld) != over(e.ObjectNew) }}
}
