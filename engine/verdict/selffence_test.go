// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// provenReset is a snapshot with full proof by the host's own watchdog: no device can be read, and the last word of its agent, which announced a bound of 40 s, has stood
// for a little more than that and the margin of 5 s.
func provenReset() (evidence.Snapshot, verdict.Policy) {
	s, p := provenOff()
	s.Journal.Attempts = nil
	pw := &s.Power[0]
	*pw = evidence.Power{Method: pw.Method, Level: pw.Level, Strength: pw.Strength, CoversHost: true, State: evidence.PowerUnread, At: pw.At, HasOn: true, LastOn: s.At - evidence.Instant(50*time.Second)}
	s.Witnesses = evidence.Witnesses{On: true}
	s.AgentLease = evidence.AgentLease{Read: true, At: s.At, Asked: s.At, BootID: "b1", Every: time.Second, Pulse: true, Bound: 40 * time.Second, Since: s.At - evidence.Instant(45*time.Second)}
	p.MinimumProof = evidence.StrengthSelfFenced
	return s, p
}

// TestEveryPartOfAWatchdogsProofCounts takes one part of a full proof away at a time.
func TestEveryPartOfAWatchdogsProofCounts(t *testing.T) {
	s, p := provenReset()
	found := verdict.Decide(s, p)
	part := verdict.Part{Method: evidence.SelfFencing, Attempt: evidence.SelfFencing, Strength: evidence.StrengthSelfFenced}
	if found.Class != verdict.Lost || found.Rule() != "SelfFenced" || found.Proof.Strength != evidence.StrengthSelfFenced || !slices.Equal(found.Proof.Parts, []verdict.Part{part}) {
		t.Fatalf("full proof gives %s by %s, %+v: %s", found.Class, found.Rule(), found.Proof, found.Gap)
	}
	if p.MinimumProof = evidence.StrengthAttested; verdict.Decide(s, p).Rule() != "SelfFenced" {
		t.Error("who takes a human's word does not take a watchdog")
	}
	for missing, take := range map[string]func(*evidence.Snapshot, *verdict.Policy){
		"PowerOff is asked for":    func(_ *evidence.Snapshot, p *verdict.Policy) { p.MinimumProof = evidence.StrengthPowerOff },
		"has stood for 45s of 45s": func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Since++ },
		"has stood for 1m40s of": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.AgentLease.Bound, s.AgentLease.Since = 100*time.Second, s.At-evidence.Instant(100*time.Second)
		},
		"no device reads Off":        func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Bound = 0 },
		"no device reads Off (few)":  func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Bound = 17 * time.Second },
		"no device reads Off (none)": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Witnesses.On = false },
		"agent cannot be read":       func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Read = false },
		"agent cannot be read (no)":  func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Missing = true },
		"is of boot b0":              func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.BootID = "b0" },
		"is of boot , and": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.AgentLease.BootID, s.Host.BootID, s.Node.BootID = "", "", ""
		},
		"read before the Node": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.At++ },
		"stood for 44s": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Node.At, s.AgentLease.Asked = 0, s.At-evidence.Instant(time.Second)
		},
		"has outlived its watchdog": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Journal.Distrusted = []string{evidence.SelfFencing} },
		"has outlived it (seen)":    func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Outlived = true },
		"has outlived its watchdog (agent)": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses.Report = evidence.Report{BootID: "b1", Sign: evidence.Sign{Heard: true, NotBefore: s.At}}
		},
		"has outlived its watchdog (kubelet)": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.Spoke, s.Node.SpokeNotBefore = true, s.At },
		"KubeletPort showed life since":       func(s *evidence.Snapshot, _ *verdict.Policy) { s.Port.HasAnswer, s.Port.LastAnswer = true, s.At },
		"no incident is open":                 func(s *evidence.Snapshot, _ *verdict.Policy) { s.Journal = evidence.Journal{} },
		"its Lease or its pods":               func(s *evidence.Snapshot, _ *verdict.Policy) { s.Listed = false },
		"another boot ID":                     func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.BootID = "b2" },
		"another machine":                     func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.UID = "other" },
		"the silence is not confirmed":        func(s *evidence.Snapshot, _ *verdict.Policy) { s.Cluster.HasOther = false },
		"asked in vain":                       func(s *evidence.Snapshot, _ *verdict.Policy) { s.Port.Answer = evidence.AnswerUnread },
		"fenced taint":                        func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.Fenced = false },
		"ipmi reads On": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Power[0].State, s.Power[0].Identity = evidence.PowerOn, evidence.IdentityMatches
		},
		"ipmi reads On, or has since": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Power[0].LastOn = s.At },
	} {
		t.Run(missing, func(t *testing.T) {
			s, p := provenReset()
			take(&s, &p)
			found := verdict.Decide(s, p)
			if found.Class == verdict.Lost || found.Proof.Fresh {
				t.Errorf("is %s by %s", found.Class, found.Rule())
			}
			if missing, _, _ := strings.Cut(missing, " ("); missing != "has outlived it" && !strings.Contains(found.Gap, missing) {
				t.Errorf("says %q", found.Gap)
			}
		})
	}
}

