// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// follow calls on with all objects of the list's kind, by "namespace/name", at first and after every change, until it returns true or ctx ends.
// The map is follow's: on must not keep it. A watch that breaks is made anew.
func follow[T client.Object](ctx context.Context, c client.WithWatch, list client.ObjectList, where []client.ListOption, on func(map[string]T) bool) error {
	for ctx.Err() == nil {
		now := map[string]T{}
		if err := c.List(ctx, list, where...); err != nil {
			if ctx.Err() != nil {
				break
			}
			return err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return err
		}
		for _, item := range items {
			apply(now, watch.Added, item)
		}
		if on(now) {
			return nil
		}
		from := append(slices.Clone(where), &client.ListOptions{Raw: &metav1.ListOptions{ResourceVersion: list.GetResourceVersion()}})
		w, err := c.Watch(ctx, list, from...)
		if err != nil {
			continue // the next list says why, if it lasts
		}
		done := drain(w, now, on)
		w.Stop()
		if done {
			return nil
		}
	}
	return ctx.Err()
}

// drain feeds events until on is content or the watch ends.
func drain[T client.Object](w watch.Interface, now map[string]T, on func(map[string]T) bool) bool {
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return false
		}
		if e.Type == watch.Bookmark {
			continue
		}
		apply(now, e.Type, e.Object)
		if on(now) {
			return true
		}
	}
	return false
}

func apply[T client.Object](now map[string]T, kind watch.EventType, object runtime.Object) {
	o, ok := object.(T)
	if !ok {
		return
	}
	key := client.ObjectKeyFromObject(o).String()
	if kind == watch.Deleted {
		delete(now, key)
		return
	}
	now[key] = o
}

// awaitObject returns the first object for which reached holds; what names it in the error.
func awaitObject[T client.Object](ctx context.Context, s *Stage, list client.ObjectList, what string, reached func(T) bool) (T, error) {
	var found T
	var last []T
	err := follow(ctx, s.Client, list, nil, func(now map[string]T) bool {
		last = slices.Collect(maps.Values(now))
		for _, o := range now {
			if reached(o) {
				found = o
				return true
			}
		}
		return false
	})
	if err != nil {
		err = fmt.Errorf("waiting for %s: %w; there is %s", what, err, sketches(last))
	}
	return found, err
}

