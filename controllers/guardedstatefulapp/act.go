// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
)

// act marks what the admission policies protect, and has the pods probed. Each mark is set on its own; one that fails does not keep the others.
func (r *Reconciler) act(ctx context.Context, s *sighting) error {
	if s.app.DeletionTimestamp != nil {
		err := r.letGo(ctx, s)
		if !s.gone {
			r.probe(s) // an app that is still held is still heard, also by a new leader
		}
		return err
	}
	if s.refused != nil {
		// Nothing is touched and what was marked before stays marked; the pods of an app that was accepted once are still heard.
		if !controllerutil.ContainsFinalizer(&s.app, v1alpha1.FinalizerApp) {
			s.guarded.Pods = nil
		}
		r.probe(s)
		return nil
	}
	if controllerutil.AddFinalizer(&s.app, v1alpha1.FinalizerApp) {
		if err := r.Client.Update(ctx, &s.app); err != nil {
			return err
		}
	}
	failed := []error{r.nameClaims(ctx, s, true)}
	for i := range s.guarded.Pods {
		failed = append(failed, r.markPod(ctx, s, &s.guarded.Pods[i]))
	}
	failed = append(failed, r.markNodes(ctx), r.markAttachments(ctx, s))
	r.probe(s)
	return errors.Join(failed...)
}

// letGo ends the guard of a deleted app, once nothing of it is held.
func (r *Reconciler) letGo(ctx context.Context, s *sighting) error {
	if !controllerutil.ContainsFinalizer(&s.app, v1alpha1.FinalizerApp) {
		s.gone = true
		return nil
	}
	if concerned, err := r.concerned(ctx, s); concerned || err != nil {
		return err // the hold stands, or its host is being dealt with: the guard ends with the incident
	}
	if err := r.nameClaims(ctx, s, false); err != nil {
		return err
	}
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		base := p.DeepCopy()
		delete(p.Labels, v1alpha1.LabelApp)
		if err := r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	r.Board.Set(key(&s.app), nil)
	base := s.app.DeepCopy()
	controllerutil.RemoveFinalizer(&s.app, v1alpha1.FinalizerApp)
	s.gone = true
	return errors.Join(client.IgnoreNotFound(r.Client.Patch(ctx, &s.app, client.MergeFrom(base))), r.markNodes(ctx))
}

// concerned reports whether a pod of the app is held or on the host of an open incident, by live reads: a cache may not show yet what has just
// been armed.
func (r *Reconciler) concerned(ctx context.Context, s *sighting) (bool, error) {
	var pods corev1.PodList
	if err := r.Live.List(ctx, &pods, client.InNamespace(s.app.Namespace), client.MatchingLabels{v1alpha1.LabelApp: s.app.Name}); err != nil {
		return false, err
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Live.List(ctx, &incidents); err != nil {
		return false, err
	}
	on := map[string]bool{}
	for _, p := range pods.Items {
		if p.Labels[v1alpha1.LabelHold] != "" {
			return true, nil
		}
		on[p.Spec.NodeName] = true
	}
	for i := range incidents.Items {
		h := &incidents.Items[i]
		if h.Status.Step.Over() {
			continue
		}
		if on[h.Spec.NodeName] {
			return true, nil
		}
		for _, p := range h.Status.Pods {
			if p.Namespace == s.app.Namespace && p.App == s.app.Name && p.ReleasedAt == nil {
				return true, nil
			}
		}
	}
	return false, nil
}

// nameClaims keeps the app's entries in the namespace's list of guarded claims, by which new pods get their label although every Holdfast process
// may be dead.
func (r *Reconciler) nameClaims(ctx context.Context, s *sighting, guarded bool) error {
	var ns corev1.Namespace
	if err := r.Client.Get(ctx, types.NamespacedName{Name: s.app.Namespace}, &ns); err != nil {
		return err
	}
	var claims []admission.Claim
	for _, c := range admission.ParseClaims(ns.Annotations[v1alpha1.AnnotationClaims]) {
		if c.App != s.app.Name {
			claims = append(claims, c)
		}
	}
	if guarded {
		for _, t := range s.workload.Spec.VolumeClaimTemplates {
			claims = append(claims, admission.Claim{App: s.app.Name, Name: admission.OrdinalClaims(t.Name, s.workload.Name),
				Place: admission.OrdinalPods(s.workload.Name)})
		}
		for _, v := range s.workload.Spec.Template.Spec.Volumes {
			if v.PersistentVolumeClaim != nil {
				claims = append(claims, admission.Claim{App: s.app.Name, Name: v.PersistentVolumeClaim.ClaimName, Place: firstPod(s.workload)})
			}
		}
	}
	// In one order, whoever writes: two apps that put themselves last would rewrite the Namespace for ever.
	slices.SortFunc(claims, func(a, b admission.Claim) int { return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Name, b.Name)) })
	claims = slices.Compact(claims)
	want := admission.FormatClaims(claims)
	if want == ns.Annotations[v1alpha1.AnnotationClaims] {
		return nil
	}
	base := ns.DeepCopy()
	if ns.Annotations == nil {
		ns.Annotations = map[string]string{}
	}
	ns.Annotations[v1alpha1.AnnotationClaims] = want
	if want == "" {
		delete(ns.Annotations, v1alpha1.AnnotationClaims)
	}
	return r.Client.Patch(ctx, &ns, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
}

