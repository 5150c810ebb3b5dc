// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pod keeps the gate of newcomers: a pod that names a guarded claim, and is not in its place there, starts only when nothing on another host may
// still write to its volumes.
package pod

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Reconciler keeps the gate. Requests are names of Namespaces.
type Reconciler struct {
	// Client reads from the cache and writes; Live reads from the API server.
	Client client.Client
	Live   client.Reader
	Events events.EventRecorder
	Clock  *sight.Clock

	// gate lets one newcomer at a time be decided on, in whatever namespace: volumes are shared across them.
	gate sync.Mutex
	// admitted is since when this process has seen it written down that a pod is let in, by its namespace and UID.
	admitted map[types.NamespacedName]evidence.Instant
	// told is what was last said about a pod.
	told map[types.NamespacedName]string
}

const (
	// settle is how long a claim must have been without a place before anybody is let in on it who is not in that place: an API server that has not heard
	// of it yet could let the pod of the place start. They learn of changes within a second; see docs/spec/admission.md.
	settle = 3 * time.Second
	// waitEvery is how often those who wait are looked at when nothing happens.
	waitEvery = 5 * time.Second
)

// Reconcile looks at all who wait at the gate in one namespace.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	r.gate.Lock()
	defer r.gate.Unlock()
	if idle, err := r.idle(ctx, req.Name); idle || err != nil {
		return ctrl.Result{}, err
	}
	s, err := r.gather(ctx, req.Name)
	if s == nil || err != nil {
		return ctrl.Result{}, err
	}
	err = r.act(ctx, s)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		logf.FromContext(ctx).V(1).Info("Looking again", "because", err.Error())
		return ctrl.Result{RequeueAfter: 50 * time.Millisecond}, nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	return r.record(ctx, s)
}
