// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/holdfast-dev/holdfast/admission"
)

// cannotList makes a client that cannot list.
var cannotList = interceptor.Funcs{List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
	return errBlind
}}

// prove asks the cluster as the given second identity.
func prove(ctx context.Context, t *testing.T, second identity, version admission.Version) admission.Proof {
	t.Helper()
	proof, err := admission.Prove(ctx, admission.Canary{
		Holdfast:     holdfast.client(t),
		Servers:      []admission.Server{{Name: "one", Probe: second.client(t)}},
		Capabilities: everything,
		Version:      version,
		Patience:     2 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func TestAProofNamesEveryPathAndLeavesNothingBehind(t *testing.T) {
	ctx := guarded(t)
	proof := prove(ctx, t, canary, admission.Version{})
	if !proof.Holds() || proof.Version != admission.Current() {
		t.Fatalf("%v: %v", proof.Version, proof.Open())
	}
	for _, path := range []string{
		"force delete", "phase Failed", "stopped containers", "stripped label", "stripped label through status", "override without the verb",
		"delete while held", "stripped hold", "eviction while held", "eviction at once", "born guarded", "born held", "label and gate at birth",
	} {
		if !slices.Contains(proof.Servers[0].Proven, path) {
			t.Errorf("%q is not among the proven paths %q", path, proof.Servers[0].Proven)
		}
	}
	var pods corev1.PodList
	must(t, cluster.Client.List(ctx, &pods, client.InNamespace(admission.DefaultNamespace)))
	if len(pods.Items) != 0 {
		t.Errorf("%d pods are left", len(pods.Items))
	}
}

func TestAProofSurvivesCanariesThatACrashLeftBehind(t *testing.T) {
	ctx := guarded(t)
	left := newPod(admission.DefaultNamespace, "holdfast-canary-guarded")
	must(t, holdfast.client(t).Create(ctx, left))
	if proof := prove(ctx, t, canary, admission.Version{}); !proof.Holds() {
		t.Fatal(proof.Open())
	}
}

func TestAProofOfAnotherVersionFails(t *testing.T) {
	ctx := guarded(t)
	proof := prove(ctx, t, canary, admission.Version{Number: 99, Hash: "unknown"})
	if proof.Holds() || !slices.ContainsFunc(proof.Open(), func(s string) bool {
		return strings.Contains(s, "force delete: was refused by policies of another version than 99-unknown")
	}) {
		t.Fatal(proof.Open())
	}
}

func TestASecondIdentityThatMayOverrideProvesNothing(t *testing.T) {
	ctx := guarded(t)
	if got := prove(ctx, t, breaker, admission.Version{}).Open(); len(got) != 1 || !strings.HasPrefix(got[0], "one: override without the verb: was let through") {
		t.Fatal(got)
	}
}

func TestHoldfastItselfProvesNothing(t *testing.T) {
	ctx := guarded(t)
	proof := prove(ctx, t, holdfast, admission.Version{})
	if got := proof.Servers[0].Proven; !slices.Equal(got, []string{"newcomer on a node", "label and gate at birth"}) { // these two hold for Holdfast too
		t.Fatalf("proven as Holdfast: %q", got)
	}
	var pod corev1.Pod // the canary is gone through Holdfast's own hand, not through the tries
	if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: admission.DefaultNamespace, Name: "holdfast-canary-guarded"}, &pod); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func TestAMissingBindingIsFoundAndRepaired(t *testing.T) {
	ctx := guarded(t)
	us := holdfast.client(t)
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "holdfast-held-pods"}}
	must(t, cluster.Client.Delete(ctx, binding))
	t.Cleanup(func() {
		repair, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		in, err := admission.Install(repair, us, admission.Identity{}, everything)
		must(t, err)
		if !slices.Equal(in.Written, []string{"ValidatingAdmissionPolicyBinding/holdfast-held-pods"}) {
			t.Errorf("written: %q", in.Written)
		}
		must(t, proven(repair, us))
	})
	// The API server goes on refusing until it has heard of the deletion.
	for _, want := range []string{
		"ValidatingAdmissionPolicyBinding/holdfast-held-pods: is missing",
		"one: delete while held: was let through",
		"one: stripped hold: was let through",
	} {
		eventually(t, "report of "+want, func() bool {
			return slices.ContainsFunc(prove(ctx, t, canary, admission.Version{}).Open(), func(s string) bool { return strings.HasPrefix(s, want) })
		})
	}
}

func TestAChangedPolicyIsFoundAndRepairedWhileSomethingIsHeld(t *testing.T) {
	ctx := guarded(t)
	us := holdfast.client(t)
	must(t, us.Create(ctx, namespace(annotated)("held-while-changed")))
	policy := &admissionv1.ValidatingAdmissionPolicy{}
	must(t, cluster.Client.Get(ctx, client.ObjectKey{Name: "holdfast-nodes"}, policy))
	policy.Spec.MatchConditions = []admissionv1.MatchCondition{{Name: "never", Expression: "false"}}
	must(t, cluster.Client.Update(ctx, policy))
	if got := prove(ctx, t, canary, admission.Version{}).Open(); len(got) != 1 || !strings.HasPrefix(got[0], "ValidatingAdmissionPolicy/holdfast-nodes: differs") {
		t.Errorf("reported: %q", got)
	}
	in, err := admission.Install(ctx, us, admission.Identity{}, everything)
	must(t, err)
	if !in.Held || !slices.Equal(in.Written, []string{"ValidatingAdmissionPolicy/holdfast-nodes"}) {
		t.Errorf("install: %+v", in)
	}
	must(t, proven(ctx, us))
}

func TestAProofNeedsSomebodyToAsk(t *testing.T) {
	if _, err := admission.Prove(t.Context(), admission.Canary{}); err == nil || !strings.Contains(err.Error(), "name at least one") {
		t.Fatal(err)
	}
	if (admission.Proof{}).Holds() {
		t.Fatal("the empty proof holds")
	}
}

// eventually asks until the answer is yes, at most half a minute.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); !ask(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within half a minute", what)
		}
	}
}
