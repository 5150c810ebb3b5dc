// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/plan"
)

// act marks what the admission policies protect, and has the pods probed. Each mark is set on its own; one that fails does not keep the others.
func (r *Reconciler) act(ctx context.Context, s *sighting) error {
	if s.app.DeletionTimestamp != nil {
		r.Recycles.Stop(key(&s.app), "the app is being deleted")
		err := r.letGo(ctx, s)
		if !s.gone {
			r.probe(s) // an app that is still held is still heard, also by a new leader
		}
		return err
	}
	if s.refused != nil && !controllerutil.ContainsFinalizer(&s.app, v1alpha1.FinalizerApp) {
		s.guarded.Pods, s.strangers = nil, nil // nothing is touched
		r.probe(s)
		return nil
	}
	if s.refused != nil {
		// An app that was accepted once stays under guard: what it guarded stays marked, and new pods on its claims are.
		r.Recycles.Stop(key(&s.app), "the app is not accepted")
		r.probe(s)
		return errors.Join(r.markPods(ctx, s), r.markNodes(ctx), r.markAttachments(ctx, s), r.markVolumes(ctx, s, true))
	}
	if controllerutil.AddFinalizer(&s.app, v1alpha1.FinalizerApp) {
		if err := r.Client.Update(ctx, &s.app); err != nil {
			return err
		}
	}
	err := errors.Join(r.nameClaims(ctx, s, true), r.markPods(ctx, s), r.markNodes(ctx), r.markAttachments(ctx, s), r.markVolumes(ctx, s, true))
	r.probe(s)
	return errors.Join(err, r.recycle(ctx, s))
}

