// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/report"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// statusEvery bounds how often an unchanged status is written again, only to show that somebody still looks.
const statusEvery = 50 * time.Second

// record writes the status once, if anything changed.
func (r *Reconciler) record(ctx context.Context, s *sighting, acted error) error {
	before := s.app.Status.DeepCopy()
	st := &s.app.Status
	st.ObservedGeneration, st.ObservedBy = s.app.Generation, r.Self
	st.Workload = "pods"
	if ref := s.app.Spec.WorkloadRef; ref != nil {
		st.Workload = strings.ToLower(ref.Kind) + "/" + ref.Name
	}
	r.members(s)
	s.follow(r.Clock.Now())
	r.progress(s)
	r.worst(s)
	r.conditions(ctx, s, acted)
	if reflect.DeepEqual(before, st) && st.LastObserved != nil && r.Clock.Since(st.LastObserved.Time) < statusEvery {
		return nil
	}
	st.LastObserved = &metav1.Time{Time: r.Clock.Now()}
	if err := r.Client.Status().Update(ctx, &s.app); err != nil {
		return err
	}
	if j := st.Connections; s.decided.End != "" && j != nil && j.Round != nil {
		r.tell(s, reasonRecycled, fmt.Sprintf("%d of %d connections were ended: %s", j.Round.Ended, j.Round.Found, s.decided.End))
	}
	return nil
}

// members tells each pod's own state. A process that has not asked an application yet has nothing to say against what was found before it.
func (r *Reconciler) members(s *sighting) {
	failed := map[string]bool{}
	for _, m := range s.app.Status.Members {
		failed[m.PodUID] = m.Verdict == verdict.AppDown.String()
	}
	var members []v1alpha1.Member
	answering := 0
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		if guard.Finished(p) && p.Labels[v1alpha1.LabelHold] == "" {
			continue // a Deployment leaves them about
		}
		m := v1alpha1.Member{Pod: p.Name, PodUID: string(p.UID), Host: p.Spec.NodeName, Healthy: "Unknown", Held: p.Labels[v1alpha1.LabelHold],
			Claims: guard.ClaimsOf(p), Verdict: verdict.Healthy.String()}
		if a, ok := r.Board.App(string(p.UID)); ok {
			m.Healthy = a.Serving.String()
			if a.Serving == evidence.ServingYes {
				answering++
			}
			if a.Serving == evidence.ServingNo || a.Serving == evidence.ServingUnread && failed[m.PodUID] { // of a host without an incident: nothing else is wrong there
				m.Verdict = verdict.AppDown.String()
			}
		}
		if h := s.incidents[p.Spec.NodeName]; h != nil && h.Status.Verdict != "" {
			m.Verdict = h.Status.Verdict
		}
		members = append(members, m)
	}
	sort.Slice(members, func(i, j int) bool { return members[i].Pod < members[j].Pod })
	s.app.Status.Members = members
	want := len(members)
	if s.guarded.Workload != nil {
		want = max(want, s.guarded.Workload.Replicas)
	}
	s.app.Status.Healthy = fmt.Sprintf("%d/%d", answering, want)
}

// worst finds the incident that concerns the app and needs most attention: one that holds a pod, or else one that moves one.
func (r *Reconciler) worst(s *sighting) {
	st := &s.app.Status
	st.Verdict, st.Host, st.Incident, st.Proof, st.Evidence = verdict.Healthy.String(), "", "", "", nil
	if h := s.concerning(); h != nil {
		st.Verdict, st.Host, st.Since, st.Incident = h.Status.Verdict, h.Spec.NodeName, h.Status.Since, h.Name
		st.Proof, st.Evidence = h.Status.ProofSummary, h.Status.Evidence
		if len(h.Status.Findings) > 0 {
			st.Reason = h.Status.Findings[0].Rule
		}
		return
	}
	st.Since, st.Reason = nil, ""
	for i, m := range st.Members {
		if i == 0 || m.Verdict == verdict.AppDown.String() {
			st.Verdict, st.Host = m.Verdict, m.Host
		}
	}
}

