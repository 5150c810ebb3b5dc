// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/test/results"
)

// outcomes of a case.
const (
	passed = "passed"
	failed = "failed"
)

// row is one case.
type row struct {
	commit       string
	seed, number uint64
	host, faults string
	want         []string
	by           time.Duration
	seen         []change
	outcome, why string
}

var header = []string{"commit", "seed", "case", "host", "faults", "want", "by", "verdict", "since", "seen", "outcome", "why"}

// judge fills in how the case ended: by the verdict that stood at the deadline, and by what the array's log says of writers.
func (r *row) judge(interleavings, lost int) {
	var why []string
	if v := r.last().verdict; !slices.Contains(r.want, v) {
		why = append(why, fmt.Sprintf("%s is not what the matrix allows", v))
	}
	if interleavings > 0 {
		why = append(why, fmt.Sprintf("%d times a writer wrote after its successor", interleavings))
	}
	if lost > 0 {
		why = append(why, fmt.Sprintf("%d acknowledged lines are gone", lost))
	}
	r.outcome, r.why = passed, strings.Join(why, "; ")
	if r.why != "" {
		r.outcome = failed
	}
}

func (r *row) last() change {
	if len(r.seen) == 0 {
		return change{}
	}
	return r.seen[len(r.seen)-1]
}

// since is from when on, to the deadline, the verdict was always one that is allowed; ok is false if it was not at the end.
func (r *row) since() (d time.Duration, ok bool) {
	for _, c := range slices.Backward(r.seen) {
		if !slices.Contains(r.want, c.verdict) {
			break
		}
		d, ok = c.at, true
	}
	return d, ok
}

func (r *row) String() string {
	return fmt.Sprintf("case %d on %s: %s: %s, want %s by %.0fs: %s %s", r.number, r.host, r.faults, r.history(), strings.Join(r.want, "|"), r.by.Seconds(), r.outcome, r.why)
}

func (r *row) history() string {
	var words []string
	for _, c := range r.seen {
		words = append(words, fmt.Sprintf("%s %.1fs", c.verdict, c.at.Seconds()))
	}
	return strings.Join(words, " > ")
}

func (r *row) append(path string) error {
	since := ""
	if d, ok := r.since(); ok {
		since = seconds(d)
	}
	return results.Append(path, header, []string{r.commit, strconv.FormatUint(r.seed, 10), strconv.FormatUint(r.number, 10), r.host, r.faults,
		strings.Join(r.want, "|"), seconds(r.by), r.last().verdict, since, r.history(), r.outcome, r.why})
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) }
