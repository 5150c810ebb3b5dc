// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package identity is who an agent or the manager is to the other side, and whom it believes: a certificate, its key, and the authorities that the other
// side's certificate must come from. See docs/spec/witness.md, "Certificates".
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Identity is one reading of it. It is not changed any more.
type Identity struct {
	certificate tls.Certificate
	authorities *x509.CertPool
}

// Parse makes an identity of PEM: the certificate (with intermediate ones after it, if any), its key, and the authorities.
func Parse(certificate, key, authorities []byte) (*Identity, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authorities) {
		return nil, errors.New("authorities: there is no certificate in PEM")
	}
	return &Identity{certificate: pair, authorities: pool}, nil
}

// Identity returns itself: what was parsed once can be given where a [Source] can.
func (i *Identity) Identity() (*Identity, error) { return i, nil }

// Certificate is what the other side is shown.
func (i *Identity) Certificate() *tls.Certificate { return &i.certificate }

// Authorities is whom the other side's certificate must come from.
func (i *Identity) Authorities() *x509.CertPool { return i.authorities }

// Name says whose certificate the other side has shown: its one URI. It is an error if the certificate is not good at that time, for that use, by these
// authorities, or has another number of URIs.
func (i *Identity) Name(shown []*x509.Certificate, use x509.ExtKeyUsage, at time.Time) (string, error) {
	if len(shown) == 0 {
		return "", errors.New("no certificate was shown")
	}
	between := x509.NewCertPool()
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	options := x509.VerifyOptions{Roots: i.authorities, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}}
	if _, err := shown[0].Verify(options); err != nil {
		return "", err
	}
	if len(shown[0].URIs) != 1 {
		return "", fmt.Errorf("the certificate has %d URIs, and is nobody's: one URI names whose it is", len(shown[0].URIs))
	}
	return shown[0].URIs[0].String(), nil
}

// Files are where an identity is read from.
type Files struct {
	Certificate, Key, Authorities string
}

// Source is an identity in files, which are read again each time it is asked for: they change while they are used. It is safe for concurrent use.
type Source struct {
	files Files

	mu   sync.Mutex
	text [3]string
	last *Identity
}

// Open reads the files for the first time.
func Open(files Files) (*Source, error) {
	s := &Source{files: files}
	if _, err := s.Identity(); err != nil {
		return nil, err
	}
	return s, nil
}

// Identity returns what the files say. If they cannot be read, or do not fit together (as while they are being written), that is the error, and what
// they said before is returned with it.
func (s *Source) Identity() (*Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var text [3]string
	for n, path := range []string{s.files.Certificate, s.files.Key, s.files.Authorities} {
		b, err := os.ReadFile(path) //nolint:gosec // the operator of the agent names it
		if err != nil {
			return s.last, err
		}
		text[n] = string(b)
	}
	if s.last != nil && text == s.text {
		return s.last, nil
	}
	read, err := Parse([]byte(text[0]), []byte(text[1]), []byte(text[2]))
	if err != nil {
		return s.last, fmt.Errorf("%s, %s, %s: %w", s.files.Certificate, s.files.Key, s.files.Authorities, err)
	}
	s.text, s.last = text, read
	return read, nil
}