func (s *sighting) concerning() *v1alpha1.HostIncident {
	for _, p := range s.all() {
		if h := s.incidents[p.Spec.NodeName]; h != nil {
			return h
		}
	}
	var hosts []string
	for node := range s.incidents {
		hosts = append(hosts, node)
	}
	sort.Strings(hosts)
	for _, node := range hosts {
		h := s.incidents[node]
		for _, p := range h.Status.Pods {
			if p.Namespace == s.app.Namespace && p.App == s.app.Name && h.Status.Step != v1alpha1.StepResolved {
				return h
			}
		}
	}
	return nil
}

func (r *Reconciler) conditions(ctx context.Context, s *sighting, acted error) {
	now := metav1.Time{Time: r.Clock.Now()}
	set := func(kind string, status metav1.ConditionStatus, reason, message string) {
		report.Set(&s.app.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message,
			ObservedGeneration: s.app.Generation, LastTransitionTime: now})
	}
	r.accepted(s, acted, set)
	r.protected(s, set)
	r.healthy(s, set)
	r.fencing(ctx, s, set)
	r.held(s, set)
	if len(s.findings) == 0 {
		set(v1alpha1.ConditionPostureClean, metav1.ConditionTrue, v1alpha1.ReasonNoFindings, "nothing found")
	} else {
		set(v1alpha1.ConditionPostureClean, metav1.ConditionFalse, v1alpha1.ReasonFindings, strings.Join(s.findings, "; "))
	}
	set(v1alpha1.ConditionConflicted, is(s.refused != nil && s.refused.reason == v1alpha1.ReasonWorkloadTaken), conflictReason(s), "")
	var missing []string
	for _, c := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionProtected, v1alpha1.ConditionApplicationHealthy, v1alpha1.ConditionFencingReady} {
		if !meta.IsStatusConditionTrue(s.app.Status.Conditions, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) == 0 && s.concerning() == nil {
		set(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonAllWell, "accepted, protected, healthy, and its hosts can be fenced")
		return
	}
	message := "an incident is open"
	if len(missing) > 0 {
		message = "not yet: " + strings.Join(missing, ", ")
	}
	set(v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotAllWell, message)
}

// Reasons of events about recycling.
const (
	reasonRecycling = "RecyclingConnections"
	reasonRecycled  = "RecycledConnections"
)

func (r *Reconciler) tell(s *sighting, reason, words string) {
	if r.Events != nil {
		r.Events.Eventf(&s.app, nil, corev1.EventTypeNormal, reason, reason, "%s", words)
	}
}

// follow brings the journal of recycling to what was decided.
func (s *sighting) follow(now time.Time) {
	st, decided := &s.app.Status, s.decided
	if note := decided.Note; note != nil && !note.Kept {
		st.Connections = nil
		return
	}
	if note := decided.Note; note != nil {
		if st.Connections == nil {
			st.Connections = &v1alpha1.ConnectionsStatus{}
		}
		st.Connections.Known, st.Connections.Size, st.Connections.Away = note.Known, int32(note.Size), note.Away
	}
	if st.Connections == nil {
		return
	}
	st.Connections.Waits = decided.Waits
	if round := st.Connections.Round; decided.End != "" && round != nil {
		round.EndedAt, round.Because = &metav1.Time{Time: now}, decided.End
	}
}

// progress says how far the last round is, if this process began it.
func (r *Reconciler) progress(s *sighting) {
	j := s.app.Status.Connections
	if j == nil || j.Round == nil {
		return
	}
	if now, known := r.Recycles.Of(key(&s.app), s.round()); known {
		j.Round.Hosts, j.Round.Found, j.Round.Limit, j.Round.Ended = int32(now.Hosts), int32(now.Found), int32(now.Limit), int32(now.Begun)
	}
}

