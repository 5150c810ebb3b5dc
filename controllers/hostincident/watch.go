// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// workers is how many hosts are looked at side by side: a dead device must not keep others waiting.
const workers = 16

// pingEvery is how often the API server is asked for nothing but an answer.
const pingEvery = 1500 * time.Millisecond

// SetupWithManager registers the controller. hosts brings the names of hosts at which an answer changed.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager, hosts <-chan event.GenericEvent) error {
	if err := r.feedLeases(mgr); err != nil {
		return err
	}
	if err := mgr.Add(manager.RunnableFunc(r.ping)); err != nil {
		return err
	}
	byNode := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		switch o := o.(type) {
		case *v1alpha1.HostIncident:
			return request(o.Spec.NodeName)
		case *v1alpha1.HostAttestation:
			return request(o.Spec.NodeName)
		case *corev1.Pod:
			return request(o.Spec.NodeName)
		case *storagev1.VolumeAttachment:
			return request(o.Spec.NodeName)
		default:
			return nil
		}
	})
	guarded := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetLabels()[v1alpha1.LabelApp] != "" })
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetLabels()[v1alpha1.LabelGuardedVolume] != "" })
	err := ctrl.NewControllerManagedBy(mgr).Named("traffic").
		Watches(&corev1.Pod{}, settled(), builder.WithPredicates(guarded, predicate.NewPredicateFuncs(silenced))).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(traffic{r})
	if err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).Named("hostincident").
		For(&corev1.Node{}, builder.WithPredicates(nodeChanged())).
		Watches(&v1alpha1.HostIncident{}, byNode, builder.WithPredicates(predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }})).
		Watches(&v1alpha1.HostAttestation{}, byNode).
		Watches(&corev1.Pod{}, byNode, builder.WithPredicates(guarded)).
		Watches(&storagev1.VolumeAttachment{}, byNode, builder.WithPredicates(ours)).
		WatchesRawSource(source.Channel(hosts, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

func request(node string) []reconcile.Request {
	if node == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: node}}}
}

// nodeChanged lets through what a verdict can rest on, and not every heartbeat.
func nodeChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok1 := e.ObjectOld.(*corev1.Node)
		after, ok2 := e.ObjectNew.(*corev1.Node)
		return !ok1 || !ok2 || sketch(before) != sketch(after)
	}}
}

func sketch(n *corev1.Node) string {
	ready := ""
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			ready = string(c.Status) + c.Reason
		}
	}
	return fmt.Sprint(ready, n.Status.NodeInfo.BootID, n.Spec.Taints, n.Labels, n.DeletionTimestamp != nil)
}

// feedLeases tells the observer's memory of every renewal as it comes, so that ages are measured from the renewal and not from the next look.
func (r *Reconciler) feedLeases(mgr ctrl.Manager) error {
	return mgr.Add(manager.RunnableFunc(func(ctx context.Context) error {
		informer, err := mgr.GetCache().GetInformer(ctx, &coordinationv1.Lease{})
		if err != nil {
			return fmt.Errorf("watch node leases: %w", err)
		}
		see := func(o any) {
			l, ok := o.(*coordinationv1.Lease)
			switch {
			case ok && l.Namespace == corev1.NamespaceNodeLease:
				r.Leases.SeeLease(l, r.Clock.Instant(), false)
			case ok && l.Namespace == wire.Namespace:
				r.Leases.SeeAgent(l, r.Clock.Instant(), false)
			}
		}
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, o any) { see(o) }})
		if err != nil {
			return err
		}
		<-ctx.Done()
		return informer.RemoveEventHandler(registration)
	}))
}

// ping asks the API server for an answer, so that its silence is known without a reason to read.
func (r *Reconciler) ping(ctx context.Context) error {
	r.began.Store(int64(r.Clock.Instant()))
	tick := r.Clock.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		answered, _ := r.read(ctx, func(c context.Context) error {
			var config v1alpha1.GuardConfig
			return r.Live.Get(c, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &config)
		})
		if answered {
			r.API.Answered()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		}
	}
}

// Index registers the cache indexes that the controllers look things up by.
func Index(ctx context.Context, mgr ctrl.Manager) error {
	index := mgr.GetFieldIndexer()
	for _, i := range []struct {
		object client.Object
		field  string
		of     client.IndexerFunc
	}{
		{&corev1.Pod{}, guard.IndexPodNode, func(o client.Object) []string { return one(o.(*corev1.Pod).Spec.NodeName) }},
		{&corev1.Pod{}, guard.IndexPodGated, func(o client.Object) []string {
			return one(map[bool]string{true: "true"}[guard.Gated(o.(*corev1.Pod))])
		}},
		{&corev1.Pod{}, guard.IndexPodIP, func(o client.Object) []string { return guard.PodIPs(o.(*corev1.Pod)) }},
	} {
		if err := index.IndexField(ctx, i.object, i.field, i.of); err != nil {
			return fmt.Errorf("index %s: %w", i.field, err)
		}
	}
	return nil
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
