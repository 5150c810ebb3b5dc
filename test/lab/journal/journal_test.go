// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/holdfast-dev/holdfast/test/lab/process"
)

func newJournal(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resources.jsonl")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustAppend(t *testing.T, path string, r Record) {
	t.Helper()
	if err := Append(path, r); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, path string) []string {
	t.Helper()
	records, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range records {
		all = append(all, r.Name)
	}
	return all
}

func TestRecordsComeBackAsTheyWereWritten(t *testing.T) {
	path := newJournal(t)
	want := Record{Kind: Process, Name: "etcd", ID: process.ID{PID: 7, Start: 99}, KernelBoot: "b"}
	mustAppend(t, path, want)
	records, err := Read(path)
	if err != nil || len(records) != 1 {
		t.Fatalf("records %v, error %v; want the one that was written", records, err)
	}
	got := records[0]
	if got.Mono == 0 || got.Wall.IsZero() {
		t.Errorf("record %+v has no time", got)
	}
	want.Stamp = got.Stamp
	if got != want {
		t.Errorf("read %+v, wrote %+v", got, want)
	}
}

func TestNothingIsMadeAfterClose(t *testing.T) {
	path := newJournal(t)
	mustAppend(t, path, Record{Kind: NetNS, Name: "a"})
	for range 2 { // idempotent
		if err := Close(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := Append(path, Record{Kind: NetNS, Name: "late"}); !errors.Is(err, ErrClosed) {
		t.Errorf("append after close: %v, want ErrClosed", err)
	}
	if got := fmt.Sprint(names(t, path)); got != "[a]" {
		t.Errorf("records %s, want [a]", got)
	}
}

func TestNothingIsMadeWhenTheJournalIsGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resources.jsonl")
	if err := Append(path, Record{Kind: NetNS, Name: "late"}); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v, want ErrClosed", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("append made a journal: %v", err)
	}
	if err := Close(path); err != nil {
		t.Errorf("close: %v, want nothing to happen", err)
	}
	if records, err := Read(path); err != nil || len(records) != 0 {
		t.Errorf("read: %v, %v, want nothing", records, err)
	}
}

// A writer that is killed leaves half a line: what it names was not made, and later writers go on.
func TestALineThatWasCutOffNamesNothing(t *testing.T) {
	path := newJournal(t)
	mustAppend(t, path, Record{Kind: NetNS, Name: "a"})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 1; cut < len(whole)-1; cut++ {
		if err := os.WriteFile(path, append(whole[:len(whole):len(whole)], whole[:cut]...), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(names(t, path)); got != "[a]" {
			t.Fatalf("after %d bytes of the second line: records %s, want [a]", cut, got)
		}
		mustAppend(t, path, Record{Kind: NetNS, Name: "b"})
		if got := fmt.Sprint(names(t, path)); got != "[a b]" {
			t.Fatalf("after %d bytes and another record: records %s, want [a b]", cut, got)
		}
	}
}

func TestALineThatIsWrongIsAnError(t *testing.T) {
	path := newJournal(t)
	if err := os.WriteFile(path, []byte("{\"kind\":7}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil {
		t.Error("a journal with a record of an impossible kind was read without an error")
	}
}

func TestWritersAtTheSameTimeLoseNothing(t *testing.T) {
	path := newJournal(t)
	const writers, each = 8, 10
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range each {
				if err := Append(path, Record{Kind: NetNS, Name: fmt.Sprint(w, "/", n)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	for _, name := range names(t, path) {
		seen[name] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d different records, want %d", len(seen), writers*each)
	}
}
