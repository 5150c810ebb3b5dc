// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostinit

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Hidden lists the directories of the machine that a host replaces by its own. What a host needs of the
// machine (the lab's state, the component cache) must not be below them.
var Hidden = []string{"/run", "/var/lib", "/var/log"}

// kernelSettings are settings of the one kernel that a kubelet wants to change. The host sees the values that
// its kubelet wants, in files of its own; the machine keeps what it has.
var kernelSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// mountAll turns the copy of the machine's mounts, which a new mount namespace starts with, into the host's.
func mountAll(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, dir := range []string{"/var/lib", "/var/log"} {
		if err := bind(filepath.Join(c.Disk, dir), dir); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := mountIdentity(c); err != nil {
		return err
	}
	if err := mountKernelSettings(); err != nil {
		return err
	}
	// Volumes have to propagate from the host into containers.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts inside the host: %w", err)
	}
	return nil
}

func mountIdentity(c Config) error {
	if err := bind(c.MachineIDFile, "/etc/machine-id"); err != nil {
		return err
	}
	// Where the firmware names the machine, the kubelet prefers that over /etc/machine-id.
	const firmware = "/sys/class/dmi/id/product_uuid"
	if _, err := os.Stat(firmware); err == nil {
		if err := bind(c.MachineIDFile, firmware); err != nil {
			return err
		}
	}
	if err := bind(c.BootIDFile, "/proc/sys/kernel/random/boot_id"); err != nil {
		return err
	}
	return unix.Sethostname([]byte(c.Host))
}

func mountKernelSettings() error {
	const dir = "/run/lab-kernel-settings"
	for name, value := range kernelSettings {
		setting := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(setting); err != nil {
			continue // this kernel was built without it
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(file, setting); err != nil {
			return err
		}
	}
	return nil
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s to %s: %w", source, target, err)
	}
	return nil
}
