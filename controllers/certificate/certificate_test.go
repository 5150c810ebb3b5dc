// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	certificatesclient "k8s.io/client-go/kubernetes/typed/certificates/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/credential"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/certificate"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/test/envtest"
)

var cluster *envtest.Cluster

func TestMain(m *testing.M) { os.Exit(envtest.Main(m, &cluster)) }

// witness is the agents' service account, in a namespace of the test's own.
var witness = types.NamespacedName{Namespace: "witnesses", Name: "witness"}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, o client.Object) {
	t.Helper()
	must(t, client.IgnoreAlreadyExists(cluster.Client.Create(t.Context(), o)))
}

// agents lets the service account be, with the right to ask, and pods of it on two Nodes.
func agents(t *testing.T) {
	t.Helper()
	wanted(t, true)
	exists(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: witness.Namespace}})
	exists(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: witness.Namespace, Name: witness.Name}})
	exists(t, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "witness"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"certificates.k8s.io"}, Resources: []string{"certificatesigningrequests"}, Verbs: []string{"create", "get"}}}})
	exists(t, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "witness"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "witness"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: witness.Namespace, Name: witness.Name}}})
	for _, host := range []string{"host-1", "host-2"} {
		exists(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: host}})
		exists(t, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: witness.Namespace, Name: "witness-" + host}, Spec: corev1.PodSpec{
			NodeName: host, ServiceAccountName: witness.Name, Containers: []corev1.Container{{Name: "witness", Image: "none"}}}})
	}
}

// wanted sets whether there are to be agents.
func wanted(t *testing.T, enabled bool) {
	t.Helper()
	config := &v1alpha1.GuardConfig{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.GuardConfigName}}
	exists(t, config)
	must(t, cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(config), config))
	config.Spec.Witness.Enabled = enabled
	must(t, cluster.Client.Update(t.Context(), config))
}

// on is a client with a token of the service account: of its pod on a host, or of no pod.
func on(t *testing.T, host string) client.Client {
	t.Helper()
	c, err := client.New(tokenOf(t, host), client.Options{Scheme: cluster.Client.Scheme()})
	must(t, err)
	return c
}

func tokenOf(t *testing.T, host string) *rest.Config {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if host != "" {
		var pod corev1.Pod
		must(t, cluster.Client.Get(t.Context(), types.NamespacedName{Namespace: witness.Namespace, Name: "witness-" + host}, &pod))
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: witness.Namespace, Name: witness.Name}}
	must(t, cluster.Client.SubResource("token").Create(t.Context(), account, request))
	config := rest.AnonymousClientConfig(cluster.Config)
	config.BearerToken = request.Status.Token
	return config
}

func request(t *testing.T, uri string) ([]byte, crypto.Signer) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	u, err := url.Parse(uri)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{u}}, key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key
}

var bothSides = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}

// ask makes a request as somebody, for the name of a host's agent.
func ask(t *testing.T, as client.Client, uri string, change func(*certificatesv1.CertificateSigningRequest)) (*certificatesv1.CertificateSigningRequest, crypto.Signer) {
	t.Helper()
	text, key := request(t, uri)
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{GenerateName: "witness-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: text, SignerName: wire.Signer, Usages: bothSides}}
	change(csr)
	must(t, as.Create(t.Context(), csr))
	return csr, key
}

func asIs(*certificatesv1.CertificateSigningRequest) {}

func reconciler(secret string) *certificate.Reconciler {
	now := sight.NewClock(clock.RealClock{})
	return &certificate.Reconciler{Client: cluster.Client, Signer: cluster.Client, Clock: now, Agent: witness,
		Authority: &certificate.Authority{Client: cluster.Client, Clock: now, Secret: types.NamespacedName{Namespace: "default", Name: secret}}}
}

// answer lets a request be answered, and returns it.
func answer(t *testing.T, r *certificate.Reconciler, csr *certificatesv1.CertificateSigningRequest) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	_, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(csr)})
	must(t, err)
	must(t, cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(csr), csr))
	return csr
}

func condition(csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) string {
	for _, c := range csr.Status.Conditions {
		if c.Type == kind {
			return c.Reason + ": " + c.Message
		}
	}
	return ""
}

