// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"flag"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dev/holdfast/test/results"
)

var (
	hostsFlag  = flag.String("hosts", "10", "how many agents: a run for each of these numbers")
	lossFlag   = flag.String("loss", "0,0.05", "share of packets that vanish: a row for each")
	seedsFlag  = flag.String("seeds", "1", "seeds of the network's chances, and of which hosts are lost: a run for each")
	restFlag   = flag.Duration("rest", 20*time.Second, "how long all is well while traffic and suspicions are counted")
	singleFlag = flag.Int("single", 3, "how many hosts are lost one after the other")
	groupsFlag = flag.Int("groups", 1, "how many times a hundredth of all hosts is lost at once, two hosts at least")
	outFlag    = flag.String("out", "", "table to append rows to; what has a row of this commit is left out")
)

// TestLossesAreKnownToAllInTimeAndNobodyAliveIsCalledDead plays what its flags say, and adds rows to a table where one is named. Bounds are those that docs/spec/witness.md gives.
func TestLossesAreKnownToAllInTimeAndNobodyAliveIsCalledDead(t *testing.T) {
	commit, done := table(t)
	for _, hosts := range numbers(t, *hostsFlag) {
		if hosts < fewest {
			t.Fatalf("-hosts %d: from %d on some can be lost that no manager asks", hosts, fewest)
		}
		var plans []plan
		for _, seed := range numbers(t, *seedsFlag) {
			for _, share := range strings.Split(*lossFlag, ",") {
				loss, err := strconv.ParseFloat(share, 64)
				if err != nil || loss < 0 || loss >= 1 {
					t.Fatalf("-loss %q: shares from 0 to 1 are wanted, separated by commas", *lossFlag)
				}
				p := plan{commit: commit, seed: uint64(seed), hosts: hosts, loss: loss, rest: *restFlag, single: *singleFlag, groups: *groupsFlag} //nolint:gosec // positive
				if !slices.ContainsFunc(done, func(line []string) bool { return slices.Equal(line[:keyCells], p.key()) }) {
					plans = append(plans, p)
				}
			}
		}
		if len(plans) > 0 {
			t.Run(fmt.Sprintf("%d hosts", hosts), func(t *testing.T) { play(t, plans) })
		}
	}
}

// fewest is how many hosts there are at least: those whose agents a manager asks, two that are lost at once, and one that nobody asks.
const fewest = vantages + 3

// table is what the table has already.
func table(t *testing.T) (commit string, done [][]string) {
	if *outFlag == "" {
		return "", nil
	}
	commit, err := results.Commit("../..")
	if err != nil {
		t.Fatal(err)
	}
	if done, err = results.Read(*outFlag); err != nil {
		t.Fatal(err)
	}
	return commit, done
}

func numbers(t *testing.T, list string) (out []int) {
	for _, text := range strings.Split(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%q: whole numbers are wanted, separated by commas", list)
		}
		out = append(out, n)
	}
	return out
}

// play has one circle for all plans of a number of hosts.
func play(t *testing.T, plans []plan) {
	defer debug.FreeOSMemory()
	dir, began := t.TempDir(), time.Now()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, err := gather(plans[0].hosts, dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d agents know each other after %s", plans[0].hosts, time.Since(start))
		for _, p := range plans {
			f, err := c.measure(p)
			if err != nil {
				t.Error(err)
				break
			}
			t.Log(f)
			judge(t, f)
			if *outFlag != "" {
				if err := results.Append(*outFlag, header, f.cells()); err != nil {
					t.Error(err)
				}
			}
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("it took %.0f s", time.Since(began).Seconds())
}

// judge holds the figures to what is promised: a lost host is asked within 4.5 s by the first of ten, given up half a second later, and called dead after 3 s more at most;
// each ten times as many may take 2 s more.
func judge(t *testing.T, f figures) {
	t.Helper()
	within := 8 * time.Second
	for n := f.hosts; n > 10; n /= 10 {
		within += 2 * time.Second
	}
	switch {
	case f.deaths > 0:
		t.Errorf("hosts that lived were called dead %d times", f.deaths)
	case f.unnoticed > 0:
		t.Errorf("%d times an agent had not noticed a loss after %s", f.unnoticed, noticeWithin)
	case len(f.single.last) != f.plan.single || len(f.several.last) != f.groups*f.atOnce():
		t.Errorf("%d and %d losses were measured, of %d and %dx%d", len(f.single.last), len(f.several.last), f.plan.single, f.groups, f.atOnce())
	case len(f.single.last) > 0 && slices.Max(f.single.last) > within:
		t.Errorf("the last to know of a loss knew after %s, which should be %s at most", slices.Max(f.single.last), within)
	case f.dropped > 0:
		t.Errorf("%d packets came to a full buffer", f.dropped)
	}
}
