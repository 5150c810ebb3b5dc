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

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// patience bounds every wait for the lab to be as it should.
	patience = 3 * time.Minute
	// giveUp bounds P1 and B2: several times what either should take.
	giveUp = 3 * time.Minute
	// stagger keeps faults apart that the node controller taints, one in ten seconds.
	stagger = 12 * time.Second
)

// bench plays cases.
type bench struct {
	s      *stage.Stage
	o      options
	commit string
	// began tells this run's workloads from those of an earlier one in the same lab.
	began int64
	// dark are the hosts that stock cases left without power.
	dark []string

	writing sync.Mutex // one row at a time
	waiting sync.WaitGroup
	failed  error // of a case that waits; guarded by writing
}

// play runs the stock cases' faults first, and the others while those wait: they take twelve minutes in which nothing happens on hosts that are off.
func (b *bench) play(ctx context.Context, wanted map[figures.Kind][]figures.Case) error {
	ctx, stop := context.WithCancel(ctx)
	defer func() { stop(); b.waiting.Wait() }()
	b.began = mono.Nanoseconds() / int64(time.Second)
	if len(wanted[figures.Witnessed]) > 0 { // their image is there now; they come back when their cases do
		if err := b.s.Witnesses(ctx, false); err != nil {
			return err
		}
	}
	if err := b.stock(ctx, wanted[figures.StatefulSet], wanted[figures.Deployment]); err != nil {
		return err
	}
	err := b.foreground(ctx, wanted)
	campaign.Tell("waiting for the stock cases")
	b.waiting.Wait() // also after a failure: their twelve minutes shall not be in vain
	b.writing.Lock()
	defer b.writing.Unlock()
	return errors.Join(err, b.failed)
}

// foreground plays, one after the other, what does not take long.
func (b *bench) foreground(ctx context.Context, wanted map[figures.Kind][]figures.Case) error {
	if err := b.holdfast(ctx, b.s.Actor, wanted[figures.Guarded]); err != nil {
		return err
	}
	if cases := wanted[figures.Unattached]; len(cases) > 0 {
		if err := b.unattached(ctx, cases); err != nil {
			return err
		}
	}
	for _, c := range wanted[figures.Human] {
		if err := b.human(ctx, c); err != nil {
			return fmt.Errorf("%s case %d: %w", c.Kind, c.Number, err)
		}
	}
	if cases := wanted[figures.Prompt]; len(cases) > 0 {
		if err := b.prompt(ctx, cases); err != nil {
			return err
		}
	}
	if cases := wanted[figures.Witnessed]; len(cases) > 0 {
		return b.witnessed(ctx, cases)
	}
	return nil
}

// witnessed plays P1w with agents on all hosts, and takes them away again.
func (b *bench) witnessed(ctx context.Context, cases []figures.Case) error {
	err := b.s.Witnesses(ctx, true, b.dark...)
	if err == nil {
		err = b.holdfast(ctx, b.s.Actor, cases)
	}
	return errors.Join(err, b.s.Witnesses(ctx, false, b.dark...))
}

// prompt plays P1s with the kubelets of all hosts that have power, and gives them back their configuration.
func (b *bench) prompt(ctx context.Context, cases []figures.Case) error {
	// Where only the first is set, the kubelet also writes its status that often.
	err := b.kubelets(ctx, map[string]any{"nodeStatusUpdateFrequency": "2s", "nodeStatusReportFrequency": "5m0s"})
	if err == nil {
		err = b.holdfast(ctx, b.s.Actor, cases)
	}
	return errors.Join(err, b.kubelets(ctx, nil))
}

func (b *bench) kubelets(ctx context.Context, fields map[string]any) error {
	for _, h := range b.s.Lab.Hosts() {
		if slices.Contains(b.dark, h.Name()) {
			continue
		}
		if err := h.ReconfigureKubelet(ctx, fields); err != nil {
			return err
		}
	}
	return b.well(ctx)
}

// holdfast plays an actor's cases.
func (b *bench) holdfast(ctx context.Context, a *stage.Actor, cases []figures.Case) error {
	for _, c := range cases {
		if err := b.guarded(ctx, a, c); err != nil {
			return fmt.Errorf("%s case %d: %w", c.Kind, c.Number, err)
		}
	}
	return nil
}

// unattached plays P1n with an actor of its own.
func (b *bench) unattached(ctx context.Context, cases []figures.Case) error {
	a, err := b.s.Enter(ctx, stage.Role{Name: "unattached", Kind: "StatefulSet", Class: "permissive"})
	if err != nil {
		return err
	}
	return errors.Join(b.holdfast(ctx, a, cases), a.Exit(ctx))
}

