// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/credential"
	"github.com/holdfast-dev/holdfast/agent/identity"
)

// self is how the agent comes by its certificate.
type self struct {
	files identity.Files
	// asked is nil where the files are given.
	asked *credential.Credential
	// leases is nil where the agent keeps none.
	leases *leases
}

// self chooses between files that are given and a certificate that is asked for. With the latter, the API server that is asked is also the one whose life
// is a fact, unless another is named.
func (o *options) self(log logr.Logger) (self, error) {
	if o.authority == "" {
		if o.leases != "" {
			return self{}, errors.New("--lease-namespace: a Lease is kept by a pod of the cluster only: give --authority too")
		}
		return self{files: identity.Files{Certificate: filepath.Join(o.identity, "tls.crt"), Key: filepath.Join(o.identity, "tls.key"),
			Authorities: filepath.Join(o.identity, "ca.crt")}}, nil
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return self{}, errors.New("--authority: a certificate is asked for inside a cluster, by a pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
	}
	url := "https://" + net.JoinHostPort(host, port)
	if o.api == "" {
		o.api = url + "/readyz"
	}
	server, err := o.server()
	if err != nil {
		return self{}, err
	}
	file := filepath.Join(o.identity, "agent.pem")
	return self{leases: o.lease(url, server), files: identity.Files{Certificate: file, Key: file, Authorities: o.authority}, asked: credential.New(credential.Config{
		Node: o.node, File: file, Requests: requests{apiServer{url: url, token: o.token, client: &http.Client{Timeout: askFor, Transport: &http.Transport{TLSClientConfig: server}}}},
		Clock: clock.RealClock{}, Log: log.WithName("credential")})}, nil
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

// spare is how long a connection to the API server is kept that nothing goes over: one that is older may be dead without anybody's knowing.
const spare = 5 * time.Second

// lease is where the agent keeps its Lease, or nil.
func (o *options) lease(url string, server *tls.Config) *leases {
	if o.leases == "" {
		return nil
	}
	return &leases{namespace: o.leases, node: o.node,
		apiServer: apiServer{url: url, token: o.token, client: &http.Client{Transport: &http.Transport{TLSClientConfig: server, IdleConnTimeout: spare}}}}
}
