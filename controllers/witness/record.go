// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"context"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/engine/report"
)

// record says in the GuardConfig's status how it stands with the agents, where that has changed, and reports whether nothing is left to wait for.
func (r *Reconciler) record(ctx context.Context, s *sighting) (settled bool, err error) {
	c := metav1.Condition{Type: v1alpha1.ConditionWitnessesReady, Status: metav1.ConditionFalse, ObservedGeneration: s.config.Generation,
		LastTransitionTime: metav1.Time{Time: r.Clock.Now()}}
	c.Reason, c.Message = s.state()
	if c.Reason == v1alpha1.ReasonWitnessesReady {
		c.Status = metav1.ConditionTrue
	}
	settled = c.Reason == v1alpha1.ReasonWitnessesReady || c.Reason == v1alpha1.ReasonWitnessesDisabled
	if len(c.Message) > 4000 {
		c.Message = strings.ToValidUTF8(c.Message[:4000], "") // not in the middle of a character
	}
	old := meta.FindStatusCondition(s.config.Status.Conditions, c.Type)
	if old != nil && old.Reason == c.Reason && old.Message == c.Message && old.ObservedGeneration == c.ObservedGeneration {
		return settled, nil
	}
	if s.err != nil {
		logf.FromContext(ctx).Error(s.err, "The agents are not as they should be; trying again")
	}
	report.Set(&s.config.Status.Conditions, c)
	return settled, r.Direct.Status().Update(ctx, &s.config)
}

// state puts what was seen into a reason and words.
func (s *sighting) state() (reason, message string) {
	defer func() {
		if s.turning != "" && message != "" {
			message += "; " + s.turning
		}
	}()
	switch enabled := s.config.Spec.Witness.Enabled; {
	case s.err != nil:
		return v1alpha1.ReasonWitnessesFailing, s.err.Error()
	case !enabled && s.agents == nil:
		return v1alpha1.ReasonWitnessesDisabled, "spec.witness.enabled is false: no agents run"
	case !s.place:
		return v1alpha1.ReasonNamespaceMissing, fmt.Sprintf("there is no namespace %s, and the manager may make none: "+
			"apply config/witness of this version (kubectl apply --server-side -k config/witness)", manifest.Namespace)
	case s.agents == nil:
		return v1alpha1.ReasonRollingOut, "the agents are on their way"
	case !enabled:
		return v1alpha1.ReasonRollingOut, "spec.witness.enabled is false, and the agents stay until none may hold its host by a watchdog: " + byHand(s.agents)
	}
	st := s.agents.Status
	all := st.DesiredNumberScheduled
	switch {
	case st.ObservedGeneration < s.agents.Generation || all == 0:
		return v1alpha1.ReasonRollingOut, "the agents are on their way"
	case st.UpdatedNumberScheduled < all && manifest.MayHold(s.agents):
		return v1alpha1.ReasonRollingOut, byHand(s.agents)
	case st.UpdatedNumberScheduled < all:
		return v1alpha1.ReasonRollingOut, fmt.Sprintf("%d of %d hosts have an agent of the present settings; if it stays so: kubectl describe daemonset -n %s",
			st.UpdatedNumberScheduled, all, manifest.Namespace)
	case st.NumberReady < all:
		return v1alpha1.ReasonWitnessesUnready, fmt.Sprintf("%d of %d agents are ready: kubectl get pods -n %s -o wide", st.NumberReady, all, manifest.Namespace)
	default:
		return v1alpha1.ReasonWitnessesReady, fmt.Sprintf("%d agents are ready", all)
	}
}

// byHand says what to do where nobody but a human replaces an agent.
func byHand(agents *appsv1.DaemonSet) string {
	return fmt.Sprintf("%d of %d hosts have an agent of the present settings. No other is replaced or ended but by you, since one that holds a watchdog may have its host reset: move pods with volumes off a host, "+
		"then delete its agent's pod (kubectl get pods -n %s -o wide), one host after the other", agents.Status.UpdatedNumberScheduled, agents.Status.DesiredNumberScheduled, manifest.Namespace)
}
