// Copyright The Holdfast Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/holdfast-dev/holdfast/api/v1alpha1"
	"github.com/holdfast-dev/holdfast/controllers/sight"
	"github.com/holdfast-dev/holdfast/engine/verdict"
)

// When a leader steps down by itself: docs/adr/0014-a-hand-over-within-five-seconds.md.
const (
	// doubtEvery is how often a leader looks at its own host, and doubtFor how long the host must be in doubt without a break.
	doubtEvery = time.Second
	doubtFor   = 3 * time.Second
	// ledAtLeast is for how long a replica leads at least: so often may leadership move by itself, whatever is doubted.
	ledAtLeast = 2 * time.Minute
)

// doubter has a leader step down whose own host is in doubt, where another replica is ready on a host that is not. It implements manager.Runnable.
type doubter struct {
	from      client.Reader
	namespace string
	pod, host string
	outside   func() sight.Outside
	led       func() time.Duration
	clock     clock.WithTicker
	// down has this process stop leading in good order.
	down func()

	since time.Time // of the present doubt; zero without one
	// alone is that no witness agent answers this replica, in words, from when two or more should and none did; until one does. Who is cut off expects nobody any
	// more after a while, and is cut off all the same.
	alone string
}

// NeedLeaderElection: standbys have nothing to step down from.
func (d *doubter) NeedLeaderElection() bool { return true }

// Start looks until the context ends.
func (d *doubter) Start(ctx context.Context) error {
	if d.host == "" { // as where it runs beside the cluster
		return nil
	}
	log := ctrl.Log.WithName("doubter")
	tick := d.clock.NewTicker(doubtEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		}
		why, to, err := d.look(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			log.Error(err, "This replica's own host cannot be looked at")
		case to != "":
			log.Info("Stepping down", "host", d.host, "because", why, "ready", to)
			d.down()
			return nil
		}
	}
}

// look says why the own host is in doubt, and which replica should lead in its stead; none if this one stays.
func (d *doubter) look(ctx context.Context) (why, to string, err error) {
	var nodes corev1.NodeList
	if err := d.from.List(ctx, &nodes, client.UnsafeDisableDeepCopy); err != nil {
		return "", "", fmt.Errorf("list Nodes: %w", err)
	}
	outside := d.doubtFrom(d.outside())
	doubts := map[string]string{}
	for i := range nodes.Items {
		doubts[nodes.Items[i].Name] = doubtOf(&nodes.Items[i], d.alone != "")
	}
	if why = doubts[d.host]; why == "" {
		why = outside
	}
	now := d.clock.Now()
	if why == "" {
		d.since = time.Time{}
		return "", "", nil
	}
	if d.since.IsZero() {
		d.since = now
	}
	if now.Sub(d.since) < doubtFor || d.led() < ledAtLeast {
		return why, "", nil
	}
	if busy, err := d.busy(ctx); busy || err != nil {
		return why, "", err
	}
	to, err = d.standby(ctx, doubts)
	return why, to, err
}

// doubtOf is what the API says of a host. To one that is alone every host is Isolated that carries writers and whose lease moves: its own doing, which says nothing
// of that host.
func doubtOf(n *corev1.Node, alone bool) string {
	ready := "has no condition Ready"
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type == v1alpha1.NodeConditionVerdict && alone && c.Reason == verdict.Isolated.String():
		case c.Type == v1alpha1.NodeConditionVerdict && c.Status == corev1.ConditionTrue:
			return "an incident of it is open: " + c.Reason
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue:
			ready = ""
		case c.Type == corev1.NodeReady:
			ready = "its Node's Ready is " + string(c.Status)
		}
	}
	return ready
}

// doubtFrom is what the witness agents on other hosts make of this one. One alone is no quorum, and neither is its silence.
func (d *doubter) doubtFrom(o sight.Outside) string {
	switch {
	case !o.On || o.Answering > 0:
		d.alone = ""
	case o.Expected >= 2:
		d.alone = fmt.Sprintf("none of %d witness agents answers this replica, which reaches the API", o.Expected)
	}
	if o.Expected >= 2 && 2*o.Doubting > o.Expected {
		return fmt.Sprintf("%d of %d witness agents on other hosts do not hear it", o.Doubting, o.Expected)
	}
	return d.alone
}

// busy reports whether the loss of another host is being acted upon: who takes that over has to see for itself before it goes on.
func (d *doubter) busy(ctx context.Context) (bool, error) {
	var incidents v1alpha1.HostIncidentList
	if err := d.from.List(ctx, &incidents); err != nil {
		return false, fmt.Errorf("list HostIncidents: %w", err)
	}
	for i := range incidents.Items {
		switch incidents.Items[i].Status.Step {
		case v1alpha1.StepConfirmed, v1alpha1.StepFencing, v1alpha1.StepReleasing:
			if incidents.Items[i].Spec.NodeName != d.host {
				return true, nil
			}
		}
	}
	return false, nil
}

// standby names another replica that is ready, on a host that is in no doubt.
func (d *doubter) standby(ctx context.Context, doubts map[string]string) (string, error) {
	var pods corev1.PodList
	if err := d.from.List(ctx, &pods, client.InNamespace(d.namespace), client.MatchingLabels{"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": "manager"}); err != nil {
		return "", fmt.Errorf("list the replicas: %w", err)
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		doubt, listed := doubts[p.Spec.NodeName]
		if p.Name != d.pod && p.Spec.NodeName != d.host && p.DeletionTimestamp == nil && podReady(p) && listed && doubt == "" {
			return p.Name, nil
		}
	}
	return "", nil
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// again begins this process anew, as a standby: a kubelet would let a container that ended wait, and longer each time.
func again() error {
	if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("begin anew as a standby: %w", err)
	}
	return nil
}
