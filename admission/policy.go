// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// policy is one ValidatingAdmissionPolicy: what it looks at, and the rules it holds against that.
type policy struct {
	name      string
	match     match
	variables []variable
	rules     []rule
	// audited publishes the reason of an override, wherever one stands on the object, in the audit log. The
	// expression cannot ask the authorizer; the answer's code tells whether the override was honoured.
	audited bool
	// mutatingToo is true if nobody could obey the rules without the MutatingAdmissionPolicy.
	mutatingToo bool
	// paramKind and params name the one object that the rules see as params, if they read any. Such a policy fails open: an API server that has not read the
	// object yet would refuse everything that the policy looks at. It must therefore protect no writer.
	paramKind *admissionv1.ParamKind
	params    *admissionv1.ParamRef
}

// match selects requests. A label that is not empty must be on the object before or after the request.
type match struct {
	group, version string
	resources      []string
	operations     []operation
	label          string
}

// variable is a named expression; it sees those before it.
type variable struct{ name, expression string }

// rule refuses a request of the operation on unless the expression allow holds. message is an expression that says
// what is refused, why, and what to do instead.
type rule struct {
	name    string
	on      []operation
	allow   string
	message string
}

var (
	create = admissionv1.Create
	update = admissionv1.Update
	remove = admissionv1.Delete
)

type operation = admissionv1.OperationType

func on(operations ...operation) []operation { return operations }

// object renders the policy. Everything that the API server would default is set, so that what is stored can be
// compared with what is wanted.
func (p policy) object() *admissionv1.ValidatingAdmissionPolicy {
	doubt := admissionv1.Fail
	if p.paramKind != nil {
		doubt = admissionv1.Ignore
	}
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind:        p.paramKind,
		FailurePolicy:    &doubt,
		MatchConstraints: p.match.object(),
	}
	for _, v := range p.variables {
		spec.Variables = append(spec.Variables, admissionv1.Variable{Name: v.name, Expression: v.expression})
	}
	for _, r := range p.rules {
		spec.Validations = append(spec.Validations, r.object())
	}
	if p.audited {
		spec.AuditAnnotations = []admissionv1.AuditAnnotation{{
			Key:             "override",
			ValueExpression: "variables.reason",
		}}
	}
	return &admissionv1.ValidatingAdmissionPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Spec:       spec,
	}
}

func (p policy) binding() *admissionv1.ValidatingAdmissionPolicyBinding {
	return &admissionv1.ValidatingAdmissionPolicyBinding{
		TypeMeta:   metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "ValidatingAdmissionPolicyBinding"},
		ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName:        p.name,
			ParamRef:          p.params,
			ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}
}

func (r rule) object() admissionv1.Validation {
	forbidden := metav1.StatusReasonForbidden
	operations := make([]string, 0, len(r.on))
	for _, o := range r.on {
		operations = append(operations, quote(string(o)))
	}
	return admissionv1.Validation{
		Expression:        fmt.Sprintf("!(request.operation in [%s]) || (%s)", strings.Join(operations, ", "), r.allow),
		MessageExpression: fmt.Sprintf("%s + %s + variables.stamp", quote(r.mark()), r.message),
		Message:           r.mark() + "refused by Holdfast; the message could not be made, see docs/spec/admission.md",
		Reason:            &forbidden,
	}
}

// mark begins every message of the rule.
func (r rule) mark() string { return "[" + r.name + "] " }

func (m match) object() *admissionv1.MatchResources {
	equivalent := admissionv1.Equivalent
	everywhere := admissionv1.AllScopes
	selector := &metav1.LabelSelector{}
	if m.label != "" {
		selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: m.label, Operator: metav1.LabelSelectorOpExists}}
	}
	return &admissionv1.MatchResources{
		NamespaceSelector: &metav1.LabelSelector{},
		ObjectSelector:    selector,
		MatchPolicy:       &equivalent,
		ResourceRules: []admissionv1.NamedRuleWithOperations{{
			RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: m.operations,
				Rule: admissionv1.Rule{
					APIGroups:   []string{m.group},
					APIVersions: []string{m.version},
					Resources:   m.resources,
					Scope:       &everywhere,
				},
			},
		}},
	}
}