// free are the hosts that may be lost: neither dark, nor with a part of Holdfast, nor with a guarded app but the one named.
func (b *bench) free(ctx context.Context, app string) ([]string, error) {
	var pods corev1.PodList
	if err := b.s.Client.List(ctx, &pods); err != nil {
		return nil, err
	}
	taken := slices.Clone(b.dark)
	for _, p := range pods.Items {
		if p.Namespace == stage.HoldfastNamespace || (p.Namespace == stage.Namespace && p.Labels["app"] != app) {
			taken = append(taken, p.Spec.NodeName)
		}
	}
	var free []string
	for _, h := range b.s.Lab.Hosts() {
		if !slices.Contains(taken, h.Name()) {
			free = append(free, h.Name())
		}
	}
	if len(free) == 0 {
		return nil, errors.New("every host carries a part of Holdfast or is off; raise a lab with more hosts")
	}
	return free, nil
}

func (b *bench) pick(ctx context.Context, c figures.Case, app string) (*lab.Host, error) {
	free, err := b.free(ctx, app)
	if err != nil {
		return nil, err
	}
	return b.s.Lab.Host(free[c.Pick%uint64(len(free))])
}

// well waits until nothing is the matter with the hosts that have power, and with Holdfast.
func (b *bench) well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, h := range b.s.Lab.Hosts() {
		if slices.Contains(b.dark, h.Name()) {
			continue
		}
		if _, err := b.s.AwaitNode(ctx, h.Name(), h.Name()+" to be Ready and without taints", func(n *corev1.Node) bool {
			return stage.NodeReady(n) && len(n.Spec.Taints) == 0
		}); err != nil {
			return err
		}
	}
	if err := b.s.AwaitReady(ctx); err != nil {
		return err
	}
	return errors.Join(b.s.AwaitWitnesses(ctx, b.dark...), b.s.AwaitServed(ctx))
}

