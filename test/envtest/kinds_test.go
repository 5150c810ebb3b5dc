// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package envtest_test

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

func TestDefaultsOfAnApp(t *testing.T) {
	create(t, object(t, validApp))
	app := &v1alpha1.GuardedStatefulApp{}
	get(t, "default/valid", app)

	want := v1alpha1.GuardedStatefulAppSpec{
		WorkloadRef: app.Spec.WorkloadRef,
		Mode:        v1alpha1.ModeEnforce,
		Health: v1alpha1.Health{
			StartupSeconds: 120,
			Probes: []v1alpha1.Probe{{
				Name: "sql", TCPSocket: app.Spec.Health.Probes[0].TCPSocket,
				PeriodSeconds: 2, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
			}},
		},
		OnApplicationFailure: v1alpha1.OnApplicationFailure{
			Action: "None", AfterSeconds: 60, Limit: v1alpha1.Limit{Count: 1, WindowSeconds: 3600},
		},
		OnKubeletFailure: v1alpha1.OnKubeletFailure{Traffic: "Keep", Repair: "None", WhenNotServing: v1alpha1.NotServingHold},
		OnIsolation:      v1alpha1.OnIsolation{WhenNotServing: v1alpha1.NotServingHold},
		OnHostLoss: v1alpha1.OnHostLoss{
			Action: "FenceAndMigrate", ConfirmAfterSeconds: 15, Approval: "Automatic", MinimumProof: v1alpha1.MinimumProofPowerOff,
		},
	}
	if !reflect.DeepEqual(app.Spec, want) {
		t.Errorf("defaults are\n%+v\nwant\n%+v", app.Spec, want)
	}
}

func TestRecyclingIsOffUntilItIsAskedForAndThenModest(t *testing.T) {
	create(t, object(t, validApp, "spec.connections.recycle={after: [Failover, ScaleOut, HostReturn], ports: [sql, 8080]}"))
	app := &v1alpha1.GuardedStatefulApp{}
	get(t, "default/valid", app)
	want := &v1alpha1.Recycle{After: []v1alpha1.RecycleAfter{v1alpha1.RecycleAfterFailover, v1alpha1.RecycleAfterScaleOut, v1alpha1.RecycleAfterHostReturn},
		Ports: []intstr.IntOrString{intstr.FromString("sql"), intstr.FromInt32(8080)}, PerSecond: 5, MaxPercent: 50}
	if !reflect.DeepEqual(app.Spec.Connections.Recycle, want) {
		t.Errorf("%+v, want %+v", app.Spec.Connections.Recycle, want)
	}
	now := metav1.Now().Rfc3339Copy()
	app.Status.Connections = &v1alpha1.ConnectionsStatus{Known: []string{"a", "b"}, Size: 2, Away: []string{"node-1"}, Waits: "for this",
		Round: &v1alpha1.RecycleRound{Number: 1, After: v1alpha1.RecycleAfterFailover, Pods: []string{"db-1"}, By: "manager", BeganAt: now, EndedAt: &now, Because: "it is done",
			Hosts: 3, Found: 10, Limit: 5, Ended: 5}}
	journal := app.Status.Connections.DeepCopy()
	if err := cluster.Client.Status().Update(t.Context(), app); err != nil {
		t.Fatal(err)
	}
	get(t, "default/valid", app)
	if !equality.Semantic.DeepEqual(app.Status.Connections, journal) {
		t.Errorf("the journal is %+v, and was %+v", app.Status.Connections, journal)
	}
}

