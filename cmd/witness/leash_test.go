// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"github.com/holdfast-dev/holdfast/agent/lease"
	"github.com/holdfast-dev/holdfast/agent/wire"
)

func TestAHostFencesItselfOnlyWhereItIsSetUpToInFull(t *testing.T) {
	well := letGo{device: "/dev/watchdog0", identities: "iTCO_wdt, HPE iLO2+ HW Watchdog Timer", timeout: time.Minute, span: 20 * time.Second}
	for name, c := range map[string]struct {
		change func(*letGo)
		api    string
		want   string
	}{
		"in full":         {func(*letGo) {}, "https://10.0.0.1:6443/readyz", ""},
		"by a majority":   {func(l *letGo) { l.majority = true }, "https://10.0.0.1:6443/readyz", ""},
		"without a Lease": {func(*letGo) {}, "no Lease", "--lease-namespace"},
		"nor with most":   {func(l *letGo) { l.majority = true }, "no Lease", "--lease-namespace"},
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
		namespace := "holdfast-witness"
		if c.api == "no Lease" {
			namespace = ""
		}
		err := l.check(c.api, namespace)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	if got := well.hardware().Identities; len(got) != 2 || got[1] != "HPE iLO2+ HW Watchdog Timer" {
		t.Errorf("identities are %q", got)
	}
	if (options{}).leash(nil, nil, nil, logr.Discard()) != nil {
		t.Error("an agent without a watchdog has a leash")
	}
	leash := (options{letGo: well}).leash(&leases{}, nil, nil, logr.Discard())
	if leash == nil {
		t.Fatal("an agent with a watchdog has no leash")
	}
	majority := options{letGo: well}
	majority.letGo.majority = true
	if (options{letGo: well}).asking(leash) != nil || majority.asking(leash) == nil {
		t.Error("an answer that leaves no trace counts where the host announces what it does, or none where it does not")
	}
}

// An agent before this one may have announced a reset that this one, whom a majority answers, does not let happen: first its word must be gone.
func TestNothingIsFedByAMajorityWhileAResetIsAnnounced(t *testing.T) {
	s, l := newShelf(t)
	s.lease.Annotations = map[string]string{wire.AnnotationSelfFence: "40"}
	set := letGo{device: "/dev/watchdog4294967296", identities: "iTCO_wdt", timeout: time.Minute, span: 20 * time.Second, majority: true}
	const waits, opens = "not taken this agent's Lease", "watchdog4294967296/identity"
	check := func(when, want string) {
		t.Helper()
		if _, err := set.open(l)(); err == nil || strings.Contains(err.Error(), waits) != (want == waits) || strings.Contains(err.Error(), opens) != (want == opens) {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("at first", waits)
	s.deaf = true
	if err := l.Write(t.Context(), lease.Word{BootID: "b1", Every: time.Second}); err == nil {
		t.Error("an answer that is none counts as one")
	}
	check("after an answer was lost", waits)
	s.deaf = false
	must(t, l.Write(t.Context(), lease.Word{BootID: "b1", Every: time.Second}))
	check("after a word", opens)
	if s.says() != "" {
		t.Errorf("the Lease says %q", s.says())
	}
	set.majority, l = false, &leases{}
	check("where it announces itself", opens)
}
