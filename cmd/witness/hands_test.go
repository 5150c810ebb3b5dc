// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"testing"
)

func TestWhatRestartsTheKubelet(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "<nil>",
		"systemd":                "systemd unit kubelet.service",
		"systemd:k3s.service":    "systemd unit k3s.service",
		"systemd:":               "",
		"systemd:kubelet":        "",
		"systemd:kubelet.target": "",
		"kubelet.service":        "",
		"exec:/bin/sh":           "",
	} {
		got, err := options{restart: text, bus: "/nowhere"}.restarter()
		if (err == nil) != (want != "") || err == nil && fmt.Sprint(got) != want {
			t.Errorf("%q is %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestAnAgentDoesNothingUnlessItIsSetUpTo(t *testing.T) {
	h, let, err := options{}.hands()
	if err != nil || h.Connections != nil || h.Kubelet != nil {
		t.Errorf("%+v, %v", h, err)
	}
	if err := let(); err != nil {
		t.Error(err)
	}
}
