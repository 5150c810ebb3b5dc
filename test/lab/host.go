// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

// How long the steps of switching a host may take.
const (
	powerTimeout = 30 * time.Second
	askTimeout   = 5 * time.Second
)

// Host is one host of a lab.
type Host struct {
	lab   *Lab
	entry hostEntry
}

// Hosts returns all hosts in the order of their numbers.
func (l *Lab) Hosts() []*Host {
	hosts := make([]*Host, 0, len(l.state.Hosts))
	for _, entry := range l.state.Hosts {
		hosts = append(hosts, &Host{lab: l, entry: entry})
	}
	return hosts
}

// Host returns the host of that name, such as host-1.
func (l *Lab) Host(name string) (*Host, error) {
	var names []string
	for _, h := range l.Hosts() {
		if h.entry.Name == name {
			return h, nil
		}
		names = append(names, h.entry.Name)
	}
	return nil, fmt.Errorf("lab %q has no host %q; it has %s", l.state.Name, name, strings.Join(names, ", "))
}

// Name is the host's and its Node's name.
func (h *Host) Name() string { return h.entry.Name }

// Address is the host's IPv4 address on the fabric.
func (h *Host) Address() string { return hostAddress(h.entry.Number) }

// BMCAddress is the IPv4 address of its BMC.
func (h *Host) BMCAddress() string { return bmcAddress(h.entry.Number) }

// MachineID has the 32 hexadecimal digits of /etc/machine-id, which are also the BMC's GUID.
func (h *Host) MachineID() string { return h.entry.MachineID }

// NetNS is the path of the host's network namespace.
func (h *Host) NetNS() string { return h.lab.NetNS(h.entry.Name) }

// BootID is the boot ID of the boot that runs, or of the last one when the host has no power.
func (h *Host) BootID() (string, error) {
	text, err := os.ReadFile(h.path("boot-id"))
	return strings.TrimSpace(string(text)), err
}

// InitPID is the pid of the host's PID 1 as the machine sees it. A host without power has none.
func (h *Host) InitPID() (int, error) {
	id, err := h.init()
	if err != nil {
		return 0, err
	}
	if !id.Alive() {
		return 0, h.isOff()
	}
	return id.PID, nil
}

// init is the host's last PID 1.
func (h *Host) init() (process.ID, error) { return h.lab.Process(h.entry.Name) }

func (h *Host) isOff() error {
	return fmt.Errorf("%s has no power; %s switches it on", h.entry.Name, command("host power-on "+h.entry.Name, h.lab.state.Name))
}

// Powered reports whether anything of the host runs.
func (h *Host) Powered() bool {
	id, err := h.init()
	return err == nil && id.Alive()
}

// Cgroup names the cgroup of everything that runs on the host, relative to the roots of the hierarchies. It
// exists while the host has power.
func (h *Host) Cgroup() string { return h.cgroupName() }

// CgroupPaths returns the directory of that cgroup by v1 controller; the unified hierarchy has the key "".
func (h *Host) CgroupPaths() map[string]string { return h.lab.cgroups.Paths(h.cgroupName()) }

// Freeze stops everything on the host, Thaw lets it go on. Both are idempotent.
func (h *Host) Freeze() error { return h.lab.cgroups.Freeze(h.cgroupName()) }

// Thaw undoes Freeze.
func (h *Host) Thaw() error { return h.lab.cgroups.Thaw(h.cgroupName()) }

// SetLink takes the host's cable off the fabric or puts it back. PowerOn puts it back as well.
func (h *Host) SetLink(up bool) error { return h.lab.setLink(h.entry.Name, up) }

func (h *Host) cgroupName() string { return h.lab.cgroupName(h.entry.Name) }

func (h *Host) path(names ...string) string {
	return h.lab.path(append([]string{"hosts", h.entry.Name}, names...)...)
}

func (h *Host) socket() string { return h.path("init.sock") }

// PowerOff takes the host's power away as a pulled plug does: nothing on it says goodbye. It returns when
// nothing of the host runs any more. A host without power stays so.
func (h *Host) PowerOff(ctx context.Context) error {
	return h.locked(ctx, h.recordedPowerOff)
}

func (h *Host) powerOff(ctx context.Context) error {
	// The link first: the kernel must not say goodbye (RST, FIN) for processes that die.
	if err := h.SetLink(false); err != nil {
		return err
	}
	id, err := h.init()
	if err != nil {
		return err
	}
	if err := id.Signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := h.Thaw(); err != nil { // a frozen process dies when it is thawed, without running on
		return err
	}
	if err := id.Wait(ctx); err != nil {
		return fmt.Errorf("power off %s: %w", h.entry.Name, err)
	}
	return h.lab.cgroups.Remove(ctx, h.cgroupName())
}

// PowerOn boots the host with a new boot ID and returns when its PID 1 answers; the Node is Ready later, see
// WaitReady. A host that has power stays as it is.
func (h *Host) PowerOn(ctx context.Context) error {
	return h.locked(ctx, h.recordedPowerOn)
}

