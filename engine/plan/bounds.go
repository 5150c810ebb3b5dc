// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Reasons why only a human can bring an incident on. They stand in status as reasons of the condition Blocked and in docs/spec/exits.md.
const (
	BlockNoMethod           = "NoFencingMethod"
	BlockDeviceContradicted = "DeviceContradicted"
	BlockNodeMissing        = "NodeMissing"
	BlockOtherMachine       = "OtherMachine"
	BlockForeignFinalizer   = "ForeignFinalizer"
	BlockActionHold         = "ActionHold"
	BlockSameBoot           = "SameBoot"
	BlockUnsettledAttempt   = "UnsettledAttempt"
	BlockAwaitingApproval   = "AwaitingApproval"
	BlockBudgetSpent        = "BudgetSpent"
)

// Blocks lists those reasons.
func Blocks() []string {
	return []string{BlockNoMethod, BlockDeviceContradicted, BlockNodeMissing, BlockOtherMachine, BlockForeignFinalizer, BlockActionHold, BlockSameBoot,
		BlockUnsettledAttempt, BlockAwaitingApproval, BlockBudgetSpent}
}

func (m *maker) block(by, words string) { m.out.Blocked, m.out.BlockedBy = words, by }

// Bound is how long an incident may be at a step before somebody is told that it does not come on.
type Bound struct {
	Step evidence.Step
	Is   time.Duration
}

// Bounds lists the steps that are not an end. That of Suspected is counted beyond ConfirmAfter.
func Bounds() []Bound {
	return []Bound{
		{evidence.StepSuspected, time.Minute},
		{evidence.StepHolding, 10 * time.Minute},
		{evidence.StepConfirmed, time.Minute},
		{evidence.StepFencing, 2 * time.Minute},
		{evidence.StepReleasing, time.Minute},
		{evidence.StepRecovering, 5 * time.Minute},
		{evidence.StepResolved, 24 * time.Hour},
	}
}

// stalled tells a step that lasts for too long. It changes nothing else.
func (m *maker) stalled() {
	j := m.seen.Journal
	i := slices.IndexFunc(Bounds(), func(b Bound) bool { return b.Step == j.Step })
	if !j.Open() || i < 0 {
		return
	}
	bound := Bounds()[i].Is
	if j.Step == evidence.StepSuspected {
		bound += m.policy.ConfirmAfter
	}
	if j.StepFor >= bound {
		m.out.Stalled = fmt.Sprintf("%s for more than %s", j.Step, bound)
	}
}
