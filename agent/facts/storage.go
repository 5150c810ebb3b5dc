// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"context"
	"fmt"
	"os"
	"path"
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

	StoragePeriod = 2 * time.Second
	// StuckSpan is how long a device must have requests under way, and complete none, to count as dead. A slow disk completes some in that time; SCSI and NVMe
	// give a request up after 30 s by default, a multipath device that waits for a path never does.
	StuckSpan = 10 * time.Second
)

// storage looks at the block devices under the volumes of pods. Nothing is opened, read or written there: the kernel counts what they complete.
type storage struct {
	mounts, sys string
	clock       clock.PassiveClock
	// idle is how far each device is, and since when it has been there with requests under way.
	idle map[string]standing
}

type standing struct {
	completed uint64
	since     time.Time
}

// ask: refused where one device at least is stuck, answered where some can be read and none is, and unclear where nothing can be said.
func (s *storage) ask(context.Context) reply {
	text, err := os.ReadFile(s.mounts)
	if err != nil {
		return unclear
	}
	now, next, stuck := s.clock.Now(), map[string]standing{}, false
	for _, device := range devices(string(text)) {
		completed, underWay, err := counters(filepath.Join(s.sys, device, "stat"))
		if err != nil {
			continue
		}
		at, known := s.idle[device]
		if !known || underWay == 0 || completed != at.completed {
			at = standing{completed, now}
		}
		next[device] = at
		stuck = stuck || now.Sub(at.since) >= StuckSpan
	}
	s.idle = next
	switch {
	case stuck:
		return refused
	case len(next) == 0:
		return unclear
	default:
		return answered
	}
}

// devices are the directories below /sys of the block devices that are mounted as volumes, or are such volumes. A file system that has no block device, as NFS and FUSE
// have none, has no counters of this kind.
func devices(mountinfo string) (found []string) {
	for line := range strings.Lines(mountinfo) {
		mount, system, _ := strings.Cut(line, " - ")
		of, kind := strings.Fields(mount), strings.Fields(system)
		if len(of) < 5 || len(kind) == 0 || !isVolume(of[4]) {
			continue
		}
		device := "dev/block/" + of[2]
		switch {
		case kind[0] == "devtmpfs": // a device node, bound to where the pod finds it
			device = "class/block/" + path.Base(of[3])
		case strings.HasPrefix(of[2], "0:"):
			continue
		}
		if !slices.Contains(found, device) {
			found = append(found, device)
		}
	}
	return found
}

// ephemeral begin the names of volumes that end with their pod.
var ephemeral = []string{"kubernetes.io~configmap", "kubernetes.io~downward-api", "kubernetes.io~empty-dir", "kubernetes.io~projected", "kubernetes.io~secret"}

// isVolume: where a kubelet mounts a volume that outlives its pod, whatever its own directory is: pods/UID/volumes/PLUGIN/NAME. A device that a pod is given as such is
// published in a directory of its plugin's.
func isVolume(point string) bool {
	parts := strings.Split(point, "/")
	for i := 3; i < len(parts); i++ {
		if parts[i-3] == "pods" && parts[i-1] == "volumes" {
			return !slices.Contains(ephemeral, parts[i])
		}
	}
	return slices.Contains(parts, "volumeDevices")
}

// Volumes reports whether a volume that outlives its pod is mounted on this host, as that of every guarded pod is: guarded pods may be labelled after the container runtime
// has made them, which does not know it then. With an error there may be one.
func Volumes(mounts string) (bool, error) {
	text, err := os.ReadFile(mounts)
	if err != nil {
		return true, fmt.Errorf("look for volumes among the mounts of this host: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if of := strings.Fields(line); len(of) < 5 || isVolume(of[4]) {
			return true, nil
		}
	}
	return false, nil
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
