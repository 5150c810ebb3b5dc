// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/ptr"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
	"github.com/holdfast-dev/holdfast/engine/plan"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

func ms(d time.Duration) *int64 {
	n := d.Milliseconds()
	return &n
}

// lies are what an agent with a good certificate may say, true or not, and well-formed or not.
var lies = map[string]func(*wire.View){
	"that the host is dead": func(v *wire.View) { v.Hosts[0].State, v.Hosts[0].HeardAge = wire.StateDead, ms(time.Hour) },
	"that the host has been dead for ever": func(v *wire.View) {
		v.Hosts[0].State, v.Hosts[0].StateAge, v.Hosts[0].HeardAge = wire.StateDead, math.MaxInt64, nil
	},
	"that it is heard since before the big bang": func(v *wire.View) { v.Hosts[0].HeardAge = ms(math.MaxInt64) },
	"an age that runs over":                      func(v *wire.View) { n := math.MaxInt64/int64(time.Millisecond) + 1; v.Hosts[0].HeardAge = &n },
	"that it is in another boot":                 func(v *wire.View) { v.Hosts[0].BootID = "b2" },
	"a boot ID without end":                      func(v *wire.View) { v.Hosts[0].BootID = strings.Repeat("b", 1<<20) },
	"a state that nobody knows":                  func(v *wire.View) { v.Hosts[0].State = "Undead" },
	"nothing of any host":                        func(v *wire.View) { v.Hosts = nil },
	"one thing and its opposite":                 func(v *wire.View) { dead := v.Hosts[0]; dead.State = wire.StateDead; v.Hosts = append(v.Hosts, dead) },
	"that its own host's API is dead, and the host's": func(v *wire.View) {
		v.Hosts[0].API, v.Hosts[0].Kubelet, v.Hosts[0].Runtime = wire.Dead, wire.Dead, wire.Dead
	},
	"ten thousand hosts that there are not": func(v *wire.View) {
		for i := range 10000 {
			v.Hosts = append(v.Hosts, wire.Host{Facts: wire.Facts{Node: fmt.Sprint("nobody-", i), BootID: "x"}, State: wire.StateDead, HeardAge: ms(0)})
		}
	},
}

// TestNoLieOfOneAgentMovesAnythingTowardsRelease: for every lie of one agent among three, of a host that lives and of one that is dead. Where the host lives, nothing
// is done to it that was not done without the lie; where it is dead, nothing is done that is not done by honest agents.
func TestNoLieOfOneAgentMovesAnythingTowardsRelease(t *testing.T) {
	for truth, c := range map[string]struct {
		sentences []string
		change    func(*stage)
	}{
		"the host is well":                     {nil, func(*stage) {}},
		"the host is cut from us and the API":  {[]string{"host cannot be reached", "host loses the API"}, func(s *stage) { s.toAPI = false }},
		"the host has lost its power":          {[]string{"host loses power"}, func(s *stage) { s.powered = false }},
		"the host is dead and its device lies": {[]string{"device ipmi says On", "host loses power"}, func(s *stage) { s.powered = false }},
	} {
		honest := map[plan.Kind]bool{}
		for _, step := range played(t, c.sentences, c.change, nil).Steps {
			honest[step.Kind] = true
		}
		for what, lie := range lies {
			t.Run(truth+"; one says "+what, func(t *testing.T) {
				for _, step := range played(t, c.sentences, c.change, lie).Steps {
					if drastic := step.Kind == plan.Isolate || step.Kind == plan.DeletePod || step.Kind == plan.TaintOutOfService; drastic && !honest[step.Kind] {
						t.Errorf("%s would be done: %s", step.Kind, step.Because)
					}
				}
			})
		}
	}
}

// played is what would be done after a while, of which one agent lies all the while.
func played(t *testing.T, sentences []string, change func(*stage), lie func(*wire.View)) plan.Plan {
	t.Helper()
	th := newTheatre(t)
	th.say(sentences, change)
	th.stage.set(func() {
		if lie != nil {
			th.stage.lies["w1"] = lie
			th.stage.move()
		}
	})
	th.suspect()
	th.pass(25 * time.Second)
	_, s := th.both()
	release(t, s, th.world.Policy)
	return plan.Make(verdict.Decide(s, th.world.Policy), s, plan.Budget{Max: 2})
}

