// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
)

func init() {
	registerHost(newPowerOff)
	registerHost(newPowerOn)
	registerHost(newKillKubelet)
	registerHost(newStartKubelet)
	register(newExec)
}

// newSwitch makes a command that does one thing to one host.
func newSwitch(use, short, done string, do func(*lab.Host, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use:   use + " HOST",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			if err := do(h, cmd.Context()); err != nil {
				return err
			}
			return printResult(cmd, map[string]string{"host": h.Name(), "done": use}, fmt.Sprintf(done, h.Name()))
		},
	}
}

func newPowerOff() *cobra.Command {
	return newSwitch("power-off", "Take the host's power away (undo: power-on)", "%s is off", (*lab.Host).PowerOff)
}

func newPowerOn() *cobra.Command {
	var wait bool
	cmd := newSwitch("power-on", "Boot the host with a new boot ID (undo of power-off)", "%s is on",
		func(h *lab.Host, ctx context.Context) error {
			if err := h.PowerOn(ctx); err != nil || !wait {
				return err
			}
			return h.WaitReady(ctx)
		})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the Node is Ready")
	return cmd
}

func newKillKubelet() *cobra.Command {
	return newSwitch("kill-kubelet", "SIGKILL the kubelet and keep it down; containers run on (undo: start-kubelet)",
		"kubelet of %s is down", (*lab.Host).KillKubelet)
}

func newStartKubelet() *cobra.Command {
	return newSwitch("start-kubelet", "Start the kubelet (undo of kill-kubelet)", "kubelet of %s runs", (*lab.Host).StartKubelet)
}

func newExec() *cobra.Command {
	return &cobra.Command{
		Use:   "exec HOST -- COMMAND [ARGUMENT...]",
		Short: "Run a command on a host, in all its namespaces",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			command, err := h.Command(cmd.Context(), args[1:]...)
			if err != nil {
				return err
			}
			command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
			err = command.Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
				return commandFailed{exit.ExitCode()}
			}
			return err
		},
	}
}

// commandFailed is the end of a command that lab exec ran; it has told by itself what was wrong.
type commandFailed struct{ status int }

func (c commandFailed) Error() string {
	return fmt.Sprintf("the command ended with status %d", c.status)
}

// report prints the error and returns the status to end with: for lab exec the one of its command.
func report(err error) int {
	if failed, ok := errors.AsType[commandFailed](err); ok {
		return failed.status
	}
	fmt.Fprintln(os.Stderr, "lab:", err)
	return 1
}
