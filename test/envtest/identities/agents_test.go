// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package identities

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/call"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

const place = "holdfast-witness"

// agents has the manager that runs bring the agents about, certify them, and end them, with the rights of config/rbac and config/witness.
func agents(t *testing.T, cluster *envtest.Cluster, program string) {
	t.Helper()
	early := ask(t, cluster.Client, wire.WitnessName("node-1")) // there are to be no agents yet
	enable(t, cluster, true)
	reason(t, cluster, v1alpha1.ReasonNamespaceMissing)
	if _, err := cluster.Apply(t.Context(), "witness"); err != nil {
		t.Fatal(err)
	}
	daemons := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: place, Name: "holdfast-witness"}}
	await(t, cluster, daemons, "the DaemonSet", func() bool { return true })
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: place, Name: "holdfast-witness"}}
	await(t, cluster, settings, "the authority's certificate", func() bool { return strings.Contains(settings.Data["ca.crt"], "BEGIN CERTIFICATE") })
	keys := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: place, Name: "holdfast-witness-gossip"}}
	await(t, cluster, keys, "the gossip's key", func() bool { return len(keys.Data["primary"]) > 0 })
	reason(t, cluster, v1alpha1.ReasonRollingOut)

	certificates(t, cluster, early)
	process(t, cluster, program, settings.Data, keys.Data)
	leases(t, cluster)

	enable(t, cluster, false)
	reason(t, cluster, v1alpha1.ReasonWitnessesDisabled)
	if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(daemons), daemons); !apierrors.IsNotFound(err) {
		t.Errorf("the DaemonSet is still there: %v", err)
	}
	late := ask(t, agent(t, cluster, "node-1"), wire.WitnessName("node-1"))
	enable(t, cluster, true) // what was asked before is answered now, so nothing was answered before
	await(t, cluster, late, "an answer to what was asked meanwhile", func() bool { return len(late.Status.Certificate) > 0 })
	for _, c := range late.Status.Conditions {
		if c.Type == certificatesv1.CertificateApproved && c.LastUpdateTime.Time.Before(late.CreationTimestamp.Time) {
			t.Errorf("it was approved before it was made: %+v", c)
		}
	}
}

// certificates asks for some, as agents and as others.
func certificates(t *testing.T, cluster *envtest.Cluster, early *certificatesv1.CertificateSigningRequest) {
	t.Helper()
	own := ask(t, agent(t, cluster, "node-1"), wire.WitnessName("node-1"))
	await(t, cluster, own, "a certificate of its own", func() bool { return len(own.Status.Certificate) > 0 })
	forged := ask(t, agent(t, cluster, "node-1"), wire.WitnessName("node-2"))
	managers := ask(t, agent(t, cluster, "node-1"), wire.ManagerName)
	for says, csr := range map[string]*certificatesv1.CertificateSigningRequest{"another host's name": forged, "the manager's name": managers, "an administrator": early} {
		await(t, cluster, csr, says+" to be denied", func() bool { return len(csr.Status.Conditions) > 0 })
		if c := csr.Status.Conditions[0]; c.Type != certificatesv1.CertificateDenied || len(csr.Status.Certificate) > 0 {
			t.Errorf("%s: %+v", says, csr.Status)
		}
	}
	elsewhere := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "other-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: own.Spec.Request, SignerName: "example.com/other", Usages: own.Spec.Usages}}
	if err := cluster.Client.Create(t.Context(), elsewhere); err != nil {
		t.Fatal(err)
	}
	signer := with(t, cluster, token(t, cluster, namespace, "holdfast-authority", nil))
	elsewhere.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "r", Message: "m"}}
	if err := signer.SubResource("approval").Update(t.Context(), elsewhere); !apierrors.IsForbidden(err) {
		t.Errorf("the authority may approve for another signer: %v", err)
	}
}

