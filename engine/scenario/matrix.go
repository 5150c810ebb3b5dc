// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Planes are the columns of test/scenario/matrix.csv: the parts of a host and the ways to it.
var Planes = []string{"kubelet", "runtime", "agent", "app", "api", "peer", "storage", "bmc"}

// State says of each plane that it is "alive", "dead" or "unreadable".
type State map[string]string

// String names the planes in their order.
func (s State) String() string {
	var words []string
	for _, p := range Planes {
		words = append(words, p+" "+s[p])
	}
	return strings.Join(words, ", ")
}

// PowerLost is true where nothing of the host can be alive and its device reads Off.
func (s State) PowerLost() bool {
	return s["bmc"] == "dead" && !slices.ContainsFunc([]string{"kubelet", "runtime", "agent", "app"}, func(p string) bool { return s[p] == "alive" })
}

// Expected is one row of the table: what must be said of a host in the states that it matches, and by when after they began.
type Expected struct {
	// Line is the row's number in the file.
	Line int
	// Verdicts are the names of those allowed.
	Verdicts []string
	By       time.Duration
	Because  string

	cells [][]string
}

// Limit is true where the table says that a writer may be released that still writes.
func (e Expected) Limit() bool { return strings.HasPrefix(e.Because, "A limit") }

// matches reports whether the row is about the state.
func (e Expected) matches(s State) bool {
	for i, cell := range e.cells {
		if cell[0] != "*" && !slices.Contains(cell, s[Planes[i]]) {
			return false
		}
	}
	return true
}

// Matrix is the table.
type Matrix []Expected

// ParseMatrix reads the text of test/scenario/matrix.csv. Its errors name the line.
func ParseMatrix(text string) (Matrix, error) {
	var rows Matrix
	for n, line := range strings.Split(text, "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.SplitN(line, ",", len(Planes)+3)
		if len(cells) != len(Planes)+3 {
			return nil, fmt.Errorf("line %d: %d cells are wanted", n+1, len(Planes)+3)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		by, err := time.ParseDuration(cells[len(Planes)+1])
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		row := Expected{Line: n + 1, Verdicts: strings.Split(cells[len(Planes)], "|"), By: by, Because: cells[len(Planes)+2]}
		for _, cell := range cells[:len(Planes)] {
			row.cells = append(row.cells, strings.Split(cell, "|"))
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// Expect is the one row that matches. It is an error if none does, or more than one.
func (m Matrix) Expect(s State) (Expected, error) {
	var found []Expected
	for _, row := range m {
		if row.matches(s) {
			found = append(found, row)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Expected{}, fmt.Errorf("%s: no line of the matrix matches", s)
	default:
		return Expected{}, fmt.Errorf("%s: lines %d and %d of the matrix match", s, found[0].Line, found[1].Line)
	}
}
