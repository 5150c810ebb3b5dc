// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e plays the scenes of docs/spec/lab.md's lab against Holdfast as it is deployed: in the cluster, by config/default.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
)

// theatre is the stage that all scenes share: they play one after the other, and each leaves it as it found it.
var theatre *stage.Stage

// raiseWithin covers the builds of the lab's components when nothing is cached.
const raiseWithin = 30 * time.Minute

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	name, stays := os.LookupEnv("HOLDFAST_E2E_LAB") // a lab to play on, made if need be, that stays up
	if !stays {
		name = fmt.Sprintf("e2e-%d", os.Getpid())
	}
	ctx, cancel := context.WithTimeout(context.Background(), raiseWithin)
	defer cancel()
	begin := time.Now()
	s, err := stage.Raise(ctx, stage.Options{Lab: name, FenceBudget: 50, Progress: func(line string) { fmt.Fprintln(os.Stderr, line) }})
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "raising the stage:", err)
		if s != nil {
			fmt.Fprintln(os.Stderr, s.Diagnose(ctx))
		}
	} else {
		fmt.Fprintf(os.Stderr, "the stage stands after %s\n", time.Since(begin).Round(time.Second))
		theatre = s
		code = m.Run()
		tellTimes(os.Stdout)
	}
	if stays {
		s.Leave()
		return code
	}
	if err := stage.Strike(context.WithoutCancel(ctx), s, name); err != nil {
		fmt.Fprintln(os.Stderr, "striking the stage:", err)
		code = 1
	}
	return code
}
