// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package envtest_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func apply(t *testing.T, dirs ...string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := cluster.Apply(t.Context(), dirs...)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestTheInstallIsAcceptedAndItsPodsAreRestricted(t *testing.T) {
	var deployments []*appsv1.Deployment
	for _, obj := range apply(t, "manager", "rbac") {
		if obj.GetKind() == "Deployment" {
			deployment := &appsv1.Deployment{}
			get(t, obj.GetNamespace()+"/"+obj.GetName(), deployment)
			deployments = append(deployments, deployment)
		}
	}
	if len(deployments) != 1 {
		t.Fatalf("%d Deployments in config/manager, want 1", len(deployments))
	}
	pod := &corev1.Pod{ObjectMeta: *deployments[0].Spec.Template.ObjectMeta.DeepCopy(), Spec: deployments[0].Spec.Template.Spec}
	pod.Name, pod.Namespace = "manager", deployments[0].Namespace
	if err := cluster.Client.Create(t.Context(), pod.DeepCopy(), client.DryRunAll); err != nil {
		t.Errorf("a pod of the Deployment is refused: %v", err)
	}

	pod.Spec.Containers[0].SecurityContext = nil
	err := cluster.Client.Create(t.Context(), pod, client.DryRunAll)
	if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
		t.Errorf("a pod without security context in %s: %v", pod.Namespace, err)
	}
}

func TestIdentitiesAreSeparate(t *testing.T) {
	apply(t, "manager", "rbac", "witness")
	const own, witnesses = "holdfast-system", "holdfast-witness"
	tests := []access{
		{"manager", "get", "", "secrets", own, "bmc", false},
		{"manager", "list", "", "secrets", "", "", false},
		{"manager", "create", "", "serviceaccounts/token", own, "holdfast-fencer", true},
		{"manager", "create", "", "serviceaccounts/token", own, "holdfast-canary", true},
		{"manager", "create", "", "serviceaccounts/token", own, "default", false},
		{"manager", "create", "", "serviceaccounts/token", "kube-system", "holdfast-fencer", false},
		{"manager", "create", "", "pods", "default", "", false},
		{"manager", "create", "", "pods", own, "", true},
		{"manager", "delete", "", "pods", "shop", "db-0", true},
		{"manager", "delete", "", "nodes", "", "node-1", false},
		{"manager", "delete", "admissionregistration.k8s.io", "validatingadmissionpolicies", "", "p", false},
		{"manager", "delete", "guard.holdfast.dev", "hostincidents", "", "i", true}, // those that are over, in time
		{"manager", "update", "guard.holdfast.dev", "hostincidents", "", "i", false},
		{"manager", "create", "guard.holdfast.dev", "hostattestations", "", "a", false},
		{"manager", "override", "guard.holdfast.dev", "guardedstatefulapps", "shop", "db", false},
		{"manager", "update", "coordination.k8s.io", "leases", "kube-node-lease", "node-1", false},
		{"fencer", "get", "", "secrets", own, "bmc", true},
		{"fencer", "list", "", "secrets", own, "", false},
		{"fencer", "get", "", "secrets", "shop", "bmc", false},
		{"fencer", "get", "", "pods", own, "p", false},
		{"canary", "delete", "", "pods", own, "canary", true},
		{"canary", "patch", "", "pods/status", own, "canary", true},
		{"canary", "create", "", "pods/eviction", own, "canary", true},
		{"canary", "delete", "", "pods", "shop", "db-0", false},
		{"canary", "get", "", "secrets", own, "bmc", false},
		{"manager", "create", "", "serviceaccounts/token", own, "holdfast-authority", true},
		{"manager", "create", "", "namespaces", "", "holdfast-witness", false},
		{"manager", "patch", "apps", "daemonsets", witnesses, "holdfast-witness", true},
		{"manager", "create", "apps", "daemonsets", witnesses, "holdfast-witness", true},
		{"manager", "create", "apps", "daemonsets", witnesses, "other", false},
		{"manager", "patch", "apps", "daemonsets", "kube-system", "holdfast-witness", false},
		{"manager", "get", "", "secrets", witnesses, "holdfast-witness-gossip", false},
		{"manager", "approve", "certificates.k8s.io", "signers", "", "guard.holdfast.dev/witness", false},
		{"manager", "update", "certificates.k8s.io", "certificatesigningrequests/approval", "", "r", false},
		{"authority", "get", "", "secrets", own, "holdfast-witness-authority", true},
		{"authority", "get", "", "secrets", own, "bmc", false},
		{"authority", "list", "", "secrets", own, "", false},
		{"authority", "update", "", "secrets", witnesses, "holdfast-witness-gossip", true},
		{"authority", "get", "", "secrets", witnesses, "other", false},
		{"authority", "sign", "certificates.k8s.io", "signers", "", "guard.holdfast.dev/witness", true},
		{"authority", "sign", "certificates.k8s.io", "signers", "", "kubernetes.io/kube-apiserver-client", false},
		{"authority", "create", "", "serviceaccounts/token", own, "holdfast-manager", false},
		{witnesses + ":holdfast-witness", "create", "certificates.k8s.io", "certificatesigningrequests", "", "", true},
		{witnesses + ":holdfast-witness", "patch", "coordination.k8s.io", "leases", witnesses, "node-1", true},
		{witnesses + ":holdfast-witness", "get", "coordination.k8s.io", "leases", witnesses, "node-1", false},
		{witnesses + ":holdfast-witness", "patch", "coordination.k8s.io", "leases", "kube-node-lease", "node-1", false},
		{witnesses + ":holdfast-witness", "list", "certificates.k8s.io", "certificatesigningrequests", "", "", false},
		{witnesses + ":holdfast-witness", "get", "", "secrets", witnesses, "holdfast-witness-gossip", false},
		{witnesses + ":holdfast-witness", "get", "", "nodes", "", "node-1", false},
	}
	// What is allowed first: the authorizer takes a moment to see new roles, and what is not allowed means something
	// only once it has.
	slices.SortStableFunc(tests, func(a, b access) int {
		switch {
		case a.allowed == b.allowed:
			return 0
		case a.allowed:
			return -1
		default:
			return 1
		}
	})
	for _, test := range tests {
		t.Run(strings.Join([]string{test.who, test.verb, test.resource, test.namespace, test.name}, " "), func(t *testing.T) {
			err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
				allowed, err := test.ask(ctx)
				return allowed == test.allowed, err
			})
			if err != nil {
				t.Errorf("want allowed=%v: %v", test.allowed, err)
			}
		})
	}
}

// access is one question to the authorizer and the answer that it should give. Who is one of Holdfast's own, or an account with its namespace.
type access struct {
	who, verb, group, resource, namespace, name string
	allowed                                     bool
}

func (a access) ask(ctx context.Context) (bool, error) {
	resource, subresource, _ := strings.Cut(a.resource, "/")
	user := "holdfast-system:holdfast-" + a.who
	if strings.Contains(a.who, ":") {
		user = a.who
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:" + user,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: a.verb, Group: a.group, Resource: resource, Subresource: subresource, Namespace: a.namespace, Name: a.name,
		},
	}}
	err := cluster.Client.Create(ctx, review)
	return review.Status.Allowed, err
}
