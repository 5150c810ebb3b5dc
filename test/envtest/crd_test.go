// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package envtest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-dev/holdfast/test/envtest"
)

var cluster *envtest.Cluster

func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster)) }

// object is one document of YAML, with further fields set: "spec.mode=Off" puts the YAML value Off there, "-spec.mode"
// removes the field, and list elements are numbered.
func object(t *testing.T, document string, changes ...string) *unstructured.Unstructured {
	t.Helper()
	obj := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(document), &obj.Object); err != nil {
		t.Fatal(err)
	}
	for _, change := range changes {
		path, value, set := strings.Cut(change, "=")
		var parsed any
		if err := yaml.Unmarshal([]byte(value), &parsed); err != nil {
			t.Fatal(err)
		}
		obj.Object = changed(t, obj.Object, strings.Split(strings.TrimPrefix(path, "-"), "."), parsed, set).(map[string]any)
	}
	return obj
}

func changed(t *testing.T, in any, path []string, value any, set bool) any {
	t.Helper()
	switch at := in.(type) {
	case nil:
		return changed(t, map[string]any{}, path, value, set)
	case map[string]any:
		switch {
		case len(path) > 1:
			at[path[0]] = changed(t, at[path[0]], path[1:], value, set)
		case set:
			at[path[0]] = value
		default:
			delete(at, path[0])
		}
		return at
	case []any:
		var i int
		if _, err := fmt.Sscan(path[0], &i); err != nil || i >= len(at) || len(path) == 1 {
			t.Fatalf("no element %s in a list of %d to change a field of", path[0], len(at))
		}
		at[i] = changed(t, at[i], path[1:], value, set)
		return at
	}
	t.Fatalf("%v is below a %T", path, in)
	return nil
}

const validApp = `
apiVersion: guard.holdfast.dev/v1alpha1
kind: GuardedStatefulApp
metadata: {name: valid, namespace: default}
spec:
  workloadRef: {apiVersion: apps/v1, kind: StatefulSet, name: db}
  health:
    probes:
    - {name: sql, tcpSocket: {port: sql}}
`

const validProfile = `
apiVersion: guard.holdfast.dev/v1alpha1
kind: FencingProfile
metadata: {name: valid}
spec:
  nodeSelector: {matchLabels: {rack: a}}
  levels:
  - methods:
    - name: bmc
      ipmi:
        credentialsSecretRef: {name: bmc}
        hosts:
        - {nodeName: node-1, address: 192.0.2.11}
`

const validIncident = `
apiVersion: guard.holdfast.dev/v1alpha1
kind: HostIncident
metadata: {name: valid}
spec: {nodeName: node-1, nodeUID: uid, bootID: boot-1, systemUUID: uuid, episode: 1}
`

const validAttestation = `
apiVersion: guard.holdfast.dev/v1alpha1
kind: HostAttestation
metadata: {name: valid}
spec: {nodeName: node-1, bootID: boot-1, reason: "both cords pulled, ticket 4711"}
`

const validConfig = `
apiVersion: guard.holdfast.dev/v1alpha1
kind: GuardConfig
metadata: {name: cluster}
`

