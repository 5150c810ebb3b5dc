// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fault breaks the lab's hosts the way real ones break, and mends
// them again: network planes, hangs, connections that stall. Every fault is
// idempotent, names its undo, and knows its state from the kernel rather than
// from memory, so that any process may undo what another one did.
package fault

import (
	"errors"
	"path/filepath"

	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// State is how far a fault has come.
type State string

const (
	// Begin: from now on the fault may be in effect.
	Begin State = "begin"
	// Applied: it is in effect for certain.
	Applied State = "applied"
	// Failed: it could not be applied, or not wholly; Error says why.
	Failed State = "failed"
	// Undone: it is not in effect any more.
	Undone State = "undone"
)

// Record is a line of events/faults.jsonl.
type Record struct {
	mono.Stamp
	// Fault names what happens, as its command does: net-cut, hang, bmc, power-off, …
	Fault string `json:"fault"`
	// Target is the host, or api.
	Target string `json:"target"`
	// Args tell variants of the fault apart, for example plane and direction.
	Args  map[string]string `json:"args,omitempty"`
	State State             `json:"state"`
	Error string            `json:"error,omitempty"`
}

// Journal is the path of a lab's record of faults.
type Journal string

// JournalOf is the journal of the lab whose state directory is dir.
func JournalOf(dir string) Journal { return Journal(filepath.Join(dir, "events", "faults.jsonl")) }

// Apply journals that the fault begins, applies it, and journals what came of
// it. Stamp, State and Error of what are filled in.
func (j Journal) Apply(what Record, apply func() error) error {
	if err := j.append(what, Begin, nil); err != nil {
		return err
	}
	if err := apply(); err != nil {
		return errors.Join(err, j.append(what, Failed, err))
	}
	return j.append(what, Applied, nil)
}

// Undo undoes the fault and journals that afterwards.
func (j Journal) Undo(what Record, undo func() error) error {
	if err := undo(); err != nil {
		return err
	}
	return j.append(what, Undone, nil)
}

func (j Journal) append(what Record, state State, failure error) error {
	what.Stamp, what.State = mono.Now(), state
	if failure != nil {
		what.Error = failure.Error()
	}
	return jsonl.Append(string(j), what)
}
