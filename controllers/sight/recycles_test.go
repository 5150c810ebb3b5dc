// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// connected are the connections that agents have, as many as open says by Node, and what they were asked.
type connected struct {
	open   map[string]int
	looked map[string]string // the round, by Node
	asked  []askedFor
	begun  map[string]int
	// lost is the Node whose agent forgets what it looked for, mute the one that ends what it is asked and does not say so.
	lost, mute string
}

type askedFor struct {
	node            string
	at              evidence.Instant
	most, perSecond int
}

func (a actor) Recycle(_ context.Context, _ string, request wire.RecycleRequest) (wire.RecycleAnswer, error) {
	s := a.stage
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.connected
	answer := wire.RecycleAnswer{Node: a.node, BootID: "boot of " + a.node}
	switch {
	case s.mute[a.node]:
		return wire.RecycleAnswer{}, fmt.Errorf("%w: %w", wire.ErrNothingDone, errMute)
	case len(request.Servers) > 0:
		if c.looked == nil {
			c.looked, c.begun = map[string]string{}, map[string]int{}
		}
		c.looked[a.node], answer.Found = request.Round, c.open[a.node]
		return answer, nil
	case c.looked[a.node] != request.Round || c.lost == a.node:
		return wire.RecycleAnswer{}, fmt.Errorf("%w: %w", wire.ErrNothingDone, wire.ErrUnfit)
	}
	c.asked = append(c.asked, askedFor{a.node, s.clock.Instant(), request.Most, request.PerSecond})
	answer.Begun = min(request.Most, c.open[a.node])
	c.open[a.node] -= answer.Begun
	c.begun[a.node] += answer.Begun
	answer.Left = c.open[a.node]
	if c.mute == a.node {
		return wire.RecycleAnswer{}, context.DeadlineExceeded
	}
	return answer, nil
}

// recyclers are a council with somebody who has connections recycled.
type recyclers struct {
	*council
	*Recycles
}

const shop = "shop/db"

func newRecyclers(t *testing.T, open map[string]int) *recyclers {
	t.Helper()
	r := &recyclers{council: newCouncil(t, "a", "b", "c")}
	r.stage.set(func() { r.stage.connected.open = open })
	r.Recycles = NewRecycles(r.Witnesses)
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Recycles.Start(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			r.Error(err)
		}
	})
	return r
}

func (r *recyclers) over() bool {
	now, _ := r.Recycles.Of(shop, "1")
	return now.Over != ""
}

func (r *recyclers) asked() (out []askedFor) {
	r.stage.set(func() { out = slices.Clone(r.stage.connected.asked) })
	return out
}

// paced says what is wrong with how fast connections were ended. By the stepped clock a question may arrive some steps after it was put.
func paced(asked []askedFor, perSecond int) error {
	all := 0
	for _, a := range asked {
		all += a.most
		if since := a.at.Sub(asked[0].at); all > perSecond*int((since+recycleTurn+time.Second)/time.Second) {
			return fmt.Errorf("after %s %d connections had been asked for, and %d per second were wanted", since, all, perSecond)
		}
	}
	for _, from := range asked {
		rate, most := 0, 0
		for _, a := range asked {
			if since := a.at.Sub(from.at); since >= 0 && since < recycleTurn-time.Second {
				rate, most = rate+a.perSecond, most+a.most
			}
		}
		if rate > perSecond || most > perSecond*wire.RecycleSeconds {
			return fmt.Errorf("within %s from %v on, %d connections were asked for, %d per second; %d per second were wanted", recycleTurn, from.at, most, rate, perSecond)
		}
		if from.perSecond > wire.RecyclePerSecond || from.most > from.perSecond*wire.RecycleSeconds {
			return fmt.Errorf("no agent would take %+v", from)
		}
	}
	return nil
}

func TestARoundIsPacedOverAllAgentsAndEndsWithItsShare(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 100, "b": 20, "c": 3})
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 4, Percent: 50})
	r.until("it to be over", r.over)
	now, known := r.Recycles.Of(shop, "1")
	if !known || now.Found != 123 || now.Limit != 61 || now.Begun != 61 || now.Hosts != 4 {
		t.Errorf("%+v", now)
	}
	r.stage.set(func() {
		if want := map[string]int{"a": 50, "b": 10, "c": 1}; !maps.Equal(r.stage.connected.begun, want) {
			t.Errorf("ended %v, want %v", r.stage.connected.begun, want)
		}
	})
	if err := paced(r.asked(), 4); err != nil {
		t.Error(err)
	}
	if asked := r.asked(); asked[len(asked)-1].at.Sub(asked[0].at) < 10*time.Second {
		t.Error("61 connections at 4 per second took less than three turns")
	}
}