// refusals names what the API server must refuse to create, and words of the message.
var refusals = []struct {
	name    string
	base    string
	changes []string
	says    string
}{
	{
		"an app that guards nothing", validApp, []string{"-spec.workloadRef"},
		"set exactly one of workloadRef and podSelector",
	},
	{
		"an app that guards two things", validApp, []string{"spec.podSelector={matchLabels: {a: b}}"},
		"set exactly one of workloadRef and podSelector",
	},
	{
		"a name that is no label value", validApp, []string{"metadata.name=" + strings.Repeat("x", 64)},
		"metadata.name must not be longer than 63 characters: guarded pods carry it as a label",
	},
	{
		"a probe without handler", validApp, []string{"-spec.health.probes.0.tcpSocket"},
		"a probe has exactly one of tcpSocket, httpGet and grpc",
	},
	{
		"a probe with two handlers", validApp, []string{"spec.health.probes.0.grpc={port: 1}"},
		"a probe has exactly one of tcpSocket, httpGet and grpc: remove the others",
	},
	{
		"a probe that overlaps itself", validApp, []string{"spec.health.probes.0.periodSeconds=2", "spec.health.probes.0.timeoutSeconds=3"},
		"timeoutSeconds must not be longer than periodSeconds: lower timeoutSeconds or raise periodSeconds",
	},
	{
		"a loss confirmed before the second probe", validApp, []string{"spec.health.probes.0.periodSeconds=8"},
		"onHostLoss.confirmAfterSeconds must be at least twice every health.probes[].periodSeconds: raise confirmAfterSeconds or lower periodSeconds",
	},
	{
		"a recovery that ends before the loss is confirmed", validApp,
		[]string{"spec.objectives.recoverWithinSeconds=15", "spec.health.startupSeconds=5"},
		"objectives.recoverWithinSeconds must be longer than onHostLoss.confirmAfterSeconds: raise recoverWithinSeconds or lower confirmAfterSeconds",
	},
	{
		"a recovery that is shorter than a start", validApp, []string{"spec.objectives.recoverWithinSeconds=60"},
		"objectives.recoverWithinSeconds must not be shorter than health.startupSeconds: raise recoverWithinSeconds or lower startupSeconds",
	},
	{
		"recycling after nothing", validApp, []string{"spec.connections.recycle={after: [], ports: [sql]}"},
		"spec.connections.recycle.after: Invalid value",
	},
	{
		"recycling after what is no event", validApp, []string{"spec.connections.recycle={after: [Rollout], ports: [sql]}"},
		`spec.connections.recycle.after[0]: Unsupported value: "Rollout": supported values: "Failover", "ScaleOut", "HostReturn"`,
	},
	{
		"recycling of no port in particular", validApp, []string{"spec.connections.recycle={after: [ScaleOut]}"},
		"spec.connections.recycle.ports: Required value",
	},
	{
		"recycling of a port that there is not", validApp, []string{"spec.connections.recycle={after: [ScaleOut], ports: [sql, 65536]}"},
		"spec.connections.recycle.ports: Invalid value: a port is a number from 1 to 65535 or the name of a container port: correct it, or take it out",
	},
	{
		"recycling of a port without a name", validApp, []string{`spec.connections.recycle={after: [ScaleOut], ports: [""]}`},
		"a port is a number from 1 to 65535 or the name of a container port: correct it, or take it out",
	},
	{
		"recycling as fast as can be", validApp, []string{"spec.connections.recycle={after: [ScaleOut], ports: [sql], perSecond: 101}"},
		"spec.connections.recycle.perSecond: Invalid value",
	},
	{
		"recycling of more than there is", validApp, []string{"spec.connections.recycle={after: [ScaleOut], ports: [sql], maxPercent: 101}"},
		"spec.connections.recycle.maxPercent: Invalid value",
	},
	{
		"a mode that does not exist", validApp, []string{`spec.mode="Off"`},
		`spec.mode: Unsupported value: "Off": supported values: "Enforce", "Shadow", "Paused"`,
	},
	{
		"a workload that is not guarded", validApp, []string{"spec.workloadRef.kind=DaemonSet"},
		`spec.workloadRef.kind: Unsupported value: "DaemonSet": supported values: "StatefulSet", "Deployment"`,
	},
	{
		"an app without probes", validApp, []string{"spec.health.probes=[]"},
		"spec.health.probes in body should have at least 1 items",
	},
	{
		"two probes of one name", validApp,
		[]string{"spec.health.probes=[{name: a, tcpSocket: {port: 1}}, {name: a, tcpSocket: {port: 2}}]"},
		`spec.health.probes[1]: Duplicate value`,
	},
	{
		"a method without driver", validProfile, []string{"-spec.levels.0.methods.0.ipmi"},
		"a method names its driver: set ipmi",
	},
	{
		"an attempt given up before its first answer", validProfile,
		[]string{"spec.levels.0.methods.0.timeoutSeconds=30"},
		"settleSeconds must not be shorter than timeoutSeconds: raise settleSeconds or lower timeoutSeconds",
	},
	{
		"a host without credentials", validProfile, []string{"-spec.levels.0.methods.0.ipmi.credentialsSecretRef"},
		"a host has no credentials: set credentialsSecretRef, or credentialsSecretRef in every one of hosts",
	},
	{
		"two methods of one name in two levels", validProfile, []string{
			`spec.levels=[{methods: [{name: bmc, ipmi: {credentialsSecretRef: {name: a}, hosts: [{nodeName: node-1, address: a}]}}]},
				{methods: [{name: bmc, ipmi: {credentialsSecretRef: {name: a}, hosts: [{nodeName: node-1, address: b}]}}]}]`,
		},
		"levels[].methods[].name must be unique over all levels: rename one of the methods",
	},
	{
		"two devices for one host in a method", validProfile,
		[]string{"spec.levels.0.methods.0.ipmi.hosts=[{nodeName: node-1, address: a}, {nodeName: node-1, address: b}]"},
		"ipmi.hosts[1]: Duplicate value",
	},
	{
		"a method without hosts", validProfile, []string{"spec.levels.0.methods.0.ipmi.hosts=[]"},
		"ipmi.hosts in body should have at least 1 items",
	},
	{
		"a profile for whatever host there is", validProfile, []string{"spec.nodeSelector={matchLabels: {}}"},
		"nodeSelector is empty and would choose every host: set matchLabels or matchExpressions",
	},
	{
		"a profile without levels", validProfile, []string{"spec.levels=[]"},
		"spec.levels in body should have at least 1 items",
	},
	{
		"a second GuardConfig", validConfig, []string{"metadata.name=other"},
		"there is one GuardConfig and its name is cluster",
	},
	{
		"a budget window of a second", validConfig, []string{"spec.fenceBudget.windowSeconds=1"},
		"spec.fenceBudget.windowSeconds in body should be greater than or equal to 60",
	},
	{
		"one port for gossip and API of the agents", validConfig, []string{"spec.witness.port=7948"},
		"gossipPort and port are both TCP ports of the host: they must differ",
	},
	{
		"agents on a port that only root may open", validConfig, []string{"spec.witness.gossipPort=1023"},
		"spec.witness.gossipPort in body should be greater than or equal to 1024",
	},
	{
		"agents that are shown another directory than is named", validConfig, []string{"spec.witness.runtimeSocket=/run/../etc/shadow"},
		"spec.witness.runtimeSocket in body should match",
	},
	{
		"agents that are shown all of the host", validConfig, []string{"spec.witness.runtimeSocket=/containerd.sock"},
		"spec.witness.runtimeSocket in body should match",
	},
	{
		"a watchdog without a number", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog, identities: [iTCO_wdt]}"},
		"watchdog.device must be /dev/watchdogN with its number, as /dev/watchdog0: list those of a host with ls /sys/class/watchdog",
	},
	{
		"two identities in one", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog0, identities: ['iTCO_wdt,softdog']}"},
		"watchdog.identities: one has a comma, or a space at an end: give each as cat /sys/class/watchdog/watchdog0/identity prints it",
	},
	{
		"a watchdog that is software", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog0, identities: [iTCO_wdt, Software Watchdog]}"},
		"watchdog.identities names software or a virtual machine's device, which is never armed: give those of hardware that you have seen reset a host",
	},
	{
		"a watchdog of any make", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog0, identities: []}"},
		"spec.witness.watchdog.identities in body should have at least 1 items",
	},
	{
		"a watchdog that is fed for seconds only", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog0, identities: [iTCO_wdt], contactSeconds: 9}"},
		"spec.witness.watchdog.contactSeconds in body should be greater than or equal to 10",
	},
	{
		"a watchdog that resets in an hour", validConfig, []string{"spec.witness.watchdog={device: /dev/watchdog0, identities: [iTCO_wdt], timeoutSeconds: 3600}"},
		"spec.witness.watchdog.timeoutSeconds in body should be less than or equal to 600",
	},
	{
		"agents that restart what is no service", validConfig, []string{"spec.witness.kubeletUnit=kubelet.target"},
		"spec.witness.kubeletUnit in body should match",
	},
	{
		"agents that restart a unit by a path", validConfig, []string{"spec.witness.kubeletUnit=../sshd.service"},
		"spec.witness.kubeletUnit in body should match",
	},
	{
		"an incident whose name is no label value", validIncident, []string{"metadata.name=" + strings.Repeat("x", 64)},
		"metadata.name must not be longer than 63 characters: held pods carry it as a label",
	},
	{
		"an incident before the first", validIncident, []string{"spec.episode=0"},
		"spec.episode in body should be greater than or equal to 1",
	},
}

