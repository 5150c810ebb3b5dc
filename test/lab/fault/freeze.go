// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-dev/holdfast/test/lab/await"
)

// Freezer halts everything that runs in a cgroup and below it, as a hang of
// the host's userspace does: its kernel goes on and still accepts connections.
type Freezer struct {
	directory string
	version   freezerVersion
}

// freezerVersion is where the two versions of cgroups differ.
type freezerVersion struct {
	control      string // file that freezes and thaws
	freeze, thaw string // what is written to it
	state        string // file that says whether all is frozen
	frozen       string // the line of it that says so
	tasks        string // file that lists the threads
}

var (
	freezerV1 = freezerVersion{control: "freezer.state", freeze: "FROZEN", thaw: "THAWED",
		state: "freezer.state", frozen: "FROZEN", tasks: "tasks"}
	freezerV2 = freezerVersion{control: "cgroup.freeze", freeze: "1", thaw: "0",
		state: "cgroup.events", frozen: "frozen 1", tasks: "cgroup.threads"}
)

// NewFreezer takes the directories of one cgroup by controller, the unified
// hierarchy under the key "". It uses the v1 freezer where there is one.
func NewFreezer(directories map[string]string) (Freezer, error) {
	if directory, ok := directories["freezer"]; ok {
		return Freezer{directory: directory, version: freezerV1}, nil
	}
	if directory, ok := directories[""]; ok {
		return Freezer{directory: directory, version: freezerV2}, nil
	}
	return Freezer{}, errors.New("no cgroup hierarchy can freeze: mount the v1 freezer controller, or cgroup2")
}

// Freeze returns once nothing in the cgroup runs. It is idempotent. Undo: Thaw.
//
// A thread that waits in the kernel for a process which froze first, as a
// write to FUSE does, cannot be frozen, and the kernel then never calls the
// cgroup frozen. It does not run either, and freezes when its wait ends: it
// counts as halted.
func (f Freezer) Freeze(ctx context.Context) error {
	if err := f.write(f.version.freeze); err != nil {
		return err
	}
	halted := 0
	return await.Until(ctx, "everything in "+f.directory+" to freeze", func() (bool, error) {
		if frozen, err := f.Frozen(); err != nil || frozen {
			return frozen, err
		}
		all, err := f.allHalted()
		if !all {
			halted = 0
			return false, err
		}
		halted++
		return halted >= 5, nil // a thread may be on its way from one wait to the next
	})
}

// Thaw lets everything run on and returns once the kernel says so. It is
// idempotent; a cgroup that is gone needs no thawing.
func (f Freezer) Thaw(ctx context.Context) error {
	err := f.write(f.version.thaw)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return await.Until(ctx, f.directory+" to thaw", func() (bool, error) {
		frozen, err := f.Frozen()
		return !frozen, err
	})
}

// Frozen says whether the kernel calls the cgroup frozen.
func (f Freezer) Frozen() (bool, error) {
	text, err := os.ReadFile(filepath.Join(f.directory, f.version.state))
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == f.version.frozen {
			return true, nil
		}
	}
	return false, nil
}

func (f Freezer) write(value string) error {
	err := os.WriteFile(filepath.Join(f.directory, f.version.control), []byte(value), 0)
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// allHalted says whether no thread in the cgroup and below it is running or
// able to run.
func (f Freezer) allHalted() (bool, error) {
	all := true
	err := filepath.WalkDir(f.directory, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || entry.Name() != f.version.tasks {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for tid := range strings.FieldsSeq(string(text)) {
			if !threadHalted(tid) {
				all = false
				return fs.SkipAll
			}
		}
		return nil
	})
	return all, err
}

// threadHalted: the thread waits uninterruptibly in the kernel, which is also
// how one in the v1 freezer is seen; or it sleeps in the v2 freezer, which is
// part of the delivery of signals; or a signal stopped it.
func threadHalted(tid string) bool {
	text, err := os.ReadFile(filepath.Join("/proc", tid, "stat"))
	if err != nil || len(text) == 0 {
		return true // it has ended
	}
	_, after, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
	switch after[:1] {
	case "D", "T", "Z":
		return true
	case "S":
		where, err := os.ReadFile(filepath.Join("/proc", tid, "wchan"))
		return err == nil && (string(where) == "get_signal" || string(where) == "do_freezer_trap")
	}
	return false
}
