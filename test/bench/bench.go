// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/witness/manifest"
	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/await"
	"github.com/holdfast-dev/holdfast/test/lab/events"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// patience bounds every wait for the lab to be as it should.
	patience = 3 * time.Minute
	// giveUp bounds P1, P2 and B2: several times what any of them should take.
	giveUp = 3 * time.Minute
	// stagger keeps faults apart that the node controller taints, one in ten seconds.
	stagger = 12 * time.Second
)

// gone are the hosts that do not speak to the API, and are meant not to.
func (b *bench) gone() []string {
	gone := slices.Clone(b.dark)
	if b.outage != nil {
		gone = append(gone, b.outage.host.Name())
	}
	return gone
}

// free are the hosts that may be lost: neither gone, nor with a manager, nor with a guarded app but the one named.
func (b *bench) free(ctx context.Context, app string) ([]string, error) {
	var pods corev1.PodList
	if err := b.s.Client.List(ctx, &pods); err != nil {
		return nil, err
	}
	taken := b.gone()
	for _, p := range pods.Items {
		if p.Namespace == stage.HoldfastNamespace || (p.Namespace == stage.Namespace && p.Labels["app"] != "" && p.Labels["app"] != app) {
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

// pick chooses the host that is lost. The one that has the app already saves a move.
func (b *bench) pick(ctx context.Context, c figures.Case, app, on string) (*lab.Host, error) {
	free, err := b.free(ctx, app)
	if err != nil {
		return nil, err
	}
	if slices.Contains(free, on) {
		return b.s.Lab.Host(on)
	}
	return b.s.Lab.Host(free[c.Pick%uint64(len(free))])
}

// well waits until nothing is the matter with the hosts that have power, and with Holdfast.
func (b *bench) well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, h := range b.s.Lab.Hosts() {
		if slices.Contains(b.gone(), h.Name()) {
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
	return errors.Join(b.s.AwaitWitnesses(ctx, b.gone()...), b.agentsRun(ctx), b.s.AwaitServed(ctx))
}

// agentsRun waits until what the API says of agents is of the processes that are there now: of a host that was lost it still says what it did before.
func (b *bench) agentsRun(ctx context.Context) error {
	return await.Every(ctx, 200*time.Millisecond, "the agents of hosts that returned", func() (bool, error) {
		var pods corev1.PodList
		if err := b.s.Client.List(ctx, &pods, client.InNamespace(manifest.Namespace)); err != nil {
			return false, err
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if slices.Contains(b.gone(), p.Spec.NodeName) || p.DeletionTimestamp != nil {
				continue
			}
			id, err := b.s.ProcessOf(p, "witness")
			if err != nil || !stage.PodReady(p) || !ofProcess(p, time.Duration(mono.Nanoseconds()-monoOfTicks(id.Start))) {
				return false, nil //nolint:nilerr // not there yet
			}
		}
		return true, nil
	})
}

// ofProcess reports whether the pod's container was started when its process was, which is so old.
func ofProcess(p *corev1.Pod, age time.Duration) bool {
	if len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].State.Running == nil {
		return false
	}
	started := p.Status.ContainerStatuses[0].State.Running.StartedAt.Time // to a second
	return time.Since(started) <= age+2*time.Second
}

// moment waits until the case wants its host to be lost.
func (b *bench) moment(ctx context.Context, c figures.Case, host string) error {
	var last time.Time
	seen := -1 // the renewal that is there already does not count
	if _, err := b.s.AwaitLease(ctx, host, fmt.Sprintf("%d renewals by %s", c.Renewals, host), func(l *coordinationv1.Lease) bool {
		if l.Spec.RenewTime != nil && l.Spec.RenewTime.After(last) {
			last, seen = l.Spec.RenewTime.Time, seen+1
		}
		return seen > c.Renewals || seen == c.Renewals && (seen > 0 || time.Since(last) <= c.Age)
	}); err != nil {
		return err
	}
	return wait(ctx, time.Until(last.Add(c.Age)))
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// strike takes a host's power, or has it hang for a case of P2w, and returns what is known then about the cases.
func (b *bench) strike(ctx context.Context, host *lab.Host, cases ...played) ([]played, error) {
	name, do := "power-off", host.PowerOff
	if cases[0].Kind == figures.Hung {
		name, do = "hang", func(ctx context.Context) error { return host.Hang(ctx, lab.HangDead) }
	}
	since := mono.Nanoseconds()
	size, err := b.journalSize()
	if err != nil {
		return nil, err
	}
	if err := do(ctx); err != nil {
		return nil, err
	}
	t0, err := b.faultBegan(name, host.Name(), since)
	if err != nil {
		return nil, err
	}
	var lease coordinationv1.Lease
	if err := b.s.Client.Get(ctx, types.NamespacedName{Namespace: corev1.NamespaceNodeLease, Name: host.Name()}, &lease); err != nil {
		return nil, err
	}
	for n := range cases {
		p := &cases[n]
		p.host, p.t0, p.journal = host.Name(), t0, size
		if lease.Spec.RenewTime != nil {
			p.leaseAge = p.t0.Wall.Sub(lease.Spec.RenewTime.Time)
		}
		campaign.Tell("%s case %d: %s of %s, its lease is %.1f s old", p.Kind, p.Number, name, p.host, p.leaseAge.Seconds())
	}
	return cases, nil
}

// faultBegan is when the lab's journal says that a fault began, before anything of it was to be seen.
func (b *bench) faultBegan(name, host string, since int64) (mono.Stamp, error) {
	found, err := b.s.Lab.Events(events.Filter{Since: since, Sources: []events.Source{events.Faults}})
	if err != nil {
		return mono.Stamp{}, err
	}
	i := slices.IndexFunc(found, func(e events.Event) bool {
		return e.Fault != nil && e.Fault.Fault == name && e.Fault.Target == host && e.Fault.State == fault.Begin
	})
	if i < 0 {
		return mono.Stamp{}, fmt.Errorf("the fault %s of %s is not in the lab's journal", name, host)
	}
	return found[i].Stamp, nil
}

// guarded is a case of a kind that Holdfast brings elsewhere.
func (b *bench) guarded(ctx context.Context, a *stage.Actor, c figures.Case) error {
	p, host, err := b.ready(ctx, a, c)
	if err != nil {
		return err
	}
	defer p.leave()
	if err := b.moment(ctx, c, host.Name()); err != nil {
		return err
	}
	lost, err := b.strike(ctx, host, p)
	if err != nil {
		return err
	}
	if err := b.measure(ctx, lost[0], giveUp); err != nil {
		return err
	}
	if c.Kind == figures.Hung {
		if err := host.EndHang(ctx); err != nil { // it was fenced: only the lab's journal learns of it
			return err
		}
	}
	return b.comeBack(ctx, host)
}

// ready brings the actor to a host that may be lost, and clients to another.
func (b *bench) ready(ctx context.Context, a *stage.Actor, c figures.Case) (p played, host *lab.Host, err error) {
	if err := b.well(ctx); err != nil {
		return p, nil, err
	}
	now, err := a.Ledger(ctx)
	if err != nil {
		return p, nil, err
	}
	host, err = b.pick(ctx, c, a.Name, now.Spec.NodeName)
	if err != nil {
		return p, nil, err
	}
	placed, err := b.s.Place(ctx, host.Name(), a)
	if err != nil {
		return p, nil, err
	}
	p = played{Case: c, actor: a, pod: placed[0], volume: a.Volume()}
	if p.interleavings, err = b.judged(ctx, p.volume); err != nil {
		return p, nil, err
	}
	if p.confirmAfter, err = b.confirmAfter(ctx, a); err != nil {
		return p, nil, err
	}
	if err := errors.Join(b.well(ctx), a.AwaitReady(ctx), a.AwaitServed(ctx)); err != nil {
		return p, nil, err
	}
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return p, host, b.connect(soon, &p)
}

// judged is how often two wrote to the volume at once, as far as anybody looked.
func (b *bench) judged(ctx context.Context, volume string) (int, error) {
	b.writing.Lock()
	n, ok := b.quarrels[volume]
	b.writing.Unlock()
	if ok {
		return n, nil
	}
	before, err := b.s.JudgeVolume(ctx, volume)
	return len(before.Interleavings), err
}

// confirmAfter is what the actor's guard asks for.
func (b *bench) confirmAfter(ctx context.Context, a *stage.Actor) (time.Duration, error) {
	var g v1alpha1.GuardedStatefulApp
	if err := b.s.Client.Get(ctx, client.ObjectKey{Namespace: stage.Namespace, Name: a.Name}, &g); err != nil {
		return 0, err
	}
	return time.Duration(g.Spec.OnHostLoss.ConfirmAfterSeconds) * time.Second, nil
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
	return b.s.AwaitNoOpenIncident(ctx, b.gone()...)
}

// human is a case of B2: somebody watches the Node, knows that the host is off, and says so the instant that Kubernetes notices.
func (b *bench) human(ctx context.Context, c figures.Case) error {
	if err := b.well(ctx); err != nil {
		return err
	}
	host, err := b.pick(ctx, c, "", "")
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
	lost, err := b.strike(ctx, host, played{Case: c, pod: pod, volume: pod.Labels["app"]})
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
	return b.untaint(ctx, host.Name())
}
