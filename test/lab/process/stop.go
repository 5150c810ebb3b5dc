// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/await"
)

// ErrGone says that the process no longer runs; its number may already belong to another one.
var ErrGone = errors.New("process is gone")

// Stopped reports whether the process is stopped by a signal.
func (id ID) Stopped() bool {
	found, state, err := readState(fmt.Sprintf("/proc/%d/stat", id.PID))
	return err == nil && found.Start == id.Start && state == 'T'
}

// Stop stops the process with SIGSTOP and returns once it stands still. It is idempotent. A process that
// is gone cannot be stopped: ErrGone.
func (id ID) Stop(ctx context.Context) error {
	if err := id.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	return await.Until(ctx, fmt.Sprintf("pid %d to stop", id.PID), func() (bool, error) {
		if !id.Alive() {
			return false, ErrGone
		}
		return id.Stopped(), nil
	})
}

// Continue lets a stopped process run on and returns once it does. It is idempotent.
func (id ID) Continue(ctx context.Context) error {
	if err := id.Signal(unix.SIGCONT); err != nil {
		return err
	}
	return await.Until(ctx, fmt.Sprintf("pid %d to continue", id.PID), func() (bool, error) {
		if !id.Alive() {
			return false, ErrGone
		}
		return !id.Stopped(), nil
	})
}

// Kill ends the process with SIGKILL, which ends a stopped one too, and returns once it no longer runs. A
// process that is gone is no error.
func (id ID) Kill(ctx context.Context) error {
	if err := id.Signal(unix.SIGKILL); err != nil {
		return err
	}
	return await.Until(ctx, fmt.Sprintf("pid %d to end", id.PID), func() (bool, error) { return !id.Alive(), nil })
}
