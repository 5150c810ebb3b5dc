// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// stage is a cluster in which agents watch one host, "h", that has one guarded pod. All that is dated is dated by the test's clock.
type stage struct {
	clock *Clock

	mu sync.Mutex
	// powered, agent, kubelet and serves are what lives on the host, and toAPI whether its agent reaches the API.
	powered, agent, kubelet, serves, toAPI bool
	boot                                   string
	// cut are the agents that do not reach the host, mute those that do not answer the manager.
	cut, mute map[string]bool
	heard     map[string]evidence.Instant
	gossiped  evidence.Instant
	state     wire.State
	since     evidence.Instant
	index     uint64
	moved     chan struct{}
	// lies are what one agent says instead, and what it does.
	lies map[string]func(*wire.View)
	// asked are the questions that each agent was asked, and calls how often it was asked for a view.
	asked map[string][]wire.Question
	views map[string]int
	// hold keeps all from answering until it is closed; nil: they answer at once.
	hold chan struct{}
	// restarts are the orders to restart a kubelet, each with the Node and the address that it went to.
	restarts []string
	lost     lostOnes
	// connected is what they do about connections to pods that live.
	connected connected
}

func newStage(clock *Clock) *stage {
	return &stage{clock: clock, powered: true, agent: true, kubelet: true, serves: true, toAPI: true, boot: "b1", cut: map[string]bool{}, mute: map[string]bool{},
		heard: map[string]evidence.Instant{}, state: wire.StateAlive, moved: make(chan struct{}), lies: map[string]func(*wire.View){},
		asked: map[string][]wire.Question{}, views: map[string]int{}}
}

func (s *stage) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// turn lets gossip go on for a moment among the agents named.
func (s *stage) turn(agents []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Instant()
	for _, name := range agents {
		if s.powered && s.agent && !s.cut[name] {
			s.heard[name], s.gossiped = now, now
		}
	}
	state := wire.StateAlive
	if silent := now.Sub(s.gossiped); silent >= 3*time.Second {
		state = wire.StateDead
	} else if silent >= time.Second {
		state = wire.StateSuspect
	}
	if state != s.state {
		s.state, s.since = state, now
		s.move()
	}
}

// move has everybody answered who awaits a view; mu is held.
func (s *stage) move() {
	s.index++
	close(s.moved)
	s.moved = make(chan struct{})
}

// actor is the agent of one Node on the stage.
type actor struct {
	*stage
	node string
}

var errMute = &net.OpError{Op: "dial", Err: errors.New("no answer")}

