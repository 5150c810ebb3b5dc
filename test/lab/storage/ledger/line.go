// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ledger is the witness application of the lab: it appends to one file as a database would, and
// says whether it can.
package ledger

import (
	"fmt"
	"strconv"
	"strings"
)

// Line is one line of the ledger: "<mono> <host> <boot> <epoch> <seq>", followed by the client's ID when a
// client asked for it.
type Line struct {
	Mono  int64 // nanoseconds of CLOCK_MONOTONIC when the append was tried
	Host  string
	Boot  string
	Epoch uint64 // attachment epoch of the writer's mount
	Seq   uint64 // counts on from the last line of the file
	ID    string // empty for the lines that the ledger writes of itself
}

// String gives the line without its newline.
func (l Line) String() string {
	s := fmt.Sprintf("%d %s %s %d %d", l.Mono, l.Host, l.Boot, l.Epoch, l.Seq)
	if l.ID != "" {
		s += " " + l.ID
	}
	return s
}

// ParseLine reads a line without its newline.
func ParseLine(s string) (Line, error) {
	f := strings.Split(s, " ")
	if len(f) != 5 && len(f) != 6 {
		return Line{}, fmt.Errorf("ledger line %q: %d fields, want mono, host, boot, epoch, seq and perhaps an id", s, len(f))
	}
	l := Line{Host: f[1], Boot: f[2]}
	var err error
	if l.Mono, err = strconv.ParseInt(f[0], 10, 64); err != nil {
		return Line{}, fmt.Errorf("ledger line %q: mono: %w", s, err)
	}
	if l.Epoch, err = strconv.ParseUint(f[3], 10, 64); err != nil {
		return Line{}, fmt.Errorf("ledger line %q: epoch: %w", s, err)
	}
	if l.Seq, err = strconv.ParseUint(f[4], 10, 64); err != nil {
		return Line{}, fmt.Errorf("ledger line %q: seq: %w", s, err)
	}
	if len(f) == 6 {
		l.ID = f[5]
	}
	return l, nil
}

// CheckID accepts what can stand at the end of a line.
func CheckID(id string) error {
	if id == "" || len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("id %q: use 1 to 64 printable ASCII characters without spaces", id)
	}
	return nil
}