// recycle begins and ends rounds of recycling. One that begins is in the journal before any agent is asked: who leads after us does not begin it again.
func (r *Reconciler) recycle(ctx context.Context, s *sighting) error {
	s.decided = plan.RecycleFor(s.crew)
	if s.decided.End != "" {
		r.Recycles.Stop(key(&s.app), s.decided.End)
	}
	if s.decided.Begin == "" {
		return nil
	}
	s.follow(r.Clock.Now())
	before := s.app.Status.Connections.Round
	round := &v1alpha1.RecycleRound{Number: 1, After: v1alpha1.RecycleAfter(s.decided.Begin), By: r.Self, BeganAt: metav1.Time{Time: r.Clock.Now()}}
	if before != nil {
		round.Number = before.Number + 1
	}
	for _, p := range s.decided.Newer {
		round.Pods = append(round.Pods, p.Name)
	}
	s.app.Status.Connections.Round = round
	if err := r.Client.Status().Update(ctx, &s.app); err != nil {
		return fmt.Errorf("write down that connections are recycled: %w", err)
	}
	asked := s.app.Spec.Connections.Recycle
	order := sight.Recycle{ID: s.round(), PerSecond: int(asked.PerSecond), Percent: int(asked.MaxPercent)}
	order.Servers, order.Except = s.servers(s.decided.Older)
	r.Recycles.Begin(key(&s.app), order)
	r.tell(s, reasonRecycling, s.decided.String())
	return nil
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
	for _, p := range s.all() {
		if p.Labels[v1alpha1.LabelApp] != s.app.Name {
			continue
		}
		base := p.DeepCopy()
		delete(p.Labels, v1alpha1.LabelApp)
		delete(p.Labels, v1alpha1.LabelTraffic)
		if err := r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	if err := r.markVolumes(ctx, s, false); err != nil {
		return err
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
	if err := r.Live.List(ctx, &pods, client.HasLabels{v1alpha1.LabelApp}); err != nil {
		return false, err
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Live.List(ctx, &incidents); err != nil {
		return false, err
	}
	on := map[string]bool{}
	mine := map[types.UID]bool{}
	for _, p := range s.all() {
		mine[p.UID] = true
	}
	for _, p := range pods.Items {
		if !mine[p.UID] && (p.Namespace != s.app.Namespace || p.Labels[v1alpha1.LabelApp] != s.app.Name) {
			continue
		}
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

// all returns the app's own pods and those of strangers on its volumes.
func (s *sighting) all() []*corev1.Pod {
	var out []*corev1.Pod
	for i := range s.guarded.Pods {
		out = append(out, &s.guarded.Pods[i])
	}
	return append(out, s.strangers...)
}

// nameClaims keeps the app's entries in the namespace's list of guarded claims, by which new pods get their label and their gate although every
// Holdfast process may be dead.
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
		claims = append(claims, s.guarded.Entries()...)
		claims = append(claims, s.closed(&ns)...)
	}
	// In one order, whoever writes: two apps that put themselves last would rewrite the Namespace for ever.
	slices.SortFunc(claims, func(a, b admission.Claim) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Place, b.Place))
	})
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

// closed are entries without a place for claims on which somebody is, or is about to be, who is not in the place: while they stand, the pod that has the
// place waits at the gate like everybody else.
func (s *sighting) closed(ns *corev1.Namespace) []admission.Claim {
	places := admission.FormatClaims(s.guarded.Entries())
	taken := map[string]bool{} // "namespace/claim", by whatever name
	for _, p := range s.all() {
		if guard.Finished(p) || guard.Gated(p) {
			continue
		}
		for _, claim := range guard.ClaimsOf(p) {
			if p.Namespace != ns.Name || !s.guarded.Claims[claim] || admission.Newcomer(places, p.Name, []string{claim}) {
				taken[p.Namespace+"/"+claim] = true
			}
		}
	}
	for _, a := range guard.ParseAdmissions(ns.Annotations[v1alpha1.AnnotationAdmitted]) {
		taken[ns.Name+"/"+a.Claim] = true
	}
	var out []admission.Claim
	for claim := range s.guarded.Claims {
		same := s.claims.Same(ns.Name + "/" + claim)
		if slices.ContainsFunc(same, func(name string) bool { return taken[name] }) {
			out = append(out, admission.Claim{App: s.app.Name, Name: claim})
		}
	}
	return out
}

// markPods labels every pod on the app's volumes, whoever owns it, as the policy does at creation where there is one. A pod that is under the guard of
// another app keeps that one's label.
func (r *Reconciler) markPods(ctx context.Context, s *sighting) error {
	var ns corev1.Namespace
	if err := r.Client.Get(ctx, types.NamespacedName{Name: s.app.Namespace}, &ns); err != nil {
		return err
	}
	var failed []error
	for _, p := range s.all() {
		base := p.DeepCopy()
		if claims := guard.ClaimsOf(p); p.Labels[v1alpha1.LabelApp] == "" && len(claims) > 0 {
			app := s.app.Name
			if p.Namespace == ns.Name {
				app = cmp.Or(admission.AppOf(ns.Annotations[v1alpha1.AnnotationClaims], claims), app)
			}
			metav1.SetMetaDataLabel(&p.ObjectMeta, v1alpha1.LabelApp, app)
		}
		s.markTraffic(p)
		if maps.Equal(base.Labels, p.Labels) {
			continue
		}
		if err := r.Client.Patch(ctx, p, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
			failed = append(failed, fmt.Errorf("label pod %s/%s: %w", p.Namespace, p.Name, err))
		}
	}
	return errors.Join(failed...)
}

// markTraffic marks a pod of the app whose endpoint the silence of its host must not take while no manager leads. In shadow and paused nothing of ours touches
// traffic. A pod of another app of the same name is left to that one.
func (s *sighting) markTraffic(p *corev1.Pod) {
	if p.Namespace != s.app.Namespace || p.Labels[v1alpha1.LabelApp] != s.app.Name {
		return
	}
	if m := s.app.Spec.Mode; s.app.Spec.OnKubeletFailure.Traffic != v1alpha1.TrafficFollow && (m == v1alpha1.ModeEnforce || m == "") {
		metav1.SetMetaDataLabel(&p.ObjectMeta, v1alpha1.LabelTraffic, v1alpha1.TrafficKeep)
	} else {
		delete(p.Labels, v1alpha1.LabelTraffic)
	}
}

// markNodes marks every Node that carries guarded pods of any app, and unmarks the others. A mark is put on by what the cache shows, and taken off only
// by what the API server shows: the cache may not know yet of a pod that has just come.
func (r *Reconciler) markNodes(ctx context.Context) error {
	r.nodes.Lock()
	defer r.nodes.Unlock()
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
		if _, marked := n.Labels[v1alpha1.LabelCarries]; marked != carries[n.Name] {
			failed = append(failed, r.markNode(ctx, n, carries[n.Name]))
		}
	}
	return errors.Join(failed...)
}

