// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Package netns makes and enters named network namespaces, in the place where iproute2 looks for them.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Directory holds one file per named network namespace.
const Directory = "/run/netns"

// Path returns the file of a named network namespace.
func Path(name string) string { return filepath.Join(Directory, name) }

// Make makes a network namespace and binds it to path.
func Make(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	file.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace to %s: %w", path, err)
		}
		return nil
	})
}

// Remove takes the name away, also from the copies that other mount namespaces have: removing the file
// unmounts it there. The namespace and all its links end with the last process in it. A name that is gone is
// no error.
func Remove(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Do calls f on a thread that is in the network namespace. Goroutines that f starts are not.
func Do(path string, f func() error) error {
	return onOwnThread(func() error {
		if err := Enter(path); err != nil {
			return err
		}
		return f()
	})
}

// onOwnThread runs f on a thread that ends with it, so that no other goroutine ever runs in the namespace.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// Enter moves the calling thread into the network namespace. The caller has locked its goroutine to it.
func Enter(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// DialFunc has the shape that net/http, gRPC and client-go take.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer dials from inside the network namespace. The address is an IP address and a port: there are no
// names in the lab. The connection can be used from everywhere.
func Dialer(path string) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if net.ParseIP(host) == nil {
			return nil, fmt.Errorf("dial %s: name an IP address, the lab has no DNS", address)
		}
		var conn net.Conn
		err = Do(path, func() error {
			var dialer net.Dialer
			var err error
			conn, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// Listen listens inside the network namespace.
func Listen(path, network, address string) (net.Listener, error) {
	var listener net.Listener
	err := Do(path, func() error {
		var err error
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}
