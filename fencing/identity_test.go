// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fencing

import (
	"errors"
	"strings"
	"testing"
)

func TestSameMachine(t *testing.T) {
	const (
		written  = "00112233-4455-4677-8899-aabbccddeeff"
		bare     = "00112233445546778899aabbccddeeff"
		swapped  = "33221100-5544-7746-8899-aabbccddeeff"
		reversed = "ffeeddcc-bbaa-9988-7746-554433221100"
		zero     = "00000000-0000-0000-0000-000000000000"
		ones     = "ffffffff-ffff-ffff-ffff-ffffffffffff"
	)
	for says, c := range map[string]struct {
		device, node string
		same         bool
		words        string
	}{
		"a UUID is itself":                                     {written, written, true, ""},
		"dashes do not matter":                                 {written, bare, true, ""},
		"case and surrounding space do not matter":             {" 00112233-4455-4677-8899-AABBCCDDEEFF\n", written, true, ""},
		"the device swaps the first three fields":              {swapped, written, true, ""},
		"the node swaps the first three fields":                {bare, swapped, true, ""},
		"the device reverses all bytes":                        {reversed, written, true, ""},
		"the device reverses all bytes, read in SMBIOS order":  {swap(strings.ReplaceAll(reversed, "-", "")), written, true, ""},
		"another UUID":                                         {"00112233-4455-4677-8899-aabbccddeefe", written, false, "correct the address"},
		"two swapped bytes elsewhere":                          {"00112233-4455-4677-9988-aabbccddeeff", written, false, "correct the address"},
		"only one of the three fields is swapped":              {"33221100-4455-4677-8899-aabbccddeeff", written, false, "correct the address"},
		"all zero on both sides":                               {zero, zero, false, "pinnedSystemUUID"},
		"all ones on both sides":                               {ones, strings.ToUpper(ones), false, "pinnedSystemUUID"},
		"all zero on the device":                               {zero, written, false, "pinnedSystemUUID"},
		"all ones on the node":                                 {written, ones, false, "pinnedSystemUUID"},
		"the device has none":                                  {"", written, false, "pinnedSystemUUID"},
		"the node has none":                                    {written, " ", false, "pinnedSystemUUID"},
		"neither has one":                                      {"", "", false, "pinnedSystemUUID"},
		"a serial is itself":                                   {"CZ3-0042/A", "CZ3-0042/A", true, ""},
		"serials differ in case":                               {"CZ3-0042/a", "CZ3-0042/A", false, "correct the address"},
		"serials keep their dashes":                            {"CZ30042/A", "CZ3-0042/A", false, "correct the address"},
		"a serial and a UUID":                                  {"CZ3-0042/A", written, false, "correct the address"},
		"31 digits are a serial, and its reversal is not it":   {bare[:31], bare, false, "correct the address"},
		"33 digits are a serial":                               {bare + "0", bare, false, "correct the address"},
		"32 characters with one that is no digit are a serial": {"g" + bare[1:], bare, false, "correct the address"},
	} {
		err := SameMachine(c.device, c.node)
		switch {
		case c.same && err != nil:
			t.Errorf("%s: %v", says, err)
		case !c.same && !errors.Is(err, ErrIdentity):
			t.Errorf("%s: error %v, want %v", says, err, ErrIdentity)
		case !c.same && !strings.Contains(err.Error(), c.words):
			t.Errorf("%s: error %q does not say %q", says, err, c.words)
		}
	}
}

func TestNormalise(t *testing.T) {
	for id, want := range map[string]string{
		" 00112233-4455-4677-8899-AABBCCDDEEFF": "00112233445546778899aabbccddeeff",
		"CZ3-0042/A ":                           "CZ3-0042/A",
		"":                                      "",
	} {
		if got := Normalise(id); got != want {
			t.Errorf("Normalise(%q) is %q, want %q", id, got, want)
		}
	}
}
