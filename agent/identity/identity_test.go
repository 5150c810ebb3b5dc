// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/authority"
	"github.com/holdfast-dev/holdfast/agent/identity"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// pem is an identity as PEM.
type pem struct{ certificate, key, authorities []byte }

func made(t *testing.T, a *authority.Authority, name string) pem {
	t.Helper()
	certificate, key, err := a.Pair(name, now)
	if err != nil {
		t.Fatal(err)
	}
	authorities, _, err := a.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return pem{certificate, key, authorities}
}

func newAuthority(t *testing.T) *authority.Authority {
	t.Helper()
	a, err := authority.New(now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (p pem) parse(t *testing.T) *identity.Identity {
	t.Helper()
	i, err := identity.Parse(p.certificate, p.key, p.authorities)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (p pem) write(t *testing.T, files identity.Files) {
	t.Helper()
	for path, text := range map[string][]byte{files.Certificate: p.certificate, files.Key: p.key, files.Authorities: p.authorities} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWhoseCertificateWasShown(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	me := made(t, ours, wire.ManagerName).parse(t)
	other := made(t, ours, wire.WitnessName("b"))
	stranger := made(t, theirs, wire.WitnessName("b")).parse(t)
	nameless := made(t, ours, "").parse(t)
	chain := func(i *identity.Identity) []*x509.Certificate { return []*x509.Certificate{i.Certificate().Leaf} }
	for _, test := range []struct {
		name  string
		shown []*x509.Certificate
		at    time.Time
		use   x509.ExtKeyUsage
		want  string // the name, or part of the error
		good  bool
	}{
		{"an agent", chain(other.parse(t)), now, x509.ExtKeyUsageServerAuth, "holdfast:witness/b", true},
		{"an agent that calls", chain(other.parse(t)), now, x509.ExtKeyUsageClientAuth, "holdfast:witness/b", true},
		{"nothing", nil, now, x509.ExtKeyUsageServerAuth, "no certificate", false},
		{"of another authority", chain(stranger), now, x509.ExtKeyUsageServerAuth, "unknown authority", false},
		{"expired", chain(other.parse(t)), now.Add(authority.Life + time.Second), x509.ExtKeyUsageServerAuth, "expired", false},
		{"not yet good", chain(other.parse(t)), now.Add(-time.Hour), x509.ExtKeyUsageServerAuth, "not yet valid", false},
		{"for another use", chain(other.parse(t)), now, x509.ExtKeyUsageCodeSigning, "key usage", false},
		{"without a name", chain(nameless), now, x509.ExtKeyUsageServerAuth, "", true}, // an empty URI is somebody's that nobody knows
	} {
		name, err := me.Name(test.shown, test.use, test.at)
		switch {
		case test.good && (err != nil || name != test.want):
			t.Errorf("%s: %q, %v", test.name, name, err)
		case !test.good && (err == nil || name != "" || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %q, %v; want an error that says %q", test.name, name, err, test.want)
		}
	}
}

func TestFilesAreReadAgainAndHalfWrittenOnesAreNotTaken(t *testing.T) {
	dir := t.TempDir()
	files := identity.Files{Certificate: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Authorities: filepath.Join(dir, "ca.crt")}
	if _, err := identity.Open(files); err == nil {
		t.Error("an identity without files")
	}
	a := newAuthority(t)
	first, second := made(t, a, wire.WitnessName("a")), made(t, a, wire.WitnessName("a"))
	first.write(t, files)
	source, err := identity.Open(files)
	if err != nil {
		t.Fatal(err)
	}
	is := func(want pem, wantErr bool) {
		t.Helper()
		got, err := source.Identity()
		if (err != nil) != wantErr || !got.Certificate().Leaf.Equal(want.parse(t).Certificate().Leaf) {
			t.Errorf("got %v, %v", got.Certificate().Leaf.SerialNumber, err)
		}
	}
	is(first, false)
	pem{second.certificate, first.key, first.authorities}.write(t, files) // the new certificate is there, its key is not
	is(first, true)
	pem{second.certificate, second.key, []byte("nonsense")}.write(t, files)
	is(first, true)
	if err := os.Remove(files.Key); err != nil {
		t.Fatal(err)
	}
	is(first, true)
	second.write(t, files)
	is(second, false)
}
