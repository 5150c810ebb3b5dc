// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-dev/holdfast/test/results"
)

// Outage is a case of P7: the kubelet of an application's host was dead, and came back.
type Outage struct {
	Commit  string
	Seed    uint64
	Timings string
	// T0 is when the kubelet was killed.
	T0   time.Time
	Host string
	// Length is how long the kubelet was dead, After how long it was looked on after its return.
	Length, After time.Duration
	// Interval is how often the application writes of itself.
	Interval time.Duration
	// Writes is how many the array accepted, Acked how many lines a client was told to be safe, both in the whole time.
	Writes, Acked int
	// Pause is the longest time between two writes, Down the sum of those of more than Unnoticed: in the whole time, and after the kubelet's return alone.
	Pause, Down, PauseAfter, DownAfter time.Duration
	// Restarts of the application's container; another pod counts as one.
	Restarts int
	// Lost is how many acknowledged lines the ledger has not, Interleavings how often an older writer wrote after a newer one.
	Lost, Interleavings int
	// Gap is the longest time in which the Service had no ready endpoint, Gaps the sum of all: in the whole time; GapAfter is the longest after the
	// kubelet's return.
	Gap, Gaps, GapAfter time.Duration
	// Unserved is the longest time between two acknowledgements to a client outside.
	Unserved time.Duration
}

// Unnoticed is the longest pause that is no downtime: the application calls itself ready for as long after a write.
const Unnoticed = time.Second

// Pauses are the longest time between two events, and the sum of the times of more than Unnoticed, from since to until; all in nanoseconds of one clock,
// and events in their order.
func Pauses(events []int64, since, until int64) (longest, down time.Duration) {
	last := since
	span := func(to int64) {
		d := time.Duration(to - last)
		longest, last = max(longest, d), to
		if d > Unnoticed {
			down += d
		}
	}
	for _, at := range events {
		if at > since && at < until {
			span(at)
		}
	}
	span(until)
	return longest, down
}

// Turn is when a Service began, or ceased, to have a ready endpoint.
type Turn struct {
	Mono  int64
	Ready bool
}

// Gaps are the longest time in which nothing was ready, and the sum of all such times, from since to until. Turns are in their order; before the first
// nothing is known, and nothing counts.
func Gaps(turns []Turn, since, until int64) (longest, sum time.Duration) {
	begin, open := int64(0), false
	end := func(at int64) {
		if d := time.Duration(min(at, until) - max(begin, since)); open && d > 0 {
			longest, sum = max(longest, d), sum+d
		}
		open = false
	}
	for _, t := range turns {
		switch {
		case t.Ready:
			end(t.Mono)
		case !open:
			begin, open = t.Mono, true
		}
	}
	end(until)
	return longest, sum
}

func outageHeader() []string {
	return []string{"commit", "seed", "timings", "t0", "host", "length_ms", "after_ms", "interval_ms", "pause_ms", "down_ms", "pause_after_ms", "down_after_ms",
		"gap_ms", "gaps_ms", "gap_after_ms", "unserved_ms", "writes", "acked", "restarts", "lost", "interleavings"}
}

// spans and counts are the fields behind the first five, in the order of their columns.
func (o *Outage) spans() []*time.Duration {
	return []*time.Duration{&o.Length, &o.After, &o.Interval, &o.Pause, &o.Down, &o.PauseAfter, &o.DownAfter, &o.Gap, &o.Gaps, &o.GapAfter, &o.Unserved}
}

func (o *Outage) counts() []*int {
	return []*int{&o.Writes, &o.Acked, &o.Restarts, &o.Lost, &o.Interleavings}
}

// AppendOutage adds a row to the file, which is made with its header if need be.
func AppendOutage(path string, o Outage) error {
	record := []string{o.Commit, strconv.FormatUint(o.Seed, 10), o.Timings, o.T0.UTC().Format(time.RFC3339Nano), o.Host}
	for _, d := range o.spans() {
		record = append(record, millis(*d))
	}
	for _, n := range o.counts() {
		record = append(record, strconv.Itoa(*n))
	}
	return results.Append(path, outageHeader(), record)
}

// LoadOutages reads the rows of a seed. A file that is not there has none.
func LoadOutages(path string, seed uint64) ([]Outage, error) {
	var out []Outage
	err := load(path, outageHeader(), func(f *fields) {
		o := Outage{Commit: f.text(), Seed: f.big(), Timings: f.text(), T0: f.time(), Host: f.text()}
		for _, d := range o.spans() {
			*d, _ = f.span()
		}
		for _, n := range o.counts() {
			*n = f.number()
		}
		if o.Seed == seed {
			out = append(out, o)
		}
	})
	return out, err
}

// load calls on for every record of a table, which must have these columns.
func load(path string, columns []string, on func(*fields)) error {
	lines, err := results.Read(path)
	if err != nil || len(lines) == 0 {
		return err
	}
	if fmt.Sprint(lines[0]) != fmt.Sprint(columns) {
		return fmt.Errorf("%s: columns %q, want %q; mend it, or move it away to begin anew", path, lines[0], columns)
	}
	for i, line := range lines[1:] {
		f := &fields{record: line, columns: columns}
		if on(f); f.err != nil {
			return fmt.Errorf("%s: row %d: %w; mend it, or move it away to begin anew", path, i+1, f.err)
		}
	}
	return nil
}
