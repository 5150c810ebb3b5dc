// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"context"
)

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	for name, c := range map[string]struct {
		line string
		want string
	}{
		"v1": {
			"35 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct",
			"{/sys/fs/cgroup/cpu,cpuacct [cpu cpuacct] false} true",
		},
		"v1 named": {
			"35 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd",
			"{/sys/fs/cgroup/systemd [name=systemd] false} true",
		},
		"v2":         {"35 30 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", "{/sys/fs/cgroup [] true} true"},
		"elsewhere":  {"35 30 0:30 / /mnt/cgroup rw - cgroup2 cgroup2 rw", "{ [] false} false"},
		"other":      {"35 30 0:30 / /proc rw - proc proc rw", "{ [] false} false"},
		"incomplete": {"35 30", "{ [] false} false"},
	} {
		t.Run(name, func(t *testing.T) {
			h, found := parseMount(c.line)
			if got := fmt.Sprint(h, found); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestFrozenProcessesDieWithTheirCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test makes cgroups: run it as root")
	}
	tree, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	top := fmt.Sprintf("holdfast-cgroup-test-%d", os.Getpid())
	name := top + "/host/init"
	t.Cleanup(func() {
		if err := tree.Remove(context.Background(), top); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := tree.Make(name); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, path := range tree.Paths(name) {
		if err := os.WriteFile(path+"/cgroup.procs", fmt.Append(nil, cmd.Process.Pid), 0); err != nil {
			t.Fatal(err)
		}
	}
	if pids := tree.Pids(top); !slices.Contains(pids, cmd.Process.Pid) {
		t.Errorf("processes %v, want %d among them", pids, cmd.Process.Pid)
	}
	for _, frozen := range []string{top, top + "/host"} {
		if err := tree.Freeze(frozen); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Remove(ctx, top); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	for _, path := range tree.Paths(top) {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	if err := tree.Remove(ctx, top); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}
