// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// patience bounds every wait for something that Holdfast promises.
	patience = time.Minute
	// lookEvery is how often a log is read while something is awaited in it.
	lookEvery = 500 * time.Millisecond
)

// demo plays the scenes.
type demo struct {
	*teller
	s *stage.Stage
	o options
	// host is where both scenes happen: one without a pod of Holdfast, so that they are about the ledger alone.
	host string
	// began and lost are when kubelet and power were taken, CLOCK_MONOTONIC in nanoseconds.
	began, lost int64
}

func (d *demo) play(ctx context.Context) error {
	host, err := d.s.FreeHost(ctx)
	if err != nil {
		return err
	}
	d.host = host
	if _, err := d.s.Place(ctx, host, d.s.Actor); err != nil {
		return fmt.Errorf("bring the ledger to %s: %w", host, err)
	}
	d.title("The ledger", "what is being guarded")
	d.say("ledger-0, a StatefulSet with one volume, appends a line every 10 ms. A client outside the hosts appends every 20 ms, one call at a time, and " +
		"keeps every acknowledgement it gets: those lines must never be lost.")
	if !d.o.withoutHoldfast {
		if err := d.show(ctx, "get", "gsa", "-n", stage.Namespace); err != nil {
			return err
		}
	}
	if err := d.ledgerLine(ctx); err != nil {
		return err
	}
	if err := d.kubeletDies(ctx); err != nil {
		return fmt.Errorf("the first promise does not hold: %w", err)
	}
	if err := d.s.AwaitReady(ctx); err != nil {
		return fmt.Errorf("between the scenes: %w", err)
	}
	if err := d.powerIsLost(ctx); err != nil {
		return fmt.Errorf("the second promise does not hold: %w", err)
	}
	return d.timeline()
}

// show runs kubectl and prints what it says.
func (d *demo) show(ctx context.Context, args ...string) error {
	d.command("kubectl " + strings.Join(args, " "))
	out, err := d.s.Kubectl(ctx, args...)
	d.output(out)
	return err
}

// status shows both kinds.
func (d *demo) status(ctx context.Context) error {
	if err := d.show(ctx, "get", "gsa", "-n", stage.Namespace); err != nil {
		return err
	}
	return d.show(ctx, "get", "hi")
}

// do runs a command of the lab, as a person would, and returns when it began, CLOCK_MONOTONIC in nanoseconds.
func (d *demo) do(ctx context.Context, args ...string) (int64, error) {
	args = append(args, "--lab", d.s.Lab.Name())
	d.command("bin/lab " + strings.Join(args, " "))
	began := mono.Nanoseconds()
	out, err := exec.CommandContext(ctx, filepath.Join(d.s.Lab.StateDir(), "bin", "lab"), args...).CombinedOutput()
	d.output(string(out))
	if err != nil {
		return began, fmt.Errorf("lab %s: %w", strings.Join(args, " "), err)
	}
	return began, nil
}

// ledgerLine asks the ledger itself where it is and how far it has come.
func (d *demo) ledgerLine(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pod, err := d.s.AwaitPod(ctx, "the ledger to be ready", stage.PodReady)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+pod.Status.PodIP+":8080/status", nil)
	if err != nil {
		return err
	}
	outside := &http.Client{Transport: &http.Transport{DialContext: d.s.Lab.Dialer("client"), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	response, err := outside.Do(request)
	if err != nil {
		return fmt.Errorf("ask the ledger: %w", err)
	}
	defer response.Body.Close()
	var is struct {
		Ready bool
		Host  string
		Boot  string
		Seq   uint64
	}
	if err := json.NewDecoder(response.Body).Decode(&is); err != nil {
		return fmt.Errorf("ask the ledger: %w", err)
	}
	d.line("", "")
	d.line("", fmt.Sprintf("  ledger: last sequence %d, written on %s (boot %.8s), serving %v", is.Seq, is.Host, is.Boot, is.Ready))
	return nil
}

// until asks now and then until the answer is yes.
func until(ctx context.Context, what string, reached func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if ok, err := reached(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s in vain for %s", patience, what)
		}
	}
}

// since is the time that has passed since an instant of CLOCK_MONOTONIC in nanoseconds.
func since(instant int64) time.Duration { return time.Duration(mono.Nanoseconds() - instant) }
