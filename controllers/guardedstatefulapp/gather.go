// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guardedstatefulapp

import (
	"context"
	"fmt"
	"sort"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

// sighting is everything known about one app at one moment.
type sighting struct {
	app      v1alpha1.GuardedStatefulApp
	gone     bool // deleted, and nothing of it is held
	workload *appsv1.StatefulSet
	refused  *refusal
	guarded  guard.App
	// incidents that are open, by node.
	incidents map[string]*v1alpha1.HostIncident
	config    v1alpha1.GuardConfig
	findings  []string
}

func (r *Reconciler) gather(ctx context.Context, req ctrl.Request) (*sighting, error) {
	s := &sighting{incidents: map[string]*v1alpha1.HostIncident{}}
	if err := r.Client.Get(ctx, req.NamespacedName, &s.app); err != nil {
		if apierrors.IsNotFound(err) {
			r.Board.Set(req.String(), nil)
		}
		return nil, client.IgnoreNotFound(err)
	}
	var err error
	if s.workload, s.refused, err = r.workload(ctx, &s.app); err != nil {
		return nil, err
	}
	if s.guarded, err = guard.Resolve(ctx, r.Client, s.app); err != nil {
		return nil, err
	}
	var incidents v1alpha1.HostIncidentList
	if err := r.Client.List(ctx, &incidents); err != nil {
		return nil, err
	}
	for i := range incidents.Items {
		h := &incidents.Items[i]
		if !h.Status.Step.Over() {
			s.incidents[h.Spec.NodeName] = h
		}
	}
	err = r.Client.Get(ctx, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &s.config)
	if client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	s.findings = findings(s.workload)
	return s, nil
}

// workload finds what the app names, or says why it cannot be guarded.
func (r *Reconciler) workload(ctx context.Context, g *v1alpha1.GuardedStatefulApp) (*appsv1.StatefulSet, *refusal, error) {
	ref := g.Spec.WorkloadRef
	if ref == nil {
		return nil, &refusal{v1alpha1.ReasonWorkloadUnsupported, "spec.podSelector is not supported yet: name a StatefulSet in spec.workloadRef"}, nil
	}
	if ref.Kind != "StatefulSet" {
		return nil, &refusal{v1alpha1.ReasonWorkloadUnsupported, fmt.Sprintf("spec.workloadRef.kind %s is not supported yet: use a StatefulSet", ref.Kind)}, nil
	}
	var sts appsv1.StatefulSet
	err := r.Client.Get(ctx, types.NamespacedName{Namespace: g.Namespace, Name: ref.Name}, &sts)
	if apierrors.IsNotFound(err) {
		return nil, &refusal{v1alpha1.ReasonWorkloadMissing, fmt.Sprintf("there is no StatefulSet %s/%s: create it, or correct spec.workloadRef.name", g.Namespace, ref.Name)}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	taken, err := r.takenBy(ctx, g)
	if err != nil {
		return nil, nil, err
	}
	return &sts, preflight(g, &sts, taken), nil
}

// takenBy returns the older app that guards the same workload, if there is one.
func (r *Reconciler) takenBy(ctx context.Context, g *v1alpha1.GuardedStatefulApp) (string, error) {
	var list v1alpha1.GuardedStatefulAppList
	if err := r.Client.List(ctx, &list, client.InNamespace(g.Namespace)); err != nil {
		return "", err
	}
	for _, o := range list.Items {
		if o.UID == g.UID || o.Spec.WorkloadRef == nil || *o.Spec.WorkloadRef != *g.Spec.WorkloadRef {
			continue
		}
		if o.CreationTimestamp.Before(&g.CreationTimestamp) || (o.CreationTimestamp.Equal(&g.CreationTimestamp) && o.Name < g.Name) {
			return o.Name, nil
		}
	}
	return "", nil
}

// preflight refuses what could not be guarded.
func preflight(g *v1alpha1.GuardedStatefulApp, sts *appsv1.StatefulSet, taken string) *refusal {
	pod := sts.Spec.Template.Spec
	if taken != "" {
		return &refusal{v1alpha1.ReasonWorkloadTaken, fmt.Sprintf("StatefulSet %s is guarded by GuardedStatefulApp %s already: delete one of the two", sts.Name, taken)}
	}
	if grace := pod.TerminationGracePeriodSeconds; grace != nil && *grace == 0 {
		return &refusal{v1alpha1.ReasonPreflightFailed, "terminationGracePeriodSeconds is 0 in the pod template: every delete would be a removal; set at least 1"}
	}
	for _, t := range pod.Tolerations {
		if t.Key == "" && t.Operator == corev1.TolerationOpExists {
			return &refusal{v1alpha1.ReasonPreflightFailed, "the pod template tolerates every taint (operator: Exists without key): a fenced host could not be cleared; name the keys"}
		}
	}
	claims := len(sts.Spec.VolumeClaimTemplates)
	for _, v := range pod.Volumes {
		if v.Ephemeral != nil {
			return &refusal{v1alpha1.ReasonPreflightFailed, fmt.Sprintf("volume %s is a generic ephemeral volume, which is deleted with its pod: use volumeClaimTemplates", v.Name)}
		}
		if v.PersistentVolumeClaim != nil {
			claims++
		}
	}
	if claims == 0 {
		return &refusal{v1alpha1.ReasonNoVolumes, "the StatefulSet names no PersistentVolumeClaim: there is nothing to guard"}
	}
	for _, p := range g.Spec.Health.Probes {
		if name := unknownPort(p, pod); name != "" {
			return &refusal{v1alpha1.ReasonPreflightFailed, fmt.Sprintf("spec.health.probes[%s] names port %q, which no container has: correct the name, or use the number", p.Name, name)}
		}
	}
	return nil
}

func unknownPort(p v1alpha1.Probe, pod corev1.PodSpec) string {
	name := ""
	switch {
	case p.TCPSocket != nil:
		name = p.TCPSocket.Port.StrVal
	case p.HTTPGet != nil:
		name = p.HTTPGet.Port.StrVal
	case p.GRPC != nil:
		name = p.GRPC.Port.StrVal
	}
	if _, ok := ports(pod)[name]; ok {
		return ""
	}
	return name
}

func ports(pod corev1.PodSpec) map[string]int32 {
	out := map[string]int32{}
	for _, c := range pod.Containers {
		for _, p := range c.Ports {
			if p.Name != "" {
				out[p.Name] = p.ContainerPort
			}
		}
	}
	return out
}

// findings are what could be better, without a refusal.
func findings(sts *appsv1.StatefulSet) []string {
	if sts == nil {
		return nil
	}
	var out []string
	pod := sts.Spec.Template.Spec
	for _, c := range pod.Containers {
		if c.ReadinessProbe == nil {
			out = append(out, fmt.Sprintf("container %s has no readinessProbe", c.Name))
		}
	}
	if sts.Spec.Replicas != nil && *sts.Spec.Replicas > 1 && (pod.Affinity == nil || pod.Affinity.PodAntiAffinity == nil) && len(pod.TopologySpreadConstraints) == 0 {
		out = append(out, "several replicas without podAntiAffinity or topologySpreadConstraints: one host can carry them all")
	}
	sort.Strings(out)
	return out
}
