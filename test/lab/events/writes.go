// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package events

import (
	"path/filepath"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// Writer is who wrote to what, and whether the array let it.
type Writer struct {
	Volume string `json:"volume"`
	File   string `json:"file"`
	Host   string `json:"host"`
	Boot   string `json:"boot"`
	Epoch  uint64 `json:"epoch"`
	// Result is ok, detached or error.
	Result string `json:"result"`
	// Op is empty for writes and fsyncs, else the operation: create, truncate, rename, …
	Op string `json:"op,omitempty"`
}

// Run is consecutive writes of one writer to one file, with no other writer
// between them.
type Run struct {
	Writer
	// Count is how many lines of the array's log the run has, Fsyncs how many of them are fsyncs.
	Count  int `json:"count"`
	Fsyncs int `json:"fsyncs,omitempty"`
	// Bytes is what was written in sum, Offset where the first write began.
	Bytes  int64 `json:"bytes"`
	Offset int64 `json:"offset"`
	// First and Last are the times of its ends, CLOCK_MONOTONIC in nanoseconds.
	First int64 `json:"first"`
	Last  int64 `json:"last"`
}

type write struct {
	mono.Stamp
	Writer
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Fsync  bool  `json:"fsync"`
}

func readWrites(dir string, to *timeline) error {
	maxGap := to.filter.MaxGap
	if maxGap == 0 {
		maxGap = time.Second
	}
	current := map[[2]string]*Run{} // by volume and file: the run that the next write may belong to
	return lines(filepath.Join(dir, "array", "writes.jsonl"), Writes, to, func(w *write) mono.Stamp {
		if !to.filter.within(w.Mono) {
			return w.Stamp
		}
		key := [2]string{w.Volume, w.File}
		run := current[key]
		if run == nil || to.filter.RawWrites || run.Writer != w.Writer || w.Mono-run.Last > maxGap.Nanoseconds() {
			run = &Run{Writer: w.Writer, Offset: w.Offset, First: w.Mono}
			current[key] = run
			to.add(Event{Stamp: w.Stamp, Source: Writes, Run: run})
		}
		run.Count++
		run.Bytes += w.Length
		run.Last = w.Mono
		if w.Fsync {
			run.Fsyncs++
		}
		return w.Stamp
	})
}
