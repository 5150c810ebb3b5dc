// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"strconv"
	"time"

	"github.com/holdfast-dev/holdfast/test/results"
)

// Program is what uses memory and processor.
type Program string

// The programs of Holdfast that run all the time.
const (
	Agent   Program = "agent"
	Leader  Program = "leader"
	Standby Program = "standby"
)

// Usage is what one process used, in the part of a run that has agents.
type Usage struct {
	Commit string
	Seed   uint64
	Program
	Host string
	// Rest and RestCPU: before the first fault, for how long it was looked on, and how much of the processor's time it took in that. Zero where the process
	// that was there then was not seen.
	Rest, RestCPU time.Duration
	// Span and CPU: the same over all faults, of the process that was there at their end, from its own beginning where that was later.
	Span, CPU time.Duration
	// RSS is its resident memory at the end, in KiB: Anon of it is its own, File is pages of files, the program's among them, which the kernel can take
	// back and processes of one program on one machine share.
	RSS, Anon, File int
}

// AtRest is its share of one core before the first fault; ok is false where it was not measured.
func (u Usage) AtRest() (share float64, ok bool) { return part(u.RestCPU, u.Rest) }

// Overall is its share of one core over all faults.
func (u Usage) Overall() (share float64, ok bool) { return part(u.CPU, u.Span) }

func part(of, whole time.Duration) (float64, bool) {
	if whole <= 0 {
		return 0, false
	}
	return float64(of) / float64(whole), true
}

func usageHeader() []string {
	return []string{"commit", "seed", "program", "host", "rest_ms", "rest_cpu_ms", "span_ms", "cpu_ms", "rss_kib", "anon_kib", "file_kib"}
}

// AppendUsage adds a row to the file, which is made with its header if need be.
func AppendUsage(path string, u Usage) error {
	return results.Append(path, usageHeader(), []string{u.Commit, strconv.FormatUint(u.Seed, 10), string(u.Program), u.Host,
		millis(u.Rest), millis(u.RestCPU), millis(u.Span), millis(u.CPU), strconv.Itoa(u.RSS), strconv.Itoa(u.Anon), strconv.Itoa(u.File)})
}

// LoadUsages reads the rows of a seed. A file that is not there has none.
func LoadUsages(path string, seed uint64) ([]Usage, error) {
	var out []Usage
	err := load(path, usageHeader(), func(f *fields) {
		u := Usage{Commit: f.text(), Seed: f.big(), Program: Program(f.text()), Host: f.text()}
		for _, d := range []*time.Duration{&u.Rest, &u.RestCPU, &u.Span, &u.CPU} {
			*d, _ = f.span()
		}
		u.RSS, u.Anon, u.File = f.number(), f.number(), f.number()
		if u.Seed == seed {
			out = append(out, u)
		}
	})
	return out, err
}
