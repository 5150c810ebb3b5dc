// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/credential"
	"github.com/holdfast-dev/holdfast/agent/identity"
)

// askFor bounds one request to the API server.
const askFor = 10 * time.Second

// self is how the agent comes by its certificate.
type self struct {
	files identity.Files
	// asked is nil where the files are given.
	asked *credential.Credential
}

// self chooses between files that are given and a certificate that is asked for. With the latter, the API server that is asked is also the one whose life
// is a fact, unless another is named.
func (o *options) self(log logr.Logger) (self, error) {
	if o.authority == "" {
		return self{files: identity.Files{Certificate: filepath.Join(o.identity, "tls.crt"), Key: filepath.Join(o.identity, "tls.key"),
			Authorities: filepath.Join(o.identity, "ca.crt")}}, nil
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return self{}, fmt.Errorf("--authority: a certificate is asked for inside a cluster, by a pod: %w", err)
	}
	if o.api == "" {
		o.api = config.Host + "/readyz"
	}
	requests, err := requestsOf(config)
	if err != nil {
		return self{}, err
	}
	file := filepath.Join(o.identity, "agent.pem")
	return self{files: identity.Files{Certificate: file, Key: file, Authorities: o.authority}, asked: credential.New(credential.Config{
		Node: o.node, File: file, Requests: requests, Clock: clock.RealClock{}, Log: log.WithName("credential")})}, nil
}

// identity returns when there is a certificate, or with an error.
func (s self) identity(ctx context.Context) (*identity.Source, error) {
	if s.asked != nil {
		if err := s.asked.Obtain(ctx); err != nil {
			return nil, err
		}
	}
	who, err := identity.Open(s.files)
	if err != nil {
		return nil, fmt.Errorf("--identity: %w", err)
	}
	return who, nil
}

// keep renews the certificate until ctx ends.
func (s self) keep(ctx context.Context) error {
	if s.asked == nil {
		return nil
	}
	if err := s.asked.Keep(ctx); ctx.Err() == nil {
		return err
	}
	return nil
}

// requests are the certificate requests of an API server. The client is of this one kind, since one of all kinds is most of an agent's memory.
type requests struct{ rest.Interface }

const requestsResource = "certificatesigningrequests"

func requestsOf(config *rest.Config) (credential.Requests, error) {
	scheme := runtime.NewScheme()
	if err := certificatesv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.Timeout, config.APIPath, config.GroupVersion = askFor, "/apis", &certificatesv1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return requests{client}, nil
}

func (r requests) Create(ctx context.Context, request *certificatesv1.CertificateSigningRequest, _ metav1.CreateOptions) (*certificatesv1.CertificateSigningRequest, error) {
	made := &certificatesv1.CertificateSigningRequest{}
	return made, r.Post().Resource(requestsResource).Body(request).Do(ctx).Into(made)
}

func (r requests) Get(ctx context.Context, name string, _ metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error) {
	seen := &certificatesv1.CertificateSigningRequest{}
	return seen, r.Interface.Get().Resource(requestsResource).Name(name).Do(ctx).Into(seen)
}
