// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// SetupWithManager registers the controller. Requests that were made before there were to be agents are looked at again when that changes.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	ours := predicate.NewPredicateFuncs(func(o client.Object) bool {
		csr, ok := o.(*certificatesv1.CertificateSigningRequest)
		return ok && csr.Spec.SignerName == wire.Signer && !answered(csr)
	})
	open := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		var list certificatesv1.CertificateSigningRequestList
		if err := r.Client.List(ctx, &list); err != nil {
			return nil // they are looked at as they come, or when agents ask again
		}
		var out []reconcile.Request
		for i := range list.Items {
			if ours.Generic(event.GenericEvent{Object: &list.Items[i]}) {
				out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		return out
	})
	return ctrl.NewControllerManagedBy(mgr).Named("certificate").
		For(&certificatesv1.CertificateSigningRequest{}, builder.WithPredicates(ours)).
		Watches(&v1alpha1.GuardConfig{}, open, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(r)
}
