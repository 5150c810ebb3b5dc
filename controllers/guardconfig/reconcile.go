// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package guardconfig keeps the guard itself standing: the one GuardConfig, and the admission policies, installed and proven.
package guardconfig

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// Reconciler keeps the GuardConfig and the policies.
type Reconciler struct {
	// Client writes; Direct reads and writes without a cache.
	Client   client.Client
	Direct   client.Client
	Clock    *sight.Clock
	Identity admission.Identity
	// Servers are the API servers that can be named, each under the canary's identity.
	Servers []admission.Server
	// Self names this process.
	Self string
	// Bolt is swept with every look.
	Bolt *Bolt

	// spec is the GuardConfig's, as last seen.
	spec *v1alpha1.GuardConfigSpec
}

const (
	// proveEvery is how often the policies are tried while they are known to be effective.
	proveEvery = 5 * time.Minute
	// retryEvery is how often they are tried while they are not.
	retryEvery = 5 * time.Second
	// tellEvery is how old the status may get.
	tellEvery = 30 * time.Second
)

// Reconcile looks at the guard itself.
func (r *Reconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	seen, err := r.gather(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	r.act(ctx, seen)
	if err := r.record(ctx, seen); err != nil {
		if apierrors.IsConflict(err) {
			return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
		}
		return ctrl.Result{}, err
	}
	if !seen.effective() {
		return ctrl.Result{RequeueAfter: retryEvery}, nil
	}
	return ctrl.Result{RequeueAfter: tellEvery}, nil
}
