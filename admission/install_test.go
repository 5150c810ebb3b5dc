// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery"

	"github.com/holdfast-dev/holdfast/admission"
)

func TestThePoliciesAreProvenRightAfterInstall(t *testing.T) { guarded(t) }

func TestInstallingAgainWritesNothing(t *testing.T) {
	ctx := guarded(t)
	in, err := admission.Install(ctx, holdfast.client(t), admission.Identity{}, everything)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Written)+len(in.Newer)+len(in.Deferred) != 0 || in.Version != admission.Current() || in.Held {
		t.Fatalf("second install: %+v", in)
	}
}

func TestTheExpressionsHaveTheRightTypes(t *testing.T) {
	checker := &validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: discovery.NewDiscoveryClientForConfigOrDie(cluster.Config)},
		RestMapper:     cluster.Client.RESTMapper(),
	}
	for _, o := range admission.Objects(admission.Identity{}) {
		policy, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue
		}
		for _, w := range checker.Check(policy) {
			t.Errorf("%s %s: %s", policy.Name, w.FieldRef, strings.TrimSpace(w.Warning))
		}
	}
}
