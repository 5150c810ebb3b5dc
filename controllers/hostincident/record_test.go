// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostincident

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

var counting = time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)

// random is a list of attempts as a long incident could leave it.
func random(rng *rand.Rand) []v1alpha1.Attempt {
	states := []v1alpha1.AttemptState{v1alpha1.AttemptFailed, v1alpha1.AttemptFailed, v1alpha1.AttemptFailed, v1alpha1.AttemptSuperseded, v1alpha1.AttemptSuperseded,
		v1alpha1.AttemptSettled, v1alpha1.AttemptUnclear}
	powers := []evidence.PowerState{evidence.PowerOff, evidence.PowerOff, evidence.PowerOn}
	var out []v1alpha1.Attempt
	for i := range 10 + rng.IntN(60) {
		out = append(out, v1alpha1.Attempt{ID: fmt.Sprintf("off-%d", i+1), Method: []string{"power", "other"}[rng.IntN(2)], State: states[rng.IntN(len(states))],
			PowerBefore: powers[rng.IntN(3)].String(), IntendedAt: metav1.Time{Time: counting.Add(time.Duration(i-30) * time.Minute)}})
	}
	return out
}

// TestAProofWithoutADeviceCoversTheHost, and is journalled under its own name; a device's needs the device.
func TestAProofWithoutADeviceCoversTheHost(t *testing.T) {
	for _, part := range []verdict.Part{{Method: evidence.SelfFencing, Attempt: evidence.SelfFencing, Strength: evidence.StrengthSelfFenced}, {Method: evidence.Attesting, Attempt: "word", Strength: evidence.StrengthAttested}} {
		got, ok := proofPart(part, nil)
		if !ok || got.Method != part.Method || string(got.Strength) != part.Strength.String() || got.AttemptID != part.Attempt || !slices.Equal(got.Covers, []string{"Host"}) {
			t.Errorf("%s: %+v, %v", part.Method, got, ok)
		}
	}
	if _, ok := proofPart(verdict.Part{Method: evidence.SelfFencing, Attempt: "off-1", Strength: evidence.StrengthPowerOff}, nil); ok {
		t.Error("a method that is not there is proof, by its name")
	}
}

// spent is what the budget counts.
func spent(attempts []v1alpha1.Attempt) (n int) {
	for _, a := range attempts {
		if a.State != v1alpha1.AttemptFailed && a.PowerBefore != evidence.PowerOff.String() && a.IntendedAt.After(counting) {
			n++
		}
	}
	return n
}

// tail are the states of the latest attempts by a method.
func tail(attempts []v1alpha1.Attempt, method string, n int) []v1alpha1.AttemptState {
	var out []v1alpha1.AttemptState
	for _, a := range attempts {
		if a.Method == method {
			out = append(out, a.State)
		}
	}
	return out[max(0, len(out)-n):]
}

func count(attempts []v1alpha1.Attempt, method string, state v1alpha1.AttemptState) (n int) {
	for _, a := range attempts {
		if a.Method == method && a.State == state {
			n++
		}
	}
	return n
}

func TestCompactingAJournalChangesNothingThatAnythingRestsOn(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test
		before := random(rng)
		proof := &v1alpha1.Proof{AttemptID: before[rng.IntN(len(before))].ID}
		after := compact(before, proof, counting)
		if len(before) <= attemptsAtMost && len(after) != len(before) {
			t.Fatalf("seed %d: %d attempts are not too many, and %d stayed", seed, len(before), len(after))
		}
		if spent(before) != spent(after) {
			t.Fatalf("seed %d: the budget counted %d, and now %d", seed, spent(before), spent(after))
		}
		if !slices.ContainsFunc(after, func(a v1alpha1.Attempt) bool { return a.ID == proof.AttemptID }) {
			t.Fatalf("seed %d: the attempt that proof rests on is gone", seed)
		}
		for _, method := range []string{"power", "other"} {
			if !slices.Equal(tail(before, method, inRow), tail(after, method, inRow)) {
				t.Fatalf("seed %d: the latest attempts by %s were %v, and now are %v", seed, method, tail(before, method, inRow), tail(after, method, inRow))
			}
			for _, s := range []v1alpha1.AttemptState{v1alpha1.AttemptSettled, v1alpha1.AttemptUnclear} {
				if count(before, method, s) != count(after, method, s) {
					t.Fatalf("seed %d: %s attempts by %s are gone", seed, s, method)
				}
			}
			if b, a := count(before, method, v1alpha1.AttemptSuperseded), count(after, method, v1alpha1.AttemptSuperseded); a < min(b, inVain) {
				t.Fatalf("seed %d: %d of %d commands without effect are left", seed, a, b)
			}
		}
		if slices.ContainsFunc(after, func(a v1alpha1.Attempt) bool { return a.ID == nextID(after) }) || nextID(before) != nextID(after) {
			t.Fatalf("seed %d: the next attempt would be %s again", seed, nextID(after))
		}
	}
}

func TestAJournalDoesNotGrowWithoutEnd(t *testing.T) {
	var attempts []v1alpha1.Attempt
	for i := range 10_000 { // a device that reads Off and never says whether it took the command is asked again for as long as it takes
		state := []v1alpha1.AttemptState{v1alpha1.AttemptFailed, v1alpha1.AttemptSuperseded}[i%2]
		attempts = append(attempts, v1alpha1.Attempt{ID: nextID(attempts), Method: "power", State: state, PowerBefore: evidence.PowerOff.String(),
			IntendedAt: metav1.Time{Time: counting.Add(time.Hour)}})
		attempts = compact(attempts, nil, counting)
	}
	if len(attempts) > attemptsAtMost || attempts[len(attempts)-1].ID != "off-10000" {
		t.Errorf("%d attempts after 10000, the last is %s", len(attempts), attempts[len(attempts)-1].ID)
	}
}
