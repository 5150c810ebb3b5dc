// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo tells Holdfast's two scenes on a terminal: a kubelet that dies under an application which lives, and a host that loses its power.
// It makes a lab, plays both, believes nothing but the logs of the storage array, the API server and the BMC, and exits 1 with a sentence
// when a promise does not hold. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// options are the flags.
type options struct {
	lab             string
	keep            bool
	withoutHoldfast bool
	bmcDead         bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout))
}

// run returns the exit code: 0 when both promises held, 1 when one did not or the demo could not be played, 2 for a wrong command line.
func run(ctx context.Context, args []string, out io.Writer) int {
	var o options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.StringVar(&o.lab, "lab", "", "use the lab of this name, also one that is up (default: a new one, named demo)")
	flags.BoolVar(&o.keep, "keep", false, "leave the lab up")
	flags.BoolVar(&o.withoutHoldfast, "without-holdfast", false, "leave Holdfast out, and see the demo fail")
	flags.BoolVar(&o.bmcDead, "bmc-dead", false, "let the BMC of the host that loses its power be dead, and see the demo fail")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	log.SetLogger(logr.Discard()) // the client's library has nothing to tell that the demo does not
	t := newTeller(out)
	if err := perform(ctx, o, t); err != nil {
		t.bad("demo: " + err.Error())
		return 1
	}
	t.good("demo: both promises held")
	return 0
}

// perform makes the lab, plays, and removes the lab whatever happened.
func perform(ctx context.Context, o options, t *teller) error {
	if o.lab == "" {
		o.lab = "demo"
		if _, err := lab.Open(o.lab); err == nil {
			return errors.New("lab demo is up already; remove it with: bin/lab down --lab demo")
		}
	}
	t.title("Holdfast", "a real cluster of three hosts on this machine")
	t.say("Each host has its own network, processes, containerd, kubelet and BMC. Holdfast runs in the cluster as two pods. " +
		"The storage array is outside the hosts and logs every write. The first time, the components are built from source: 15 to 20 minutes on two cores.")
	s, err := stage.Raise(ctx, stage.Options{Lab: o.lab, WithoutHoldfast: o.withoutHoldfast, Progress: t.progress})
	if err == nil {
		err = (&demo{teller: t, s: s, o: o}).play(ctx)
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	return errors.Join(err, leave(s, o, t))
}

func leave(s *stage.Stage, o options, t *teller) error {
	if o.keep && s != nil {
		s.Leave()
		t.say(fmt.Sprintf("The lab is still up. Use it with: export KUBECONFIG=%s; %s get gsa,hi -A. Remove it with: bin/lab down --lab %s",
			s.Lab.Kubeconfig(), filepath.Join(s.Lab.StateDir(), "bin", "kubectl"), o.lab))
		return nil
	}
	t.progress("removing the lab")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := stage.Strike(ctx, s, o.lab); err != nil {
		return fmt.Errorf("the lab could not be removed: %w; try: bin/lab down --lab %s", err, o.lab)
	}
	return nil
}