// TestAFalseWordIsCountedAndSaidOnce: of what is refused, nothing is taken.
func TestAFalseWordIsCountedAndSaidOnce(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	said := 0
	c.set(func() { c.Log = logTo(func(string) { said++ }) })
	c.suspect()
	c.stage.set(func() { c.stage.lies["a"] = lies["one thing and its opposite"]; c.stage.move() })
	c.until("it to be refused several times", func() bool { return c.Counts()[Misspoken] > 5 })
	if v := vantageOf(c.seen(), "a"); v.Answered || v.State != evidence.GossipAlive {
		t.Errorf("something of it was taken: %+v", v)
	}
	c.set(func() {
		if said != 1 {
			t.Errorf("said %d times in a minute", said)
		}
	})
}

func TestWhatIsSaidOfOthersThanTheRollTakesNoPlace(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.suspect()
	c.stage.set(func() { c.stage.lies["a"] = lies["ten thousand hosts that there are not"]; c.stage.move() })
	for range 20 { // the roll of hosts is read anew every 5 s, and what is not on it is forgotten then
		c.pass(250 * time.Millisecond)
		c.set(func() {
			for name, v := range c.vantages {
				if len(v.seen) > len(c.hosts) {
					t.Fatalf("%d hosts are remembered of %s", len(v.seen), name)
				}
			}
		})
	}
}