// again is when to look at the app again.
func (s *sighting) again() time.Duration {
	if j := s.app.Status.Connections; j != nil && (j.Waits != "" || j.Round != nil && j.Round.EndedAt == nil) {
		return roundEvery
	}
	return lookEvery
}

type setter func(kind string, status metav1.ConditionStatus, reason, message string)

func is(yes bool) metav1.ConditionStatus {
	if yes {
		return metav1.ConditionTrue
	}
	return metav1.ConditionFalse
}

func conflictReason(s *sighting) string {
	if s.refused != nil && s.refused.reason == v1alpha1.ReasonWorkloadTaken {
		return v1alpha1.ReasonWorkloadTaken
	}
	return v1alpha1.ReasonNoneNeeded
}

func (r *Reconciler) accepted(s *sighting, acted error, set setter) {
	if s.refused != nil {
		set(v1alpha1.ConditionAccepted, metav1.ConditionFalse, s.refused.reason, s.refused.message)
	} else {
		set(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted, "the workload can be guarded")
	}
	set(v1alpha1.ConditionStalled, is(s.refused != nil), map[bool]string{true: v1alpha1.ReasonPreflightFailed, false: v1alpha1.ReasonNoneNeeded}[s.refused != nil], "")
	message := ""
	if acted != nil {
		message = acted.Error()
	}
	set(v1alpha1.ConditionReconciling, is(acted != nil), map[bool]string{true: v1alpha1.ReasonPending, false: v1alpha1.ReasonNoneNeeded}[acted != nil], message)
}

// protected is True only when the policies were proven and every pod carries the label that they go by.
func (r *Reconciler) protected(s *sighting, set setter) {
	var bare []string
	for _, p := range s.all() {
		if p.Labels[v1alpha1.LabelApp] == "" && len(guard.ClaimsOf(p)) > 0 && !guard.Finished(p) {
			bare = append(bare, p.Name)
		}
	}
	effective := meta.FindStatusCondition(s.config.Status.Conditions, v1alpha1.ConditionPoliciesEffective)
	switch {
	case s.refused != nil:
		set(v1alpha1.ConditionProtected, metav1.ConditionFalse, s.refused.reason, "not accepted")
	case effective == nil:
		set(v1alpha1.ConditionProtected, metav1.ConditionUnknown, v1alpha1.ReasonPoliciesNotProven, "the admission policies have not been tried yet")
	case effective.Status != metav1.ConditionTrue:
		set(v1alpha1.ConditionProtected, metav1.ConditionFalse, v1alpha1.ReasonPoliciesNotProven, effective.Message)
	case len(s.open) > 0:
		set(v1alpha1.ConditionProtected, metav1.ConditionFalse, v1alpha1.ReasonPartiallyProtected, strings.Join(s.open, "; "))
	case len(bare) > 0:
		set(v1alpha1.ConditionProtected, metav1.ConditionFalse, v1alpha1.ReasonPodsUnlabelled, "not labelled yet: "+strings.Join(bare, ", "))
	default:
		set(v1alpha1.ConditionProtected, metav1.ConditionTrue, v1alpha1.ReasonPoliciesEffective, "a canary was refused everything that could move a held writer")
	}
}

func (r *Reconciler) healthy(s *sighting, set setter) {
	yes, no, unknown := 0, 0, 0
	for _, m := range s.app.Status.Members {
		switch m.Healthy {
		case "True":
			yes++
		case "False":
			no++
		default:
			unknown++
		}
	}
	switch {
	case no > 0:
		set(v1alpha1.ConditionApplicationHealthy, metav1.ConditionFalse, v1alpha1.ReasonProbesFail, s.app.Status.Healthy+" answer their own probes")
	case unknown > 0 || yes == 0:
		set(v1alpha1.ConditionApplicationHealthy, metav1.ConditionUnknown, v1alpha1.ReasonNotProbed, s.app.Status.Healthy+" answer their own probes; the others have not been heard yet")
	default:
		set(v1alpha1.ConditionApplicationHealthy, metav1.ConditionTrue, v1alpha1.ReasonProbesPass, s.app.Status.Healthy+" answer their own probes")
	}
}

