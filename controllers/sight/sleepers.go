// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package sight

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

const (
	// sleeperEvery is how often a device that did not answer is asked again.
	sleeperEvery = 3 * time.Second
	// sleeperForgotten is how long after nobody wanted to know any more a device is left alone.
	sleeperForgotten = time.Minute
)

// Sleepers are devices that did not answer. They are asked again in the background, so that traffic and holds do not wait for a dead device: whoever
// looks at a host pays for one time-out, not for one in every look.
type Sleepers struct {
	clock *Clock
	// woke is told the name of a host when one of its devices answers again.
	woke func(host string)

	mu     sync.Mutex
	ctx    context.Context
	asleep map[string]*sleeper
}

type sleeper struct {
	host   string
	why    string
	wanted evidence.Instant
}

// NewSleepers returns an empty set. Until it is started nothing falls asleep in it.
func NewSleepers(c *Clock, woke func(host string)) *Sleepers {
	return &Sleepers{clock: c, woke: woke, asleep: map[string]*sleeper{}}
}

// Start serves until the context ends. It implements manager.Runnable.
func (s *Sleepers) Start(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

// NeedLeaderElection keeps standbys from asking.
func (s *Sleepers) NeedLeaderElection() bool { return true }

// Sleep puts a device among those that are asked in the background. ask bounds itself in time and returns nil once the device answers.
func (s *Sleepers) Sleep(host, key, why string, ask func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.asleep[key] != nil {
		return
	}
	one := &sleeper{host: host, why: why, wanted: s.clock.Instant()}
	s.asleep[key] = one
	go s.nurse(s.ctx, key, one, ask)
}

// Asleep reports whether the device is being asked in the background, and why.
func (s *Sleepers) Asleep(key string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.asleep[key]
	if !ok {
		return "", false
	}
	one.wanted = s.clock.Instant()
	return one.why, true
}

func (s *Sleepers) nurse(ctx context.Context, key string, one *sleeper, ask func(context.Context) error) {
	tick := s.clock.NewTicker(sleeperEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C():
		}
		err := ask(ctx)
		s.mu.Lock()
		forgotten := s.clock.Instant().Sub(one.wanted) > sleeperForgotten
		if err == nil || forgotten {
			delete(s.asleep, key)
			s.mu.Unlock()
			s.woke(one.host)
			return
		}
		one.why = err.Error()
		s.mu.Unlock()
	}
}
