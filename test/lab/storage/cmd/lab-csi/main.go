// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command lab-csi is the CSI driver of the lab. See docs/spec/lab.md, "Storage".
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/array"
	"github.com/holdfast-dev/holdfast/test/lab/storage/arrayclient"
	"github.com/holdfast-dev/holdfast/test/lab/storage/csidriver"
)

const usage = `  lab-csi node       --class enforcing|permissive --array HOST:PORT --host NAME --boot-id-file PATH [--kubelet-dir DIR] [--io-timeout 30s]
  lab-csi controller --class enforcing|permissive --control SOCKET --endpoint unix://PATH`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintf(os.Stderr, "usage:\n%s\n", usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch os.Args[1] {
	case "node":
		err = node(ctx, os.Args[2:])
	case "controller":
		err = controller(ctx, os.Args[2:])
	default:
		err = fmt.Errorf("%q: unknown; usage:\n%s", os.Args[1], usage)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "lab-csi:", err)
		os.Exit(1)
	}
}

func node(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("lab-csi node", flag.ExitOnError)
	class := f.String("class", "", "enforcing or permissive")
	address := f.String("array", "", "host:port of the array")
	host := f.String("host", "", "name of this host, the same as its Node's")
	bootFile := f.String("boot-id-file", "/proc/sys/kernel/random/boot_id", "file that holds the boot ID of this host")
	kubeletDir := f.String("kubelet-dir", "/var/lib/kubelet", "the kubelet's --root-dir")
	ioTimeout := f.Duration("io-timeout", 30*time.Second, "after how long I/O that the array does not answer fails with EIO; 0 is never")
	if err := parse(f, args, class, address, host); err != nil {
		return err
	}
	boot, err := os.ReadFile(*bootFile)
	if err != nil {
		return fmt.Errorf("--boot-id-file: %w", err)
	}
	return csidriver.NewNode(csidriver.NodeConfig{
		Class: array.Class(*class), Array: *address, Host: *host, Boot: strings.TrimSpace(string(boot)),
		KubeletDir: *kubeletDir, IOTimeout: *ioTimeout,
	}).Serve(ctx)
}

func controller(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("lab-csi controller", flag.ExitOnError)
	class := f.String("class", "", "enforcing or permissive")
	control := f.String("control", "", "control socket of the array")
	endpoint := f.String("endpoint", "", "unix://PATH of the socket to serve on")
	if err := parse(f, args, class, control, endpoint); err != nil {
		return err
	}
	return csidriver.NewController(array.Class(*class), arrayclient.NewControl(*control)).
		Serve(ctx, strings.TrimPrefix(*endpoint, "unix://"))
}

// parse reads flags, of which class must be right and the required ones must be given.
func parse(f *flag.FlagSet, args []string, class *string, required ...*string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if c := array.Class(*class); c != array.Enforcing && c != array.Permissive {
		return fmt.Errorf("--class %q: use enforcing or permissive", *class)
	}
	for _, value := range required {
		if *value == "" {
			return fmt.Errorf("a required flag is missing; usage:\n%s", usage)
		}
	}
	return nil
}
