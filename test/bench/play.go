// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

// tries is how many failures in a row end the run.
const tries = 3

// bench plays cases.
type bench struct {
	s      *stage.Stage
	o      options
	commit string
	// began tells this run's workloads from those of an earlier one in the same lab.
	began int64
	// dark are the hosts that stock cases left without power; outage is P7's, if it is being played.
	dark   []string
	outage *outage
	// pairs of stock cases are still to come, pair is the one that waits.
	pairs [][]figures.Case
	pair  *pair
	// quarrels is how often two wrote to a volume at once, as far as it was judged.
	quarrels map[string]int

	writing sync.Mutex // one row at a time
	waiting sync.WaitGroup
	failed  error // of a case that waits; guarded by writing

	lost   error // of cases that were left out
	inARow int
}

// play begins what takes long, and plays the others while that waits: stock cases take thirteen minutes in which nothing happens on hosts that are off, and
// P7 an hour. A case that fails is told and left out, and the next run makes up for it.
func (b *bench) play(ctx context.Context, w wanted) error {
	ctx, stop := context.WithCancel(ctx)
	defer func() { stop(); b.waiting.Wait() }()
	b.began, b.quarrels, b.pairs = mono.Nanoseconds()/int64(time.Second), map[string]int{}, pairs(w.cases[figures.StatefulSet], w.cases[figures.Deployment])
	err := b.perform(ctx, w)
	b.waiting.Wait() // also after a failure: their thirteen minutes shall not be in vain
	b.writing.Lock()
	defer b.writing.Unlock()
	return errors.Join(err, b.lost, b.failed)
}

func (b *bench) perform(ctx context.Context, w wanted) error {
	if w.agents() {
		if err := b.withAgents(ctx, w); err != nil {
			return err
		}
	}
	if err := b.withoutAgents(ctx, w); err != nil {
		return err
	}
	if err := b.stockEnds(ctx); err != nil {
		return err
	}
	if b.outage == nil {
		return nil
	}
	campaign.Tell("waiting for the end of P7's outage")
	return b.attempt(ctx, "P7", b.endOutage)
}

// withAgents measures what has an agent on every host: at rest first, then, with a kubelet dead elsewhere, everything that is lost.
func (b *bench) withAgents(ctx context.Context, w wanted) error {
	var used *meter
	if w.usage {
		if err := b.attempt(ctx, "programs at rest", func(ctx context.Context) (err error) {
			used, err = b.rest(ctx)
			return err
		}); err != nil {
			return err
		}
	}
	if w.outage {
		if err := b.attempt(ctx, "P7", b.beginOutage); err != nil {
			return err
		}
	}
	for _, k := range []figures.Kind{figures.Witnessed, figures.Hung} {
		if err := b.all(ctx, w.cases[k], b.leads); err != nil {
			return err
		}
	}
	if used == nil {
		return nil
	}
	return b.attempt(ctx, "what programs used", used.keep)
}

// withoutAgents plays the rest, one after the other.
func (b *bench) withoutAgents(ctx context.Context, w wanted) error {
	if !w.without() {
		return nil
	}
	if err := b.s.Witnesses(ctx, false, b.gone()...); err != nil {
		return err
	}
	if err := b.all(ctx, w.cases[figures.Guarded], b.leads); err != nil {
		return err
	}
	if cases := w.cases[figures.Unattached]; len(cases) > 0 {
		if err := b.unattached(ctx, cases); err != nil {
			return err
		}
	}
	if err := b.all(ctx, w.cases[figures.Human], b.human); err != nil {
		return err
	}
	if cases := w.cases[figures.Prompt]; len(cases) > 0 {
		return b.prompt(ctx, cases)
	}
	return nil
}

// all plays cases, and a stock pair between them when its turn has come.
func (b *bench) all(ctx context.Context, cases []figures.Case, play func(context.Context, figures.Case) error) error {
	for _, c := range cases {
		if err := b.stockTurn(ctx); err != nil {
			return err
		}
		if err := b.attempt(ctx, fmt.Sprintf("%s case %d", c.Kind, c.Number), func(ctx context.Context) error { return play(ctx, c) }); err != nil {
			return err
		}
	}
	return nil
}

// attempt plays something. What fails is told, mended and left out, unless it is one too many in a row.
func (b *bench) attempt(ctx context.Context, what string, play func(context.Context) error) error {
	err := play(ctx)
	if err == nil {
		b.inARow = 0
		return nil
	}
	err = fmt.Errorf("%s: %w", what, err)
	if ctx.Err() != nil {
		return err
	}
	campaign.Tell("%s\n%s", err, b.s.Diagnose(ctx))
	b.lost, b.inARow = errors.Join(b.lost, err), b.inARow+1
	if b.inARow >= tries {
		return fmt.Errorf("%d failures in a row", tries)
	}
	if err := b.mend(ctx); err != nil {
		return fmt.Errorf("mending the lab after that: %w", err)
	}
	return nil
}

// mend gives every host but those that are to be lost what a case may have taken from it.
func (b *bench) mend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var err error
	for _, h := range b.s.Lab.Hosts() {
		if _, wrong := b.s.Kubectl(ctx, "uncordon", h.Name()); wrong != nil {
			err = errors.Join(err, wrong)
		}
		if slices.Contains(b.gone(), h.Name()) {
			continue
		}
		err = errors.Join(err, h.EndHang(ctx), h.PowerOn(ctx), h.StartKubelet(ctx), b.untaint(ctx, h.Name()))
	}
	return errors.Join(err, b.well(ctx))
}

// untaint takes B2's taint off.
func (b *bench) untaint(ctx context.Context, host string) error {
	return b.setTaints(ctx, host, func(t []corev1.Taint) []corev1.Taint {
		return slices.DeleteFunc(t, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintOutOfService })
	})
}

// leads plays a case with the ledger that is always there.
func (b *bench) leads(ctx context.Context, c figures.Case) error { return b.guarded(ctx, b.s.Actor, c) }

// prompt plays P1s with the kubelets of all hosts that have power, and gives them back their configuration.
func (b *bench) prompt(ctx context.Context, cases []figures.Case) error {
	// Where only the first is set, the kubelet also writes its status that often.
	err := b.kubelets(ctx, map[string]any{"nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "5m0s"})
	if err == nil {
		err = b.all(ctx, cases, b.leads)
	}
	return errors.Join(err, b.kubelets(ctx, nil))
}

func (b *bench) kubelets(ctx context.Context, fields map[string]any) error {
	for _, h := range b.s.Lab.Hosts() {
		if slices.Contains(b.gone(), h.Name()) {
			continue
		}
		if err := h.ReconfigureKubelet(ctx, fields); err != nil {
			return err
		}
	}
	return b.well(ctx)
}

// unattached plays P1n with an actor of its own.
func (b *bench) unattached(ctx context.Context, cases []figures.Case) error {
	a, err := b.s.Enter(ctx, stage.Role{Name: "unattached", Kind: "StatefulSet", Class: "permissive"})
	if err != nil {
		return err
	}
	return errors.Join(b.all(ctx, cases, func(ctx context.Context, c figures.Case) error { return b.guarded(ctx, a, c) }), a.Exit(ctx))
}
