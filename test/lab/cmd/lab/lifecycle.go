// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
)

func init() {
	register(newUp)
	register(newDown)
	register(newStatus)
	register(newKubeconfig)
}

func newUp() *cobra.Command {
	var o lab.Options
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make the lab and wait until its Nodes are Ready",
		Long: `Make the lab and wait until its Nodes are Ready.

Progress goes to standard error. When it fails or is killed, "lab down" removes what was made.
With --timings fast a silent host is NotReady after 12 s instead of 50 s, and its pods are evicted
after 20 s instead of 300 s.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			begin := time.Now()
			var err error
			if o.Name, err = cmd.Flags().GetString("lab"); err != nil {
				return err
			}
			if o.Binary, err = os.Executable(); err != nil {
				return err
			}
			o.Progress = cmd.ErrOrStderr()
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("lab %q is up after %.0f s: export KUBECONFIG=%s", l.Name(), time.Since(begin).Seconds(), l.Kubeconfig())
			return printResult(cmd, map[string]string{"name": l.Name(), "stateDir": l.StateDir(), "kubeconfig": l.Kubeconfig()}, text)
		},
	}
	cmd.Flags().IntVar(&o.Hosts, "hosts", 3, "how many hosts, 1 to 50")
	cmd.Flags().IntVar(&o.APIServers, "apiservers", 1, "how many API servers, 1 or 2")
	cmd.Flags().StringVar((*string)(&o.Timings), "timings", string(lab.DefaultTimings), "how soon Kubernetes notices a lost host: default or fast")
	return cmd
}

func newDown() *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Remove the lab with everything it made, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := cmd.Flags().GetString("lab")
			if err != nil {
				return err
			}
			found, err := lab.Down(cmd.Context(), name)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("lab %q is gone", name)
			if !found {
				text = fmt.Sprintf("there is no lab %q; nothing to undo", name)
			}
			return printResult(cmd, map[string]any{"name": name, "found": found}, text)
		},
	}
}

func newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show power, boot ID, kubelet and Node of every host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			status, err := l.Status(cmd.Context())
			if err != nil {
				return err
			}
			return printResult(cmd, status, status.String())
		},
	}
}

func newKubeconfig() *cobra.Command {
	var server int
	cmd := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Print the path of the administrator's kubeconfig",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			path, err := l.KubeconfigOf(server)
			if err != nil {
				return err
			}
			return printResult(cmd, map[string]string{"kubeconfig": path}, path)
		},
	}
	cmd.Flags().IntVar(&server, "server", 1, "API server to reach, 1 or 2")
	return cmd
}
