// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package events reads what a lab recorded as one timeline in the order of the
// machine's monotonic clock: faults, API requests, changes of who may use a
// volume, writes to it, and what BMCs were asked for.
//
// A file is read while it is written: a last line without end is left for the
// next reading. A line that cannot be understood becomes a Damaged event.
package events

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// Source says where an event comes from.
type Source string

const (
	// Faults is events/faults.jsonl: Event.Fault.
	Faults Source = "fault"
	// Audit is the API servers' audit logs: Event.Request.
	Audit Source = "audit"
	// Volumes is array/events.jsonl: Event.Volume.
	Volumes Source = "volume"
	// Writes is array/writes.jsonl: Event.Run.
	Writes Source = "write"
	// BMC is bmc/*/calls.jsonl: Event.Call.
	BMC Source = "bmc"
)

// Sources lists them.
var Sources = []Source{Faults, Audit, Volumes, Writes, BMC}

// ParseSource reads a source as a user writes it.
func ParseSource(s string) (Source, error) {
	if source := Source(s); slices.Contains(Sources, source) {
		return source, nil
	}
	return "", fmt.Errorf("source %q is none of %v", s, Sources)
}

// Event is one entry of the timeline. The field that its source names is set,
// or Damaged.
type Event struct {
	mono.Stamp
	Source  Source        `json:"source"`
	Fault   *fault.Record `json:"fault,omitempty"`
	Request *Request      `json:"request,omitempty"`
	Volume  *VolumeChange `json:"volume,omitempty"`
	Run     *Run          `json:"run,omitempty"`
	Call    *bmc.Call     `json:"call,omitempty"`
	// Damaged names a line that could not be read and why; the event has the
	// time of the line before it.
	Damaged string `json:"damaged,omitempty"`
}

// VolumeChange is a line of array/events.jsonl.
type VolumeChange struct {
	mono.Stamp
	// Event is create, delete, attach, detach, mount or unmount.
	Event  string `json:"event"`
	Volume string `json:"volume"`
	Host   string `json:"host,omitempty"`
	Boot   string `json:"boot,omitempty"`
	Epoch  uint64 `json:"epoch"`
}

// Filter says what Read is to return; the zero value is the timeline that a
// person wants to read.
type Filter struct {
	// Since and Until bound CLOCK_MONOTONIC in nanoseconds, both inclusive. Until 0 has no bound.
	Since, Until int64
	// Sources are those wanted; none means all.
	Sources []Source
	// RawWrites gives every write a Run of its own.
	RawWrites bool
	// Reads adds API requests that change nothing, and those that renew Leases and write Events.
	Reads bool
	// MaxGap ends a Run when its writer pauses for longer; 0 means one second.
	MaxGap time.Duration
}

func (f Filter) within(mono int64) bool {
	return mono >= f.Since && (f.Until == 0 || mono <= f.Until)
}

func (f Filter) wants(source Source) bool {
	return len(f.Sources) == 0 || slices.Contains(f.Sources, source)
}

// Read returns the timeline of the lab whose state directory is dir. Files
// that are not there yet have no events. Memory is bounded by what is
// returned, not by what is read.
func Read(dir string, filter Filter) ([]Event, error) {
	all := &timeline{filter: filter}
	readers := map[Source]func(dir string, to *timeline) error{
		Faults: readFaults, Audit: readAudit, Volumes: readVolumes, Writes: readWrites, BMC: readCalls,
	}
	for _, source := range Sources {
		if !filter.wants(source) {
			continue
		}
		if err := readers[source](dir, all); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(all.events, func(a, b Event) int { return cmp.Compare(a.Mono, b.Mono) })
	return all.events, nil
}

// timeline collects the events that the filter lets through.
type timeline struct {
	filter Filter
	events []Event
}

func (t *timeline) add(e Event) {
	if t.filter.within(e.Mono) {
		t.events = append(t.events, e)
	}
}

// lines reads a file of one kind of record; use returns the time of the record it was given.
func lines[R any](path string, source Source, to *timeline, use func(*R) mono.Stamp) error {
	var last mono.Stamp
	number := 0
	return jsonl.Scan(path, func(line []byte) error {
		number++
		record := new(R)
		if err := json.Unmarshal(line, record); err != nil {
			to.add(Event{Stamp: last, Source: source, Damaged: fmt.Sprintf("%s: record %d: %v", path, number, err)})
			return nil
		}
		last = use(record)
		return nil
	})
}

func readFaults(dir string, to *timeline) error {
	return lines(string(fault.JournalOf(dir)), Faults, to, func(r *fault.Record) mono.Stamp {
		to.add(Event{Stamp: r.Stamp, Source: Faults, Fault: r})
		return r.Stamp
	})
}

func readVolumes(dir string, to *timeline) error {
	return lines(filepath.Join(dir, "array", "events.jsonl"), Volumes, to, func(c *VolumeChange) mono.Stamp {
		to.add(Event{Stamp: c.Stamp, Source: Volumes, Volume: c})
		return c.Stamp
	})
}

func readCalls(dir string, to *timeline) error {
	hosts, err := filepath.Glob(bmc.CallsFile(filepath.Join(dir, "bmc", "*")))
	if err != nil {
		return err
	}
	for _, path := range hosts {
		err := lines(path, BMC, to, func(c *bmc.Call) mono.Stamp {
			to.add(Event{Stamp: c.Stamp, Source: BMC, Call: c})
			return c.Stamp
		})
		if err != nil {
			return err
		}
	}
	return nil
}
