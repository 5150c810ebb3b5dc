// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package arrayfs

import "testing"

func TestKillPending(t *testing.T) {
	for name, c := range map[string]struct {
		status string
		want   bool
	}{
		"nothing pending":             {"Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n", false},
		"SIGKILL for the thread":      {"Name:\tx\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true},
		"SIGKILL for the process":     {"SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true},
		"a signal that does not kill": {"SigPnd:\t0000000000400000\nShdPnd:\t0000000000400000\n", false},
		"blocked is not pending":      {"SigPnd:\t0\nShdPnd:\t0\nSigBlk:\t0000000000000100\n", false},
		"no such lines":               {"Name:\tx\n", false},
	} {
		if got := killPending([]byte(c.status)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