// immutables names updates that must be refused.
var immutables = []struct {
	name    string
	base    string
	changes []string
	says    string
}{
	{
		"another workload", validApp, []string{"spec.workloadRef.name=other"},
		"workloadRef is immutable: delete this GuardedStatefulApp and create another",
	},
	{
		"a selector in place of the workload", validApp, []string{"-spec.workloadRef", "spec.podSelector={matchLabels: {a: b}}"},
		"podSelector is immutable: delete this GuardedStatefulApp and create another",
	},
	{
		"another host", validIncident, []string{"spec.nodeName=node-2"},
		"spec of a HostIncident is immutable: it names one host in one boot",
	},
	{
		"an attestation of another boot", validAttestation, []string{"spec.bootID=boot-2"},
		"spec of a HostAttestation is immutable: create another one",
	},
	{
		"an attestation that holds for longer", validAttestation, []string{"spec.expiresInSeconds=7200"},
		"spec of a HostAttestation is immutable: create another one",
	},
	{
		"another boot", validIncident, []string{"spec.bootID=boot-2"},
		"spec of a HostIncident is immutable: it names one host in one boot",
	},
}

func TestWhatIsRefused(t *testing.T) {
	for _, test := range refusals {
		t.Run(test.name, func(t *testing.T) {
			err := cluster.Client.Create(t.Context(), object(t, test.base, test.changes...), client.DryRunAll)
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("create says %v\nwant a refusal that says %q", err, test.says)
			}
		})
	}
}

