// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/results"
)

// The numbered cases are played in two ways: a fast slice of them with every test run, on a lab of fast timings; and all of them, by `make e2e`, with the
// timings of Kubernetes, which leaves a row of docs/results/e2e/rows.csv for every variant.
var (
	full  = flag.Bool("full", false, "play every variant of the numbered cases, and record a row for each")
	paced = flag.String("timings", "", "of the lab: default, which are those of Kubernetes, or fast; empty means default in a full run")
	cases = flag.String("cases", "", "which numbered cases to play, separated by commas; a case may be narrowed to variants that begin with a text, as in 3/killed; empty means all")
	seed  = flag.Uint64("seed", 1, "from which the moments of faults are drawn, in a full run")
)

// variant is one way to play a numbered case.
type variant struct {
	name string
	// fast says that it belongs to the fast slice.
	fast bool
	play func(*testing.T)
}

// playCase plays what is wanted of a numbered case. A full run leaves out what has a row that passed, of this commit and seed.
func playCase(t *testing.T, number int, variants ...variant) {
	t.Helper()
	for _, v := range variants {
		if !*full && !v.fast || !wanted(number, v.name) {
			continue
		}
		if !*full {
			t.Run(v.name, v.play)
			continue
		}
		r := record{number: number, variant: v.name}
		if done, err := r.passed(); err != nil {
			t.Fatal(err)
		} else if done {
			t.Logf("case %d, %s: %s has a row of this commit that passed", number, v.name, r.path())
			continue
		}
		begin := time.Now()
		ok := t.Run(v.name, v.play)
		if err := r.append(ok, time.Since(begin)); err != nil {
			t.Error(err)
		}
	}
}

func wanted(number int, variant string) bool {
	if *cases == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(*cases, ","), func(c string) bool {
		n, beginning, _ := strings.Cut(c, "/")
		return n == strconv.Itoa(number) && strings.HasPrefix(variant, beginning)
	})
}

// timings of the lab that the theatre makes.
func timings() lab.Timings {
	switch {
	case *paced != "":
		return lab.Timings(*paced)
	case *full:
		return lab.DefaultTimings
	default:
		return lab.FastTimings
	}
}

// pick returns what a wait is worth by the timings that are played.
func pick(fast, byDefault time.Duration) time.Duration {
	if timings() == lab.DefaultTimings {
		return byDefault
	}
	return fast
}

// phase waits for a moment drawn from the seed within one interval of the kubelet's renewals, so that the fault meets all periods of the cluster at
// any point. In the fast slice it does not wait.
func (s *scene) phase() {
	if !*full {
		return
	}
	drawn := rand.New(rand.NewPCG(*seed, uint64(len(rows)))) //nolint:gosec // a draw, not a secret
	wait := time.NewTimer(time.Duration(drawn.Int64N(int64(10 * time.Second))))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-s.ctx.Done():
	}
}

// record is what a variant leaves behind in the table of results.
type record struct {
	number  int
	variant string
}

var header = append([]string{"commit", "seed", "case", "variant", "timings", "outcome", "took"}, columns...)

func (record) path() string { return filepath.Join("..", "..", "docs", "results", "e2e", "rows.csv") }

// commit of the checkout, as this process began.
var commit = sync.OnceValues(func() (string, error) { return results.Commit(filepath.Join("..", "..")) })

// passed reports whether the table has a row for this very commit, seed and variant that passed.
func (r record) passed() (bool, error) {
	key, err := r.key()
	if err != nil {
		return false, err
	}
	lines, err := results.Read(r.path())
	want := append(key, "passed")
	return slices.ContainsFunc(lines, func(line []string) bool { return slices.Equal(line[:len(want)], want) }), err
}

func (r record) key() ([]string, error) {
	hash, err := commit()
	return []string{hash, strconv.FormatUint(*seed, 10), strconv.Itoa(r.number), r.variant, string(timings())}, err
}

// append adds the row, with the times that the scene played last has measured.
func (r record) append(passed bool, took time.Duration) error {
	line, err := r.key()
	if err != nil {
		return err
	}
	line = append(line, map[bool]string{true: "passed", false: "failed"}[passed], seconds(took))
	for _, c := range columns {
		d, measured := lastTimes()[c]
		if !measured {
			line = append(line, "")
			continue
		}
		line = append(line, seconds(d))
	}
	return results.Append(r.path(), header, line)
}

func lastTimes() map[string]time.Duration {
	if len(rows) == 0 {
		return nil
	}
	return rows[len(rows)-1].times
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 3, 64) }
