// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/utils/clock"
)

const (
	// MountsPath has the mounts of the host's first process, and so those of its kubelet: https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html.
	MountsPath = "/proc/1/mountinfo"
	// SysPath has the counters of block devices: https://docs.kernel.org/block/stat.html.
	SysPath = "/sys"

	StoragePeriod = 5 * time.Second
	// StuckSpan is how long a device must have had requests under way, whenever it was looked at, and completed none, to count as dead. A slow disk completes some in that time.
	StuckSpan = 10 * time.Second
)

// storage looks at the block devices under the volumes of pods. Nothing is opened, read or written there: the kernel counts what they complete.
type storage struct {
	mounts, sys string
	clock       clock.PassiveClock
	// stands is how far each device is.
	stands map[string]standing
}

// standing is how many requests a device had completed when it was first seen with so many, whether some were under way, and when that was.
type standing struct {
	completed uint64
	busy      bool
	since     time.Time
}

// ask: refused where one device at least is stuck, answered where some can be read and none is, and unclear where nothing can be said.
func (s *storage) ask(context.Context) reply {
	found, err := devices(s.mounts)
	if err != nil {
		return unclear
	}
	now, next, stuck := s.clock.Now(), map[string]standing{}, false
	for _, device := range found {
		completed, underWay, err := counters(filepath.Join(s.sys, device, "stat"))
		if err != nil {
			continue
		}
		at := s.stands[device]
		if underWay == 0 || !at.busy || completed != at.completed {
			at = standing{completed, underWay > 0, now}
		}
		next[device] = at
		stuck = stuck || at.busy && now.Sub(at.since) >= StuckSpan
	}
	s.stands = next
	switch {
	case stuck:
		return refused
	case len(next) == 0:
		return unclear
	default:
		return answered
	}
}

// mount is one line of the table of mounts.
type mount struct {
	number, root, point, kind string
}

// eachMount reads the table. A line that cannot be understood has nothing in it.
func eachMount(file string, do func(mount)) error {
	table, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read the mounts of this host: %w", err)
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		place, system, _ := strings.Cut(lines.Text(), " - ")
		of, kind := strings.Fields(place), strings.Fields(system)
		if len(of) < 5 || len(kind) == 0 {
			do(mount{})
			continue
		}
		do(mount{number: of[2], root: of[3], point: of[4], kind: kind[0]})
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the mounts of this host: %w", err)
	}
	return nil
}

// ephemeral begin the names of volumes that end with their pod.
var ephemeral = []string{"kubernetes.io~configmap", "kubernetes.io~downward-api", "kubernetes.io~empty-dir", "kubernetes.io~git-repo", "kubernetes.io~projected", "kubernetes.io~secret"}

// volume: the mount is that of a pod's volume of any kind, and it outlives the pod. A kubelet mounts it at pods/UID/volumes/PLUGIN/NAME below its own directory, wherever that is.
func (m mount) volume() (any, outlives bool) {
	parts := strings.Split(m.point, "/")
	for i := 3; i < len(parts); i++ {
		if parts[i-3] == "pods" && parts[i-1] == "volumes" {
			return true, m.kind != "tmpfs" && !slices.Contains(ephemeral, parts[i])
		}
	}
	return false, false
}

// raw: the mount is a device that a pod is given as such, which is published in a directory of its plugin's.
func (m mount) raw() bool { return slices.Contains(strings.Split(m.point, "/"), "volumeDevices") }

// device is the directory below /sys of the block device that is mounted as a volume, or is one; empty where there is none. A file system with a number of its own, as NFS,
// FUSE, btrfs and ZFS have, has no counters of this kind.
func (m mount) device() string {
	if m.raw() {
		if name := strings.TrimPrefix(m.root, "/"); m.kind == "devtmpfs" && name != "" && !strings.Contains(name, "/") {
			return "class/block/" + name
		}
		return ""
	}
	if _, outlives := m.volume(); !outlives || strings.HasPrefix(m.number, "0:") {
		return ""
	}
	return "dev/block/" + m.number
}

// devices are those of all mounts in the table, each once.
func devices(table string) (found []string, err error) {
	err = eachMount(table, func(m mount) {
		if device := m.device(); device != "" && !slices.Contains(found, device) {
			found = append(found, device)
		}
	})
	return found, err
}

// Volumes reports whether a volume that outlives its pod is mounted on this host. Guarded pods have such, but for hostPath volumes, which no kubelet mounts; and they may be labelled
// after the container runtime has made them, which does not know it then. With an error there may be one: the table must show a pod's volume of some kind, as
// every host has them, or it is that of somebody who does not see them.
func Volumes(mounts string) (bool, error) {
	some, outlives := false, false
	err := eachMount(mounts, func(m mount) {
		any, lasting := m.volume()
		some, outlives = some || any || m.raw(), outlives || lasting || m.raw() || m == mount{}
	})
	switch {
	case err != nil:
		return true, err
	case !some && !outlives:
		return true, fmt.Errorf("no volume of any pod is among the mounts of %s: it is not that of the host's kubelet", mounts)
	default:
		return outlives, nil
	}
}

// counters are how many requests a device has completed since it came, and how many are under way.
func counters(file string) (completed, underWay uint64, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, err
	}
	// Reads, writes, and with newer kernels discards and flushes.
	const reads, writes, inFlight, discards, flushes = 0, 4, 8, 11, 15
	fields := strings.Fields(string(text))
	if len(fields) <= inFlight {
		return 0, 0, fmt.Errorf("%s has %d fields, and should have 11 at least", file, len(fields))
	}
	for i, field := range fields {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", file, err)
		}
		switch i {
		case reads, writes, discards, flushes:
			completed += n
		case inFlight:
			underWay = n
		}
	}
	return completed, underWay, nil
}
