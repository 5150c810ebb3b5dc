// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// planes are the columns of test/scenario/matrix.csv.
var planes = []string{"kubelet", "runtime", "agent", "app", "api", "peer", "storage", "bmc"}

// strike says what happens when a plane is dead, or cannot be read. What the device says is in bmc.
var strike = map[string][]string{
	"kubelet dead": {"kubelet dies"}, "kubelet unreadable": {"lease cannot be read", "port is not asked"},
	"api dead": {"host loses the API"}, "api unreadable": {"API falls silent"},
	"runtime dead": {"runtime dies"}, "runtime unreadable": {"runtime cannot be read"},
	"agent dead": {"agent dies"}, "agent unreadable": {"witnesses fall silent"},
	"app dead": {"app db-0 stops serving"}, "app unreadable": {"app db-0 is not probed"},
	"peer dead": {"host cannot be reached", "host is cut from the witnesses"}, "peer unreadable": {"port is not asked", "witnesses know nothing of the host"},
	"storage dead": {"host loses its storage"}, "storage unreadable": {},
}

// order is that in which they strike: a kubelet that is dead or cut off says nothing of its runtime any more.
var order = []string{"kubelet", "api", "runtime", "agent", "app", "peer", "storage"}

type state map[string]string

func (s state) String() string {
	var words []string
	for _, p := range planes {
		words = append(words, p+" "+s[p])
	}
	return strings.Join(words, ", ")
}

// powerLost is true where nothing of the host can be alive and its device reads Off.
func (s state) powerLost() bool {
	return s["bmc"] == "dead" && !slices.ContainsFunc([]string{"kubelet", "runtime", "agent", "app"}, func(p string) bool { return s[p] == "alive" })
}

// TestMatrix walks every combination of what may be alive, dead or unreadable from a host that is well to the deadline, with Holdfast acting, and compares
// the verdict that stands then with a table that was written without the rules. Nothing that may write is released, but where the table says that this is a limit.
func TestMatrix(t *testing.T) {
	rows := matrix(t)
	used, failures := map[int]bool{}, 0
	every(planes, state{}, func(s state) {
		row, ok := find(t, rows, s)
		if !ok || failures > 30 {
			return
		}
		used[row.line] = true
		w := struck(t, s)
		story := w.Run(row.by, func(Round) bool { return false })
		got := w.Plan().Found
		broken := strings.Contains(story, "BROKEN")
		if allowed := strings.Split(row.verdicts, "|"); !slices.Contains(allowed, got.Class.String()) || (broken && !strings.HasPrefix(row.because, "A limit")) {
			failures++
			t.Errorf("%s: after %s it is %s by %s (%s), want %s (line %d)\n%s", s, row.by, got.Class, got.Rule(), got.Findings[0].Because, row.verdicts, row.line, story)
		}
	})
	for _, row := range rows {
		if !used[row.line] {
			t.Errorf("matrix.csv:%d matches nothing", row.line)
		}
	}
}

// struck is the world just after the fault.
func struck(t *testing.T, s state) *World {
	t.Helper()
	w := NewWorld("node-3", "b1")
	w.AddPod("db-0", "csi.example.org")
	w.AddDevice("ipmi")
	w.AddWitnesses(3)
	w.Advance(warmUp)
	var sentences []string
	for _, plane := range order {
		sentences = append(sentences, strike[plane+" "+s[plane]]...)
	}
	switch {
	case s["bmc"] == "unreadable":
		sentences = append(sentences, "device ipmi says Unreadable")
	case s.powerLost():
		sentences = append(sentences, "host loses power")
	case s["bmc"] == "dead":
		sentences = append(sentences, "device ipmi says Off", "device ipmi ignores commands")
	}
	for _, sentence := range sentences {
		if err := w.say(sentence); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

type expected struct {
	line              int
	cells             []string
	verdicts, because string
	by                time.Duration
}

func matrix(t *testing.T) []expected {
	t.Helper()
	text, err := os.ReadFile("../../test/scenario/matrix.csv")
	if err != nil {
		t.Fatal(err)
	}
	var rows []expected
	for n, line := range strings.Split(string(text), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.SplitN(line, ",", len(planes)+3)
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != len(planes)+3 {
			t.Fatalf("matrix.csv:%d: %d cells are wanted", n+1, len(planes)+3)
		}
		row := expected{line: n + 1, cells: cells[:len(planes)], verdicts: cells[len(planes)], because: cells[len(planes)+2]}
		if row.by, err = time.ParseDuration(cells[len(planes)+1]); err != nil {
			t.Fatalf("matrix.csv:%d: %v", n+1, err)
		}
		rows = append(rows, row)
	}
	return rows
}

// find wants exactly one row for a combination.
func find(t *testing.T, rows []expected, s state) (found expected, ok bool) {
	t.Helper()
	for _, row := range rows {
		fits := true
		for i, cell := range row.cells {
			fits = fits && (cell == "*" || slices.Contains(strings.Split(cell, "|"), s[planes[i]]))
		}
		if fits && ok {
			t.Errorf("%s: lines %d and %d of matrix.csv match", s, found.line, row.line)
			return found, false
		}
		if fits {
			found, ok = row, true
		}
	}
	if !ok {
		t.Errorf("%s: no line of matrix.csv matches", s)
	}
	return found, ok
}

func every(left []string, s state, do func(state)) {
	if len(left) == 0 {
		do(s)
		return
	}
	for _, word := range []string{"alive", "dead", "unreadable"} {
		s[left[0]] = word
		every(left[1:], s, do)
	}
}
