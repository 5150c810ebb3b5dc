// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package paths_test tries every way around the hold that an API server has: it asks the server itself for all its
// resources and verbs, and knows of each what it can do to a held writer.
package paths_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

var cluster *envtest.Cluster

// Everything that the API server can serve is looked at, also what is off unless somebody turns it on.
func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster, "runtime-config=api/all=true")) }

// identity is a caller. The name %s stands for the scene's node.
type identity struct {
	name   string // in the test's words
	user   string
	groups []string
}

func controller(name string) identity {
	return identity{name: name, user: "system:serviceaccount:kube-system:" + name}
}

const (
	admin      = "admin"
	ownKubelet = "own kubelet"
	editor     = "editor"
)

// identities may do everything that RBAC can give but the verbs that are not in discovery (override, impersonate,
// escalate, bind); the editor has what the ClusterRole edit is made of,
// in the scene's namespace.
var identities = []identity{
	{name: admin, user: "admin-without-override"},
	controller("node-controller"),
	controller("taint-eviction-controller"),
	controller("device-taint-eviction-controller"),
	controller("pod-garbage-collector"),
	controller("attachdetach-controller"),
	controller("statefulset-controller"),
	controller("replicaset-controller"),
	controller("job-controller"),
	controller("namespace-controller"),
	controller("generic-garbage-collector"),
	controller("persistent-volume-binder"),
	controller("pvc-protection-controller"),
	{name: "scheduler", user: "system:kube-scheduler"},
	{name: "attacher", user: "system:serviceaccount:kube-system:csi-attacher"},
	{name: "another kubelet", user: "system:node:elsewhere", groups: []string{"system:nodes"}},
	{name: ownKubelet, user: "system:node:%s", groups: []string{"system:nodes"}},
	{name: editor, user: "editor"},
}

var holdfast = identity{name: "Holdfast", user: admission.Identity{}.Username()}

// in is the identity in the scene.
func (id identity) in(s *scene) identity {
	if strings.Contains(id.user, "%s") {
		id.user = fmt.Sprintf(id.user, s.node)
	}
	return id
}

func (id identity) config() *rest.Config {
	c := rest.CopyConfig(cluster.Config)
	c.QPS, c.Burst = 1000, 1000
	c.Impersonate = rest.ImpersonationConfig{UserName: id.user, Groups: id.groups}
	return c
}

func (id identity) client(t *testing.T) client.Client {
	t.Helper()
	c, err := client.New(id.config(), client.Options{Scheme: envtest.Scheme(), Mapper: cluster.Client.RESTMapper()})
	must(t, err)
	return c
}

func (id identity) dynamic(t *testing.T) dynamic.Interface {
	t.Helper()
	c, err := dynamic.NewForConfig(id.config())
	must(t, err)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// guard grants what identities have, makes what all scenes share and installs the policies.
var guard = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	us, err := client.New(holdfast.config(), client.Options{Scheme: envtest.Scheme(), Mapper: cluster.Client.RESTMapper()})
	if err != nil {
		return err
	}
	if err := grant(ctx); err != nil {
		return err
	}
	if err := allowed(ctx, holdfast.user, "", "delete"); err != nil {
		return err
	}
	if err := us.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: admission.DefaultNamespace}}); err != nil {
		return err
	}
	if err := us.Create(ctx, &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName, Labels: bolted}}); err != nil {
		return err
	}
	var kinds apiextensionsv1.CustomResourceDefinitionList
	if err := us.List(ctx, &kinds); err != nil {
		return err
	}
	for i := range kinds.Items {
		bolt := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"`+v1alpha1.LabelHold+`":"armed"}}}`))
		if err := us.Patch(ctx, &kinds.Items[i], bolt); err != nil {
			return err
		}
	}
	return install(ctx, us)
})

// allowed waits until the authorizer knows that the user may use the verb on pods: it takes a moment to hear of new bindings.
func allowed(ctx context.Context, user, namespace, verb string) error {
	return wait.PollUntilContextTimeout(ctx, 20*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user, ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: verb, Resource: "pods"},
		}}
		err := cluster.Client.Create(ctx, review)
		return review.Status.Allowed, err
	})
}

// bolted is what the manager writes on its own objects while something is held.
var bolted = map[string]string{v1alpha1.LabelHold: "armed"}

// install puts the policies in force.
func install(ctx context.Context, us client.Client) error {
	all := admission.Capabilities{MutatingPolicies: true}
	if _, err := admission.Install(ctx, us, admission.Identity{}, all); err != nil {
		return err
	}
	canary := identity{user: "system:serviceaccount:" + admission.DefaultNamespace + ":holdfast-canary"}
	probe, err := client.New(canary.config(), client.Options{Scheme: envtest.Scheme()})
	if err != nil {
		return err
	}
	proof, err := admission.Prove(ctx, admission.Canary{
		Holdfast: us, Servers: []admission.Server{{Name: "the only one", Probe: probe}}, Capabilities: all, Patience: time.Minute,
	})
	if err == nil && !proof.Holds() {
		err = fmt.Errorf("the policies are not in force:\n%s", strings.Join(proof.Open(), "\n"))
	}
	return err
}

// grant lets everybody do everything but override, and the editor only what an editor may.
func grant(ctx context.Context) error {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "everything-but-override"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"*"}, Resources: []string{"*"},
		Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
	}}}
	if err := cluster.Client.Create(ctx, role); err != nil {
		return err
	}
	subject := func(kind, name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
	}
	to := []rbacv1.Subject{
		subject(rbacv1.GroupKind, "system:nodes"), subject(rbacv1.UserKind, holdfast.user),
		subject(rbacv1.UserKind, "system:serviceaccount:"+admission.DefaultNamespace+":holdfast-canary"),
	}
	for _, id := range identities {
		if id.name != editor && id.name != ownKubelet {
			to = append(to, subject(rbacv1.UserKind, id.user))
		}
	}
	return cluster.Client.Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   to,
	})
}
