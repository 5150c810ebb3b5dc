// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardconfig

import (
	"context"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/report"
)

// record writes the status once.
func (r *Reconciler) record(ctx context.Context, s *sighting) error {
	st := &s.config.Status
	now := metav1.Time{Time: r.Clock.Now()}
	st.ObservedGeneration, st.Leader, st.LastObserved = s.config.Generation, r.Self, &now
	c := metav1.Condition{Type: v1alpha1.ConditionPoliciesEffective, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonPoliciesEffective,
		ObservedGeneration: s.config.Generation, LastTransitionTime: now}
	switch {
	case s.proven:
		c.Message = "proven at " + st.PoliciesProvenAt.UTC().Format("2006-01-02T15:04:05Z")
	case s.err != nil:
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonPoliciesMissing, s.err.Error()
	case !s.proof.Holds():
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v1alpha1.ReasonPoliciesNotProven, strings.Join(s.proof.Open(), "; ")
	default:
		st.PolicyVersion, st.PoliciesProvenAt = s.installed.Version.String(), &now
		c.Message = fmt.Sprintf("a canary was refused everything by %d API server(s)", len(s.proof.Servers))
	}
	if len(c.Message) > 4000 {
		c.Message = strings.ToValidUTF8(c.Message[:4000], "") // not in the middle of a character
	}
	report.Set(&st.Conditions, c)
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: c.Status, Reason: c.Reason, Message: c.Message, ObservedGeneration: s.config.Generation, LastTransitionTime: now}
	if s.config.Annotations[annotationMadeAnew] != "" && s.config.Generation == 1 {
		ready.Status, ready.Reason = metav1.ConditionFalse, v1alpha1.ReasonBudgetUnknown
		ready.Message = "it was deleted, and nobody knows what it said: nothing is switched off until spec.fenceBudget is set"
	}
	report.Set(&st.Conditions, ready)
	return r.Direct.Status().Update(ctx, &s.config)
}