func (a actor) View(context.Context, string) (wire.View, error) {
	a.mu.Lock()
	a.views[a.node]++
	hold := a.hold
	a.mu.Unlock()
	if hold != nil {
		<-hold
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.now()
}

// now is the view; mu is held.
func (a actor) now() (wire.View, error) {
	if a.mute[a.node] {
		return wire.View{}, errMute
	}
	now := a.clock.Instant()
	host := wire.Host{Facts: wire.Facts{Node: "h", BootID: a.boot, Kubelet: pulse(a.kubelet), Runtime: wire.Alive, API: pulse(a.toAPI)}, State: a.state,
		StateAge: wire.Millis(now.Sub(a.since))}
	if heard, ever := a.heard[a.node]; ever {
		ms := wire.Millis(now.Sub(heard))
		host.HeardAge = &ms
	}
	view := wire.View{Node: a.node, BootID: "boot of " + a.node, Index: a.index, Hosts: []wire.Host{host}}
	if lie := a.lies[a.node]; lie != nil {
		lie(&view)
	}
	return view, nil
}

func pulse(alive bool) wire.Pulse {
	if alive {
		return wire.Alive
	}
	return wire.Dead
}

func (a actor) Await(ctx context.Context, _ string, index uint64) (wire.View, error) {
	for {
		a.mu.Lock()
		view, err := a.now()
		moved := a.moved
		a.mu.Unlock()
		if err != nil || view.Index != index {
			return view, err
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return wire.View{}, ctx.Err()
		}
	}
}

func (a actor) Probe(_ context.Context, _ string, questions []wire.Question) (wire.ProbeAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mute[a.node] {
		return wire.ProbeAnswer{}, errMute
	}
	a.asked[a.node] = append(a.asked[a.node], questions...)
	out := wire.ProbeAnswer{Node: a.node, BootID: "boot of " + a.node}
	for _, q := range questions {
		answer := wire.Answer{Name: q.Name, Outcome: wire.Silent}
		reached := a.powered && !a.cut[a.node]
		switch {
		case q.Agent != "" && reached && a.agent:
			answer.Outcome, answer.BootID = wire.Answered, a.boot
		case q.Agent != "" || !reached:
		case q.Port == kubeletPort && a.kubelet, q.Port != kubeletPort && a.serves:
			answer.Outcome = wire.Answered
		default:
			answer.Outcome = wire.Refused
		}
		out.Answers = append(out.Answers, answer)
	}
	return out, nil
}

func (a actor) Restart(_ context.Context, address string, request wire.RestartRequest) (wire.RestartAnswer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.restarts = append(a.restarts, a.node+" at "+address+" in "+request.BootID)
	return wire.RestartAnswer{Node: a.node, BootID: request.BootID, State: wire.RestartDone, By: "a test"}, nil
}

func (a actor) Reset(_ context.Context, _ string, request wire.ResetRequest) (wire.ResetAnswer, error) {
	return a.reset(a.node, request)
}

func (actor) Close() {}

// council is a poller of agents on a stage.
type council struct {
	*Witnesses
	*testing.T
	source  *clocktesting.FakeClock
	stage   *stage
	names   []string
	changes chan string
	roll    Roll
	pod     string
	// stride is how much time passes at once, and each is done then.
	stride time.Duration
	each   func()
}

// newCouncil lets the agents named watch host "h", which has one too, and waits until all have answered.
func newCouncil(t *testing.T, names ...string) *council {
	t.Helper()
	return newCouncilOf(t, podUID, names...)
}

// newCouncilOf is one with another pod on the host.
func newCouncilOf(t *testing.T, pod string, names ...string) *council {
	t.Helper()
	c := prepare(t, names...)
	c.pod = pod
	c.begin()
	c.until("all to answer", func() bool { return c.Of("h").Expected == min(len(names), mostVantages) })
	return c
}

func convene(t *testing.T, names ...string) *council {
	t.Helper()
	c := prepare(t, names...)
	c.begin()
	return c
}

func prepare(t *testing.T, names ...string) *council {
	t.Helper()
	source, clock := stepped()
	source.Step(time.Minute) // nothing is dated before the clock's begin
	c := &council{T: t, source: source, stage: newStage(clock), names: names, changes: make(chan string, 10000), pod: podUID, stride: 100 * time.Millisecond, each: func() {}}
	c.stage.turn(names)
	c.roll = Roll{On: true, Port: wire.Port}
	for i, name := range append([]string{"h"}, names...) {
		c.roll.Hosts = append(c.roll.Hosts, Host{Node: name, Address: fmt.Sprintf("192.0.2.%d", i+1), Zone: fmt.Sprintf("z%d", i%3), Ready: true})
	}
	c.Witnesses = NewWitnesses(clock, func(host string) {
		select {
		case c.changes <- host:
		default: // as in the manager: the next look comes by itself
		}
	})
	c.Reach = func(node string) Agent { return actor{c.stage, node} }
	c.Witnesses.Roll = func(context.Context) (Roll, error) {
		c.stage.mu.Lock()
		defer c.stage.mu.Unlock()
		roll := c.roll
		roll.Hosts = slices.Clone(roll.Hosts)
		return roll, nil
	}
	c.Witnesses.Targets = func(host string) []Target {
		if host != "h" {
			return nil
		}
		return []Target{{App: "shop/db", Pod: "shop/db-0", UID: c.pod, Host: "h", IP: "198.51.100.1", Health: v1alpha1.Health{Probes: []v1alpha1.Probe{sql(1, 1)}}}}
	}
	return c
}

func (c *council) begin() {
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- c.Start(ctx) }()
	c.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			c.Error(err)
		}
	})
}

