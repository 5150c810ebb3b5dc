// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// TestCase3LeaderLost: the host hangs with its power on. The leader dies, or stands still for longer than its lease and goes on, right after a step stands in
// the journal. The next one ends what was begun, and the host loses its power once.
func TestCase3LeaderLost(t *testing.T) {
	var variants []variant
	for _, at := range []moment{ // a confirmation stands in the journal together with the intent that follows from it
		{"Suspected", step(v1alpha1.StepSuspected), false},
		{"Intended", attempt(v1alpha1.AttemptIntended), false},
		{"Accepted", attempt(v1alpha1.AttemptAccepted), true},
		{"Settled", attempt(v1alpha1.AttemptSettled), true},
		{"proof", condition(v1alpha1.ConditionProofEstablished), true},
		{"Releasing", step(v1alpha1.StepReleasing), true},
		{"Recovering", step(v1alpha1.StepRecovering), true},
	} {
		variants = append(variants,
			variant{"killed at " + at.name, at.name == "Intended", func(t *testing.T) { leaderLost(t, at, killed) }},
			variant{"paused at " + at.name, at.name == "Accepted", func(t *testing.T) { leaderLost(t, at, paused) }},
		)
	}
	variants = append(variants,
		variant{"an API server stops answering and comes back stale", false, staleAPIServer},
	)
	playCase(t, 3, variants...)
}

// moment is what the journal says when the leader is lost.
type moment struct {
	name    string
	reached func(*v1alpha1.HostIncident) bool
	// taken says that the device has taken the command before: there is one attempt and no more.
	taken bool
}

func attempt(state v1alpha1.AttemptState) func(*v1alpha1.HostIncident) bool {
	return func(h *v1alpha1.HostIncident) bool {
		return slices.ContainsFunc(h.Status.Attempts, func(a v1alpha1.Attempt) bool { return a.State == state })
	}
}

func leaderLost(t *testing.T, at moment, lose func(*scene, *corev1.Pod)) {
	s := play(t, free)
	leader, err := s.Leader(s.soon())
	s.must(err)
	s.begin()
	s.must(s.host.Hang(s.ctx, lab.HangDead))
	hi := s.incident(at.name, at.reached)
	lose(s, leader)
	t.Logf("the leader was lost when the incident was %s, with attempts %+v", hi.Status.Step, hi.Status.Attempts)
	// An Off to a running host takes about as long as the driver waits before it sends the same request again; the BMC obeys each.
	end := s.migratedWith(func(offs int) bool { return offs >= 1 })
	if at.taken && len(end.Status.Attempts) != 1 {
		t.Errorf("the device had taken the command, and there are %d attempts: %+v", len(end.Status.Attempts), end.Status.Attempts)
	}
	s.lostPowerOnce()
	s.wrote(s.host.Name(), 0)
	s.returned()
}

// killed ends the leader's process, at once.
func killed(s *scene, leader *corev1.Pod) {
	s.Helper()
	process, err := s.ProcessOf(leader, "manager")
	s.must(err)
	s.must(process.Signal(unix.SIGKILL))
}

// paused stops the leader's process until another one leads, and then lets it go on in the belief that it is the leader.
func paused(s *scene, leader *corev1.Pod) {
	s.Helper()
	process, err := s.ProcessOf(leader, "manager")
	s.must(err)
	s.must(process.Stop(s.soon()))
	s.Cleanup(func() { _ = process.Signal(unix.SIGCONT) }) // gone is well
	next, err := s.AwaitLeader(s.soon(), leader.Name)
	s.must(err)
	s.must(process.Signal(unix.SIGCONT))
	s.Logf("%s stood still until %s led", leader.Name, next)
}

// staleAPIServer: of two API servers one accepts connections and does not answer from the moment of the fault, and answers from its old view once the
// host is being released.
func staleAPIServer(t *testing.T) {
	s := play(t, free)
	s.begin()
	s.must(s.Lab.StopAPI(s.ctx, 2))
	s.must(s.host.Hang(s.ctx, lab.HangDead))
	s.incident("proof", condition(v1alpha1.ConditionProofEstablished))
	s.must(s.Lab.StartAPI(s.ctx, 2))
	s.migratedWith(func(offs int) bool { return offs >= 1 })
	s.lostPowerOnce()
	s.wrote(s.host.Name(), 0)
	s.returned()
}
