// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const lostAddress = "198.51.100.1"

// lostOnes are the addresses that agents have lost, as they keep them: until when, by Node and address.
type lostOnes struct {
	until map[string]map[string]evidence.Instant
	// lives is the Node whose agent says that every address lives there, spans what was asked for.
	lives string
	spans []int64
}

func (s *stage) reset(node string, request wire.ResetRequest) (wire.ResetAnswer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mute[node]:
		return wire.ResetAnswer{}, errMute
	case s.lost.lives == node && len(request.Lost) > 0:
		return wire.ResetAnswer{}, fmt.Errorf("%w: %w", wire.ErrNothingDone, wire.ErrUnfit)
	}
	if s.lost.until == nil {
		s.lost.until = map[string]map[string]evidence.Instant{}
	}
	if s.lost.until[node] == nil {
		s.lost.until[node] = map[string]evidence.Instant{}
	}
	for _, a := range request.Lost {
		s.lost.until[node][a] = s.clock.Instant() + evidence.Instant(time.Duration(request.ForMillis)*time.Millisecond)
		s.lost.spans = append(s.lost.spans, request.ForMillis)
	}
	for _, a := range request.Back {
		delete(s.lost.until[node], a)
	}
	return wire.ResetAnswer{Node: node, BootID: "boot of " + node, Found: 2}, nil
}

// losers are the Nodes at which an address is lost now.
func (s *stage) losers(address string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.lost.until)), func(node string) bool { return s.lost.until[node][address] <= s.clock.Instant() })
}

// resetting is a council with somebody who has connections reset.
type resetting struct {
	*council
	*Resets
	mu    sync.Mutex
	users map[string]string
	ended chan string
}

func newResetting(t *testing.T) *resetting {
	t.Helper()
	r := &resetting{council: newCouncil(t, "a", "b", "c"), users: map[string]string{}, ended: make(chan string, 10)}
	r.Resets = r.another()
	return r
}

// another is one more process of the manager, with the same agents.
func (r *resetting) another() *Resets {
	out := NewResets(r.Witnesses, func(host string) { r.ended <- host })
	out.User = func(_ context.Context, address string) (string, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.users[address], nil
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- out.Start(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-over; err != nil {
			r.Error(err)
		}
	})
	return out
}

func (r *resetting) lostAt(want ...string) func() bool {
	return func() bool { return slices.Equal(r.stage.losers(lostAddress), want) }
}

func TestConnectionsAreResetOnAllHostsThatAreLeftWhileTheTimeLasts(t *testing.T) {
	r := newResetting(t)
	r.Begin("h", lostAddress, 2*time.Minute)
	begin := r.council.clock.Instant()
	r.until("all but the lost host to have lost it", r.lostAt("a", "b", "c"))
	for r.council.clock.Instant().Sub(begin) < 110*time.Second {
		r.pass(5 * time.Second)
		if !r.lostAt("a", "b", "c")() {
			t.Fatalf("after %s only %v have it lost", r.council.clock.Instant().Sub(begin), r.stage.losers(lostAddress))
		}
	}
	r.until("nobody to have it lost", r.lostAt())
	if took := r.council.clock.Instant().Sub(begin); took > 2*time.Minute+5*time.Second {
		t.Errorf("that was after %s", took)
	}
	r.until("it to be over", func() bool { now, _ := r.Resets.Of(lostAddress); return now.Over != "" })
	now, known := r.Resets.Of(lostAddress)
	if !known || now.Hosts != 3 || now.Done != 3 || now.Connections < 6 {
		t.Errorf("%+v, %v", now, known)
	}
	r.stage.set(func() {
		if longest := slices.Max(r.stage.lost.spans); longest > resetSpan.Milliseconds() {
			t.Errorf("an agent was asked for %d ms: it would keep that when nobody leads", longest)
		}
	})
}

func TestOneThatDoesNotAnswerIsAskedAgainAndKeepsNobodyWaiting(t *testing.T) {
	r := newResetting(t)
	r.stage.set(func() { r.stage.mute["b"] = true })
	r.Begin("h", lostAddress, 2*time.Minute)
	r.until("the others to have lost it", r.lostAt("a", "c"))
	r.pass(5 * time.Second)
	if now, _ := r.Resets.Of(lostAddress); now.Done != 2 || now.Hosts != 3 {
		t.Errorf("%+v", now)
	}
	r.stage.set(func() { delete(r.stage.mute, "b") })
	r.until("it to have lost it too", r.lostAt("a", "b", "c"))
}

func TestAnAddressThatSomebodyHasIsLetGoByItself(t *testing.T) {
	r := newResetting(t)
	r.Begin("h", lostAddress, 2*time.Minute)
	r.until("all to have lost it", r.lostAt("a", "b", "c"))
	r.stage.set(func() { r.stage.mute["c"] = true })
	r.mu.Lock()
	r.users[lostAddress] = "pod shop/web-7"
	r.mu.Unlock()
	r.until("those who answer to have let it go", r.lostAt("c"))
	r.stage.set(func() { delete(r.stage.mute, "c") })
	r.until("the last one to have let it go", r.lostAt())
	if now, _ := r.Resets.Of(lostAddress); !strings.Contains(now.Over, "web-7") || <-r.ended != "h" {
		t.Errorf("%+v", now)
	}
}

func TestAnAddressThatAnAgentKnowsToLiveIsLetGoEverywhere(t *testing.T) {
	r := newResetting(t)
	r.stage.set(func() { r.stage.mute["b"], r.stage.lost.lives = true, "b" })
	r.Begin("h", lostAddress, 2*time.Minute)
	r.until("the others to have lost it", r.lostAt("a", "c"))
	r.stage.set(func() { delete(r.stage.mute, "b") })
	r.until("them to have let it go", r.lostAt())
	r.pass(20 * time.Second)
	if now, _ := r.Resets.Of(lostAddress); !r.lostAt()() || !strings.Contains(now.Over, "lives on b") {
		t.Errorf("%+v, lost at %v", now, r.stage.losers(lostAddress))
	}
}

func TestWhatAnotherLeaderBeganIsLetGo(t *testing.T) {
	next := newResetting(t)
	next.stage.set(func() {
		next.stage.lost.until = map[string]map[string]evidence.Instant{"b": {lostAddress: next.council.clock.Instant() + evidence.Instant(time.Hour)}}
	})
	next.LetGo("h", lostAddress, "the host is back")
	next.until("it to be let go", next.lostAt())
	if now, known := next.Resets.Of(lostAddress); !known || now.Over != "the host is back" {
		t.Errorf("%+v", now)
	}
}

func TestWhatWasUnderWayWhenAnAddressWasLetGoIsTakenBackAtOnce(t *testing.T) {
	_, clock := stepped()
	for name, err := range map[string]error{"it was done": nil, "nobody knows whether it was": context.DeadlineExceeded} {
		r := NewResets(NewWitnesses(clock, func(string) {}), func(string) {})
		r.Begin("h", lostAddress, 2*time.Minute)
		l, s := r.lost[lostAddress], &share{busy: true}
		l.shares["a"], r.abreast["a"] = s, 1
		r.LetGo("h", lostAddress, "the host is back")
		r.note(order{node: "a", address: lostAddress, request: wire.ResetRequest{Lost: []string{lostAddress}}, span: resetSpan, share: s}, wire.ResetAnswer{}, err)
		if o, wanted := r.orderOf(lostAddress, l, s); !wanted || !slices.Equal(o.request.Back, []string{lostAddress}) {
			t.Errorf("%s: %v, %+v", name, wanted, o)
		}
	}
}
