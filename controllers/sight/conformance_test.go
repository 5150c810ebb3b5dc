// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// theatre plays the same on a stage with agents that are really asked, and in the simulated world whose agents the rules were written with. Both clocks are one.
type theatre struct {
	*council
	world *scenario.World
}

// theatreWarmUp is how long the simulated observer has watched before anything happens, as in every story.
const theatreWarmUp = 64 * time.Second

func newTheatre(t *testing.T) *theatre {
	t.Helper()
	th := &theatre{council: newCouncilOf(t, "uid-db-0", "w1", "w2", "w3"), world: scenario.NewWorld("h", "b1")}
	th.world.AddPod("db-0", "csi.example.org")
	th.world.AddDevice("ipmi")
	th.world.AddWitnesses(3)
	th.pass(theatreWarmUp - time.Duration(th.clock.Instant()))
	th.world.Advance(theatreWarmUp)
	th.stride = 250 * time.Millisecond
	th.each = func() { th.world.Advance(th.stride) }
	return th
}

// say lets something happen in both.
func (th *theatre) say(sentences []string, change func(*stage)) {
	th.Helper()
	for _, s := range sentences {
		if err := th.world.Say(s); err != nil {
			th.Fatal(err)
		}
	}
	th.stage.set(func() { change(th.stage) })
}

// both are the snapshots of the simulated observer, with its own agents and with those that were asked.
func (th *theatre) both() (simulated, asked evidence.Snapshot) {
	simulated = th.world.Snapshot()
	asked = simulated
	asked.Witnesses = th.Of("h")
	return simulated, asked
}

// meaning is all that the rules make of what agents say, in words.
func meaning(s evidence.Snapshot, p verdict.Policy, since evidence.Instant) string {
	_, hears := s.WitnessHears()
	rank, _ := s.WitnessLife()
	_, spoke := s.AgentSpoke(since)
	_, there := s.AnswersThere("uid-db-0")
	report, current := s.ReportNow()
	found := verdict.Decide(s, p)
	words := fmt.Sprintf("hears %v, dead %v, %d of %d answer, %d searched, quorum %v, life %s, spoke %v, application answers %v or fails %v", hears, s.WitnessesCallItDead(),
		s.WitnessesAnswering(), s.Witnesses.Expected, s.WitnessesSearched(), s.WitnessQuorum(), rank, spoke, there, s.FailsThere("uid-db-0"))
	if current {
		words += fmt.Sprintf(", kubelet %s, API %s", report.Kubelet, report.API)
	}
	return words + fmt.Sprintf("; %s by %s", found.Class, found.Rule())
}

// TestWhatIsAskedMeansWhatTheRulesWereWrittenWith: the same happens in the simulated world and to agents that are asked over the wire, and the rules make the
// same of both.
func TestWhatIsAskedMeansWhatTheRulesWereWrittenWith(t *testing.T) {
	mute := func(s *stage, names ...string) {
		for _, n := range names {
			s.mute[n] = true
		}
	}
	cut := func(s *stage, names ...string) {
		for _, n := range names {
			s.cut[n] = true
		}
	}
	for what, c := range map[string]struct {
		sentences []string
		change    func(*stage)
		want      verdict.Class
	}{
		"nothing happens":                      {nil, func(*stage) {}, verdict.Healthy},
		"the host loses power":                 {[]string{"host loses power"}, func(s *stage) { s.powered = false }, verdict.Silent},
		"the host is cut from all but the API": {[]string{"host cannot be reached", "host is cut from the witnesses"}, func(s *stage) { cut(s, "w1", "w2", "w3", "h") }, verdict.Isolated},
		"the host is cut from everybody": {[]string{"host cannot be reached", "host is cut from the witnesses", "host loses the API"},
			func(s *stage) { cut(s, "w1", "w2", "w3", "h"); s.toAPI = false }, verdict.Silent},
		"its agent dies, and it lives": {[]string{"agent dies"}, func(s *stage) { s.agent = false }, verdict.Healthy},
		"its kubelet dies":             {[]string{"kubelet dies"}, func(s *stage) { s.kubelet = false }, verdict.KubeletDown},
		"it lives, and is cut from us": {[]string{"host cannot be reached"}, func(*stage) {}, verdict.Isolated},
		"it lives, and is cut from us and the API": {[]string{"host cannot be reached", "host loses the API"},
			func(s *stage) { s.toAPI = false }, verdict.Isolated},
		"we are cut from everybody": {[]string{"host cannot be reached", "witnesses fall silent"}, func(s *stage) { mute(s, "w1", "w2", "w3", "h") }, verdict.Isolated},
		"it loses power while we are cut from all agents": {[]string{"device ipmi says Unreadable", "host loses power", "witnesses fall silent"},
			func(s *stage) { s.powered = false; mute(s, "w1", "w2", "w3", "h") }, verdict.Blind},
		"it loses power, and two agents fall silent": {[]string{"host loses power", "witness w1 falls silent", "witness w2 falls silent"},
			func(s *stage) { s.powered = false; mute(s, "w1", "w2") }, verdict.Silent},
		"one agent only hears it": {[]string{"host cannot be reached", "host loses the API", "witness w1 is cut from the host", "witness w2 is cut from the host"},
			func(s *stage) { s.toAPI = false; cut(s, "w1", "w2") }, verdict.Isolated},
	} {
		t.Run(what, func(t *testing.T) {
			th := newTheatre(t)
			th.say(c.sentences, c.change)
			struck := th.clock.Instant()
			th.suspect() // as the manager does, from whatever shows first
			th.pass(25 * time.Second)
			var want, got string
			var asked evidence.Snapshot
			for range 20 { // a round may be under way
				var simulated evidence.Snapshot
				simulated, asked = th.both()
				since := struck + evidence.Instant(time.Second)
				want, got = meaning(simulated, th.world.Policy, since), meaning(asked, th.world.Policy, since)
				if want == got {
					break
				}
				th.pass(th.stride)
			}
			if want != got {
				t.Errorf("simulated: %s\n    asked: %s", want, got)
			}
			if class := verdict.Decide(asked, th.world.Policy).Class; class != c.want {
				t.Errorf("is %s, want %s", class, c.want)
			}
			release(t, asked, th.world.Policy)
		})
	}
}

// release fails the test if anything would be released, or proven, of a snapshot.
func release(t *testing.T, s evidence.Snapshot, p verdict.Policy) {
	t.Helper()
	found := verdict.Decide(s, p)
	for _, step := range plan.Make(found, s, plan.Budget{Max: 2}).Steps {
		if step.Kind == plan.DeletePod {
			t.Errorf("%s: %s would be done (%s)", found.Class, step.Kind, step.Because)
		}
	}
	if found.Class == verdict.Lost || found.Proof.Fresh {
		t.Errorf("%s, with proof %+v", found.Class, found.Proof)
	}
}
