// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
	"github.com/holdfast-dev/holdfast/test/lab/journal"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// downTimeout bounds how long undoing may take; it takes a second.
const downTimeout = time.Minute

// Down removes the lab, see the function Down.
func (l *Lab) Down(ctx context.Context) error {
	_, err := Down(ctx, l.state.Name)
	return err
}

// Down undoes everything that the lab of that name recorded, newest first, however far its Up came, and
// removes its directory. It is idempotent; found is false when there was nothing to undo.
func Down(ctx context.Context, name string) (found bool, err error) {
	if name == "" {
		name = DefaultName
	}
	if !labName.MatchString(name) {
		return false, fmt.Errorf("lab name %q: use at most 24 lower-case letters, digits and dashes, a letter first", name)
	}
	dir := filepath.Join(Home(), name)
	lock, err := lockLab(dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	log := filepath.Join(dir, "resources.jsonl")
	if err := journal.Close(log); err != nil {
		return true, err
	}
	records, err := journal.Read(log)
	if err != nil {
		return true, err
	}
	if err := undo(ctx, records); err != nil {
		return true, err
	}
	return true, removeState(dir)
}

// lockLab keeps two commands from making or removing the same lab at once. The lock ends with the process.
func lockLab(dir string) (*os.File, error) {
	lock, err := lockFile(dir, unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another `lab up` or `lab down` works on %s; wait for it or end it", dir)
	}
	if err != nil {
		return nil, err
	}
	// Whoever had the lock before may have removed the directory, and another may have made a new one.
	held, err := lock.Stat()
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if now, err := os.Stat(dir); err != nil || !os.SameFile(held, now) {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, os.ErrNotExist), lock.Close())
	}
	return lock, nil
}

func undo(ctx context.Context, records []journal.Record) error {
	tree, err := cgroup.Detect()
	if err != nil {
		return err
	}
	boot, err := kernelBoot()
	if err != nil {
		return err
	}
	running := slices.DeleteFunc(slices.Clone(records), func(r journal.Record) bool {
		return r.Kind != journal.Process || r.KernelBoot != boot
	})
	// All get their signal first, so that they end at the same time; what is frozen ends when it is thawed.
	for _, r := range slices.Backward(running) {
		if err := r.Signal(unix.SIGKILL); err != nil {
			return fmt.Errorf("end %s: %w", r.Name, err)
		}
	}
	for _, r := range records {
		if r.Kind == journal.Cgroup {
			if err := tree.Thaw(r.Path); err != nil {
				return err
			}
		}
	}
	for _, r := range slices.Backward(records) {
		if r.Kind == journal.Process && r.KernelBoot != boot {
			continue // the machine was restarted: the process is gone and its pid may be another's
		}
		if err := undoOne(ctx, tree, r); err != nil {
			return fmt.Errorf("undo %s %s: %w", r.Kind, r.Name, err)
		}
	}
	return nil
}

func undoOne(ctx context.Context, tree cgroup.Tree, r journal.Record) error {
	switch r.Kind {
	case journal.Process:
		return r.Wait(ctx)
	case journal.NetNS:
		return netns.Remove(r.Path)
	case journal.Mount:
		return unmount(r.Path)
	case journal.Cgroup:
		if err := tree.Remove(ctx, r.Path); err != nil {
			return err
		}
		tree.RemoveEmpty(filepath.Dir(r.Path)) // stays while another lab uses it
		return nil
	case journal.Directory:
		return removeTree(r.Path)
	}
	return fmt.Errorf("resources.jsonl names the unknown kind %q; it was written by another version of the lab", r.Kind)
}

func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// removeState removes the lab's directory, the journal last: a removal that is cut short can be repeated.
func removeState(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "resources.jsonl" {
			continue
		}
		if err := removeTree(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return removeTree(dir)
}

// removeTree removes a directory unless something is mounted below it, which might be somebody's volume.
func removeTree(path string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && (fields[4] == path || strings.HasPrefix(fields[4], path+"/")) {
			return fmt.Errorf("%s is mounted; unmount it and try again", fields[4])
		}
	}
	return os.RemoveAll(path)
}
