// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
)

// SetupWithManager registers the controller. What is in the agents' namespace is not watched but looked at again and again: where the namespace is missing,
// so is the right to watch it.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	only := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == v1alpha1.GuardConfigName })
	place := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == manifest.Namespace })
	again := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: v1alpha1.GuardConfigName}}}
	})
	return ctrl.NewControllerManagedBy(mgr).Named("witness").
		For(&v1alpha1.GuardConfig{}, builder.WithPredicates(only, predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Namespace{}, again, builder.WithPredicates(place, comesOrGoes)).
		Watches(&corev1.Node{}, again, builder.WithPredicates(seedChanges)).
		Complete(r)
}

// comesOrGoes lets through that something is there, or is no more.
var comesOrGoes = predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }}

// seedChanges lets through what may change the seeds.
var seedChanges = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*corev1.Node)
	after, is := e.ObjectNew.(*corev1.Node)
	return ok && is && seeds([]corev1.Node{*before}) != seeds([]corev1.Node{*after})
}}
