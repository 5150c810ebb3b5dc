// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/guard"
)

func neighbour(change ...func(*guard.Neighbour)) guard.Neighbour {
	p := named(claimed("data"), "shop", "old", nil)
	p.Spec.NodeName = "node-1"
	p.Labels[v1alpha1.LabelApp] = "app"
	p.Status.Phase = corev1.PodRunning
	n := guard.Neighbour{Pod: p, Claim: "data"}
	for _, c := range change {
		c(&n)
	}
	return n
}

func gate(p *corev1.Pod) {
	p.Spec.NodeName = ""
	p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: v1alpha1.GateNewcomer}}
}

func calledSo(name string) func(*guard.Neighbour) {
	return func(n *guard.Neighbour) { n.Pod.Name, n.Pod.UID = name, types.UID("uid-"+name) }
}

func TestWhoIsLetIn(t *testing.T) {
	now := metav1.Now()
	on := func(node string) func(*guard.Neighbour) {
		return func(n *guard.Neighbour) { n.Pod.Spec.NodeName = node }
	}
	gated := func(n *guard.Neighbour) { gate(n.Pod) }
	going := func(n *guard.Neighbour) { n.Pod.DeletionTimestamp = &now }
	ended := func(n *guard.Neighbour) { n.Pod.Status.Phase = corev1.PodSucceeded }
	runs := func(n *guard.Neighbour) {
		n.Pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	}
	bare := func(n *guard.Neighbour) { delete(n.Pod.Labels, v1alpha1.LabelApp) }
	admitted := func(n *guard.Neighbour) { n.Admitted = true }
	own := func(n *guard.Neighbour) { n.Own = true }
	hosts := guard.Hosts{"node-1": {Label: "one"}, "node-2": {Label: "two"}, "sick": {Label: "sick", Trouble: "is not Ready"}, "nameless": {}}
	wants := func(host string) func(*guard.Newcomer) {
		return func(n *guard.Newcomer) { n.Pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: host} }
	}

	tests := []struct {
		name   string
		others []guard.Neighbour
		change func(*guard.Newcomer)
		in     bool
		host   string
		waits  string
	}{
		{"nobody else is there", nil, nil, true, "", ""},
		{"another runs on a host that is well: it joins it there", []guard.Neighbour{neighbour()}, nil, true, "one", ""},
		{"two run on one host that is well", []guard.Neighbour{neighbour(), neighbour(calledSo("p2"))}, nil, true, "one", ""},
		{"two run on two hosts", []guard.Neighbour{neighbour(), neighbour(calledSo("p2"), on("node-2"))}, nil, false, "", "another is on node-1"},
		{"another has finished by its kubelet's word", []guard.Neighbour{neighbour(ended)}, nil, true, "", ""},
		{"another is called finished while a container runs", []guard.Neighbour{neighbour(ended, runs, on("sick"))}, nil, false, "", "is not Ready"},
		{"an unguarded one is called finished, and no container says so", []guard.Neighbour{neighbour(ended, bare, on("sick"))}, nil, false, "", "is not Ready"},
		{"another is terminating", []guard.Neighbour{neighbour(going)}, nil, false, "", "terminating"},
		{"another is terminating and was never let in", []guard.Neighbour{neighbour(gated, going)}, nil, true, "", ""},
		{"another is on no host yet", []guard.Neighbour{neighbour(on(""))}, nil, false, "", "may start on any"},
		{"another is on no host yet, but bound to one", []guard.Neighbour{neighbour(on(""), func(n *guard.Neighbour) {
			n.Pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "two"}
		})}, nil, true, "two", ""},
		{"another is on a host in trouble", []guard.Neighbour{neighbour(on("sick"))}, nil, false, "", "host sick is not Ready"},
		{"another is on a host that nobody knows", []guard.Neighbour{neighbour(on("gone"))}, nil, false, "", "unknown"},
		{"another is on a host without a label", []guard.Neighbour{neighbour(on("nameless"))}, nil, false, "", "no label"},
		{"another is held", []guard.Neighbour{neighbour(func(n *guard.Neighbour) { n.Pod.Labels[v1alpha1.LabelHold] = "node-1-ab-1" })}, nil, false, "", "incident node-1-ab-1"},
		{"the claim is for one pod", []guard.Neighbour{neighbour(func(n *guard.Neighbour) { n.OnePod = true })}, nil, false, "", "ReadWriteOncePod"},
		{"another waits at the gate too", []guard.Neighbour{neighbour(gated)}, nil, true, "", ""},
		{"another waits there and is being let in", []guard.Neighbour{neighbour(gated, admitted)}, nil, false, "", "goes first"},
		{"the workload's own pod waits too", []guard.Neighbour{neighbour(gated, own)}, nil, false, "", "goes first"},
		{"the workload's own pod waits, and this is one", []guard.Neighbour{neighbour(gated, own)}, func(n *guard.Newcomer) { n.Own = true }, true, "", ""},
		{"a stranger is being let in before the workload's own pod", []guard.Neighbour{neighbour(gated, admitted)}, func(n *guard.Newcomer) { n.Own = true }, false, "", "goes first"},
		{"it wants the host that it has to join", []guard.Neighbour{neighbour()}, wants("one"), true, "one", ""},
		{"it wants another host than it has to join", []guard.Neighbour{neighbour()}, wants("two"), false, "", "nodeSelector wants two"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := guard.Newcomer{Pod: named(claimed("data"), "shop", "new", nil), Neighbours: test.others}
			gate(n.Pod)
			if test.change != nil {
				test.change(&n)
			}
			got := n.Answer(hosts)
			if got.In != test.in || got.Host != test.host || !strings.Contains(got.Waits, test.waits) || (got.Waits == "") != test.in {
				t.Errorf("got %+v, want in %v, host %q, waits %q", got, test.in, test.host, test.waits)
			}
		})
	}
}

func TestAdmissionsAreReadAsWritten(t *testing.T) {
	list := []guard.Admission{{Claim: "data", Pod: "uid-1"}, {Claim: "log", Pod: "uid-1"}}
	text := guard.FormatAdmissions(list)
	if got := guard.ParseAdmissions(" , nonsense," + text); text != "data=uid-1,log=uid-1" || len(got) != 2 || got[0] != list[0] || got[1] != list[1] {
		t.Errorf("written %q, read %v", text, got)
	}
}
