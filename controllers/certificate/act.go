// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of approvals and denials.
const (
	reasonOwnName = "OwnName"
	reasonRefused = "NotAnAgentsOwn"
)

// act approves a request, or denies it, and issues what was approved: also what somebody else approved, by the same rules.
func (r *Reconciler) act(ctx context.Context, s *seen) error {
	approved := has(s.request, certificatesv1.CertificateApproved)
	switch {
	case s.refused != "" && approved: // what is approved cannot be denied any more
		s.says(certificatesv1.CertificateFailed, reasonRefused, s.refused, r.Clock.Now())
		return nil
	case s.refused != "":
		s.says(certificatesv1.CertificateDenied, reasonRefused, s.refused, r.Clock.Now())
		return r.Signer.SubResource("approval").Update(ctx, s.request)
	case !approved:
		s.says(certificatesv1.CertificateApproved, reasonOwnName, "the agent on its own host, by its token", r.Clock.Now())
		if err := r.Signer.SubResource("approval").Update(ctx, s.request); err != nil {
			return err
		}
	}
	var err error
	s.request.Status.Certificate, err = s.authority.Issue(s.key, s.name, r.Clock.Now())
	return err
}

// says adds a condition to the request.
func (s *seen) says(what certificatesv1.RequestConditionType, reason, message string, at time.Time) {
	now := metav1.Time{Time: at}
	s.request.Status.Conditions = append(s.request.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: what, Status: corev1.ConditionTrue,
		Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now})
}
