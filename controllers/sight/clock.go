// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package sight is the observer's memory: what it saw, and when by its own monotonic clock. It lives with the process; a restart begins
// anew, and everything that rests on it begins anew too (docs/spec/verdicts.md). Nothing here decides.
package sight

import (
	"time"

	"k8s.io/utils/clock"

	"github.com/holdfast-dev/holdfast/engine/evidence"
)

// Clock counts from the observer's start. The zero value cannot be used; see NewClock.
type Clock struct {
	clock.WithTicker
	start time.Time
}

// NewClock starts counting now. The time source must be monotonic, as the real clock of package time is.
func NewClock(source clock.WithTicker) *Clock {
	return &Clock{WithTicker: source, start: source.Now()}
}

// Instant is the present moment.
func (c *Clock) Instant() evidence.Instant { return evidence.Instant(c.Since(c.start)) }

// Wall turns an instant into the time of day, for people.
func (c *Clock) Wall(i evidence.Instant) time.Time { return c.start.Add(time.Duration(i)) }
