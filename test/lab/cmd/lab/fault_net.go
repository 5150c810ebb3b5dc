// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
)

func init() { register(newNet) }

// faultResult is what a command that breaks or mends something prints under -o json.
type faultResult struct {
	Target string            `json:"target"`
	Done   string            `json:"done"`
	Args   map[string]string `json:"args,omitempty"`
	// Undo is the command that undoes it; empty when this was the undoing.
	Undo string `json:"undo,omitempty"`
}

// undo is how a person calls a command of this lab.
func undo(cmd *cobra.Command, words ...string) string {
	name := cmd.Flag("lab").Value.String()
	text := "bin/lab " + strings.Join(words, " ")
	if name != lab.DefaultName {
		text += " --lab " + name
	}
	return text
}

func newNet() *cobra.Command {
	net := &cobra.Command{Use: "net", Short: "Cut hosts off from parts of the network"}
	net.AddCommand(
		newNetChange("cut", "Drop what a host and its pods exchange with a plane (undo: net heal)", (*lab.Host).Cut),
		newNetChange("heal", "Undo net cut of a plane; all heals every plane", (*lab.Host).Heal),
		newNetShow(),
	)
	return net
}

func newNetChange(verb, short string, do func(*lab.Host, context.Context, fault.Plane, fault.Direction) error) *cobra.Command {
	var planeName, directionName string
	cmd := &cobra.Command{
		Use:   verb + " HOST --plane PLANE",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			plane, err := fault.ParsePlane(planeName)
			if err != nil {
				return fmt.Errorf("--plane: %w", err)
			}
			direction, err := fault.ParseDirection(directionName)
			if err != nil {
				return fmt.Errorf("--direction: %w", err)
			}
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			if err := do(h, cmd.Context(), plane, direction); err != nil {
				return err
			}
			result := faultResult{Target: h.Name(), Done: "net " + verb, Args: map[string]string{"plane": planeName, "direction": directionName}}
			text := fmt.Sprintf("%s: plane %s healed (%s)", h.Name(), plane, direction)
			if verb == "cut" {
				result.Undo = undo(cmd, "net heal", h.Name(), "--plane", planeName)
				text = fmt.Sprintf("%s: plane %s is cut (%s); undo: %s", h.Name(), plane, direction, result.Undo)
			}
			return printResult(cmd, result, text)
		},
	}
	cmd.Flags().StringVar(&planeName, "plane", "", "api, host-api, peers, storage, bmc or all")
	cmd.Flags().StringVar(&directionName, "direction", "both", "as the host sees it: in, out or both")
	if err := cmd.MarkFlagRequired("plane"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func newNetShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show HOST",
		Short: "Show what is cut and which connections hang",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			cuts, err := h.Network().Cuts(cmd.Context())
			if err != nil {
				return err
			}
			hung, err := h.Network().HungConnections(cmd.Context())
			if err != nil {
				return err
			}
			shown := struct {
				Target string                 `json:"target"`
				Cuts   map[fault.Plane]string `json:"cuts"`
				Hung   []string               `json:"hungConnections"`
			}{h.Name(), map[fault.Plane]string{}, []string{}}
			var text []string
			for _, plane := range fault.Planes {
				if cuts[plane] != 0 {
					shown.Cuts[plane] = cuts[plane].String()
					text = append(text, fmt.Sprintf("%s: plane %s is cut (%s)", h.Name(), plane, cuts[plane]))
				}
			}
			for _, c := range hung {
				shown.Hung = append(shown.Hung, c.String())
				text = append(text, fmt.Sprintf("%s: connection %s hangs", h.Name(), c))
			}
			if len(text) == 0 {
				text = []string{h.Name() + ": nothing is cut"}
			}
			return printResult(cmd, shown, strings.Join(text, "\n"))
		},
	}
}