// set changes, or looks at, what the poller's lock guards.
func (c *council) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// logTo has each line handed to say.
func logTo(say func(string)) logr.Logger {
	return funcr.New(func(_, args string) { say(args) }, funcr.Options{})
}

// step lets a little time pass for everybody.
func (c *council) step() {
	c.source.Step(c.stride)
	c.stage.turn(c.names)
	c.each()
}

// until lets time pass until something is so.
func (c *council) until(what string, is func() bool) {
	c.Helper()
	waitUntil(c.T, what, func() bool {
		if is() {
			return true
		}
		c.step()
		return false
	})
}

// pass lets that much time pass, with everybody getting their turn in between.
func (c *council) pass(d time.Duration) {
	c.Helper()
	end := c.clock.Instant() + evidence.Instant(d)
	c.until(d.String()+" to pass", func() bool { return c.clock.Instant() >= end })
}

// suspect looks for the host, as the manager does from the first doubt on, while time passes.
func (c *council) suspect() {
	c.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		c.Suspect(context.Background(), "h")
	}()
	c.until("the vantage points to have been asked", func() bool {
		select {
		case <-over:
			return true
		default:
			return false
		}
	})
}

// seen is the snapshot of the host with what the agents say of it, and nothing else.
func (c *council) seen() evidence.Snapshot {
	s := evidence.Snapshot{Host: evidence.Host{Node: "h", BootID: "b1"}, Apps: []evidence.App{{Pod: "db-0", PodUID: podUID, Exclusive: true}}}
	s.Witnesses = c.Of("h")
	s.At = c.clock.Instant()
	s.Cluster.Observing = time.Duration(s.At)
	return s
}

func vantageOf(s evidence.Snapshot, name string) evidence.Vantage {
	for _, v := range s.Witnesses.Vantages {
		if v.Witness == name {
			return v
		}
	}
	return evidence.Vantage{}
}

// told reports whether a look at the host was asked for since the last time, and forgets that.
func (c *council) told(host string) bool {
	found := false
	for len(c.changes) > 0 {
		found = <-c.changes == host || found
	}
	return found
}

func TestAHostThatDiesIsGivenUpByAllAndLookedForInVain(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.told("h")
	c.stage.set(func() { c.stage.powered = false })
	c.until("gossip to doubt it", func() bool { return c.Doubted("h") })
	if !c.told("h") {
		t.Error("nobody was told to look at the host")
	}
	c.suspect()
	c.until("all to have given it up and looked for it", func() bool { s := c.seen(); return s.WitnessesCallItDead() && s.WitnessesSearched() == 3 })
	for range 20 { // and that stays so while the suspicion lasts
		c.pass(500 * time.Millisecond)
		if s := c.seen(); !s.WitnessesCallItDead() || !s.WitnessQuorum() || s.Witnesses.Expected != 3 || !s.FailsThere(podUID) {
			t.Fatalf("they have lost sight of it: %+v", s.Witnesses)
		}
	}
	c.Trust("h")
	c.pass(evidence.WordSpan + time.Second)
	if s := c.seen(); s.WitnessQuorum() || s.WitnessesCallItDead() {
		t.Errorf("what they said before is their word on the present: %+v", s.Witnesses)
	}
}

