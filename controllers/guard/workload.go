// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// Kinds of workloads.
const (
	KindStatefulSet = "StatefulSet"
	KindDeployment  = "Deployment"
	// KindPods is whoever owns the pods that spec.podSelector finds.
	KindPods = "Pods"
)

// Workload is what runs an app's pods.
type Workload struct {
	Kind, Name string
	// Pod is the pod template. Pods found by a selector have none: then it is that of the youngest.
	Pod corev1.PodTemplateSpec
	// Replicas wanted. Nobody knows how many pods the owner of selected ones wants: then it is 1.
	Replicas int
	// FirstOrdinal and ClaimTemplates of a StatefulSet.
	FirstOrdinal   int
	ClaimTemplates []string
	// Rolls is true for a Deployment that starts new pods beside old ones.
	Rolls bool
	// Going is true while it is being deleted.
	Going bool

	uid      types.UID
	sets     map[types.UID]bool // ReplicaSets of a Deployment
	selector labels.Selector
}

// WorkloadOf finds what an app names, nil if it is gone.
func WorkloadOf(ctx context.Context, c client.Reader, g *v1alpha1.GuardedStatefulApp) (*Workload, error) {
	ref := g.Spec.WorkloadRef
	if ref == nil {
		selector, err := metav1.LabelSelectorAsSelector(g.Spec.PodSelector)
		if err != nil {
			return nil, fmt.Errorf("spec.podSelector of %s/%s: %w", g.Namespace, g.Name, err)
		}
		return &Workload{Kind: KindPods, Name: g.Name, Replicas: 1, selector: selector}, nil
	}
	name := types.NamespacedName{Namespace: g.Namespace, Name: ref.Name}
	var w *Workload
	var err error
	if ref.Kind == KindDeployment {
		w, err = deployment(ctx, c, name)
	} else {
		w, err = statefulSet(ctx, c, name)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", ref.Kind, name, err)
	}
	return w, nil
}

func statefulSet(ctx context.Context, c client.Reader, name types.NamespacedName) (*Workload, error) {
	var s appsv1.StatefulSet
	if err := c.Get(ctx, name, &s); err != nil {
		return nil, err
	}
	w := &Workload{Kind: KindStatefulSet, Name: s.Name, Pod: s.Spec.Template, Replicas: replicas(s.Spec.Replicas), Going: s.DeletionTimestamp != nil, uid: s.UID}
	if s.Spec.Ordinals != nil {
		w.FirstOrdinal = int(s.Spec.Ordinals.Start)
	}
	for _, t := range s.Spec.VolumeClaimTemplates {
		w.ClaimTemplates = append(w.ClaimTemplates, t.Name)
	}
	return w, nil
}

func deployment(ctx context.Context, c client.Reader, name types.NamespacedName) (*Workload, error) {
	var d appsv1.Deployment
	if err := c.Get(ctx, name, &d); err != nil {
		return nil, err
	}
	w := &Workload{Kind: KindDeployment, Name: d.Name, Pod: d.Spec.Template, Replicas: replicas(d.Spec.Replicas), Going: d.DeletionTimestamp != nil,
		Rolls: d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType, uid: d.UID, sets: map[types.UID]bool{}}
	var sets appsv1.ReplicaSetList
	if err := c.List(ctx, &sets, client.InNamespace(name.Namespace)); err != nil {
		return nil, err
	}
	for i := range sets.Items {
		if metav1.IsControlledBy(&sets.Items[i], &d) {
			w.sets[sets.Items[i].UID] = true
		}
	}
	return w, nil
}

func replicas(n *int32) int {
	if n == nil {
		return 1
	}
	return int(*n)
}

// owns reports whether the pod is one of the workload's own.
func (w *Workload) owns(p *corev1.Pod) bool {
	if w.selector != nil {
		return w.selector.Matches(labels.Set(p.Labels))
	}
	owner := metav1.GetControllerOf(p)
	return owner != nil && (owner.UID == w.uid || w.sets[owner.UID])
}

// wasOf reports whether a pod of this name looks like one of a workload that is gone, or that has left its pods behind.
func wasOf(ref *v1alpha1.WorkloadReference, name string) bool {
	if ref == nil {
		return false
	}
	rest, ok := strings.CutPrefix(name, ref.Name+"-")
	if ref.Kind == KindDeployment {
		return ok && rest != ""
	}
	_, err := strconv.Atoi(rest)
	return ok && err == nil
}

// Claims are the app's entries for the list of guarded claims that the admission policies read: what the workload's template names, each with its
// place. A place is given only where the name of a pod alone says that no other can be on the claim: that is so for the ordinals of a StatefulSet.
func (w *Workload) Claims(app string) []admission.Claim {
	var out []admission.Claim
	for _, t := range w.ClaimTemplates {
		out = append(out, admission.Claim{App: app, Name: admission.OrdinalClaims(t, w.Name), Place: admission.OrdinalPods(w.Name)})
	}
	place := ""
	if w.Kind == KindStatefulSet && w.Replicas <= 1 {
		place = w.Name + "-" + strconv.Itoa(w.FirstOrdinal)
	}
	for _, name := range claimsOf(&w.Pod.Spec) {
		out = append(out, admission.Claim{App: app, Name: name, Place: place})
	}
	return out
}

// Places reports whether pods of the workload may start on their claims without waiting: by their name, while nobody else is on them.
func (w *Workload) Places() bool { return w == nil || w.Kind == KindStatefulSet }
