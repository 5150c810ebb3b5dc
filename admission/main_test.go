// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package admission_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

// cluster is the API server of this package's tests.
var cluster *envtest.Cluster

// auditLog is the API server's.
var auditLog string

const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
	"rules": [{"level": "Metadata", "verbs": ["delete"], "resources": [{"resources": ["pods"]}]}, {"level": "None"}]}`

func TestMain(m *testing.M) { os.Exit(audited(m)) }

func audited(m *testing.M) int {
	dir, err := os.MkdirTemp("", "holdfast-admission-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	auditLog = filepath.Join(dir, "audit.log")
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return envtest.Main(m, &cluster, "audit-log-path="+auditLog, "audit-policy-file="+policy)
}

// identity is a caller.
type identity struct {
	user   string
	groups []string
}

const hostName = "node-1"

var (
	holdfast          = identity{user: admission.Identity{}.Username()}
	alice             = identity{user: "alice"}
	breaker           = identity{user: "breaker"} // has the verb override
	canary            = identity{user: "system:serviceaccount:holdfast-system:holdfast-canary"}
	ownKubelet        = identity{user: "system:node:" + hostName, groups: []string{"system:nodes"}}
	otherKubelet      = identity{user: "system:node:node-2", groups: []string{"system:nodes"}}
	pretendedKubelet  = identity{user: "system:node:" + hostName}
	taintManager      = controller("node-controller")
	newTaintManager   = controller("taint-eviction-controller")
	podGC             = controller("pod-garbage-collector")
	statefulSets      = controller("statefulset-controller")
	namespaceEnder    = controller("namespace-controller")
	attachDetach      = controller("attachdetach-controller")
	scheduler         = identity{user: "system:kube-scheduler"}
	attacher          = identity{user: "system:serviceaccount:kube-system:csi-attacher"}
	otherHoldfastName = identity{user: "system:serviceaccount:shop:holdfast-manager"}
)

func controller(name string) identity {
	return identity{user: "system:serviceaccount:kube-system:" + name}
}

// config is the identity's, by impersonation.
func (id identity) config() *rest.Config { return id.impersonated(cluster.Config) }

// impersonated is the identity's, by an administrator of some cluster.
func (id identity) impersonated(admin *rest.Config) *rest.Config {
	c := rest.CopyConfig(admin)
	c.QPS, c.Burst = 1000, 1000
	c.Impersonate = rest.ImpersonationConfig{UserName: id.user, Groups: id.groups}
	return c
}

// client is the identity's, without a cache.
func (id identity) client(t testing.TB) client.Client {
	t.Helper()
	c, err := client.New(id.config(), client.Options{Scheme: envtest.Scheme(), Mapper: cluster.Client.RESTMapper()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var everything = admission.Capabilities{MutatingPolicies: true}

// guard lets everybody do everything but override, so that every refusal is the policies', installs them as Holdfast
// and waits until they are in force.
var guard = sync.OnceValue(func() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := everybody(ctx, cluster.Client); err != nil {
		return err
	}
	if err := grant(ctx, cluster.Client, "override", rbacv1.PolicyRule{
		APIGroups: []string{"guard.holdfast.dev"}, Resources: []string{"guardedstatefulapps"}, Verbs: []string{"override"},
	}, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: breaker.user}); err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: admission.DefaultNamespace}}
	if err := cluster.Client.Create(ctx, ns); err != nil {
		return err
	}
	manager, err := client.New(holdfast.config(), client.Options{Scheme: envtest.Scheme()})
	if err != nil {
		return err
	}
	if _, err := admission.Install(ctx, manager, admission.Identity{}, everything); err != nil {
		return err
	}
	return proven(ctx, manager)
})

// proven waits until the only API server refuses everything.
func proven(ctx context.Context, manager client.Client) error {
	probe, err := client.New(canary.config(), client.Options{Scheme: envtest.Scheme()})
	if err != nil {
		return err
	}
	proof, err := admission.Prove(ctx, admission.Canary{
		Holdfast: manager, Servers: []admission.Server{{Name: "the only one", Probe: probe}}, Capabilities: everything, Patience: 30 * time.Second,
	})
	if err == nil && !proof.Holds() {
		err = fmt.Errorf("the policies are not in force:\n%s", strings.Join(proof.Open(), "\n"))
	}
	return err
}

// guarded starts a test that needs the policies in force.
func guarded(t *testing.T) context.Context {
	t.Helper()
	if err := guard(); err != nil {
		t.Fatal(err)
	}
	return t.Context()
}

// everybody may do everything but override.
func everybody(ctx context.Context, admin client.Client) error {
	return grant(ctx, admin, "everything-but-override", rbacv1.PolicyRule{
		APIGroups: []string{"*"}, Resources: []string{"*"},
		Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"},
	}, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:authenticated"})
}

// grant makes a ClusterRole and binds it.
func grant(ctx context.Context, admin client.Client, name string, rule rbacv1.PolicyRule, to rbacv1.Subject) error {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{rule}}
	if err := admin.Create(ctx, role); err != nil {
		return err
	}
	return admin.Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{to},
	})
}
