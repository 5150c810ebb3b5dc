// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// Newcomer is a pod that waits at the gate, with every other pod object that names one of its guarded volumes. See docs/spec/guardedstatefulapp.md.
type Newcomer struct {
	Pod *corev1.Pod
	// Own is true for a pod of the guarded workload itself: strangers let it go first.
	Own        bool
	Neighbours []Neighbour
}

// Neighbour is another pod object that names a volume of the newcomer.
type Neighbour struct {
	Pod *corev1.Pod
	Own bool
	// Claim is one that it shares, as the newcomer calls it.
	Claim string
	// OnePod is true if that claim may be mounted by one pod only.
	OnePod bool
	// Admitted is true once it was decided, and written down, that it is let in.
	Admitted bool
}

// Hosts are the Nodes by name.
type Hosts map[string]Host

// Host is one Node.
type Host struct {
	// Label is the value of its label kubernetes.io/hostname.
	Label string
	// Trouble says why nobody is let in there, empty if all is well.
	Trouble string
}

// Answer is whether a newcomer may start, and where.
type Answer struct {
	In bool
	// Host is the value of kubernetes.io/hostname that the newcomer is bound to, empty for any host.
	Host string
	// Waits says for what it waits.
	Waits string
}

// Answer decides by one live list of all pods. The newcomer starts only while no other pod object names one of its volumes, but for those that have
// finished, that wait at the gate themselves, or that run on one host which is well: there it may join them (invariant I10).
func (n Newcomer) Answer(hosts Hosts) Answer {
	neighbours := slices.Clone(n.Neighbours)
	slices.SortFunc(neighbours, func(a, b Neighbour) int { return strings.Compare(a.name(), b.name()) })
	joins := ""
	for _, o := range neighbours {
		host, waits := n.beside(o, hosts)
		switch {
		case waits != "":
			return Answer{Waits: fmt.Sprintf("for pod %s on claim %s: %s", o.name(), o.Claim, waits)}
		case host != "" && joins != "" && host != joins:
			return Answer{Waits: fmt.Sprintf("for pod %s on claim %s: it is on host %s, and another is on %s", o.name(), o.Claim, host, joins)}
		case host != "":
			joins = host
		}
	}
	return n.bound(joins, hosts)
}

// beside says on which host the newcomer may join a neighbour, none if the neighbour is in nobody's way, or for what it has to wait.
func (n Newcomer) beside(o Neighbour, hosts Hosts) (host, waits string) {
	switch {
	case Finished(o.Pod):
		return "", ""
	case Gated(o.Pod) && !o.Admitted && (n.Own || !o.Own):
		return "", ""
	case Gated(o.Pod):
		return "", "it goes first"
	case o.Pod.Labels[v1alpha1.LabelHold] != "":
		return "", "it is held by incident " + o.Pod.Labels[v1alpha1.LabelHold]
	case o.Pod.DeletionTimestamp != nil:
		return "", "it is terminating and its object is still there"
	case o.OnePod:
		return "", "the claim is for one pod at a time (ReadWriteOncePod)"
	}
	host = hosts.Of(o.Pod)
	if host == "" {
		return "", "it is on no host yet and may start on any"
	}
	if trouble := hosts[host].Trouble; trouble != "" {
		return "", fmt.Sprintf("its host %s %s", host, trouble)
	}
	if hosts[host].Label == "" {
		return "", fmt.Sprintf("its host %s is unknown or has no label %s", host, corev1.LabelHostname)
	}
	return host, ""
}

func (n Newcomer) bound(host string, hosts Hosts) Answer {
	if host == "" {
		return Answer{In: true}
	}
	label := hosts[host].Label
	if wants, ok := n.Pod.Spec.NodeSelector[corev1.LabelHostname]; ok && wants != label {
		return Answer{Waits: fmt.Sprintf("for host %s: its volumes are in use there, and its nodeSelector wants %s", host, wants)}
	}
	return Answer{In: true, Host: label}
}

func (o Neighbour) name() string { return o.Pod.Namespace + "/" + o.Pod.Name }

// Of is the host that a pod is on, or is bound to before it is scheduled.
func (h Hosts) Of(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	label := p.Spec.NodeSelector[corev1.LabelHostname]
	found := ""
	for name, host := range h {
		if label == "" || host.Label != label {
			continue
		}
		if found != "" {
			return "" // two Nodes of one name: it could be either
		}
		found = name
	}
	return found
}

// TerminalPhase reports whether a pod's phase says that it has stopped. Whether that is so depends on who wrote the phase: see [Finished].
func TerminalPhase(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Finished reports whether a pod has stopped by its own kubelet's word. Of a guarded pod nobody else can have said so; of another, its containers have to
// say it too, because the pod garbage collector writes the phase alone.
func Finished(p *corev1.Pod) bool {
	if !TerminalPhase(p) {
		return false
	}
	statuses := slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses)
	if slices.ContainsFunc(statuses, func(s corev1.ContainerStatus) bool { return s.State.Running != nil }) {
		return false
	}
	return p.Labels[v1alpha1.LabelApp] != "" || p.Spec.NodeName == "" || len(statuses) > 0
}

// Gated reports whether a pod waits at Holdfast's gate.
func Gated(p *corev1.Pod) bool {
	return slices.Contains(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: v1alpha1.GateNewcomer})
}

// Admission is one entry of the annotation guard.holdfast.dev/admitted: that this pod, and no other that waits at the gate, is let in on a claim. It
// counts while the pod waits; written under the Namespace's lock, it is what two leaders cannot both do.
type Admission struct {
	Claim string
	Pod   types.UID
}

// FormatAdmissions writes the annotation.
func FormatAdmissions(list []Admission) string {
	out := make([]string, 0, len(list))
	for _, a := range list {
		out = append(out, a.Claim+"="+string(a.Pod))
	}
	return strings.Join(out, ",")
}

// ParseAdmissions reads the annotation; entries without "=" are left out.
func ParseAdmissions(annotation string) []Admission {
	var out []Admission
	for e := range strings.SplitSeq(annotation, ",") {
		if claim, pod, ok := strings.Cut(strings.TrimSpace(e), "="); ok {
			out = append(out, Admission{Claim: claim, Pod: types.UID(pod)})
		}
	}
	return out
}
