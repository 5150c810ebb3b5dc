// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package campaign is what programs share that play many cases on a lab of their own and leave rows: their command line, and what becomes of the lab.
package campaign

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
)

// Options are the flags that every campaign has.
type Options struct {
	Lab, Timings, Out string
	Keep              bool
}

// Flags adds them. The lab is called like the campaign by default, and out says where rows go, and what goes there.
func (o *Options) Flags(flags *flag.FlagSet, out, holds string) {
	flags.StringVar(&o.Lab, "lab", flags.Name(), "the lab's name; one that is up is used as it is")
	flags.StringVar(&o.Timings, "timings", "default", "of a new lab: default, or fast for trying")
	flags.StringVar(&o.Out, "out", out, "directory of "+holds)
	flags.BoolVar(&o.Keep, "keep", false, "leave the lab up")
}

// Leave ends the campaign's part on the stage, and removes its lab unless it is to be kept.
func (o *Options) Leave(s *stage.Stage) error {
	if o.Keep && s != nil {
		s.Leave()
		Tell("lab %s is still up; remove it with: bin/lab down --lab %s", o.Lab, o.Lab)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return stage.Strike(ctx, s, o.Lab)
}

// Main parses the command line and performs until a signal, and ends the process: with 0 when perform succeeds, 1 when not, 2 for a wrong command line.
func Main(flags *flag.FlagSet, perform func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(run(ctx, flags, os.Args[1:], perform))
}

func run(ctx context.Context, flags *flag.FlagSet, args []string, perform func(context.Context) error) int {
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if err := perform(ctx); err != nil {
		fmt.Fprintln(os.Stderr, flags.Name()+":", err)
		return 1
	}
	return 0
}

// Tell prints a line of progress.
func Tell(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
