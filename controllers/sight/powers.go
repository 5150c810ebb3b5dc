// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Powers remembers since when each device has read Off or Gone without a break and when it last said what.
type Powers struct {
	clock *Clock

	mu    sync.Mutex
	off   map[string]evidence.Instant
	last  map[string]evidence.Instant
	on    map[string]evidence.Instant
	said  map[string]evidence.PowerState
	first map[string]evidence.Instant
}

// NewPowers returns an empty memory.
func NewPowers(c *Clock) *Powers {
	return &Powers{clock: c, off: map[string]evidence.Instant{}, last: map[string]evidence.Instant{}, on: map[string]evidence.Instant{}, said: map[string]evidence.PowerState{}, first: map[string]evidence.Instant{}}
}

// See takes a reading that was complete at the instant given and puts into it since when the device has read Off, and when it last read Off and On. An unreadable
// device breaks no run: it said nothing.
func (p *Powers) See(key string, reading *evidence.Power, complete evidence.Instant) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := reading.State
	if reading.Identity != evidence.IdentityMatches {
		state = evidence.PowerUnread // what another machine's device says is nothing
	}
	switch state {
	case evidence.PowerOff, evidence.PowerGone:
		if last, runs := p.last[key]; !runs || !p.said[key].Dead() || reading.At.Sub(last) > evidence.RunGap {
			p.off[key] = complete
		}
		p.last[key] = complete
	case evidence.PowerUnread:
	default:
		p.on[key] = reading.At
	}
	if state != evidence.PowerUnread {
		p.said[key] = state
	}
	reading.Said, reading.OffSince = p.said[key], p.off[key]
	reading.LastOff, reading.HasOff = p.last[key]
	reading.LastOn, reading.HasOn = p.on[key]
}

// Since returns how long this observer has known the thing named; the first call starts the count.
func (p *Powers) Since(key string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock.Instant()
	t, ok := p.first[key]
	if !ok {
		p.first[key], t = now, now
	}
	return now.Sub(t)
}
