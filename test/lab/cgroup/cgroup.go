// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cgroup makes, joins, thaws and removes cgroups on machines with cgroup v1, v2, or both.
//
// A cgroup is named by one path relative to the hierarchies' roots and exists in every hierarchy.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted cgroup tree.
type Hierarchy struct {
	Root string
	// Controllers of a v1 hierarchy, such as "memory" or "name=systemd".
	Controllers []string
	Unified     bool
}

// Tree is all cgroup hierarchies of the machine.
type Tree struct{ Hierarchies []Hierarchy }

// Detect reads which hierarchies are mounted.
func Detect() (Tree, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Tree{}, err
	}
	defer file.Close()
	var tree Tree
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if h, found := parseMount(scanner.Text()); found {
			tree.Hierarchies = append(tree.Hierarchies, h)
		}
	}
	if len(tree.Hierarchies) == 0 {
		return Tree{}, errors.New("no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return tree, nil
}

// parseMount reads a line of mountinfo: "… root mountpoint options [tags] - type source options".
func parseMount(line string) (Hierarchy, bool) {
	before, after, found := strings.Cut(line, " - ")
	if !found {
		return Hierarchy{}, false
	}
	left, right := strings.Fields(before), strings.Fields(after)
	if len(left) < 6 || len(right) < 3 || !strings.HasPrefix(left[4], "/sys/fs/cgroup") {
		return Hierarchy{}, false
	}
	switch right[0] {
	case "cgroup2":
		return Hierarchy{Root: left[4], Unified: true}, true
	case "cgroup":
		h := Hierarchy{Root: left[4]}
		for option := range strings.SplitSeq(right[2], ",") {
			if option != "rw" && option != "ro" && !strings.HasPrefix(option, "release_agent=") && option != "xattr" {
				h.Controllers = append(h.Controllers, option)
			}
		}
		return h, true
	}
	return Hierarchy{}, false
}

// V2 reports whether the machine has cgroup v2 only.
func (t Tree) V2() bool { return len(t.Hierarchies) == 1 && t.Hierarchies[0].Unified }

// Missing returns those controllers that no hierarchy offers.
func (t Tree) Missing(controllers ...string) []string {
	var offered []string
	for _, h := range t.Hierarchies {
		offered = append(offered, h.Controllers...)
		if h.Unified {
			text, _ := os.ReadFile(filepath.Join(h.Root, "cgroup.controllers"))
			offered = append(offered, strings.Fields(string(text))...)
			offered = append(offered, "freezer") // v2 has it in its core
		}
	}
	return slices.DeleteFunc(slices.Clone(controllers), func(c string) bool { return slices.Contains(offered, c) })
}

// Paths returns the directory of the cgroup by controller; the unified hierarchy has the key "".
func (t Tree) Paths(name string) map[string]string {
	paths := map[string]string{}
	for _, h := range t.Hierarchies {
		if h.Unified {
			paths[""] = filepath.Join(h.Root, name)
		}
		for _, c := range h.Controllers {
			paths[c] = filepath.Join(h.Root, name)
		}
	}
	return paths
}

// Make makes the cgroup with its parents in every hierarchy, ready to take processes or children.
func (t Tree) Make(name string) error {
	for _, h := range t.Hierarchies {
		path := h.Root
		for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
			if err := h.delegate(path); err != nil {
				return err
			}
			parent := path
			path = filepath.Join(path, part)
			if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if err := h.inherit(parent, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate lets children of a v2 cgroup use its controllers.
func (h Hierarchy) delegate(path string) error {
	if !h.Unified {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(path, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	for _, controller := range strings.Fields(string(text)) {
		// One by one: a controller that cannot be delegated must not keep the others away.
		_ = os.WriteFile(filepath.Join(path, "cgroup.subtree_control"), []byte("+"+controller), 0)
	}
	return nil
}

// inherit fills the v1 cpuset of a new cgroup; no process can join an empty one.
func (h Hierarchy) inherit(parent, path string) error {
	if !slices.Contains(h.Controllers, "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(path, file), value, 0); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	return nil
}

// Join moves the calling process into the cgroup.
func (t Tree) Join(name string) error {
	for _, h := range t.Hierarchies {
		if err := os.WriteFile(filepath.Join(h.Root, name, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Pids returns the processes in the cgroup and below it.
func (t Tree) Pids(name string) []int {
	seen := map[int]bool{}
	for _, h := range t.Hierarchies {
		_ = filepath.WalkDir(filepath.Join(h.Root, name), func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil //nolint:nilerr // a cgroup that vanished meanwhile holds nothing
			}
			text, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for field := range strings.FieldsSeq(string(text)) {
				if pid, err := strconv.Atoi(field); err == nil {
					seen[pid] = true
				}
			}
			return nil
		})
	}
	pids := make([]int, 0, len(seen))
	for pid := range seen {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// Freeze stops every process in the cgroup and below it; Thaw lets them go on.
func (t Tree) Freeze(name string) error {
	for _, h := range t.Hierarchies {
		if file, freeze, _ := t.freezer(h); file != "" {
			if err := writeExisting(filepath.Join(h.Root, name, file), freeze); err != nil {
				return err
			}
		}
	}
	return nil
}

// Thaw undoes Freeze of the cgroup and of every one below it. A frozen process dies of SIGKILL only when it is
// thawed (v1). A cgroup that does not exist is no error.
func (t Tree) Thaw(name string) error {
	for _, h := range t.Hierarchies {
		file, _, thaw := t.freezer(h)
		if file == "" {
			continue
		}
		err := filepath.WalkDir(filepath.Join(h.Root, name), func(path string, entry os.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return nil //nolint:nilerr // a cgroup that vanished meanwhile is not frozen
			}
			return writeExisting(filepath.Join(path, file), thaw)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// freezer returns the file of a hierarchy that freezes, and what to write to it. Only one hierarchy of a
// machine has it.
func (t Tree) freezer(h Hierarchy) (file, freeze, thaw string) {
	switch {
	case slices.Contains(h.Controllers, "freezer"):
		return "freezer.state", "FROZEN", "THAWED"
	case h.Unified && t.V2():
		return "cgroup.freeze", "1", "0"
	}
	return "", "", ""
}

func writeExisting(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cgroup: %w", err)
	}
	return nil
}

// Remove kills what is in the cgroup and below it, and removes it. A cgroup that is gone is no error.
func (t Tree) Remove(ctx context.Context, name string) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, pid := range t.Pids(name) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if err := t.Thaw(name); err != nil {
			return err
		}
		err := t.removeEmpty(name)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s cannot be removed: %w (processes %v)", name, err, t.Pids(name))
		case <-ticker.C:
		}
	}
}

// RemoveEmpty removes one cgroup where it holds nothing, and leaves it where it does.
func (t Tree) RemoveEmpty(name string) {
	for _, h := range t.Hierarchies {
		_ = unix.Rmdir(filepath.Join(h.Root, name)) // EBUSY when it is in use, ENOENT when it is gone
	}
}

func (t Tree) removeEmpty(name string) error {
	var failed error
	for _, h := range t.Hierarchies {
		var found []string
		_ = filepath.WalkDir(filepath.Join(h.Root, name), func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				found = append(found, path)
			}
			return nil //nolint:nilerr // gone is what is wanted
		})
		for _, path := range slices.Backward(found) {
			if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
				failed = fmt.Errorf("remove %s: %w", path, err)
			}
		}
	}
	return failed
}
