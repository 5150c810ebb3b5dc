// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
)

func TestAHostFencesItselfOnlyWhereItIsSetUpToInFull(t *testing.T) {
	well := letGo{device: "/dev/watchdog0", identities: "iTCO_wdt, HPE iLO2+ HW Watchdog Timer", timeout: time.Minute, span: 20 * time.Second}
	for name, c := range map[string]struct {
		change func(*letGo)
		api    string
		want   string
	}{
		"in full":         {func(*letGo) {}, "https://10.0.0.1:6443/readyz", ""},
		"not at all":      {func(l *letGo) { *l = letGo{} }, "", ""},
		"without an API":  {func(*letGo) {}, "", "--authority"},
		"of no identity":  {func(l *letGo) { l.identities = " , " }, "a", "--watchdog: watchdog identities"},
		"of software":     {func(l *letGo) { l.identities = "softdog" }, "a", "never fed"},
		"for a second":    {func(l *letGo) { l.span = time.Second }, "a", "--watchdog-contact"},
		"for an hour":     {func(l *letGo) { l.span = time.Hour }, "a", "--watchdog-contact"},
		"at another path": {func(l *letGo) { l.device = "/dev/null" }, "a", "/dev/watchdogN"},
	} {
		l := well
		c.change(&l)
		err := l.check(c.api)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	if got := well.hardware().Identities; len(got) != 2 || got[1] != "HPE iLO2+ HW Watchdog Timer" {
		t.Errorf("identities are %q", got)
	}
	if (options{}).leash(nil, nil, logr.Discard()) != nil {
		t.Error("an agent without a watchdog has a leash")
	}
	if (options{letGo: well}).leash(nil, nil, logr.Discard()) == nil {
		t.Error("an agent with a watchdog has no leash")
	}
}
