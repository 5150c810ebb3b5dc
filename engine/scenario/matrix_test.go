// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"os"
	"slices"
	"strings"
	"testing"
)

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

// TestMatrix walks every combination of what may be alive, dead or unreadable from a host that is well to the deadline, with Holdfast acting, and compares
// the verdict that stands then with a table that was written without the rules. Nothing that may write is released, but where the table says that this is a limit.
func TestMatrix(t *testing.T) {
	rows := matrix(t)
	used, failures := map[int]bool{}, 0
	every(Planes, State{}, func(s State) {
		row, err := rows.Expect(s)
		if err != nil {
			t.Error(err)
		}
		if err != nil || failures > 30 {
			return
		}
		used[row.Line] = true
		w := struck(t, s)
		story := w.Run(row.By, func(Round) bool { return false })
		got := w.Plan().Found
		broken := strings.Contains(story, "BROKEN")
		if !slices.Contains(row.Verdicts, got.Class.String()) || (broken && !row.Limit()) {
			failures++
			t.Errorf("%s: after %s it is %s by %s (%s), want %v (line %d)\n%s", s, row.By, got.Class, got.Rule(), got.Findings[0].Because, row.Verdicts, row.Line, story)
		}
	})
	for _, row := range rows {
		if !used[row.Line] {
			t.Errorf("matrix.csv:%d matches nothing", row.Line)
		}
	}
}

// struck is the world just after the fault.
func struck(t *testing.T, s State) *World {
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
	case s.PowerLost():
		sentences = append(sentences, "host loses power")
	case s["bmc"] == "dead":
		sentences = append(sentences, "device ipmi says Off", "device ipmi ignores commands")
	}
	for _, sentence := range sentences {
		if err := w.Say(sentence); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func matrix(t *testing.T) Matrix {
	t.Helper()
	text, err := os.ReadFile("../../test/scenario/matrix.csv")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := ParseMatrix(string(text))
	if err != nil {
		t.Fatalf("matrix.csv: %v", err)
	}
	return rows
}

func every(left []string, s State, do func(State)) {
	if len(left) == 0 {
		do(s)
		return
	}
	for _, word := range []string{"alive", "dead", "unreadable"} {
		s[left[0]] = word
		every(left[1:], s, do)
	}
}
