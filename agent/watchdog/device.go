// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package watchdog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Hardware says which device to use. All but Sys and CPU must be given.
type Hardware struct {
	// Path is /dev/watchdogN.
	Path string
	// Identities are those that the device may have, as /sys/class/watchdog/watchdogN/identity gives them: somebody has seen these reset a host.
	Identities []string
	// Timeout is what it is set to, in whole seconds.
	Timeout time.Duration
	// Sys and CPU are where the kernel tells of watchdogs and of processors; empty is where Linux has them.
	Sys, CPU string

	// open is the kernel's, or a test's.
	open func(path string) (handle, error)
}

// handle is what the kernel does with an open watchdog. Opening it has begun to count.
type handle interface {
	// support has the options and the identity of the driver.
	support() (options uint32, identity string, err error)
	// set asks for a timeout in seconds, and returns the one that the driver took.
	set(seconds int) (int, error)
	feed() error
	// close ends it: with the letter that stops it, or without.
	close(stop bool) error
}

const (
	sysPath = "/sys/class/watchdog"
	cpuPath = "/proc/cpuinfo"
	// needs is what a driver must be able to do. One without WDIOF_MAGICCLOSE is stopped by the kernel whenever its descriptor is closed, as that of a process that was killed.
	needs = unix.WDIOF_SETTIMEOUT | unix.WDIOF_KEEPALIVEPING | unix.WDIOF_MAGICCLOSE
	// least and most bound the timeout: a feed is due four times in it, and no host should be waited for longer.
	least = 4 * time.Second
	most  = 10 * time.Minute
)

// devicePath: the number finds what the kernel says of it. /dev/watchdog alone is an old name for one of them.
var devicePath = regexp.MustCompile(`\A/dev/(watchdog[0-9]+)\z`)

// virtual are parts of identities, in small letters, of what is no hardware, or that of a machine that is none itself: they stop counting when it is paused. No list of
// identities makes them allowed.
var virtual = []string{"software", "softdog", "virtual", "virtio", "qemu", "i6300esb", "ib700", "kvm", "xen", "hyper-v", "hyperv", "vmware", "vbox", "powervm", "pseries", "diag288", "z/vm"}

// Check says what speaks against the settings, before anything is opened.
func (h Hardware) Check() error {
	switch {
	case !devicePath.MatchString(h.Path):
		return fmt.Errorf("watchdog device %q: give /dev/watchdogN, with its number", h.Path)
	case len(h.Identities) == 0:
		return errors.New("watchdog identities: none is allowed; give those of hardware that you have seen reset a host")
	case h.Timeout < least || h.Timeout > most || h.Timeout%time.Second != 0:
		return fmt.Errorf("watchdog timeout %s: give whole seconds from %s to %s", h.Timeout, least, most)
	}
	for _, identity := range h.Identities {
		if part := isVirtual(identity); part != "" {
			return fmt.Errorf("watchdog identity %q: what has %q in its name is no hardware of its own, and is never fed", identity, part)
		}
	}
	return nil
}

func isVirtual(identity string) string {
	low := strings.ToLower(identity)
	if i := slices.IndexFunc(virtual, func(part string) bool { return strings.Contains(low, part) }); i >= 0 {
		return virtual[i]
	}
	return ""
}

// Open begins to count. What is not the allowed hardware, or in a virtual machine, is not opened: opening starts it.
func (h Hardware) Open() (Device, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	if h.open == nil {
		h.open = openKernel
	}
	if err := errors.Join(h.bare(), h.known()); err != nil {
		return nil, err
	}
	kernel, err := h.open(h.Path)
	if err != nil {
		return nil, fmt.Errorf("open the watchdog: %w; nothing else may use it, systemd's RuntimeWatchdogSec among them", err)
	}
	timeout, err := h.begin(kernel)
	if err != nil {
		// It counts already: it must be stopped, or the host would be reset for nothing.
		return nil, errors.Join(fmt.Errorf("%s: %w", h.Path, err), kernel.close(true))
	}
	return &counting{handle: kernel, timeout: timeout}, nil
}

