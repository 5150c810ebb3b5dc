// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/holdfast-dev/holdfast/test/lab/cgroup"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
)

// requirePrograms are the programs of the machine that the lab runs, with their Debian packages.
var requirePrograms = []struct{ program, debian string }{
	{"nsenter", "util-linux"},
	{"mount", "mount"},
	{"nft", "nftables"},
	{"ipmi_sim", "openipmi"},
}

// maxSocketPath is what a unix socket's name may have, less what the lab appends to its directory.
const maxSocketPath = 107 - len("/hosts/host-50/init.sock")

// preflight refuses, with the remedy, where a lab cannot run.
func preflight(o Options) error {
	var missing []string
	for _, need := range requirePrograms {
		if _, err := exec.LookPath(need.program); err != nil {
			missing = append(missing, need.debian)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing Debian packages: %s; `make deps` installs them (hack/debian-packages)", strings.Join(missing, ", "))
	}
	if err := kernelHas(); err != nil {
		return err
	}
	if _, err := os.Stat("/etc/machine-id"); err != nil {
		return errors.New("/etc/machine-id does not exist, so hosts cannot replace it; `systemd-machine-id-setup` or `touch /etc/machine-id` makes it")
	}
	return placed(filepath.Join(Home(), o.Name))
}

func kernelHas() error {
	for _, need := range []struct{ path, what string }{
		{"/proc/self/ns/net", "network namespaces (CONFIG_NET_NS)"},
		{"/proc/self/ns/pid", "PID namespaces (CONFIG_PID_NS)"},
		{"/dev/fuse", "FUSE (CONFIG_FUSE_FS; `modprobe fuse`)"},
	} {
		if _, err := os.Stat(need.path); err != nil {
			return fmt.Errorf("this kernel lacks %s", need.what)
		}
	}
	tree, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if missing := tree.Missing("cpu", "cpuset", "memory", "pids", "freezer"); len(missing) > 0 {
		return fmt.Errorf("this machine offers no cgroup controller %s; mount them below /sys/fs/cgroup", strings.Join(missing, ", "))
	}
	return nil
}

// placed checks that hosts will see their lab's directory, and that its sockets can have names.
func placed(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("HOLDFAST_LAB_HOME %q: use an absolute path", Home())
	}
	for _, hidden := range hostinit.Hidden {
		if strings.HasPrefix(dir, hidden+"/") {
			return fmt.Errorf("HOLDFAST_LAB_HOME %q: hosts have a %s of their own; use a directory elsewhere", Home(), hidden)
		}
	}
	if len(dir) > maxSocketPath {
		return fmt.Errorf("HOLDFAST_LAB_HOME %q: the path is too long for sockets; use one of at most %d characters with the lab's name", Home(), maxSocketPath)
	}
	return nil
}

// maxInotify is what hosts together need: every kubelet, containerd and API server watches files, and the
// kernel counts them per user of the machine.
const maxInotify = 8192

// raiseInotify raises the kernel's limit on file watchers. It is the one setting of the machine that a lab
// changes and leaves.
func raiseInotify() (raised bool, err error) {
	const setting = "/proc/sys/fs/inotify/max_user_instances"
	text, err := os.ReadFile(setting)
	if err != nil {
		return false, err
	}
	var now int
	if _, err := fmt.Sscan(string(text), &now); err != nil {
		return false, fmt.Errorf("%s: %w", setting, err)
	}
	if now >= maxInotify {
		return false, nil
	}
	return true, os.WriteFile(setting, []byte(fmt.Sprint(maxInotify)), 0)
}
