// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package hostinit

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-dev/holdfast/agent/unit"
	"github.com/holdfast-dev/holdfast/agent/unit/fake"
	"github.com/holdfast-dev/holdfast/test/lab/await"
)

// One supervisor for all tests: it reaps every child of this process.
func TestSupervisor(t *testing.T) {
	s := newSupervisor(Config{
		Path: os.Getenv("PATH"), LogPrefix: filepath.Join(t.TempDir(), "log-"),
		Services: []Service{
			{Name: Kubelet, Args: []string{"sleep", "600"}, StaysKilled: true},
			{Name: "containerd", Args: []string{"sleep", "600"}},
		},
	})
	t.Cleanup(func() {
		for name := range s.services {
			if err := s.stop(name); err != nil {
				t.Error(err)
			}
		}
	})
	for name, r := range s.services {
		if err := s.start(name); err != nil {
			t.Fatal(err)
		}
		go s.keep(r)
	}
	pid := func(name string, other int) int {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var now int
		err := await.Until(ctx, name+" to run anew", func() (bool, error) {
			now = s.status()[name].PID
			return now != 0 && now != other, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	down := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		err := await.Until(ctx, name+" to be down for good", func() (bool, error) {
			status := s.status()[name]
			return !status.Running && !status.Wanted, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	kill := func(pid int, signal syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, signal); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("containerd starts again however it ended", func(t *testing.T) {
		first := pid("containerd", 0)
		kill(first, syscall.SIGKILL)
		second := pid("containerd", first)
		kill(second, syscall.SIGTERM)
		pid("containerd", second)
	})
	t.Run("a kubelet that was killed stays down until it is started", func(t *testing.T) {
		first := pid(Kubelet, 0)
		kill(first, syscall.SIGKILL)
		down(Kubelet)
		if err := s.start(Kubelet); err != nil {
			t.Fatal(err)
		}
		pid(Kubelet, first)
	})
	t.Run("a kubelet that fails by itself starts again", func(t *testing.T) {
		first := pid(Kubelet, 0)
		kill(first, syscall.SIGTERM)
		pid(Kubelet, first)
	})
	t.Run("stop and start at once leave it running", func(t *testing.T) {
		first := pid(Kubelet, 0)
		for _, step := range []func(string) error{s.stop, s.stop, s.start, s.start} {
			if err := step(Kubelet); err != nil {
				t.Fatal(err)
			}
		}
		pid(Kubelet, first)
	})
	t.Run("an agent restarts the kubelet as it does with systemd", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "bus")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() { _ = fake.Serve(l, systemd{s}) }() // it ends with the listener
		u, err := unit.New("kubelet.service", socket)
		if err != nil {
			t.Fatal(err)
		}
		restart := func(before int) int {
			t.Helper()
			if done, err := u.Restart(t.Context()); err != nil || !done {
				t.Fatalf("done %v, %v", done, err)
			}
			return pid(Kubelet, before)
		}
		first := pid(Kubelet, 0)
		second := restart(first)
		kill(second, syscall.SIGKILL)
		down(Kubelet)
		restart(second)
		if err := s.stop(Kubelet); err != nil {
			t.Fatal(err)
		}
		down(Kubelet)
		if done, err := u.Restart(t.Context()); done || !errors.Is(err, unit.ErrStopped) {
			t.Errorf("one that was stopped: done %v, %v", done, err)
		}
		if err := s.start(Kubelet); err != nil {
			t.Fatal(err)
		}
		pid(Kubelet, 0)
	})
	t.Run("a service that does not exist is named", func(t *testing.T) {
		if err := s.start("docker"); err == nil {
			t.Error("start of a service that the host does not have: no error")
		}
	})
	t.Run("programs run to their end tell how it was", func(t *testing.T) {
		if err := s.run("ctr", "true"); err != nil {
			t.Error(err)
		}
		if err := s.run("ctr", "false"); err == nil {
			t.Error("a program that failed counts as done")
		}
	})
}
