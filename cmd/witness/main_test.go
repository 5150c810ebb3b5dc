// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/credential"
	"github.com/holdfast-dev/holdfast/agent/gossip"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

// office is an API server that has each request answered by an authority, the second time that it is looked at.
type office struct {
	*testing.T
	authority *authority.Authority
	made      certificatesv1.CertificateSigningRequest
	looks     atomic.Int32
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer token-of-the-pod" {
		o.Errorf("%s asks with %q", r.URL, r.Header.Get("Authorization"))
	}
	switch {
	case r.Method == http.MethodPost && r.URL.Path == requestsPath:
		strict := json.NewDecoder(r.Body)
		strict.DisallowUnknownFields()
		if err := strict.Decode(&o.made); err != nil {
			o.Error(err)
		}
		usages := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}
		if o.made.GroupVersionKind() != certificatesv1.SchemeGroupVersion.WithKind("CertificateSigningRequest") || o.made.Spec.SignerName != wire.Signer ||
			!slices.Equal(o.made.Spec.Usages, usages) {
			o.Errorf("it asks %+v", o.made)
		}
	case r.Method == http.MethodGet && r.URL.Path == requestsPath+"/"+o.made.Name:
		if o.looks.Add(1) > 1 {
			o.issue()
		}
	default:
		o.Errorf("it asks for %s %s", r.Method, r.URL)
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(o.made); err != nil {
		o.Error(err)
	}
}

func (o *office) issue() {
	key, err := authority.Check(o.made.Spec.Request, "host-1")
	if err != nil {
		o.Error(err)
		return
	}
	if o.made.Status.Certificate, err = o.authority.Issue(key, wire.WitnessName("host-1"), time.Now()); err != nil {
		o.Error(err)
	}
}

func TestTheAgentAsksForItsCertificate(t *testing.T) {
	a, err := authority.New(time.Now())
	must(t, err)
	desk := &office{T: t, authority: a}
	server := httptest.NewServer(desk)
	defer server.Close()
	dir := t.TempDir()
	requests := requests{apiServer{url: server.URL, client: server.Client(), token: filepath.Join(dir, "token")}}
	must(t, os.WriteFile(requests.token, []byte("token-of-the-pod\n"), 0o600))
	file, ca := filepath.Join(dir, "agent.pem"), filepath.Join(dir, "ca.crt")
	text, _, err := a.PEM()
	must(t, err)
	must(t, os.WriteFile(ca, text, 0o600))
	me := self{files: identity.Files{Certificate: file, Key: file, Authorities: ca}, asked: credential.New(credential.Config{
		Node: "host-1", File: file, Requests: requests, Clock: clock.RealClock{}, Log: logr.Discard()})}
	who, err := me.identity(t.Context())
	must(t, err)
	own, err := who.Identity()
	must(t, err)
	if name := own.Certificate().Leaf.URIs[0].String(); name != wire.WitnessName("host-1") || desk.looks.Load() != 2 {
		t.Errorf("it is %s, after %d looks", name, desk.looks.Load())
	}
}

func TestWhatTheAPIServerSaysOfARequest(t *testing.T) {
	failed := certificatesv1.CertificateSigningRequest{Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte("x"), Conditions: []certificatesv1.CertificateSigningRequestCondition{
		{Type: certificatesv1.CertificateApproved}, {Type: certificatesv1.CertificateFailed, Reason: "NotAnAgentsOwn", Message: "another host"}}}}
	denied := certificatesv1.CertificateSigningRequest{Status: certificatesv1.CertificateSigningRequestStatus{Conditions: []certificatesv1.CertificateSigningRequestCondition{
		{Type: certificatesv1.CertificateDenied, Reason: "NotAnAgentsOwn", Message: "another host"}}}}
	status := func(err *apierrors.StatusError) metav1.Status {
		said := err.Status()
		said.Kind, said.APIVersion = "Status", "v1"
		return said
	}
	for says, c := range map[string]struct {
		code    int
		body    any
		refused string
		failed  string // in the error
		lost    bool
	}{
		"nothing yet":    {http.StatusOK, certificatesv1.CertificateSigningRequest{}, "", "", false},
		"denied":         {http.StatusOK, denied, "Denied, NotAnAgentsOwn: another host", "", false},
		"failed":         {http.StatusOK, failed, "Failed, NotAnAgentsOwn: another host", "", false},
		"forbidden":      {http.StatusForbidden, status(apierrors.NewForbidden(certificatesv1.Resource("x"), "a", errors.New("you may not"))), "", "you may not", true},
		"gone":           {http.StatusNotFound, status(apierrors.NewNotFound(certificatesv1.Resource("x"), "a")), "", "not found", true},
		"busy":           {http.StatusTooManyRequests, status(apierrors.NewTooManyRequests("later", 1)), "", "TooManyRequests: later", false},
		"not of the API": {http.StatusNotFound, "no healthy upstream", "", "404", false},
		"nonsense":       {http.StatusOK, "<html>", "", "read what the API server answers", false},
	} {
		t.Run(says, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.code)
				if err := json.NewEncoder(w).Encode(c.body); err != nil {
					t.Error(err)
				}
			}))
			defer server.Close()
			token := filepath.Join(t.TempDir(), "token")
			must(t, os.WriteFile(token, []byte("x"), 0o600))
			got, err := (requests{apiServer{url: server.URL, client: server.Client(), token: token}}).Get(t.Context(), "a")
			if got.Refused != c.refused || (err == nil) != (c.failed == "") || err != nil && !strings.Contains(err.Error(), c.failed) || errors.Is(err, credential.ErrLost) != c.lost {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestACertificateIsAskedForInsideAClusterOnly(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	o := &options{authority: "ca.crt"}
	if _, err := o.self(logr.Discard()); err == nil || !strings.Contains(err.Error(), "--authority") {
		t.Errorf("it went on with %v", err)
	}
	if me, err := (&options{identity: "/x"}).self(logr.Discard()); err != nil || me.asked != nil || me.files.Key != "/x/tls.key" {
		t.Errorf("with files it is %+v, %v", me, err)
	}
}

func TestAnAgentIsReadyWithACertificateAndWellWithout(t *testing.T) {
	keys := t.TempDir()
	must(t, os.WriteFile(filepath.Join(keys, gossip.Primary), []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600))
	member, err := gossip.Start(gossip.Config{Facts: wire.Facts{Node: "host-1", BootID: "boot-1"}, BindAddress: "127.0.0.1", KeyDir: keys, Log: logr.Discard()})
	must(t, err)
	defer func() { must(t, member.Close()) }()
	a := &agent{member: member}
	ask := func(path string) int {
		w := httptest.NewRecorder()
		a.probes().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	if well, ready := ask("/healthz"), ask("/readyz"); well != http.StatusOK || ready != http.StatusServiceUnavailable {
		t.Errorf("without a certificate /healthz is %d and /readyz %d", well, ready)
	}
	a.answers.Store(true)
	if ready := ask("/readyz"); ready != http.StatusOK {
		t.Errorf("with a certificate /readyz is %d", ready)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