// announcements of a watchdog are taken only by the version that stands there, and end with the next word that makes none: what comes late announces nothing again.
func announcements(t *testing.T, cluster *envtest.Cluster, says func(version, said string) (string, error)) {
	t.Helper()
	announced := func() string {
		var lease coordinationv1.Lease
		if err := cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: place, Name: "node-2"}, &lease); err != nil {
			t.Fatal(err)
		}
		return lease.Annotations[wire.AnnotationSelfFence]
	}
	first, err := says("", "")
	if err != nil || first == "" {
		t.Fatalf("version %q, %v", first, err)
	}
	second, err := says(first, "40")
	if err != nil || announced() != "40" {
		t.Errorf("announced %q, %v", announced(), err)
	}
	if _, err := says("", ""); err != nil || announced() != "" {
		t.Errorf("taken back, it announces %q, %v", announced(), err)
	}
	for name, version := range map[string]string{"the first": first, "the second": second} {
		if _, err := says(version, "41"); !apierrors.IsConflict(err) || announced() != "" {
			t.Errorf("by %s version it announces %q, %v", name, announced(), err)
		}
	}
	third, err := says("", "")
	if err != nil {
		t.Error(err)
	}
	if err := cluster.Client.Delete(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: place, Name: "node-2"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := says(third, "40"); !apierrors.IsConflict(err) {
		t.Errorf("by the version of a Lease that was deleted: %v", err)
	}
	if _, err := says("", ""); err != nil || announced() != "" {
		t.Errorf("made again it announces %q, %v", announced(), err)
	}
}

// leases are written by the agent of that host only, and read by none.
func leases(t *testing.T, cluster *envtest.Cluster) {
	t.Helper()
	uid := types.UID("")
	of := func(as client.Client, node, version, said string) (string, error) {
		about := map[string]any{"namespace": place, "name": node}
		if version != "" {
			about["resourceVersion"], about["uid"], about["annotations"] = version, string(uid), map[string]any{wire.AnnotationSelfFence: said}
		}
		lease := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": about, "spec": map[string]any{"holderIdentity": "forged"}}}
		err := as.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(lease), client.FieldOwner("holdfast-witness"), client.ForceOwnership)
		uid = cmp.Or(lease.GetUID(), uid)
		return lease.GetResourceVersion(), err
	}
	word := func(as client.Client, node string) error { _, err := of(as, node, "", ""); return err }
	own := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: place, Name: "node-1"}}
	await(t, cluster, own, "the Lease that the agent's program has written", func() bool { return own.Spec.HolderIdentity != nil && own.Spec.RenewTime != nil })
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err != nil || *own.Spec.HolderIdentity != strings.TrimSpace(string(boot)) || *own.Spec.LeaseDurationSeconds != 1 {
		t.Errorf("the Lease says %+v, and the boot is %s, %v", own.Spec, boot, err)
	}
	other := agent(t, cluster, "node-2")
	if err := word(other, "node-2"); err != nil {
		t.Errorf("an agent may not write its own Lease: %v", err)
	}
	for who, as := range map[string]client.Client{"the agent of another Node": other, "an administrator": cluster.Client} {
		if err := word(as, "node-1"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "by the agent on that Node only") {
			t.Errorf("%s writes the Lease of node-1: %v", who, err)
		}
	}
	announcements(t, cluster, func(version, said string) (string, error) { return of(other, "node-2", version, said) })
	if err := other.Get(t.Context(), client.ObjectKeyFromObject(own), own); !apierrors.IsForbidden(err) {
		t.Errorf("an agent may read a Lease: %v", err)
	}
}

