// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"context"
	"crypto"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
)

// seen is one request, and what may be made of it.
type seen struct {
	request   *certificatesv1.CertificateSigningRequest
	authority *authority.Authority
	// name and key are what a certificate may be issued of; refused says why none may.
	name    string
	key     crypto.PublicKey
	refused string
}

// gather reads a request that is still to be answered, or nothing.
func (r *Reconciler) gather(ctx context.Context, name string) (*seen, error) {
	s := &seen{request: &certificatesv1.CertificateSigningRequest{}}
	if err := r.Client.Get(ctx, types.NamespacedName{Name: name}, s.request); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if s.request.Spec.SignerName != wire.Signer || answered(s.request) {
		return nil, nil
	}
	var config v1alpha1.GuardConfig
	if err := r.Client.Get(ctx, types.NamespacedName{Name: v1alpha1.GuardConfigName}, &config); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	if !config.Spec.Witness.Enabled {
		return nil, nil
	}
	s.request = s.request.DeepCopy()
	node, refused := r.node(s.request)
	if refused != "" {
		s.refused = refused
		return s, nil
	}
	key, err := authority.Check(s.request.Spec.Request, node)
	if err != nil {
		s.refused = err.Error()
		return s, nil
	}
	s.name, s.key = wire.WitnessName(node), key
	s.authority, err = r.Authority.Keep(ctx)
	return s, err
}

// answered reports whether nothing is left to do for a request.
func answered(csr *certificatesv1.CertificateSigningRequest) bool {
	return len(csr.Status.Certificate) > 0 || has(csr, certificatesv1.CertificateDenied) || has(csr, certificatesv1.CertificateFailed)
}

func has(csr *certificatesv1.CertificateSigningRequest, condition certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool { return c.Type == condition })
}

// usages are what an agent's certificate is for.
var usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}

// node is the Node that a request was made from, by what the API server knows of the token behind it, and not by anything that the request says; or why
// the request is refused.
func (r *Reconciler) node(csr *certificatesv1.CertificateSigningRequest) (node, refused string) {
	if want := serviceaccount.MakeUsername(r.Agent.Namespace, r.Agent.Name); csr.Spec.Username != want {
		return "", fmt.Sprintf("%s asks, and only %s may", csr.Spec.Username, want)
	}
	nodes := csr.Spec.Extra[serviceaccount.NodeNameKey]
	if len(nodes) != 1 || nodes[0] == "" || len(csr.Spec.Extra[serviceaccount.PodNameKey]) != 1 {
		return "", "the token is not bound to a pod on a Node: use the one that is projected into the agent's pod"
	}
	for _, u := range csr.Spec.Usages {
		if !slices.Contains(usages, u) {
			return "", fmt.Sprintf("spec.usages has %q, and may have %v only", u, usages)
		}
	}
	return nodes[0], ""
}

// Keep reads the authority, and makes it when there is none.
func (k *Authority) Keep(ctx context.Context) (*authority.Authority, error) {
	var secret corev1.Secret
	err := k.Client.Get(ctx, k.Secret, &secret)
	if apierrors.IsNotFound(err) {
		return k.found(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read the authority: %w", err)
	}
	a, err := authority.Parse(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("the authority in Secret %s: %w; delete it to have a new authority made, and let the agents start anew", k.Secret, err)
	}
	return a, nil
}

// found makes the authority. Of two that make one at the same time the first is kept.
func (k *Authority) found(ctx context.Context) (*authority.Authority, error) {
	a, err := authority.New(k.Clock.Now())
	if err != nil {
		return nil, err
	}
	certificate, key, err := a.PEM()
	if err != nil {
		return nil, err
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: k.Secret.Namespace, Name: k.Secret.Name},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: certificate, corev1.TLSPrivateKeyKey: key},
	}
	if err := k.Client.Create(ctx, secret); apierrors.IsAlreadyExists(err) {
		return k.Keep(ctx)
	} else if err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	return a, nil
}