// TestManyPodsKeepNobodyFromLookingForHosts: forty hosts with ten pods each, of which an agent answers four requests in a round.
func TestManyPodsKeepNobodyFromLookingForHosts(t *testing.T) {
	var hosts, pods [][]asking
	for i := range 5 {
		hosts = append(hosts, []asking{{host: fmt.Sprint("hosts ", i)}})
	}
	for i := range 50 {
		pods = append(pods, []asking{{pod: fmt.Sprint("pods ", i)}})
	}
	var e errands
	last := map[string]int{}
	worst := map[bool]int{}
	for round := range 100 {
		e.tick(hosts, pods)
		for range 4 {
			asked := e.next()[0]
			ofHosts, key := asked.pod == "", asked.host+asked.pod
			if before, ever := last[key]; ever {
				worst[ofHosts] = max(worst[ofHosts], round-before)
			}
			last[key] = round
		}
	}
	if len(last) != 55 || worst[true] > 3 || worst[false] > 40 {
		t.Errorf("of 55 requests %d came, those of hosts again after %d rounds and those of pods after %d", len(last), worst[true], worst[false])
	}
	if e.poke(hosts[:1], nil); e.next()[0].host != "hosts 0" || !e.none() {
		t.Error("who is suspect now waits for those who were before")
	}
	if e.tick(nil, nil) || !e.none() {
		t.Error("they are looked for though nobody is under suspicion")
	}
}

func TestNobodyIsAskedMoreThanForChangesWhileNothingIsDoubted(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.pass(20 * time.Second)
	c.stage.mu.Lock()
	defer c.stage.mu.Unlock()
	if len(c.stage.asked) > 0 {
		t.Errorf("%v were asked to probe", slices.Collect(maps.Keys(c.stage.asked)))
	}
	for name, n := range c.stage.views {
		if n > 1 {
			t.Errorf("%s was asked %d times for what it would have said by itself", name, n)
		}
	}
}

func TestSignsAreKeptThroughSilentRounds(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.suspect()
	c.until("signs of everything", func() bool {
		v := vantageOf(c.seen(), "a")
		return v.PortHeard.Heard && v.Agent.Heard && len(v.Apps) == 1 && v.Apps[0].Answered.Heard && v.Apps[0].Replied.Heard
	})
	c.stage.set(func() { c.stage.powered = false })
	died := c.clock.Instant()
	c.until("silence", func() bool {
		v := vantageOf(c.seen(), "a")
		return v.Port.Silent() && v.Apps[0].Says == evidence.ThereSilent
	})
	heard := vantageOf(c.seen(), "a")
	c.stage.set(func() { c.stage.mute["a"] = true })
	c.until("a to fall silent", func() bool { return !vantageOf(c.seen(), "a").Answered })
	v := vantageOf(c.seen(), "a")
	for what, sign := range map[string]evidence.Sign{"port": v.PortHeard, "agent": v.Agent, "application": v.Apps[0].Answered, "kernel": v.Apps[0].Replied} {
		if !sign.Heard || sign.NotBefore > died || sign.NotAfter > died+evidence.Instant(2*time.Second) {
			t.Errorf("of the %s %+v is left; it died at %v", what, sign, died)
		}
	}
	if v.AgentBoot != "b1" || v.PortHeard != heard.PortHeard {
		t.Errorf("%+v", v)
	}
	s := c.seen()
	if rank, _ := s.Life(died - evidence.Instant(5*time.Second)); rank != evidence.RankWriter {
		t.Errorf("the life that was heard is %s", rank)
	}
	if to, spoke := s.AgentSpoke(died - evidence.Instant(5*time.Second)); !spoke || to == "" {
		t.Error("its agent was heard, and that is forgotten")
	}
}

func TestWhoFallsSilentIsExpectedForAWhile(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.suspect()
	c.stage.set(func() { c.stage.powered, c.stage.mute["a"], c.stage.mute["b"] = false, true, true })
	c.until("two to fall silent", func() bool { s := c.seen(); return s.WitnessesAnswering() == 1 && s.WitnessesSearched() == 1 })
	s := c.seen()
	if s.Witnesses.Expected != 3 || len(s.Witnesses.Vantages) != 3 || s.WitnessQuorum() {
		t.Errorf("silence makes fewer expected: %+v", s.Witnesses)
	}
	c.until("them not to be expected any more", func() bool { return c.Of("h").Expected == 1 })
	if late := c.clock.Instant() - s.At; late < evidence.Instant(forgets-10*time.Second) {
		t.Errorf("that was after %s", time.Duration(late))
	}
	if n := len(c.Of("h").Vantages); n != 3 {
		t.Errorf("%d are listed", n)
	}
}

