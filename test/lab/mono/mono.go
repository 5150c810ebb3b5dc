// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mono stamps the lab's records with the machine's monotonic clock.
//
// Network, PID, mount and UTS namespaces share that clock, so stamps taken by
// the hosts, the array, the BMCs and a test order without doubt.
package mono

import (
	"time"

	"golang.org/x/sys/unix"
)

// Stamp says when something was recorded. It is meant to be embedded: its
// fields become the keys mono and wall of the record's JSON object.
type Stamp struct {
	// Mono is CLOCK_MONOTONIC in nanoseconds.
	Mono int64 `json:"mono"`
	// Wall is the same instant on the wall clock, for people.
	Wall time.Time `json:"wall"`
}

// Now stamps this instant. Both clocks are read back to back.
func Now() Stamp {
	return Stamp{Mono: Nanoseconds(), Wall: time.Now().UTC().Round(0)}
}

// Nanoseconds is CLOCK_MONOTONIC in nanoseconds.
func Nanoseconds() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("CLOCK_MONOTONIC cannot be read: " + err.Error()) // every Linux kernel has it
	}
	return ts.Nano()
}
