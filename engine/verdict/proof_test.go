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

// provenOff is a snapshot with full proof: commanded, tainted, read Off afterwards, silent since, the right machine in the right boot.
func provenOff() (evidence.Snapshot, verdict.Policy) {
	s := picture("late", "Unknown", "none", "fails", "Off")
	s.Node.Fenced = true
	s.Writers[0].Volumes = []evidence.Volume{{Claim: "data-db-0", Driver: "csi.example.org"}}
	s.Journal = evidence.Journal{Name: "i", Step: evidence.StepFencing,
		Attempts: []evidence.Attempt{{ID: "off-1", Method: "ipmi", State: evidence.AttemptSettled}}}
	return s, verdict.Policy{ConfirmAfter: 15 * time.Second, BlindPercent: 50, BlindAPISilent: 5 * time.Second, MinimumProof: evidence.StrengthPowerOff}
}

// TestEveryPartOfTheProofCounts takes one part of a full proof away at a time: the host is not lost, and the words say what is missing.
func TestEveryPartOfTheProofCounts(t *testing.T) {
	s, p := provenOff()
	if found := verdict.Decide(s, p); found.Class != verdict.Lost || !found.Proof.Fresh || !slices.Equal(found.Proof.Parts, []verdict.Part{{Method: "ipmi", Attempt: "off-1", Strength: evidence.StrengthPowerOff}}) {
		t.Fatalf("full proof gives %s, %+v", found.Class, found.Proof)
	}
	for missing, take := range map[string]func(*evidence.Snapshot, *verdict.Policy){
		"the Node or its Lease cannot be read": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Lease.Read = false },
		"cannot be listed":                     func(s *evidence.Snapshot, _ *verdict.Policy) { s.Listed = false },
		"another boot ID":                      func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.BootID = "b2" },
		"names another machine":                func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.UID = "other" },
		"was not commanded": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Journal.Attempts[0].State = evidence.AttemptSuperseded
		},
		"fenced taint":                  func(s *evidence.Snapshot, _ *verdict.Policy) { s.Node.Fenced = false },
		"before the taint was seen":     func(s *evidence.Snapshot, _ *verdict.Policy) { s.Power[0].At = s.Node.At - 1 },
		"is asked for":                  func(_ *evidence.Snapshot, p *verdict.Policy) { p.MinimumProof = evidence.StrengthPowerOff + 1 },
		"does not cut volume data-db-0": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Power[0].CoversHost = false },
		"lied in this incident":         func(s *evidence.Snapshot, _ *verdict.Policy) { s.Journal.Distrusted = []string{"ipmi"} },
		"showed life since": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Apps[0].LastAnswer = s.At - evidence.Instant(5*time.Second)
		},
		"showed life a moment ago": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Power[0].OffSince, s.Port.HasAnswer, s.Port.LastAnswer = s.At, true, s.At-evidence.Instant(2*time.Second)
		},
		"but pdu reads On": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Power = append(s.Power, evidence.Power{Method: "pdu", State: evidence.PowerOn, Identity: evidence.IdentityMatches})
		},
		"could still be renewed": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Lease.Age = 11250 * time.Millisecond },
		"asked in vain":          func(s *evidence.Snapshot, _ *verdict.Policy) { s.Lease.Age, s.Port.Asked = 13*time.Second, 0 },
		"w1 hears it": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses = evidence.Witnesses{On: true, Vantages: []evidence.Vantage{{Witness: "w1", Answered: true, At: s.At, State: evidence.GossipSuspect}}}
		},
		"showed life since (agent)": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses = evidence.Witnesses{On: true, Report: evidence.Report{BootID: "b1", Sign: evidence.Sign{Heard: true, NotBefore: s.At - evidence.Instant(5*time.Second)}}}
		},
		"no device reads Off": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Power[0].State, s.Power[0].Said = evidence.PowerOn, evidence.PowerOn
		},
		"cannot be read now": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Power[0].Identity = evidence.IdentityDiffers },
	} {
		t.Run(missing, func(t *testing.T) {
			s, p := provenOff()
			take(&s, &p)
			found := verdict.Decide(s, p)
			if found.Class == verdict.Lost || found.Proof.Fresh {
				t.Errorf("is %s by %s", found.Class, found.Rule())
			}
			if missing, _, _ := strings.Cut(missing, " ("); found.Gap == "" || !strings.Contains(found.Gap, missing) {
				t.Errorf("says %q", found.Gap)
			}
		})
	}
}

