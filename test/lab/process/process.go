// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process names a running process so that its number cannot be
// mistaken for a later process's: by PID and start time together.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone says that the named process no longer runs; its number may already
// belong to another one.
var ErrGone = errors.New("process is gone")

// ID names one process of this machine. Start is field 22 of
// /proc/PID/stat: clock ticks since boot.
type ID struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// Of names the process that has this number now.
func Of(pid int) (ID, error) {
	stat, err := readStat(pid)
	if err != nil {
		return ID{}, err
	}
	return ID{PID: pid, Start: stat.start}, nil
}

// Running says whether the process still exists. One that has ended but was
// not waited for does not run.
func (id ID) Running() bool {
	stat, err := id.stat()
	return err == nil && stat.state != 'Z' && stat.state != 'X'
}

// Stopped says whether the process is stopped by a signal.
func (id ID) Stopped() bool {
	stat, err := id.stat()
	return err == nil && stat.state == 'T'
}

// Signal sends a signal to exactly this process, or returns ErrGone.
func (id ID) Signal(signal unix.Signal) error {
	if id.PID <= 1 {
		return fmt.Errorf("signal %v to PID %d: not a process of the lab", signal, id.PID)
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("signal %v to PID %d: %w", signal, id.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor pins the number: compared now, it cannot be reused before the signal.
	if !id.Running() {
		return ErrGone
	}
	err = unix.PidfdSendSignal(fd, signal, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return ErrGone
	}
	return err
}

// Stop stops the process and returns once it stands still. It is idempotent.
func (id ID) Stop(ctx context.Context) error {
	if err := id.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	return Await(ctx, fmt.Sprintf("PID %d to stop", id.PID), func() (bool, error) {
		if !id.Running() {
			return false, ErrGone
		}
		return id.Stopped(), nil
	})
}

// Continue lets a stopped process run on. It is idempotent.
func (id ID) Continue() error { return id.Signal(unix.SIGCONT) }

// Kill ends the process with SIGKILL, which ends a stopped one too, and
// returns once it no longer runs. It is idempotent.
func (id ID) Kill(ctx context.Context) error {
	err := id.Signal(unix.SIGKILL)
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	return Await(ctx, fmt.Sprintf("PID %d to end", id.PID), func() (bool, error) { return !id.Running(), nil })
}

// Await asks every 10 ms until the answer is yes, an error, or ctx ends; what
// names the awaited fact in the error.
func Await(ctx context.Context, what string, reached func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := reached()
		if err != nil || ok {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

type stat struct {
	state byte
	start uint64
}

func (id ID) stat() (stat, error) {
	s, err := readStat(id.PID)
	if err != nil {
		return stat{}, err
	}
	if s.start != id.Start {
		return stat{}, ErrGone
	}
	return s, nil
}

// readStat parses /proc/PID/stat. The command name, in parentheses, may hold
// anything; the fields are counted from its last parenthesis.
func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, ErrGone
	}
	if err != nil {
		return stat{}, err
	}
	const startAfterName = 22 - 3 // field 3, the state, is the first after the name
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) <= startAfterName {
		return stat{}, fmt.Errorf("/proc/%d/stat: %d fields after the name, want more than %d", pid, len(fields), startAfterName)
	}
	start, err := strconv.ParseUint(fields[startAfterName], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: start time: %w", pid, err)
	}
	return stat{state: fields[0][0], start: start}, nil
}
