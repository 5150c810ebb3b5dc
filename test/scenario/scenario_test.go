// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scenario_test runs the stories of this directory. They are reviewed like prose; go test ./test/scenario -update rewrites what comes out.
package scenario_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/engine/scenario"
)

var update = flag.Bool("update", false, "rewrite the expectations of the stories")

func TestStories(t *testing.T) {
	files, err := filepath.Glob("*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(file, ".txt"), func(t *testing.T) {
			tell(t, file)
		})
	}
}

func tell(t *testing.T, file string) {
	want, err := os.ReadFile(file) //nolint:gosec // a story of this directory
	if err != nil {
		t.Fatal(err)
	}
	got, err := scenario.Rewrite(string(want))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if strings.Contains(got, "BROKEN") && !strings.Contains(got, "# A limit") {
		t.Errorf("%s: a promise is broken; a story may show that only under the words \"# A limit\":\n%s", file, got)
	}
	if got == string(want) {
		return
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s comes out differently (see with git diff after go test ./test/scenario -update):\n%s", file, got)
}
