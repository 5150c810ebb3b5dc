// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package bmc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Mode is how a BMC misbehaves. A BMC has one mode at a time.
type Mode string

const (
	// Clear is no fault, and the undo of every other mode.
	Clear Mode = "clear"
	// Dead: the process is stopped. Datagrams reach it and nothing answers;
	// they are thrown away when the fault is cleared.
	Dead Mode = "dead"
	// Slow: every chassis request is carried out and answered SlowDelay after
	// it came; what is sent to the BMC meanwhile is lost. An Off that its
	// caller gave up still takes effect.
	Slow Mode = "slow"
	// WrongPassword: the password of admin is another one.
	WrongPassword Mode = "wrong-password"
	// Ignore: Off and Reset are accepted and nothing is done. The power is read truthfully.
	Ignore Mode = "ignore"
	// LieOff: the power reads Off whatever the host does; Off and Reset are
	// accepted and nothing is done.
	LieOff Mode = "lie-off"
	// WrongIdentity: the GUID is another machine's.
	WrongIdentity Mode = "wrong-identity"
)

// Modes lists the faults and Clear.
var Modes = []Mode{Dead, Slow, WrongPassword, Ignore, LieOff, WrongIdentity, Clear}

// ParseMode reads a mode as a user writes it.
func ParseMode(s string) (Mode, error) {
	if mode := Mode(s); slices.Contains(Modes, mode) {
		return mode, nil
	}
	return "", fmt.Errorf("mode %q is none of %v", s, Modes)
}

func faultFile(dir string) string { return filepath.Join(dir, "fault") }

// ReadMode reads the mode of the BMC whose directory is dir. A BMC that never had a fault is Clear.
func ReadMode(dir string) (Mode, error) {
	raw, err := os.ReadFile(faultFile(dir))
	if errors.Is(err, os.ErrNotExist) {
		return Clear, nil
	}
	if err != nil {
		return "", err
	}
	mode, err := ParseMode(strings.TrimSpace(string(raw)))
	if err != nil {
		return "", fmt.Errorf("%s: %w", faultFile(dir), err)
	}
	return mode, nil
}

// writeMode replaces the fault file at once: a reader sees the old mode or the new one.
func writeMode(dir string, mode Mode) error {
	fresh := faultFile(dir) + ".new"
	if err := os.WriteFile(fresh, []byte(mode+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, faultFile(dir))
}
