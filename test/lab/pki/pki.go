// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package pki issues the certificates of a lab: one authority, one certificate per identity.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lifetime of everything that is issued. A lab lives for hours.
const Lifetime = 365 * 24 * time.Hour

// Authority signs certificates and writes them into its directory.
type Authority struct {
	dir         string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Pair names the PEM files of a certificate and its key.
type Pair struct{ Cert, Key string }

// Subject says for whom a certificate is.
type Subject struct {
	// File is the base name of the files.
	File string
	// User and Groups are what Kubernetes reads from a client certificate.
	User   string
	Groups []string
	// DNS and IPs make it a server certificate as well.
	DNS []string
	IPs []string
}

// New makes an authority and writes ca.crt and ca.key into dir.
func New(dir string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := newTemplate(pkix.Name{CommonName: "holdfast lab"})
	if err != nil {
		return nil, err
	}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &Authority{dir: dir, certificate: certificate, key: key}
	return a, write(a.CA(), der, key)
}

// CA returns the authority's own files.
func (a *Authority) CA() Pair { return a.pair("ca") }

func (a *Authority) pair(name string) Pair {
	return Pair{Cert: filepath.Join(a.dir, name+".crt"), Key: filepath.Join(a.dir, name+".key")}
}

// Issue writes a certificate and its key.
func (a *Authority) Issue(s Subject) (Pair, error) {
	template, err := newTemplate(pkix.Name{CommonName: s.User, Organization: s.Groups})
	if err != nil {
		return Pair{}, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	template.DNSNames = s.DNS
	for _, text := range s.IPs {
		ip := net.ParseIP(text)
		if ip == nil {
			return Pair{}, fmt.Errorf("certificate %s: %q is not an IP address", s.File, text)
		}
		template.IPAddresses = append(template.IPAddresses, ip)
	}
	if len(s.DNS)+len(s.IPs) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return Pair{}, fmt.Errorf("certificate %s: %w", s.File, err)
	}
	pair := a.pair(s.File)
	return pair, write(pair, der, key)
}

// KeyPair writes a bare signing key and its public half, as the API server wants them for ServiceAccount
// tokens. Pair.Cert is the file of the public key.
func (a *Authority) KeyPair(name string) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return Pair{}, err
	}
	pair := Pair{Cert: filepath.Join(a.dir, name+".pub"), Key: filepath.Join(a.dir, name+".key")}
	if err := writeKey(pair.Key, key); err != nil {
		return Pair{}, err
	}
	return pair, os.WriteFile(pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644)
}

func newTemplate(name pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: name,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(Lifetime),
	}, nil
}

func write(pair Pair, der []byte, key *ecdsa.PrivateKey) error {
	if err := writeKey(pair.Key, key); err != nil {
		return err
	}
	return os.WriteFile(pair.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}