// verified reads a certificate and checks it against the authority in the Secret.
func verified(t *testing.T, r *certificate.Reconciler, text []byte) *x509.Certificate {
	t.Helper()
	var secret corev1.Secret
	must(t, cluster.Client.Get(t.Context(), r.Authority.Secret, &secret))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(secret.Data[corev1.TLSCertKey]) {
		t.Fatalf("Secret %s holds no authority", r.Authority.Secret)
	}
	b, _ := pem.Decode(text)
	if b == nil {
		t.Fatal("no certificate was issued")
	}
	c, err := x509.ParseCertificate(b.Bytes)
	must(t, err)
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	return c
}

func TestAnAgentGetsACertificateOfItsOwnHost(t *testing.T) {
	agents(t)
	r := reconciler("authority")
	csr, key := ask(t, on(t, "host-1"), wire.WitnessName("host-1"), asIs)
	answer(t, r, csr)
	if condition(csr, certificatesv1.CertificateApproved) == "" {
		t.Errorf("it was not approved: %+v", csr.Status.Conditions)
	}
	c := verified(t, r, csr.Status.Certificate)
	if c.URIs[0].String() != wire.WitnessName("host-1") || !key.Public().(*ecdsa.PublicKey).Equal(c.PublicKey) {
		t.Errorf("it is of %v, and perhaps of another key", c.URIs)
	}
	issued := string(csr.Status.Certificate)
	if answer(t, r, csr); string(csr.Status.Certificate) != issued {
		t.Error("a second look issued another")
	}
	second, _ := ask(t, on(t, "host-2"), wire.WitnessName("host-2"), asIs)
	verified(t, r, answer(t, r, second).Status.Certificate) // by the same authority
}

func TestNobodyGetsACertificateOfAnothersName(t *testing.T) {
	agents(t)
	r := reconciler("authority")
	for says, c := range map[string]struct {
		who     client.Client
		uri     string
		change  func(*certificatesv1.CertificateSigningRequest)
		because string
	}{
		"another host's agent": {on(t, "host-2"), wire.WitnessName("host-1"), asIs, "agent on host-2"},
		"the manager":          {on(t, "host-1"), wire.ManagerName, asIs, wire.ManagerName},
		"a token of no pod":    {on(t, ""), wire.WitnessName("host-1"), asIs, "not bound to a pod"},
		"an administrator":     {cluster.Client, wire.WitnessName("host-1"), asIs, "only system:serviceaccount:witnesses:witness may"},
		"for more than it is": {on(t, "host-1"), wire.WitnessName("host-1"), func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Spec.Usages = append(csr.Spec.Usages, certificatesv1.UsageCertSign)
		}, "cert sign"},
		"who says where it is": {on(t, "host-2"), wire.WitnessName("host-1"), func(csr *certificatesv1.CertificateSigningRequest) {
			csr.Spec.Extra = map[string]certificatesv1.ExtraValue{"authentication.kubernetes.io/node-name": {"host-1"}}
		}, "agent on host-2"},
	} {
		csr, _ := ask(t, c.who, c.uri, c.change)
		answer(t, r, csr)
		if got := condition(csr, certificatesv1.CertificateDenied); !strings.Contains(got, c.because) || len(csr.Status.Certificate) > 0 {
			t.Errorf("%s: denied with %q, want %q in it; a certificate of %d bytes", says, got, c.because, len(csr.Status.Certificate))
		}
	}
}

func TestWhatSomebodyElseApprovedIsIssuedByTheSameRules(t *testing.T) {
	agents(t)
	r := reconciler("authority")
	approve := func(csr *certificatesv1.CertificateSigningRequest) {
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved,
			Status: corev1.ConditionTrue, Reason: "ByHand", Message: "somebody is sure"})
		must(t, cluster.Client.SubResource("approval").Update(t.Context(), csr))
	}
	good, _ := ask(t, on(t, "host-1"), wire.WitnessName("host-1"), asIs)
	approve(good)
	verified(t, r, answer(t, r, good).Status.Certificate)

	bad, _ := ask(t, on(t, "host-2"), wire.WitnessName("host-1"), asIs)
	approve(bad)
	answer(t, r, bad)
	if got := condition(bad, certificatesv1.CertificateFailed); !strings.Contains(got, "agent on host-2") || len(bad.Status.Certificate) > 0 {
		t.Errorf("it failed with %q; a certificate of %d bytes", got, len(bad.Status.Certificate))
	}
}

