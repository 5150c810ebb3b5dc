// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fencingprofile says, before it is needed, whether every host of a profile could be fenced now.
package fencingprofile

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// Reconciler reads the devices of one profile.
type Reconciler struct {
	Client  client.Client
	Clock   *sight.Clock
	Devices *guard.Devices
	// CallDeadline bounds every reading.
	CallDeadline time.Duration
}

// soon is when a profile with an unready host is looked at again.
const soon = 10 * time.Second

// Reconcile looks at one profile.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.gather(ctx, req)
	if seen == nil || err != nil {
		return ctrl.Result{}, err
	}
	r.act(ctx, seen)
	err = r.record(ctx, seen)
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	next := time.Duration(max(5, seen.profile.Spec.CheckEverySeconds)) * time.Second
	if seen.unready() > 0 {
		next = min(next, soon)
	}
	return ctrl.Result{RequeueAfter: next}, err
}
