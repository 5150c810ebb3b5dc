// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonl

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func lines(t *testing.T, path string) []string {
	t.Helper()
	var got []string
	if err := Scan(path, func(line []byte) error { got = append(got, string(line)); return nil }); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestUnfinishedLineIsLeftOutAndThenClosed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	if err := Append(path, map[string]int{"n": 1}); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"n":`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(t, path), []string{`{"n":1}`}; !slices.Equal(got, want) {
		t.Errorf("with an unfinished last line: %q, want %q", got, want)
	}
	if err := Append(path, map[string]int{"n": 3}); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(t, path), []string{`{"n":1}`, `{"n":`, `{"n":3}`}; !slices.Equal(got, want) {
		t.Errorf("after the next record: %q, want %q", got, want)
	}
}

func TestConcurrentWritersKeepTheirLinesWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	type record struct{ Writer, N int }
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for n := range 50 {
				if err := Append(path, record{w, n}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	next := map[int]int{}
	for _, line := range lines(t, path) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if r.N != next[r.Writer] {
			t.Fatalf("writer %d: record %d where %d is due", r.Writer, r.N, next[r.Writer])
		}
		next[r.Writer]++
	}
	if got := fmt.Sprint(next); got != "map[0:50 1:50 2:50 3:50]" {
		t.Errorf("records per writer: %s", got)
	}
}

func TestLinesLongerThanTheBuffer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "j")
	long := strings.Repeat("x", 300<<10)
	if err := os.WriteFile(path, []byte("a\n"+long+"\n\n"+long+"y\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := lines(t, path), []string{"a", long, long + "y", "b"}; !slices.Equal(got, want) {
		t.Errorf("read %d lines, want %d, each whole", len(got), len(want))
	}
	if got := lines(t, filepath.Join(t.TempDir(), "absent")); got != nil {
		t.Errorf("an absent file has lines: %q", got)
	}
}