func TestDefaultsOfAProfileAndOfTheConfig(t *testing.T) {
	create(t, object(t, validProfile))
	profile := &v1alpha1.FencingProfile{}
	get(t, "/valid", profile)
	method := profile.Spec.Levels[0].Methods[0]
	if method.TimeoutSeconds != 5 || method.SettleSeconds != 20 || method.IPMI.Port != 623 || method.IPMI.CipherSuite != 3 {
		t.Errorf("defaults of a method are %+v with %+v", method, method.IPMI)
	}
	if s := profile.Spec; s.Floors.ConfirmAfterSeconds != 5 || s.MinimumProof != v1alpha1.MinimumProofPowerOff || s.CheckEverySeconds != 60 {
		t.Errorf("defaults of a profile are %+v", s)
	}

	// What the manager makes when there is none.
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	create(t, config)
	want := v1alpha1.GuardConfigSpec{
		FenceBudget: v1alpha1.FenceBudget{Count: 2, WindowSeconds: 3600},
		Blindness:   v1alpha1.Blindness{StaleHostsPercent: 50, APISilentSeconds: 5},

		IncidentRetention: v1alpha1.IncidentRetention{PerNode: 10, MaxAgeSeconds: 30 * 24 * 3600},

		Witness: v1alpha1.Witness{GossipPort: 7948, Port: 7947, RuntimeSocket: "/run/containerd/containerd.sock", ResetConnections: ptr.To(true)},
	}
	if !equality.Semantic.DeepEqual(config.Spec, want) {
		t.Errorf("a config without spec is %+v, want %+v", config.Spec, want)
	}
	enabled := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"witness":{"enabled":true}}}`))
	if err := cluster.Client.Patch(t.Context(), config, enabled); err != nil {
		t.Fatal(err)
	}
	want.Witness.Enabled = true
	if !equality.Semantic.DeepEqual(config.Spec, want) {
		t.Errorf("with agents it is %+v, want %+v", config.Spec, want)
	}
}

func TestABudgetOfZeroStaysZero(t *testing.T) {
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	config.Spec.FenceBudget = v1alpha1.FenceBudget{Count: 0, WindowSeconds: 600}
	create(t, config)
	config.Labels = map[string]string{"touched": "true"}
	if err := cluster.Client.Update(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if config.Spec.FenceBudget.Count != 0 {
		t.Errorf("a budget of 0 became %d on the way through a typed client", config.Spec.FenceBudget.Count)
	}
}

func TestATypedAppWithoutItsOptionalPartsIsAccepted(t *testing.T) {
	app := &v1alpha1.GuardedStatefulApp{}
	app.Name, app.Namespace = "typed", "default"
	app.Spec.WorkloadRef = &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"}
	app.Spec.Health.Probes = []v1alpha1.Probe{{Name: "up", HTTPGet: &v1alpha1.HTTPProbe{}}}
	create(t, app)
	if got := app.Spec.Health.Probes[0].HTTPGet; got.Path != "/" || got.Scheme != "HTTP" {
		t.Errorf("defaults of an HTTP probe are %+v", got)
	}
}

func TestStatusIsWrittenThroughItsSubresourceOnly(t *testing.T) {
	for name, document := range map[string]string{
		"GuardedStatefulApp": validApp, "FencingProfile": validProfile, "HostIncident": validIncident, "GuardConfig": validConfig,
	} {
		t.Run(name, func(t *testing.T) {
			condition := []any{map[string]any{
				"type": "Held", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z",
			}}
			obj := object(t, document)
			obj.Object["status"] = map[string]any{"conditions": condition}
			create(t, obj)
			if got := obj.Object["status"]; got != nil {
				t.Fatalf("create wrote a status: %v", got)
			}

			status := map[string]any{"conditions": condition}
			if name == "FencingProfile" {
				status["hosts"], status["ready"], status["unready"] = int64(1), int64(1), int64(0)
			}
			obj.Object["status"] = status
			spec, _, _ := unstructured.NestedMap(obj.Object, "spec")
			obj.Object["spec"] = map[string]any{"foreign": true}
			if err := cluster.Client.Status().Update(t.Context(), obj); err != nil {
				t.Fatal(err)
			}
			if got, _, _ := unstructured.NestedMap(obj.Object, "spec"); !reflect.DeepEqual(got, spec) {
				t.Errorf("a status update changed the spec to %v", got)
			}
			if got, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions"); len(got) != 1 {
				t.Errorf("conditions after a status update: %v", got)
			}
		})
	}
}

// columns are the contract of `kubectl get`; a name in lower case is shown with -o wide only.
var columns = map[string]string{
	"guardedstatefulapps": "Name Workload Mode Protected Healthy Held Verdict Host Since Age proof fencing reason",
	"fencingprofiles":     "Name Hosts Ready Unready Last-Drill Age",
	"hostincidents":       "Name Node Verdict Step Proof Apps Since Age",
	"hostattestations":    "Name Node Boot Expires-In Age reason",
	"guardconfigs":        "Name Policies Proven Leader Age",
}

func TestColumns(t *testing.T) {
	raw := discovery.NewDiscoveryClientForConfigOrDie(cluster.Config).RESTClient()
	for resource, want := range columns {
		t.Run(resource, func(t *testing.T) {
			body, err := raw.Get().AbsPath("/apis/guard.holdfast.dev/v1alpha1", resource).
				SetHeader("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").DoRaw(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			table := metav1.Table{}
			if err := json.Unmarshal(body, &table); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range table.ColumnDefinitions {
				if c.Priority > 0 {
					c.Name = strings.ToLower(c.Name)
				}
				got = append(got, c.Name)
			}
			if strings.Join(got, " ") != want {
				t.Errorf("columns are %q, want %q", strings.Join(got, " "), want)
			}
		})
	}
}

func TestShortNamesAndScopes(t *testing.T) {
	found, err := discovery.NewDiscoveryClientForConfigOrDie(cluster.Config).ServerResourcesForGroupVersion(v1alpha1.GroupVersion.String())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		short      string
		namespaced bool
	}{
		"guardedstatefulapps": {"gsa", true}, "fencingprofiles": {"fp", false},
		"hostincidents": {"hi", false}, "hostattestations": {"ha", false}, "guardconfigs": {"gc", false},
	}
	for _, resource := range found.APIResources {
		if strings.Contains(resource.Name, "/") {
			continue
		}
		expected, ok := want[resource.Name]
		if !ok {
			t.Errorf("unexpected resource %s", resource.Name)
		}
		delete(want, resource.Name)
		if !slices.Equal(resource.ShortNames, []string{expected.short}) || resource.Namespaced != expected.namespaced {
			t.Errorf("%s: short names %v, namespaced %v", resource.Name, resource.ShortNames, resource.Namespaced)
		}
		if !slices.Contains(resource.Categories, "holdfast") {
			t.Errorf("%s is not shown by kubectl get holdfast", resource.Name)
		}
	}
	for name := range want {
		t.Errorf("discovery does not know %s", name)
	}
}

// An object from before a rule existed must stay in Holdfast's hands: its finalizer and its status can be written,
// and only a change of what the rule is about is refused.
func TestARuleThatComesLaterDoesNotLockObjectsUp(t *testing.T) {
	crd := crdNamed(t, "guardedstatefulapps.guard.holdfast.dev")
	strict := crd.DeepCopy()
	crd.Spec.Versions[0].Schema.OpenAPIV3Schema = withoutRules(crd.Spec.Versions[0].Schema.OpenAPIV3Schema)
	replaceCRD(t, crd)
	t.Cleanup(func() { replaceCRD(t, strict) })

	bad := object(t, validApp, "spec.objectives.recoverWithinSeconds=1")
	awaitCreate(t, bad, true)
	create(t, bad)
	replaceCRD(t, strict)
	awaitCreate(t, object(t, validApp, "metadata.name=probe", "spec.objectives.recoverWithinSeconds=1"), false)

	app := &v1alpha1.GuardedStatefulApp{}
	get(t, "default/valid", app)
	app.Finalizers = []string{v1alpha1.FinalizerApp}
	if err := cluster.Client.Update(t.Context(), app); err != nil {
		t.Errorf("the finalizer cannot be written: %v", err)
	}
	app.Status.Reason = "Test"
	if err := cluster.Client.Status().Update(t.Context(), app); err != nil {
		t.Errorf("the status cannot be written: %v", err)
	}
	app.Spec.Health.StartupSeconds = 5
	if err := cluster.Client.Update(t.Context(), app); !apierrors.IsInvalid(err) {
		t.Errorf("a change of the spec that leaves it wrong: %v", err)
	}
}

func crdNamed(t *testing.T, name string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	for _, crd := range crds(t) {
		if crd.Name == name {
			return crd
		}
	}
	t.Fatalf("no CRD %s", name)
	return nil
}

func withoutRules(in *apiextensionsv1.JSONSchemaProps) *apiextensionsv1.JSONSchemaProps {
	out := in.DeepCopy()
	out.XValidations = nil
	for name, property := range out.Properties {
		out.Properties[name] = *withoutRules(&property)
	}
	if out.Items != nil {
		out.Items.Schema = withoutRules(out.Items.Schema)
	}
	return out
}

func replaceCRD(t *testing.T, crd *apiextensionsv1.CustomResourceDefinition) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resources := dynamic.NewForConfigOrDie(cluster.Config).Resource(
		apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"))
	content, err := json.Marshal(crd)
	if err != nil {
		t.Fatal(err)
	}
	replacement := &unstructured.Unstructured{}
	if err := json.Unmarshal(content, replacement); err != nil {
		t.Fatal(err)
	}
	current, err := resources.Get(ctx, crd.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	replacement.SetResourceVersion(current.GetResourceVersion())
	if _, err := resources.Update(ctx, replacement, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// awaitCreate waits until the API server would accept, or refuse, the object: it takes a moment to see another CRD.
func awaitCreate(t *testing.T, obj *unstructured.Unstructured, accepted bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		err := cluster.Client.Create(ctx, obj.DeepCopy(), client.DryRunAll)
		return (err == nil) == accepted, nil
	})
	if err != nil {
		t.Fatalf("the API server does not come to accept=%v: %v", accepted, err)
	}
}

func get(t *testing.T, key string, obj client.Object) {
	t.Helper()
	namespace, name, _ := strings.Cut(key, "/")
	if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, obj); err != nil {
		t.Fatal(err)
	}
}
