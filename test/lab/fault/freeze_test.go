// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
)

// freezers are the directories of a fresh cgroup with a child, in each
// version of the freezer that this machine has.
func freezers(t *testing.T) map[string]Freezer {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("these tests make cgroups: run them as root")
	}
	tree, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	made := map[string]Freezer{}
	name := "holdfast-freezetest-" + rand.Text()[:10]
	for controller, directory := range tree.Paths(name) {
		if controller != "freezer" && controller != "" {
			continue
		}
		child := filepath.Join(directory, "pod")
		if err := os.MkdirAll(child, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { remove(t, child); remove(t, directory) })
		f, err := NewFreezer(map[string]string{controller: directory})
		if err != nil {
			t.Fatal(err)
		}
		made[f.version.control] = f
	}
	if len(made) == 0 {
		t.Fatal("this machine has no cgroup hierarchy that can freeze")
	}
	return made
}

// remove removes an empty cgroup; its last processes may be about to leave it.
func remove(t *testing.T, directory string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := await.Until(ctx, directory+" to be removed", func() (bool, error) {
		err := unix.Rmdir(directory)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		t.Error(err)
	}
}

// ticker is a process that prints a line every 20 ms.
type ticker struct{ lines chan struct{} }

func startTicker(t *testing.T, f Freezer, directory string) ticker {
	t.Helper()
	cmd := exec.Command("sh", "-c", "while echo tick; do sleep 0.02; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Thaw(context.Background()); err != nil { // a frozen process does not die
			t.Error(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // the exit status of a killed process is an error
	})
	pid := strconv.Itoa(cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(directory, "cgroup.procs"), []byte(pid), 0); err != nil {
		t.Fatal(err)
	}
	ticks := ticker{lines: make(chan struct{}, 1024)}
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			ticks.lines <- struct{}{}
		}
	}()
	return ticks
}

// ticksWithin says whether a new line comes in time; those already printed do not count.
func (k ticker) ticksWithin(d time.Duration) bool {
	grace := time.NewTimer(50 * time.Millisecond) // lines on their way through the pipe
	for drained := false; !drained; {
		select {
		case <-k.lines:
		case <-grace.C:
			drained = true
		}
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-k.lines:
		return true
	case <-timer.C:
		return false
	}
}

func TestFreezeHaltsTheCgroupAndAllBelowIt(t *testing.T) {
	for name, f := range freezers(t) {
		t.Run(name, func(t *testing.T) {
			host := startTicker(t, f, f.directory)
			pod := startTicker(t, f, filepath.Join(f.directory, "pod"))
			for round := range 2 {
				for range 2 { // idempotent
					within(t, f.Freeze)
				}
				if frozen, err := f.Frozen(); err != nil || !frozen {
					t.Errorf("round %d: frozen %v, %v; want true", round, frozen, err)
				}
				if host.ticksWithin(200*time.Millisecond) || pod.ticksWithin(200*time.Millisecond) {
					t.Errorf("round %d: something runs in a frozen cgroup", round)
				}
				for range 2 {
					within(t, f.Thaw)
				}
				if !host.ticksWithin(5*time.Second) || !pod.ticksWithin(5*time.Second) {
					t.Errorf("round %d: something stays frozen in a thawed cgroup", round)
				}
			}
		})
	}
}

func within(t *testing.T, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := do(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestHaltedIsSeenThreadByThread: what Freeze falls back on when a thread
// cannot be frozen because it waits for one that was.
func TestHaltedIsSeenThreadByThread(t *testing.T) {
	for name, f := range freezers(t) {
		t.Run(name, func(t *testing.T) {
			f.directory = filepath.Join(f.directory, "pod")
			startTicker(t, f, f.directory)
			within(t, f.Freeze)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := await.Until(ctx, "a frozen cgroup to count as halted", f.allHalted); err != nil {
				t.Error(err)
			}
			within(t, f.Thaw)
			if err := await.Until(ctx, "a thawed cgroup to count as running", func() (bool, error) {
				halted, err := f.allHalted()
				return !halted, err
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFreezerFiles(t *testing.T) {
	for name, c := range map[string]struct {
		directories func(string) map[string]string
		version     freezerVersion
	}{
		"v1 alone":          {func(d string) map[string]string { return map[string]string{"freezer": d, "cpu": "/elsewhere"} }, freezerV1},
		"v1 next to a v2":   {func(d string) map[string]string { return map[string]string{"freezer": d, "": "/elsewhere"} }, freezerV1},
		"v2 alone":          {func(d string) map[string]string { return map[string]string{"": d} }, freezerV2},
		"v2 and v1 without": {func(d string) map[string]string { return map[string]string{"": d, "cpu": "/elsewhere"} }, freezerV2},
	} {
		t.Run(name, func(t *testing.T) {
			directory := t.TempDir()
			f, err := NewFreezer(c.directories(directory))
			if err != nil || f.directory != directory || f.version != c.version {
				t.Fatalf("NewFreezer: %+v, %v; want %s in %s", f, err, c.version.control, directory)
			}
			write := func(file, text string) {
				if err := os.WriteFile(filepath.Join(directory, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(c.version.state, "populated 1\n"+c.version.frozen+"\n")
			if frozen, err := f.Frozen(); err != nil || !frozen {
				t.Errorf("frozen: %v, %v; want true", frozen, err)
			}
			write(c.version.state, "populated 1\nfrozen 0\n")
			if frozen, err := f.Frozen(); err != nil || frozen {
				t.Errorf("thawed counts as frozen: %v, %v", frozen, err)
			}
		})
	}
	if _, err := NewFreezer(map[string]string{"cpu": "/c"}); err == nil || !strings.Contains(err.Error(), "cgroup2") {
		t.Errorf("no freezer: %v, want an error that says what to mount", err)
	}
	absent, err := NewFreezer(map[string]string{"": "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	if err := absent.Freeze(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("freeze of a cgroup that is gone: %v, want not exist", err)
	}
	if err := absent.Thaw(t.Context()); err != nil {
		t.Errorf("thaw of a cgroup that is gone: %v, want nothing to do", err)
	}
}
