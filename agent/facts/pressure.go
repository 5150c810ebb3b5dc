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
	// stallFrom and stallUntil bound a stall: it begins when over the last ten seconds nothing went on for more than stallFrom percent of them, and ends below stallUntil,
	// so that a host which is about there is no news each time.
	stallFrom, stallUntil = 50.0, 20.0
)

// pressure reads one file. Who reads it is refused while the host stalls.
func pressure(file string) func(context.Context) reply {
	stalls := false
	return func(context.Context) reply {
		share, ok := full(file)
		if !ok {
			return unclear
		}
		if stalls = share > stallFrom || stalls && share >= stallUntil; stalls {
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
