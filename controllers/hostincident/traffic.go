// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/holdfast-dev/holdfast/engine/plan"
)

// traffic puts endpoints back by what this process knows already, beside the looks of the Reconciler that it is made from: these read the API server
// and the devices first, and a Service leads nowhere meanwhile. It does nothing else, nothing that cannot be undone, and each pod's patch holds only for
// the pod as it was seen.
type traffic struct{ *Reconciler }

// Reconcile puts back what endpoints of one host the plan of a cached look puts back.
func (t traffic) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	w := t.gather(ctx, req.Name, fromCache)
	if !w.seen.Listed || len(w.seen.Journal.Attempts) > 0 || w.seen.Journal.ProofRecorded {
		return ctrl.Result{}, nil // a host that was to be switched off serves by what a live look says
	}
	found := t.decide(w)
	var patches sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for _, s := range plan.Make(found, w.seen, w.budget).Steps {
		if s.Kind != plan.KeepServing || !silenced(w.pods[s.Target]) {
			continue
		}
		patches.Go(func() {
			err := client.IgnoreNotFound(t.reversible(ctx, w, found, s))
			if apierrors.IsConflict(err) {
				logf.FromContext(ctx).V(1).Info("The pod changed meanwhile; its change is an occasion of its own", "pod", s.Target)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, err)
		})
	}
	patches.Wait()
	return ctrl.Result{}, errors.Join(failed...)
}

// settling is how long an endpoint that was taken out is left so before it is put back. The EndpointSlice controller that meets the next change of a pod
// before its own last write has come back to it gives up and tries again after a second (its defaultSyncBackOff): whoever is faster than that is slower.
const settling = 200 * time.Millisecond

// settled asks for a look at a pod's host once what took the pod out has settled.
func settled() handler.EventHandler {
	soon := func(o client.Object, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		if p, ok := o.(*corev1.Pod); ok {
			for _, host := range request(p.Spec.NodeName) {
				q.AddAfter(host, settling)
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			soon(e.Object, q)
		},
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
			soon(e.ObjectNew, q)
		},
	}
}

// silenced reports whether somebody else took a pod out of traffic. What we took out ourselves, by a live look, comes back by a live look.
func silenced(o client.Object) bool {
	p, ok := o.(*corev1.Pod)
	return ok && !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && (c.Status == corev1.ConditionTrue || c.Reason == stopsServing)
	})
}
