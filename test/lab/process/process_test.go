// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sleeper(t *testing.T) (ID, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := Of(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := id.Kill(t.Context()); err != nil && t.Context().Err() == nil {
			t.Errorf("kill: %v", err)
		}
		_ = cmd.Process.Kill() // ErrProcessDone when the test ended it
		_ = cmd.Wait()         // the exit status of a killed process is an error
	})
	return id, cmd
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestStopContinueKill(t *testing.T) {
	id, _ := sleeper(t)
	ctx := within(t, 5*time.Second)
	for range 2 { // idempotent
		if err := id.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !id.Stopped() || !id.Running() {
		t.Errorf("after Stop: stopped %v, running %v; want both", id.Stopped(), id.Running())
	}
	for range 2 {
		if err := id.Continue(); err != nil {
			t.Fatal(err)
		}
	}
	if err := Await(ctx, "the process to continue", func() (bool, error) { return !id.Stopped(), nil }); err != nil {
		t.Error(err)
	}
	if err := id.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := id.Kill(ctx); err != nil {
			t.Fatalf("kill of a stopped process: %v", err)
		}
	}
	if id.Running() {
		t.Error("a killed process that nobody waited for counts as running")
	}
	if err := id.Stop(ctx); !errors.Is(err, ErrGone) {
		t.Errorf("Stop of a process that is gone: %v, want ErrGone", err)
	}
}

func TestAReusedNumberIsNeverSignalled(t *testing.T) {
	id, _ := sleeper(t)
	earlier := ID{PID: id.PID, Start: id.Start - 1}
	if err := earlier.Signal(unix.SIGKILL); !errors.Is(err, ErrGone) {
		t.Errorf("signal by number and another start time: %v, want ErrGone", err)
	}
	if earlier.Running() || !id.Running() {
		t.Errorf("running: earlier %v, actual %v; want only the actual one", earlier.Running(), id.Running())
	}
	if err := (ID{PID: 1}).Signal(unix.SIGKILL); err == nil || errors.Is(err, ErrGone) {
		t.Errorf("signal to PID 1: %v, want a refusal", err)
	}
}

func TestAwaitNamesWhatItWaitedFor(t *testing.T) {
	err := Await(within(t, 30*time.Millisecond), "the moon", func() (bool, error) { return false, nil })
	if !errors.Is(err, context.DeadlineExceeded) || err.Error() != "waiting for the moon: context deadline exceeded" {
		t.Errorf("Await: %v", err)
	}
}
