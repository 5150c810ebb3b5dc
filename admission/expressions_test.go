// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/version"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/holdfast-dev/holdfast/admission"
)

// Minor versions of Kubernetes 1: the first that Holdfast runs on, the first with the MutatingAdmissionPolicy, and that of the libraries.
const (
	oldest, mutatingSince, newest = 30, 36, 37
)

// capabilities are what the manager finds on a Kubernetes of that minor version.
func capabilities(minor uint) admission.Capabilities {
	return admission.Capabilities{MutatingPolicies: minor >= mutatingSince}
}

func TestEveryKubernetesTakesTheExpressionsThatItIsGiven(t *testing.T) {
	for minor := uint(oldest); minor <= newest; minor++ {
		t.Run(fmt.Sprintf("1.%d", minor), func(t *testing.T) {
			refusing, marking := 0, 0
			for _, o := range admission.Objects(admission.Identity{}, capabilities(minor)) {
				e := entering(t, minor, o.GetName())
				switch p := o.(type) {
				case *admissionv1.ValidatingAdmissionPolicy:
					refusing++
					e.validating(p.Spec)
				case *admissionv1.MutatingAdmissionPolicy:
					marking++
					e.mutating(p.Spec)
				}
				for _, refused := range e.refused {
					t.Error(refused)
				}
			}
			if (marking > 0) != (minor >= mutatingSince) || refusing == 0 {
				t.Errorf("%d validating and %d mutating policies were compiled", refusing, marking)
			}
		})
	}
}

// TestAnExpressionIsRefusedWhereItIsTooYoung shows that the test above can find fault, and that an API server takes only what the one before it
// understands.
func TestAnExpressionIsRefusedWhereItIsTooYoung(t *testing.T) {
	for expression, since := range map[string]uint{
		"sets.contains([1], [1])":                        oldest,            // of 1.29
		"isIP('192.0.2.1')":                              oldest + 1,        // of 1.30
		"format.dns1123Label().validate('a').hasValue()": oldest + 2,        // of 1.31
		"['a', 'b'].all(i, v, i < 2)":                    mutatingSince - 3, // of 1.32
		"[2, 1].sort() == [1, 2]":                        mutatingSince - 1, // of 1.34
		"noSuchFunction()":                               newest + 1,
	} {
		for minor := uint(oldest); minor <= newest; minor++ {
			e := entering(t, minor, "young")
			e.expression(&validating.ValidationCondition{Expression: expression}, withAuthorizer)
			if taken := len(e.refused) == 0; taken != (minor >= since) {
				t.Errorf("1.%d takes %s: %v, want it since 1.%d", minor, expression, taken, since)
			}
		}
	}
	for name, spoil := range map[string]func(*admissionv1.ValidatingAdmissionPolicySpec){
		"variable": func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Variables[0].Expression = "cidr('10.0.0.0/8').ip()"
		},
		"validation": func(s *admissionv1.ValidatingAdmissionPolicySpec) { s.Validations[0].Expression = "isIP('')" },
		"message": func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Validations[0].MessageExpression = "string(ip('::1'))"
		},
		"message that asks the authorizer": func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.Validations[0].MessageExpression = "authorizer.path('/').check('get').reason()"
		},
		"audit annotation": func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.AuditAnnotations[0].ValueExpression = "string(ip('::1'))"
		},
		"match condition": func(s *admissionv1.ValidatingAdmissionPolicySpec) {
			s.MatchConditions = []admissionv1.MatchCondition{{Name: "m", Expression: "variables.reason == ''"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range admission.Objects(admission.Identity{}, capabilities(oldest)) {
				p, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
				if !ok || len(p.Spec.AuditAnnotations) == 0 {
					continue
				}
				spoil(&p.Spec)
				e := entering(t, oldest, p.Name)
				e.validating(p.Spec)
				if len(e.refused) == 0 {
					t.Errorf("%s is taken", p.Name)
				}
				return
			}
			t.Error("no policy was spoilt")
		})
	}
	for name, spoil := range map[string]func(*admissionv1.MutatingAdmissionPolicySpec){
		"patch": func(s *admissionv1.MutatingAdmissionPolicySpec) {
			s.Mutations[0].JSONPatch.Expression = "[{'op': 'add'}]"
		},
		"variable": func(s *admissionv1.MutatingAdmissionPolicySpec) { s.Variables[0].Expression = "noSuchFunction()" },
	} {
		t.Run("mutating "+name, func(t *testing.T) {
			for _, o := range admission.Objects(admission.Identity{}, capabilities(mutatingSince)) {
				if p, ok := o.(*admissionv1.MutatingAdmissionPolicy); ok {
					spoil(&p.Spec)
					e := entering(t, mutatingSince, p.Name)
					e.mutating(p.Spec)
					if len(e.refused) == 0 {
						t.Errorf("%s is taken", p.Name)
					}
					return
				}
			}
			t.Error("no policy was spoilt")
		})
	}
}

