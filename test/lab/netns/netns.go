// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns runs Go code inside another network namespace.
package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Do runs fn on a thread that has entered the network namespace at path (for
// example /run/netns/NAME or /proc/PID/ns/net). Sockets that fn opens stay in
// that namespace; goroutines that fn starts do not run there. The thread is
// given up afterwards, so that no other goroutine ever inherits it.
func Do(path string, fn func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace %s (needs root): %w", path, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Dial connects from inside the network namespace at path. The address must be
// numeric: a name would be resolved by another thread, outside the namespace.
func Dial(ctx context.Context, path, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := Do(path, func() (err error) {
		// One address, one attempt: the dialer then stays on this thread.
		conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the network namespace at path, on a numeric address.
func Listen(ctx context.Context, path, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := Do(path, func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return listener, err
}
