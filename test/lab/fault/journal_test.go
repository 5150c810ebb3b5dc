// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

func TestFaultsAreJournalledAroundWhatTheyDo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "events"), 0o755); err != nil {
		t.Fatal(err)
	}
	journal := JournalOf(dir)
	states := func() (states []string) {
		err := jsonl.Scan(string(journal), func(line []byte) error {
			var r Record
			if err := json.Unmarshal(line, &r); err != nil {
				return err
			}
			if r.Fault != "hang" || r.Target != "host-1" || r.Args["kind"] != "dead" || r.Mono == 0 || r.Mono > mono.Nanoseconds() {
				t.Errorf("record %s", line)
			}
			states = append(states, string(r.State)+r.Error)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return states
	}
	hang := Record{Fault: "hang", Target: "host-1", Args: map[string]string{"kind": "dead"}}
	broken := errors.New("broken")
	during := func(result error) func() error {
		return func() error { return errors.Join(result, note(t, dir, states())) }
	}

	if err := journal.Apply(hang, during(nil)); err != nil {
		t.Fatal(err)
	}
	if err := journal.Apply(hang, during(broken)); !errors.Is(err, broken) {
		t.Errorf("a fault that fails: %v, want its error", err)
	}
	if err := journal.Undo(hang, during(broken)); !errors.Is(err, broken) {
		t.Errorf("an undo that fails: %v, want its error", err)
	}
	if err := journal.Undo(hang, during(nil)); err != nil {
		t.Fatal(err)
	}
	if got, want := states(), []string{"begin", "applied", "begin", "failedbroken", "undone"}; !slices.Equal(got, want) {
		t.Errorf("journal %q, want %q", got, want)
	}
	seen, err := os.ReadFile(filepath.Join(dir, "seen"))
	if want := "1 3 4 4 "; err != nil || string(seen) != want {
		t.Errorf("records while the faults and their undoing were at work: %q, %v; want %q", seen, err, want)
	}

	absent := Journal(filepath.Join(dir, "absent", "faults.jsonl"))
	ran := false
	if err := absent.Apply(hang, func() error { ran = true; return nil }); err == nil || ran {
		t.Errorf("a fault that cannot be journalled: %v, applied %v; want an error before anything is done", err, ran)
	}
}

// note keeps how many records there were while a fault was at work.
func note(t *testing.T, dir string, states []string) error {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(dir, "seen"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(file, "%d ", len(states))
	return errors.Join(err, file.Close())
}
