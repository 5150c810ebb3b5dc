// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certificate gives the witness agents their certificates: it answers the CertificateSigningRequests of their signer, and keeps the authority.
package certificate

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// Reconciler answers one request.
type Reconciler struct {
	// Client reads requests and the GuardConfig; Signer, which is not cached, answers requests.
	Client    client.Client
	Signer    client.Client
	Clock     *sight.Clock
	Authority *Authority
	// Agent is the service account of the agents.
	Agent types.NamespacedName
}

// Authority keeps the agents' authority in a Secret.
type Authority struct {
	// Client, which is not cached, reads and makes the Secret.
	Client client.Client
	Clock  *sight.Clock
	// Secret holds the authority, as kubernetes.io/tls.
	Secret types.NamespacedName
}

// Reconcile answers one request, once. Where the GuardConfig asks for no agents, nothing is answered.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.gather(ctx, req.Name)
	if seen == nil || err != nil {
		return ctrl.Result{}, err
	}
	err = r.act(ctx, seen)
	if err == nil {
		err = r.record(ctx, seen)
	}
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	return ctrl.Result{}, err
}
