// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// clock converts wall time to CLOCK_MONOTONIC. Their distance is constant
// until somebody sets the wall clock; so a time is converted with the distance
// at the last known moment before it: that of a recorded fault, or now. What
// is older than all of them goes by the oldest.
type clock []mono.Stamp

func clockOf(dir string) (clock, error) {
	c := clock{mono.Now()}
	err := lines(string(fault.JournalOf(dir)), Faults, &timeline{}, func(r *fault.Record) mono.Stamp {
		c = append(c, r.Stamp)
		return r.Stamp
	})
	slices.SortFunc(c, func(a, b mono.Stamp) int { return a.Wall.Compare(b.Wall) })
	return c, err
}

func (c clock) mono(wall time.Time) int64 {
	after, exact := slices.BinarySearchFunc(c, wall, func(s mono.Stamp, t time.Time) int { return s.Wall.Compare(t) })
	nearest := c[0]
	if exact {
		nearest = c[after]
	} else if after > 0 {
		nearest = c[after-1]
	}
	return nearest.Mono + wall.Sub(nearest.Wall).Nanoseconds()
}
