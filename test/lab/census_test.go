// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
)

// census is everything on the machine that belongs to one lab.
type census struct {
	directory  []string
	namespaces []string
	mounts     []string
	cgroups    []string
	processes  []string
}

func (c census) empty() bool {
	return len(c.directory)+len(c.namespaces)+len(c.mounts)+len(c.cgroups)+len(c.processes) == 0
}

// counter looks for what belongs to a lab by what the kernel shows, not by what the lab recorded.
type counter struct {
	name string
	// networks are the inodes of the lab's network namespaces; they are found as long as anything holds them.
	networks map[uint64]bool
}

// meet notes the lab's network namespaces; call it while the lab has them.
func (c *counter) meet() {
	paths, _ := filepath.Glob("/run/netns/" + c.name + "-*")
	for _, path := range paths {
		var stat unix.Stat_t
		if unix.Stat(path, &stat) == nil {
			c.networks[stat.Ino] = true
		}
	}
}

func newCounter(name string) *counter { return &counter{name: name, networks: map[uint64]bool{}} }

func (c *counter) count(t *testing.T) census {
	t.Helper()
	var found census
	dir := filepath.Join(Home(), c.name)
	if _, err := os.Stat(dir); err == nil {
		found.directory = []string{dir}
	}
	found.namespaces, _ = filepath.Glob("/run/netns/" + c.name + "-*")
	tree, err := cgroup.Detect()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range tree.Paths("holdfast-lab/" + c.name) {
		if _, err := os.Stat(path); err == nil {
			found.cgroups = append(found.cgroups, path)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		if why := c.owns(process, dir); why != "" {
			found.processes = append(found.processes, process+": "+why)
		}
		found.mounts = append(found.mounts, c.mountsOf(process, dir)...)
	}
	slices.Sort(found.mounts)
	found.mounts = slices.Compact(found.mounts)
	return found
}

// owns says by what a process belongs to the lab. This test's own process does not.
func (c *counter) owns(process, dir string) string {
	if process == fmt.Sprintf("/proc/%d", os.Getpid()) {
		return ""
	}
	stat, err := os.ReadFile(process + "/stat")
	if err != nil || strings.Contains(string(stat), ") Z ") {
		return ""
	}
	groups, _ := os.ReadFile(process + "/cgroup")
	if strings.Contains(string(groups), "/holdfast-lab/"+c.name+"/") {
		return "cgroup"
	}
	arguments, _ := os.ReadFile(process + "/cmdline")
	if strings.Contains(string(arguments), dir+"/") {
		return strings.ReplaceAll(string(arguments), "\x00", " ")
	}
	var ns unix.Stat_t
	if unix.Stat(process+"/ns/net", &ns) == nil && c.networks[ns.Ino] {
		return "network namespace"
	}
	return ""
}

// mountsOf finds the lab's mounts in the mount namespace of any process: also in another lab's hosts.
func (c *counter) mountsOf(process, dir string) []string {
	text, _ := os.ReadFile(process + "/mountinfo")
	var found []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		var inode uint64
		_, scanErr := fmt.Sscanf(fields[3], "net:[%d]", &inode)
		if (scanErr == nil && c.networks[inode]) || strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[3]+" on "+fields[4])
		}
	}
	return found
}

// nothingLeft fails the test unless everything of the lab goes away; the kernel ends namespaces a little
// after their last process.
func (c *counter) nothingLeft(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var last census
	err := await.Until(ctx, "nothing to be left of lab "+c.name, func() (bool, error) {
		last = c.count(t)
		return last.empty(), nil
	})
	if err != nil {
		t.Fatalf("%v; left: %+v", err, last)
	}
}
