// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package ipmi

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
)

// testKeys are keys of a session that never was.
func testKeys(s suite) keys {
	return keys{suite: s, integrity: bytes.Repeat([]byte{7}, s.keyCode), encryption: bytes.Repeat([]byte{9}, 16)}
}

func TestSealedMessagesOpenAgainAtEveryLength(t *testing.T) {
	for id, s := range suites {
		k := testKeys(s)
		for n := range 70 {
			message := bytes.Repeat([]byte{0xA5}, n)
			packet, err := k.seal(rand.Reader, 5, 6, message)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := k.open(packet, 5); err != nil || !bytes.Equal(got, message) {
				t.Errorf("suite %s, %d bytes: opened %x (%v)", id, n, got, err)
			}
			if _, err := k.open(packet, 4); !errors.Is(err, errNotOurs) {
				t.Errorf("suite %s, %d bytes: opened in another session: %v", id, n, err)
			}
		}
	}
}

func TestNoBitOfASealedPacketCanBeChanged(t *testing.T) {
	for id, s := range suites {
		k := testKeys(s)
		message := request(getChassisStatus, 3)
		packet, err := k.seal(rand.Reader, 5, 6, message)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(packet) {
			changed := bytes.Clone(packet)
			changed[bit/8] ^= 1 << (bit % 8)
			got, err := k.open(changed, 5)
			// The RMCP header is not signed: it says nothing that is used.
			if bit/8 >= bodyAt && !errors.Is(err, errNotOurs) || err == nil && !bytes.Equal(got, message) {
				t.Errorf("suite %s: opened with bit %d changed: %x (%v)", id, bit, got, err)
			}
		}
		for n := range packet {
			if _, err := k.open(packet[:n], 5); !errors.Is(err, errNotOurs) {
				t.Errorf("suite %s: opened cut to %d bytes: %v", id, n, err)
			}
		}
	}
}

func TestAnAnswerBelongsToItsRequest(t *testing.T) {
	answer := func(change func([]byte)) []byte {
		m := []byte{addressConsole, 0x01 << 2, 0, addressBMC, 9 << 2, getChassisStatus.num, 0x00, 0x21, 0x10, 0x40}
		change(m)
		m[2] = checksum(m[:2])
		return append(m, checksum(m[3:]))
	}
	code, body, err := response(answer(func([]byte) {}), getChassisStatus, 9)
	if err != nil || code != 0 || !bytes.Equal(body, []byte{0x21, 0x10, 0x40}) {
		t.Fatalf("code %02X, body %x (%v)", code, body, err)
	}
	for says, m := range map[string][]byte{
		"another number":        answer(func(m []byte) { m[4] = 8 << 2 }),
		"another command":       answer(func(m []byte) { m[5] = chassisControl.num }),
		"another function":      answer(func(m []byte) { m[1] = 0x07 << 2 }),
		"a request":             answer(func(m []byte) { m[1] = 0x00 }),
		"a broken checksum":     flip(answer(func([]byte) {}), 7),
		"a broken head":         flip(answer(func([]byte) {}), 0),
		"shorter than any":      answer(func([]byte) {})[:7],
		"nothing":               nil,
		"only the three first ": answer(func([]byte) {})[:3],
	} {
		if _, _, err := response(m, getChassisStatus, 9); !errors.Is(err, errNotOurs) {
			t.Errorf("%s: taken (%v)", says, err)
		}
	}
}

// FuzzOpen looks for a datagram that ends the process, and for one that opens without being signed.
func FuzzOpen(f *testing.F) {
	k := testKeys(suites["3"])
	packet, err := k.seal(&counting{}, 5, 6, request(getChassisStatus, 3)) // the same in every process of the fuzzer
	if err != nil {
		f.Fatal(err)
	}
	f.Add(packet)
	f.Add(packet[:payloadAt])
	f.Add(setup(payloadRAKP2, make([]byte, 60)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, datagram []byte) {
		if message, err := k.open(datagram, 5); err == nil {
			if len(datagram) < bodyAt || !bytes.Equal(datagram[bodyAt:], packet[bodyAt:]) {
				t.Errorf("opened %x as %x", datagram, message)
			}
		}
	})
}

// FuzzResponse looks for a message that ends the process.
func FuzzResponse(f *testing.F) {
	f.Add([]byte{0x81, 0x04, 0x7b, 0x20, 0x24, 0x01, 0x00, 0x21, 0x10, 0x40, 0x4a})
	f.Fuzz(func(t *testing.T, message []byte) {
		if _, body, err := response(message, getChassisStatus, 9); err == nil && len(body) != len(message)-8 {
			t.Errorf("%d bytes of body in a message of %d", len(body), len(message))
		}
	})
}
