// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/admission"
)

// identities makes clients that act as Holdfast's other service accounts. The manager holds no right of theirs itself: it asks the API server
// for a short-lived token of the one account, which is the only thing that it may ask for.
type identities struct {
	config    *rest.Config
	namespace string
	scheme    *runtime.Scheme
	mapper    meta.RESTMapper
	direct    client.Client
}

// as returns an uncached client that acts as the service account, at the API server with the address given, or at the usual one.
func (i identities) as(account, address string) (client.Client, error) {
	config := rest.AnonymousClientConfig(i.config)
	config.Timeout = apiTimeout
	if address != "" {
		name, _, err := net.SplitHostPort(i.config.Host)
		if err != nil {
			name = strings.TrimPrefix(i.config.Host, "https://")
		}
		if config.ServerName == "" {
			config.ServerName = strings.Trim(strings.TrimPrefix(name, "https://"), "/[]")
		}
		config.Host = "https://" + address
	}
	t := &token{account: account, namespace: i.namespace, direct: i.direct}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &bearer{token: t, next: next} })
	c, err := client.New(config, client.Options{Scheme: i.scheme, Mapper: i.mapper})
	if err != nil {
		return nil, fmt.Errorf("act as %s: %w", account, err)
	}
	return c, nil
}

// servers names the API servers that the canary tries: those given, or the one that everybody uses. Behind a load balancer the
// others cannot be named from here; say them with --api-servers.
func (i identities) servers(list string) ([]admission.Server, error) {
	addresses := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
	if len(addresses) == 0 {
		addresses = []string{""}
	}
	var out []admission.Server
	for _, a := range addresses {
		c, err := i.as("holdfast-canary", a)
		if err != nil {
			return nil, err
		}
		name := a
		if name == "" {
			name = i.config.Host
		}
		out = append(out, admission.Server{Name: name, Probe: c})
	}
	return out, nil
}

// token is the present token of one account; it is asked for anew when half its life is over.
type token struct {
	account   string
	namespace string
	direct    client.Client

	mu    sync.Mutex
	value string
	until time.Time
}

// tokenSeconds is the least that the API server grants.
const tokenSeconds = int64(600)

func (t *token) get(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.value != "" && time.Now().Before(t.until) {
		return t.value, nil
	}
	seconds := tokenSeconds
	account := &corev1.ServiceAccount{}
	account.Namespace, account.Name = t.namespace, t.account
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if err := t.direct.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("ask for a token of service account %s/%s: %w", t.namespace, t.account, err)
	}
	t.value, t.until = request.Status.Token, time.Now().Add(time.Duration(tokenSeconds/2)*time.Second)
	return t.value, nil
}

// forget drops a token that was refused, so that a deleted and recreated account is picked up.
func (t *token) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.value = ""
}

type bearer struct {
	token *token
	next  http.RoundTripper
}

// RoundTrip adds the token to a copy of the request.
func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	value, err := b.token.get(req.Context())
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+value)
	resp, err := b.next.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		b.token.forget()
	}
	return resp, err
}
