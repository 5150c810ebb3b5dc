// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// The lab command makes a real Kubernetes cluster of several hosts on this machine, breaks it on demand and
// removes it. docs/spec/lab.md is its contract.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
)

// Commands that other files of this package add.
var (
	topCommands  []func() *cobra.Command
	hostCommands []func() *cobra.Command
)

// register adds a command below lab; call it from init.
func register(make func() *cobra.Command) { topCommands = append(topCommands, make) }

// registerHost adds a command below lab host; call it from init.
func registerHost(make func() *cobra.Command) { hostCommands = append(hostCommands, make) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		stop()
		os.Exit(report(err))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A real Kubernetes cluster of several hosts on this machine, to be broken on demand",
		Long: `A real Kubernetes cluster of several hosts on this machine, to be broken on demand.

Every host has its own kernel namespaces, containerd, kubelet and BMC; volumes come from a
storage array outside the hosts. Labs of different names coexist. All commands are idempotent
but "up", which refuses a name that is taken, and each fault names the command that undoes it.

  lab up --hosts 3 --timings fast          make it (the first time builds Kubernetes: 15 minutes)
  kubectl --kubeconfig $(lab kubeconfig)   use it
  lab host power-off host-2                break it
  lab down                                 remove all of it`,
		SilenceUsage: true, SilenceErrors: true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().String("lab", lab.DefaultName, "name of the lab")
	root.PersistentFlags().StringP("output", "o", "text", "text or json")
	host := &cobra.Command{Use: "host", Short: "Switch and break hosts"}
	for _, make := range hostCommands {
		host.AddCommand(make())
	}
	root.AddCommand(host)
	for _, make := range topCommands {
		root.AddCommand(make())
	}
	return root
}

// openLab opens the lab that --lab names.
func openLab(cmd *cobra.Command) (*lab.Lab, error) {
	name, err := cmd.Flags().GetString("lab")
	if err != nil {
		return nil, err
	}
	return lab.Open(name)
}

// openHost opens the host that the first argument names.
func openHost(cmd *cobra.Command, args []string) (*lab.Host, error) {
	l, err := openLab(cmd)
	if err != nil {
		return nil, err
	}
	return l.Host(args[0])
}

// printResult prints value as one line of JSON under -o json, and text otherwise.
func printResult(cmd *cobra.Command, value any, text string) error {
	format, err := cmd.Flags().GetString("output")
	if err != nil {
		return err
	}
	switch format {
	case "text":
		_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
		return err
	case "json":
		return json.NewEncoder(cmd.OutOrStdout()).Encode(value)
	}
	return fmt.Errorf("--output %q: use text or json", format)
}
