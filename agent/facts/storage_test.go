// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dev/holdfast/agent/wire"
)

const (
	uid   = "0d1f6a3e-55d6-4b3c-9a0e-2f6f1c7f8a11"
	other = "7c0e1b52-9d0f-4f4e-8a55-6a1f0e9d3b22"
)

// mounts are those of a host with two pods.
const mounts = `22 27 0:21 / /proc rw,relatime - proc proc rw
30 27 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
412 30 8:16 / /var/lib/kubelet/plugins/kubernetes.io/csi/d/5f/globalmount rw - ext4 /dev/sdb rw
413 30 8:16 / /var/lib/kubelet/pods/` + uid + `/volumes/kubernetes.io~csi/pvc-a/mount rw,relatime shared:9 - ext4 /dev/sdb rw
414 30 252:3 / /mnt/k\040s/pods/` + uid + `/volumes/kubernetes.io~csi/pvc-b/mount rw shared:9 master:2 - xfs /dev/dm-3 rw
415 30 8:16 /sub /var/lib/kubelet/pods/` + uid + `/volume-subpaths/pvc-a/db/0 rw - ext4 /dev/sdb rw
416 30 8:16 / /var/lib/kubelet/pods/` + uid + `/volumes/kubernetes.io~csi/pvc-a/mount rw - ext4 /dev/sdb rw
417 30 0:53 / /var/lib/kubelet/pods/` + uid + `/volumes/kubernetes.io~projected/kube-api-access rw - tmpfs tmpfs rw
418 30 0:54 / /var/lib/kubelet/pods/` + uid + `/volumes/kubernetes.io~nfs/shared rw - nfs4 10.0.0.1:/x rw
419 30 0:6 /nvme1n1 /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-c/` + uid + ` rw - devtmpfs devtmpfs rw
423 30 0:6 /sde /var/lib/kubelet/plugins/kubernetes.io~local-volume/volumeDevices/pv-e/` + uid + ` rw - devtmpfs devtmpfs rw
420 30 8:32 / /var/lib/kubelet/pods/` + other + `/volumes/kubernetes.io~csi/pvc-d/mount rw - ext4 /dev/sdc rw
424 30 8:1 /var/lib/topolvm/x /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-f/` + uid + ` rw - ext4 /dev/sda1 rw
425 30 0:6 /longhorn/pvc-g /var/lib/kubelet/plugins/kubernetes.io/csi/volumeDevices/publish/pvc-g/` + uid + ` rw - devtmpfs devtmpfs rw
421 30 8:48 / /srv/pods/` + uid + ` rw - ext4 /dev/sdd rw
422 30 broken
`

func TestWhichDevicesAreUnderVolumes(t *testing.T) {
	want := []string{"dev/block/8:16", "dev/block/252:3", "class/block/nvme1n1", "class/block/sde", "dev/block/8:32"}
	got, err := devices(write(t, filepath.Join(t.TempDir(), "mounts"), mounts))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, want %q; %v", got, want, err)
	}
}

