// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// look has the device "bmc" read once, one second after the last look.
func look(step func(time.Duration), clock *Clock, powers *Powers, state evidence.PowerState) evidence.Power {
	step(time.Second)
	p := evidence.Power{State: state, Identity: evidence.IdentityMatches, At: clock.Instant()}
	powers.See("bmc", &p, clock.Instant())
	return p
}

func TestARunOfOffBeginsWithItsFirstCompleteReading(t *testing.T) {
	source, clock := stepped()
	powers := NewPowers(clock)
	if p := look(source.Step, clock, powers, evidence.PowerOn); p.HasOff {
		t.Error("On is not Off")
	}
	look(source.Step, clock, powers, evidence.PowerOff)
	if p := look(source.Step, clock, powers, evidence.PowerOff); p.OffSince != at(2) || p.LastOff != at(3) || !p.HasOff {
		t.Errorf("off since %v, last %v; want 2s and 3s", p.OffSince, p.LastOff)
	}
}

func TestAnUnreadableDeviceBreaksNoRun(t *testing.T) {
	source, clock := stepped()
	powers := NewPowers(clock)
	look(source.Step, clock, powers, evidence.PowerOff)
	if p := look(source.Step, clock, powers, evidence.PowerUnread); !p.HasOff || p.LastOff != at(1) {
		t.Errorf("what was read is forgotten: %+v", p)
	}
	if p := look(source.Step, clock, powers, evidence.PowerOff); p.OffSince != at(1) {
		t.Errorf("off since %v, want 1s", p.OffSince)
	}
}

func TestOnBreaksTheRunAndKeepsTheMemory(t *testing.T) {
	source, clock := stepped()
	powers := NewPowers(clock)
	look(source.Step, clock, powers, evidence.PowerOff)
	if p := look(source.Step, clock, powers, evidence.PowerOn); !p.HasOff || p.LastOff != at(1) {
		t.Errorf("that it was off once is forgotten: %+v", p)
	}
	if p := look(source.Step, clock, powers, evidence.PowerOff); p.OffSince != at(3) {
		t.Errorf("off since %v, want 3s: it was on in between", p.OffSince)
	}
}

func TestSinceCountsFromTheFirstQuestion(t *testing.T) {
	source, clock := stepped()
	powers := NewPowers(clock)
	source.Step(time.Hour)
	if d := powers.Since("off-1/Intended"); d != 0 {
		t.Errorf("known for %s at first sight", d)
	}
	source.Step(time.Second)
	if d := powers.Since("off-1/Intended"); d != time.Second {
		t.Errorf("known for %s", d)
	}
	if d := powers.Since("off-1/Accepted"); d != 0 {
		t.Errorf("a new state is known for %s", d)
	}
}