// firstPod is the pod of the StatefulSet that has its place on a claim which all its pods name.
func firstPod(sts *appsv1.StatefulSet) string {
	start := int32(0)
	if sts.Spec.Ordinals != nil {
		start = sts.Spec.Ordinals.Start
	}
	return fmt.Sprintf("%s-%d", sts.Name, start)
}

func (r *Reconciler) markPod(ctx context.Context, s *sighting, p *corev1.Pod) error {
	if p.Labels[v1alpha1.LabelApp] == s.app.Name || len(guard.ClaimsOf(p)) == 0 {
		return nil
	}
	base := p.DeepCopy()
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[v1alpha1.LabelApp] = s.app.Name
	return client.IgnoreNotFound(r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})))
}

// markNodes marks every Node that carries guarded pods of any app, and unmarks the others.
func (r *Reconciler) markNodes(ctx context.Context) error {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.HasLabels{v1alpha1.LabelApp}); err != nil {
		return err
	}
	carries := map[string]bool{}
	for _, p := range pods.Items {
		if p.Spec.NodeName != "" {
			carries[p.Spec.NodeName] = true
		}
	}
	var nodes corev1.NodeList
	if err := r.Client.List(ctx, &nodes); err != nil {
		return err
	}
	var failed []error
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if _, marked := n.Labels[v1alpha1.LabelCarries]; marked == carries[n.Name] {
			continue
		}
		base := n.DeepCopy()
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[v1alpha1.LabelCarries] = "guarded"
		if !carries[n.Name] {
			delete(n.Labels, v1alpha1.LabelCarries)
		}
		failed = append(failed, client.IgnoreNotFound(r.Client.Patch(ctx, n, client.MergeFrom(base))))
	}
	return errors.Join(failed...)
}

func (r *Reconciler) markAttachments(ctx context.Context, s *sighting) error {
	volumes := map[string]bool{}
	for claim := range s.guarded.Claims {
		if pv, err := guard.VolumeOf(ctx, r.Client, s.app.Namespace, claim); err == nil {
			volumes[pv.Name] = true
		}
	}
	var list storagev1.VolumeAttachmentList
	if err := r.Client.List(ctx, &list); err != nil {
		return err
	}
	var failed []error
	for i := range list.Items {
		a := &list.Items[i]
		if a.Spec.Source.PersistentVolumeName == nil || !volumes[*a.Spec.Source.PersistentVolumeName] || a.Labels[v1alpha1.LabelGuardedVolume] != "" {
			continue
		}
		base := a.DeepCopy()
		if a.Labels == nil {
			a.Labels = map[string]string{}
		}
		a.Labels[v1alpha1.LabelGuardedVolume] = s.app.Name
		if err := r.Client.Patch(ctx, a, client.MergeFrom(base)); client.IgnoreNotFound(err) != nil {
			failed = append(failed, fmt.Errorf("mark attachment %s: %w", a.Name, err))
		}
	}
	return errors.Join(failed...)
}

// probe tells the board whom to ask.
func (r *Reconciler) probe(s *sighting) {
	var targets []sight.Target
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		if p.Status.PodIP == "" || p.Spec.NodeName == "" || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		targets = append(targets, sight.Target{App: key(&s.app), Pod: p.Namespace + "/" + p.Name, UID: string(p.UID), Host: p.Spec.NodeName,
			IP: p.Status.PodIP, Ports: ports(p.Spec), Health: s.app.Spec.Health, Uptime: r.uptime(p)})
	}
	r.Board.Set(key(&s.app), targets)
}

// uptime is how long the youngest container has been running, by the wall clock; it only shortens the grace for starting.
func (r *Reconciler) uptime(p *corev1.Pod) time.Duration {
	up := time.Duration(-1)
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil {
			return 0
		}
		if d := r.Clock.Since(c.State.Running.StartedAt.Time); up < 0 || d < up {
			up = d
		}
	}
	return max(0, up)
}