func TestWhatCannotBeChanged(t *testing.T) {
	for _, test := range immutables {
		t.Run(test.name, func(t *testing.T) {
			create(t, object(t, test.base))
			update := object(t, test.base, test.changes...)
			current := object(t, test.base)
			if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(current), current); err != nil {
				t.Fatal(err)
			}
			update.SetResourceVersion(current.GetResourceVersion())
			err := cluster.Client.Update(t.Context(), update)
			if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("update says %v\nwant a refusal that says %q", err, test.says)
			}
		})
	}
}

func TestEveryRuleOfTheCRDsIsTested(t *testing.T) {
	tested := map[string]bool{}
	for _, test := range refusals {
		tested[test.says] = true
	}
	for _, test := range immutables {
		tested[test.says] = true
	}
	rules := 0
	for _, crd := range crds(t) {
		for _, rule := range rulesOf(*crd.Spec.Versions[0].Schema.OpenAPIV3Schema) {
			rules++
			if !tested[rule.Message] {
				t.Errorf("%s: no test expects the message %q of the rule %s", crd.Name, rule.Message, rule.Rule)
			}
		}
	}
	if rules < 10 {
		t.Errorf("found only %d rules in the CRDs: does this test still look in the right place?", rules)
	}
}

func rulesOf(schema apiextensionsv1.JSONSchemaProps) []apiextensionsv1.ValidationRule {
	rules := schema.XValidations
	for _, property := range schema.Properties {
		rules = append(rules, rulesOf(property)...)
	}
	if schema.Items != nil {
		rules = append(rules, rulesOf(*schema.Items.Schema)...)
	}
	return rules
}

func crds(t *testing.T) []*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	var list []*apiextensionsv1.CustomResourceDefinition
	for _, file := range files(t, "config/crd/bases") {
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(read(t, file), crd); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		list = append(list, crd)
	}
	if len(list) != 5 {
		t.Fatalf("%d CRDs in config/crd/bases, want 5", len(list))
	}
	return list
}

func TestTheSamplesAreAccepted(t *testing.T) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if err := cluster.Client.Create(t.Context(), namespace); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, file := range files(t, "config/samples") {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		sample := object(t, string(read(t, file)))
		kinds[sample.GetKind()] = true
		// Strict: a field that the API does not know is an error and not dropped.
		strict := client.WithFieldValidation(cluster.Client, metav1.FieldValidationStrict)
		if err := strict.Create(t.Context(), sample, client.DryRunAll); err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
		}
	}
	for _, kind := range []string{"GuardedStatefulApp", "FencingProfile", "HostIncident", "HostAttestation", "GuardConfig"} {
		if !kinds[kind] {
			t.Errorf("config/samples has no %s", kind)
		}
	}
}

// create creates the object and deletes it, finalizers or not, at the end of the test.
func create(t *testing.T, obj client.Object) {
	t.Helper()
	if err := cluster.Client.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
		if err := cluster.Client.Patch(ctx, obj, patch); client.IgnoreNotFound(err) != nil {
			t.Errorf("removing the finalizers of %s: %v", obj.GetName(), err)
		}
		if err := cluster.Client.Delete(ctx, obj); client.IgnoreNotFound(err) != nil {
			t.Errorf("deleting %s: %v", obj.GetName(), err)
		}
	})
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	root, err := envtest.Root()
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(root, dir, "*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no YAML in %s (%v)", dir, err)
	}
	return names
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
