// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencing

import (
	"errors"
	"fmt"
	"strings"
)

// ErrIdentity: the device belongs to another machine, or to none that can be told. Nothing irreversible may be done through it.
var ErrIdentity = errors.New("identity cannot be confirmed")

// SameMachine reports whether a device's identity and a node's system UUID name the same machine.
//
// UUIDs are compared as 16 bytes, without regard to case and dashes. Firmware does not agree on their order: SMBIOS
// (DSP0134 §7.2.1) stores the first three fields little-endian, IPMI 2.0 (§20.8) reverses all 16 bytes, and many BMCs do neither.
// All of these orders are accepted as the same machine. All-zero and all-ones UUIDs are vendors' placeholders and never match.
// Anything that is not a UUID on either side must be equal to the letter (serial numbers).
//
// It returns nil, or an error that wraps ErrIdentity and says both.
func SameMachine(device, node string) error {
	d, n := normalise(device), normalise(node)
	switch {
	case d == "" || n == "":
		return fmt.Errorf("%w: the device says %q, the node says %q: pin the identity in the FencingProfile (pinnedSystemUUID)", ErrIdentity, device, node)
	case placeholder(d) || placeholder(n):
		return fmt.Errorf("%w: %q and %q: an all-zero or all-ones UUID names no machine; pin the identity in the FencingProfile (pinnedSystemUUID)", ErrIdentity, device, node)
	case d == n || (isUUID(d) && isUUID(n) && reordered(d, n)):
		return nil
	default:
		return fmt.Errorf("%w: the device belongs to %q, the node is %q: correct the address in the FencingProfile", ErrIdentity, device, node)
	}
}

// Normalise returns the form in which identities are compared and shown: UUIDs as 32 lower-case digits, serials as they are.
func Normalise(id string) string { return normalise(id) }

func normalise(id string) string {
	trimmed := strings.TrimSpace(id)
	bare := strings.ToLower(strings.ReplaceAll(trimmed, "-", ""))
	if isUUID(bare) {
		return bare
	}
	return trimmed
}

func isUUID(s string) bool {
	if len(s) != 32 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

func placeholder(s string) bool {
	return isUUID(s) && (strings.Trim(s, "0") == "" || strings.Trim(s, "f") == "")
}

// reordered reports whether two UUIDs differ only in an order of bytes that firmware uses.
func reordered(d, n string) bool {
	return swap(d) == n || reverse(d) == n || reverse(swap(d)) == n
}

// swap reverses the bytes of the first three fields (4, 2 and 2 bytes).
func swap(s string) string {
	return reverse(s[0:8]) + reverse(s[8:12]) + reverse(s[12:16]) + s[16:]
}

// reverse reverses the bytes of a string of hexadecimal digits.
func reverse(digits string) string {
	var b strings.Builder
	for i := len(digits); i > 0; i -= 2 {
		b.WriteString(digits[i-2 : i])
	}
	return b.String()
}
