// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func made(t *testing.T) *Authority {
	t.Helper()
	a, err := New(now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ecKey(t *testing.T, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func request(t *testing.T, key crypto.Signer, change func(*x509.CertificateRequest)) []byte {
	t.Helper()
	own, err := url.Parse(wire.WitnessName("host-1"))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.CertificateRequest{URIs: []*url.URL{own}}
	change(template)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: der})
}

func asIs(*x509.CertificateRequest) {}

// certificate reads what was issued.
func certificate(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	der, err := block(text, blockCertificate)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAnAgentMayAskForItsOwnNameOnly(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	big, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other := func(names ...string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) {
			r.URIs = nil
			for _, name := range names {
				u, err := url.Parse(name)
				if err != nil {
					t.Fatal(err)
				}
				r.URIs = append(r.URIs, u)
			}
		}
	}
	forged := request(t, key, asIs)
	b, _ := pem.Decode(forged)
	b.Bytes[len(b.Bytes)-1] ^= 1
	good := request(t, key, asIs)
	for says, c := range map[string]struct {
		request []byte
		refused string // part of the error; empty: granted
	}{
		"its own name":                     {good, ""},
		"another agent's name":             {request(t, key, other(wire.WitnessName("host-2"))), "host-2"},
		"the manager's name":               {request(t, key, other(wire.ManagerName)), wire.ManagerName},
		"its own and another":              {request(t, key, other(wire.WitnessName("host-1"), wire.ManagerName)), wire.ManagerName},
		"no name":                          {request(t, key, other()), "names []"},
		"a DNS name beside":                {request(t, key, func(r *x509.CertificateRequest) { r.DNSNames = []string{"kubernetes"} }), "DNS names"},
		"an address beside":                {request(t, key, func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} }), "IP addresses"},
		"a mail address beside":            {request(t, key, func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.org"} }), "mail addresses"},
		"another curve":                    {request(t, ecKey(t, elliptic.P384()), asIs), "P-256"},
		"another kind of key":              {request(t, edwards, asIs), "P-256"},
		"RSA":                              {request(t, big, asIs), "P-256"},
		"a key that the sender has not":    {pem.EncodeToMemory(b), ""},
		"two requests in one":              {append(bytes.Clone(good), good...), "more than one"},
		"a certificate instead of request": {pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: b.Bytes}), "no PEM block"},
		"nothing":                          {nil, "no PEM block"},
		"nonsense":                         {pem.EncodeToMemory(&pem.Block{Type: blockRequest, Bytes: []byte("nonsense")}), "cannot be read"},
	} {
		got, err := Check(c.request, "host-1")
		granted := says == "its own name"
		switch {
		case granted && (err != nil || !key.Public().(*ecdsa.PublicKey).Equal(got)):
			t.Errorf("%s: %v", says, err)
		case !granted && (err == nil || !strings.Contains(err.Error(), c.refused)):
			t.Errorf("%s: %v, want a refusal that says %q", says, err, c.refused)
		}
	}
}

func TestWhatIsIssuedIsOfOneNameAndForBothSidesOfTLS(t *testing.T) {
	a := made(t)
	text, _, err := a.Pair(wire.WitnessName("host-1"), now)
	if err != nil {
		t.Fatal(err)
	}
	c := certificate(t, text)
	if len(c.URIs) != 1 || c.URIs[0].String() != wire.WitnessName("host-1") || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 {
		t.Errorf("it names %v, %v, %v, %v", c.URIs, c.DNSNames, c.IPAddresses, c.EmailAddresses)
	}
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		t.Error("it may issue")
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for says, at := range map[string]struct {
			time.Time
			good bool
		}{
			"on a host whose clock lags": {now.Add(-skew), true}, "now": {now, true}, "at its end": {now.Add(Life), true},
			"after its end": {now.Add(Life + time.Second), false},
		} {
			_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at.Time, KeyUsages: []x509.ExtKeyUsage{usage}})
			if (err == nil) != at.good {
				t.Errorf("%s, usage %d: %v", says, usage, err)
			}
		}
	}
	again, _, err := a.Pair(wire.WitnessName("host-1"), now)
	if err != nil || certificate(t, again).SerialNumber.Cmp(c.SerialNumber) == 0 {
		t.Errorf("the next has the same number, or none: %v", err)
	}
}

func TestNothingOutlivesTheAuthority(t *testing.T) {
	a := made(t)
	text, _, err := a.Pair(wire.ManagerName, a.Expires().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if got := certificate(t, text).NotAfter; got.After(a.Expires()) {
		t.Errorf("it ends at %v, and the authority at %v", got, a.Expires())
	}
	if _, _, err := a.Pair(wire.ManagerName, a.Expires()); err == nil {
		t.Error("an authority that has ended issues")
	}
}

func TestAnAuthorityIsReadBackWithItsOwnKeyOnly(t *testing.T) {
	a, b := made(t), made(t)
	certA, keyA, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	_, keyB, err := b.PEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(certA, keyA)
	if err != nil || !back.certificate.Equal(a.certificate) {
		t.Fatalf("it is not read back: %v", err)
	}
	leaf, leafKey, err := a.Pair(wire.ManagerName, now)
	if err != nil {
		t.Fatal(err)
	}
	for says, c := range map[string][2][]byte{
		"another's key":   {certA, keyB},
		"an agent's pair": {leaf, leafKey},
		"no certificate":  {nil, keyA},
		"no key":          {certA, nil},
		"a broken key":    {certA, pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: []byte("nonsense")})},
	} {
		if _, err := Parse(c[0], c[1]); err == nil {
			t.Errorf("%s: taken", says)
		}
	}
}
