// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command chaos strikes the host of a guarded ledger with faults drawn from a seed, and compares what Holdfast says of it by the deadline with
// test/scenario/matrix.csv, which was written without the code. Rows are appended as they come, and a run that is repeated goes on where rows are missing.
// docs/results/chaos/README.md says what they mean. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/results"
)

// hosts are the one that is struck and three others, as in the matrix.
const hosts = 4

// budget is the most that a GuardConfig takes: a case spends one, and few take less than a minute.
const budget = 100

// options are the flags.
type options struct {
	seed, n uint64
	only    int64
	lab     string
	timings string
	out     string
	keep    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(run(ctx, os.Args[1:]))
}

// run returns the exit code: 0 when every case has a row and came out as it should, 1 when not, 2 for a wrong command line.
func run(ctx context.Context, args []string) int {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 1, "what the cases are drawn from")
	flags.Uint64Var(&o.n, "n", 200, "how many cases")
	flags.Int64Var(&o.only, "case", -1, "play this case alone, whether it has a row or not")
	flags.StringVar(&o.lab, "lab", "chaos", "the lab's name; one that is up is used as it is")
	flags.StringVar(&o.timings, "timings", "default", "of a new lab: default or fast")
	flags.StringVar(&o.out, "out", "docs/results/chaos", "directory of rows.csv")
	flags.BoolVar(&o.keep, "keep", false, "leave the lab up")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if err := perform(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 1
	}
	return 0
}

// tell prints a line of progress.
func tell(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

func (o options) rows() string { return filepath.Join(o.out, "rows.csv") }

// missing are the numbers of the cases that have no row of this commit.
func (o options) missing(commit string) ([]uint64, error) {
	if o.only >= 0 {
		return []uint64{uint64(o.only)}, nil
	}
	lines, err := results.Read(o.rows())
	if err != nil {
		return nil, err
	}
	done := map[string]bool{}
	for _, line := range lines {
		if line[0] == commit && line[1] == strconv.FormatUint(o.seed, 10) {
			done[line[2]] = true
		}
	}
	var missing []uint64
	for n := range o.n {
		if !done[strconv.FormatUint(n, 10)] {
			missing = append(missing, n)
		}
	}
	return missing, nil
}

func perform(ctx context.Context, o options) (err error) {
	text, err := os.ReadFile(filepath.Join("test", "scenario", "matrix.csv"))
	if err != nil {
		return fmt.Errorf("run it where go.mod is: %w", err)
	}
	matrix, err := scenario.ParseMatrix(string(text))
	if err != nil {
		return fmt.Errorf("test/scenario/matrix.csv: %w", err)
	}
	commit, err := results.Commit(".")
	if err != nil {
		return err
	}
	missing, err := o.missing(commit)
	if err != nil || len(missing) == 0 {
		tell("every case of seed %d has a row of %s; another --seed makes another run", o.seed, commit)
		return err
	}
	tell("seed %d: %d cases, %d of them without a row of %s", o.seed, o.n, len(missing), commit)
	s, err := stage.Raise(ctx, stage.Options{Lab: o.lab, Hosts: hosts, Timings: lab.Timings(o.timings), Witnesses: true, FenceBudget: budget,
		Progress: func(line string) { tell("%s", line) }})
	defer func() { err = errors.Join(err, o.leave(s)) }()
	if err != nil {
		return err
	}
	p := &play{s: s, o: o, matrix: matrix, commit: commit}
	if err := p.all(ctx, missing); err != nil {
		tell("%s", s.Diagnose(ctx))
		return err
	}
	if p.failed > 0 {
		return fmt.Errorf("%d of %d cases did not come out as they should: %s", p.failed, len(missing), o.rows())
	}
	return nil
}

func (o options) leave(s *stage.Stage) error {
	if o.keep && s != nil {
		s.Leave()
		tell("lab %s is still up; remove it with: bin/lab down --lab %s", o.lab, o.lab)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return stage.Strike(ctx, s, o.lab)
}
