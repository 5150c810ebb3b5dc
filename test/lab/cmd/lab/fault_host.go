// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
)

func init() {
	registerHost(newHang)
	registerHost(newThaw)
	register(newBMC)
}

func newHang() *cobra.Command {
	var userspace, dead bool
	cmd := &cobra.Command{
		Use:   "hang HOST",
		Short: "Freeze everything on the host (undo: host thaw)",
		Long: `Freeze everything on the host (undo: host thaw).

--userspace, the default: no process runs, but the kernel still answers and completes TCP connects.
--dead: the kernel is silent too.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind := lab.HangUserspace
			if dead {
				kind = lab.HangDead
			}
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			if err := h.Hang(cmd.Context(), kind); err != nil {
				return err
			}
			result := faultResult{Target: h.Name(), Done: "hang", Args: map[string]string{"kind": string(kind)}, Undo: undo(cmd, "host thaw", h.Name())}
			return printResult(cmd, result, fmt.Sprintf("%s hangs (%s); undo: %s", h.Name(), kind, result.Undo))
		},
	}
	cmd.Flags().BoolVar(&userspace, "userspace", false, "only processes hang (default)")
	cmd.Flags().BoolVar(&dead, "dead", false, "the kernel is silent too")
	cmd.MarkFlagsMutuallyExclusive("userspace", "dead")
	return cmd
}

func newThaw() *cobra.Command {
	return newSwitch("thaw", "Let a host that hangs go on (undo of hang)", "%s goes on", (*lab.Host).EndHang)
}

func newBMC() *cobra.Command {
	parent := &cobra.Command{Use: "bmc", Short: "Break the hosts' management controllers"}
	var modeName string
	cmd := &cobra.Command{
		Use:   "fault HOST --mode MODE",
		Short: "Make a host's BMC misbehave (undo: --mode clear)",
		Long: `Make a host's BMC misbehave (undo: --mode clear). A BMC has one fault at a time.

  dead             answers nothing
  slow             carries out and answers every chassis request after 8 s; loses what is sent meanwhile
  wrong-password   another password than lab-HOST
  ignore           accepts Off and does nothing
  lie-off          says Off while the host runs; accepts Off and does nothing
  wrong-identity   another machine's GUID
  clear            no fault`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, err := bmc.ParseMode(modeName)
			if err != nil {
				return fmt.Errorf("--mode: %w", err)
			}
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			if err := h.SetBMCMode(cmd.Context(), mode); err != nil {
				return err
			}
			result := faultResult{Target: h.Name(), Done: "bmc fault", Args: map[string]string{"mode": modeName}}
			text := fmt.Sprintf("BMC of %s is well", h.Name())
			if mode != bmc.Clear {
				result.Undo = undo(cmd, "bmc fault", h.Name(), "--mode clear")
				text = fmt.Sprintf("BMC of %s: %s; undo: %s", h.Name(), mode, result.Undo)
			}
			return printResult(cmd, result, text)
		},
	}
	cmd.Flags().StringVar(&modeName, "mode", "", "dead, slow, wrong-password, ignore, lie-off, wrong-identity or clear")
	if err := cmd.MarkFlagRequired("mode"); err != nil {
		panic(err) // the flag is defined above
	}
	parent.AddCommand(cmd)
	return parent
}