// What is not known to have no volume has one.
func TestWhetherVolumesAreMountedHere(t *testing.T) {
	const here = "36 30 0:40 / /var/lib/kubelet/"
	const token = here + "pods/" + other + "/volumes/kubernetes.io~projected/kube-api-access-x rw - tmpfs tmpfs rw\n"
	for line, want := range map[string]bool{
		"": false,
		here + "pods/" + uid + "/volumes/kubernetes.io~secret/tls rw - tmpfs tmpfs rw\n":                   false,
		here + "pods/" + uid + "/volumes/kubernetes.io~empty-dir/m rw - tmpfs tmpfs rw\n":                  false,
		here + "pods/" + uid + "/volumes/kubernetes.io~empty-dir/h rw - hugetlbfs nodev rw\n":              false,
		here + "pods/" + uid + "/volumes/kubernetes.io~csi/secrets/mount rw - tmpfs tmpfs rw\n":            false,
		here + "pods/" + uid + "/volume-subpaths/pvc-a/db/0 rw - ext4 /dev/sdb rw\n":                       false, // beside the volume's own
		here + "pods/" + uid + "/volumes/kubernetes.io~csi/pvc-a/mount rw - fuse x rw\n":                   true,
		here + "pods/" + uid + "/volumes/kubernetes.io~local-volume/pv-a rw - ext4 /dev/sda1 rw\n":         true,
		here + "plugins/kubernetes.io/csi/volumeDevices/publish/a/" + uid + " rw - devtmpfs devtmpfs rw\n": true,
		"what nobody can read\n": true,
	} {
		file := write(t, filepath.Join(t.TempDir(), "mounts"), "30 27 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"+token+line)
		if got, err := Volumes(file); got != want || err != nil {
			t.Errorf("%q: %v, %v", line, got, err)
		}
	}
	for name, file := range map[string]string{
		"without a table":             filepath.Join(t.TempDir(), "none"),
		"the table of somebody else":  write(t, filepath.Join(t.TempDir(), "mounts"), "30 27 8:1 / / rw - ext4 /dev/sda1 rw\n31 30 0:40 / /etc/holdfast rw - tmpfs tmpfs rw\n"),
		"with a line that never ends": write(t, filepath.Join(t.TempDir(), "mounts"), token+strings.Repeat("x", 2<<20)),
	} {
		if got, err := Volumes(file); !got || err == nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// The kernel's own counters are understood, of every block device that is here.
func TestTheCountersOfRealDevices(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(SysPath, "class/block/*/stat"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no block device is here: %v", err)
	}
	for _, file := range files {
		if _, _, err := counters(file); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENODEV) { // one may go meanwhile
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(MountsPath); err != nil || len(text) == 0 {
		t.Errorf("the mounts of the first process: %q, %v", text, err)
	}
}

func TestCountersThatAreNone(t *testing.T) {
	for _, text := range []string{"", "1 2 3 4 5 6 7 8\n", "1 2 3 4 x 6 7 8 9 10 11\n", "1 2 3 4 5 6 7 8 -9 10 11\n"} {
		if completed, underWay, err := counters(write(t, filepath.Join(t.TempDir(), "stat"), text)); err == nil {
			t.Errorf("%q: completed %d, under way %d", text, completed, underWay)
		}
	}
}

// disk writes the counters of a device that a guarded pod's volume is on.
type disk struct {
	t         *testing.T
	file      string
	completed int
}

func (d *disk) says(completed, underWay int) {
	d.t.Helper()
	d.completed += completed
	write(d.t, d.file, fmt.Sprintf("%8d 0 0 0 %8d 0 0 0 %8d 0 0 7 0 0 0 9 0\n", 100, d.completed, underWay))
}

// hostWithDisk has one volume, on a disk that is idle.
func hostWithDisk(t *testing.T) (*host, *disk) {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t: t, file: filepath.Join(dir, "sys/dev/block/8:16/stat")}
	if err := os.MkdirAll(filepath.Dir(d.file), 0o700); err != nil {
		t.Fatal(err)
	}
	d.says(1, 0)
	return newHost(t, func(c *Config) {
		c.MountsPath, c.SysPath = write(t, filepath.Join(dir, "mounts"), mounts), filepath.Join(dir, "sys")
	}), d
}

func TestADeviceThatCompletesNothingIsDead(t *testing.T) {
	h, d := hostWithDisk(t)
	h.want("storage", h.next("storage"), wire.Alive)
	for range 10 {
		h.want("storage that is idle", h.again("storage", StoragePeriod), wire.Alive)
	}
	d.says(0, 3)
	for range StuckSpan / StoragePeriod {
		h.want("storage that is slow", h.again("storage", StoragePeriod), wire.Alive)
	}
	h.want("storage that is stuck", h.again("storage", StoragePeriod), wire.Dead)
	if got := h.local.Facts().Storage; got != wire.Dead {
		t.Errorf("its facts say %q", got)
	}
	d.says(1, 3)
	h.want("storage that goes on", h.again("storage", StoragePeriod), wire.Alive)
	for range StuckSpan / StoragePeriod * 2 {
		d.says(1, 3)
		h.want("storage that works", h.again("storage", StoragePeriod), wire.Alive)
	}
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	h.want("storage without counters", h.again("storage", StoragePeriod), wire.Unread)
}

func TestAHostWithoutVolumesHasNoStorageToSpeakOf(t *testing.T) {
	h := newHost(t, func(c *Config) {
		c.MountsPath = write(t, filepath.Join(t.TempDir(), "mounts"), "30 27 8:1 / / rw - ext4 /dev/sda1 rw\n")
	})
	h.want("storage", h.next("storage"), wire.Unread)
}

func TestAHostWhoseProcessesWait(t *testing.T) {
	dir := t.TempDir()
	says := func(what string, share float64) {
		write(t, filepath.Join(dir, what), fmt.Sprintf("some avg10=99.00 avg60=1.00 avg300=0.00 total=5\nfull avg10=%.2f avg60=1.00 avg300=0.00 total=3\n", share))
	}
	says("memory", 0)
	h := newHost(t, func(c *Config) { c.PressurePath = dir })
	h.want("memory", h.next("memory"), wire.Alive)
	for _, c := range []struct {
		share float64
		want  wire.Pulse
	}{{49, wire.Alive}, {51, wire.Dead}, {21, wire.Dead}, {19, wire.Alive}, {49, wire.Alive}} {
		says("memory", c.share)
		h.want("memory", h.again("memory", PressurePeriod), c.want)
	}
	write(t, filepath.Join(dir, "memory"), "some avg10=1.00 avg60=1.00\n")
	h.want("memory without that line", h.again("memory", PressurePeriod), wire.Unread)
	says("io", 90)
	h = newHost(t, func(c *Config) { c.PressurePath = dir })
	h.want("io of one that writes and waits for it", h.next("io"), wire.Alive)
	for _, c := range []struct {
		share float64
		want  wire.Pulse
	}{{96, wire.Dead}, {61, wire.Dead}, {59, wire.Alive}} {
		says("io", c.share)
		h.want("io", h.again("io", PressurePeriod), c.want)
	}
	h = newHost(t, func(*Config) {})
	h.want("io, which the kernel does not count", h.next("io"), wire.Unread)
	own := filepath.Join(PressurePath, "memory")
	if _, err := os.ReadFile(own); err == nil { // there are kernels that do not count it
		if share, ok := full(own); !ok || share < 0 || share > 100 {
			t.Errorf("this machine's own: %v, %v", share, ok)
		}
	}
}
