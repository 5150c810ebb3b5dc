// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command lab-array is the storage array of the lab. See docs/spec/lab.md, "Storage".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
)

func main() {
	dir := flag.String("dir", "", "directory of the volumes and journals (required)")
	listen := flag.String("listen", ":7000", "address on which hosts reach the volumes")
	control := flag.String("control", "", "unix socket of the control API (default DIR/control.sock)")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "lab-array: --dir is required, and no arguments are taken")
		flag.Usage()
		os.Exit(2)
	}
	if *control == "" {
		*control = filepath.Join(*dir, "control.sock")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *dir, *listen, *control); err != nil {
		fmt.Fprintln(os.Stderr, "lab-array:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done, then ends what is being served and flushes the journals.
func run(ctx context.Context, dir, listen, control string) error {
	syscall.Umask(0)
	a, err := array.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }() // after the one below, whose error counts, it does nothing
	hosts, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	socket, err := listenUnix(control)
	if err != nil {
		return err
	}
	api := &http.Server{Handler: a.Control(), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 2)
	go func() { ended <- a.Serve(hosts) }()
	go func() { ended <- api.Serve(socket) }()
	fmt.Printf("lab-array: volumes on %s, control on %s\n", hosts.Addr(), control)
	select {
	case <-ctx.Done():
	case err = <-ended:
	}
	return errors.Join(err, hosts.Close(), api.Close(), a.Close())
}

// listenUnix listens on path, and takes the place of a dead process's socket.
func listenUnix(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("control socket %s: another array answers there; stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}
