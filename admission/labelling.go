// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// labellingName is the name of the MutatingAdmissionPolicy and of its binding.
const labellingName = "holdfast-label-pods"

// labellingVariables are: claims, the claims that the new pod names; matching, the entries of the namespace's
// annotation for them; and expected, the app of the first of these, which is the value of the pod's label. [AppOf] is
// the same in Go.
func labellingVariables() []variable {
	claim := "e.substring(e.indexOf('=') + 1)"
	stem := "e.substring(e.indexOf('=') + 1, e.size() - 1)"
	return []variable{
		{"claims", "has(object.spec.volumes) ? object.spec.volumes.filter(v, has(v.persistentVolumeClaim)).map(v, v.persistentVolumeClaim.claimName) : []"},
		{"matching", namespaceEntries(v1alpha1.AnnotationClaims) + ".filter(e, e.contains('=') && variables.claims.exists(c, " +
			fmt.Sprintf("c == %[1]s || (e.endsWith('*') && c.startsWith(%[2]s) && c.substring(%[2]s.size()).matches('^[0-9]+$'))))", claim, stem)},
		{"expected", "variables.matching.size() == 0 ? '' : variables.matching[0].substring(0, variables.matching[0].indexOf('=')).trim()"},
	}
}

// labelling is the MutatingAdmissionPolicy that marks pods on guarded claims when they are created, so that a pod is
// guarded from its first moment, also with every Holdfast process dead.
func labelling() *admissionv1.MutatingAdmissionPolicy {
	fail := admissionv1.Fail
	key := quote(v1alpha1.LabelApp)
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
			JSONPatch: &admissionv1.JSONPatch{Expression: fmt.Sprintf(
				"[has(object.metadata.labels)"+
					" ? JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey(%[1]s), value: variables.expected}"+
					" : JSONPatch{op: 'add', path: '/metadata/labels', value: {%[1]s: variables.expected}}"+
					"].filter(p, variables.expected != '')", key)},
		}},
	}
	for _, v := range labellingVariables() {
		spec.Variables = append(spec.Variables, admissionv1.Variable{Name: v.name, Expression: v.expression})
	}
	return &admissionv1.MutatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: labellingName},
		Spec:       spec,
	}
}

func labellingBinding() *admissionv1.MutatingAdmissionPolicyBinding {
	return &admissionv1.MutatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "MutatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: labellingName},
		Spec:       admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: labellingName},
	}
}
