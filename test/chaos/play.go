// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/engine/scenario"
	"github.com/holdfast-dev/holdfast/engine/verdict"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/chaos/draw"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/bmc"
	"github.com/holdfast-dev/holdfast/test/lab/fault"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
	"github.com/holdfast-dev/holdfast/test/lab/process"
)

const (
	// patience bounds the return to where everything is well: a host that was fenced boots, and passes the return gate.
	patience = 5 * time.Minute
	// lag is what a verdict may be late in status: the deadlines of the matrix are those of the engine.
	lag = 3 * time.Second
	// settle is how long everything has to have been well before a fault; a moment drawn from the ten seconds of a renewal is added.
	settle = 4 * time.Second
)

// play plays cases.
type play struct {
	s      *stage.Stage
	o      options
	matrix scenario.Matrix
	commit string
	failed int
}

func (p *play) all(ctx context.Context, cases []uint64) error {
	for _, n := range cases {
		r, err := p.one(ctx, n)
		if err != nil {
			return fmt.Errorf("case %d of seed %d: %w", n, p.o.seed, err)
		}
		if err := r.append(p.o.rows()); err != nil {
			return err
		}
		if r.outcome != passed {
			p.failed++
		}
		campaign.Tell("%s", r.String())
	}
	return nil
}

// want is what the matrix allows of faults: the verdicts of every state in which they may leave the host, by the latest of their deadlines.
func (p *play) want(f draw.Faults) (verdicts []string, by time.Duration, err error) {
	for _, s := range f.States() {
		row, err := p.matrix.Expect(s)
		if err != nil {
			return nil, 0, err
		}
		verdicts, by = append(verdicts, row.Verdicts...), max(by, row.By)
	}
	slices.Sort(verdicts)
	return slices.Compact(verdicts), by + lag, nil
}

// one plays a case. An error is a lab that cannot go on; what Holdfast gets wrong is in the row.
func (p *play) one(ctx context.Context, n uint64) (row, error) {
	f := draw.Case(p.o.seed, n)
	want, by, err := p.want(f)
	if err != nil {
		return row{}, err
	}
	host, pod, err := p.ready(ctx, rand.New(rand.NewPCG(p.o.seed, n))) //nolint:gosec // a draw, not a secret
	if err != nil {
		return row{}, fmt.Errorf("before the fault: %w", err)
	}
	before, err := p.s.Judge(ctx)
	if err != nil {
		return row{}, err
	}
	boot, err := host.BootID()
	if err != nil {
		return row{}, err
	}
	r := row{commit: p.commit, seed: p.o.seed, number: n, host: host.Name(), faults: f.String(), want: want, by: by}
	strikes := &strikes{s: p.s, host: host, pod: pod}
	began := mono.Nanoseconds()
	if err := strikes.all(ctx, f); err != nil {
		return row{}, errors.Join(err, strikes.mend(ctx))
	}
	r.seen, err = p.verdicts(ctx, host.Name(), boot, began, by)
	err = errors.Join(err, strikes.mend(ctx))
	if err == nil && f.Device == bmc.LieOff && r.last().verdict == verdict.Lost.String() {
		err = p.reboot(ctx, host, boot)
	}
	if err == nil {
		err = p.well(ctx)
	}
	if err != nil {
		return row{}, fmt.Errorf("after %s: %w", f, err)
	}
	after, err := p.s.Judge(ctx)
	if err != nil {
		return row{}, err
	}
	r.judge(len(after.Interleavings)-len(before.Interleavings), len(after.LostAcks)-len(before.LostAcks))
	return r, nil
}

// reboot is what the incident asks a human for after that: the boot that was declared lost speaks again, and its device is trusted no more. Holdfast commands Off too, as often as it
// may, and a command may come after the power is back: so the human stays until the Node is Ready in another boot.
func (p *play) reboot(ctx context.Context, host *lab.Host, lost string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := host.PowerOff(ctx); err != nil {
		return err
	}
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		if !host.Powered() {
			if err := host.PowerOn(ctx); err != nil {
				return err
			}
		}
		var node corev1.Node
		err := p.s.Client.Get(ctx, client.ObjectKey{Name: host.Name()}, &node)
		if err == nil && node.Status.NodeInfo.BootID != lost && stage.NodeReady(&node) {
			return nil
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting for %s to come back in another boot: %w", host.Name(), ctx.Err()), err)
		}
	}
}