// TestALeaseIsGivenTheTimeOfAWellKubelet: see docs/adr/0005-what-a-lying-device-is-given.md. Whatever leaseStaleSeconds says, the kubelet goes by its lease.
func TestALeaseIsGivenTheTimeOfAWellKubelet(t *testing.T) {
	for _, duration := range []time.Duration{8 * time.Second, 40 * time.Second, 2 * time.Minute} {
		atMost := duration/4 + duration/100 // a quarter, and a jitter of four hundredths of it
		s, p := provenOff()
		p.StaleAfter = duration / 8
		s.Lease.Duration, s.Lease.Age = duration, atMost+duration/50
		if found := verdict.Decide(s, p); found.Class == verdict.Lost {
			t.Errorf("lease of %s: a kubelet that needs %s is given only %s", duration, atMost, s.Lease.Age)
		}
		s.Lease.Age = duration*9/32 + 1
		if found := verdict.Decide(s, p); found.Class != verdict.Lost {
			t.Errorf("lease of %s: is %s still waited for after %s: %s", duration, s.Lease.Age, s.Lease.Age, found.Gap)
		}
	}
}

// TestConfirmedWantsThreeThings: see docs/adr/0004-contrast-before-confirming.md.
func TestConfirmedWantsThreeThings(t *testing.T) {
	s, p := provenOff()
	if !p.Confirmed(s) {
		t.Fatal("a minute of silence beside a host that was heard two seconds ago is not confirmed")
	}
	for missing, take := range map[string]func(*evidence.Snapshot, *verdict.Policy){
		"silence for long enough": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Port.HasAnswer, s.Port.LastAnswer = true, s.At },
		"a late lease":            func(s *evidence.Snapshot, p *verdict.Policy) { p.StaleAfter = 10 * time.Minute },
		"another host":            func(s *evidence.Snapshot, _ *verdict.Policy) { s.Cluster.HasOther = false },
		"another host, heard well after": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Cluster.OtherNotBefore = s.LastLife() + evidence.Instant(12*time.Second)
		},
		"a quorum": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses = evidence.Witnesses{On: true, Expected: 1}
		},
		"nobody who hears it": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses = evidence.Witnesses{On: true, Vantages: []evidence.Vantage{{Witness: "w1", Answered: true, At: s.At, State: evidence.GossipAlive}}}
		},
		"an observer that has watched for long": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Cluster.Observing = 10 * time.Second },
	} {
		t.Run(missing, func(t *testing.T) {
			s, p := provenOff()
			take(&s, &p)
			if p.Confirmed(s) {
				t.Errorf("confirmed without %s", missing)
			}
		})
	}
}

// TestAnAgentOfALostBootRefutes the proof, whoever it answered, once its answer cannot have been before the device began to read Off; or before this observer
// first saw the proof, where it has read no device itself.
func TestAnAgentOfALostBootRefutes(t *testing.T) {
	for name, c := range map[string]struct {
		heard   time.Duration // not before so long ago
		boot    string
		read    bool
		refuted bool
	}{
		"after Off began":                        {20 * time.Second, "b1", true, true},
		"as Off began":                           {time.Minute, "b1", true, false},
		"before":                                 {2 * time.Minute, "b1", true, false},
		"after Off began, in the next boot":      {20 * time.Second, "b2", true, false},
		"after a proof that another had read":    {20 * time.Second, "b1", false, true},
		"before a proof that another had read":   {40 * time.Second, "b1", false, false},
		"after another's proof, in another boot": {20 * time.Second, "b2", false, false},
	} {
		s, p := provenOff()
		ago := func(d time.Duration) evidence.Instant { return s.At - evidence.Instant(d) }
		s.Journal.ProofRecorded, s.Journal.ProvenSince = true, ago(30*time.Second)
		s.Apps = nil
		pw := &s.Power[0]
		pw.State, pw.Identity, pw.Said = evidence.PowerUnread, evidence.IdentityUnchecked, evidence.PowerUnread
		if c.read {
			pw.Said, pw.HasOff, pw.OffSince, pw.LastOff = evidence.PowerOff, true, ago(time.Minute), ago(25*time.Second)
		} else {
			pw.HasOff = false
		}
		s.Witnesses = evidence.Witnesses{On: true, Vantages: []evidence.Vantage{{Witness: "w1", AgentBoot: c.boot, Agent: evidence.Sign{Heard: true, NotBefore: ago(c.heard), NotAfter: ago(c.heard)}}}}
		if found := verdict.Decide(s, p); found.Refuted != c.refuted {
			t.Errorf("heard %s: refuted %v by %s, want %v", name, found.Refuted, found.Rule(), c.refuted)
		}
	}
}

