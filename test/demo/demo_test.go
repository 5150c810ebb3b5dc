// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab"
)

// raiseWithin covers the builds of the lab's components when nothing is cached.
const raiseWithin = 35 * time.Minute

// The demo is worth watching only if it can fail. Both tests play on one lab.
func TestTheDemoFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the demo makes a lab: run this as root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), raiseWithin)
	defer cancel()
	name := fmt.Sprintf("demo-%d", os.Getpid())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := lab.Down(ctx, name); err != nil {
			t.Error(err)
		}
	})
	t.Run("without Holdfast", func(t *testing.T) {
		expectFailure(ctx, t, []string{"--lab", name, "--keep", "--without-holdfast"},
			"demo: the first promise does not hold: nothing holds the ledger: Holdfast is not installed",
			"kubectl delete --force was carried out", "still writes")
	})
	repair(ctx, t, name)
	t.Run("with a dead BMC", func(t *testing.T) {
		story := expectFailure(ctx, t, []string{"--lab", name, "--keep", "--bmc-dead"},
			"demo: the second promise does not hold: the ledger was not migrated", "is blocked: no fencing method can be used")
		if !strings.Contains(story, "  ok  the same pod, the same container, no restart") {
			t.Error("the first promise needs no BMC, and it was not kept")
		}
		if strings.Contains(story, "step Releasing") || strings.Contains(story, "pod shop/ledger-0 released") {
			t.Error("something was released without proof")
		}
	})
}

// expectFailure plays the demo, which has to exit 1 and end with the sentence given and the words that go with it.
func expectFailure(ctx context.Context, t *testing.T, args []string, sentence string, words ...string) string {
	t.Helper()
	var out bytes.Buffer
	code := run(ctx, args, &out)
	t.Log(out.String())
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	// The story is wrapped: compare words.
	story := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range append(words, sentence) {
		if !strings.Contains(story, strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the story does not say %q", want)
		}
	}
	if strings.Contains(story, "both promises held") {
		t.Error("the story claims that both promises held")
	}
	return out.String()
}

// repair brings back the kubelets that a play has left dead.
func repair(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	l, err := lab.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts() {
		if err := h.StartKubelet(ctx); err != nil {
			t.Fatal(err)
		}
		if err := h.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrap(t *testing.T) {
	word := strings.Repeat("x", 60)
	for _, c := range []struct {
		text string
		want []string
	}{
		{"short", []string{"> short"}},
		{"a   table   row", []string{"> a   table   row"}},
		{word + " " + word, []string{"> " + word, "  " + word}},
		{strings.Repeat("y", 120), []string{"> " + strings.Repeat("y", 120)}},
	} {
		if got := wrap(c.text, "> ", "  "); strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("wrap %q: got %q, want %q", c.text, got, c.want)
		}
	}
}

func TestNarrowTakesSpaceFromBetweenColumnsOnly(t *testing.T) {
	long := strings.Repeat("n", 50)
	got := narrow([]string{"NAME" + strings.Repeat(" ", 49) + "KIND" + strings.Repeat(" ", 43) + "AGE   ", long + "   " + strings.Repeat("k", 44) + "   1s"})
	want := []string{"NAME" + strings.Repeat(" ", 48) + "KIND" + strings.Repeat(" ", 42) + "AGE", long + "  " + strings.Repeat("k", 44) + "  1s"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	table := []string{"A   B", "1   2"}
	if got := narrow(table); strings.Join(got, "\n") != strings.Join(table, "\n") {
		t.Errorf("a table that fits was changed: %q", got)
	}
}
