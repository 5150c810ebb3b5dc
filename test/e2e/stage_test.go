// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e plays scenes against Holdfast as it is deployed: in the cluster of a lab, by config/default. Tests play with fast timings; make e2e plays the
// numbered cases at length, with those of Kubernetes. The environment variable HOLDFAST_E2E_LAB names a lab to play on, made if need be, that stays up
// afterwards.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
)

// raiseWithin covers the builds of the lab's components when nothing is cached.
const raiseWithin = 30 * time.Minute

// theatre is the stage that all scenes share: they play one after the other, and each leaves it as it found it. The first one raises it.
var theatre struct {
	name   string
	stays  bool
	raised bool
	*stage.Stage
	// actors are on the stage beside the ledger.
	actors []*stage.Actor
	err    error
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if theatre.name, theatre.stays = os.LookupEnv("HOLDFAST_E2E_LAB"); !theatre.stays {
		theatre.name = fmt.Sprintf("e2e-%d", os.Getpid())
	}
	code := m.Run()
	if err := tellTimes(); err != nil {
		fmt.Fprintln(os.Stderr, "telling the times:", err)
		code = 1
	}
	switch {
	case !theatre.raised:
	case theatre.stays:
		theatre.Leave()
	default:
		if err := stage.Strike(context.Background(), theatre.Stage, theatre.name); err != nil {
			fmt.Fprintln(os.Stderr, "striking the stage:", err)
			code = 1
		}
	}
	return code
}

// raise returns the stage, or fails the test. After one failure it stays down: every scene would fail for the same reason.
func raise(t *testing.T) *stage.Stage {
	t.Helper()
	if !theatre.raised {
		theatre.raised = true
		ctx, cancel := context.WithTimeout(context.Background(), raiseWithin)
		defer cancel()
		begin := time.Now()
		theatre.Stage, theatre.err = stage.Raise(ctx, stage.Options{Lab: theatre.name, Timings: timings(), APIServers: 2, FenceBudget: 50, Witnesses: *full,
			Progress: func(line string) { fmt.Fprintln(os.Stderr, line) }})
		if theatre.err == nil && *full { // their image is there now; who plays with them calls them
			theatre.err = theatre.Stage.Witnesses(ctx, false)
		}
		if theatre.err != nil && theatre.Stage != nil {
			t.Log(theatre.Diagnose(ctx))
		}
		t.Logf("the stage stands after %s", time.Since(begin).Round(time.Second))
	}
	if theatre.err != nil {
		t.Fatal("the stage cannot be raised: ", theatre.err)
	}
	return theatre.Stage
}