func TestWhoseOwnHostIsInTroubleNeedNotAnswer(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.suspect()
	c.stage.set(func() {
		for i := range c.roll.Hosts {
			c.roll.Hosts[i].Ready = c.roll.Hosts[i].Node != "a"
		}
	})
	c.pass(2 * rollEvery)
	if n := c.Of("h").Expected; n != 3 {
		t.Errorf("%d are expected: one that answers is no less a witness", n)
	}
	c.stage.set(func() { c.stage.mute["a"] = true })
	c.until("it not to be expected", func() bool { return c.Of("h").Expected == 2 })
}

func TestOneOnTheHostItselfIsNoVantagePoint(t *testing.T) {
	c := newCouncil(t, "a", "b")
	c.suspect()
	c.until("the host's own agent to report", func() bool { r := c.Of("h").Report; return r.Heard && r.BootID == "b1" })
	if w := c.Of("h"); len(w.Vantages) != 2 || w.Expected != 2 || vantageOf(c.seen(), "h").Witness != "" {
		t.Errorf("%+v", w)
	}
	if w := c.Of("a"); len(w.Vantages) != 2 || vantageOf(evidence.Snapshot{Witnesses: w}, "a").Witness != "" {
		t.Errorf("of a: %+v", w)
	}
	c.stage.mu.Lock()
	defer c.stage.mu.Unlock()
	if n := len(c.stage.asked["h"]); n > 0 {
		t.Errorf("the host was asked %d times to look for itself", n)
	}
}

func TestThoseThatAreAskedAreSpreadOverZonesAndAnswer(t *testing.T) {
	var names []string
	for i := range 30 {
		names = append(names, fmt.Sprintf("n%02d", i))
	}
	c := convene(t, names...)
	c.stage.set(func() {
		for i := range 20 {
			c.stage.mute[names[i]] = true // most have no agent
		}
	})
	c.until("five to answer, of which one is on the host", func() bool { return c.Of("h").Expected == mostVantages-1 })
	zones := map[string]int{}
	for _, v := range c.Of("h").Vantages {
		zones[v.Zone]++
	}
	if len(zones) != 3 {
		t.Errorf("by zone: %v", zones)
	}
}

func TestNobodyIsAskedWhereNoAgentIsRun(t *testing.T) {
	c := prepare(t, "a", "b", "c")
	for i := range c.roll.Hosts {
		c.roll.Hosts[i].NoAgent = c.roll.Hosts[i].Node == "a"
	}
	reach := c.Reach
	c.Reach = func(node string) Agent {
		if node == "a" {
			t.Error("the host without an agent is asked")
		}
		return reach(node)
	}
	c.begin()
	c.until("the others to answer", func() bool { return c.Of("h").Expected == 2 })
	c.pass(2 * rollEvery)
}

func TestOnesOwnHostSeesNoMoreThanOneself(t *testing.T) {
	for _, test := range []struct {
		agents []string // beside the one on "h"
		asked  bool
	}{{[]string{"own", "b"}, true}, {[]string{"own", "b", "c"}, false}} {
		c := prepare(t, test.agents...)
		c.OwnHost = "own"
		c.begin()
		want := 2
		c.until("those who are asked to answer", func() bool { return c.Of("h").Expected == want })
		c.pass(2 * rollEvery)
		if asked := vantageOf(c.seen(), "own").Witness != ""; asked != test.asked || c.Of("h").Expected != want {
			t.Errorf("of %v the own one is asked: %v", test.agents, asked)
		}
	}
}

