// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package unit_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dev/holdfast/agent/unit"
	"github.com/holdfast-dev/holdfast/agent/unit/fake"
)

// kubelet is a systemd with one unit.
type kubelet struct {
	active, result string
	restarted      chan string
	let            chan struct{} // nil: restarts end at once
}

func (k kubelet) State(name string) (load, active string) {
	if name != "kubelet.service" {
		return "not-found", "inactive"
	}
	return "loaded", k.active
}

func (k kubelet) Restart(name string) string {
	k.restarted <- name
	if k.let != nil {
		<-k.let
	}
	return k.result
}

func serve(t *testing.T, units fake.Units) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error)
	go func() { over <- fake.Serve(l, units) }()
	t.Cleanup(func() {
		_ = l.Close()
		if err := <-over; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return socket
}

func named(t *testing.T, name, socket string) unit.Unit {
	t.Helper()
	u, err := unit.New(name, socket)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestAUnitIsRestarted(t *testing.T) {
	for _, active := range []string{"active", "failed", "activating"} {
		t.Run(active, func(t *testing.T) {
			k := kubelet{active: active, result: "done", restarted: make(chan string, 10)}
			if done, err := named(t, "kubelet.service", serve(t, k)).Restart(t.Context()); err != nil || !done {
				t.Errorf("done %v, %v", done, err)
			}
			if len(k.restarted) != 1 || <-k.restarted != "kubelet.service" {
				t.Error("it was not restarted once")
			}
		})
	}
}

func TestWhatIsNotRestarted(t *testing.T) {
	for name, test := range map[string]struct {
		unit, active string
		want         error
	}{
		"a unit that somebody stopped": {"kubelet.service", "inactive", unit.ErrStopped},
		"a unit that is not there":     {"kublet.service", "active", unit.ErrUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			k := kubelet{active: test.active, result: "done", restarted: make(chan string, 10)}
			if done, err := named(t, test.unit, serve(t, k)).Restart(t.Context()); done || !errors.Is(err, test.want) {
				t.Errorf("done %v, %v", done, err)
			}
			if len(k.restarted) != 0 {
				t.Error("it was restarted")
			}
		})
	}
}

func TestARestartThatFailsSaysSo(t *testing.T) {
	k := kubelet{active: "active", result: "timeout", restarted: make(chan string, 10)}
	if done, err := named(t, "kubelet.service", serve(t, k)).Restart(t.Context()); done || err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("done %v, %v", done, err)
	}
}

func TestARestartThatTakesLongWasBegun(t *testing.T) {
	k := kubelet{active: "active", result: "done", restarted: make(chan string, 10), let: make(chan struct{})}
	defer close(k.let)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-k.restarted
		leave()
	}()
	if done, err := named(t, "kubelet.service", serve(t, k)).Restart(ctx); done || err != nil {
		t.Errorf("done %v, %v", done, err)
	}
}

func TestWithoutABusNothingIsDone(t *testing.T) {
	u := named(t, "kubelet.service", filepath.Join(t.TempDir(), "none"))
	if done, err := u.Restart(t.Context()); done || err == nil || !strings.Contains(err.Error(), "bus at") {
		t.Errorf("done %v, %v", done, err)
	}
}

func TestABusThatSaysNothingIsLeftWithTheContext(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "mute")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		if conn, err := l.Accept(); err == nil {
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1)) // it has begun to speak
			leave()
			<-t.Context().Done()
		}
	}()
	if done, err := named(t, "kubelet.service", socket).Restart(ctx); done || err == nil {
		t.Errorf("done %v, %v", done, err)
	}
}

func TestNamesOfUnits(t *testing.T) {
	for _, name := range []string{"", "kubelet", "kubelet.target", "a b.service", "../kubelet.service"} {
		if u, err := unit.New(name, unit.Socket); err == nil {
			t.Errorf("%q is taken for %s", name, u)
		}
	}
}
