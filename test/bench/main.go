// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures how long an application is down when its host is lost: with Holdfast, with what Kubernetes does by itself, and with a person who
// does the right thing at once; that it is not down when only the kubelet is; and what Holdfast's programs use. All is measured in one lab and one run.
// Rows are appended as they come, and a run that is repeated goes on where rows are missing. docs/results/README.md says what they mean. It needs root.
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
	n, witnessed, hung, prompt, unattached, human, stock int
	seed                                                 uint64
	censor, outage, quiet                                time.Duration
}

func main() {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.n, "n", 10, "cases of P1: Holdfast in API-only mode")
	flags.IntVar(&o.witnessed, "witnessed", 30, "cases of P1w: P1 with an agent on every host")
	flags.IntVar(&o.hung, "hung", 10, "cases of P2w: the host hangs with its power on, and an agent on every host")
	flags.DurationVar(&o.outage, "outage", time.Hour, "how long P7's kubelet is dead, beside everything else; 0 leaves P7 out")
	flags.DurationVar(&o.quiet, "quiet", time.Minute, "how long programs are looked on at rest")
	flags.IntVar(&o.prompt, "prompt", 5, "cases of P1s: P1 with kubelets that look at their status every 2 s")
	flags.IntVar(&o.unattached, "unattached", 3, "cases of P1n: the same with a volume that needs no attaching")
	flags.IntVar(&o.human, "human", 3, "cases of B2: the out-of-service taint the instant the Node is Unknown")
	flags.IntVar(&o.stock, "stock", 2, "cases of B0 and of B1 each: a stock StatefulSet, a stock Deployment")
	flags.Uint64Var(&o.seed, "seed", 1, "when hosts are lost, and which; rows of one seed are one run")
	flags.DurationVar(&o.censor, "censor", 780*time.Second, "when B0 and B1 are given up")
	o.Flags(flags, "docs/results/bench-failover", "rows.csv, outages.csv, usage.csv and README.md")
	campaign.Main(flags, func(ctx context.Context) error { return perform(ctx, o) })
}

// wanted is what has no row yet.
type wanted struct {
	cases map[figures.Kind][]figures.Case
	// outage is P7, usage what programs use.
	outage, usage bool
}

// agents reports whether anything is wanted that has an agent on every host, without whether there is anything else.
func (w wanted) agents() bool {
	return w.outage || w.usage || len(w.cases[figures.Witnessed])+len(w.cases[figures.Hung]) > 0
}

func (w wanted) without() bool {
	return len(w.cases[figures.Guarded])+len(w.cases[figures.Unattached])+len(w.cases[figures.Human])+len(w.cases[figures.Prompt]) > 0
}

func (o options) wanted() (wanted, error) {
	rows, err := figures.Load(o.rows())
	if err != nil {
		return wanted{}, err
	}
	w := wanted{cases: map[figures.Kind][]figures.Case{}}
	for k, n := range map[figures.Kind]int{figures.Guarded: o.n, figures.Witnessed: o.witnessed, figures.Hung: o.hung, figures.Prompt: o.prompt,
		figures.Unattached: o.unattached, figures.Human: o.human, figures.Deployment: o.stock, figures.StatefulSet: o.stock} {
		if missing := figures.Missing(figures.Cases(k, n, o.seed), rows); len(missing) > 0 {
			w.cases[k] = missing
		}
	}
	outages, err := figures.LoadOutages(o.outages(), o.seed)
	if err != nil {
		return w, err
	}
	usages, err := figures.LoadUsages(o.usages(), o.seed)
	w.outage, w.usage = o.outage > 0 && len(outages) == 0, o.witnessed+o.hung > 0 && len(usages) == 0
	return w, err
}

func (w wanted) nothing() bool { return len(w.cases) == 0 && !w.outage && !w.usage }

func (o options) rows() string    { return filepath.Join(o.Out, "rows.csv") }
func (o options) outages() string { return filepath.Join(o.Out, "outages.csv") }
func (o options) usages() string  { return filepath.Join(o.Out, "usage.csv") }

// hosts is how many a new lab needs: those that do not speak at a time (the one that is lost, that of a stock pair, that of P7) are less than half. Two have
// managers, and one the ledger.
func (o options) hosts() int { return max(5, 2*o.silent()+1) }

func (o options) silent() int {
	n := 1
	if o.stock > 0 {
		n++
	}
	if o.outage > 0 {
		n++
	}
	return n
}

// budget of Off commands: Holdfast's own and one for each host that hangs; a host without power spends none. Half as many again are for commands that are repeated.
func (o options) budget() int32 { return int32(2 + o.hung + (o.hung+1)/2) } //nolint:gosec // a handful

func perform(ctx context.Context, o options) (err error) {
	w, err := o.wanted()
	if err != nil {
		return err
	}
	if w.nothing() {
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
	s, err := stage.Raise(ctx, stage.Options{Lab: o.Lab, Hosts: o.hosts(), Timings: lab.Timings(o.Timings), Witnesses: w.agents(), FenceBudget: o.budget(),
		Progress: func(line string) { campaign.Tell("%s", line) }})
	defer func() { err = errors.Join(err, o.Leave(s)) }()
	if err != nil {
		return err
	}
	b := &bench{s: s, o: o, commit: commit}
	err = b.play(ctx, w)
	if err != nil {
		campaign.Tell("%s", s.Diagnose(ctx))
	}
	return errors.Join(err, o.summarise(b.scene(ctx)))
}

// summarise writes what the rows of the seed say. What the lab was like is kept from the summary that is there, if it is not told.
func (o options) summarise(scene string) error {
	all, err := figures.Load(o.rows())
	if err != nil {
		return err
	}
	run := figures.Run{Seed: o.seed, Rows: figures.OfSeed(all, o.seed)}
	if run.Outages, err = figures.LoadOutages(o.outages(), o.seed); err != nil {
		return err
	}
	if run.Usages, err = figures.LoadUsages(o.usages(), o.seed); err != nil {
		return err
	}
	path := filepath.Join(o.Out, "README.md")
	if scene == "" {
		scene = sceneOf(path)
	}
	return os.WriteFile(path, []byte(figures.Markdown(scene, run)), 0o644)
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
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if node, err := b.s.AwaitNode(soon, b.s.Lab.Hosts()[0].Name(), "its version", anyNode); err == nil {
		version = "Kubernetes " + node.Status.NodeInfo.KubeletVersion
	}
	load, _ := os.ReadFile("/proc/loadavg") // of a kernel that has none, none is told
	average, _, _ := strings.Cut(string(load), " ")
	return fmt.Sprintf("%d CPUs, %s, load average %s at the end; a lab of %d hosts with real kubelets and BMCs (ipmi_sim), %s with %s timings; Holdfast with %d replicas and a budget of %d Off commands an hour",
		runtime.NumCPU(), kernel, average, len(b.s.Lab.Hosts()), version, b.s.Lab.Timings(), stage.Replicas, b.o.budget())
}