func TestWhatOthersMakeOfOnesOwnHost(t *testing.T) {
	c := prepare(t, "a", "b", "c")
	c.OwnHost = "h"
	if out := c.Outside(); out != (Outside{}) {
		t.Errorf("before anybody was asked: %+v", out)
	}
	c.begin()
	c.until("all to answer", func() bool { return c.Outside() == Outside{On: true, Expected: 3, Answering: 3} })
	c.suspect()
	c.stage.set(func() { c.stage.powered = false })
	c.until("all to doubt it", func() bool { return c.Outside() == Outside{On: true, Expected: 3, Answering: 3, Doubting: 3} })
	c.stage.set(func() { c.stage.mute["a"], c.stage.mute["b"] = true, true })
	c.until("one to be left", func() bool { return c.Outside() == Outside{On: true, Expected: 3, Answering: 1, Doubting: 1} })
	c.stage.set(func() { c.stage.mute["c"] = true })
	c.until("none to be left", func() bool { return c.Outside() == Outside{On: true, Expected: 3} })
	c.until("them not to be expected any more", func() bool { return c.Outside() == Outside{On: true} })
}

func TestWithoutAgentsNobodyIsAskedAndNothingIsSaid(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.stage.set(func() { c.roll.On = false })
	c.until("them to be let go", func() bool { return !c.Of("h").On })
	c.suspect()
	c.pass(10 * time.Second)
	if w := c.Of("h"); w.On || w.Expected != 0 || len(w.Vantages) != 0 || c.Doubted("h") {
		t.Errorf("%+v", w)
	}
	c.stage.mu.Lock()
	defer c.stage.mu.Unlock()
	if len(c.stage.asked) > 0 {
		t.Error("somebody was asked")
	}
	var none *Witnesses
	none.Suspect(t.Context(), "h")
	none.Trust("h")
	if w := none.Of("h"); w.On || none.Doubted("h") {
		t.Errorf("%+v", w)
	}
}

// TestASuspicionWaitsForWords: before anybody was asked, nobody's silence says anything.
func TestASuspicionWaitsForWords(t *testing.T) {
	c := newCouncil(t, "a", "b", "c")
	c.pass(20 * time.Second)
	if n := c.seen().WitnessesAnswering(); n != 0 {
		t.Fatalf("%d have said something lately", n)
	}
	hold, over := make(chan struct{}), make(chan struct{})
	var before int
	c.stage.set(func() { c.stage.hold, before = hold, c.stage.views["a"] })
	go func() {
		defer close(over)
		c.Suspect(context.Background(), "h")
	}()
	waitUntil(t, "a to be asked", func() bool { c.stage.mu.Lock(); defer c.stage.mu.Unlock(); return c.stage.views["a"] > before })
	select {
	case <-over:
		t.Error("nobody has answered yet, and the suspicion begins")
	default:
	}
	c.stage.set(func() { c.stage.hold = nil })
	close(hold)
	<-over
	if n := c.seen().WitnessesAnswering(); n == 0 {
		t.Error("it begins, and nobody has answered")
	}
	c.Trust("h")
	c.pass(20 * time.Second)
	c.stage.set(func() { c.stage.mute = map[string]bool{"a": true, "b": true, "c": true, "h": true} })
	c.suspect() // and does not wait for ever
	if s := c.seen(); s.WitnessesAnswering() != 0 || s.Witnesses.Expected != 3 {
		t.Errorf("%+v", s.Witnesses)
	}
}

func TestAKubeletIsRestartedByTheAgentOfItsOwnHost(t *testing.T) {
	c := newCouncil(t, "a", "b")
	order := wire.RestartRequest{BootID: "b1", Reason: "a test"}
	answer, err := c.Restart(t.Context(), "h", order)
	if want := "h at 192.0.2.1:7947 in b1"; err != nil || answer.Node != "h" || !slices.Equal(c.stage.restarts, []string{want}) {
		t.Errorf("%+v, %v; asked: %q", answer, err, c.stage.restarts)
	}
	var none *Witnesses
	for name, w := range map[string]*Witnesses{"a host that is not listed": c.Witnesses, "nobody": none, "agents that are not on": NewWitnesses(c.clock, func(string) {})} {
		if answer, err := w.Restart(t.Context(), "x", order); !errors.Is(err, wire.ErrNothingDone) {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
	}
	if len(c.stage.restarts) != 1 {
		t.Errorf("asked: %q", c.stage.restarts)
	}
}