func (r *Reconciler) markNode(ctx context.Context, n *corev1.Node, carries bool) error {
	base := n.DeepCopy()
	metav1.SetMetaDataLabel(&n.ObjectMeta, v1alpha1.LabelCarries, "guarded")
	if !carries {
		var pods corev1.PodList
		if err := r.Live.List(ctx, &pods, client.HasLabels{v1alpha1.LabelApp}); err != nil {
			return err
		}
		if slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == n.Name }) {
			return nil
		}
		delete(n.Labels, v1alpha1.LabelCarries)
	}
	return client.IgnoreNotFound(r.Client.Patch(ctx, n, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})))
}

// volumes are the names of all PersistentVolumes that stand for one of the app's volumes.
func (s *sighting) volumes() map[string]bool {
	out := map[string]bool{}
	for claim := range s.guarded.Claims {
		for _, pv := range s.claims.PersistentVolumes(s.app.Namespace + "/" + claim) {
			out[pv] = true
		}
	}
	return out
}

// markAttachments marks those of every PersistentVolume that stands for one of the app's volumes.
func (r *Reconciler) markAttachments(ctx context.Context, s *sighting) error {
	volumes := s.volumes()
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
		metav1.SetMetaDataLabel(&a.ObjectMeta, v1alpha1.LabelGuardedVolume, s.app.Name)
		if err := r.Client.Patch(ctx, a, client.MergeFrom(base)); client.IgnoreNotFound(err) != nil {
			failed = append(failed, fmt.Errorf("mark attachment %s: %w", a.Name, err))
		}
	}
	return errors.Join(failed...)
}

// markVolumes marks every PersistentVolume that stands for one of the app's volumes, or takes the mark off as the app goes, and marks the drivers of all
// marked ones. Another app on the same volume marks it again.
func (r *Reconciler) markVolumes(ctx context.Context, s *sighting, guarded bool) error {
	ours := s.volumes()
	var volumes corev1.PersistentVolumeList
	if err := r.Client.List(ctx, &volumes); err != nil {
		return err
	}
	var failed []error
	used := map[string]bool{}
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		if ours[pv.Name] {
			failed = append(failed, r.markStorage(ctx, pv, guarded))
		}
		if pv.Spec.CSI != nil && pv.Labels[v1alpha1.LabelGuardedVolume] != "" {
			used[pv.Spec.CSI.Driver] = true
		}
	}
	var drivers storagev1.CSIDriverList
	if err := r.Client.List(ctx, &drivers); err != nil {
		return err
	}
	for i := range drivers.Items {
		failed = append(failed, r.markStorage(ctx, &drivers.Items[i], used[drivers.Items[i].Name]))
	}
	return errors.Join(failed...)
}

// markStorage marks a PersistentVolume or a CSIDriver, or takes the mark off.
func (r *Reconciler) markStorage(ctx context.Context, o client.Object, guarded bool) error {
	if (o.GetLabels()[v1alpha1.LabelGuardedVolume] != "") == guarded {
		return nil
	}
	base := o.DeepCopyObject().(client.Object)
	labels := maps.Clone(o.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	labels[v1alpha1.LabelGuardedVolume] = "guarded"
	if !guarded {
		delete(labels, v1alpha1.LabelGuardedVolume)
	}
	o.SetLabels(labels)
	if err := r.Client.Patch(ctx, o, client.MergeFrom(base)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("mark %s of guarded volumes: %w", o.GetName(), err)
	}
	return nil
}

// probe tells the board whom to ask.
func (r *Reconciler) probe(s *sighting) {
	var targets []sight.Target
	for i := range s.guarded.Pods {
		p := &s.guarded.Pods[i]
		if p.Status.PodIP == "" || p.Spec.NodeName == "" || guard.TerminalPhase(p) {
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
