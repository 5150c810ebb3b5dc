// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// crew is an app that may have more than one member.
var crew = stage.Role{Name: "crew", Kind: "StatefulSet", Class: "enforcing"}

const (
	// recycling is what the scene asks for: half of all connections, one in a second.
	recycling = `{"spec":{"connections":{"recycle":{"after":["ScaleOut"],"ports":["http"],"perSecond":1,"maxPercent":50}}}}`
	// idle is several times what a new pod is waited for, and an app looked at.
	idle = 45 * time.Second
	// passing are connections that nobody keeps, such as those of probes: so many may be open as agents look.
	passing = 2
)

// connectionsRecycled: a second member comes to an app whose clients, on every host, keep their connections to the first. Nothing happens to them by default. Where the
// app asks for it half of them end, one in a second, connect again and find the second member too. Others, of the app and of another one, are let alone, also when the
// leader dies afterwards.
func connectionsRecycled(t *testing.T) {
	s := play(t, free)
	s.witnessed()
	app := s.enter(crew)
	apart := s.hangOn(s.Actor)
	s.begin()

	open := s.hangOn(app)
	s.must(app.Muster(s.soon(), 2))
	s.passes(idle)
	s.stillOpen("by default", slices.Concat(open, apart))
	if g := s.journal(app, "anything", func(*v1alpha1.ConnectionsStatus) bool { return true }); g != nil {
		t.Errorf("nobody asked for it, and the journal is %+v", g)
	}
	s.must(app.Muster(s.soon(), 1))

	s.must(app.Amend(s.ctx, recycling))
	s.journal(app, "one member to be known", func(j *v1alpha1.ConnectionsStatus) bool { return j != nil && j.Size == 1 && len(j.Known) == 1 })
	s.stillOpen("by having asked for it", slices.Concat(open, apart))
	s.must(app.Muster(s.soon(), 2))
	round := s.journal(app, "a round to be over", over).Round
	s.mark("recovered")
	s.stillOpen("of another app", apart)
	kept := s.recycled(round, open)
	kept = append(kept, s.reconnected(app, len(open)-len(kept))...)

	leader, err := s.Leader(s.soon())
	s.must(err)
	s.must(s.Client.Delete(s.ctx, leader))
	_, err = s.AwaitLeader(s.soon(), leader.Name)
	s.must(err)
	s.passes(idle)
	s.stillOpen("under another leader", slices.Concat(kept, apart))
	if j := s.journal(app, "it to be over yet", over); j.Round.Number != 1 {
		t.Errorf("another leader did it again: %+v", j.Round)
	}
	s.undisturbed()
}

// enter brings an actor on for the scene, whose first member is on a host that takes no other.
func (s *scene) enter(r stage.Role) *stage.Actor {
	s.Helper()
	a, err := s.Enter(s.soon(), r)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience())
		defer cancel()
		if a == nil {
			return
		}
		if err := a.Exit(ctx); err != nil {
			s.Error(err)
		}
	})
	s.must(err)
	first, err := a.Ledger(s.ctx)
	s.must(err)
	_, err = s.Kubectl(s.soon(), "cordon", first.Spec.NodeName) // mended after the scene
	s.must(err)
	return a
}

// hangOn has clients everywhere keep connections to an actor.
func (s *scene) hangOn(to *stage.Actor) (open []*stage.Connection) {
	s.Helper()
	for _, h := range s.Lab.Hosts() {
		for _, seat := range stage.Seats(h.Name()) {
			open = append(open, s.connect(to, seat))
		}
	}
	return open
}

func (s *scene) connect(to *stage.Actor, seat stage.Seat) *stage.Connection {
	s.Helper()
	c, err := to.Connect(s.soon(), seat)
	s.must(err)
	s.Cleanup(func() { _ = c.Close() }) // it is over by then, or the scene has failed
	return c
}

func (s *scene) stillOpen(why string, of []*stage.Connection) {
	s.Helper()
	for _, c := range of {
		if !c.Open() {
			_, how, err := c.End(s.ctx)
			s.Errorf("%s: the connection of the client in a %s has ended: %v", why, c.Seat, errors.Join(how, err))
		}
	}
}

func over(j *v1alpha1.ConnectionsStatus) bool {
	return j != nil && j.Round != nil && j.Round.EndedAt != nil
}

func (s *scene) journal(of *stage.Actor, what string, reached func(*v1alpha1.ConnectionsStatus) bool) *v1alpha1.ConnectionsStatus {
	s.Helper()
	g, err := of.AwaitApp(s.soon(), what, func(g *v1alpha1.GuardedStatefulApp) bool { return reached(g.Status.Connections) })
	s.must(err)
	return g.Status.Connections
}

// recycled checks what a round did to connections that were open when it began, and returns those that it let alone.
func (s *scene) recycled(round *v1alpha1.RecycleRound, open []*stage.Connection) (kept []*stage.Connection) {
	s.Helper()
	if int(round.Hosts) != len(s.Lab.Hosts()) || int(round.Found) < len(open) || int(round.Found) > len(open)+passing || round.Limit != round.Found/2 || round.Ended != round.Limit ||
		round.After != v1alpha1.RecycleAfterScaleOut || !slices.Equal(round.Pods, []string{crew.Name + "-1"}) || !strings.Contains(round.Because, "done") {
		s.Errorf("%d connections were open on %d hosts, and the round is %+v", len(open), len(s.Lab.Hosts()), round)
	}
	var ends []mono.Stamp
	hosts := map[string]int{}
	for _, c := range open {
		if c.Open() {
			kept = append(kept, c)
			continue
		}
		at, how, err := c.End(s.ctx)
		s.must(err)
		want := syscall.ECONNABORTED
		if c.InPod {
			want = syscall.ECONNRESET
		}
		if !errors.Is(how, want) {
			s.Errorf("the connection of the client in a %s ended by %v, want %v", c.Seat, how, want)
		}
		ends = append(ends, at)
		hosts[c.Host]++
	}
	slices.SortFunc(ends, func(a, b mono.Stamp) int { return int(a.Mono - b.Mono) })
	if n := len(ends); n > int(round.Limit) || n < int(round.Limit)-passing || len(hosts) != len(s.Lab.Hosts()) {
		s.Fatalf("of %d connections %d ended, %v; the round is %+v", len(open), n, hosts, round)
	}
	took := time.Duration(ends[len(ends)-1].Mono - ends[0].Mono)
	if least := time.Duration(len(ends)-2) * time.Second; took < least { // a client may learn up to a second late
		s.Errorf("%d connections ended within %s, and one in a second was asked for", len(ends), took)
	}
	s.Logf("%d of %d connections ended within %s, %v", len(ends), len(open), took, hosts)
	return kept
}

// reconnected has so many clients connect again, and then more until one has found the second member. Each has the odds of a coin.
func (s *scene) reconnected(to *stage.Actor, clients int) (open []*stage.Connection) {
	s.Helper()
	first, err := to.Ledger(s.ctx)
	s.must(err)
	hosts, found := s.Lab.Hosts(), 0
	for n := 0; n < clients || found == 0 && n < 64; n++ {
		c := s.connect(to, stage.Seat{Host: hosts[n%len(hosts)].Name(), InPod: n%2 == 0})
		open = append(open, c)
		if c.To != first.Spec.NodeName {
			found++
		}
	}
	if found == 0 {
		s.Errorf("of %d clients that connected again none found the second member", len(open))
	}
	s.Logf("of %d clients that connected again %d found the second member", len(open), found)
	return open
}