// process runs an agent's own program, with what a pod of the DaemonSet is given, and asks it as the manager would.
func process(t *testing.T, cluster *envtest.Cluster, program string, settings map[string]string, keys map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, key := range keys {
		write("keys/"+name, key)
	}
	api, err := url.Parse(cluster.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	if api.Host == "" { // it may be given without a scheme
		api.Host = cluster.Config.Host
	}
	port, gossip := free(t), free(t)
	output := &bytes.Buffer{}
	command := exec.Command(program, "--node=node-1", "--address=127.0.0.2", "--port="+port, "--gossip-port="+gossip, "--health=127.0.0.1:"+port,
		"--seeds="+write("seeds", []byte(settings["seeds"])), "--authority="+write("ca.crt", []byte(settings["ca.crt"])), "--keys="+filepath.Join(dir, "keys"), "--identity="+dir,
		"--lease-namespace="+place,
		"--token="+write("token", []byte(tokenOf(t, cluster, "node-1"))), "--api-ca="+write("api.crt", cluster.Config.CAData))
	command.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST="+api.Hostname(), "KUBERNETES_SERVICE_PORT="+api.Port())
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	command.Stdout, command.Stderr = output, output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(command.Process.Signal(syscall.SIGTERM), command.Wait()); err != nil {
			t.Errorf("the agent does not end cleanly: %v", err)
		}
		if t.Failed() {
			t.Logf("the agent said:\n%s", tail(output.String()))
		}
	}()
	err = wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/readyz", nil)
		if err != nil {
			return false, err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return false, nil
		}
		return answer.StatusCode == http.StatusOK, answer.Body.Close()
	})
	if err != nil {
		t.Errorf("the agent does not become ready: %v", err)
		return
	}
	manager := call.New("node-1", managers(t, cluster))
	defer manager.Close()
	var view wire.View
	wrong := wait.PollUntilContextTimeout(t.Context(), 200*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) { // it may not have asked the API yet
		view, err = manager.View(ctx, net.JoinHostPort("127.0.0.2", port))
		return err == nil && view.Node == "node-1" && len(view.Hosts) == 1 && view.Hosts[0].API == wire.Alive, nil
	})
	if wrong != nil {
		t.Errorf("it sees %+v, %v", view, err)
	}
}

// managers is the manager's identity towards the agents, by the authority that the manager has made.
func managers(t *testing.T, cluster *envtest.Cluster) *identity.Identity {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "holdfast-witness-authority"}}
	if err := cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); err != nil {
		t.Fatal(err)
	}
	issuer, err := authority.Parse(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err := issuer.Pair(wire.ManagerName, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := identity.Parse(certificate, key, secret.Data[corev1.TLSCertKey])
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// free is a port that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// enable says whether there are to be agents.
func enable(t *testing.T, cluster *envtest.Cluster, enabled bool) {
	t.Helper()
	text := `{"spec":{"witness":{"enabled":false}}}`
	if enabled {
		text = `{"spec":{"witness":{"enabled":true}}}`
	}
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	if err := cluster.Client.Patch(t.Context(), config, client.RawPatch(types.MergePatchType, []byte(text))); err != nil {
		t.Fatal(err)
	}
}

func reason(t *testing.T, cluster *envtest.Cluster, want string) {
	t.Helper()
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	await(t, cluster, config, "WitnessesReady to say "+want, func() bool {
		c := meta.FindStatusCondition(config.Status.Conditions, v1alpha1.ConditionWitnessesReady)
		return c != nil && c.Reason == want && c.ObservedGeneration == config.Generation
	})
}

// agent is a client with the token of an agent's pod on a Node.
func agent(t *testing.T, cluster *envtest.Cluster, node string) client.Client {
	t.Helper()
	return with(t, cluster, tokenOf(t, cluster, node))
}

// tokenOf makes an agent's pod on a Node, and a token that is bound to it.
func tokenOf(t *testing.T, cluster *envtest.Cluster, node string) string {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: place, GenerateName: "agent-"},
		Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: "holdfast-witness", Containers: []corev1.Container{{Name: "witness", Image: "none"}}}}
	if err := cluster.Client.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return token(t, cluster, place, "holdfast-witness", &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID})
}

func token(t *testing.T, cluster *envtest.Cluster, namespace, name string, bound *authenticationv1.BoundObjectReference) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	if err := cluster.Client.SubResource("token").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}

// with is a client with a token.
func with(t *testing.T, cluster *envtest.Cluster, token string) client.Client {
	t.Helper()
	config := rest.AnonymousClientConfig(cluster.Config)
	config.BearerToken = token
	c, err := client.New(config, client.Options{Scheme: cluster.Client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask makes a certificate request in a name, as soon as the authorizer knows of the right to.
func ask(t *testing.T, as client.Client, name string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, _, err := authority.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "agent-"}, Spec: certificatesv1.CertificateSigningRequestSpec{
		Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: text}), SignerName: wire.Signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}}}
	err = wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		err := as.Create(ctx, csr)
		return err == nil, ignoreForbidden(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func ignoreForbidden(err error) error {
	if apierrors.IsForbidden(err) {
		return nil
	}
	return err
}