// fencing looks up whether the hosts of the app could be fenced now.
func (r *Reconciler) fencing(ctx context.Context, s *sighting, set setter) {
	reason, message := v1alpha1.ReasonHostsReady, "every host of the app can be fenced"
	seen := map[string]bool{}
	for _, p := range s.all() {
		name := p.Spec.NodeName
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if why, words := r.unready(ctx, name); why != "" {
			reason, message = why, name+": "+words
		}
	}
	if len(seen) == 0 {
		set(v1alpha1.ConditionFencingReady, metav1.ConditionUnknown, v1alpha1.ReasonPending, "the app is on no host yet")
		return
	}
	set(v1alpha1.ConditionFencingReady, is(reason == v1alpha1.ReasonHostsReady), reason, message)
}

func (r *Reconciler) unready(ctx context.Context, name string) (reason, words string) {
	var node corev1.Node
	if err := r.Client.Get(ctx, types.NamespacedName{Name: name}, &node); err != nil {
		return v1alpha1.ReasonNodeMissing, err.Error()
	}
	profile, err := r.Devices.Profile(ctx, r.Client, &node)
	switch {
	case errors.Is(err, guard.ErrConflicted):
		return v1alpha1.ReasonProfileConflicted, err.Error()
	case err != nil:
		return v1alpha1.ReasonNoProfile, err.Error() + ": add a FencingProfile that selects it"
	}
	for _, h := range profile.Status.Readiness {
		if h.NodeName != name {
			continue
		}
		if h.Ready == "True" {
			return "", ""
		}
		return h.Reason, h.Message
	}
	return v1alpha1.ReasonPending, "its device has not been read yet"
}

func (r *Reconciler) held(s *sighting, set setter) {
	var held []string
	for _, p := range s.all() {
		if p.Labels[v1alpha1.LabelHold] != "" {
			held = append(held, p.Name)
		}
	}
	sort.Strings(held)
	h := s.concerning()
	if len(held) == 0 {
		set(v1alpha1.ConditionHeld, metav1.ConditionFalse, v1alpha1.ReasonNothingHeld, "nothing is held")
	} else {
		reason, message := v1alpha1.ReasonPending, strings.Join(held, ", ")+" held"
		if h != nil && h.Status.Verdict != "" {
			reason = h.Status.Verdict
			message = fmt.Sprintf("%s held on %s by incident %s: %s", strings.Join(held, ", "), h.Spec.NodeName, h.Name, because(h))
		}
		set(v1alpha1.ConditionHeld, metav1.ConditionTrue, reason, message)
	}
	approval, budget := false, false
	if h != nil {
		if c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionBlocked); c != nil {
			approval = c.Reason == v1alpha1.ReasonAwaitingApproval
			budget = c.Reason == v1alpha1.ReasonBudgetSpent
		}
	}
	set(v1alpha1.ConditionApprovalRequired, is(approval), map[bool]string{true: v1alpha1.ReasonAwaitingApproval, false: v1alpha1.ReasonNoneNeeded}[approval], askedFor(h, approval, "onHostLoss.approval"))
	set(v1alpha1.ConditionBudgetExhausted, is(budget), map[bool]string{true: v1alpha1.ReasonBudgetSpent, false: v1alpha1.ReasonWithinBudget}[budget], "")
}

// askedFor names the apps on the host that asked for a setting: it may be another app that this one waits for.
func askedFor(h *v1alpha1.HostIncident, yes bool, setting string) string {
	if !yes {
		return ""
	}
	for _, d := range h.Status.Settings {
		if d.Setting == setting {
			return fmt.Sprintf("%s is %s for %s: %s asked for it", setting, d.Value, h.Spec.NodeName, strings.Join(d.By, ", "))
		}
	}
	return ""
}

func because(h *v1alpha1.HostIncident) string {
	if len(h.Status.Findings) == 0 {
		return h.Status.Verdict
	}
	return h.Status.Findings[0].Because
}
