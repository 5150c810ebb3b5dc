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
	"path/filepath"
	"strconv"

	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/results"
)

// hosts are the one that is struck and four others.
const hosts = 5

// budget is the most that a GuardConfig takes: a case spends one, and few take less than a minute.
const budget = 100

// options are the flags.
type options struct {
	campaign.Options
	seed, from, n uint64
	only          int64
}

func main() {
	var o options
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 1, "what the cases are drawn from")
	flags.Uint64Var(&o.n, "n", 200, "how many cases")
	flags.Uint64Var(&o.from, "from", 0, "the number of the first case, so that two labs can share a run")
	flags.Int64Var(&o.only, "case", -1, "play this case alone, whether it has a row or not")
	o.Flags(flags, "docs/results/chaos", "rows.csv")
	campaign.Main(flags, func(ctx context.Context) error { return perform(ctx, o) })
}

func (o options) rows() string { return filepath.Join(o.Out, "rows.csv") }

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
	for n := o.from; n < o.n; n++ {
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
		campaign.Tell("every case of seed %d has a row of %s; another --seed makes another run", o.seed, commit)
		return err
	}
	campaign.Tell("seed %d: %d cases, %d of them without a row of %s", o.seed, o.n, len(missing), commit)
	s, err := stage.Raise(ctx, stage.Options{Lab: o.Lab, Hosts: hosts, Timings: lab.Timings(o.Timings), Witnesses: true, FenceBudget: budget,
		Progress: func(line string) { campaign.Tell("%s", line) }})
	defer func() { err = errors.Join(err, o.Leave(s)) }()
	if err != nil {
		return err
	}
	p := &play{s: s, o: o, matrix: matrix, commit: commit}
	if err := p.all(ctx, missing); err != nil {
		campaign.Tell("%s", s.Diagnose(ctx))
		return err
	}
	if p.failed > 0 {
		return fmt.Errorf("%d of %d cases did not come out as they should: %s", p.failed, len(missing), o.rows())
	}
	return nil
}