// entry is the creation of one policy: its expressions are new to the API server. One of Kubernetes 1.30 takes what 1.29 understands, and so on, so
// that it can be rolled back. What is there already is understood by the newest libraries it has, and so by more.
type entry struct {
	name      string
	composing *plugincel.CompositedCompiler // knows the policy's variables
	plain     plugincel.Compiler
	refused   []string
}

func entering(t *testing.T, minor uint, name string) *entry {
	t.Helper()
	env := environment.MustBaseEnvSet(version.MajorMinor(1, minor-1))
	composing, err := plugincel.NewCompositedCompiler(env)
	must(t, err)
	return &entry{name: name, composing: composing, plain: plugincel.NewCompiler(env)}
}

var (
	withAuthorizer    = plugincel.OptionalVariableDeclarations{HasAuthorizer: true}
	withoutAuthorizer = plugincel.OptionalVariableDeclarations{}
	withPatches       = plugincel.OptionalVariableDeclarations{HasAuthorizer: true, HasPatchTypes: true}
)

func (e *entry) validating(spec admissionv1.ValidatingAdmissionPolicySpec) {
	asking, telling := withAuthorizer, withoutAuthorizer
	asking.HasParams, telling.HasParams = spec.ParamKind != nil, spec.ParamKind != nil
	e.conditions(spec.MatchConditions)
	e.variables(spec.Variables, asking)
	for _, v := range spec.Validations {
		e.expression(&validating.ValidationCondition{Expression: v.Expression}, asking)
		e.expression(&validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}, telling)
	}
	for _, a := range spec.AuditAnnotations {
		e.expression(&validating.AuditAnnotationCondition{ValueExpression: a.ValueExpression}, asking)
	}
}

func (e *entry) mutating(spec admissionv1.MutatingAdmissionPolicySpec) {
	e.conditions(spec.MatchConditions)
	e.variables(spec.Variables, withAuthorizer)
	for _, m := range spec.Mutations {
		if m.JSONPatch == nil {
			e.refused = append(e.refused, e.name+": a mutation without JSONPatch is not compiled here")
			continue
		}
		e.expression(&patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, withPatches)
	}
}

func (e *entry) variables(list []admissionv1.Variable, sees plugincel.OptionalVariableDeclarations) {
	for _, v := range list {
		result := e.composing.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, sees, environment.NewExpressions)
		e.judge("variable "+v.Name, result)
	}
}

// conditions do not see the variables.
func (e *entry) conditions(list []admissionv1.MatchCondition) {
	for i := range list {
		condition := (*matchconditions.MatchCondition)(&list[i])
		e.judge(list[i].Expression, e.plain.CompileCELExpression(condition, withAuthorizer, environment.NewExpressions))
	}
}

func (e *entry) expression(of plugincel.ExpressionAccessor, sees plugincel.OptionalVariableDeclarations) {
	e.judge(of.GetExpression(), e.composing.CompileCELExpression(of, sees, environment.NewExpressions))
}

func (e *entry) judge(what string, result plugincel.CompilationResult) {
	if result.Error != nil {
		e.refused = append(e.refused, strings.Join([]string{e.name, what, result.Error.Error()}, ": "))
	}
}