// TestAWatchdogThatResetNothingIsNotBelievedAgain: what this boot says after it was to be reset is a lie of its watchdog's; what names no boot may be the next one's.
func TestAWatchdogThatResetNothingIsNotBelievedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		say  func(*evidence.Snapshot)
		liar bool
	}{
		"nothing is said": {func(*evidence.Snapshot) {}, false},
		"its agent answered": {func(s *evidence.Snapshot) {
			s.Witnesses.Report = evidence.Report{BootID: "b1", Sign: evidence.Sign{Heard: true, NotBefore: s.At}}
		}, true},
		"before the bound": {func(s *evidence.Snapshot) {
			s.Witnesses.Report = evidence.Report{BootID: "b1", Sign: evidence.Sign{Heard: true, NotBefore: s.At - evidence.Instant(time.Second)}}
		}, false},
		"the next boot's did": {func(s *evidence.Snapshot) {
			s.Witnesses.Report = evidence.Report{BootID: "b2", Sign: evidence.Sign{Heard: true, NotBefore: s.At}}
		}, false},
		"a kernel answered":    {func(s *evidence.Snapshot) { s.Port.HasAnswer, s.Port.LastAnswer = true, s.At }, false},
		"a later word":         {func(s *evidence.Snapshot) { s.AgentLease.Outlived = true }, true},
		"of another boot":      {func(s *evidence.Snapshot) { s.AgentLease.Outlived, s.AgentLease.BootID = true, "b0" }, false},
		"no watchdog was said": {func(s *evidence.Snapshot) { s.AgentLease.Bound, s.Node.Spoke, s.Node.SpokeNotBefore = 0, true, s.At }, false},
	} {
		s, p := provenReset()
		c.say(&s)
		if got := slices.Contains(verdict.Decide(s, p).Liars, evidence.SelfFencing); got != c.liar {
			t.Errorf("%s: distrusted %v", name, got)
		}
	}
	s, p := provenReset()
	s.Journal.ProofRecorded, s.Journal.Word, s.Journal.ProvenSince = true, evidence.SelfFencing, s.At-evidence.Instant(10*time.Second)
	s.AgentLease.Moved, s.AgentLease.NotBefore, s.AgentLease.Since = true, s.At, s.At
	if found := verdict.Decide(s, p); !found.Refuted || !slices.Equal(found.Liars, []string{evidence.SelfFencing}) {
		t.Errorf("a word after the proof: %s by %s, liars %v", found.Class, found.Rule(), found.Liars)
	}
}

func TestAWatchdogsMarginIsATenthAndFiveSecondsAtLeast(t *testing.T) {
	for bound, due := range map[time.Duration]time.Duration{0: 0, 17 * time.Second: 0, 18 * time.Second: 23 * time.Second, 50 * time.Second: 55 * time.Second, 140 * time.Second: 154 * time.Second} {
		if got := (evidence.AgentLease{Bound: bound}).Due(); got != due {
			t.Errorf("a bound of %s is waited for %s", bound, got)
		}
	}
}
