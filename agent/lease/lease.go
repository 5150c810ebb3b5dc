// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package lease is the Lease that an agent keeps in the API in its own name. It is silent while the agent hears the others. An agent that is cut off from
// them renews it every second, so that whoever takes its host for lost finds out within seconds that it lives: docs/adr/0009-an-isolated-agent-speaks-through-the-api.md.
// Where a watchdog holds the host, it renews it all the time, and says by when the host is reset if it does not: docs/adr/0015-a-host-that-fences-itself.md.
package lease

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/agent/gossip"
)

const (
	// look is how often an agent asks itself whether it is alone.
	look = 250 * time.Millisecond
	// deaf is how long nobody may answer before an agent takes itself for cut off: three questions of gossip in a row, and a little.
	deaf = 1100 * time.Millisecond
	// patience bounds one write, and hurry is the least time between two that fail.
	patience = time.Second
	hurry    = 500 * time.Millisecond
	// shareOf is how many writes a second all agents together make at most, where all are cut off from each other.
	shareOf = 200
	// soon is how long an agent that is alone writes as often as it may, and then it does so every slow: less than a proof waits for a kubelet's own lease, so that
	// a new leader hears it in time.
	soon = time.Minute
	slow = 5 * time.Second
	// between is the least time between two touches.
	between = 3 * time.Second
	// atFirst and atMost are the pauses after a first write that failed.
	atFirst = time.Second
	atMost  = time.Minute
)

// Word is what an agent writes: that it lives, in which boot, and how long at most until it writes again if it stays cut off.
type Word struct {
	BootID string
	At     time.Time
	Every  time.Duration
	// Touched is when the Lease was written without a word that is new; zero if it was not.
	Touched time.Time
	// Pulse is true of a word that was not said because nobody is heard.
	Pulse bool
	// Bound is how long the host lives after this word at most, unless it says another; zero where no watchdog counts.
	Bound time.Duration
}

// Pulse is what has an agent write also while it hears the others. The zero value does not.
type Pulse struct {
	// Every is how long after a word the next one comes, at most.
	Every time.Duration
	// Asking is called before a word is written, and what it returns once it was taken.
	Asking func() (taken func())
	// Bound is that of each word.
	Bound func() time.Duration
}

// Config of a lease.
type Config struct {
	BootID string
	// Standing is how well the others are heard.
	Standing func() gossip.Standing
	// Write puts a word into the API. An error says that it may not be there.
	Write func(context.Context, Word) error
	// Touch has the Lease written though the agent is not cut off: whoever reads it learns that the API takes what this host writes. Without a pulse it says no more than that.
	Touch <-chan struct{}
	Pulse Pulse
	Clock clock.WithTicker
	Log   logr.Logger

	// looked is told in tests that the agent has asked itself.
	looked func()
}

// keeper is what remembers how it went.
type keeper struct {
	Config
	// alone is since when the agent is cut off, and zero while it is not; wrote is when the latest word was begun that was taken, tried the latest of all.
	alone, wrote, tried time.Time
	failed              bool
	// said is the latest word that was taken.
	said Word
}

