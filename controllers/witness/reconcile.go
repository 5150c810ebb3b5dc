// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package witness keeps an agent on every host where the GuardConfig asks for it, with what the agents read: docs/spec/witness.md, "In a cluster".
package witness

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/certificate"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// Reconciler keeps the agents.
type Reconciler struct {
	// Client reads Nodes and namespaces; Direct, which is not cached, keeps the DaemonSet and the ConfigMap; Secrets, which is not cached either, keeps the
	// keys of the gossip.
	Client  client.Client
	Direct  client.Client
	Secrets client.Client
	Clock   *sight.Clock
	// Authority is the one that the agents believe.
	Authority *certificate.Authority
	// Image is the agents'.
	Image string
}

const (
	// lookEvery is how often it is looked whether all is as it should be, and soon while it is not.
	lookEvery = 30 * time.Second
	soon      = 5 * time.Second
)

// Reconcile looks at the agents.
func (r *Reconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	seen, err := r.gather(ctx)
	if seen == nil || err != nil {
		return ctrl.Result{}, err
	}
	r.act(ctx, seen)
	settled, err := r.record(ctx, seen)
	switch {
	case apierrors.IsConflict(err):
		return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
	case err != nil:
		return ctrl.Result{}, err
	case !settled:
		return ctrl.Result{RequeueAfter: soon}, nil
	default:
		return ctrl.Result{RequeueAfter: lookEvery}, nil
	}
}
