// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/test/bench/figures"
	"github.com/holdfast-dev/holdfast/test/campaign"
	"github.com/holdfast-dev/holdfast/test/e2e/stage"
	"github.com/holdfast-dev/holdfast/test/lab"
	"github.com/holdfast-dev/holdfast/test/lab/jsonl"
	"github.com/holdfast-dev/holdfast/test/lab/mono"
)

const (
	// steadyWrites is how often P7's application writes of itself.
	steadyWrites = 50 * time.Millisecond
	// afterwards is how long it is looked on once all is well again: a kubelet that returns looks at its containers.
	afterwards = time.Minute
)

// outage is P7 while it is being played: the host of a guarded application has no kubelet.
type outage struct {
	actor *stage.Actor
	pod   *corev1.Pod
	host  *lab.Host
	t0    mono.Stamp
	// quarrels and lost are what the volume's judges found before.
	quarrels, lost int
}

// beginOutage brings the application on, on a host that has nothing else, and kills the kubelet there.
func (b *bench) beginOutage(ctx context.Context) error {
	a, err := b.s.Enter(ctx, stage.Role{Name: "steady", Kind: "StatefulSet", Class: "enforcing", Interval: steadyWrites.String()})
	if err != nil {
		return err
	}
	now, err := a.Ledger(ctx)
	if err != nil {
		return err
	}
	host, err := b.pick(ctx, figures.Case{}, a.Name, now.Spec.NodeName)
	if err != nil {
		return err
	}
	placed, err := b.s.Place(ctx, host.Name(), a)
	if err != nil {
		return err
	}
	if err := errors.Join(b.well(ctx), a.AwaitReady(ctx)); err != nil {
		return err
	}
	before, err := a.Judge(ctx)
	if err != nil {
		return err
	}
	since := mono.Nanoseconds()
	if err := host.KillKubelet(ctx); err != nil {
		return err
	}
	o := &outage{actor: a, pod: placed[0], host: host, quarrels: len(before.Interleavings), lost: len(before.LostAcks)}
	b.outage = o
	if o.t0, err = b.faultBegan("kill-kubelet", host.Name(), since); err != nil {
		return err
	}
	campaign.Tell("P7: %s has no kubelet for %s", host.Name(), b.o.outage)
	return nil
}

// endOutage waits for its end, gives the host its kubelet back, and appends the row once all is well again and has been for a while.
func (b *bench) endOutage(ctx context.Context) error {
	o := b.outage
	if err := wait(ctx, b.o.outage-time.Duration(mono.Nanoseconds()-o.t0.Mono)); err != nil {
		return err
	}
	back, revive := mono.Nanoseconds(), o.host.StartKubelet
	if !o.host.Powered() { // it was fenced: what that did counts
		revive = o.host.PowerOn
	}
	if err := revive(ctx); err != nil {
		return err
	}
	b.outage = nil
	soon, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	returned := errors.Join(b.well(soon), b.s.AwaitNoOpenIncident(soon), o.actor.AwaitReady(soon)) // what was measured counts, well or not
	if err := wait(ctx, afterwards); err != nil {
		return err
	}
	row, err := b.outageRow(ctx, o, back)
	if err != nil {
		return errors.Join(returned, err)
	}
	campaign.Tell("P7: kubelet dead for %s; longest pause %s, down for %s, %d restarts, %d acknowledged lines lost, no endpoint for at most %s", row.Length, row.Pause, row.Down, row.Restarts, row.Lost, row.Gap)
	return errors.Join(returned, figures.AppendOutage(b.o.outages(), row), o.actor.Exit(ctx))
}

// outageRow judges the whole time by the array's log, the ledger, its client, the watch of its Service, and what the API says of its container.
func (b *bench) outageRow(ctx context.Context, o *outage, back int64) (figures.Outage, error) {
	until := mono.Nanoseconds()
	row := figures.Outage{Commit: b.commit, Seed: b.o.seed, Timings: string(b.s.Lab.Timings()), T0: o.t0.Wall, Host: o.host.Name(), Interval: steadyWrites,
		Length: time.Duration(back - o.t0.Mono), After: time.Duration(until - back)}
	found, err := o.actor.Judge(ctx) // which has the array's log written out
	if err != nil {
		return row, err
	}
	row.Lost, row.Interleavings = len(found.LostAcks)-o.lost, len(found.Interleavings)-o.quarrels
	writes, err := b.writesTo(o.actor.Volume(), o.t0.Mono, until)
	if err != nil {
		return row, err
	}
	row.Writes = len(writes)
	row.Pause, row.Down = figures.Pauses(writes, o.t0.Mono, until)
	row.PauseAfter, row.DownAfter = figures.Pauses(writes, back, until)
	acks, err := o.actor.Acks(o.t0.Mono)
	if err != nil {
		return row, err
	}
	var at []int64
	for _, a := range acks {
		at = append(at, a.Mono)
	}
	row.Acked = len(at)
	row.Unserved, _ = figures.Pauses(at, o.t0.Mono, until)
	var turns []figures.Turn
	for _, c := range o.actor.Endpoints.Changes() {
		turns = append(turns, figures.Turn{Mono: c.Mono, Ready: len(c.Ready) > 0})
	}
	for i, turn := range turns[:max(0, len(turns)-1)] {
		if !turn.Ready && turn.Mono >= o.t0.Mono {
			campaign.Tell("P7: no endpoint for %s, from %s after the kubelet's death on", time.Duration(turns[i+1].Mono-turn.Mono), time.Duration(turn.Mono-o.t0.Mono))
		}
	}
	row.Gap, row.Gaps = figures.Gaps(turns, o.t0.Mono, until)
	row.GapAfter, _ = figures.Gaps(turns, back, until)
	row.Restarts, err = b.restarts(ctx, o.pod)
	return row, err
}

// writesTo are the times at which the array accepted a write to the volume.
func (b *bench) writesTo(volume string, since, until int64) ([]int64, error) {
	var at []int64
	err := jsonl.Scan(b.journalPath(), func(line []byte) error {
		var w write
		if err := json.Unmarshal(line, &w); err != nil {
			return fmt.Errorf("%w: %s", err, line)
		}
		if w.Volume == volume && w.Result == "ok" && w.Op == "" && w.Mono >= since && w.Mono <= until {
			at = append(at, w.Mono)
		}
		return nil
	})
	return at, err
}

// restarts is how often the pod's container was started since, by what its kubelet says now; a pod that is another one counts as once more.
func (b *bench) restarts(ctx context.Context, before *corev1.Pod) (int, error) {
	var now corev1.Pod
	if err := b.s.Client.Get(ctx, client.ObjectKeyFromObject(before), &now); err != nil {
		return 0, err
	}
	if len(before.Status.ContainerStatuses) != 1 || len(now.Status.ContainerStatuses) != 1 {
		return 0, fmt.Errorf("%s has %d containers and had %d, want one", now.Name, len(now.Status.ContainerStatuses), len(before.Status.ContainerStatuses))
	}
	was, is := before.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
	if now.UID != before.UID {
		return 1 + int(is.RestartCount), nil
	}
	n := int(is.RestartCount - was.RestartCount)
	if n == 0 && is.ContainerID != was.ContainerID {
		n = 1
	}
	return n, nil
}
