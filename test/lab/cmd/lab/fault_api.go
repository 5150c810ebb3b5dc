// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab"
)

func init() { register(newAPI) }

func newAPI() *cobra.Command {
	api := &cobra.Command{Use: "api", Short: "Break the API servers and the way to them"}
	api.AddCommand(
		newAPISwitch("stop", "Stop API servers: they accept connections and never answer (undo: api start)", (*lab.Lab).StopAPI),
		newAPISwitch("start", "Let API servers go on (undo of api stop)", (*lab.Lab).StartAPI),
		newHangConnection(),
		newResumeConnection(),
	)
	return api
}

func newAPISwitch(verb, short string, do func(*lab.Lab, context.Context, int) error) *cobra.Command {
	var server int
	cmd := &cobra.Command{
		Use:   verb,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("server") && server < 1 {
				return fmt.Errorf("--server %d: API servers are counted from 1; leave the flag out for all", server)
			}
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			if err := do(l, cmd.Context(), server); err != nil {
				return err
			}
			target, again := "API servers", "api start"
			if server > 0 {
				target, again = "API server "+strconv.Itoa(server), "api start --server "+strconv.Itoa(server)
			}
			result := faultResult{Target: target, Done: "api " + verb}
			text := target + ": running"
			if verb == "stop" {
				result.Undo = undo(cmd, again)
				text = fmt.Sprintf("%s: stopped; undo: %s", target, result.Undo)
			}
			return printResult(cmd, result, text)
		},
	}
	cmd.Flags().IntVar(&server, "server", 0, "one API server, counted from 1 (default all)")
	return cmd
}

func newHangConnection() *cobra.Command {
	return &cobra.Command{
		Use:   "hang-connection HOST",
		Short: "Drop the packets of the kubelet's present connections to API servers (undo: api resume-connection)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			connections, err := h.HangAPIConnections(cmd.Context())
			if err != nil {
				return err
			}
			var names []string
			for _, c := range connections {
				names = append(names, c.String())
			}
			all := strings.Join(names, ", ")
			result := faultResult{Target: h.Name(), Done: "api hang-connection", Args: map[string]string{"connections": all},
				Undo: undo(cmd, "api resume-connection", h.Name())}
			return printResult(cmd, result, fmt.Sprintf("%s: %s hangs; undo: %s", h.Name(), all, result.Undo))
		},
	}
}

func newResumeConnection() *cobra.Command {
	return &cobra.Command{
		Use:   "resume-connection HOST",
		Short: "Let the host's connections that hang go on (undo of api hang-connection)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			h, err := openHost(cmd, args)
			if err != nil {
				return err
			}
			if err := h.ResumeAPIConnections(cmd.Context()); err != nil {
				return err
			}
			return printResult(cmd, faultResult{Target: h.Name(), Done: "api resume-connection"}, h.Name()+": no connection hangs")
		},
	}
}
