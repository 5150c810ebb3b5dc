// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// A place is what a successor takes when a pod is lost, named "namespace/app/place". Pods of a StatefulSet keep their names, and so each name is a place.
// Those of a Deployment do not: its places are numbered, as many as it has replicas, and any of its pods that runs elsewhere fills one. Pods found by a
// selector have one place, because nobody knows how many their owner wants.

// Places are the places that have to be filled again after pods of these names were lost. There are none while nobody wants a successor: a workload that
// is gone or going, an app that is being deleted, a StatefulSet that was scaled down below the name, a pod that was a guest.
func (a App) Places(lost []string) []string {
	if a.Workload == nil || a.Workload.Going || a.DeletionTimestamp != nil {
		return nil
	}
	var out []string
	if a.Workload.Kind == KindStatefulSet {
		for _, name := range lost {
			if a.hasOrdinal(name) {
				out = append(out, a.Key()+"/"+name)
			}
		}
		return out
	}
	if a.Workload.Kind == KindDeployment && !slices.ContainsFunc(lost, func(name string) bool { return wasOf(a.Spec.WorkloadRef, name) }) {
		return nil
	}
	for n := range a.Workload.Replicas {
		out = append(out, a.numbered(n))
	}
	return out
}

func (a App) numbered(n int) string { return a.Key() + "/" + strconv.Itoa(n+1) }

// hasOrdinal reports whether the StatefulSet still has a pod of that name, and has not been scaled down below it.
func (a App) hasOrdinal(pod string) bool {
	ordinal, ok := strings.CutPrefix(pod, a.Workload.Name+"-")
	n, err := strconv.Atoi(ordinal)
	return ok && err == nil && n >= a.Workload.FirstOrdinal && n < a.Workload.FirstOrdinal+a.Workload.Replicas
}

// Successors are the app's own pods on other hosts than the lost one, each with the place that it takes. Those that serve take the first places.
func (a App) Successors(lostHost string, serving func(*corev1.Pod) evidence.Serving) []evidence.Successor {
	var out []evidence.Successor
	for i := range a.Pods {
		p := &a.Pods[i]
		if p.Spec.NodeName == "" || p.Spec.NodeName == lostHost || TerminalPhase(p) {
			continue
		}
		out = append(out, evidence.Successor{App: a.Key() + "/" + p.Name, Pod: p.Namespace + "/" + p.Name, Host: p.Spec.NodeName, Serving: serving(p)})
	}
	if a.Workload == nil || a.Workload.Kind == KindStatefulSet {
		return out
	}
	last := func(s evidence.Successor) int {
		if s.Serving == evidence.ServingYes {
			return 0
		}
		return 1
	}
	slices.SortFunc(out, func(x, y evidence.Successor) int {
		return cmp.Or(cmp.Compare(last(x), last(y)), cmp.Compare(x.Pod, y.Pod))
	})
	for i := range out {
		out[i].App = a.numbered(i)
	}
	return out
}
