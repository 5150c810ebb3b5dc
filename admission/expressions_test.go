// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/version"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/holdfast-dev/holdfast/admission"
)

// oldest is the first Kubernetes that Holdfast runs on.
var oldest = version.MajorMinor(1, 30)

func TestTheOldestKubernetesUnderstandsTheExpressions(t *testing.T) {
	for _, o := range admission.Objects(admission.Identity{}, everything) {
		policy, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue // MutatingAdmissionPolicy is younger
		}
		compiler, err := plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(oldest))
		must(t, err)
		compile := func(e plugincel.ExpressionAccessor) {
			t.Helper()
			result := compiler.CompileCELExpression(e, plugincel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.NewExpressions)
			if result.Error != nil {
				t.Errorf("%s: %s: %v", policy.Name, e.GetExpression(), result.Error)
			}
		}
		for _, v := range policy.Spec.Variables {
			result := compiler.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression},
				plugincel.OptionalVariableDeclarations{HasAuthorizer: true}, environment.NewExpressions)
			if result.Error != nil {
				t.Errorf("%s: variable %s: %v", policy.Name, v.Name, result.Error)
			}
		}
		for _, v := range policy.Spec.Validations {
			compile(&validating.ValidationCondition{Expression: v.Expression})
			compile(&validating.MessageExpressionCondition{MessageExpression: v.MessageExpression})
		}
	}
}