// TestADateLiesBetweenTwoInstantsOfOurs: an agent's age counts back from the moment of asking as the earliest, and from that of the answer as the latest, and a
// view may have been waited for in between.
func TestADateLiesBetweenTwoInstantsOfOurs(t *testing.T) {
	asked, arrived := at(100), at(130)
	for what, c := range map[string]struct {
		age           int64
		before, after evidence.Instant
	}{
		"an age":                           {20000, at(80), at(110) + evidence.Instant(trip)},
		"none":                             {0, at(100), at(130)}, // nothing is heard after it is told
		"one before the clock's beginning": {200000, at(-100), at(-70) + evidence.Instant(trip)},
		"one that runs over":               {math.MaxInt64, at(100) - evidence.Instant(oldest), at(130) - evidence.Instant(oldest-trip)},
	} {
		if got := dated(c.age, asked, arrived); got != (evidence.Sign{Heard: true, NotBefore: c.before, NotAfter: c.after}) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

func TestOfTwoSignsTheLatestMomentIsKept(t *testing.T) {
	sign := func(before, after float64) evidence.Sign {
		return evidence.Sign{Heard: true, NotBefore: at(before), NotAfter: at(after)}
	}
	for what, c := range map[string][3]evidence.Sign{
		"one after the other":                 {sign(1, 2), sign(3, 4), sign(3, 4)},
		"one that was waited for around both": {sign(1, 30), sign(2, 3), sign(2, 30)},
		"nothing before":                      {{}, sign(2, 3), sign(2, 3)},
	} {
		if got := latest(c[0], c[1]); got != c[2] {
			t.Errorf("%s: %+v is kept", what, got)
		}
		if got := latest(c[1], c[0]); got != c[2] {
			t.Errorf("%s, the other way round: %+v is kept", what, got)
		}
	}
}

// TestAViewThatWasAwaitedEndsSilence: it was asked for before the one of a round, and says of half a minute later that the host is heard.
func TestAViewThatWasAwaitedEndsSilence(t *testing.T) {
	all := func(string) bool { return true }
	of := func(boot string) wire.View {
		return wire.View{Hosts: []wire.Host{{Facts: wire.Facts{Node: "n", BootID: boot}, State: wire.StateAlive, HeardAge: ptr.To[int64](1000)}}}
	}
	v := &vantage{host: Host{Node: "w"}, seen: map[string]*seen{}}
	v.take(of("b1"), at(10), at(11), all)
	v.take(of("b1"), at(5), at(35), all)
	want := evidence.Sign{Heard: true, NotBefore: at(9), NotAfter: at(34) + evidence.Instant(trip)}
	if s := v.seen["n"]; s.Agent != want || s.report.Sign != want || s.AgentBoot != "b1" {
		t.Errorf("it was heard %+v, and reported %+v", s.Agent, s.report)
	}
	v.take(of("b2"), at(6), at(36), all) // another boot's word, which may be the older one, says nothing of this one
	if s := v.seen["n"]; s.Agent != want || s.AgentBoot != "b1" {
		t.Errorf("it was heard %+v in boot %s", s.Agent, s.AgentBoot)
	}
	v.take(of("b2"), at(40), at(41), all)
	if s := v.seen["n"]; s.AgentBoot != "b2" || s.report.BootID != "b2" || s.Agent.NotBefore != at(39) || s.Agent.NotAfter != at(40)+evidence.Instant(trip) {
		t.Errorf("it was heard %+v in boot %s", s.Agent, s.AgentBoot)
	}
}

func TestAPodAnswersByAllItsProbes(t *testing.T) {
	for want, cases := range map[evidence.There][][]wire.Outcome{
		evidence.ThereAnswered: {{wire.Answered}, {wire.Answered, wire.Answered}},
		evidence.ThereFailed:   {{wire.Failed}, {wire.Answered, wire.Failed}, {wire.Answered, wire.Silent}, {wire.Refused, wire.Failed}},
		evidence.ThereRefused:  {{wire.Refused}, {wire.Refused, wire.Silent}, {wire.NotAsked, wire.Refused}},
		evidence.ThereSilent:   {{wire.Silent}, {wire.Unreachable}, {wire.Silent, wire.NotAsked}},
		evidence.ThereUnread:   {{wire.NotAsked}, {wire.Answered, wire.NotAsked}, {"Perhaps"}},
	} {
		for _, outcomes := range cases {
			if got := thereOf(outcomes); got != want {
				t.Errorf("%v is %s, want %s", outcomes, got, want)
			}
		}
	}
}

// TestAnOddProbeKeepsNobodyFromBeingLookedFor: what no agent would try is not asked, for it has an agent refuse all that comes with it.
func TestAnOddProbeKeepsNobodyFromBeingLookedFor(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	odd := c.Targets("h")[0]
	odd.IP = "127.0.0.1"
	c.set(func() { c.Targets = func(string) []Target { return []Target{odd} } })
	c.suspect()
	c.until("the port to be asked", func() bool { return vantageOf(c.seen(), "a").Port == evidence.AnswerSpoke })
	if n := c.Counts()[Unaskable]; n == 0 {
		t.Error("nobody says that the pod is not asked")
	}
	c.stage.mu.Lock()
	defer c.stage.mu.Unlock()
	for _, q := range c.stage.asked["a"] {
		if q.Address == odd.IP {
			t.Errorf("%+v was asked", q)
		}
	}
}

func TestRequestsAreNoLargerThanAnAgentTakes(t *testing.T) {
	var groups [][]asking
	for range 20 {
		groups = append(groups, make([]asking, 3))
	}
	total := 0
	for _, request := range packed(groups) {
		total += len(request)
		if len(request) > wire.Questions || len(request)%3 != 0 {
			t.Errorf("one has %d questions", len(request))
		}
	}
	if total != 60 {
		t.Errorf("%d questions are asked of 60", total)
	}
}

// TestAnOlderViewThatComesLateChangesNothing: of two that were under way at a time, the one that was waited for has seen the change.
func TestAnOlderViewThatComesLateChangesNothing(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	host := func(state wire.State) wire.View {
		return wire.View{Node: "a", BootID: "x", Hosts: []wire.Host{{Facts: wire.Facts{Node: "h", BootID: "b1"}, State: state}}}
	}
	one := &asker{Witnesses: c.Witnesses, vantage: c.vantages["a"], node: "a"}
	asked := c.clock.Instant()
	c.source.Step(10 * time.Millisecond)
	one.hearView(host(wire.StateDead), nil, asked-at(5), true)
	one.hearView(host(wire.StateAlive), nil, asked, false)
	if v := vantageOf(c.seen(), "a"); v.State != evidence.GossipDead || !v.Answered {
		t.Errorf("%+v", v)
	}
	c.source.Step(10 * time.Millisecond)
	one.hearView(host(wire.StateAlive), nil, c.clock.Instant(), false)
	if v := vantageOf(c.seen(), "a"); v.State != evidence.GossipAlive {
		t.Errorf("a newer one does not count: %+v", v)
	}
}
