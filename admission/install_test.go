// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

func TestInstallingAgainWritesNothing(t *testing.T) {
	ctx := guarded(t)
	in, err := admission.Install(ctx, holdfast.client(t), admission.Identity{}, everything)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Written)+len(in.Newer)+len(in.Deferred) != 0 || in.Version != admission.Current() {
		t.Fatalf("second install: %+v", in)
	}
}

func TestTheAPIServerIsAskedForWhatItCan(t *testing.T) {
	guarded(t)
	caps, err := admission.Discover(cluster.Client.RESTMapper())
	if err != nil || caps != everything {
		t.Fatalf("a server of 1.37 can %+v, %v", caps, err)
	}
	old := meta.NewDefaultRESTMapper([]schema.GroupVersion{admissionv1.SchemeGroupVersion})
	if caps, err := admission.Discover(old); err != nil || caps.MutatingPolicies {
		t.Fatalf("a server without MutatingAdmissionPolicy can %+v, %v", caps, err)
	}
}

func TestTheExpressionsHaveTheRightTypes(t *testing.T) {
	checker := &validating.TypeChecker{
		SchemaResolver: &resolver.ClientDiscoveryResolver{Discovery: discovery.NewDiscoveryClientForConfigOrDie(cluster.Config)},
		RestMapper:     cluster.Client.RESTMapper(),
	}
	checked := 0
	for _, o := range admission.Objects(admission.Identity{}, everything) {
		policy, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue
		}
		checked++
		for _, w := range checker.Check(policy) {
			t.Errorf("%s %s: %s", policy.Name, w.FieldRef, strings.TrimSpace(w.Warning))
		}
	}
	if checked == 0 {
		t.Error("no policy was checked")
	}
	// The checker must be able to find fault, or its silence means nothing.
	broken := &admissionv1.ValidatingAdmissionPolicy{Spec: admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: admission.Objects(admission.Identity{}, everything)[0].(*admissionv1.ValidatingAdmissionPolicy).Spec.MatchConstraints,
		Validations:      []admissionv1.Validation{{Expression: "object.spec.noSuchField == 1"}},
	}}
	if len(checker.Check(broken)) == 0 {
		t.Error("the checker finds no fault with an unknown field")
	}
}

// TestEveryRuleRefusesSomething keeps the tables complete: a rule that no attempt expects would not be missed, and an attempt that no rule is left to
// refuse is told at once, before a proof waits for it.
func TestEveryRuleRefusesSomething(t *testing.T) {
	var expected []string
	for _, table := range []map[string]attempt{always, armed, births, evicting, ofNewcomers} {
		for _, a := range table {
			expected = append(expected, a.refusedBy)
		}
	}
	for _, table := range []map[string]clusterAttempt{ofNodes, ofAttachments, ofNamespaces, ofIncidents, ofApps, ofClaims, ofVolumes, ofDrivers, ofKinds} {
		for _, a := range table {
			expected = append(expected, a.refusedBy)
		}
	}
	for _, a := range configAttempts {
		expected = append(expected, a.refusedBy)
	}
	expected = append(expected, profilePolicy+"ProfileStatus", silencePolicy+"HostSilence", newcomerBirths+"UngatedNewcomer", newcomerBirths+"BornUnguarded") // tests of their own
	var there []string
	for _, o := range admission.Objects(admission.Identity{}, everything) {
		policy, ok := o.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue
		}
		for _, v := range policy.Spec.Validations {
			name, _, _ := strings.Cut(strings.TrimPrefix(v.Message, "["), "] ")
			there = append(there, policy.Name+"/"+name)
			if !slices.Contains(expected, policy.Name+"/"+name) {
				t.Errorf("no attempt is refused by %s/%s alone", policy.Name, name)
			}
		}
	}
	for _, names := range expected {
		for name := range strings.SplitSeq(names, "|") { // whichever answers first
			if name != "" && !slices.Contains(there, name) {
				t.Errorf("there is no rule %s", name)
			}
		}
	}
}

// TestThePoliciesFailClosedAndHaveNoParameters: but for the one that keeps endpoints, and protects no writer. An API server that cannot read its parameter must
// not refuse what kubelets say of their pods.
func TestThePoliciesFailClosedAndHaveNoParameters(t *testing.T) {
	for _, o := range admission.Objects(admission.Identity{}, everything) {
		switch p := o.(type) {
		case *admissionv1.ValidatingAdmissionPolicy:
			doubt := admissionv1.Fail
			if p.Name+"/" == silencePolicy {
				doubt = admissionv1.Ignore
			}
			if (p.Spec.ParamKind != nil) != (doubt == admissionv1.Ignore) || *p.Spec.FailurePolicy != doubt {
				t.Errorf("%s: paramKind %v, failurePolicy %s", p.Name, p.Spec.ParamKind, *p.Spec.FailurePolicy)
			}
		case *admissionv1.MutatingAdmissionPolicy:
			if p.Spec.ParamKind != nil || *p.Spec.FailurePolicy != admissionv1.Fail {
				t.Errorf("%s: paramKind %v, failurePolicy %s", p.Name, p.Spec.ParamKind, *p.Spec.FailurePolicy)
			}
		}
	}
}

func TestTheVersionDoesNotDependOnTheIdentity(t *testing.T) {
	at := func(o client.Object) string { return o.GetAnnotations()[admission.AnnotationVersion] }
	ours, theirs := admission.Objects(admission.Identity{}, everything), admission.Objects(admission.Identity{Namespace: "elsewhere", Manager: "m"}, everything)
	if at(ours[0]) != at(theirs[0]) || at(ours[0]) != admission.Current().String() {
		t.Errorf("versions %q and %q, want %q", at(ours[0]), at(theirs[0]), admission.Current())
	}
	if got := admission.ParseVersion(admission.Current().String()); got != admission.Current() {
		t.Errorf("the version is read as %v", got)
	}
	for _, s := range []string{"", "x", "1", "-1-a", "one-a"} {
		if got := admission.ParseVersion(s); got != (admission.Version{}) {
			t.Errorf("%q is read as %v", s, got)
		}
	}
}

