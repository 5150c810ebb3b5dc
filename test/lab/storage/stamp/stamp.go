// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package stamp reads the clocks that all records of the lab carry.
package stamp

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Stamp is one moment on both clocks: nanoseconds of CLOCK_MONOTONIC, one clock for the whole machine, and
// RFC 3339 with nanoseconds.
type Stamp struct {
	Mono int64  `json:"mono"`
	Wall string `json:"wall"`
}

// Now reads both clocks.
func Now() Stamp {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_MONOTONIC): %v", err)) // cannot fail on Linux
	}
	return Stamp{Mono: ts.Nano(), Wall: time.Now().UTC().Format(time.RFC3339Nano)}
}
