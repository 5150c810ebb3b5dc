// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process names processes so that a reused pid is never mistaken for the one that was meant.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ID names one process of one machine boot.
type ID struct {
	// PID as the machine's first PID namespace sees it.
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat: clock ticks between the machine's boot and the process's start.
	// It survives exec.
	Start uint64 `json:"start"`
}

// Self returns the calling process. It reads /proc, so a process that was put into a new PID namespace but
// still has its parent's /proc learns the pid that the parent sees.
func Self() (ID, error) { return read("/proc/self/stat") }

// Find returns the process that has this pid now.
func Find(pid int) (ID, error) { return read(fmt.Sprintf("/proc/%d/stat", pid)) }

func read(path string) (ID, error) {
	id, _, err := readState(path)
	return id, err
}

// readState also returns the one-letter state (R, S, D, T, Z, …).
func readState(path string) (ID, byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return ID{}, 0, err
	}
	return parseStat(string(text))
}

// parseStat reads "pid (command) state ppid …"; the command may hold spaces and parentheses.
func parseStat(text string) (ID, byte, error) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return ID{}, 0, fmt.Errorf("stat line %q has no command in parentheses", text)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	if err != nil {
		return ID{}, 0, fmt.Errorf("stat line %q: pid: %w", text, err)
	}
	fields := strings.Fields(text[end+1:]) // fields[0] is field 3
	if len(fields) < 20 {
		return ID{}, 0, fmt.Errorf("stat line %q has too few fields", text)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return ID{}, 0, fmt.Errorf("stat line %q: start time: %w", text, err)
	}
	return ID{PID: pid, Start: start}, fields[0][0], nil
}

// Alive reports whether the process still runs. A zombie does not: all its threads have ended, and it holds
// neither files nor namespaces.
func (id ID) Alive() bool {
	if id.PID <= 0 {
		return false
	}
	found, state, err := readState(fmt.Sprintf("/proc/%d/stat", id.PID))
	return err == nil && found.Start == id.Start && state != 'Z' && state != 'X'
}

// Signal sends a signal to exactly this process. A process that is gone is no error.
func (id ID) Signal(signal unix.Signal) error {
	fd, err := id.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %v to pid %d: %w", signal, id.PID, err)
	}
	return nil
}

// open returns a pidfd of the process, or -1 when it is gone.
func (id ID) open() (int, error) {
	if id.PID <= 0 {
		return -1, nil
	}
	fd, err := unix.PidfdOpen(id.PID, 0)
	// The number may by now be that of a thread of somebody else, which is no process: EINVAL, or ENOENT since Linux 6.15.
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd of pid %d: %w", id.PID, err)
	}
	// The descriptor pins whoever has the pid now; only after that does the start time prove who it is.
	if !id.Alive() {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// Wait returns when the process has ended. PID 1 of a PID namespace ends last of everything in it.
func (id ID) Wait(ctx context.Context) error {
	fd, err := id.open()
	if fd < 0 {
		return err
	}
	defer unix.Close(fd)
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("pid %d has not ended: %w", id.PID, err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int((200 * time.Millisecond).Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for pid %d: %w", id.PID, err)
		}
		if n > 0 || !id.Alive() {
			return nil
		}
	}
}

// InNamespace returns the process's pid in its own, innermost PID namespace.
func (id ID) InNamespace() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", id.PID))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "NSpid:"); found {
			fields := strings.Fields(rest)
			return strconv.Atoi(fields[len(fields)-1])
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no NSpid line", id.PID)
}