// stored describes what an API server holds before an install, by one binding's version and content, and what must
// become of it.
var stored = map[string]struct {
	version           string
	changed           bool // the content is not ours
	held              bool
	written, deferred bool
	newer             bool
	inForce           int
}{
	"nothing is stored while something is held": {held: true, written: true, inForce: admission.Number},
	"our own version":                                       {version: admission.Current().String(), inForce: admission.Number},
	"our own version, changed by hand":                      {version: admission.Current().String(), changed: true, written: true, inForce: admission.Number},
	"our own version, changed by hand while held":           {version: admission.Current().String(), changed: true, held: true, written: true, inForce: admission.Number},
	"an older version":                                      {version: older(), changed: true, written: true, inForce: admission.Number},
	"an older version while held":                           {version: older(), changed: true, held: true, written: true, inForce: admission.Number},
	"a newer version":                                       {version: newer(), changed: true, newer: true, inForce: admission.Number + 1},
	"a newer version while held":                            {version: newer(), changed: true, held: true, newer: true, inForce: admission.Number + 1},
	"other content of the same number":                      {version: sibling(), changed: true, written: true, inForce: admission.Number},
	"other content of the same number while held":           {version: sibling(), changed: true, held: true, deferred: true, inForce: admission.Number},
	"an object of somebody else under our name":             {version: "none", changed: true, written: true, inForce: admission.Number},
	"an object of somebody else under our name, while held": {version: "none", changed: true, held: true, written: true, inForce: admission.Number},
}

func older() string   { return fmt.Sprintf("%d-aaaaaaaaaaaa", admission.Number-1) }
func newer() string   { return fmt.Sprintf("%d-aaaaaaaaaaaa", admission.Number+1) }
func sibling() string { return fmt.Sprintf("%d-aaaaaaaaaaaa", admission.Number) }

func TestTheNewestPoliciesWin(t *testing.T) {
	for name, s := range stored {
		t.Run(name, func(t *testing.T) {
			objects := []client.Object{&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: admission.DefaultNamespace, Annotations: map[string]string{
				v1alpha1.AnnotationHeld: "holdfast-canary-held=holdfast-canary"}}}}
			if s.held {
				objects = append(objects, namespace(annotated)("shop"))
			}
			want := admission.Objects(admission.Identity{}, everything)[1].(*admissionv1.ValidatingAdmissionPolicyBinding)
			if s.version != "" {
				was := want.DeepCopy()
				was.Annotations = map[string]string{admission.AnnotationVersion: s.version, "example.com/note": "theirs"}
				if s.changed {
					was.Spec.ValidationActions = []admissionv1.ValidationAction{admissionv1.Audit}
				}
				objects = append(objects, was)
			}
			c := fake.NewClientBuilder().WithScheme(envtest.Scheme()).WithObjects(objects...).Build()
			in, err := admission.Install(t.Context(), c, admission.Identity{}, everything)
			if err != nil {
				t.Fatal(err)
			}
			key := "ValidatingAdmissionPolicyBinding/" + want.Name
			for list, is := range map[string]struct{ got, want bool }{
				"written":  {slices.Contains(in.Written, key), s.written},
				"newer":    {slices.Contains(in.Newer, key), s.newer},
				"deferred": {slices.Contains(in.Deferred, key), s.deferred},
				"held":     {in.Held, s.held},
			} {
				if is.got != is.want {
					t.Errorf("%s: %v, want %v", list, is.got, is.want)
				}
			}
			if in.Version.Number != s.inForce {
				t.Errorf("version %v in force, want number %d", in.Version, s.inForce)
			}
			now := &admissionv1.ValidatingAdmissionPolicyBinding{}
			must(t, c.Get(t.Context(), client.ObjectKeyFromObject(want), now))
			if ours := slices.Equal(now.Spec.ValidationActions, want.Spec.ValidationActions); ours == (s.newer || s.deferred) {
				t.Errorf("afterwards the content is ours: %v", ours)
			}
			if s.version != "" && now.Annotations["example.com/note"] != "theirs" {
				t.Errorf("annotations of others were lost: %v", now.Annotations)
			}
		})
	}
}

func TestWithoutMutatingPoliciesNoneIsInstalled(t *testing.T) {
	c := fake.NewClientBuilder().WithScheme(envtest.Scheme()).Build()
	if _, err := admission.Install(t.Context(), c, admission.Identity{}, admission.Capabilities{}); err != nil {
		t.Fatal(err)
	}
	var mutating admissionv1.MutatingAdmissionPolicyList
	must(t, c.List(t.Context(), &mutating))
	if len(mutating.Items) != 0 {
		t.Errorf("%d were installed", len(mutating.Items))
	}
}

func TestWhenHoldsCannotBeReadNothingIsInstalled(t *testing.T) {
	blind := fake.NewClientBuilder().WithScheme(envtest.Scheme()).WithInterceptorFuncs(cannotList).Build()
	if _, err := admission.Install(t.Context(), blind, admission.Identity{}, everything); err == nil || !strings.Contains(err.Error(), "looking for held pods") {
		t.Errorf("install says %v", err)
	}
	var found admissionv1.ValidatingAdmissionPolicy
	if err := blind.Get(context.Background(), client.ObjectKey{Name: "holdfast-held-pods"}, &found); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("afterwards: %v", err)
	}
}

var errBlind = errors.New("namespaces cannot be listed")
