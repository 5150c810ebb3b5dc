// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sleeper(t *testing.T) ID {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // ErrProcessDone when the test ended it
		_ = cmd.Wait()         // the exit status of a killed process is an error
	})
	id, err := Find(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestANumberThatIsAThreadsNowIsGone(t *testing.T) {
	threads := make(chan int)
	done := make(chan struct{})
	defer close(done)
	for range 2 {
		go func() {
			runtime.LockOSThread() // so that the two are on different threads, one of them not the process's first
			threads <- unix.Gettid()
			<-done
		}()
	}
	tid, other := <-threads, <-threads
	if tid == unix.Getpid() {
		tid = other
	}
	id := ID{PID: tid, Start: 1}
	if err := id.Signal(unix.SIGKILL); err != nil {
		t.Errorf("signal: %v, want a process that is gone", err)
	}
	if err := id.Wait(within(t, time.Second)); err != nil {
		t.Errorf("wait: %v, want a process that is gone", err)
	}
}

func TestStopContinueKill(t *testing.T) {
	id, ctx := sleeper(t), within(t, 5*time.Second)
	for range 2 { // idempotent
		if err := id.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if !id.Stopped() || !id.Alive() {
		t.Errorf("after Stop: stopped %v, alive %v; want both", id.Stopped(), id.Alive())
	}
	for range 2 {
		if err := id.Continue(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if id.Stopped() {
		t.Error("after Continue the process is still stopped")
	}
	if err := id.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := id.Kill(ctx); err != nil {
			t.Fatalf("kill of a stopped process: %v", err)
		}
	}
	if id.Alive() {
		t.Error("a killed process that nobody waited for counts as alive")
	}
	if err := id.Stop(ctx); !errors.Is(err, ErrGone) {
		t.Errorf("Stop of a process that is gone: %v, want ErrGone", err)
	}
}

func TestAReusedNumberIsNeverSignalled(t *testing.T) {
	id := sleeper(t)
	earlier := ID{PID: id.PID, Start: id.Start - 1}
	if err := earlier.Signal(unix.SIGKILL); err != nil {
		t.Errorf("signal to a process that is gone: %v, want nothing to happen", err)
	}
	if err := earlier.Wait(within(t, 5*time.Second)); err != nil {
		t.Errorf("wait for a process that is gone: %v", err)
	}
	if earlier.Alive() || !id.Alive() {
		t.Errorf("alive: the one with another start time %v, the actual one %v; want only the actual one", earlier.Alive(), id.Alive())
	}
}
