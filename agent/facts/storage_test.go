// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
421 30 8:48 / /srv/pods/` + uid + ` rw - ext4 /dev/sdd rw
422 30 broken
`

func TestWhichDevicesAreUnderAPodsVolumes(t *testing.T) {
	for name, c := range map[string]struct{ pods, want []string }{
		"one":      {[]string{uid}, []string{"dev/block/8:16", "dev/block/252:3", "class/block/nvme1n1", "class/block/sde"}},
		"both":     {[]string{other, uid}, []string{"dev/block/8:16", "dev/block/252:3", "class/block/nvme1n1", "class/block/sde", "dev/block/8:32"}},
		"unknown":  {[]string{"d9"}, nil},
		"unnamed":  {[]string{""}, nil},
		"no other": {[]string{"kubelet", "pods"}, nil},
	} {
		if got := devices(mounts, c.pods); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
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
		if _, _, err := counters(file); err != nil {
			t.Error(err)
		}
	}
	if text, err := os.ReadFile(MountsPath); err != nil || len(devices(string(text), nil)) != 0 {
		t.Errorf("the mounts of the first process: %v", err)
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

// guardedHost has one guarded pod, on a disk that is idle.
func guardedHost(t *testing.T, change func(*Config)) (*host, *disk) {
	t.Helper()
	dir := t.TempDir()
	d := &disk{t: t, file: filepath.Join(dir, "sys/dev/block/8:16/stat")}
	if err := os.MkdirAll(filepath.Dir(d.file), 0o700); err != nil {
		t.Fatal(err)
	}
	d.says(1, 0)
	serveRuntime(t, filepath.Join(dir, "cri.sock"), runtimeServer{guarded: uid})
	h := newHost(t, func(c *Config) {
		c.RuntimeSocket = filepath.Join(dir, "cri.sock")
		c.MountsPath = write(t, filepath.Join(dir, "mounts"), mounts)
		c.SysPath = filepath.Join(dir, "sys")
		change(c)
	})
	h.want("guarded", h.next("guarded"), wire.Alive)
	return h, d
}

func TestADeviceThatCompletesNothingIsDead(t *testing.T) {
	h, d := guardedHost(t, func(*Config) {})
	for h.again("storage", StoragePeriod) != wire.Alive { // what was looked at before the pod was known
		t.Log("not yet")
	}
	d.says(0, 0)
	for range 10 {
		h.want("storage that is idle", h.again("storage", StoragePeriod), wire.Alive)
	}
	d.says(0, 3)
	for range StuckSpan/StoragePeriod - 1 {
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

// Nothing is concluded of pods that a runtime which does not answer may have, and those that it had are watched on.
func TestGuardedPodsOfARuntimeThatFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	serveRuntime(t, socket, runtimeServer{err: status.Error(codes.Unavailable, "busy")})
	h := newHost(t, func(c *Config) { c.RuntimeSocket = socket })
	h.want("guarded", h.next("guarded"), wire.Unread)
	h, _ = guardedHost(t, func(*Config) {})
	if err := os.Remove(h.local.config.RuntimeSocket); err != nil {
		t.Fatal(err)
	}
	h.want("guarded", h.again("guarded", GuardedPeriod), wire.Unread)
	h.want("storage", h.again("storage", StoragePeriod), wire.Alive)
}

func TestAHostWithoutGuardedPodsHasNoStorageToSpeakOf(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	serveCRI(t, socket, nil)
	h := newHost(t, func(c *Config) {
		c.RuntimeSocket, c.MountsPath = socket, write(t, filepath.Join(t.TempDir(), "mounts"), mounts)
	})
	h.want("guarded", h.next("guarded"), wire.Dead)
	h.want("storage", h.again("storage", StoragePeriod), wire.Unread)
}

func TestAHostWhoseProcessesWait(t *testing.T) {
	dir := t.TempDir()
	says := func(what string, share float64) {
		write(t, filepath.Join(dir, what), fmt.Sprintf("some avg10=99.00 avg60=1.00 avg300=0.00 total=5\nfull avg10=%.2f avg60=1.00 avg300=0.00 total=3\n", share))
	}
	says("memory", 0)
	h := newHost(t, func(c *Config) { c.PressurePath = dir })
	h.want("io, which the kernel does not count", h.next("io"), wire.Unread)
	for h.again("memory", PressurePeriod) != wire.Alive {
		t.Log("not yet")
	}
	for _, c := range []struct {
		share float64
		want  wire.Pulse
	}{{49, wire.Alive}, {51, wire.Dead}, {21, wire.Dead}, {19, wire.Alive}, {49, wire.Alive}} {
		says("memory", c.share)
		h.want("memory", h.again("memory", PressurePeriod), c.want)
	}
	write(t, filepath.Join(dir, "memory"), "some avg10=1.00 avg60=1.00\n")
	h.want("memory without that line", h.again("memory", PressurePeriod), wire.Unread)
	if share, ok := full(filepath.Join(PressurePath, "memory")); !ok || share < 0 || share > 100 {
		t.Errorf("this machine's own: %v, %v", share, ok)
	}
}