// ready brings the ledger to a host without a manager, and waits for a moment drawn from the generator at which everything has been well for a while.
func (p *play) ready(ctx context.Context, random *rand.Rand) (*lab.Host, *corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := p.well(ctx); err != nil {
		return nil, nil, err
	}
	name, err := p.s.FreeHost(ctx)
	if err != nil {
		return nil, nil, err
	}
	placed, err := p.s.Place(ctx, name, p.s.Actor)
	if err != nil {
		return nil, nil, err
	}
	if err := p.well(ctx); err != nil {
		return nil, nil, err
	}
	moment := time.NewTimer(settle + time.Duration(random.Int64N(int64(10*time.Second))))
	defer moment.Stop()
	select {
	case <-moment.C:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	host, err := p.s.Lab.Host(name)
	return host, placed[0], err
}

// well waits until nothing is the matter with hosts, Holdfast, agents and the ledger.
func (p *play) well(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, h := range p.s.Lab.Hosts() {
		if _, err := p.s.AwaitNode(ctx, h.Name(), h.Name()+" to be Ready and without taints", func(n *corev1.Node) bool {
			return stage.NodeReady(n) && len(n.Spec.Taints) == 0
		}); err != nil {
			return err
		}
	}
	return errors.Join(p.s.AwaitNoOpenIncident(ctx), p.s.AwaitWitnesses(ctx), p.s.AwaitReady(ctx), p.s.AwaitServed(ctx))
}

// change is a verdict and when after the fault it was seen.
type change struct {
	verdict string
	at      time.Duration
}

// verdicts follows what is said of the host until the deadline.
func (p *play) verdicts(ctx context.Context, host, boot string, began int64, by time.Duration) ([]change, error) {
	var seen []change
	ctx, cancel := context.WithTimeout(ctx, by-time.Duration(mono.Nanoseconds()-began))
	defer cancel()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		v, err := p.verdict(ctx, host, boot)
		if ctx.Err() != nil {
			return seen, nil
		}
		if err != nil {
			return nil, err
		}
		if len(seen) == 0 || seen[len(seen)-1].verdict != v {
			seen = append(seen, change{v, time.Duration(mono.Nanoseconds() - began)})
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return seen, nil
		}
	}
}

// verdict is what the open incident of the boot says, or where there is none the app of its host.
func (p *play) verdict(ctx context.Context, host, boot string) (string, error) {
	var incidents v1alpha1.HostIncidentList
	if err := p.s.Client.List(ctx, &incidents); err != nil {
		return "", err
	}
	for _, i := range incidents.Items {
		if i.Spec.NodeName == host && i.Spec.BootID == boot && i.Status.Verdict != "" && i.Status.Step != v1alpha1.StepClosed && i.Status.Step != v1alpha1.StepRetired {
			return i.Status.Verdict, nil
		}
	}
	var app v1alpha1.GuardedStatefulApp
	if err := p.s.Client.Get(ctx, client.ObjectKey{Namespace: stage.Namespace, Name: stage.App}, &app); err != nil {
		return "", err
	}
	for _, m := range app.Status.Members {
		if m.Host == host {
			return m.Verdict, nil
		}
	}
	return "", nil
}

// strikes are the faults that stand.
type strikes struct {
	s       *stage.Stage
	host    *lab.Host
	pod     *corev1.Pod
	stopped []process.ID
}

// all strikes, the device first: nothing of the rest may be answered by one that does not lie yet.
func (x *strikes) all(ctx context.Context, f draw.Faults) error {
	err := x.host.SetBMCMode(ctx, f.Device)
	if f.Storage {
		err = errors.Join(err, x.host.Cut(ctx, fault.Storage, fault.Both))
	}
	for plane, direction := range map[fault.Plane]fault.Direction{fault.API: f.API, fault.Peers: f.Peers} {
		if direction != 0 {
			err = errors.Join(err, x.host.Cut(ctx, plane, direction))
		}
	}
	for _, part := range []struct {
		struck bool
		strike func(context.Context) error
	}{
		{f.App, func(ctx context.Context) error { return x.stop(ctx, x.pod, "ledger") }},
		{f.Agent, x.stopAgent},
		{f.Kubelet, x.host.KillKubelet},
		{f.Runtime, x.stopRuntime},
		{f.Whole == draw.Powerless, x.host.PowerOff},
		{f.Whole == draw.Frozen, func(ctx context.Context) error { return x.host.Hang(ctx, lab.HangUserspace) }},
		{f.Whole == draw.Deaf, func(ctx context.Context) error { return x.host.Hang(ctx, lab.HangDead) }},
	} {
		if part.struck {
			err = errors.Join(err, part.strike(ctx))
		}
	}
	return err
}

func (x *strikes) stop(ctx context.Context, pod *corev1.Pod, command string) error {
	id, err := x.s.ProcessOf(pod, command)
	if err != nil {
		return err
	}
	x.stopped = append(x.stopped, id)
	return id.Stop(ctx)
}

func (x *strikes) stopAgent(ctx context.Context) error {
	pod, err := x.s.Witness(ctx, x.host.Name())
	if err != nil {
		return err
	}
	return x.stop(ctx, pod, "witness")
}

func (x *strikes) stopRuntime(ctx context.Context) error {
	pid, err := x.host.ServicePID(ctx, "containerd")
	if err != nil {
		return err
	}
	id, err := process.Find(pid)
	if err != nil {
		return err
	}
	x.stopped = append(x.stopped, id)
	return id.Stop(ctx)
}

// mend ends every fault. A process that did not outlive its host needs no mending.
func (x *strikes) mend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	h := x.host
	err := errors.Join(h.SetBMCMode(ctx, bmc.Clear), h.Heal(ctx, fault.All, fault.Both), h.EndHang(ctx))
	for _, id := range x.stopped {
		if !id.Alive() {
			continue
		}
		if wrong := id.Continue(ctx); id.Alive() {
			err = errors.Join(err, wrong)
		}
	}
	up := func() error {
		if !h.Powered() {
			if err := h.PowerOn(ctx); err != nil {
				return err
			}
		}
		return h.StartKubelet(ctx)
	}
	wrong := up()
	if wrong != nil && !h.Powered() { // by an Off that Holdfast's device was deaf to, and took late
		wrong = up()
	}
	return errors.Join(err, wrong)
}
