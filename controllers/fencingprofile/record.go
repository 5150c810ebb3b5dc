// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencingprofile

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/report"
)

// record writes the status once.
func (r *Reconciler) record(ctx context.Context, s *sighting) error {
	st := &s.profile.Status
	st.ObservedGeneration = s.profile.Generation
	st.Readiness = s.readiness
	st.Hosts, st.Unready = int32(len(s.readiness)), int32(s.unready()) //nolint:gosec // at most 5000 hosts
	st.Ready = st.Hosts - st.Unready
	now := metav1.Time{Time: r.Clock.Now()}
	set := func(kind string, yes bool, reasons [2]string, message string) {
		c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reasons[1], Message: message, ObservedGeneration: s.profile.Generation, LastTransitionTime: now}
		if yes {
			c.Status, c.Reason = metav1.ConditionTrue, reasons[0]
		}
		report.Set(&st.Conditions, c)
	}
	message := fmt.Sprintf("%d of %d hosts can be fenced", st.Ready, st.Hosts)
	for _, h := range s.readiness {
		if h.Ready != "True" {
			message += fmt.Sprintf("; %s: %s", h.NodeName, h.Message)
			break
		}
	}
	well := st.Hosts > 0 && st.Unready == 0
	set(v1alpha1.ConditionFencingReady, well, [2]string{v1alpha1.ReasonHostsReady, v1alpha1.ReasonHostsUnready}, message)
	set(v1alpha1.ConditionConflicted, len(s.rivals) > 0, [2]string{v1alpha1.ReasonOverlap, v1alpha1.ReasonNoneNeeded}, s.conflict())
	set(v1alpha1.ConditionReady, well, [2]string{v1alpha1.ReasonAllWell, v1alpha1.ReasonNotAllWell}, message)
	return r.Client.Status().Update(ctx, &s.profile)
}