// bare refuses virtual machines: one that is paused does not count, and writes again when it goes on.
func (h Hardware) bare() error {
	path := h.CPU
	if path == "" {
		path = cpuPath
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("is this a virtual machine? %w", err)
	}
	said := false
	for line := range bytes.Lines(text) {
		name, flags, _ := strings.Cut(string(line), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		if said = true; slices.Contains(strings.Fields(flags), "hypervisor") {
			return fmt.Errorf("%s: the processor says that this is a virtual machine, whose watchdog stops when it is paused", path)
		}
	}
	if !said {
		return fmt.Errorf("%s: this processor does not say whether this is a virtual machine, as those of x86 do", path)
	}
	return nil
}

// known refuses a device that the kernel does not tell of, or under another identity.
func (h Hardware) known() error {
	root := h.Sys
	if root == "" {
		root = sysPath
	}
	path := filepath.Join(root, devicePath.FindStringSubmatch(h.Path)[1], "identity")
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("whose watchdog is %s? %w", h.Path, err)
	}
	return h.allows(strings.TrimSpace(string(text)))
}

func (h Hardware) allows(identity string) error {
	if part := isVirtual(identity); part != "" {
		return fmt.Errorf("the watchdog is %q: what has %q in its name is no hardware of its own", identity, part)
	}
	if !slices.Contains(h.Identities, identity) {
		return fmt.Errorf("the watchdog is %q, and allowed are %s; add it once you have seen it reset a host", identity, strings.Join(quoted(h.Identities), ", "))
	}
	return nil
}

func quoted(words []string) (out []string) {
	for _, w := range words {
		out = append(out, strconv.Quote(w))
	}
	return out
}

// begin asks the driver itself, and sets the timeout.
func (h Hardware) begin(kernel handle) (time.Duration, error) {
	options, identity, err := kernel.support()
	if err != nil {
		return 0, fmt.Errorf("what can it do? %w", err)
	}
	if err := h.allows(identity); err != nil {
		return 0, err
	}
	switch {
	case options&needs != needs:
		return 0, fmt.Errorf("its options are %#x: its timeout cannot be set, it cannot be fed, or it would stop with its agent", options)
	case options&unix.WDIOF_ALARMONLY != 0:
		return 0, errors.New("it raises an alarm only, and resets nothing")
	}
	wanted := int(h.Timeout / time.Second)
	got, err := kernel.set(wanted)
	switch {
	case err != nil:
		return 0, fmt.Errorf("set its timeout to %d s: %w", wanted, err)
	case got < int(least/time.Second) || got > wanted:
		return 0, fmt.Errorf("it takes %d s where %d s were set: set what it can", got, wanted)
	}
	return time.Duration(got) * time.Second, kernel.feed()
}

// counting is a device that counts.
type counting struct {
	handle
	timeout time.Duration
}

func (c *counting) Feed() error             { return c.feed() }
func (c *counting) Timeout() time.Duration  { return c.timeout }
func (c *counting) Close(disarm bool) error { return c.close(disarm) }

// kernelHandle is the kernel's watchdog API (Documentation/watchdog/watchdog-api.rst).
type kernelHandle struct{ file *os.File }

func openKernel(path string) (handle, error) {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return kernelHandle{file}, nil
}

func (k kernelHandle) fd() int { return int(k.file.Fd()) } //nolint:gosec // descriptors are small

func (k kernelHandle) support() (options uint32, identity string, err error) {
	found, err := unix.IoctlGetWatchdogInfo(k.fd())
	if err != nil {
		return 0, "", err
	}
	return found.Options, unix.ByteSliceToString(found.Identity[:]), nil
}

func (k kernelHandle) set(seconds int) (int, error) {
	if err := unix.IoctlSetPointerInt(k.fd(), unix.WDIOC_SETTIMEOUT, seconds); err != nil {
		return 0, err
	}
	return unix.IoctlGetInt(k.fd(), unix.WDIOC_GETTIMEOUT)
}

func (k kernelHandle) feed() error { return unix.IoctlWatchdogKeepalive(k.fd()) }

func (k kernelHandle) close(stop bool) error {
	var err error
	if stop {
		_, err = k.file.WriteString("V") // what drivers with WDIOF_MAGICCLOSE take for the wish to stop
	}
	return errors.Join(err, k.file.Close())
}
