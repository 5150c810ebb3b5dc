// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/hostinit"
	"github.com/holdfast-dev/holdfast/test/lab/netns"
)

// The commands that the lab calls itself with.
func init() {
	register(newSpawn)
	register(newHostInit)
	register(newForward)
	register(newBMCControl)
}

func newSpawn() *cobra.Command {
	var shim lab.Shim
	cmd := &cobra.Command{
		Use:    "spawn -- PROGRAM [ARGUMENT...]",
		Short:  "Record this process in the journal and become the program",
		Hidden: true,
		Args:   cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			shim.Args = args
			return shim.Run()
		},
	}
	cmd.Flags().StringVar(&shim.Journal, "journal", "", "path of resources.jsonl")
	cmd.Flags().StringVar(&shim.Name, "name", "", "name of the process in the journal")
	cmd.Flags().StringVar(&shim.KernelBoot, "kernel-boot", "", "boot ID of the machine")
	cmd.Flags().StringVar(&shim.NetNS, "netns", "", "path of the network namespace to enter")
	cmd.Flags().StringVar(&shim.Cgroup, "cgroup", "", "cgroup to join")
	return cmd
}

func newHostInit() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:    "host-init --config FILE",
		Short:  "Be PID 1 of a host",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return hostinit.Run(config) },
	}
	cmd.Flags().StringVar(&config, "config", "", "init.json of the host")
	return cmd
}

func newForward() *cobra.Command {
	var fd int
	var namespace, target string
	cmd := &cobra.Command{
		Use:    "forward --listener-fd N --netns PATH --to ADDRESS",
		Short:  "Carry connections from a port of the machine into a network namespace",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
			if err != nil {
				return fmt.Errorf("--listener-fd %d: %w", fd, err)
			}
			return forward(listener, func() (net.Conn, error) {
				return netns.Dialer(namespace)(cmd.Context(), "tcp", target)
			})
		},
	}
	cmd.Flags().IntVar(&fd, "listener-fd", 0, "descriptor of the listening socket")
	cmd.Flags().StringVar(&namespace, "netns", "", "path of the network namespace")
	cmd.Flags().StringVar(&target, "to", "", "address in that namespace")
	return cmd
}

func forward(listener net.Listener, dial func() (net.Conn, error)) error {
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer client.Close()
			server, err := dial()
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			defer server.Close()
			carry(client, server)
		}()
	}
}

// carry copies both ways until both have ended; the end of one direction is passed on.
func carry(a, b net.Conn) {
	done := make(chan error, 2)
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() {
			_, err := io.Copy(pair[0], pair[1])
			if half, ok := pair[0].(*net.TCPConn); ok && err == nil {
				err = half.CloseWrite()
			}
			if err != nil { // nothing more can come through in either direction
				err = errors.Join(err, a.Close(), b.Close())
			}
			done <- err
		}()
	}
	<-done
	<-done
}

func newBMCControl() *cobra.Command {
	return &cobra.Command{
		Use:    "bmc-control --lab NAME HOST REQUEST...",
		Short:  "Carry out what the host's BMC was asked for",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			return h.BMCControl().Run(cmd.Context(), args[1:], cmd.OutOrStdout())
		},
	}
}
