// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// labellingName is the name of the MutatingAdmissionPolicy and of its binding.
const labellingName = "holdfast-label-pods"

// claimVariables are what is known about a new pod by the claims that it names: claims, their names; matching, what
// [guardsOf] them; expected, the app of the first of these, which is the value of the pod's label; called, the pod's
// name, empty while it is still to be generated; and newcomer. [AppOf] and [Newcomer] are the same in Go.
func claimVariables() []variable {
	const placed = "(g[2].endsWith('*')" +
		" ? c != g[1] && variables.called == g[2].substring(0, g[2].size() - 1) + c.substring(g[1].size() - 1)" +
		" : variables.called != '' && variables.called == g[2])"
	return []variable{
		{"claims", "has(object.spec.volumes) ? object.spec.volumes.filter(v, has(v.persistentVolumeClaim)).map(v, v.persistentVolumeClaim.claimName) : []"},
		{"matching", "variables.claims.size() == 0 ? [] : " + guardsOf("variables.claims")},
		{"expected", "variables.matching.size() == 0 ? '' : variables.matching[0][0]"},
		{"called", "has(object.metadata.name) ? object.metadata.name : ''"},
		{"newcomer", "variables.matching.exists(g, variables.claims.exists(c, " + covers + " && !" + placed + "))"},
		{"onNode", "has(object.spec.nodeName) && object.spec.nodeName != ''"},
		{"gates", gatesOf("object")},
		{"gated", quote(v1alpha1.GateNewcomer) + " in variables.gates"},
	}
}

// covers holds if the entry g, as [app, claim, place], stands for the claim c.
const covers = "(c == g[1] || (g[1].endsWith('*') && c.startsWith(g[1].substring(0, g[1].size() - 1))" +
	" && c.substring(g[1].size() - 1).matches('^[0-9]+$')))"

// guardsOf lists the entries of the namespace's annotation, as [app, claim, place], that stand for any of the claims.
func guardsOf(claims string) string {
	return namespaceEntries(v1alpha1.AnnotationClaims) + ".filter(e, e.contains('='))" +
		".map(e, [e.substring(0, e.indexOf('=')).trim(), e.substring(e.indexOf('=') + 1)])" +
		".map(e, [e[0]] + (e[1].contains('@') ? [e[1].substring(0, e[1].indexOf('@')), e[1].substring(e[1].indexOf('@') + 1)] : [e[1], '']))" +
		".filter(g, " + claims + ".exists(c, " + covers + "))"
}

// labelling is the MutatingAdmissionPolicy that marks pods on guarded claims when they are created, so that a pod is
// guarded from its first moment, and gates those that are not in their place, also with every Holdfast process dead.
// It may run twice over one pod. A pod that names its node cannot have a gate; the rule NewcomerOnNode is for it.
func labelling() *admissionv1.MutatingAdmissionPolicy {
	fail := admissionv1.Fail
	spec := admissionv1.MutatingAdmissionPolicySpec{
		FailurePolicy:      &fail,
		ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy,
		MatchConstraints:   match{"", "v1", []string{"pods"}, on(create), ""}.object(),
		// Conditions do not see the namespace.
		MatchConditions: []admissionv1.MatchCondition{{
			Name:       "pod-names-a-claim",
			Expression: "has(object.spec.volumes) && object.spec.volumes.exists(v, has(v.persistentVolumeClaim))",
		}},
		Mutations: []admissionv1.Mutation{{
			PatchType: admissionv1.PatchTypeJSONPatch,
			JSONPatch: &admissionv1.JSONPatch{Expression: strings.Join([]string{labelPatch(), gateListPatch(), gatePatch()}, " + ")},
		}},
	}
	for _, v := range claimVariables() {
		spec.Variables = append(spec.Variables, admissionv1.Variable{Name: v.name, Expression: v.expression})
	}
	return &admissionv1.MutatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: labellingName},
		Spec:       spec,
	}
}

// labelPatch puts the app's label on.
func labelPatch() string {
	return fmt.Sprintf("[has(object.metadata.labels)"+
		" ? JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey(%[1]s), value: variables.expected}"+
		" : JSONPatch{op: 'add', path: '/metadata/labels', value: {%[1]s: variables.expected}}"+
		"].filter(p, variables.expected != '')", quote(v1alpha1.LabelApp))
}

// wantsGate holds if the pod must wait and does not yet.
const wantsGate = "variables.newcomer && !variables.gated && !variables.onNode"

// gateListPatch makes the list that gatePatch adds to. A list with an element in it, as one value, would take down
// the request's handler in Kubernetes 1.36.
func gateListPatch() string {
	return "[JSONPatch{op: 'add', path: '/spec/schedulingGates', value: []}].filter(p, " + wantsGate + " && !has(object.spec.schedulingGates))"
}

// gatePatch adds the gate.
func gatePatch() string {
	return fmt.Sprintf("[JSONPatch{op: 'add', path: '/spec/schedulingGates/-', value: {'name': %s}}].filter(p, %s)", quote(v1alpha1.GateNewcomer), wantsGate)
}

func labellingBinding() *admissionv1.MutatingAdmissionPolicyBinding {
	return &admissionv1.MutatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: labellingName},
		Spec:       admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: labellingName},
	}
}