// moment waits until the case wants its host to be lost.
func (b *bench) moment(ctx context.Context, c figures.Case, host string) error {
	var last time.Time
	seen := -1 // the renewal that is there already does not count
	if _, err := b.s.AwaitLease(ctx, host, fmt.Sprintf("%d renewals by %s", c.Renewals, host), func(l *coordinationv1.Lease) bool {
		if l.Spec.RenewTime != nil && l.Spec.RenewTime.After(last) {
			last, seen = l.Spec.RenewTime.Time, seen+1
		}
		return seen >= c.Renewals
	}); err != nil {
		return err
	}
	at := time.NewTimer(time.Until(last.Add(c.Age)))
	defer at.Stop()
	select {
	case <-at.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lose takes the host's power and returns what is known then about the case.
func (b *bench) lose(ctx context.Context, host *lab.Host, cases ...played) ([]played, error) {
	since := mono.Nanoseconds()
	size, err := b.journalSize()
	if err != nil {
		return nil, err
	}
	if err := host.PowerOff(ctx); err != nil {
		return nil, err
	}
	found, err := b.s.Lab.Events(events.Filter{Since: since, Sources: []events.Source{events.Faults}})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(found, func(e events.Event) bool {
		return e.Fault != nil && e.Fault.Fault == "power-off" && e.Fault.Target == host.Name() && e.Fault.State == fault.Begin
	})
	if i < 0 {
		return nil, fmt.Errorf("the loss of %s's power is not in the lab's journal of faults", host.Name())
	}
	var lease coordinationv1.Lease
	if err := b.s.Client.Get(ctx, types.NamespacedName{Namespace: corev1.NamespaceNodeLease, Name: host.Name()}, &lease); err != nil {
		return nil, err
	}
	for n := range cases {
		p := &cases[n]
		p.host, p.t0, p.journal = host.Name(), found[i].Stamp, size
		if lease.Spec.RenewTime != nil {
			p.leaseAge = p.t0.Wall.Sub(lease.Spec.RenewTime.Time)
		}
		campaign.Tell("%s case %d: %s loses its power, its lease is %.1f s old", p.Kind, p.Number, p.host, p.leaseAge.Seconds())
	}
	return cases, nil
}

// guarded is a case of P1, P1w, P1s or P1n.
func (b *bench) guarded(ctx context.Context, a *stage.Actor, c figures.Case) error {
	if err := b.well(ctx); err != nil {
		return err
	}
	host, err := b.pick(ctx, c, a.Name)
	if err != nil {
		return err
	}
	placed, err := b.s.Place(ctx, host.Name(), a)
	if err != nil {
		return err
	}
	before, err := b.s.JudgeVolume(ctx, a.Volume())
	if err != nil {
		return err
	}
	if err := errors.Join(b.well(ctx), a.AwaitReady(ctx), a.AwaitServed(ctx)); err != nil {
		return err
	}
	if err := b.moment(ctx, c, host.Name()); err != nil {
		return err
	}
	lost, err := b.lose(ctx, host, played{Case: c, pod: placed[0], volume: a.Volume(), interleavings: len(before.Interleavings)})
	if err != nil {
		return err
	}
	if err := b.measure(ctx, lost[0], giveUp); err != nil {
		return err
	}
	return b.comeBack(ctx, host)
}

// comeBack gives the host its power again, and waits until Holdfast has let it back.
func (b *bench) comeBack(ctx context.Context, host *lab.Host) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := host.PowerOn(ctx); err != nil {
		return err
	}
	boot, err := host.BootID()
	if err != nil {
		return err
	}
	if _, err := b.s.AwaitNode(ctx, host.Name(), host.Name()+" to be back", func(n *corev1.Node) bool {
		return stage.NodeReady(n) && n.Status.NodeInfo.BootID == boot && !hasTaint(n, v1alpha1.TaintFenced)
	}); err != nil {
		return err
	}
	return b.s.AwaitNoOpenIncident(ctx)
}

// human is a case of B2: somebody watches the Node, knows that the host is off, and says so the instant that Kubernetes notices.
func (b *bench) human(ctx context.Context, c figures.Case) error {
	if err := b.well(ctx); err != nil {
		return err
	}
	host, err := b.pick(ctx, c, "")
	if err != nil {
		return err
	}
	pod, err := b.startStock(ctx, c, host.Name())
	if err != nil {
		return err
	}
	if err := b.moment(ctx, c, host.Name()); err != nil {
		return err
	}
	lost, err := b.lose(ctx, host, played{Case: c, pod: pod, volume: pod.Labels["app"]})
	if err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	if _, err := b.s.AwaitNode(soon, host.Name(), host.Name()+" to be Unknown", unknown); err != nil {
		return err
	}
	if err := b.setTaints(soon, host.Name(), func(t []corev1.Taint) []corev1.Taint {
		return append(t, corev1.Taint{Key: v1alpha1.TaintOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute})
	}); err != nil {
		return err
	}
	if err := b.measure(ctx, lost[0], giveUp); err != nil {
		return err
	}
	if err := errors.Join(b.stopStock(ctx, pod), b.comeBack(ctx, host)); err != nil {
		return err
	}
	return b.setTaints(ctx, host.Name(), func(t []corev1.Taint) []corev1.Taint {
		return slices.DeleteFunc(t, func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintOutOfService })
	})
}

// stock begins the cases of B0 and B1, which share hosts, and lets them wait beside what comes.
func (b *bench) stock(ctx context.Context, sets, deployments []figures.Case) error {
	for len(sets)+len(deployments) > 0 {
		var pair []figures.Case
		if len(sets) > 0 {
			pair, sets = append(pair, sets[0]), sets[1:]
		}
		if len(deployments) > 0 {
			pair, deployments = append(pair, deployments[0]), deployments[1:]
		}
		if err := b.stockPair(ctx, pair); err != nil {
			return fmt.Errorf("stock case %d: %w", pair[0].Number, err)
		}
	}
	return nil
}

func (b *bench) stockPair(ctx context.Context, pair []figures.Case) error {
	if err := b.well(ctx); err != nil {
		return err
	}
	host, err := b.pick(ctx, pair[0], "")
	if err != nil {
		return err
	}
	var cases []played
	for _, c := range pair {
		pod, err := b.startStock(ctx, c, host.Name())
		if err != nil {
			return err
		}
		cases = append(cases, played{Case: c, pod: pod, volume: pod.Labels["app"]})
	}
	if err := b.moment(ctx, pair[0], host.Name()); err != nil {
		return err
	}
	cases, err = b.lose(ctx, host, cases...)
	if err != nil {
		return err
	}
	b.dark = append(b.dark, host.Name())
	for _, p := range cases {
		b.waiting.Go(func() {
			if err := b.measure(ctx, p, b.o.censor); err != nil {
				b.writing.Lock()
				defer b.writing.Unlock()
				b.failed = errors.Join(b.failed, fmt.Errorf("%s case %d: %w", p.Kind, p.Number, err))
			}
		})
	}
	pause := time.NewTimer(stagger)
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
