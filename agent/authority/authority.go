// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package authority is the certificate authority of the witness agents: it makes itself, says which requests are an agent's own, and issues. It knows no
// Kubernetes; whoever calls it has found out which Node a request came from.
package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

const (
	// caLife is how long an authority is good for. Kubernetes' own lives as long, and is replaced by hand too.
	caLife = 10 * 365 * 24 * time.Hour
	// Life is how long a certificate is good for. It outlasts an API outage of days: agents renew it at two thirds.
	Life = 7 * 24 * time.Hour
	// skew is by how much the clock of a host may lag behind the one that issues.
	skew = 5 * time.Minute
)

// Types of PEM blocks.
const (
	blockCertificate = "CERTIFICATE"
	blockKey         = "PRIVATE KEY"
	blockRequest     = "CERTIFICATE REQUEST"
)

// Authority issues certificates.
type Authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// New makes an authority with a key of its own.
func New(now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: number, Subject: pkix.Name{CommonName: "holdfast witnesses"}, NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{certificate: certificate, key: key}, nil
}

// Parse reads an authority from what PEM made of it.
func Parse(certificate, key []byte) (*Authority, error) {
	der, err := block(certificate, blockCertificate)
	if err != nil {
		return nil, err
	}
	a := &Authority{}
	if a.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("the authority's certificate: %w", err)
	}
	if der, err = block(key, blockKey); err != nil {
		return nil, err
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("the authority's key: %w", err)
	}
	ec, ok := private.(*ecdsa.PrivateKey)
	if !ok || !ec.PublicKey.Equal(a.certificate.PublicKey) {
		return nil, errors.New("the authority's key is not that of its certificate")
	}
	a.key = ec
	if !a.certificate.IsCA {
		return nil, errors.New("the authority's certificate is not that of an authority")
	}
	return a, nil
}

// PEM returns the authority's certificate and key, for [Parse].
func (a *Authority) PEM() (certificate, key []byte, err error) {
	if key, err = encode(a.key); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: a.certificate.Raw}), key, nil
}

// Expires is when the authority's certificate ends. What it issues ends no later.
func (a *Authority) Expires() time.Time { return a.certificate.NotAfter }

// Check reads a request (PEM) and returns the key that it asks a certificate for, if it is what the agent on the Node may ask for: its own name and no other,
// signed by the key. An error names what is wrong, for whoever reads a denied request.
func Check(request []byte, node string) (crypto.PublicKey, error) {
	der, err := block(request, blockRequest)
	if err != nil {
		return nil, err
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("the request cannot be read: %w", err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("the request is not signed by its own key: %w", err)
	}
	if len(r.DNSNames)+len(r.IPAddresses)+len(r.EmailAddresses) > 0 {
		return nil, errors.New("the request names DNS names, IP addresses or mail addresses; an agent has its URI only")
	}
	if len(r.URIs) != 1 || r.URIs[0].String() != wire.WitnessName(node) {
		return nil, fmt.Errorf("the request names %v, and the agent on %s is %s", r.URIs, node, wire.WitnessName(node))
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the request has no ECDSA key on P-256")
	}
	return key, nil
}

// Issue makes a certificate (PEM) of a key in a name, for both sides of TLS. The name is the caller's to vouch for.
func (a *Authority) Issue(key crypto.PublicKey, name string, now time.Time) ([]byte, error) {
	uri, err := url.Parse(name)
	if err != nil {
		return nil, fmt.Errorf("the name %q is no URI: %w", name, err)
	}
	number, err := serial()
	if err != nil {
		return nil, err
	}
	until := now.Add(Life)
	if until.After(a.certificate.NotAfter) {
		until = a.certificate.NotAfter
	}
	if !until.After(now) {
		return nil, fmt.Errorf("the authority expired at %s", a.certificate.NotAfter.Format(time.RFC3339))
	}
	template := &x509.Certificate{
		SerialNumber: number, URIs: []*url.URL{uri}, NotBefore: now.Add(-skew), NotAfter: until, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key, a.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der}), nil
}

// Pair makes a key, and a certificate of it in a name, both as PEM.
func (a *Authority) Pair(name string, now time.Time) (certificate, key []byte, err error) {
	private, key, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	if certificate, err = a.Issue(private.Public(), name, now); err != nil {
		return nil, nil, err
	}
	return certificate, key, nil
}

// NewKey makes a key such as [Check] wants, and writes it as PEM.
func NewKey() (key crypto.Signer, text []byte, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	text, err = encode(key)
	return key, text, err
}

// encode writes a key as PEM.
func encode(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der}), nil
}

func block(text []byte, kind string) ([]byte, error) {
	b, rest := pem.Decode(text)
	if b == nil || b.Type != kind {
		return nil, fmt.Errorf("there is no PEM block of type %s", kind)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, fmt.Errorf("there is more than one PEM block where one %s should be", kind)
	}
	return b.Bytes, nil
}

// serial is 128 random bits, which no two certificates share.
func serial() (*big.Int, error) { return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128)) }
