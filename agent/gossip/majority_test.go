// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

// Of three, two are a majority, and one that is cut off is none: not even where it has called the others dead.
func TestAMajorityIsMoreThanHalfOfAllThatAreKnownTheDeadToo(t *testing.T) {
	c := newCircle(t)
	a, b, third := c.three()
	ask := func(of *agent, patience time.Duration) bool {
		ctx, done := context.WithTimeout(t.Context(), patience)
		defer done()
		return of.Majority(ctx)
	}
	for _, one := range []*agent{a, b, third} {
		if !ask(one, patience) {
			t.Errorf("%s hears all, and no majority", one.at)
		}
	}
	third.wire.cut.Store(true)
	if !ask(a, patience) {
		t.Error("two of three are no majority")
	}
	if ask(third, time.Second) {
		t.Error("one of three is a majority of those that it knows")
	}
	c.await("that it calls the others dead", func() bool {
		return third.sees("a", "a1", wire.StateDead) && third.sees("b", "b1", wire.StateDead)
	})
	if ask(third, time.Second) {
		t.Error("one whose others are dead to it is a majority")
	}
}

// Whoever begins alone, or with one other, is no majority of anything.
func TestFewerThanThreeAreNoMajority(t *testing.T) {
	c := newCircle(t)
	a := c.start("a", "a1")
	if a.Majority(c.ctx) {
		t.Error("one that knows nobody is a majority")
	}
	c.putSeeds(a.at)
	b := c.start("b", "b1")
	c.await("that both see both", func() bool { return a.sees("b", "b1", wire.StateAlive) && b.sees("a", "a1", wire.StateAlive) })
	if a.Majority(c.ctx) {
		t.Error("two are a majority of two")
	}
}
