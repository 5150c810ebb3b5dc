// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package campaign

import (
	"context"
	"errors"
	"flag"
	"io"
	"testing"
)

// TestTheExitCodeTellsAWrongCommandLineFromAFailure, and a wrong command line begins nothing.
func TestTheExitCodeTellsAWrongCommandLineFromAFailure(t *testing.T) {
	for _, c := range []struct {
		args   []string
		fails  error
		code   int
		played bool
	}{
		{nil, nil, 0, true},
		{[]string{"-lab", "mine", "-keep"}, errors.New("a row is missing"), 1, true},
		{[]string{"-h"}, nil, 0, false},
		{[]string{"-nonsense"}, nil, 2, false},
	} {
		var o Options
		flags := flag.NewFlagSet("trial", flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		o.Flags(flags, "out", "rows")
		played := false
		code := run(t.Context(), flags, c.args, func(context.Context) error { played = true; return c.fails })
		if code != c.code || played != c.played {
			t.Errorf("%v: exit code %d, played %v", c.args, code, played)
		}
		if want := map[bool]string{true: "mine", false: "trial"}[o.Keep]; o.Lab != want {
			t.Errorf("%v: the lab is %q, want %q", c.args, o.Lab, want)
		}
	}
}
