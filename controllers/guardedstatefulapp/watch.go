// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// SetupWithManager registers the controller. hosts brings the names of hosts at which an application's answer changed.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, hosts <-chan event.GenericEvent) error {
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request { return r.everyApp(ctx, "") })
	same := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return r.everyApp(ctx, o.GetNamespace())
	})
	here := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request { return r.everyApp(ctx, o.GetName()) })
	return ctrl.NewControllerManagedBy(mgr).Named("guardedstatefulapp").
		For(&v1alpha1.GuardedStatefulApp{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&appsv1.StatefulSet{}, same).
		Watches(&appsv1.Deployment{}, same).
		Watches(&appsv1.ReplicaSet{}, same, builder.WithPredicates(predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }})).
		Watches(&corev1.Namespace{}, here, builder.WithPredicates(predicate.AnnotationChangedPredicate{})).
		Watches(&corev1.Pod{}, same, builder.WithPredicates(predicate.NewPredicateFuncs(r.mayBeGuarded))).
		Watches(&v1alpha1.HostIncident{}, all).
		Watches(&v1alpha1.FencingProfile{}, all).
		Watches(&v1alpha1.GuardConfig{}, all, builder.WithPredicates(predicate.ResourceVersionChangedPredicate{})).
		Watches(&storagev1.VolumeAttachment{}, all, builder.WithPredicates(predicate.Funcs{
			UpdateFunc: func(event.UpdateEvent) bool { return false }, DeleteFunc: func(event.DeleteEvent) bool { return false }})).
		WatchesRawSource(source.Channel(hosts, all)).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(r)
}

// mayBeGuarded lets through pods that name a claim or carry our label.
func (r *Reconciler) mayBeGuarded(o client.Object) bool {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return false
	}
	if p.Labels[v1alpha1.LabelApp] != "" {
		return true
	}
	for _, v := range p.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			return true
		}
	}
	return false
}

func (r *Reconciler) everyApp(ctx context.Context, namespace string) []reconcile.Request {
	var list v1alpha1.GuardedStatefulAppList
	if err := r.Client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil
	}
	out := make([]reconcile.Request, 0, len(list.Items))
	for _, g := range list.Items {
		out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: g.Namespace, Name: g.Name}})
	}
	return out
}
