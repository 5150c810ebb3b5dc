// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package identities runs the real manager against an API server, as the identities that config/rbac gives it and with
// nothing else: what it tries and may not do is in the audit log.
package identities

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const namespace = "holdfast-system"

// auditPolicy records who asked for what and what was answered, and no bodies.
const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: Metadata, omitStages: [RequestReceived]}]
`

func TestTheManagerNeedsNoMoreThanItsRoles(t *testing.T) {
	dir := t.TempDir()
	audit := filepath.Join(dir, "audit.jsonl")
	manager, witness := build(t, dir, "manager"), build(t, dir, "witness")
	cluster := start(t, dir, audit)
	if _, err := cluster.Apply(t.Context(), "manager", "rbac"); err != nil {
		t.Fatal(err)
	}
	objects(t, cluster)
	run(t, manager, kubeconfig(t, cluster, dir))

	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	await(t, cluster, config, "the policies to be proven", func() bool { return config.Status.PoliciesProvenAt != nil })

	app := &v1alpha1.GuardedStatefulApp{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}}
	await(t, cluster, app, "the app to be protected", func() bool {
		return meta.IsStatusConditionTrue(app.Status.Conditions, v1alpha1.ConditionProtected)
	})
	profile := &v1alpha1.FencingProfile{ObjectMeta: metav1.ObjectMeta{Name: "rack"}}
	await(t, cluster, profile, "a device that does not answer to be told", func() bool { return profile.Status.Unready == 1 })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db-0"}}
	await(t, cluster, pod, "the pod to be labelled and held", func() bool {
		return pod.Labels[v1alpha1.LabelApp] == "db" && pod.Labels[v1alpha1.LabelHold] != "" && slices.Contains(pod.Finalizers, v1alpha1.FinalizerHold)
	})
	attachment := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "db"}}
	await(t, cluster, attachment, "the attachment to be labelled", func() bool { return attachment.Labels[v1alpha1.LabelGuardedVolume] != "" })
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}}
	await(t, cluster, node, "the Node to be labelled", func() bool { return node.Labels[v1alpha1.LabelCarries] != "" })

	agents(t, cluster, witness)

	for _, request := range refused(t, audit) {
		t.Errorf("config/rbac does not grant what Holdfast asked for: %s", request)
	}
}

func start(t *testing.T, dir, audit string) *envtest.Cluster {
	t.Helper()
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster, err := envtest.Start(t.Context(), "audit-log-path="+audit, "audit-policy-file="+policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Stop(); err != nil {
			t.Error(err)
		}
	})
	return cluster
}

// objects are a guarded workload as its controllers would have made it, on a host whose kubelet is gone.
func objects(t *testing.T, cluster *envtest.Cluster) {
	t.Helper()
	labels := map[string]string{"app": "db"}
	container := corev1.Container{
		Name: "db", Image: "db", Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: 5432}},
		ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("sql")}}},
	}
	claim := corev1.PersistentVolumeClaimSpec{
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(""), VolumeName: "db",
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"rack": "a"}},
		Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{BootID: "boot-1", SystemUUID: "4c4c4544-0042-3510-8052-b4c04f4a4e32"},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}},
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "127.0.0.1"}},
		},
	}
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{container}},
			},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: claim}},
		},
	}
	create(t, cluster, node, set)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "db-0", Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", Containers: []corev1.Container{container},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-db-0"},
			}}},
		},
	}
	for _, name := range []string{"node-controller", "pod-garbage-collector", "attachdetach-controller"} { // a controller manager makes them
		create(t, cluster, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}})
	}
	old := metav1.NewMicroTime(time.Now().Add(-time.Hour))
	create(t, cluster,
		&corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "db"},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes: claim.AccessModes, Capacity: claim.Resources.Requests,
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.example.com", VolumeHandle: "db"}},
			},
		},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data-db-0"}, Spec: claim},
		pod,
		&storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: "db"},
			Spec: storagev1.VolumeAttachmentSpec{
				Attacher: "csi.example.com", NodeName: "node-1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("db")},
			},
		},
		&coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: "node-1"},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: ptr.To("node-1"), LeaseDurationSeconds: ptr.To[int32](2), RenewTime: &old},
		},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "bmc"},
			Data:       map[string][]byte{"username": []byte("admin"), "password": []byte("secret")},
		},
		&v1alpha1.FencingProfile{
			ObjectMeta: metav1.ObjectMeta{Name: "rack"},
			Spec: v1alpha1.FencingProfileSpec{
				NodeSelector: metav1.LabelSelector{MatchLabels: map[string]string{"rack": "a"}},
				Levels: []v1alpha1.FencingLevel{{Methods: []v1alpha1.FencingMethod{{Name: "bmc", TimeoutSeconds: 1, IPMI: &v1alpha1.IPMIMethod{
					Port: 9, CredentialsSecretRef: &v1alpha1.SecretReference{Name: "bmc"},
					Hosts: []v1alpha1.HostDevice{{NodeName: "node-1", Address: "127.0.0.1"}},
				}}}}},
			},
		},
		&v1alpha1.GuardedStatefulApp{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
			Spec: v1alpha1.GuardedStatefulAppSpec{
				WorkloadRef: &v1alpha1.WorkloadReference{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "db"},
				Health:      v1alpha1.Health{Probes: []v1alpha1.Probe{{Name: "sql", TCPSocket: &v1alpha1.TCPProbe{Port: intstr.FromString("sql")}}}},
			},
		})
}

// create creates the objects with their status.
func create(t *testing.T, cluster *envtest.Cluster, objects ...client.Object) {
	t.Helper()
	for _, obj := range objects {
		status := obj.DeepCopyObject().(client.Object)
		if err := cluster.Client.Create(t.Context(), obj); err != nil {
			t.Fatalf("%T %s: %v", obj, obj.GetName(), err)
		}
		if node, ok := status.(*corev1.Node); ok {
			node.ResourceVersion, node.UID = obj.GetResourceVersion(), obj.GetUID()
			if err := cluster.Client.Status().Update(t.Context(), node); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func build(t *testing.T, dir, name string) string {
	t.Helper()
	binary := filepath.Join(dir, name)
	command := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "github.com/holdfast-dev/holdfast/cmd/"+name)
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("building the %s: %v\n%s", name, err, output)
	}
	return binary
}

// kubeconfig is that of the manager's service account.
func kubeconfig(t *testing.T, cluster *envtest.Cluster, dir string) string {
	t.Helper()
	config, err := cluster.As("system:serviceaccount:"+namespace+":holdfast-manager", "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	if err != nil {
		t.Fatal(err)
	}
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	file.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "x"
	path := filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts the manager and ends it with the test.
func run(t *testing.T, binary, kubeconfig string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	output := &bytes.Buffer{}
	command := exec.Command(binary, "--leader-elect", "--health-probe-bind-address", address)
	command.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "POD_NAMESPACE="+namespace, "POD_NAME=manager-0", "NODE_NAME=node-9")
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := command.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("the manager ended by itself: %v", err)
		}
		if err := command.Wait(); err != nil {
			t.Errorf("the manager does not end cleanly: %v", err)
		}
		if t.Failed() {
			t.Logf("the manager said:\n%s", tail(output.String()))
		}
	})
}

func tail(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// await reads obj until it is as it should be.
func await(t *testing.T, cluster *envtest.Cluster, obj client.Object, what string, is func() bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, 2*time.Minute, true, func(ctx context.Context) (bool, error) {
		err := cluster.Client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
		return err == nil && is(), client.IgnoreNotFound(err)
	})
	if err != nil {
		content, _ := json.MarshalIndent(obj, "", "  ")
		t.Fatalf("waiting for %s: %v\n%s", what, err, content)
	}
}

// refused lists what the authorizer, and not a policy, refused Holdfast's identities, the last time that they asked: it takes a moment to learn of a new role.
func refused(t *testing.T, audit string) []string {
	t.Helper()
	file, err := os.Open(audit)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }() // it was only read
	seen := map[string]bool{}
	last := map[string]string{}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct {
			Verb        string
			RequestURI  string
			User        struct{ Username string }
			Annotations map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(event.User.Username, "system:serviceaccount:"+namespace+":") {
			continue
		}
		seen[event.User.Username] = true
		if decision := event.Annotations["authorization.k8s.io/decision"]; decision != "" {
			last[fmt.Sprintf("%s by %s: %s", event.Verb, event.User.Username, event.RequestURI)] = decision
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"manager", "fencer", "canary", "authority"} {
		if !seen["system:serviceaccount:"+namespace+":holdfast-"+who] {
			t.Errorf("the audit log shows nothing of holdfast-%s: was it used at all?", who)
		}
	}
	maps.DeleteFunc(last, func(_, decision string) bool { return decision != "forbid" })
	return slices.Sorted(maps.Keys(last))
}
