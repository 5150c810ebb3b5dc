// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e runs the lab's storage programs against each other, as the lab does.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
)

// patience bounds every wait of these tests.
const patience = 15 * time.Second

var programs string // directory of the built programs

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount file systems: run them as root")
		os.Exit(1)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		fmt.Fprintln(os.Stderr, "these tests mount file systems: /dev/fuse is missing, try modprobe fuse:", err)
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "lab-storage-")
	if err != nil {
		panic(err)
	}
	programs = dir
	build := exec.Command("go", "build", "-o", dir, "../cmd/...")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// process is a program that a test runs.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu  sync.Mutex
	log bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// start runs a program until the test ends, when it is terminated and its log is shown if the test failed.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(cmd.Path), p.output())
		}
	})
	return p
}

// stop sends a signal and waits for the end; what does not end is killed.
func (p *process) stop(signal os.Signal) {
	_ = p.cmd.Process.Signal(signal) // it may have ended already
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// eventually polls until ok, and fails the test when patience ends.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// shortDir is t.TempDir with a path short enough for sockets in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// arrayProcess is a running lab-array.
type arrayProcess struct {
	*process
	dir, address string
	control      *arrayclient.Control
}

// startArray runs lab-array on dir, which may hold the state of an earlier run. address is 127.0.0.1:0 for
// any port.
func startArray(t *testing.T, dir, address string) *arrayProcess {
	t.Helper()
	p := start(t, exec.Command(filepath.Join(programs, "lab-array"), "--dir", dir, "--listen", address))
	a := &arrayProcess{process: p, dir: dir, control: arrayclient.NewControl(filepath.Join(dir, "control.sock"))}
	eventually(t, "lab-array says where it serves", func() bool {
		lines := bufio.NewScanner(strings.NewReader(p.output()))
		for lines.Scan() {
			if _, err := fmt.Sscanf(lines.Text(), "lab-array: volumes on %s", &a.address); err == nil {
				a.address = strings.TrimSuffix(a.address, ",")
				return true
			}
		}
		return false
	})
	eventually(t, "the control API answers", func() bool { return a.control.Healthy(t.Context()) == nil })
	return a
}

func (a *arrayProcess) volume(t *testing.T, name string, class array.Class) {
	t.Helper()
	if _, err := a.control.CreateVolume(t.Context(), array.Record{Name: name, Class: class, SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

// host is a running lab-csi node in a mount namespace of its own.
type host struct {
	*process
	name, boot, kubeletDir string
	class                  array.Class
	csi                    csi.NodeClient
}

// startHost boots a host: boot is its boot ID. kubeletDir may hold the state of an earlier run. If h has a
// process, the plugin joins that one's mount namespace.
func startHost(t *testing.T, a *arrayProcess, h host) *host {
	t.Helper()
	bootFile := filepath.Join(t.TempDir(), "boot-id")
	if err := os.WriteFile(bootFile, []byte(h.boot+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"node", "--class", string(h.class), "--array", a.address, "--host", h.name,
		"--boot-id-file", bootFile, "--kubelet-dir", h.kubeletDir, "--io-timeout", "10s"}
	if h.process != nil { // in the mount namespace of what runs there already
		h.process = start(t, h.inside("lab-csi", args...))
	} else {
		cmd := exec.Command(filepath.Join(programs, "lab-csi"), args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // Go makes it private, too
		h.process = start(t, cmd)
	}
	h.csi = csi.NewNodeClient(dial(t, h.socket()))
	eventually(t, "the node plugin answers", func() bool {
		_, err := h.csi.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
		return err == nil
	})
	return &h
}

// dial returns a connection to a unix socket, which need not be there yet.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	quick := backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (h *host) socket() string {
	return filepath.Join(h.kubeletDir, "plugins", string(h.class), "csi.sock")
}

func (h *host) target(volume string) string {
	return filepath.Join(h.kubeletDir, "pods", "p", "volumes", volume, "mount")
}

// publish mounts a volume on the host as the kubelet would.
func (h *host) publish(ctx context.Context, volume string) error {
	if err := os.MkdirAll(filepath.Dir(h.target(volume)), 0o755); err != nil {
		return err
	}
	_, err := h.csi.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: volume, TargetPath: h.target(volume),
		VolumeCapability: &csi.VolumeCapability{
			AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
	})
	return err
}

func (h *host) unpublish(ctx context.Context, volume string) error {
	_, err := h.csi.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: volume, TargetPath: h.target(volume)})
	return err
}

// path is how the test reaches a file of a volume as the host sees it.
func (h *host) path(volume, file string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", h.cmd.Process.Pid), h.target(volume), file)
}

// inside makes a command that runs in the host's mount namespace.
func (h *host) inside(program string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{h.mountNamespace(), "--", filepath.Join(programs, program)}, args...)...)
}

// mountNamespace is the option by which nsenter enters it.
func (h *host) mountNamespace() string {
	return fmt.Sprintf("--mount=/proc/%d/ns/mnt", h.cmd.Process.Pid)
}
