// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command ledger-client appends to the ledger from outside the hosts and records every acknowledgement.
// It ends at SIGTERM or after --for, and prints a summary as JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/holdfast-dev/holdfast/test/lab/storage/ledger/client"
)

func main() {
	var c client.Config
	flag.StringVar(&c.EndpointsFile, "endpoints-file", "", "file with one host:port per line, read before every attempt (required)")
	flag.DurationVar(&c.Interval, "interval", 20*time.Millisecond, "time from one attempt to the next")
	flag.DurationVar(&c.Timeout, "timeout", time.Second, "patience of one attempt")
	out := flag.String("out", "", "JSONL file to which acknowledgements are appended (required)")
	duration := flag.Duration("for", 0, "how long to run; 0 is until SIGTERM")
	flag.Parse()
	if c.EndpointsFile == "" || *out == "" {
		fmt.Fprintln(os.Stderr, "ledger-client: --endpoints-file and --out are required")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *duration)
		defer cancel()
	}
	if err := run(ctx, c, *out); err != nil {
		fmt.Fprintln(os.Stderr, "ledger-client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c client.Config, out string) error {
	f, err := os.OpenFile(out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	summary, err := client.Run(ctx, c, f)
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(summary), f.Close())
}
