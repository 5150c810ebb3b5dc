// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// act answers everybody who waits, writes down who is being let in, and lifts the gate of those for whom that has stood long enough.
//
// The Namespace is where two leaders meet: its list says who is let in on which claim, and is changed under its lock as it was read before the pods were
// listed. Whoever lists pods after that sees the list, or fails to write its own.
func (r *Reconciler) act(ctx context.Context, s *sighting) error {
	for _, w := range s.waiting {
		w.answer = s.newcomer(w).Answer(s.hosts)
		s.admit(w)
	}
	s.forget()
	if err := r.write(ctx, s); err != nil {
		return err
	}
	r.see(s)
	var failed []error
	for _, w := range s.waiting {
		if !w.answer.In {
			continue
		}
		if w.left = r.left(s, w); w.left > 0 {
			continue
		}
		failed = append(failed, r.lift(ctx, w))
	}
	return errors.Join(append(failed, r.free(ctx, s))...)
}

// free deletes those who were let in on a host that came into trouble before they were scheduled there. They have never run, others would wait for them as
// long as for the host, and their owner makes new ones, which wait like everybody else.
func (r *Reconciler) free(ctx context.Context, s *sighting) error {
	var failed []error
	for _, p := range s.pods {
		host := s.hosts.Of(p)
		if p.Spec.NodeName != "" || p.DeletionTimestamp != nil || s.hosts[host].Trouble == "" || !wasLetIn(p) || metav1.GetControllerOf(p) == nil || !s.waitedFor(p) {
			continue
		}
		unscheduled := &metav1.Preconditions{UID: &p.UID, ResourceVersion: &p.ResourceVersion}
		failed = append(failed, client.IgnoreNotFound(r.Client.Delete(ctx, p, &client.DeleteOptions{Preconditions: unscheduled})))
	}
	return errors.Join(failed...)
}

func (s *sighting) waitedFor(p *corev1.Pod) bool {
	return slices.ContainsFunc(s.waiting, func(w *waiting) bool {
		_, shares := s.shares(w, p)
		return shares && w.pod.UID != p.UID
	})
}

func wasLetIn(p *corev1.Pod) bool {
	return !guard.Gated(p) && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == v1alpha1.ConditionLetIn && c.Status == corev1.ConditionTrue
	})
}

// admit writes the newcomer into the list, or takes it out, for those who are decided on after it and for other leaders.
func (s *sighting) admit(w *waiting) {
	before := guard.ParseAdmissions(s.namespace.Annotations[v1alpha1.AnnotationAdmitted])
	list := slices.DeleteFunc(slices.Clone(before), func(a guard.Admission) bool { return a.Pod == w.pod.UID })
	if w.answer.In {
		for _, claim := range w.claims {
			entry := guard.Admission{Claim: claim, Pod: w.pod.UID}
			w.fresh = w.fresh || !slices.Contains(before, entry) || !s.isClosed(claim)
			list = append(list, entry)
			s.close(claim)
		}
	}
	s.annotate(v1alpha1.AnnotationAdmitted, guard.FormatAdmissions(list))
}

// close takes the place off a claim, by an entry without one.
func (s *sighting) close(claim string) {
	entries := admission.ParseClaims(s.namespace.Annotations[v1alpha1.AnnotationClaims])
	app := admission.AppOf(admission.FormatClaims(entries), []string{claim})
	if app == "" || s.isClosed(claim) {
		return
	}
	s.annotate(v1alpha1.AnnotationClaims, admission.FormatClaims(append(entries, admission.Claim{App: app, Name: claim})))
}

// isClosed reports whether a claim is listed without a place: then no pod at all starts on it without waiting.
func (s *sighting) isClosed(claim string) bool {
	return slices.ContainsFunc(admission.ParseClaims(s.namespace.Annotations[v1alpha1.AnnotationClaims]), func(e admission.Claim) bool {
		return e.Place == "" && e.Covers(claim)
	})
}

// forget takes out those who are not at the gate any more: the list of pods shows them without it, or not at all.
func (s *sighting) forget() {
	list := slices.DeleteFunc(guard.ParseAdmissions(s.namespace.Annotations[v1alpha1.AnnotationAdmitted]), func(a guard.Admission) bool {
		return !slices.ContainsFunc(s.waiting, func(w *waiting) bool { return w.pod.UID == a.Pod })
	})
	s.annotate(v1alpha1.AnnotationAdmitted, guard.FormatAdmissions(list))
}

func (s *sighting) annotate(key, value string) {
	if value == "" {
		delete(s.namespace.Annotations, key)
		return
	}
	metav1.SetMetaDataAnnotation(&s.namespace.ObjectMeta, key, value)
}

// write writes the Namespace, if its lists were changed, under the lock of the version that was read.
func (r *Reconciler) write(ctx context.Context, s *sighting) error {
	if s.before.Annotations[v1alpha1.AnnotationAdmitted] == s.namespace.Annotations[v1alpha1.AnnotationAdmitted] &&
		s.before.Annotations[v1alpha1.AnnotationClaims] == s.namespace.Annotations[v1alpha1.AnnotationClaims] {
		return nil
	}
	return r.Client.Patch(ctx, &s.namespace, client.MergeFromWithOptions(s.before, client.MergeFromWithOptimisticLock{}))
}

// see remembers since when it has been written down that a newcomer is let in, and its claims have been closed with it.
func (r *Reconciler) see(s *sighting) {
	if r.admitted == nil {
		r.admitted = map[types.NamespacedName]evidence.Instant{}
	}
	known := r.admitted
	r.admitted = map[types.NamespacedName]evidence.Instant{}
	for key, since := range known {
		if key.Namespace != s.namespace.Name {
			r.admitted[key] = since
		}
	}
	for _, w := range s.waiting {
		if !w.answer.In {
			continue
		}
		since, ok := known[w.key()]
		if !ok || w.fresh {
			since = r.Clock.Instant()
		}
		r.admitted[w.key()] = since
	}
}

// key is the pod's namespace and UID.
func (w *waiting) key() types.NamespacedName {
	return types.NamespacedName{Namespace: w.pod.Namespace, Name: string(w.pod.UID)}
}

// left is how long it still takes until every API server knows that nobody starts on these claims without waiting. Claims of a workload that never gives
// places were never without.
func (r *Reconciler) left(s *sighting, w *waiting) time.Duration {
	placed := func(claim string) bool {
		apps := s.guards.By(w.pod.Namespace + "/" + claim)
		return len(apps) == 0 || slices.ContainsFunc(apps, func(a *guard.App) bool { return a.Workload.Places() })
	}
	if !slices.ContainsFunc(w.claims, placed) {
		return 0
	}
	return max(0, settle-r.Clock.Instant().Sub(r.admitted[w.key()]))
}

// lift takes the gate off, and binds the newcomer to the host of those whom it joins.
func (r *Reconciler) lift(ctx context.Context, w *waiting) error {
	base := w.pod.DeepCopy()
	w.pod.Spec.SchedulingGates = slices.DeleteFunc(w.pod.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == v1alpha1.GateNewcomer })
	if w.answer.Host != "" {
		if w.pod.Spec.NodeSelector == nil {
			w.pod.Spec.NodeSelector = map[string]string{}
		}
		w.pod.Spec.NodeSelector[corev1.LabelHostname] = w.answer.Host
	}
	if err := r.Client.Patch(ctx, w.pod, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	w.in = true
	return nil
}
