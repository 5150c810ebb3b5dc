// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures how long an application is down when its host loses its power: with Holdfast, with what Kubernetes does by itself, and with
// a person who does the right thing at once. All kinds are measured in one lab and one run. Rows are appended as they come, and a run that is repeated
// goes on where rows are missing. docs/results/README.md says what they mean. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
)

// options are the flags.
type options struct {
	campaign.Options
	n, witnessed, prompt, unattached, human, stock int
	seed                                           uint64
	censor                                         time.Duration
}

func main() {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.n, "n", 10, "cases of P1: Holdfast in API-only mode")
	flags.IntVar(&o.witnessed, "witnessed", 30, "cases of P1w: P1 with an agent on every host")
	flags.IntVar(&o.prompt, "prompt", 5, "cases of P1s: P1 with kubelets that look at their status every 2 s")
	flags.IntVar(&o.unattached, "unattached", 3, "cases of P1n: the same with a volume that needs no attaching")
	flags.IntVar(&o.human, "human", 3, "cases of B2: the out-of-service taint the instant the Node is Unknown")
	flags.IntVar(&o.stock, "stock", 2, "cases of B0 and of B1 each: a stock StatefulSet, a stock Deployment")
	flags.Uint64Var(&o.seed, "seed", 1, "when hosts are lost, and which; rows of one seed are one run")
	flags.DurationVar(&o.censor, "censor", 780*time.Second, "when B0 and B1 are given up")
	o.Flags(flags, "docs/results/bench-failover", "rows.csv and README.md")
	campaign.Main(flags, func(ctx context.Context) error { return perform(ctx, o) })
}

// wanted are the cases without a row, by kind.
func (o options) wanted() (map[figures.Kind][]figures.Case, error) {
	rows, err := figures.Load(o.rows())
	wanted := map[figures.Kind][]figures.Case{}
	for k, n := range map[figures.Kind]int{
		figures.Guarded: o.n, figures.Witnessed: o.witnessed, figures.Prompt: o.prompt, figures.Unattached: o.unattached, figures.Human: o.human, figures.Deployment: o.stock, figures.StatefulSet: o.stock,
	} {
		if missing := figures.Missing(figures.Cases(k, n, o.seed), rows); len(missing) > 0 {
			wanted[k] = missing
		}
	}
	return wanted, err
}

func (o options) rows() string { return filepath.Join(o.Out, "rows.csv") }

// hosts is how many a new lab needs: those that the stock cases leave without power are, with the one that is lost next, less than half.
func (o options) hosts() int { return max(5+o.stock, 2*(o.stock+1)+1) }

func perform(ctx context.Context, o options) (err error) {
	wanted, err := o.wanted()
	if err != nil {
		return err
	}
	if len(wanted) == 0 {
		campaign.Tell("every row of seed %d is there; another --seed makes another run", o.seed)
		return o.summarise("")
	}
	commit, err := commitOf(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return err
	}
	s, err := stage.Raise(ctx, stage.Options{Lab: o.Lab, Hosts: o.hosts(), Timings: lab.Timings(o.Timings), Witnesses: len(wanted[figures.Witnessed]) > 0, Progress: func(line string) { campaign.Tell("%s", line) }})
	defer func() { err = errors.Join(err, o.Leave(s)) }()
	if err != nil {
		return err
	}
	b := &bench{s: s, o: o, commit: commit}
	if err := b.play(ctx, wanted); err != nil {
		campaign.Tell("%s", s.Diagnose(ctx))
		return err
	}
	return o.summarise(b.scene(ctx))
}

// summarise writes what the rows of the seed say. What the lab was like is kept from the summary that is there, if it is not told.
func (o options) summarise(scene string) error {
	all, err := figures.Load(o.rows())
	if err != nil {
		return err
	}
	path := filepath.Join(o.Out, "README.md")
	if scene == "" {
		scene = sceneOf(path)
	}
	return os.WriteFile(path, []byte(figures.Markdown(o.seed, scene, figures.OfSeed(all, o.seed))), 0o644)
}

func sceneOf(path string) string {
	text, _ := os.ReadFile(path) // none yet, none to keep
	for line := range strings.Lines(string(text)) {
		if scene, ok := strings.CutPrefix(line, figures.ScenePrefix); ok {
			return strings.TrimSpace(scene)
		}
	}
	return "not recorded"
}

// commitOf names the checkout; what is not committed is told as such. Results do not count.
func commitOf(ctx context.Context) (string, error) {
	head, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("the commit is part of every row; run the bench inside a git checkout: %w", err)
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(exclude,top)docs/results").Output()
	name := strings.TrimSpace(string(head))
	if len(changed) > 0 {
		name += "+changes"
	}
	return name, err
}

// scene says where the rows come from.
func (b *bench) scene(ctx context.Context) string {
	var u unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&u) == nil {
		kernel = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	version := "Kubernetes of an unknown version"
	if node, err := b.s.AwaitNode(ctx, b.s.Lab.Hosts()[0].Name(), "its version", anyNode); err == nil {
		version = "Kubernetes " + node.Status.NodeInfo.KubeletVersion
	}
	load, _ := os.ReadFile("/proc/loadavg") // of a kernel that has none, none is told
	average, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%d CPUs, %s, load average %s at the end; a lab of %d hosts with real kubelets and BMCs (ipmi_sim), %s with %s timings; Holdfast with %d replicas",
		runtime.NumCPU(), kernel, average, len(b.s.Lab.Hosts()), version, b.s.Lab.Timings(), stage.Replicas)
}