// Keep writes once, so that it is known that this boot's agent can, and then whenever the agent is cut off or a pulse is due, until ctx ends.
func Keep(ctx context.Context, c Config) {
	k := &keeper{Config: c}
	if !k.introduce(ctx) {
		return
	}
	tick := c.Clock.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
			k.look(ctx)
			if c.looked != nil {
				c.looked()
			}
		case <-c.Touch:
			k.touch(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// introduce writes the first word, and reports whether it was taken before ctx ended.
func (k *keeper) introduce(ctx context.Context) bool {
	most := atMost
	if k.Pulse.Every > 0 {
		most = k.Pulse.Every
	}
	for pause := min(atFirst, most); ; pause = min(2*pause, most) {
		standing := k.Standing()
		if k.write(ctx, Word{At: k.Clock.Now(), Every: Every(standing), Pulse: k.pulses() && !Alone(standing, k.Clock.Now())}) {
			return true
		}
		if !k.await(ctx, pause) {
			return false
		}
	}
}

// await waits for so long, or until it is time for a call: an agent before this one may have been heard, and be missed. It reports whether ctx goes on.
func (k *keeper) await(ctx context.Context, pause time.Duration) bool {
	tick, over := k.Clock.NewTicker(look), k.Clock.Now().Add(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C():
		case <-ctx.Done():
			return false
		}
		now := k.Clock.Now()
		if !now.Before(over) || (now.Sub(k.tried) >= hurry && Alone(k.Standing(), now)) {
			return true
		}
	}
}

// look asks whether the agent is alone, and says so when it is time. The first word of each time is never put off, whatever was written before.
func (k *keeper) look(ctx context.Context) {
	now, standing := k.Clock.Now(), k.Standing()
	if !Alone(standing, now) {
		k.alone = time.Time{}
		if k.pulses() && k.due(now, k.Pulse.Every) {
			k.write(ctx, Word{At: now, Every: Every(standing), Pulse: true})
		}
		return
	}
	if k.alone.IsZero() {
		k.alone = now
		k.Log.Info("Nobody is heard, or too few: this agent speaks through the API", "others", standing.Others, "heard", standing.Heard)
	} else if !k.due(now, k.next(standing, k.wrote)) {
		return
	}
	k.write(ctx, Word{At: now, Every: k.next(standing, now)})
}

// next is how long after a word of that moment the next one comes, while the agent stays cut off.
func (k *keeper) next(s gossip.Standing, word time.Time) time.Duration {
	every := Every(s)
	if word.Add(every).Sub(k.alone) > soon {
		every = max(every, slow)
	}
	if k.pulses() {
		every = min(every, k.Pulse.Every)
	}
	return every
}

// touch writes the last word again, with another date beside it. An agent that calls writes anyway. One that pulses says its next word now, and no other: whoever
// counts by when its host is reset begins anew with whatever is written, so nothing may be written that is not a contact of its own.
func (k *keeper) touch(ctx context.Context) {
	now := k.Clock.Now()
	if !k.alone.IsZero() || now.Sub(k.tried) < between {
		return
	}
	if k.pulses() {
		standing := k.Standing()
		k.write(ctx, Word{At: now, Every: Every(standing), Pulse: !Alone(standing, now)})
		return
	}
	k.write(ctx, Word{At: k.said.At, Every: k.said.Every, Touched: now})
}

func (k *keeper) pulses() bool { return k.Pulse.Every > 0 }

// due reports whether it is time for a word, so long after the one before; one that was not taken is said again sooner.
func (k *keeper) due(now time.Time, every time.Duration) bool {
	if k.failed {
		return now.Sub(k.tried) >= hurry
	}
	return now.Sub(k.wrote) >= every
}

func (k *keeper) write(ctx context.Context, w Word) bool {
	call, done := context.WithTimeout(ctx, patience)
	defer done()
	k.tried, w.BootID = k.Clock.Now(), k.BootID
	taken := func() {}
	if k.pulses() {
		taken, w.Bound = k.Pulse.Asking(), k.Pulse.Bound()
	}
	err := k.Write(call, w)
	if err != nil && ctx.Err() == nil && !k.failed {
		k.Log.Error(err, "The agent's own Lease cannot be written; its word is missed only where it is cut off from all others")
	}
	k.failed = err != nil
	if !k.failed {
		k.wrote, k.said = w.At, w
		taken()
	}
	return !k.failed
}

// Alone reports whether an agent is cut off: nobody has answered it for a while, or those whom it hears are, with itself, no more than half of all. One that
// never heard anybody is not: nobody misses it.
func Alone(s gossip.Standing, now time.Time) bool {
	if s.Last.IsZero() {
		return false
	}
	return now.Sub(s.Last) > deaf || 2*(s.Heard+1) <= s.Others+1
}

// Every is how long after a word the next one comes, while the agent is cut off: a second, and longer in large clusters, where all may be at the same time.
func Every(s gossip.Standing) time.Duration {
	return max(time.Second, time.Duration(s.Others+1)*time.Second/shareOf)
}
