// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package unit restarts one unit of the systemd of this host, over D-Bus: org.freedesktop.systemd1(5).
package unit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Socket is where the system's bus listens.
const Socket = "/run/dbus/system_bus_socket"

// Errors of Restart after which nothing was done.
var (
	// ErrUnknown: systemd has no such unit.
	ErrUnknown = errors.New("systemd knows no such unit")
	// ErrStopped: somebody stopped it, and nobody but them starts it again.
	ErrStopped = errors.New("the unit is inactive: somebody stopped it; start it to have it restarted later")
)

const (
	bus     = "org.freedesktop.DBus"
	systemd = "org.freedesktop.systemd1"
	object  = dbus.ObjectPath("/org/freedesktop/systemd1")
	manager = systemd + ".Manager"
)

// Unit is one unit. It is safe for concurrent use.
type Unit struct{ name, socket string }

// New returns the unit of that name, whole as kubelet.service, behind the socket of the system's bus.
func New(name, socket string) (Unit, error) {
	if !strings.HasSuffix(name, ".service") || strings.ContainsAny(name, "/ \t\n") {
		return Unit{}, fmt.Errorf("%q is no name of a service unit; give it whole, as kubelet.service", name)
	}
	return Unit{name: name, socket: socket}, nil
}

// String names it.
func (u Unit) String() string { return "systemd unit " + u.name }

// Restart has systemd stop the unit and start it again, and waits for the end of that. Where the context ends after the order was sent, it
// was begun, and systemd goes on with it: that is no error, and done is false. It needs what polkit or the bus asks for restarting units, which root has.
func (u Unit) Restart(ctx context.Context) (done bool, err error) {
	conn, err := u.connect(ctx)
	if err != nil {
		return false, fmt.Errorf("%s: the system's bus at %s: %w", u, u.socket, err)
	}
	defer conn.Close()
	if err := u.startable(ctx, conn); err != nil {
		return false, fmt.Errorf("%s: %w", u, err)
	}
	ended := make(chan *dbus.Signal, 64)
	conn.Signal(ended)
	// Before the order, or its end might be missed.
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(systemd), dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved")); err != nil {
		return false, fmt.Errorf("%s: watch jobs: %w", u, err)
	}
	at := conn.Object(systemd, object)
	if err := at.CallWithContext(ctx, manager+".Subscribe", 0).Err; err != nil {
		return false, fmt.Errorf("%s: watch jobs: %w", u, err)
	}
	var job dbus.ObjectPath
	if err := at.CallWithContext(ctx, manager+".RestartUnit", 0, u.name, "replace").Store(&job); err != nil && ctx.Err() != nil {
		return false, nil // it was sent, and may have arrived
	} else if err != nil {
		return false, fmt.Errorf("%s: restart: %w", u, err)
	}
	return u.await(ctx, job, ended)
}

// connect opens a connection of its own, which ends with the context.
func (u Unit) connect(ctx context.Context) (*dbus.Conn, error) {
	plain, err := new(net.Dialer).DialContext(ctx, "unix", u.socket)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(plain, dbus.WithContext(ctx))
	if err != nil {
		_ = plain.Close()
		return nil, err
	}
	if err := conn.Auth(nil); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if err := conn.Hello(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// startable says why the unit is not to be restarted, if so.
func (u Unit) startable(ctx context.Context, conn *dbus.Conn) error {
	var path dbus.ObjectPath
	if err := conn.Object(systemd, object).CallWithContext(ctx, manager+".LoadUnit", 0, u.name).Store(&path); err != nil {
		return fmt.Errorf("look it up: %w", err)
	}
	state := map[string]string{"LoadState": "", "ActiveState": ""}
	for name := range state {
		var value dbus.Variant
		if err := conn.Object(systemd, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, systemd+".Unit", name).Store(&value); err != nil {
			return fmt.Errorf("read its %s: %w", name, err)
		}
		state[name], _ = value.Value().(string) // another type is no state that is known below
	}
	switch {
	case state["LoadState"] != "loaded":
		return fmt.Errorf("%w (%s)", ErrUnknown, state["LoadState"])
	case state["ActiveState"] == "inactive":
		return ErrStopped
	default:
		return nil
	}
}

// await waits for the job's end: JobRemoved(id, job, unit, result).
func (u Unit) await(ctx context.Context, job dbus.ObjectPath, ended <-chan *dbus.Signal) (done bool, err error) {
	for {
		select {
		case s, open := <-ended:
			if !open { // the connection ended; the order was taken
				return false, nil
			}
			if s.Name != manager+".JobRemoved" || len(s.Body) != 4 || s.Body[1] != job {
				continue
			}
			if result, _ := s.Body[3].(string); result != "done" {
				return false, fmt.Errorf("%s: its restart ended: %v", u, s.Body[3])
			}
			return true, nil
		case <-ctx.Done():
			return false, nil
		}
	}
}