func TestFewerPerSecondThanAgentsIsHeldToo(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 8, "b": 8, "c": 8})
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 1, Percent: 100})
	r.until("it to be over", r.over)
	if now, _ := r.Recycles.Of(shop, "1"); now.Begun != 24 {
		t.Errorf("%+v", now)
	}
	if err := paced(r.asked(), 1); err != nil {
		t.Error(err)
	}
}

func TestWhoForgotOrDoesNotAnswerIsLeftOut(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 40, "b": 40, "c": 40})
	r.stage.set(func() { r.stage.mute["c"], r.stage.connected.lost, r.stage.connected.mute = true, "a", "b" })
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 6, Percent: 50})
	r.until("it to be over", r.over)
	// b ended what it was first asked for and did not say so: that is counted, and it is not asked again.
	if now, _ := r.Recycles.Of(shop, "1"); now.Found != 80 || now.Limit != 40 || now.Begun != 15 {
		t.Errorf("%+v", now)
	}
	if asked := r.asked(); len(asked) != 1 {
		t.Errorf("asked %+v", asked)
	}
}

func TestARoundThatIsStoppedAsksNobodyAnyMore(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 1000})
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 4, Percent: 100})
	r.until("two turns", func() bool { return len(r.asked()) == 2 })
	r.Recycles.Stop(shop, "incident h-1 is open")
	before := len(r.asked())
	r.pass(time.Minute)
	if now, _ := r.Recycles.Of(shop, "1"); now.Over != "incident h-1 is open" || len(r.asked()) > before {
		t.Errorf("%+v, and then %d were asked", now, len(r.asked())-before)
	}
}

func TestAgentsServeOneRoundAfterTheOther(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 40, "b": 40})
	for _, id := range []string{"1", "2", "3"} {
		r.Recycles.Begin("shop/db-"+id, Recycle{ID: id, Servers: []string{"198.51.100.1:5432"}, PerSecond: 2, Percent: 25})
	}
	r.Recycles.Stop("shop/db-2", "the app is being deleted")
	over := func(id string) Recycled {
		now, _ := r.Recycles.Of("shop/db-"+id, id)
		return now
	}
	r.until("the first to look", func() bool { return over("1").Hosts > 0 })
	if now := over("3"); now.Hosts > 0 {
		t.Errorf("two rounds are under way: %+v", now)
	}
	r.until("the last to be over", func() bool { return over("3").Over != "" })
	if first, second, third := over("1"), over("2"), over("3"); first.Over == "" || first.Begun != 20 || second.Hosts > 0 || third.Begun != 15 { // a quarter of 80, and of the 60 that are left
		t.Errorf("%+v, %+v, %+v", first, second, third)
	}
	if err := paced(r.asked(), 2); err != nil {
		t.Error(err)
	}
}

func TestARoundHasItsTime(t *testing.T) {
	r := newRecyclers(t, map[string]int{"a": 100000})
	r.stride = time.Second
	begin := r.council.clock.Instant()
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 1, Percent: 100})
	r.until("it to be over", r.over)
	if now, _ := r.Recycles.Of(shop, "1"); !strings.Contains(now.Over, "time") || r.council.clock.Instant().Sub(begin) > recycleFor+20*time.Second {
		t.Errorf("%+v after %s", now, r.council.clock.Instant().Sub(begin))
	}
}

func TestWithoutConnectionsARoundIsOver(t *testing.T) {
	r := newRecyclers(t, nil)
	r.Recycles.Begin(shop, Recycle{ID: "1", Servers: []string{"198.51.100.1:5432"}, PerSecond: 1, Percent: 100})
	r.until("it to be over", r.over)
	if now, _ := r.Recycles.Of(shop, "1"); now.Begun+now.Found != 0 {
		t.Errorf("%+v", now)
	}
	if _, known := r.Recycles.Of(shop, "0"); known {
		t.Error("a round that nobody began is known")
	}
}
