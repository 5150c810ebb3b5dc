// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"slices"
	"testing"
)

func load(t *testing.T, pair Pair) *x509.Certificate {
	t.Helper()
	loaded, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return loaded.Leaf
}

func TestEveryCertificateIsForItsSubjectOnly(t *testing.T) {
	authority, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(load(t, authority.CA()))

	kubelet, err := authority.Issue(Subject{
		File: "kubelet", User: "system:node:host-1", Groups: []string{"system:nodes"},
		DNS: []string{"host-1"}, IPs: []string{"10.90.0.101"},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := load(t, kubelet)
	if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.90.0.101"}); err != nil {
		t.Errorf("as server at its address: %v", err)
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.90.0.102"}); err == nil {
		t.Error("it is accepted at another host's address")
	}
	if server.Subject.CommonName != "system:node:host-1" || !slices.Equal(server.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("Kubernetes would read user %q, groups %v", server.Subject.CommonName, server.Subject.Organization)
	}

	scheduler, err := authority.Issue(Subject{File: "scheduler", User: "system:kube-scheduler"})
	if err != nil {
		t.Fatal(err)
	}
	client := load(t, scheduler)
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("as client: %v", err)
	}
	if _, err := client.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a certificate without names serves as a server's")
	}
	if client.IsCA {
		t.Error("a client's certificate is an authority")
	}
}

func TestKeysAreForTheirOwnerOnly(t *testing.T) {
	authority, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.KeyPair("service-accounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{pair.Key, authority.CA().Key} {
		stat, err := os.Stat(key)
		if err != nil {
			t.Fatal(err)
		}
		if stat.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o, want 600", key, stat.Mode().Perm())
		}
	}
}

func TestAnAddressThatIsNoneIsRefused(t *testing.T) {
	authority, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue(Subject{File: "x", User: "x", IPs: []string{"host-1"}}); err == nil {
		t.Error("a host name passed for an address")
	}
}