func sketches[T client.Object](objects []T) string {
	var out []string
	for _, o := range objects {
		out = append(out, sketch(o))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

// sketch is an object in a few words, for errors.
func sketch(o client.Object) string {
	switch o := o.(type) {
	case *v1alpha1.HostIncident:
		return fmt.Sprintf("hi %s: %s %s %q, next %q", o.Name, o.Status.Verdict, o.Status.Step, o.Status.Doing, o.Status.Next)
	case *v1alpha1.GuardedStatefulApp:
		return fmt.Sprintf("gsa %s: %s %q", o.Name, o.Status.Verdict, unwell(o.Status.Conditions))
	case *v1alpha1.GuardConfig:
		return fmt.Sprintf("gc %s: %q", o.Name, unwell(o.Status.Conditions))
	case *corev1.Pod:
		if o.Namespace != Namespace && o.Namespace != HoldfastNamespace {
			return "pod " + o.Namespace + "/" + o.Name
		}
		return fmt.Sprintf("pod %s/%s on %s: %s, deleted %v", o.Namespace, o.Name, o.Spec.NodeName, o.Status.Phase, o.DeletionTimestamp != nil)
	case *corev1.Node:
		return fmt.Sprintf("node %s: ready %v, taints %v", o.Name, NodeReady(o), o.Spec.Taints)
	default:
		return o.GetName()
	}
}

func unwell(conditions []metav1.Condition) []string {
	var out []string
	for _, c := range conditions {
		out = append(out, fmt.Sprintf("%s=%s (%s: %s)", c.Type, c.Status, c.Reason, c.Message))
	}
	return out
}

// AwaitIncident waits for an incident of the host to reach something. Incidents that are over count too: choose by what is wanted.
func (s *Stage) AwaitIncident(ctx context.Context, host, what string, reached func(*v1alpha1.HostIncident) bool) (*v1alpha1.HostIncident, error) {
	return awaitObject(ctx, s, &v1alpha1.HostIncidentList{}, what, func(h *v1alpha1.HostIncident) bool { return h.Spec.NodeName == host && reached(h) })
}

// AwaitNoOpenIncident waits until every incident is over, but those of some hosts.
func (s *Stage) AwaitNoOpenIncident(ctx context.Context, but ...string) error {
	open := []*v1alpha1.HostIncident{}
	err := follow(ctx, s.Client, &v1alpha1.HostIncidentList{}, nil, func(now map[string]*v1alpha1.HostIncident) bool {
		open = slices.DeleteFunc(slices.Collect(maps.Values(now)), func(h *v1alpha1.HostIncident) bool {
			return h.Status.Step == v1alpha1.StepClosed || h.Status.Step == v1alpha1.StepRetired || slices.Contains(but, h.Spec.NodeName)
		})
		return len(open) == 0
	})
	if err != nil {
		err = fmt.Errorf("waiting for the end of every incident: %w; there is %s", err, sketches(open))
	}
	return err
}

// OpenIncidents are those that are not over.
func (s *Stage) OpenIncidents(ctx context.Context) ([]v1alpha1.HostIncident, error) {
	var list v1alpha1.HostIncidentList
	err := s.Client.List(ctx, &list)
	return slices.DeleteFunc(list.Items, func(h v1alpha1.HostIncident) bool {
		return h.Status.Step == v1alpha1.StepClosed || h.Status.Step == v1alpha1.StepRetired
	}), err
}

// AwaitAnyPod waits for some pod of the cluster to reach something.
func (s *Stage) AwaitAnyPod(ctx context.Context, what string, reached func(*corev1.Pod) bool) (*corev1.Pod, error) {
	return awaitObject(ctx, s, &corev1.PodList{}, what, reached)
}

// AwaitGone waits until no pod has the UID any more.
func (s *Stage) AwaitGone(ctx context.Context, pod *corev1.Pod) error {
	err := follow(ctx, s.Client, &corev1.PodList{}, []client.ListOption{client.InNamespace(pod.Namespace)}, func(now map[string]*corev1.Pod) bool {
		p, ok := now[client.ObjectKeyFromObject(pod).String()]
		return !ok || p.UID != pod.UID
	})
	if err != nil {
		err = fmt.Errorf("waiting for the end of pod %s/%s (%s): %w", pod.Namespace, pod.Name, pod.UID, err)
	}
	return err
}

// AwaitNode waits for the host's Node to reach something.
func (s *Stage) AwaitNode(ctx context.Context, host, what string, reached func(*corev1.Node) bool) (*corev1.Node, error) {
	return awaitObject(ctx, s, &corev1.NodeList{}, what, func(n *corev1.Node) bool { return n.Name == host && reached(n) })
}

// AwaitLease waits for the lease of the host's kubelet to reach something.
func (s *Stage) AwaitLease(ctx context.Context, host, what string, reached func(*coordinationv1.Lease) bool) (*coordinationv1.Lease, error) {
	return awaitObject(ctx, s, &coordinationv1.LeaseList{}, what, func(l *coordinationv1.Lease) bool {
		return l.Namespace == corev1.NamespaceNodeLease && l.Name == host && reached(l)
	})
}

// AwaitLeader waits until one of Holdfast's pods other than those named leads, and returns its name.
func (s *Stage) AwaitLeader(ctx context.Context, but ...string) (string, error) {
	lease, err := awaitObject(ctx, s, &coordinationv1.LeaseList{}, "another leader", func(l *coordinationv1.Lease) bool {
		holder := leads(l)
		return holder != "" && !slices.Contains(but, holder)
	})
	if err != nil {
		return "", err
	}
	return leads(lease), nil
}

// awaitManager waits until Holdfast has so many ready replicas.
func (s *Stage) awaitManager(ctx context.Context, replicas int32) error {
	_, err := awaitObject(ctx, s, &appsv1.DeploymentList{}, fmt.Sprintf("%d replicas of Holdfast", replicas), func(d *appsv1.Deployment) bool {
		return d.Namespace == HoldfastNamespace && d.Status.ObservedGeneration >= d.Generation && d.Status.ReadyReplicas == replicas &&
			d.Status.UpdatedReplicas == replicas && d.Status.Replicas == replicas
	})
	return err
}
