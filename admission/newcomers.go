// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// newcomerWhy says why a newcomer has to wait.
const newcomerWhy = "it names a claim that app ' + variables.expected + ' guards, another pod may be writing to it on another host, and its own name does " +
	"not rule that out"

// newcomerOnNode refuses the pod that no scheduler and no binding stands before. A gate cannot help: the API server
// refuses one on a pod that names its node.
var newcomerOnNode = rule{
	name:  "NewcomerOnNode",
	on:    on(create),
	allow: "!variables.newcomer || !variables.onNode",
	message: "'creating ' + variables.pod + ' with spec.nodeName is refused: " + newcomerWhy + ". Take spec.nodeName out and use a nodeSelector; " +
		"Holdfast then lets the pod start once no other host may be writing'",
}

// ungatedNewcomer refuses the pod that could start before Holdfast has looked. Where label and gate come from the
// API server itself, only a mutation that takes the gate off again, or their policy taken away, lets one come here.
var ungatedNewcomer = rule{
	name:  "UngatedNewcomer",
	on:    on(create),
	allow: "!variables.newcomer || variables.gated || variables.onNode",
	message: "'creating ' + variables.pod + ' without the scheduling gate " + v1alpha1.GateNewcomer + " is refused: " + newcomerWhy + ". The API server " +
		"puts the gate on by MutatingAdmissionPolicy " + labellingName + ": see that it is installed and that no webhook takes the gate off'",
}

// bornUnguarded refuses the pod that the rules by label would not see.
var bornUnguarded = rule{
	name:  "BornUnguarded",
	on:    on(create),
	allow: "variables.expected == '' || variables.app != ''",
	message: "'creating ' + variables.pod + ' without the label " + v1alpha1.LabelApp + "=' + variables.expected + ' is refused: it names a claim that app ' + " +
		"variables.expected + ' guards. The API server puts the label on by MutatingAdmissionPolicy " + labellingName + ": see that it is installed " +
		"and that no webhook takes the label off'",
}

// newcomerGate keeps the gate until Holdfast has looked. Gates cannot be added to what exists.
var newcomerGate = rule{
	name:  "NewcomerGate",
	on:    on(update),
	allow: "variables.holdfast || variables.lifted.size() == 0 || variables.overridden",
	message: "'lifting gate ' + variables.lifted.join(', ') + ' of ' + variables.pod + ' is refused: a pod on another host may still be writing to a claim that " +
		"it names. Holdfast lifts the gate once it has seen that none is: kubectl get pod ' + variables.name + ' -o yaml, kubectl get gsa, kubectl get hi. " +
		"To override, annotate the pod with " + v1alpha1.AnnotationOverride + "=<reason> and repeat; it needs the verb override on guardedstatefulapps ' + variables.app",
}

// newcomers are refused a node of their own choice, everywhere.
func newcomers(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-newcomers",
		match:     match{"", "v1", []string{"pods"}, on(create), ""},
		variables: append(podVariables(id, stamp, "object"), claimVariables()...),
		rules: []rule{
			newcomerOnNode,
		},
	}
}

// gatedNewcomers are refused without label and gate, where the API server gives both.
func gatedNewcomers(id Identity, stamp string) policy {
	return policy{
		name:      "holdfast-gated-newcomers",
		match:     match{"", "v1", []string{"pods"}, on(create), ""},
		variables: append(podVariables(id, stamp, "object"), claimVariables()...),
		rules: []rule{
			ungatedNewcomer,
			bornUnguarded,
		},
		mutatingToo: true,
	}
}

// gates watches the gates of all pods: where a template brings the gate, its pod may not have the label yet. Only the
// resource itself can lift one, so reports of kubelets do not pass here.
func gates(id Identity, stamp string) policy {
	return policy{
		name:  "holdfast-gates",
		match: match{"", "v1", []string{"pods"}, on(update), ""},
		variables: append(podVariables(id, stamp, "oldObject"),
			variable{"kept", gatesOf("object")},
			variable{"lifted", gatesOf("oldObject") + ".filter(g, !(g in variables.kept))"}),
		rules: []rule{
			newcomerGate,
		},
		audited: true,
	}
}
