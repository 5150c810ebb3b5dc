// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// PressurePath says for how much of the time all processes that had something to do waited: https://docs.kernel.org/accounting/psi.html.
	PressurePath = "/proc/pressure"

	PressurePeriod = 5 * time.Second
)

// stall is bounded by shares of the last ten seconds, in percent, in which nothing went on that had something to do: it begins above the first, and ends below the second, so that
// a host which is about there is no news each time.
type stall struct{ from, until float64 }

// For storage it takes more: a single process that writes and waits, on a host that is idle besides, makes it 90.
var (
	ofMemory  = stall{50, 20}
	ofStorage = stall{95, 60}
)

// pressure reads one file. Who reads it is refused while the host stalls.
func pressure(file string, bounds stall) func(context.Context) reply {
	stalls := false
	return func(context.Context) reply {
		share, ok := full(file)
		if !ok {
			return unclear
		}
		if stalls = share > bounds.from || stalls && share >= bounds.until; stalls {
			return refused
		}
		return answered
	}
}

// full is the average of the line "full" over ten seconds, in percent.
func full(file string) (share float64, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	_, rest, found := strings.Cut(string(text), "full avg10=")
	number, _, _ := strings.Cut(rest, " ")
	share, err = strconv.ParseFloat(number, 64)
	return share, found && err == nil
}