// TestAStatusAfterOffBeganRefutes: in every look the Node is read before the device, so that a status which is new in the next look cannot be dated after the
// last reading of Off. A boot that was read Off does not come back: what counts is when that began.
func TestAStatusAfterOffBeganRefutes(t *testing.T) {
	for _, c := range []struct {
		name    string
		posted  time.Duration // not before so long ago
		refuted bool
	}{
		{"between the last two looks", 20*time.Second + time.Millisecond, true},
		{"as the device began to read Off", time.Minute, false},
		{"before the host died", 2 * time.Minute, false},
	} {
		s, p := provenOff()
		ago := func(d time.Duration) evidence.Instant { return s.At - evidence.Instant(d) }
		s.Journal.ProofRecorded = true
		s.Node.Ready, s.Node.Spoke, s.Node.SpokeNotBefore = evidence.ReadyTrue, true, ago(c.posted)
		pw := &s.Power[0]
		pw.State, pw.Said, pw.HasOn, pw.LastOn = evidence.PowerOn, evidence.PowerOn, true, s.At
		pw.HasOff, pw.OffSince, pw.LastOff = true, ago(time.Minute), ago(20*time.Second)
		if found := verdict.Decide(s, p); found.Refuted != c.refuted {
			t.Errorf("a status that was posted %s: refuted %v by %s, want %v", c.name, found.Refuted, found.Rule(), c.refuted)
		}
	}
}

// TestAnAgentThatWouldHaveCalledStandsInForTheLease: see docs/adr/0009-an-isolated-agent-speaks-through-the-api.md. It shortens one wait, where nobody asks for
// that, and takes the place of nothing else.
func TestAnAgentThatWouldHaveCalledStandsInForTheLease(t *testing.T) {
	lost := func() (evidence.Snapshot, verdict.Policy) {
		s, p := provenOff()
		ago := func(d time.Duration) evidence.Instant { return s.At - evidence.Instant(d) }
		s.Lease.Age, s.Lease.NotBefore = 6*time.Second, ago(7*time.Second)
		s.Apps[0].FailingFor, s.Apps[0].LastAnswer = 5*time.Second, ago(5*time.Second)
		s.Power[0].OffSince = ago(4 * time.Second)
		s.Witnesses = evidence.Witnesses{On: true, Expected: 1, Vantages: []evidence.Vantage{{Witness: "w1", Answered: true, At: s.At, State: evidence.GossipDead,
			StateFor: 2500 * time.Millisecond, AgentBoot: "b1", Agent: evidence.Sign{Heard: true, NotBefore: ago(5 * time.Second), NotAfter: ago(5 * time.Second)}}}}
		s.Witnesses.Report = evidence.Report{Sign: s.Witnesses.Vantages[0].Agent, BootID: "b1", API: evidence.PulseAlive}
		s.AgentLease = evidence.AgentLease{Read: true, At: s.At, Asked: s.At, BootID: "b1", Every: time.Second, Age: time.Minute}
		return s, p
	}
	s, p := lost()
	if found := verdict.Decide(s, p); found.Class != verdict.Lost || !found.Proof.Fresh {
		t.Fatalf("is %s by %s: %s", found.Class, found.Rule(), found.Gap)
	}
	for what, take := range map[string]func(*evidence.Snapshot, *verdict.Policy){
		"could still be renewed":               func(s *evidence.Snapshot, _ *verdict.Policy) { s.AgentLease.Read = false },
		"could still be renewed (asked for)":   func(_ *evidence.Snapshot, p *verdict.Policy) { p.AwaitLease = true },
		"the Node or its Lease cannot be read": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Lease.Read = false },
		"asked in vain":                        func(s *evidence.Snapshot, _ *verdict.Policy) { s.Port.Asked = 0 },
		"showed life a moment ago (quiet)": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.Witnesses.Vantages[0].Agent.NotBefore, s.Power[0].OffSince = s.At-evidence.Instant(2900*time.Millisecond), s.At-evidence.Instant(2*time.Second)
		},
		"could still be renewed (nobody knows whether its agent reached the API)": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Witnesses.Report.API = evidence.PulseUnread },
		"was not commanded": func(s *evidence.Snapshot, _ *verdict.Policy) { s.Journal.Attempts = nil },
		"Agent by its Lease showed life since": func(s *evidence.Snapshot, _ *verdict.Policy) {
			s.AgentLease.Moved, s.AgentLease.NotBefore = true, s.At-evidence.Instant(time.Second)
		},
	} {
		s, p := lost()
		take(&s, &p)
		found := verdict.Decide(s, p)
		if words, _, _ := strings.Cut(what, " ("); found.Class == verdict.Lost || !strings.Contains(found.Gap, words) {
			t.Errorf("%s: is %s by %s, says %q", what, found.Class, found.Rule(), found.Gap)
		}
	}
}