func TestRequestsOfOtherSignersAreNotOurs(t *testing.T) {
	agents(t)
	csr, _ := ask(t, on(t, "host-1"), wire.WitnessName("host-1"), func(csr *certificatesv1.CertificateSigningRequest) { csr.Spec.SignerName = "example.org/other" })
	if answer(t, reconciler("authority"), csr); len(csr.Status.Conditions)+len(csr.Status.Certificate) > 0 {
		t.Errorf("it was answered: %+v", csr.Status)
	}
}

func TestNothingIsIssuedWhereThereAreToBeNoAgents(t *testing.T) {
	agents(t)
	wanted(t, false)
	r := reconciler("authority-unwanted")
	good, _ := ask(t, on(t, "host-1"), wire.WitnessName("host-1"), asIs)
	if answer(t, r, good); len(good.Status.Conditions)+len(good.Status.Certificate) > 0 {
		t.Errorf("it was answered: %+v", good.Status)
	}
	var secret corev1.Secret
	if err := cluster.Client.Get(t.Context(), r.Authority.Secret, &secret); !apierrors.IsNotFound(err) {
		t.Errorf("an authority was made: %v", err)
	}
	wanted(t, true)
	verified(t, r, answer(t, r, good).Status.Certificate)
}

func TestABrokenAuthorityIssuesNothingAndSaysWhatToDo(t *testing.T) {
	agents(t)
	exists(t, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "broken"}, Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: []byte("-"), corev1.TLSPrivateKeyKey: []byte("-")}})
	csr, _ := ask(t, on(t, "host-1"), wire.WitnessName("host-1"), asIs)
	_, err := reconciler("broken").Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(csr)})
	if err == nil || !strings.Contains(err.Error(), "default/broken") || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("it went on with %v", err)
	}
	must(t, cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(csr), csr))
	if len(csr.Status.Conditions)+len(csr.Status.Certificate) > 0 {
		t.Errorf("it was answered: %+v", csr.Status)
	}
}

// as asks the API server with an agent's token, and has each request answered before the agent looks at it.
type as struct {
	certificatesclient.CertificateSigningRequestInterface
	answer func(name string)
}

func (a as) Create(ctx context.Context, name string, request []byte) error {
	_, err := a.CertificateSigningRequestInterface.Create(ctx, &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: wire.Signer,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}}}, metav1.CreateOptions{})
	return err
}

func (a as) Get(ctx context.Context, name string) (credential.Answer, error) {
	a.answer(name)
	seen, err := a.CertificateSigningRequestInterface.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return credential.Answer{}, err
	}
	answer := credential.Answer{Certificate: seen.Status.Certificate}
	for _, c := range seen.Status.Conditions {
		if c.Type == certificatesv1.CertificateDenied {
			answer.Refused = fmt.Sprintf("%s: %s", c.Type, c.Message)
		}
	}
	return answer, nil
}

func TestAnAgentObtainsItsCertificateWithItsOwnToken(t *testing.T) {
	agents(t)
	r := reconciler("authority")
	requests, err := certificatesclient.NewForConfig(tokenOf(t, "host-1"))
	must(t, err)
	obtain := func(node, file string) error {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		failed := ""
		err := credential.New(credential.Config{Node: node, File: file, Clock: clock.RealClock{},
			Requests: as{requests.CertificateSigningRequests(), func(name string) {
				_, err := r.Reconcile(ctx, ctrl.Request{NamespacedName: types.NamespacedName{Name: name}})
				must(t, err)
			}},
			Log: funcr.New(func(_, line string) {
				if strings.Contains(line, "denied") || strings.Contains(line, "Denied") {
					failed = line
					stop()
				}
			}, funcr.Options{})}).Obtain(ctx)
		if failed != "" {
			return errors.New(failed)
		}
		return err
	}
	file := filepath.Join(t.TempDir(), "witness.pem")
	must(t, obtain("host-1", file))
	text, err := os.ReadFile(file)
	must(t, err)
	_, certificate, _ := strings.Cut(string(text), "-----END PRIVATE KEY-----")
	if c := verified(t, r, []byte(certificate)); c.URIs[0].String() != wire.WitnessName("host-1") {
		t.Errorf("it is of %v", c.URIs)
	}
	other := filepath.Join(t.TempDir(), "witness.pem")
	if err := obtain("host-2", other); err == nil || !strings.Contains(err.Error(), "agent on host-1") {
		t.Errorf("another host's certificate: %v", err)
	}
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("something was written: %v", err)
	}
}