func (h *Host) powerOn(ctx context.Context) error {
	if h.Powered() {
		return nil
	}
	if err := h.lab.cgroups.Remove(ctx, h.cgroupName()); err != nil {
		return err
	}
	if err := h.lab.cgroups.Make(filepath.Join(h.cgroupName(), "init")); err != nil {
		return err
	}
	if err := h.lab.forgetNetwork(h.entry.Name); err != nil {
		return fmt.Errorf("power on %s: %w", h.entry.Name, err)
	}
	if err := os.WriteFile(h.path("boot-id"), []byte(newBootID()+"\n"), 0o644); err != nil {
		return err
	}
	id, err := h.lab.Spawn(ctx, Process{
		Name: h.entry.Name, NetNS: h.NetNS(), Cgroup: filepath.Join(h.cgroupName(), "init"), boots: true,
		Args: []string{h.lab.program("lab"), "host-init", "--config", h.path("init.json")},
	})
	if err != nil {
		return err
	}
	// The link after the power: the namespace's kernel answers as soon as it is up, and no machine does so while its BMC still says Off.
	if err := h.SetLink(true); err != nil {
		return err
	}
	return await.Until(ctx, h.entry.Name+" to boot", func() (bool, error) {
		if !id.Alive() {
			return false, fmt.Errorf("PID 1 of %s ended:\n%s", h.entry.Name, tail(h.lab.logPath(h.entry.Name)))
		}
		_, err := h.ask(ctx, hostinit.Request{Op: "status"})
		return err == nil, nil
	})
}

// locked lets one command at a time switch the host.
func (h *Host) locked(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	var lock *os.File
	err := await.Until(ctx, "another command that switches "+h.entry.Name, func() (bool, error) {
		var err error
		lock, err = lockFile(h.path(), unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	defer lock.Close()
	return do(ctx)
}

// KillKubelet ends the host's kubelet with SIGKILL and keeps it down; containers run on. It is idempotent.
func (h *Host) KillKubelet(ctx context.Context) error {
	return h.lab.faults().Apply(h.record(faultKubelet), func() error { return h.switchKubelet(ctx, "stop-kubelet", false) })
}

// StartKubelet starts the kubelet that KillKubelet ended. It is idempotent.
func (h *Host) StartKubelet(ctx context.Context) error {
	return h.lab.faults().Undo(h.record(faultKubelet), func() error { return h.switchKubelet(ctx, "start-kubelet", true) })
}

// ReconfigureKubelet starts the kubelet of a host that has power anew, with fields of its KubeletConfiguration that differ from the lab's; none gives it
// the lab's own again. Containers run on, and the host keeps the configuration through losses of power.
func (h *Host) ReconfigureKubelet(ctx context.Context, fields map[string]any) error {
	if !h.Powered() {
		return h.isOff()
	}
	if err := h.configureKubelet(fields); err != nil {
		return err
	}
	if err := h.switchKubelet(ctx, "stop-kubelet", false); err != nil {
		return err
	}
	return h.switchKubelet(ctx, "start-kubelet", true)
}

func (h *Host) switchKubelet(ctx context.Context, op string, running bool) error {
	if !h.Powered() {
		return h.isOff()
	}
	if _, err := h.ask(ctx, hostinit.Request{Op: op}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, powerTimeout)
	defer cancel()
	return await.Until(ctx, fmt.Sprintf("kubelet of %s (%s)", h.entry.Name, op), func() (bool, error) {
		status, err := h.ask(ctx, hostinit.Request{Op: "status"})
		return status.Services[hostinit.Kubelet].Running == running, err
	})
}

// ask speaks with the host's PID 1.
func (h *Host) ask(ctx context.Context, request hostinit.Request) (hostinit.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, err := hostinit.Ask(ctx, h.socket(), request)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w; if it hangs, %s lets it go on", err, command("host thaw "+h.entry.Name, h.lab.state.Name))
	}
	if err != nil {
		return status, fmt.Errorf("%s: %w", h.entry.Name, err)
	}
	return status, nil
}

// ServicePID returns the pid, as the machine sees it, of a service of the host: kubelet, containerd,
// kube-proxy, csi-enforcing or csi-permissive.
func (h *Host) ServicePID(ctx context.Context, service string) (int, error) {
	status, err := h.ask(ctx, hostinit.Request{Op: "status"})
	if err != nil {
		return 0, err
	}
	inner := status.Services[service].PID
	if inner == 0 {
		return 0, fmt.Errorf("%s: service %q does not run", h.entry.Name, service)
	}
	for _, pid := range h.lab.cgroups.Pids(filepath.Join(h.cgroupName(), "init")) {
		if found, err := (process.ID{PID: pid}).InNamespace(); err == nil && found == inner {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%s: service %q has just ended", h.entry.Name, service)
}

// Command prepares a command that will run on the host: in its namespaces and its cgroup, with its PATH. It
// hangs and dies with the host.
func (h *Host) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	pid, err := h.InitPID()
	if err != nil {
		return nil, err
	}
	if len(args) == 0 {
		return nil, errors.New("name a command to run on the host")
	}
	enter := []string{
		"spawn", "--cgroup", filepath.Join(h.cgroupName(), "init"), "--",
		"nsenter", fmt.Sprintf("--target=%d", pid), "--mount", "--uts", "--net", "--pid",
		"--", "/usr/bin/env", "PATH=" + h.lab.searchPath(), "HOME=/root",
	}
	return exec.CommandContext(ctx, h.lab.program("lab"), slices.Concat(enter, args)...), nil
}

// dropProxyTables removes kube-proxy's rules from the host's network namespace.
func (l *Lab) dropProxyTables(host string) error {
	// Adding first makes deleting a table that is not there no error.
	script := "add table ip kube-proxy\ndelete table ip kube-proxy\nadd table ip6 kube-proxy\ndelete table ip6 kube-proxy\n"
	cmd := exec.Command("nsenter", "--net="+l.NetNS(host), "nft", "-f", "-")
	cmd.Stdin = bytes.NewBufferString(script)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove kube-proxy's rules: %w: %s", err, output)
	}
	return nil
}
