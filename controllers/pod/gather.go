// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// sighting is everything known about one namespace at one moment. All but the apps was read from the API server in this round.
type sighting struct {
	namespace corev1.Namespace
	before    *corev1.Namespace // as it was read
	pods      []*corev1.Pod     // of all namespaces: volumes are shared across them
	claims    *guard.Claims
	apps      []guard.App
	guards    guard.Guards
	hosts     guard.Hosts
	// waiting are those at the gate, in the order in which they are decided on, with what was answered.
	waiting []*waiting
}

// waiting is one pod at the gate.
type waiting struct {
	pod *corev1.Pod
	// claims of it that are guarded, and not for many hosts.
	claims []string
	own    bool
	app    *guard.App // nil if none guards it any more
	answer guard.Answer
	// fresh is true if it was written down in this round that it is let in, left is how long that has to stand, and in is true once its gate is lifted.
	fresh bool
	left  time.Duration
	in    bool
}

// idle reports, by the cache, whether nobody waits in the namespace and nobody is being let in.
func (r *Reconciler) idle(ctx context.Context, namespace string) (bool, error) {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return false, err
	}
	if slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return guard.Gated(&p) }) {
		return false, nil
	}
	var ns corev1.Namespace
	err := r.Client.Get(ctx, types.NamespacedName{Name: namespace}, &ns)
	return ns.Annotations[v1alpha1.AnnotationAdmitted] == "", client.IgnoreNotFound(err)
}

// gather reads the Namespace first: what is decided by the pods that are listed after it is written down under its lock. It returns nil if there is none.
func (r *Reconciler) gather(ctx context.Context, namespace string) (*sighting, error) {
	s := &sighting{}
	if err := r.Live.Get(ctx, types.NamespacedName{Name: namespace}, &s.namespace); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	s.before = s.namespace.DeepCopy()
	var err error
	if s.apps, err = guard.Apps(ctx, r.Client, r.Client); err != nil {
		return nil, err
	}
	if s.claims, err = guard.ReadClaims(ctx, r.Live); err != nil {
		return nil, err
	}
	s.guards = guard.GuardsOf(s.apps, s.claims)
	if s.hosts, err = r.hosts(ctx); err != nil {
		return nil, err
	}
	if err := r.pods(ctx, s); err != nil {
		return nil, err
	}
	for _, p := range s.pods {
		if p.Namespace == namespace && guard.Gated(p) && p.DeletionTimestamp == nil {
			s.waiting = append(s.waiting, s.wait(p))
		}
	}
	slices.SortFunc(s.waiting, func(a, b *waiting) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.pod.CreationTimestamp.Compare(b.pod.CreationTimestamp.Time), cmp.Compare(a.pod.Name, b.pod.Name))
	})
	return s, nil
}

func rank(w *waiting) int {
	if w.own {
		return 0
	}
	return 1
}

// pods makes the one list by which newcomers are let in, last of all reads.
func (r *Reconciler) pods(ctx context.Context, s *sighting) error {
	var list corev1.PodList
	if err := r.Live.List(ctx, &list); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for i := range list.Items {
		s.pods = append(s.pods, &list.Items[i])
	}
	return nil
}

// hosts are the Nodes, and what speaks against letting anybody in there.
func (r *Reconciler) hosts(ctx context.Context) (guard.Hosts, error) {
	var nodes corev1.NodeList
	if err := r.Live.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Live.List(ctx, &incidents); err != nil {
		return nil, fmt.Errorf("list incidents: %w", err)
	}
	out := guard.Hosts{}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		out[n.Name] = guard.Host{Label: n.Labels[corev1.LabelHostname], Trouble: trouble(n)}
	}
	for i := range incidents.Items {
		h := &incidents.Items[i]
		if host, ok := out[h.Spec.NodeName]; ok && !h.Status.Step.Over() {
			host.Trouble = "has the open incident " + h.Name
			out[h.Spec.NodeName] = host
		}
	}
	return out, nil
}

func trouble(n *corev1.Node) string {
	switch {
	case n.DeletionTimestamp != nil:
		return "is being deleted"
	case n.Spec.Unschedulable:
		return "is cordoned"
	}
	for _, t := range n.Spec.Taints {
		if t.Key == v1alpha1.TaintFenced || t.Key == v1alpha1.TaintOutOfService {
			return "has the taint " + t.Key
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return ""
		}
	}
	return "is not Ready"
}

// wait finds what a pod at the gate is about. A claim that many hosts may mount is not waited for if its app has several replicas: they are meant to run
// side by side. An app with one replica has one writer, whatever the volume allows.
func (s *sighting) wait(p *corev1.Pod) *waiting {
	w := &waiting{pod: p}
	listed := s.namespace.Annotations[v1alpha1.AnnotationClaims]
	for _, claim := range guard.ClaimsOf(p) {
		apps := s.guards.By(p.Namespace + "/" + claim)
		for _, app := range apps {
			w.app = app
			w.own = w.own || slices.ContainsFunc(app.Pods, func(q corev1.Pod) bool { return q.UID == p.UID })
		}
		several := len(apps) > 0 && !slices.ContainsFunc(apps, func(a *guard.App) bool { return a.Workload == nil || a.Workload.Replicas < 2 })
		if (len(apps) > 0 || admission.AppOf(listed, []string{claim}) != "") && !(several && s.claims.Many(p.Namespace+"/"+claim)) {
			w.claims = append(w.claims, claim)
		}
	}
	return w
}

// newcomer is what is to be decided about one of them, as things stand.
func (s *sighting) newcomer(w *waiting) guard.Newcomer {
	out := guard.Newcomer{Pod: w.pod, Own: w.own}
	admitted := guard.ParseAdmissions(s.namespace.Annotations[v1alpha1.AnnotationAdmitted])
	for _, p := range s.pods {
		claim, shares := s.shares(w, p)
		if !shares || p.UID == w.pod.UID {
			continue
		}
		own := slices.ContainsFunc(s.waiting, func(o *waiting) bool { return o.pod.UID == p.UID && o.own })
		out.Neighbours = append(out.Neighbours, guard.Neighbour{Pod: p, Own: own, Claim: claim, OnePod: s.claims.OnePod(w.pod.Namespace + "/" + claim),
			Admitted: slices.ContainsFunc(admitted, func(a guard.Admission) bool { return a.Pod == p.UID })})
	}
	return out
}

// shares finds a claim of the newcomer whose volume the other pod names too.
func (s *sighting) shares(w *waiting, other *corev1.Pod) (string, bool) {
	names := guard.Of(other)
	for _, claim := range w.claims {
		for _, same := range s.claims.Same(w.pod.Namespace + "/" + claim) {
			if slices.Contains(names, same) {
				return claim, true
			}
		}
	}
	return "", false
}
