// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
)

// record puts the certificate, or that there will be none, where the agent waits for it. A denial stands already.
func (r *Reconciler) record(ctx context.Context, s *seen) error {
	if !answered(s.request) || has(s.request, certificatesv1.CertificateDenied) {
		return nil
	}
	return r.Signer.Status().Update(ctx, s.request)
}
