// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // IPMI cipher suite 3 is HMAC-SHA1; no weakness of SHA-1 reaches the HMAC.
	"crypto/sha256"
	"hash"
)

// suite is a cipher suite of IPMI 2.0 table 22-20: how a session is authenticated, sealed and encrypted.
type suite struct {
	// auth, integrity and confidentiality are the algorithm numbers of tables 13-17 to 13-19.
	auth, integrity, confidentiality byte
	hash                             func() hash.Hash
	// keyCode is the length of the codes in RAKP 2 and 3, sealCode that of the code in RAKP 4 and behind every packet; bytes.
	keyCode, sealCode int
}

// suites are the ones with authentication, integrity and confidentiality by algorithms that still stand.
var suites = map[string]suite{
	"3":  {auth: 1, integrity: 1, confidentiality: 1, hash: sha1.New, keyCode: sha1.Size, sealCode: 12},
	"17": {auth: 3, integrity: 4, confidentiality: 1, hash: sha256.New, keyCode: sha256.Size, sealCode: 16},
}

// mac is the keyed hash of the parts, one after the other.
func (s suite) mac(key []byte, parts ...[]byte) []byte {
	m := hmac.New(s.hash, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}
