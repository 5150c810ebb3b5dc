// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dev/holdfast/test/lab/events"
)

func init() { register(newEvents) }

func newEvents() *cobra.Command {
	var filter events.Filter
	var sources []string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened, in the order of one clock: faults, API requests, volumes, writes, BMC calls",
		Long: `Show what happened, in the order of one clock: faults, API requests, volumes, writes, BMC calls.

A line starts with the wall time and the monotonic time in seconds. With -o json there is one object
a line; its "mono" is in nanoseconds, as --since-mono takes it. Writes of one writer in a row are one
event, at the time of the first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range sources {
				source, err := events.ParseSource(name)
				if err != nil {
					return fmt.Errorf("--source: %w", err)
				}
				filter.Sources = append(filter.Sources, source)
			}
			l, err := openLab(cmd)
			if err != nil {
				return err
			}
			timeline, err := l.Events(filter)
			if err != nil {
				return err
			}
			return printTimeline(cmd, timeline)
		},
	}
	cmd.Flags().Int64Var(&filter.Since, "since-mono", 0, "leave out what was before this monotonic time in nanoseconds")
	cmd.Flags().Int64Var(&filter.Until, "until-mono", 0, "leave out what was after this monotonic time in nanoseconds")
	cmd.Flags().StringSliceVar(&sources, "source", nil, "only these sources: fault, audit, volume, write, bmc (default all)")
	cmd.Flags().BoolVar(&filter.RawWrites, "raw", false, "show every write by itself")
	cmd.Flags().BoolVar(&filter.Reads, "reads", false, "also show API requests that change nothing or only renew Leases")
	cmd.Flags().DurationVar(&filter.MaxGap, "max-gap", time.Second, "a longer pause between two writes ends their event")
	return cmd
}

func printTimeline(cmd *cobra.Command, timeline []events.Event) error {
	out := bufio.NewWriter(cmd.OutOrStdout())
	format := cmd.Flag("output").Value.String()
	encoder := json.NewEncoder(out)
	for _, event := range timeline {
		var err error
		switch format {
		case "text":
			_, err = fmt.Fprintln(out, event)
		case "json":
			err = encoder.Encode(event)
		default:
			err = fmt.Errorf("--output %q: use text or json", format)
		}
		if err != nil {
			return err
		}
	}
	return out.Flush()
}
